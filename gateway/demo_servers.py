"""Small model servers for the demo: OpenAI-like answers, and faults that come when told to.

Plain asyncio streams on loopback, one request at a time per connection: what stands behind the
gateway should share no code with it. The behaviour is one field, ``fault``, looked at for every
request, so that the schedule of faults is somebody else's.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, cast

import msgspec

if TYPE_CHECKING:
    from random import Random

LOOPBACK = "127.0.0.1"
TOKENS = 8
TOKEN_S = 0.02
ANSWER_S = 0.04
"""Typical seconds to the first token, and between two tokens of a stream."""
SLOW_FACTOR = 20


class Fault(Enum):
    """What a server does now; the value is how the demo calls it."""

    NONE = "fine"
    SLOW = "slow"
    DEAD = "dead"
    REFUSING = "answers 503"


class _Ask(msgspec.Struct):
    stream: bool = False


class ModelServer:
    """One server on a port of its own, which it keeps while it is dead.

    ``failures`` counts what it did to its callers: 503s, and requests cut off by its death.
    """

    def __init__(self, name: str, rng: Random) -> None:
        self.name = name
        self.fault = Fault.NONE
        self.failures = 0
        self.port = 0
        self._rng = rng
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._busy: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def busy(self) -> int:
        """Requests that are being answered."""
        return len(self._busy)

    async def stop(self) -> None:
        """Close the port, break every connection off, as a killed process does."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.failures += len(self._busy)
        for task, writer in self._connections.items():
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._connections)

    async def become(self, fault: Fault) -> None:
        """Change the behaviour; a server that is not dead any more listens again."""
        if fault is Fault.DEAD:
            await self.stop()
        elif self._server is None:
            await self.start()
        self.fault = fault

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._connections[task] = writer
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self._busy.add(writer)
                body = await reader.readexactly(_length(head))
                await self._answer(head, body, writer)
                self._busy.discard(writer)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
            pass  # We died, or the other side left. Streams report a cancelled task as an error.
        finally:
            self._busy.discard(writer)
            del self._connections[task]
            writer.close()

    async def _answer(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"GET "):  # The health check; a refusing server passes it.
            _write(writer, 200, b"{}")
        elif self.fault is Fault.REFUSING:
            self.failures += 1
            _write(writer, 503, b'{"error": {"message": "overloaded"}}')
        else:
            await asyncio.sleep(self._pace(ANSWER_S))
            if msgspec.json.decode(body, type=_Ask).stream:
                await self._stream(writer)
            else:
                text = " ".join(f"token{n}" for n in range(TOKENS))
                _write(writer, 200, _json({"choices": [{"message": {"content": text}}]}))
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for number in range(TOKENS):
            token = _json({"choices": [{"delta": {"content": f"token{number} "}}]})
            _write_chunk(writer, b"data: " + token + b"\n\n")
            await writer.drain()
            await asyncio.sleep(TOKEN_S)
        _write_chunk(writer, b"data: [DONE]\n\n")
        _write_chunk(writer, b"")

    def _pace(self, seconds: float) -> float:
        """Service times are skewed: most are near the typical one, some are several times it."""
        factor = SLOW_FACTOR if self.fault is Fault.SLOW else 1
        return seconds * factor * min(self._rng.lognormvariate(0, 0.4), 4)


_json = msgspec.json.Encoder().encode


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def _write(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    reason = b"OK" if status == 200 else b"Service Unavailable"
    writer.write(
        b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
        % (status, reason, len(body), body)
    )


def _write_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
