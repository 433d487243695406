"""Closing a client's connection so that its last answer arrives.

Closing a socket with unread bytes sends a reset, which can destroy the answer before the client
has read it (RFC 9112 section 9.6); so the writing side is closed first and what still comes is
read and dropped for a while. A client that reads slowly gets its time as long as it reads.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.downstream import Downstream

LINGER_S = 2.0
"""How long what still comes is read, once everything has been sent."""
LINGER_BYTES = 1024 * 1024


class Farewell:
    """The end of one connection, from its last answer to its close."""

    __slots__ = ("_connection", "_left", "_unsent")

    def __init__(self, connection: "Downstream") -> None:
        self._connection = connection
        self._left = LINGER_BYTES
        transport = connection.transport
        self._unsent = transport.get_write_buffer_size()
        if connection.secure or not transport.can_write_eof():
            transport.close()  # TLS has no half-close here; it is closed when all is sent
        else:
            transport.write_eof()
        connection.allow(connection.acceptor.timeouts.body_idle if self._unsent else LINGER_S)

    def received(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            self._connection.abort()

    def out_of_time(self) -> None:
        connection = self._connection
        waiting = connection.transport.get_write_buffer_size()
        if not waiting:
            connection.transport.abort()
        elif waiting != self._unsent:
            self._unsent = waiting
            connection.allow(connection.acceptor.timeouts.body_idle)
        else:
            connection.abort()
