"""Ejection and push-back on real sockets: callers see none of it, operators all of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from filters.deadline import Config as Deadline
from filters.outlier import Config as Outlier
from filters.standing import Cause
from gateway.config import Balance
from tests.harness import Gateway, Retry, gateway
from tests.wire.client import TruncatedError
from tests.wire.origin import (
    BOUND,
    OK,
    Connection,
    Origin,
    Request,
    Script,
    answer,
    crash,
    silent,
    slam,
)
from tests.wire.table import get

if TYPE_CHECKING:
    from gateway.endpoint import Endpoint

DEAD = "http://127.0.0.1:1"
ASK = get()
BAD = b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"
CLIENTS = b"HTTP/1.1 422 No\r\nContent-Length: 0\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


def cluster(**outlier: Any) -> dict[str, Any]:
    """By turns, so that nobody is merely avoided."""
    return {"outlier": Outlier(**outlier), "balance": Balance(policy="round_robin")}


BRIEF = {"base_ejection": 0.02, "max_ejection": 0.02}
LONG = {"base_ejection": 600.0, "max_ejection": 600.0}


def endpoint(g: Gateway, origin: Origin | str) -> Endpoint:
    name = origin.authority if isinstance(origin, Origin) else origin.removeprefix("http://")
    return g.server.wiring.clusters["c"].endpoints[name]


async def until(g: Gateway, one: Endpoint, state: str) -> None:
    """Traffic goes on until the endpoint is in this state; every caller is served."""
    async with asyncio.timeout(BOUND):
        while one.state != state:
            assert (await g.ask(ASK)).status == 200


@dataclass
class Bad:
    name: str
    script: Script
    said: str


@pytest.mark.parametrize(
    "bad",
    [
        Bad("slam", slam, "upstream_reset"),
        Bad("crash", crash, "upstream_reset"),
        Bad("502", answer(BAD.replace(b"500", b"502")), "status 502"),
    ],
    ids=lambda bad: bad.name,
)
async def test_who_fails_is_left_alone_and_comes_back(bad: Bad) -> None:
    async with (
        Origin(bad.script) as a,
        Origin() as b,
        gateway(a, b, retry=Retry(), cluster=cluster(**BRIEF)) as g,
    ):
        one = endpoint(g, a)
        await until(g, one, "ejected")
        assert one.standing.why == f"5 failures in a row, last: {bad.said}"
        assert len(a.requests) == 5
        async with asyncio.timeout(BOUND):
            while len(a.requests) < 8:  # probes, which fail; their callers are served by b
                assert (await g.ask(ASK)).status == 200
        a.script = answer(OK)
        await until(g, one, "healthy")
        assert "its probe was answered" in one.standing.why
        async with asyncio.timeout(BOUND):
            while len(a.requests) < 12:
                assert (await g.ask(ASK)).status == 200


async def test_who_is_not_there_costs_five_retries() -> None:
    async with Origin() as b, gateway(DEAD, b, retry=Retry(), cluster=cluster(**LONG)) as g:
        for _ in range(30):
            assert (await g.ask(ASK)).status == 200
        one = endpoint(g, DEAD)
        assert one.state == "ejected"
        assert one.pool.connects == 5
        assert one.why.startswith("5 failures in a row, last: connect_failed; for ")


async def test_the_only_one_that_is_not_there_is_answered_for_at_once() -> None:
    async with gateway(DEAD) as g:
        seen = [(await g.ask(ASK)) for _ in range(8)]
        assert [each.status for each in seen] == [502] * 5 + [503] * 3
        assert [each.one("x-tailrace-reason") for each in seen[5:]] == [b"no_endpoint"] * 3
        assert seen[5].one("retry-after") == b"1"
        assert 0 < int(seen[5].one("retry-after-ms")) <= 1000
        one = endpoint(g, DEAD)
        assert one.pool.connects == 5
        async with asyncio.timeout(BOUND):
            while (await g.ask(ASK)).status != 502:  # the probe
                pass
        assert one.pool.connects == 6
        assert (await g.ask(ASK)).status == 503


async def test_the_only_one_that_fails_is_asked_all_the_same() -> None:
    async with Origin(answer(BAD)) as a, gateway(a, cluster=cluster(**LONG)) as g:
        assert [(await g.ask(ASK)).status for _ in range(20)] == [500] * 20
        assert endpoint(g, a).state == "healthy"


async def test_two_that_fail_together_are_both_asked() -> None:
    async with (
        Origin(answer(BAD)) as a,
        Origin(answer(BAD)) as b,
        gateway(a, b, cluster=cluster(**LONG)) as g,
    ):
        asked = 0
        async with asyncio.timeout(BOUND):
            while asked < 40 or not g.server.wiring.clusters["c"].outlier.doubted:
                assert (await g.ask(ASK)).status == 500
                asked += 1
        assert abs(len(a.requests) - len(b.requests)) <= 1
        assert endpoint(g, a).state == endpoint(g, b).state == "healthy"


async def test_headers_and_then_nothing_is_marked_with_its_reason() -> None:
    async def only_head(connection: Connection, request: Request) -> None:
        connection.send(HEAD)
        await silent(connection, request)

    async with (
        Origin(only_head) as a,
        Origin() as b,
        gateway(a, b, cluster=cluster(**LONG), deadline=Deadline(first_byte=0.02)) as g,
    ):
        broken = 0
        async with asyncio.timeout(BOUND):
            while endpoint(g, a).state == "healthy":
                try:
                    assert (await g.ask(ASK)).status == 200
                except TruncatedError:
                    broken += 1
        why = endpoint(g, a).why
        assert why.startswith("5 broken answers in a row, last: first_byte_timeout")
        assert broken == 5


async def test_what_clients_do_wrong_is_not_held_against_anybody() -> None:
    asks = get(b"x-request-timeout-ms: 1\r\n")
    async with (
        Origin(answer(CLIENTS)) as a,
        Origin() as b,
        gateway(a, b, cluster=cluster(**LONG)) as g,
    ):
        seen = [(await g.ask(ASK)).status for _ in range(40)]
        assert sorted(seen) == [200] * 20 + [422] * 20
        a.script = silent
        for _ in range(40):
            await g.ask(asks)
        assert [each.failed for each in (endpoint(g, a), endpoint(g, b))] == [0, 0]
        assert g.server.wiring.clusters["c"].outlier.ejections[Cause.CONSECUTIVE] == 0


@pytest.mark.parametrize("seconds", [b"3600", b"0"])
@pytest.mark.parametrize("status", [b"503", b"429"])
async def test_push_back_sends_retries_elsewhere_at_once(status: bytes, seconds: bytes) -> None:
    """A Retry-After of an hour keeps nobody waiting who can go somewhere else, and one of 0 leads
    nobody to who answers so."""
    fields = b"Retry-After: %b\r\nContent-Length: 0\r\n\r\n" % seconds
    pushed = answer(b"HTTP/1.1 %b No\r\n%b" % (status, fields))
    retry = Retry(on=(503, 429))
    async with (
        Origin(pushed) as a,
        Origin() as b,
        gateway(a, b, retry=retry, cluster=cluster()) as g,
    ):
        for _ in range(40):
            assert (await g.ask(ASK)).status == 200
        one = endpoint(g, a)
        assert (one.state, one.failed) == ("healthy", 0)
        assert one.why.startswith("pushes back, ")
        assert 1 <= len(a.requests) <= 4  # of 40: a twentieth of its share, and the first
        b.script = pushed
        response = await g.ask(ASK)
        assert (response.status, response.one("retry-after")) == (int(status), seconds)


async def test_a_reload_forgets_nothing() -> None:
    async with (
        Origin(slam) as a,
        Origin() as b,
        gateway(a, b, retry=Retry(), cluster=cluster(**LONG)) as g,
    ):
        one = endpoint(g, a)
        await until(g, one, "ejected")
        before = g.server.config
        changed = msgspec.structs.replace(
            before.clusters["c"], outlier=Outlier(consecutive_failures=50)
        )
        after = msgspec.structs.replace(before, clusters={"c": changed})
        assert await g.server.reload(after)
        assert endpoint(g, a) is one
        for _ in range(10):
            assert (await g.ask(ASK)).status == 200
        assert len(a.requests) == 5
        off = msgspec.structs.replace(before.clusters["c"], outlier=None)
        assert await g.server.reload(msgspec.structs.replace(before, clusters={"c": off}))
        await until(g, one, "healthy")
        assert one.standing.why == "ejection is off"
