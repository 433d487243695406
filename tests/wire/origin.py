"""A scripted origin server: logs every byte it is sent, answers exactly the bytes it is told to.

It uses no HTTP library, for two reasons. What the gateway sends must be judged by a reader
that is stricter than any library (every deviation is a violation, and violations fail the test
when the origin closes); and what the origin answers must be able to be wrong in any way.
Everything waits for an event, nothing for a time: ``Origin.until`` wakes on every change.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Self, TypeAlias, cast

if TYPE_CHECKING:
    import ssl

BOUND = 10.0
"""Seconds after which a wait is a failure. It only bounds failures, no test waits for it."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.1")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\x20-\x7e\x80-\xff\t]*)")
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,15}")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,18}")

Headers: TypeAlias = list[tuple[bytes, bytes]]
Parser: TypeAlias = Generator[None, None, None]


class GoneError(Exception):
    """The peer closed the connection while a script waited for more."""


class ViolationError(Exception):
    """The gateway sent what a strict reader of HTTP/1.1 refuses."""


class Request:
    """One request as it arrived; ``complete`` once its last byte is there."""

    def __init__(self, method: bytes, target: bytes, headers: Headers) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = bytearray()
        self.trailers: Headers = []
        self.chunks = 0
        self.complete = False

    def values(self, name: str) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name.encode()]

    def one(self, name: str) -> bytes:
        (value,) = self.values(name)
        return value

    def __repr__(self) -> str:
        return f"<{self.method!r} {self.target!r} {self.headers!r} complete={self.complete}>"


class Connection(asyncio.Protocol):
    """One connection accepted by the origin; the script talks through it."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.raw = bytearray()
        self.tunnel = bytearray()
        self.requests: list[Request] = []
        self.ended = ""
        self.transport: asyncio.Transport
        self._buffer = bytearray()
        self._parser: Parser | None = self._parse()
        self._undecided = False
        self._switched = False

    @property
    def gone(self) -> bool:
        return self.ended != ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.origin.accepted(self)

    def data_received(self, data: bytes) -> None:
        if self.origin.keep_raw:
            self.raw += data
        self._buffer += data
        self._advance()
        self.origin.changed()

    def eof_received(self) -> bool:
        self.ended = self.ended or "eof"
        self.origin.changed()
        return self.origin.half_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = self.ended or ("reset" if exc else "closed")
        self.origin.changed()

    # What a script does.

    async def until(self, ready: Callable[[], bool]) -> None:
        await self.origin.until(lambda: ready() or self.gone)
        if not ready():
            raise GoneError

    async def body(self, request: Request) -> bytes:
        await self.until(lambda: request.complete)
        return bytes(request.body)

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def close(self) -> None:
        self.ended = self.ended or "closed"
        self.transport.close()

    def reset(self) -> None:
        self.ended = self.ended or "closed"
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def switch(self) -> None:
        """From here on whatever arrives is ``tunnel``, and is read by nobody."""
        self._switched = True
        self.decided()

    def decided(self) -> None:
        self._undecided = False
        self._advance()

    # The strict reader.

    def _advance(self) -> None:
        if self._switched:
            self.tunnel += self._buffer
            self._buffer.clear()
        elif self._parser is not None:
            try:
                next(self._parser)
            except ViolationError as violation:
                self.origin.violations.append(f"{violation} in {bytes(self.raw[-600:])!r}")
                self._parser = None

    def _line(self) -> Generator[None, None, bytes]:
        while (end := self._buffer.find(b"\r\n")) < 0:
            yield
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _fields(self) -> Generator[None, None, Headers]:
        headers: Headers = []
        while line := (yield from self._line()):
            match = _HEADER.fullmatch(line)
            if match is None:
                raise ViolationError(f"header line {line!r}")
            headers.append((match[1], match[2].strip(b" \t")))
        return headers

    def _parse(self) -> Parser:
        while True:
            line = yield from self._line()
            match = _REQUEST_LINE.fullmatch(line)
            if match is None:
                raise ViolationError(f"request line {line!r}")
            request = Request(match[1], match[2], (yield from self._fields()))
            framing = _framing(request)
            self.requests.append(request)
            self.origin.heads.append(request)
            if framing is None:
                yield from self._chunked(request)
            else:
                yield from self._counted(request, framing)
            request.complete = True
            self.origin.requests.append(request)
            self._undecided = bool(request.values("upgrade"))
            while self._undecided:
                yield

    def _counted(self, request: Request, length: int) -> Parser:
        while len(request.body) < length:
            part = self._buffer[: length - len(request.body)]
            del self._buffer[: len(part)]
            request.body += part
            if len(request.body) < length:
                yield

    def _chunked(self, request: Request) -> Parser:
        while True:
            line = yield from self._line()
            if not _CHUNK_SIZE.fullmatch(line):
                raise ViolationError(f"chunk size {line!r}")
            size = int(line, 16)
            if not size:
                break
            while len(self._buffer) < size + 2:
                yield
            if self._buffer[size : size + 2] != b"\r\n":
                raise ViolationError("chunk data not followed by CRLF")
            request.body += self._buffer[:size]
            request.chunks += 1
            del self._buffer[: size + 2]
        request.trailers = yield from self._fields()


def _framing(request: Request) -> int | None:
    """The body's length, or None for a chunked one; anything ambiguous is a violation."""
    lengths, codings = request.values("content-length"), request.values("transfer-encoding")
    if len(request.values("host")) != 1:
        raise ViolationError(f"Host lines {request.values('host')!r}")
    if codings:
        if codings != [b"chunked"] or lengths:
            raise ViolationError(f"framing {lengths!r} {codings!r}")
        return None
    if not lengths:
        return 0
    if len(lengths) != 1 or not _LENGTH.fullmatch(lengths[0]):
        raise ViolationError(f"Content-Length {lengths!r}")
    return int(lengths[0])


