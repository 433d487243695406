"""A limited route as clients see it: waiting, refusals, hanging up, and a reload meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from filters.admission import Config as Admission
from filters.admission import Gate, Queue
from gateway.config import Config, Filters
from tests.harness import Gateway, eventually, gateway
from tests.wire.client import Client, Response
from tests.wire.origin import BOUND, Connection, Origin, Request, chunks
from tests.wire.table import check_refusal, get

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Streams:
    """A script: each answer begins at once, and ends when the test says so, in any order."""

    def __init__(self) -> None:
        self.ends: dict[bytes, asyncio.Event] = {}

    def end(self, *targets: bytes) -> None:
        for target in targets:
            self.ends.setdefault(target, asyncio.Event()).set()

    async def __call__(self, connection: Connection, request: Request) -> None:
        connection.send(HEAD + b"5\r\nbegin\r\n")
        event = self.ends.setdefault(request.target, asyncio.Event())
        gone = asyncio.create_task(connection.until(lambda: connection.gone))
        ended = asyncio.create_task(event.wait())
        try:
            await asyncio.wait((gone, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            ended.cancel()
        if not connection.gone:
            connection.send(chunks([b"end"]))


def limited(limit: int | str = 1, **queue: Any) -> dict[str, Any]:
    """A route's section."""
    admission = Admission(limit=limit, queue=Queue(**queue))  # type: ignore[arg-type]
    return {"filters": Filters(admission=admission, load_shed=None, retry=None)}


def gate_of(g: Gateway) -> Gate:
    (gate,) = g.server.wiring.admissions.values()
    return gate


def changed(config: Config, **admission: Any) -> Config:
    """The same, but for the admission of its route."""
    (route,) = config.routes
    assert route.filters.admission is not None
    filters = msgspec.structs.replace(
        route.filters, admission=msgspec.structs.replace(route.filters.admission, **admission)
    )
    return msgspec.structs.replace(
        config, routes=(msgspec.structs.replace(route, filters=filters),)
    )


def asking(g: Gateway, target: bytes) -> asyncio.Task[Response]:
    return asyncio.create_task(g.ask(get(target=target)))


async def waiting(g: Gateway, count: int) -> None:
    await eventually(lambda: len(gate_of(g).queue) == count)


def targets(origin: Origin) -> list[bytes]:
    return [each.target for each in origin.requests]


async def test_the_next_is_sent_after_the_last_byte_of_a_stream() -> None:
    streams = Streams()
    async with Origin(streams) as origin, gateway(origin, route=limited()) as g:
        async with g.client() as first:
            await first.send(get(target=b"/1"))
            assert (await first.head()).status == 200
            assert await first.chunk() == b"begin"
            second = asking(g, b"/2")
            await waiting(g, 1)
            assert gate_of(g).in_flight == 1
            assert targets(origin) == [b"/1"]
            streams.end(b"/1", b"/2")
            assert await first.chunk() == b"end"
            assert await first.chunk() == b""
            response = await second
        assert (response.status, response.body) == (200, b"beginend")
        assert targets(origin) == [b"/1", b"/2"]
        await eventually(lambda: gate_of(g).in_flight == 0)
        assert (gate_of(g).admitted, gate_of(g).waited) == (2, 1)


async def test_the_queue_timeout_is_a_503_with_a_time_to_come_back() -> None:
    streams = Streams()
    async with Origin(streams) as origin, gateway(origin, route=limited(timeout=0.05)) as g:
        first = asking(g, b"/1")
        await origin.until(lambda: bool(origin.requests))
        async with g.client() as client:
            await client.send(get(target=b"/2"))
            response = await client.response()
            check_refusal(response, 503, reason="queue_timeout")
            assert 1 <= int(response.one("retry-after")) <= 10
            streams.end(b"/1", b"/3")
            assert (await first).status == 200
            await client.send(get(target=b"/3"))  # the connection lives on
            assert (await client.response()).status == 200
        assert targets(origin) == [b"/1", b"/3"]


async def test_a_deadline_in_the_queue_is_a_504() -> None:
    streams = Streams()
    async with Origin(streams) as origin, gateway(origin, route=limited()) as g:
        first = asking(g, b"/1")
        await origin.until(lambda: bool(origin.requests))
        check_refusal(await g.ask(get(b"x-request-timeout-ms: 50")), 504, reason="deadline")
        assert len(gate_of(g).queue) == 0
        streams.end(b"/1")
        assert (await first).status == 200
        assert targets(origin) == [b"/1"]


