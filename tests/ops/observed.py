"""A gateway at which everything happened that a dashboard shows: refusals, retries, hedges, an
ejection, push-back, a wait in the queue, batches and one that was spoiled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from msgspec.structs import replace

from filters.admission import Config as Admission
from filters.admission import Queue
from filters.hedge import Config as Hedge
from filters.rate_limit import Config as RateLimit
from filters.retry import Config as Retry
from gateway.config import Cluster, Endpoint, Filters, Route
from tests.gateway.administered import GET, Running, administered, ask_proxy
from tests.harness import eventually
from tests.wire.client import Client
from tests.wire.oip import ALONE, POISON, Model, ask
from tests.wire.origin import OK, Connection, Origin, Request, answer, each

BUSY = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
EVERYTHING = Filters(
    admission=Admission(limit=2, queue=Queue(size=4)),
    rate_limit=RateLimit(key="header:authorization", rate=0.001, burst=200),
    retry=Retry(),
    hedge=Hedge(),
)
WARM = 60


def asking(*fields: str) -> bytes:
    return "\r\n".join(["GET /v1/models HTTP/1.1", "Host: a.test", *fields, "", ""]).encode()


class Observed:
    """A gateway in front of two origins and of a model server with batching on its route, at rest
    until ``everything`` happens to it."""

    def __init__(self, running: Running, one: Origin, two: Origin, model: Model) -> None:
        self.server = running.server
        self.running = running
        self._origins = one, two
        self._model = model

    async def everything(self) -> None:
        """Something of all that is counted; at the end one of two endpoints is ejected."""
        await _traffic(self.running, *self._origins)
        await _batches(self.running, self._model)


@asynccontextmanager
async def observed() -> AsyncIterator[Observed]:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(Origin(keep_raw=False))
        two = await stack.enter_async_context(Origin(keep_raw=False))
        model = Model()
        await stack.enter_async_context(model)
        route = {"filters": EVERYTHING, "name": "all"}
        running = await stack.enter_async_context(administered(one, two, route=route))
        config = running.server.config
        servers = Cluster(endpoints=(Endpoint(url=model.url),))
        batched = Route(cluster="m", path="/v2", name="batched", batching=ALONE)
        config = replace(
            config,
            clusters={**config.clusters, "m": servers},
            routes=(batched, *config.routes),
        )
        assert await running.server.reload(config)
        yield Observed(running, one, two, model)


async def _traffic(running: Running, one: Origin, two: Origin) -> None:
    server = running.server
    async with await Client.connect(server.addresses[0]) as client:
        for _ in range(WARM):  # hedging wants to know what is usual
            await client.send(asking("x-request-priority: sheddable"))
            assert (await client.response()).status == 200
        one.script = two.script = each(answer(BUSY), answer(OK))
        await client.send(asking())
        await client.response()
        for _ in range(2):  # over its limit
            for _ in range(100):
                await client.send(asking("authorization: greedy"))
                await client.response()
        await client.send(asking("authorization: greedy"))
        assert (await client.response()).status == 429
    await ask_proxy(server, b"nonsense\r\n\r\n")
    await _crowd(running, one, two)
    # Retries, and a cluster that has lost one of its endpoints.
    one.script = two.script = each(*[answer(BROKEN)] * 3, answer(OK))
    for _ in range(4):
        await ask_proxy(server, GET)
    cluster = server.wiring.clusters["c"]
    assert cluster.eject(cluster.endpoints[one.authority], "a test") == ""


async def _crowd(running: Running, one: Origin, two: Origin) -> None:
    """Two in flight, four wait, two find the queue full; then the others are answered."""
    go = asyncio.Event()

    async def hold(connection: Connection, request: Request) -> None:
        await connection.body(request)
        await go.wait()
        connection.send(OK)

    one.script = two.script = hold
    gate = running.server.wiring.filters["all"].gate
    assert gate is not None
    asked = [asyncio.create_task(ask_proxy(running.server, GET)) for _ in range(8)]
    while gate.full < 2:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.01)
    go.set()
    assert sorted(await asyncio.gather(*asked)) == [200] * 6 + [429] * 2
    one.script = two.script = answer(OK)


async def _batches(running: Running, model: Model) -> None:
    """One that is spoiled by one of its four, and divided; who spoiled it comes again; and what
    is not joined."""
    server = running.server
    line = server.wiring.filters["batched"].batches
    assert line is not None
    coalescer = line.batching.coalescer
    model.hold()
    first = asyncio.create_task(ask_proxy(server, ask([1])))
    await eventually(lambda: len(model.batches) == 1)
    bad = ask([POISON])
    four = (ask([2]), ask([3, 4]), bad, ask([5]))
    rest = [asyncio.create_task(ask_proxy(server, raw)) for raw in four]
    await eventually(lambda: coalescer.waiting == len(four))
    model.free()
    assert await first == 200
    assert await asyncio.gather(*rest) == [200, 200, 500, 200]
    for n in range(3):  # each time it counts once others pass
        assert await ask_proxy(server, bad) == 500
        assert await ask_proxy(server, ask([n])) == 200
    misshapen = ask([6], binary=False).replace(b"[1, 1]", b"[2, 1]")
    assert await ask_proxy(server, misshapen) == 400
    assert await ask_proxy(server, b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n") == 200
    counts = coalescer.counts
    assert counts.bisections
    assert counts.culprits
    assert counts.quarantined
    assert line.batching.malformed == 1
    assert line.batching.alone
