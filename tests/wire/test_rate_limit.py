"""A rate-limited route as a client sees it: refusals, and what every answer says.

The rates are so low that no test depends on how fast the machine is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from filters.rate_limit import Config as RateLimit
from gateway.config import Filters
from tests.harness import gateway
from tests.wire.origin import Connection, Origin, Request, answer
from tests.wire.table import check_refusal, chunked, get
from tests.wire.test_hostile_upgrade import SWITCH, WEBSOCKET

if TYPE_CHECKING:
    from tests.wire.client import Response

NAMES = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
DEAD = "http://127.0.0.1:1"


def limited(burst: int = 2, **settings: Any) -> dict[str, Any]:
    """A route's section: one a minute, after ``burst`` at once."""
    limit = RateLimit(rate=1 / 60, burst=burst, **settings)
    return {"filters": Filters(rate_limit=limit, retry=None)}


def told(response: Response) -> tuple[int, int, int]:
    """Limit, remaining and reset, each of which stands there once."""
    limit, remaining, reset = (int(response.one(name)) for name in NAMES)
    return limit, remaining, reset


def silent_about_it(response: Response) -> bool:
    return not any(response.values(name) for name in NAMES)


async def test_what_is_over_the_limit_is_refused_with_the_time_to_come_back() -> None:
    async with Origin() as origin, gateway(origin, route=limited()) as g, g.client() as client:
        for remaining in (1, 0):
            await client.send(get())
            response = await client.response()
            assert response.status == 200
            assert told(response)[:2] == (2, remaining)
        for _ in range(2):  # the connection lives on
            await client.send(get())
            response = await client.response()
            check_refusal(response, 429, reason="rate_limited")
            limit, remaining, reset = told(response)
            assert (limit, remaining) == (2, 0)
            assert 60 < reset <= 120
            seconds, milliseconds = (
                int(response.one(name)) for name in ("retry-after", "retry-after-ms")
            )
            assert 0 < milliseconds <= 60_000
            assert seconds == -(-milliseconds // 1000)
        assert len(origin.requests) == 2


async def test_each_key_has_its_own() -> None:
    asks = [get(b"Authorization: Bearer %b" % key) for key in (b"a", b"b")]
    async with Origin() as origin, gateway(origin, route=limited(1)) as g:
        assert [(await g.ask(ask)).status for ask in asks * 2] == [200, 200, 429, 429]
        assert [(await g.ask(get())).status for _ in range(2)] == [200, 429]


async def test_the_upstreams_own_account_gives_way_where_names_are_the_same() -> None:
    theirs = (
        b"HTTP/1.1 200 OK\r\nX-RateLimit-Limit: 9\r\nx-ratelimit-remaining: 8\r\n"
        b"x-ratelimit-limit-tokens: 7\r\nContent-Length: 0\r\n\r\n"
    )
    async with Origin(answer(theirs)) as origin:
        async with gateway(origin, route=limited()) as g:
            response = await g.ask(get())
            assert told(response)[:2] == (2, 1)
            assert response.one("x-ratelimit-limit-tokens") == b"7"
        async with gateway(origin) as g:
            response = await g.ask(get())
            assert response.one("x-ratelimit-limit") == b"9"
            assert response.values("x-ratelimit-reset") == []


async def test_answers_that_are_made_here_say_it_too() -> None:
    async with gateway(DEAD, route=limited()) as g:
        response = await g.ask(get())
        check_refusal(response, 502, reason="connect_failed")
        assert told(response)[:2] == (2, 1)


async def test_so_does_the_refusal_of_a_body_that_breaks() -> None:
    async def waiting(connection: Connection, request: Request) -> None:
        await connection.until(lambda: connection.gone)

    async with Origin(waiting) as origin, gateway(origin, route=limited()) as g:
        async with g.client() as client:
            await client.send(chunked(b"5\r\nhello\r\n"))
            await origin.until(lambda: bool(origin.connections))
            await client.send(b"zzz\r\n")
            response = await client.response()
        check_refusal(response, 400, reason="malformed")
        assert told(response)[:2] == (2, 1)


async def test_so_does_a_switch_of_protocols() -> None:
    async def switch(connection: Connection, request: Request) -> None:
        connection.switch()
        connection.send(SWITCH)
        await connection.until(lambda: connection.gone)

    async with Origin(switch) as origin, gateway(origin, route=limited()) as g:
        async with g.client() as client:
            await client.send(get(*WEBSOCKET))
            response = await client.response()
        assert response.status == 101
        assert told(response)[:2] == (2, 1)


async def test_a_dry_run_shows_nothing() -> None:
    async with Origin() as origin, gateway(origin, route=limited(1, dry_run=True)) as g:
        responses = [await g.ask(get()) for _ in range(3)]
    assert [each.status for each in responses] == [200] * 3
    assert all(silent_about_it(each) for each in responses)


async def test_it_is_off_unless_asked_for() -> None:
    async with Origin() as origin, gateway(origin) as g:
        assert silent_about_it(await g.ask(get()))
