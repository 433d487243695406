"""A reload puts other numbers in force and forgets nothing: not what was counted, not what was
learned, not who waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from filters.admission import Config as Admission
from filters.admission import Queue
from filters.hedge import Config as Hedge
from filters.limits import AdaptiveLimit
from filters.rate_limit import Config as RateLimit
from filters.retry import Config as Retry
from filters.standing import Phase
from gateway.config import Cluster, Config, Endpoint, Filters
from tests.harness import Gateway, eventually, gateway
from tests.wire.origin import OK, Connection, Origin, Request, answer, each
from tests.wire.table import get

if TYPE_CHECKING:
    from gateway.wiring import RouteFilters

FULL = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"
BROKEN = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


def parts(g: Gateway) -> RouteFilters:
    (filters,) = g.server.wiring.filters.values()
    return filters


def with_filters(config: Config, **changes: Any) -> Config:
    """The same configuration with other filters of its only route."""
    (route,) = config.routes
    filters = msgspec.structs.replace(route.filters, **changes)
    return msgspec.structs.replace(
        config, routes=(msgspec.structs.replace(route, filters=filters),)
    )


async def change(g: Gateway, **changes: Any) -> None:
    assert await g.server.reload(with_filters(g.server.config, **changes))


async def test_the_keys_of_a_rate_limit_have_used_what_they_used() -> None:
    limit = RateLimit(rate=1 / 60, burst=2)
    filters = Filters(rate_limit=limit, retry=None)
    ask = get(b"Authorization: Bearer a")
    async with Origin() as origin, gateway(origin, route={"filters": filters}) as g:
        assert [(await g.ask(ask)).status for _ in range(3)] == [200, 200, 429]
        await change(g)
        assert (await g.ask(ask)).status == 429
        await change(g, rate_limit=msgspec.structs.replace(limit, burst=3))
        assert [(await g.ask(ask)).status for _ in range(2)] == [200, 429]
        rate_limit = parts(g).rate_limit
        assert rate_limit is not None
        assert (rate_limit.refused, rate_limit.keys) == (3, 1)


async def test_counts_of_retries_go_on() -> None:
    filters = Filters(retry=Retry(attempts=2))
    script = each(answer(BROKEN), answer(OK), answer(BROKEN), answer(OK))
    async with Origin(script) as origin, gateway(origin, route={"filters": filters}) as g:
        for n, attempts in ((1, 2), (2, 3)):
            assert (await g.ask(get())).status == 200
            retry = parts(g).retry
            assert retry is not None
            assert retry.retries == n
            (budget,) = g.server.wiring.budgets.values()
            await change(g, retry=Retry(attempts=attempts))
        assert g.server.wiring.retries["/"].retries == 2
        assert list(g.server.wiring.budgets.values()) == [budget]


async def test_what_the_limit_has_learned_stays() -> None:
    filters = Filters(admission=Admission(initial=100), retry=None)
    script = each(answer(FULL), answer(OK))
    async with Origin(script) as origin, gateway(origin, route={"filters": filters}) as g:
        gate = parts(g).gate
        assert gate is not None
        gate.in_flight += 3  # alone, a refusal says nothing about how much is in flight
        assert (await g.ask(get())).status == 429
        limit = gate.limit
        assert isinstance(limit, AdaptiveLimit)
        assert limit.value == 50
        await change(g, admission=Admission(initial=70, queue=Queue(size=3)))
        assert parts(g).gate is gate
        assert gate.limit is limit
        assert limit.value == 50
        assert gate.config.queue.size == gate.queue.size == 3
        await change(g, admission=Admission(min=60))
        assert limit.value == 60
        assert gate.admitted == 1


async def test_an_exchange_gives_back_to_the_gate_it_took_from() -> None:
    end = asyncio.Event()

    async def slow(connection: Connection, request: Request) -> None:
        await end.wait()
        connection.send(OK)

    async with Origin(slow) as origin, gateway(origin) as g:
        asked = asyncio.create_task(g.ask(get()))
        await origin.until(lambda: bool(origin.requests))
        gate = parts(g).gate
        assert gate is not None
        await change(g, admission=Admission(limit=1))
        assert parts(g).gate is gate
        assert (gate.in_flight, gate.limit.value) == (1, 1)
        await change(g, admission=None)
        assert parts(g).gate is None
        end.set()
        assert (await asked).status == 200
        await eventually(lambda: gate.in_flight == 0)


async def test_who_waits_is_served_when_admission_is_taken_away() -> None:
    end = asyncio.Event()

    async def slow(connection: Connection, request: Request) -> None:
        await end.wait()
        connection.send(OK)

    filters = Filters(admission=Admission(limit=1), retry=None)
    async with Origin(slow) as origin, gateway(origin, route={"filters": filters}) as g:
        gate = parts(g).gate
        assert gate is not None
        asked = [asyncio.create_task(g.ask(get())) for _ in range(3)]
        await eventually(lambda: len(gate.queue) == 2)
        await change(g, admission=None)
        end.set()
        assert [(await each).status for each in asked] == [200] * 3
        await eventually(lambda: gate.in_flight == 0)


async def test_a_reload_that_fails_changes_no_gate() -> None:
    filters = Filters(admission=Admission(limit=2), retry=None)
    async with Origin() as origin, gateway(origin, route={"filters": filters}) as g:
        gate = parts(g).gate
        assert gate is not None
        broken = with_filters(g.server.config, admission=Admission(limit=1))
        elsewhere = msgspec.structs.replace(broken.listen[0], address="192.0.2.1:1")
        broken = msgspec.structs.replace(broken, listen=(elsewhere,))
        assert not await g.server.reload(broken)
        assert parts(g).gate is gate
        assert gate.limit.value == gate.config.limit == 2
        assert (await g.ask(get())).status == 200


async def test_another_cluster_is_another_server_to_learn() -> None:
    filters = Filters(admission=Admission(initial=100), retry=None)
    async with (
        Origin(answer(FULL)) as full,
        Origin() as good,
        gateway(full, route={"filters": filters}) as g,
    ):
        gate = parts(g).gate
        assert gate is not None
        gate.in_flight += 3
        assert (await g.ask(get())).status == 429
        assert gate.limit.value == 50
        config = g.server.config
        (route,) = config.routes
        moved = msgspec.structs.replace(
            config,
            clusters={"d": Cluster(endpoints=(Endpoint(url=good.url),))},
            routes=(msgspec.structs.replace(route, cluster="d"),),
        )
        assert await g.server.reload(moved)
        fresh = parts(g).gate
        assert fresh is not None
        assert fresh is not gate
        assert fresh.limit.value == 100
        assert (await g.ask(get())).status == 200


async def test_claims_that_were_not_believed_are_counted_on() -> None:
    async with Origin() as origin, gateway(origin, trust=()) as g:
        for count in (1, 2):
            assert (await g.ask(get(b"X-Request-Priority: critical_plus"))).status == 200
            priority = parts(g).priority
            assert priority is not None
            assert priority.disbelieved == count
            await change(g, retry=Retry(attempts=count + 1))


async def test_the_times_that_hedging_has_learned_stay() -> None:
    filters = Filters(hedge=Hedge(after=0.5), retry=None)
    async with Origin() as origin, gateway(origin, route={"filters": filters}) as g:
        for _ in range(3):
            assert (await g.ask(get())).status == 200
        before = parts(g).hedge
        await change(g, hedge=Hedge(after=0.9))
        hedge = parts(g).hedge
        assert before is not None
        assert hedge is not None
        assert hedge is not before
        (learned,) = hedge.policy.describe(g.server.clock.now()).values()
        assert isinstance(learned, dict)
        assert learned["samples"] > 2


async def test_what_is_known_of_endpoints_stays() -> None:
    async with Origin() as origin, Origin() as other, gateway(origin, other) as g:
        cluster = g.server.memberships["c"].cluster
        endpoints = list(cluster.endpoints.values())
        cluster.eject(endpoints[0], "by hand")
        standings = [each.standing for each in endpoints]
        await change(g, admission=Admission(limit=7))
        cluster = g.server.memberships["c"].cluster
        assert [each.standing for each in cluster.endpoints.values()] == standings
        assert standings[0].phase is Phase.EJECTED
        assert [(await g.ask(get())).status for _ in range(4)] == [200] * 4
        assert (len(origin.requests), len(other.requests)) == (0, 4)
