"""Telling a client that will send no more from one that has gone away.

Both look the same: a FIN. HTTP allows the first (the answer must still be delivered), and for a
model server the second is money: a generation that nobody reads. What tells them apart:

- A socket of a client that is gone answers bytes with a reset, which shows as a hang-up of our
  socket although nobody reads from it. So while no answer has begun, an HTTP/1.1 client is sent
  an interim ``102 Processing``, which every client must skip over (RFC 9110 section 15.2). One
  that lets it stand is waited for.
- An answer that flows is such a test by itself. Where the FIN came after the head, or there are no
  interim answers (HTTP/1.0), silence for ``QUIET_S`` is taken for the client having left.
- A unix socket shows a hang-up as soon as the other side is closed.
"""

import select
from typing import TYPE_CHECKING

from filters.api import Clock, Exchange

if TYPE_CHECKING:
    from gateway.downstream import Downstream

PATIENCE_S = 0.1
"""Most answers are there before anything needs to be asked."""
LOOK_S = 0.1
AGAIN_S = 5.0
"""How often a patient client is asked anew: it may leave later."""
QUIET_S = 1.0

_PROBE = b"HTTP/1.1 102 Processing\r\n\r\n"
_GONE = select.POLLHUP | select.POLLERR


def watch(connection: "Downstream", clock: Clock) -> None:
    """Follow one half-closed connection until its exchange ends or the client proves gone."""
    if connection.exchange is not None:
        Vigil(connection, connection.exchange, clock).look()


class Vigil:
    """One half-closed connection while one exchange lasts."""

    __slots__ = ("_ask_at", "_clock", "_connection", "_exchange", "_moved_at", "_patient", "_sent")

    def __init__(self, connection: "Downstream", exchange: Exchange, clock: Clock) -> None:
        self._connection = connection
        self._exchange = exchange
        self._clock = clock
        self._moved_at = clock.now()
        self._ask_at = self._moved_at + PATIENCE_S
        # One that half-closes before the answer begins means it; it is asked and then believed.
        self._patient = exchange.request.minor == 1 and not exchange.downstream.committed
        self._sent = -1

    def look(self) -> None:
        connection, now = self._connection, self._clock.now()
        if connection.ended or connection.exchange is not self._exchange:
            return
        if hung_up(connection) or (not self._patient and self._quiet(now)):
            connection.transport.abort()
            return
        if self._patient and now >= self._ask_at and not self._exchange.downstream.committed:
            self._ask_at = now + AGAIN_S
            connection.transport.write(_PROBE)
        self._clock.call_at(now + LOOK_S, self.look)

    def _quiet(self, now: float) -> bool:
        sent = self._exchange.downstream.bytes_sent
        if sent != self._sent:
            self._sent, self._moved_at = sent, now
        return now - self._moved_at >= QUIET_S


def hung_up(connection: "Downstream") -> bool:
    """Whether both directions are closed, or a reset has come."""
    sock = connection.transport.get_extra_info("socket")
    if sock is None:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), 0)
    return any(events & _GONE for _, events in poll.poll(0))
