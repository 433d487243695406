"""What becomes of a claim to a class on its way upstream, and of work that cannot be in time."""

from __future__ import annotations

import asyncio

import pytest

from filters.deadline import SAMPLES
from filters.priority import Config as Priority
from gateway.config import Filters
from tests.harness import gateway
from tests.wire.origin import Connection, Origin, Request
from tests.wire.table import check_refusal, get

TRUSTED, STRANGER = ("127.0.0.0/8",), ()


@pytest.mark.parametrize(
    ("trust", "claim", "forwarded"),
    [
        (TRUSTED, b"critical_plus", b"critical_plus"),
        (TRUSTED, b"Sheddable", b"Sheddable"),
        (TRUSTED, b"urgent", b"urgent"),
        (STRANGER, b"critical_plus", b"critical"),
        (STRANGER, b"urgent", b"critical"),
        (STRANGER, b"Sheddable", b"Sheddable"),
    ],
)
async def test_only_a_true_claim_reaches_the_next_gateway(
    trust: tuple[str, ...], claim: bytes, forwarded: bytes
) -> None:
    async with Origin() as origin, gateway(origin, trust=trust) as g:
        assert (await g.ask(get(b"X-Request-Priority: " + claim))).status == 200
        assert origin.requests[0].one("x-request-priority") == forwarded
        assert (await g.ask(get())).status == 200
        assert origin.requests[1].values("x-request-priority") == []


async def test_every_line_of_a_header_of_ones_own_is_replaced() -> None:
    filters = Filters(priority=Priority(header="x-class", default="sheddable"))
    async with Origin() as origin, gateway(origin, trust=(), route={"filters": filters}) as g:
        lines = (b"X-Class: critical", b"X-Other: 1", b"x-class: critical_plus")
        assert (await g.ask(get(*lines))).status == 200
        assert origin.requests[0].one("x-class") == b"sheddable"
        assert origin.requests[0].one("x-other") == b"1"


async def test_what_cannot_be_in_time_is_not_begun() -> None:
    async def slow(connection: Connection, request: Request) -> None:
        await asyncio.sleep(0.5)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    ask = b"x-request-timeout-ms: %d"
    async with Origin(slow) as origin, gateway(origin) as g:
        asks = [g.ask(get(ask % 60_000)) for _ in range(SAMPLES)]
        assert {each.status for each in await asyncio.gather(*asks)} == {200}
        # The first is let through, to see whether it is so.
        check_refusal(await g.ask(get(ask % 450)), 504, reason="deadline")
        seen = len(origin.requests)
        check_refusal(await g.ask(get(ask % 450)), 504, reason="deadline_unreachable")
        assert len(origin.requests) == seen
