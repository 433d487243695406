"""A client that sends any bytes in any pieces, and reads answers more strictly than a library.

Plain connections use bare sockets, not streams: a stream drops what has arrived when the peer
resets, and a test of refusals must see the last byte that came.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from tests.wire.origin import BOUND, Headers

if TYPE_CHECKING:
    import ssl

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2}) ([\t\x20-\x7e\x80-\xff]*)")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\x20-\x7e\x80-\xff\t]*)")
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,15}")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,18}")


class MalformedError(Exception):
    """The gateway answered what a strict reader refuses."""


class TruncatedError(Exception):
    """The connection ended inside an answer; ``body`` is what of it came."""

    def __init__(self, raw: bytes, body: bytes) -> None:
        super().__init__(f"truncated: {raw[-300:]!r}")
        self.raw = raw
        self.body = body


class Response:
    """One answer. ``framing`` is how its end was known: none, length, chunked or close."""

    def __init__(self, minor: int, status: int, reason: bytes, headers: Headers) -> None:
        self.minor = minor
        self.status = status
        self.reason = reason
        self.headers = headers
        self.body = b""
        self.framing = "none"
        self.trailers: Headers = []
        self.interim: list[Response] = []

    def values(self, name: str) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name.encode()]

    def one(self, name: str) -> bytes:
        (value,) = self.values(name)
        return value

    @property
    def closes(self) -> bool:
        return b"close" in [value.lower() for value in self.values("connection")]

    def __repr__(self) -> str:
        return f"<{self.status} {self.headers!r} {self.body[:400]!r}>"


class Client:
    """One connection. Sending stops silently once the gateway has closed: it may refuse early."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray()
        self.ended = ""
        self.raw = bytearray()

    @classmethod
    async def connect(cls, address: tuple[str, int] | str, receive_buffer: int = 0) -> Self:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        if isinstance(address, tuple) and ":" in address[0]:
            family = socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        if family is not socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        async with asyncio.timeout(BOUND):
            await asyncio.get_running_loop().sock_connect(sock, address)
        return cls(sock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self.sock.close()

    async def _transmit(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def _receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, 262144)

    async def send(self, data: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            async with asyncio.timeout(BOUND):
                await self._transmit(data)

    async def drip(self, data: bytes) -> None:
        """Byte by byte; in the middle of something long, in pieces of 997 bytes."""
        ends = (data[:300], data[-300:]) if len(data) > 600 else (data, b"")
        middle = data[300:-300] if len(data) > 600 else b""
        pieces = [ends[0][i : i + 1] for i in range(len(ends[0]))]
        pieces += [middle[i : i + 997] for i in range(0, len(middle), 997)]
        pieces += [ends[1][i : i + 1] for i in range(len(ends[1]))]
        for piece in pieces:
            await self.send(piece)
            await asyncio.sleep(0)

    def half_close(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # Reading.

    async def more(self) -> bool:
        """Wait for bytes; False at the end of the connection."""
        if self.ended:
            return False
        try:
            async with asyncio.timeout(BOUND):
                data = await self._receive()
        except ConnectionError:
            self.ended = "reset"
            return False
        if not data:
            self.ended = "eof"
        self.buffer += data
        self.raw += data
        return bool(data)

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        while await self.more():
            pass
        rest = bytes(self.buffer)
        self.buffer.clear()
        return rest

    async def exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not await self.more():
                raise TruncatedError(bytes(self.raw), bytes(self.buffer))
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    async def line(self) -> bytes:
        while (end := self.buffer.find(b"\r\n")) < 0:
            if not await self.more():
                raise TruncatedError(bytes(self.raw), bytes(self.buffer))
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 2]
        return line

    async def _fields(self) -> Headers:
        headers: Headers = []
        while line := await self.line():
            match = _HEADER.fullmatch(line)
            if match is None:
                raise MalformedError(f"header line {line!r}")
            headers.append((match[1], match[2].strip(b" \t")))
        return headers

    async def head(self) -> Response:
        """One head, interim ones included, without its body."""
        line = await self.line()
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise MalformedError(f"status line {line!r}")
        return Response(int(match[1]), int(match[2]), match[3], await self._fields())

    async def response(self, method: bytes = b"GET") -> Response:
        """The next final answer; interim ones before it are in its ``interim``."""
        interim: list[Response] = []
        while (response := await self.head()).status < 200 and response.status != 101:
            interim.append(response)
        response.interim = interim
        lengths, codings = response.values("content-length"), response.values("transfer-encoding")
        if lengths and (codings or len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0])):
            raise MalformedError(f"framing {lengths!r} {codings!r}")
        if codings and (codings != [b"chunked"] or response.minor == 0):
            raise MalformedError(f"Transfer-Encoding {codings!r} in HTTP/1.{response.minor}")
        if method == b"HEAD" or response.status in {101, 204, 304}:
            return response
        if codings:
            await self._chunked(response)
        elif lengths:
            response.framing = "length"
            response.body = await self.exactly(int(lengths[0]))
        else:
            response.framing = "close"
            response.body = await self.rest()
            if self.ended == "reset":
                raise TruncatedError(bytes(self.raw), response.body)
        return response

    async def chunk(self) -> bytes:
        """One chunk of a chunked body; empty for the last one."""
        line = await self.line()
        if not _CHUNK_SIZE.fullmatch(line):
            raise MalformedError(f"chunk size {line!r}")
        size = int(line, 16)
        if not size:
            return b""
        data = await self.exactly(size + 2)
        if data[-2:] != b"\r\n":
            raise MalformedError("chunk data not followed by CRLF")
        return data[:-2]

    async def _chunked(self, response: Response) -> None:
        response.framing = "chunked"
        parts: list[bytes] = []
        try:
            while part := await self.chunk():
                parts.append(part)
            response.trailers = await self._fields()
        except TruncatedError as truncated:
            raise TruncatedError(truncated.raw, b"".join(parts) + truncated.body) from None
        response.body = b"".join(parts)


class TlsClient(Client):
    """The same over TLS, on asyncio's streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(writer.get_extra_info("socket"))
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(
        cls, address: tuple[str, int] | str, context: ssl.SSLContext, name: str = "localhost"
    ) -> TlsClient:
        assert isinstance(address, tuple)
        async with asyncio.timeout(BOUND):
            return cls(*await asyncio.open_connection(*address, ssl=context, server_hostname=name))

    async def close(self) -> None:
        self.writer.transport.abort()

    async def _transmit(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def _receive(self) -> bytes:
        return await self.reader.read(262144)
