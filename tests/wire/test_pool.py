"""Upstream connections: reused, newest first, bounded; what can be sent again, and what cannot."""

from __future__ import annotations

import asyncio

import pytest

from gateway.config import Connections, Limits, RequestHeaders, Secret
from tests.harness import GOOD, Retry, gateway
from tests.wire.client import TruncatedError
from tests.wire.origin import OK, Connection, Origin, Request, answer, by_target, each, echo, slam
from tests.wire.table import check_refusal, chunked, get, post


class Gate:
    """A script that answers only when opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def __call__(self, connection: Connection, request: Request) -> None:
        await connection.body(request)
        await self.opened.wait()
        connection.send(OK)


async def test_idle_connections_are_reused_newest_first() -> None:
    """So that a quiet time lets the others expire, and the one in use is the least likely stale."""
    gate = Gate()
    async with Origin(by_target({b"/x": gate})) as origin, gateway(origin) as g:
        asked = [asyncio.ensure_future(g.ask(get())) for _ in range(5)]
        await origin.until(lambda: len(origin.requests) == 5)
        gate.opened.set()
        await asyncio.gather(*asked)
        for _ in range(10):
            assert (await g.ask(GOOD)).status == 200
        assert len(origin.connections) == 5
        assert sorted(len(c.requests) for c in origin.connections) == [1, 1, 1, 1, 11]


async def test_connections_to_an_endpoint_are_bounded() -> None:
    gate = Gate()
    cluster = {"connections": Connections(max=2)}
    async with Origin(by_target({b"/x": gate})) as origin, gateway(origin, cluster=cluster) as g:
        asked = [asyncio.ensure_future(g.ask(get())) for _ in range(2)]
        await origin.until(lambda: len(origin.requests) == 2)
        check_refusal(await g.ask(GOOD), 503, reason="pool_exhausted")
        gate.opened.set()
        assert [each.status for each in await asyncio.gather(*asked)] == [200, 200]
        assert (await g.ask(GOOD)).status == 200
        assert len(origin.connections) == 2


async def test_a_body_over_the_replay_limit_is_not_sent_twice() -> None:
    script = each(answer(OK), slam, answer(OK))
    limits = Limits(replay_bytes=10)
    async with Origin(script) as origin, gateway(origin, retry=Retry(), limits=limits) as g:
        assert (await g.ask(GOOD)).status == 200
        put = b"PUT" + post(b"Content-Length: 100", body=b"a" * 100)[4:]
        check_refusal(await g.ask(put), 502, reason="upstream_reset")
        assert len(origin.heads) == 2


@pytest.mark.parametrize("status", [502, 503])
async def test_a_failure_is_tried_again_once_on_another_endpoint(status: int) -> None:
    failure = answer(b"HTTP/1.1 %d Bad\r\nContent-Length: 3\r\n\r\nbad" % status)
    async with Origin(each(failure, echo)) as origin, gateway(origin, retry=Retry()) as g:
        response = await g.ask(post(b"Idempotency-Key: k", b"Content-Length: 5", body=b"hello"))
        assert (response.status, response.body) == (200, b"hello")
        assert [bytes(request.body) for request in origin.requests] == [b"hello", b"hello"]


async def test_a_failure_that_stays_is_the_upstreams_own_answer() -> None:
    failure = answer(b"HTTP/1.1 503 Busy\r\nX-A: 1\r\nContent-Length: 3\r\n\r\nbad")
    async with Origin(failure) as origin, gateway(origin, retry=Retry()) as g:
        response = await g.ask(get())
        assert (response.status, response.body, response.one("x-a")) == (503, b"bad", b"1")
        assert len(origin.requests) == 2


async def test_an_endpoint_that_is_down_is_passed_over() -> None:
    async with Origin() as down:
        url = down.url
    async with Origin() as up, gateway(url, up, retry=Retry()) as g:
        for _ in range(5):
            assert (await g.ask(GOOD)).status == 200
            assert (await g.ask(post(b"Content-Length: 5", body=b"hello"))).status == 200


async def test_after_the_commit_point_nothing_is_tried_again() -> None:
    short = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", close=True)
    async with Origin(short) as origin, gateway(origin, retry=Retry()) as g:
        with pytest.raises(TruncatedError):
            await g.ask(get())
        assert len(origin.requests) == 1


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_an_early_answer_reaches_a_client_that_is_still_sending(framing: str) -> None:
    """A server that refuses an upload at its head: the refusal must not be lost to a reset."""

    async def refuse(connection: Connection, request: Request) -> None:
        connection.transport.pause_reading()
        connection.send(
            b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"
        )

    size = 20_000_000
    if framing == "length":
        raw = post(b"Content-Length: %d" % size, body=bytes(size))
    else:
        raw = chunked(b"%x\r\n" % size + bytes(size) + b"\r\n0\r\n\r\n")
    async with Origin(by_target({b"/x": refuse})) as origin, gateway(origin) as g:
        async with g.client() as client:
            sending = asyncio.ensure_future(client.send(raw))
            response = await client.response()
            assert (response.status, response.body) == (413, b"no")
            await client.rest()
            await sending
        assert (await g.ask(GOOD)).status == 200


async def test_refusals_of_head_requests_have_no_body() -> None:
    # Not a port that was just closed: the gateway's own listener may be given that one.
    async with gateway("http://127.0.0.1:1") as g, g.client() as client:
        for _ in range(3):
            await client.send(b"HEAD" + get()[3:])
            response = await client.response(b"HEAD")
            assert response.status == 502
            assert response.one("x-tailrace-reason") == b"connect_failed"
        await client.send(get())
        check_refusal(await client.response(), 502)


async def test_a_route_can_set_and_remove_request_headers() -> None:
    headers = RequestHeaders(
        set={"authorization": Secret(value="Bearer ours"), "x-new": Secret(value="1")},
        remove=("x-secret", "cookie"),
    )
    async with Origin() as origin, gateway(origin, route={"request_headers": headers}) as g:
        await g.ask(get(b"Authorization: Bearer theirs", b"X-Secret: s", b"Cookie: a=b", b"X-A: 1"))
        request = origin.requests[0]
        assert request.one("authorization") == b"Bearer ours"
        assert request.one("x-new") == b"1"
        assert request.values("x-secret") == request.values("cookie") == []
        assert request.one("x-a") == b"1"
