"""Telling a client that will send no more from one that has gone away.

Both look the same: a FIN. HTTP allows the first (the answer must still be delivered), and for a
model server the second is money: a generation that nobody reads. So while the answer has not
begun, a half-closed HTTP/1.1 client is sent an interim ``102 Processing``, which every client
must skip over (RFC 9110 section 15.2). A kernel whose socket is closed answers that with a reset,
and the reset shows in the state of our socket although nobody reads from it. Once the answer
flows, its own bytes do the same.
"""

import socket
from typing import TYPE_CHECKING

from filters.api import Clock

if TYPE_CHECKING:
    from gateway.downstream import Downstream

PATIENCE_S = 0.1
"""Most answers are there before anything needs to be asked."""
LOOKS_S = (0.02, 0.1, 0.5)
"""When to look for the reset after asking; the last is for a client far away."""
AGAIN_S = 5.0

_TCP_CLOSE = 7
_TCP_INFO = getattr(socket, "TCP_INFO", None)
_PROBE = b"HTTP/1.1 102 Processing\r\n\r\n"


def watch(connection: "Downstream", clock: Clock) -> None:
    """Follow one half-closed connection until its exchange ends or the client proves gone."""
    exchange = connection.exchange
    if exchange is None or _TCP_INFO is None:
        return

    def over() -> bool:
        return connection.ended or connection.exchange is not exchange

    def ask() -> None:
        if over():
            return
        if exchange.request.minor == 1 and not exchange.downstream.committed:
            connection.transport.write(_PROBE)
        now = clock.now()
        for wait in LOOKS_S:
            clock.call_at(now + wait, look)
        clock.call_at(now + AGAIN_S, ask)

    def look() -> None:
        if not over() and _gone(connection):
            connection.transport.abort()

    clock.call_at(clock.now() + PATIENCE_S, ask)


def _gone(connection: "Downstream") -> bool:
    sock = connection.transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return False
    try:
        state: bytes = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)
    except OSError:
        return True
    return state[0] == _TCP_CLOSE