@pytest.mark.parametrize("size", [0, 1])
async def test_a_full_queue_is_a_429(size: int) -> None:
    streams = Streams()
    async with Origin(streams) as origin, gateway(origin, route=limited(size=size)) as g:
        first = asking(g, b"/1")
        await origin.until(lambda: bool(origin.requests))
        fits = [asking(g, b"/2") for _ in range(size)]
        await waiting(g, size)
        response = await g.ask(get(target=b"/3"))
        check_refusal(response, 429, reason="queue_full")
        assert 1 <= int(response.one("retry-after")) <= 10
        streams.end(b"/1", b"/2")
        assert [(await each).status for each in (first, *fits)] == [200] * (1 + size)
        assert b"/3" not in targets(origin)


@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_a_client_that_hangs_up_in_the_queue_gives_its_place_up(leave: str) -> None:
    streams = Streams()
    async with Origin(streams) as origin, gateway(origin, route=limited(size=1)) as g:
        first = asking(g, b"/1")
        await origin.until(lambda: bool(origin.requests))
        second = await Client.connect(g.address)
        await second.send(get(target=b"/2"))
        await waiting(g, 1)
        if leave == "close":
            await second.close()
        else:
            second.reset()
        await waiting(g, 0)
        third = asking(g, b"/3")
        await waiting(g, 1)
        streams.end(b"/1", b"/2", b"/3")
        assert [(await each).status for each in (first, third)] == [200, 200]
        assert targets(origin) == [b"/1", b"/3"]
        await eventually(lambda: gate_of(g).in_flight == 0)


async def test_a_client_that_hangs_up_in_its_stream_makes_room() -> None:
    streams = Streams()
    async with Origin(streams) as origin, gateway(origin, route=limited()) as g:
        async with g.client() as first:
            await first.send(get(target=b"/1"))
            assert (await first.head()).status == 200
            second = asking(g, b"/2")
            await waiting(g, 1)
        await origin.until(lambda: b"/2" in targets(origin))
        streams.end(b"/2")
        assert (await second).status == 200
        await eventually(lambda: gate_of(g).in_flight == 0)


@pytest.mark.parametrize("limit", [3, "adaptive"])
async def test_a_reload_that_raises_the_limit_lets_waiters_in(limit: int | str) -> None:
    streams = Streams()
    async with Origin(streams) as origin, gateway(origin, route=limited()) as g:
        asks = [asking(g, b"/%d" % n) for n in range(3)]
        await waiting(g, 2)
        gate = gate_of(g)
        assert await g.server.reload(changed(g.server.config, limit=limit))
        await origin.until(lambda: len(origin.requests) == 3)
        assert gate_of(g) is gate
        assert (gate.in_flight, len(gate.queue)) == (3, 0)
        streams.end(b"/0", b"/1", b"/2")
        assert [(await each).status for each in asks] == [200] * 3
        await eventually(lambda: gate.in_flight == 0)


async def test_a_reload_that_lowers_the_limit_breaks_nothing_off() -> None:
    streams = Streams()
    async with Origin(streams) as origin, gateway(origin, route=limited(2)) as g:
        early = [asking(g, b"/0"), asking(g, b"/1")]
        await origin.until(lambda: len(origin.requests) == 2)
        late = asking(g, b"/2")
        await waiting(g, 1)
        assert await g.server.reload(changed(g.server.config, limit=1))
        streams.end(b"/0")
        assert {
            each.result().body
            for each in (
                await asyncio.wait(early, timeout=BOUND, return_when=asyncio.FIRST_COMPLETED)
            )[0]
        } == {b"beginend"}
        assert (gate_of(g).in_flight, len(gate_of(g).queue)) == (1, 1)
        streams.end(b"/1", b"/2")
        assert [(await each).status for each in (*early, late)] == [200] * 3


async def test_a_dry_run_holds_nobody() -> None:
    streams = Streams()
    filters = Filters(admission=Admission(limit=1, dry_run=True), load_shed=None, retry=None)
    async with Origin(streams) as origin, gateway(origin, route={"filters": filters}) as g:
        asks = [asking(g, b"/%d" % n) for n in range(3)]
        await origin.until(lambda: len(origin.requests) == 3)
        assert gate_of(g).would_wait == 2
        streams.end(b"/0", b"/1", b"/2")
        assert [(await each).status for each in asks] == [200] * 3
