"""The answer side of one exchange: framing, chunking, flow control, the visible abort.

Framing is chosen from what is known of the body and what the client speaks; nothing of the
upstream's framing is copied.
"""

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

from filters.api import Headers
from filters.seams import Flow
from gateway import wire
from gateway.chunked import encode_end

if TYPE_CHECKING:
    from gateway.downstream import Downstream

_RESET = struct.pack("ii", 1, 0)


class Responder:
    """Implements ``filters.seams.Downstream`` for one exchange; useless after ``cut_off``."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_head",
        "_keep",
        "_method",
        "_minor",
        "_muted",
        "bytes_sent",
        "committed",
        "finished",
        "request_id",
        "status",
        "upgrade",
    )

    def __init__(
        self, connection: "Downstream", method: bytes, minor: int, keep: bool, upgrade: bool
    ) -> None:
        self._connection: Downstream | None = connection
        self._method = method
        self._minor = minor
        self._keep = keep
        self._head = b""
        self._muted = False
        self._chunked = False
        self.upgrade = upgrade
        self.committed = False
        self.finished = False
        self.status = 0
        self.bytes_sent = 0
        self.request_id = b""

    def inform(self, status: int, lines: bytes) -> None:
        """An interim response. Not for HTTP/1.0, which has none, nor after the head."""
        connection = self._connection
        if connection is not None and self._minor == 1 and not self.committed:
            head = wire.status_line(status) + lines + b"\r\n"
            connection.transport.write(head)

    def start(self, status: int, lines: bytes, length: int | None) -> None:
        connection = self._connection
        if connection is None:
            return
        self.committed = True
        self.status = status
        framing = b""
        self._muted = self._method == b"HEAD" or status in (204, 304)
        if length is not None and status != 204:
            framing = b"content-length: %d\r\n" % length
        elif length is None and not self._muted:
            if self._minor == 1:
                self._chunked = True
                framing = b"transfer-encoding: chunked\r\n"
            else:
                connection.closing = connection.until_close = True
        # After a refused upgrade the client may have sent bytes for the tunnel, which must not be
        # read as a request.
        body = connection.body
        early = body is not None and not body.complete  # what is left of it will not be read
        leaving = connection.closing or connection.acceptor.draining
        if leaving or early or not self._keep or self.upgrade:
            connection.closing = True
            framing += b"connection: close\r\n"
        elif self._minor == 0:
            framing += b"connection: keep-alive\r\n"
        self._head = b"%b%b%b\r\n" % (wire.status_line(status), lines, framing)

    def flush(self) -> None:
        """Send the head now: there is no body yet that could go with it in one write."""
        head, self._head = self._head, b""
        if head and self._connection is not None:
            self._connection.transport.write(head)

    def write(self, data: bytes) -> None:
        """A piece of the body, not empty."""
        connection = self._connection
        if connection is None or self._muted:
            return
        self.bytes_sent += len(data)
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head:
            data = self._head + data
            self._head = b""
        connection.transport.write(data)

    def finish(self, data: bytes, trailers: Headers) -> None:
        """The last piece of the body, possibly empty, and its end."""
        connection = self._connection
        if connection is None:
            return
        self.finished = True
        if self._muted:
            self.flush()
            return
        self.bytes_sent += len(data)
        if self._chunked:
            end = encode_end(trailers)
            data = b"%x\r\n%b\r\n%b" % (len(data), data, end) if data else end
        if self._head:
            data = self._head + data
            self._head = b""
        if data:
            connection.transport.write(data)

    def abort(self) -> None:
        """Break off. Where only the close would mark the end of the body, it must be a reset."""
        connection = self._connection
        if connection is None or connection.ended:
            return
        connection.closing = True
        connection.abort()

    def flow(self, source: Flow | None) -> None:
        if self._connection is not None:
            self._connection.sender = source
            if source is not None and self._connection.choked:
                source.pause()

    def buffered(self) -> int:
        """Bytes that wait for the client to read."""
        connection = self._connection
        return 0 if connection is None else connection.transport.get_write_buffer_size()

    def switch(self, status: int, lines: bytes) -> "Downstream | None":
        """Send the head of a 101 and hand the connection over, for a tunnel."""
        connection = self._connection
        if connection is None or not self.upgrade:
            return None
        self.committed = self.finished = connection.closing = True
        self.status = status
        head = wire.status_line(status) + lines + b"\r\n"
        connection.transport.write(head)
        return connection

    def cut_off(self) -> None:
        self._connection = None


def reset_on_close(transport: asyncio.Transport) -> None:
    """Let the next close of this connection be a reset."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
