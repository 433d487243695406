"""What a route is called: the same whatever stands above it, and nobody else is called so."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.admission import Config as Admission
from filters.limits import AdaptiveLimit
from gateway.config import Config, Filters, Route
from gateway.router import names
from tests.gateway.administered import administered, ask_proxy
from tests.gateway.exposition_format import value
from tests.harness import gateway
from tests.wire.origin import OK, Connection, Origin, Request, answer
from tests.wire.table import get

FULL = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("route", "name"),
    [
        (Route("c"), "/"),
        (Route("c", name="chat", path="/v1"), "chat"),
        (Route("c", path="/v1/"), "/v1"),
        (Route("c", host="*.LLM.test"), "*.llm.test/"),
        (Route("c", path="/v1", methods=("POST", "get", "GET")), "/v1[GET,POST]"),
        (Route("c", headers={"X-Team": "search"}), "/[x-team=241932]"),
        (
            Route("c", host="a", path="/v1", methods=("GET",), headers={"b": "", "a": ""}),
            "a/v1[GET,a=e3b0c4,b=e3b0c4]",
        ),
    ],
)
def test_it_is_the_name_or_the_match(route: Route, name: str) -> None:
    assert names([route]) == [name]


def test_a_credential_in_a_match_is_not_in_the_name() -> None:
    (name,) = names([Route("c", headers={"authorization": "Bearer s3cret"})])
    assert "s3cret" not in name


def test_the_very_same_match_is_numbered() -> None:
    twice = [Route("c", path="/v1"), Route("d", path="/v1/"), Route("c", name="/v1")]
    assert names(twice) == ["/v1", "/v1#2", "/v1#3"]


matches = st.builds(
    Route,
    st.just("c"),
    host=st.sampled_from([None, "a", "*.a"]),
    path=st.sampled_from(["/", "/v1", "/v1/chat"]),
    methods=st.sampled_from([(), ("GET",), ("GET", "POST")]),
    headers=st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["1", "2"])),
)


def _same(route: Route) -> bytes:
    return msgspec.json.encode(route, order="sorted")


@given(st.lists(matches, unique_by=_same), matches)
def test_the_place_does_not_matter(routes: list[Route], more: Route) -> None:
    called = dict(zip(map(_same, routes), names(routes), strict=True))
    assert len(set(called.values())) == len(routes)
    for changed in (routes[::-1], [more, *routes]):
        again = dict(zip(map(_same, changed), names(changed), strict=True))
        if _same(more) not in called:
            assert again.items() >= called.items()


# -- a reload that puts a route above another ------------------------------------------------------

ABOVE = get(target=b"/above")


def above(config: Config) -> Config:
    """With one more route, for ``/above``, tried before the others."""
    more = Route("c", path="/above", filters=Filters(admission=Admission(initial=9), retry=None))
    return msgspec.structs.replace(config, routes=(more, *config.routes))


async def test_what_was_learned_stays_with_the_route_that_learned_it() -> None:
    filters = Filters(admission=Admission(initial=100), retry=None)
    async with Origin(answer(FULL)) as origin, gateway(origin, route={"filters": filters}) as g:
        before = g.server.wiring.filters["/"]
        assert before.gate is not None
        before.gate.in_flight += 3  # alone, a refusal says nothing about how much is in flight
        assert (await g.ask(get())).status == 429
        assert await g.server.reload(above(g.server.config))
        after = g.server.wiring.filters
        assert list(after) == ["/above", "/"]
        assert after["/"].gate is before.gate
        assert isinstance(before.gate.limit, AdaptiveLimit)
        assert before.gate.limit.value == 50
        fresh = after["/above"].gate
        assert fresh is not None
        assert (fresh.limit.value, fresh.admitted) == (9, 0)
        assert (await g.ask(ABOVE)).status == 429
        assert (before.gate.admitted, fresh.admitted) == (1, 1)


async def test_its_series_go_on() -> None:
    end = asyncio.Event()

    async def slow(connection: Connection, request: Request) -> None:
        if len(origin.requests) == 1:
            await end.wait()
        connection.send(OK)

    async with Origin(slow) as origin, administered(origin) as running:
        server = running.server
        asked = asyncio.create_task(ask_proxy(server, get()))
        await origin.until(lambda: bool(origin.requests))
        assert await server.reload(above(server.config))
        for target in (get(), ABOVE, ABOVE):
            assert await ask_proxy(server, target) == 200
        found = await running.metrics()
        for name in ("tailrace_in_flight", "tailrace_permits"):
            assert value(found, name, route="/") == 1
            assert value(found, name, route="/above") == 0
        end.set()
        assert await asked == 200
        found = await running.metrics()
        for route in ("/", "/above"):
            assert value(found, "tailrace_requests_total", route=route) == 2
            assert value(found, "tailrace_request_duration_seconds_count", route=route) == 2
            assert value(found, "tailrace_in_flight", route=route) == 0
