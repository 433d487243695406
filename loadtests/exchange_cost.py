"""What one exchange costs inside the process: the real chain over fake transports, no sockets.

    python -m loadtests.exchange_cost [--filters all|default|none|queued] [--fresh] [--profile]

Reports microseconds of CPU per exchange, the least of many short runs. On a noisy machine this is
the figure to tune by: it has no kernel, no load generator and no upstream in it. ``make compare``
is the figure to believe.

Clients and servers repeat their heads, and the gateway makes use of it (``gateway/head_memo.py``).
With ``--fresh`` no head is like the one before, which is the other end of what happens.
"""

import argparse
import asyncio
import cProfile
import gc
import itertools
import pstats
import time
from collections.abc import Iterator
from typing import Any

import uvloop

from filters import admission, deadline, hedge, load_shed, priority, rate_limit, retry
from gateway.config import AccessLog, Cluster, Config, Endpoint, Filters, Listener, Route, Telemetry
from gateway.downstream import Downstream
from gateway.server import Server
from gateway.upstream import UpstreamConnection

WIDTH = 32
"""Exchanges under way at a time: a round of the event loop is shared, as it is under load."""

REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n"
    b"Content-Type: application/json\r\nContent-Length: 512\r\n\r\n" + b"x" * 512
)
RUNS = 50
FILTERS = {
    "default": Filters(),
    "none": Filters(
        deadline=None, priority=None, admission=None, load_shed=None, hedge=None, retry=None
    ),
    "all": Filters(
        deadline=deadline.Config(default=60.0),
        priority=priority.Config(),
        rate_limit=rate_limit.Config(rate=1e9, burst=1_000_000),
        admission=admission.Config(),
        load_shed=load_shed.Config(),
        hedge=hedge.Config(),
        retry=retry.Config(),
    ),
    # As default, but nearly every exchange waits for a permit.
    "queued": Filters(admission=admission.Config(limit=3)),
}
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 23 Nov 2026 18:57:59 GMT\r\n"
    b"Content-Type: application/json\r\nContent-Length: 500\r\nConnection: keep-alive\r\n\r\n"
    + b"y"
    * 500
)


class FakeTransport:
    """Takes writes and hands them to ``on_write``; says what a transport is asked."""

    def __init__(self, on_write: Any = None) -> None:
        self.on_write = on_write
        self.writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        if self.on_write is not None:
            self.on_write(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 40000) if name == "peername" else default

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...


def messages(message: bytes, fresh: bool) -> Iterator[bytes]:
    """The same one again and again, or each with a field of its own."""
    if not fresh:
        return itertools.repeat(message)
    line, rest = message.split(b"\r\n", 1)
    return (b"%b\r\nX-Trace: %08x\r\n%b" % (line, n, rest) for n in itertools.count())


def configuration(filters: Filters) -> Config:
    return Config(
        clusters={"c": Cluster(endpoints=(Endpoint(url="http://127.0.0.1:9"),))},
        routes=(Route(cluster="c", filters=filters),),
        listen=(Listener(address="127.0.0.1:0"),),
        admin=None,
        telemetry=Telemetry(access_log=AccessLog(path="/dev/null")),
    )


async def measure(exchanges: int, filters: Filters, fresh: bool, profile: bool) -> float:
    """The least CPU per exchange of ``RUNS`` runs, in microseconds."""
    server = Server(configuration(filters))
    await server.start()
    pool = next(iter(server.memberships["c"].cluster.endpoints.values())).pool
    loop = asyncio.get_running_loop()
    connections = []
    left = 0
    done = asyncio.Event()
    requests, answers = messages(REQUEST, fresh), messages(ANSWER, fresh)

    def answered(_: bytes) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    def answering(upstream: UpstreamConnection) -> Any:
        return lambda data: loop.call_soon(upstream.data_received, next(answers))

    for _ in range(WIDTH):
        upstream = UpstreamConnection(pool)
        pool.open += 1
        upstream.counted = True
        upstream.connection_made(FakeTransport(answering(upstream)))  # type: ignore[arg-type]
        pool.put(upstream, server.clock.now())
        connection = Downstream(server.acceptor)
        connection.connection_made(FakeTransport(answered))  # type: ignore[arg-type]
        connections.append(connection)

    async def run(count: int) -> float:
        nonlocal left
        start = time.process_time()
        for _ in range(count // WIDTH):
            done.clear()
            left = WIDTH
            for connection in connections:
                connection.data_received(next(requests))
            await done.wait()
            await asyncio.sleep(0)
        return (time.process_time() - start) / (count // WIDTH * WIDTH) * 1e6

    await run(exchanges // 10)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)  # as gateway/server.py has it
    if profile:
        profiler = cProfile.Profile()
        profiler.enable()
        await run(exchanges)
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
    best = min([await run(exchanges // RUNS) for _ in range(RUNS)])
    pool.retire()
    for connection in connections:
        connection.connection_lost(None)
    await server.stop()
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exchanges", type=int, default=100_000)
    parser.add_argument("--filters", choices=tuple(FILTERS), default="default")
    parser.add_argument("--fresh", action="store_true", help="no two heads are the same")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    measured = measure(options.exchanges, FILTERS[options.filters], options.fresh, options.profile)
    print(f"{uvloop.run(measured):.1f} us per exchange")


if __name__ == "__main__":
    main()
