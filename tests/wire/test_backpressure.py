"""One side is slow, the other is fast, the gateway in between stays small.

"Has stalled" is seen, not assumed: the fast side's count of bytes stops growing because every
buffer on the way is full. Only then is the resident size looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.harness import GOOD
from tests.process import Process, process
from tests.wire.client import Client
from tests.wire.origin import BOUND
from tests.wire.table import get, post

GIB = 1024**3
BLOCK = bytes(262144)
ALLOWANCE = 32 * 1024**2

CONFIG = """
listen: 127.0.0.1:0
admin: off
limits: {{body_bytes: 2GiB}}
telemetry: {{access_log: off}}
clusters: {{c: {{endpoints: ["{url}"]}}}}
routes: [{{path: /, cluster: c}}]
"""


class Slow:
    """An upstream that pours out a GiB when asked with GET, and takes no more than it must of a
    POST. ``sent`` counts what its socket took."""

    def __init__(self) -> None:
        self.sent = 0
        self.ended = asyncio.Event()
        self.begun = asyncio.Event()
        self.sip = asyncio.Event()
        self.thirsty = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            if head.startswith(b"POST"):
                self.begun.set()
                while not self.thirsty:
                    await self.sip.wait()
                    self.sip.clear()
                    await reader.readexactly(1)
                while await reader.read(len(BLOCK)):
                    pass
            if b"/good " in head:
                writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % GIB)
                while self.sent < GIB:
                    writer.write(BLOCK)
                    await writer.drain()
                    self.sent += len(BLOCK)
        writer.transport.abort()
        self.ended.set()


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[tuple[Slow, Process]]:
    slow = Slow()
    server = await asyncio.start_server(slow.serve, "127.0.0.1", 0, limit=65536)
    port = server.sockets[0].getsockname()[1]
    try:
        async with process(CONFIG.format(url=f"http://127.0.0.1:{port}"), tmp_path) as gateway:
            # One exchange first, so that what is allocated once is not counted.
            async with await Client.connect(gateway.address) as client:
                await client.send(GOOD)
                assert (await client.response()).body == b"ok"
            slow.ended.clear()
            yield slow, gateway
    finally:
        server.close()


async def stalled(count: Callable[[], int], nudge: Callable[[], object]) -> None:
    """Until the count has not grown for fifteen looks; ``nudge`` is the slow side's byte."""
    last, same = -1, 0
    async with asyncio.timeout(6 * BOUND):
        while same < 15:
            nudge()
            await asyncio.sleep(0.05)
            same = same + 1 if count() == last else 0
            last = count()


async def test_143_a_client_that_reads_slowly_costs_bounded_memory(tmp_path: Path) -> None:
    async with running(tmp_path) as (slow, gateway):
        idle = gateway.resident
        async with await Client.connect(gateway.address, receive_buffer=4096) as client:
            await client.send(get(target=b"/large"))

            def byte() -> None:
                with suppress(BlockingIOError):
                    client.sock.recv(1)

            await stalled(lambda: slow.sent, byte)
            assert 0 < slow.sent < GIB // 8
            assert gateway.resident - idle < ALLOWANCE
        # The client left in the middle: so does the upstream request.
        await asyncio.wait_for(slow.ended.wait(), BOUND)


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_143_an_upstream_that_reads_slowly_costs_bounded_memory(
    framing: str, tmp_path: Path
) -> None:
    line = b"Content-Length: %d" % GIB if framing == "length" else b"Transfer-Encoding: chunked"
    block = BLOCK if framing == "length" else b"40000\r\n" + BLOCK + b"\r\n"
    sent = 0

    async def upload(client: Client) -> None:
        nonlocal sent
        loop = asyncio.get_running_loop()
        while sent < GIB:
            await loop.sock_sendall(client.sock, block)
            sent += len(block)

    async with running(tmp_path) as (slow, gateway):
        idle = gateway.resident
        client = await Client.connect(gateway.address)
        await client.send(post(line, target=b"/upload"))
        task = asyncio.ensure_future(upload(client))
        await slow.begun.wait()
        await stalled(lambda: sent, slow.sip.set)
        assert 0 < sent < GIB // 8
        assert gateway.resident - idle < ALLOWANCE
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        client.reset()
        # The upload is cut short upstream as well: reading on, the upstream finds its end.
        slow.thirsty = True
        slow.sip.set()
        await asyncio.wait_for(slow.ended.wait(), BOUND)