Script: TypeAlias = Callable[[Connection, Request], Awaitable[None]]


class Origin:
    """A listening origin. ``heads`` are requests begun, ``requests`` those received whole."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        half_open: bool = False,
        keep_raw: bool = True,
        greet: Callable[[Connection], None] | None = None,
    ) -> None:
        self.script = script or answer(OK)
        self.half_open = half_open
        self.keep_raw = keep_raw
        self.connections: list[Connection] = []
        self.heads: list[Request] = []
        self.requests: list[Request] = []
        self.violations: list[str] = []
        self.errors: list[Exception] = []
        self._greet = greet
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiters: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), "127.0.0.1", 0, ssl=self._tls, backlog=1024
        )
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.authority = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if self._tls else 'http'}://{self.authority}"
        return self

    async def __aexit__(self, kind: object, *rest: object) -> None:
        await self.refuse_connections()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self.connections:
            connection.transport.abort()
        if kind is None:
            assert not self.violations, self.violations
            assert not self.errors, self.errors

    async def refuse_connections(self) -> None:
        """Stop listening; connections that exist go on."""
        self._server.close()

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait until ``ready``; looked at on every change of any connection."""
        async with asyncio.timeout(BOUND):
            while not ready():
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter

    @property
    def open(self) -> int:
        return sum(not connection.gone for connection in self.connections)

    def changed(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def accepted(self, connection: Connection) -> None:
        self.connections.append(connection)
        if self._greet is not None:
            self._greet(connection)
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.changed()

    async def _serve(self, connection: Connection) -> None:
        served = 0
        with suppress(GoneError):
            while True:
                while len(connection.requests) <= served:
                    # A keep-alive connection may be idle for as long as its test runs.
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.append(waiter)
                    await waiter
                    if connection.gone and len(connection.requests) <= served:
                        return
                try:
                    await self.script(connection, connection.requests[served])
                except (AssertionError, TimeoutError) as error:
                    self.errors.append(error)
                served += 1
                connection.decided()


def answer(raw: bytes, *, close: bool = False) -> Script:
    """Read the whole request, then send exactly ``raw``."""

    async def script(connection: Connection, request: Request) -> None:
        await connection.body(request)
        connection.send(raw)
        if close:
            connection.close()

    return script


def each(*scripts: Script) -> Script:
    """The first request gets the first script, and so on; the last one serves the rest."""
    order = iter(scripts)
    last = scripts[-1]

    async def script(connection: Connection, request: Request) -> None:
        await next(order, last)(connection, request)

    return script


def by_target(scripts: dict[bytes, Script], default: Script | None = None) -> Script:
    """The script of the request's target; everything else is answered 200."""

    async def script(connection: Connection, request: Request) -> None:
        await scripts.get(request.target, default or answer(OK))(connection, request)

    return script


async def echo(connection: Connection, request: Request) -> None:
    """Answer with the request's body, counted."""
    body = await connection.body(request)
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def silent(connection: Connection, request: Request) -> None:
    """Never answer; return when the gateway gives up."""
    await connection.until(lambda: connection.gone)


async def slam(connection: Connection, request: Request) -> None:
    """Close without a byte."""
    connection.close()


async def crash(connection: Connection, request: Request) -> None:
    """Reset without a byte."""
    connection.reset()


def chunks(parts: Sequence[bytes]) -> bytes:
    """A chunked body of exactly these parts."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
