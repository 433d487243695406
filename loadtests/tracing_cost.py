"""What tracing costs: CPU per exchange with it off, at 1 %, at 100 %, and with a dead collector.

    python -m loadtests.tracing_cost [--requests 4000] [--rounds 7]

In one process: a gateway, an origin and a client on kept connections, and all of their CPU, the
thread that exports included. What matters is the difference to ``off``. The kinds take turns, and
the lowest round of each counts, since whatever else the machine does only adds.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web

from gateway import config
from gateway.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

BODY = b'{"model": "m-8b", "stream": false, "messages": [{"role": "user", "content": "%s"}]}' % (
    b"word " * 80
)
ASK = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a.test\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b"
) % (len(BODY), BODY)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CONNECTIONS = 8
DEAD = "http://127.0.0.1:1"


class Kind(NamedTuple):
    name: str
    sample: float | None
    """None: tracing is off."""
    dead: bool = False


KINDS = (
    Kind("off", None),
    Kind("0 %", 0.0),
    Kind("1 %", 0.01),
    Kind("100 %", 1.0),
    Kind("100 %, collector dead", 1.0, dead=True),
)


class _Peer(asyncio.Protocol):
    """Answers, or asks again: whatever is whole when it ends so."""

    def __init__(self, end: bytes, say: Callable[[], bytes]) -> None:
        self._end = end
        self._say = say
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._buffer.endswith(self._end):
            self._buffer = b""
            text = self._say()
            if text:
                self.transport.write(text)


async def load(address: Any, requests: int) -> None:
    """So many requests, on ``CONNECTIONS`` connections, each after the answer to the one before."""
    left = requests
    done = asyncio.get_running_loop().create_future()
    ended = 0

    def say() -> bytes:
        nonlocal left, ended
        ended += 1
        if ended == requests and not done.done():
            done.set_result(None)
        if left <= 0:
            return b""
        left -= 1
        return ASK

    loop = asyncio.get_running_loop()
    peers = []
    for _ in range(CONNECTIONS):
        _, peer = await loop.create_connection(lambda: _Peer(b"ok", say), *address)
        peers.append(peer)
    for peer in peers:
        left -= 1
        peer.transport.write(ASK)
    await done
    for peer in peers:
        peer.transport.close()


async def collector(stack: AsyncExitStack) -> str:
    """Takes every span and forgets it."""

    async def receive(request: web.Request) -> web.Response:
        await request.read()
        return web.Response()

    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/traces", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


async def start(kind: Kind, origin: str, otlp: str, stack: AsyncExitStack) -> Server:
    tracing = None
    if kind.sample is not None:
        tracing = config.Tracing(otlp=DEAD if kind.dead else otlp, sample=kind.sample)
    server = Server(
        config.Config(
            listen=(config.Listener(address="127.0.0.1:0"),),
            admin=None,
            clusters={"c": config.Cluster(endpoints=(config.Endpoint(url=origin),))},
            routes=(config.Route(cluster="c", path="/"),),
            telemetry=config.Telemetry(access_log=None, tracing=tracing),
        )
    )
    await server.start()
    stack.push_async_callback(server.stop)
    return server


async def measure(requests: int, rounds: int) -> None:
    async with AsyncExitStack() as stack:
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: _Peer(b"]}", lambda: OK), "127.0.0.1", 0)
        stack.callback(listening.close)
        origin = "http://127.0.0.1:%d" % listening.sockets[0].getsockname()[1]  # noqa: UP031
        otlp = await collector(stack)
        servers = [await start(kind, origin, otlp, stack) for kind in KINDS]
        await asyncio.sleep(3)  # the library of spans is loaded on a thread
        best = dict.fromkeys(KINDS, float("inf"))
        for number in range(rounds + 1):
            for kind, server in zip(KINDS, servers, strict=True):
                began = time.process_time()
                await load(server.addresses[0], requests)
                if number:  # the first round warms up
                    best[kind] = min(best[kind], (time.process_time() - began) / requests)
        off = best[KINDS[0]]
        print("kind                     us/request   more than off   spans (untraced exchanges)")
        for kind, server in zip(KINDS, servers, strict=True):
            spans = server.telemetry.spans
            print(
                f"{kind.name:24} {best[kind] * 1e6:10.1f} {(best[kind] - off) * 1e6:+15.1f}   "
                f"{spans.exported} exported, {spans.failed} failed, {spans.dropped} dropped "
                f"({spans.untraced})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(given.requests, given.rounds))


if __name__ == "__main__":
    main()
