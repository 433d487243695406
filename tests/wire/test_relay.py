"""What must work: the same bytes go through, however they are cut, in both directions."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import Rewrite, Telemetry
from tests.harness import GOOD, gateway
from tests.wire.origin import Connection, Origin, Request, answer, chunks, each, echo
from tests.wire.table import get, post

LARGE = random.Random(1).randbytes(8_000_000)


async def test_many_requests_share_one_connection_on_both_sides() -> None:
    async with Origin() as origin, gateway(origin) as g, g.client() as client:
        for i in range(200):
            await client.send(get(target=b"/%d" % i))
            assert (await client.response()).body == b"ok"
        assert len(origin.connections) == 1
        assert [r.target for r in origin.requests] == [b"/%d" % i for i in range(200)]


async def test_http_1_0_upstream_framing_and_1_1_downstream() -> None:
    raw = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"
    async with Origin(answer(raw)) as origin, gateway(origin) as g, g.client() as client:
        await client.send(get())
        response = await client.response()
        assert (response.minor, response.framing, response.closes) == (1, "length", False)


async def test_status_reason_and_headers_come_through() -> None:
    raw = (
        b"HTTP/1.1 418 I'm a teapot\r\nX-A: 1\r\nx-b: \xff\r\nX-A: 2\r\nContent-Length: 2\r\n\r\nhi"
    )
    async with Origin(answer(raw)) as origin, gateway(origin) as g:
        response = await g.ask(get())
        assert (response.status, response.body) == (418, b"hi")
        assert response.values("x-a") == [b"1", b"2"]
        assert response.values("x-b") == [b"\xff"]
        assert response.values("x-tailrace-reason") == []
        assert len(response.values("x-request-id")) == 1


async def test_what_the_gateway_says_of_itself_is_never_another_s() -> None:
    """What a gateway behind this one says so would be taken for ours, be it in an answer, an
    interim one or a trailer. The body of its refusal gives the reason all the same."""
    fields = b"X-Tailrace-Reason: shed\r\nx-tailrace-attempts: 9\r\nX-TAILRACE-: a\r\nX-A: 1\r\n"
    raw = (
        b"HTTP/1.1 103 Early Hints\r\n" + fields + b"\r\n"
        b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n" + fields
        + b"\r\n2\r\nok\r\n0\r\nX-Tailrace-Reason: shed\r\n\r\n"
    )  # fmt: skip
    telemetry = Telemetry(access_log=None, debug_headers=True)
    async with (
        Origin(answer(raw)) as origin,
        gateway(origin, telemetry=telemetry) as g,
        g.client() as client,
    ):
        for _ in range(4):  # then the head is known
            await client.send(get())
            hints, response = await client.head(), await client.response()
            assert (hints.status, response.status, response.body) == (103, 500, b"ok")
            assert hints.values("x-a") == response.values("x-a") == [b"1"]
            assert response.values("x-tailrace-attempts") == [b"1"]
            for each in (hints, response):
                assert each.values("x-tailrace-reason") == []
                assert each.values("x-tailrace-") == []


async def test_request_headers_come_through_with_ours_added() -> None:
    async with Origin() as origin, gateway(origin) as g:
        response = await g.ask(get(b"User-Agent: me", b"Accept: */*", b"X-Request-Id: id-7"))
        request = origin.requests[0]
        assert request.one("host") == b"a.test"
        assert request.one("user-agent") == b"me"
        assert request.one("x-request-id") == b"id-7" == response.one("x-request-id")
        assert request.one("x-forwarded-for") == b"127.0.0.1"
        assert request.one("x-forwarded-proto") == b"http"


pieces = st.lists(st.binary(min_size=1, max_size=300), max_size=12)


@settings(max_examples=25)
@given(parts=pieces, cuts=st.lists(st.integers(0, 4000), max_size=8), counted=st.booleans())
def test_any_chunking_relays_the_same_body(
    parts: list[bytes], cuts: list[int], *, counted: bool
) -> None:
    """Up as chunks, back as counted or as the same chunks; the request in arbitrary segments."""
    body = b"".join(parts)

    async def script(connection: Connection, request: Request) -> None:
        assert await connection.body(request) == body
        assert request.trailers == [(b"X-Sum", b"1")]
        head = b"HTTP/1.1 200 OK\r\n"
        if counted:
            connection.send(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        else:
            connection.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(parts))

    async def run() -> None:
        raw = post(b"Transfer-Encoding: chunked", body=chunks(parts)[:-2] + b"X-Sum: 1\r\n\r\n")
        edges = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
        async with Origin(script) as origin, gateway(origin) as g, g.client() as client:
            for start, end in pairwise(edges):
                await client.send(raw[start:end])
                await asyncio.sleep(0)
            response = await client.response()
            assert response.body == body
            assert response.framing == ("length" if counted else "chunked")

    asyncio.run(run())


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_large_bodies_go_both_ways(framing: str) -> None:
    if framing == "length":
        raw = post(b"Content-Length: %d" % len(LARGE), body=LARGE)
    else:
        parts = [LARGE[i : i + 40_000] for i in range(0, len(LARGE), 40_000)]
        raw = post(b"Transfer-Encoding: chunked", body=chunks(parts))
    async with Origin(echo, keep_raw=False) as origin, gateway(origin) as g, g.client() as client:
        sending = asyncio.ensure_future(client.send(raw))
        response = await client.response()
        await sending
        assert response.body == LARGE
        assert origin.requests[0].body == LARGE


async def test_trailers_of_an_answer_come_through() -> None:
    raw = (
        b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nok\r\n0\r\nX-Sum: abc\r\nContent-Length: 9\r\nSet-Cookie: a=b\r\n\r\n"
    )
    async with Origin(answer(raw)) as origin, gateway(origin) as g, g.client() as client:
        await client.send(get(b"TE: trailers"))
        response = await client.response()
        assert response.body == b"ok"
        assert response.trailers == [(b"X-Sum", b"abc")]


async def test_153_events_arrive_one_by_one() -> None:
    """Each event is sent only after the client has the one before: nothing may be held back."""
    seen = asyncio.Semaphore(0)

    async def script(connection: Connection, request: Request) -> None:
        connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for i in range(20):
            connection.send(chunks([b"data: %d\n\n" % i])[:-5])
            await seen.acquire()
        connection.send(b"0\r\n\r\n")

    async with Origin(script) as origin, gateway(origin) as g, g.client() as client:
        await client.send(get())
        assert (await client.head()).one("content-type") == b"text/event-stream"
        for i in range(20):
            assert await client.chunk() == b"data: %d\n\n" % i
            seen.release()
        assert await client.chunk() == b""


async def test_153_the_head_does_not_wait_for_the_body() -> None:
    go_on = asyncio.Event()

    async def script(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        await go_on.wait()
        connection.send(b"ok")

    async with Origin(script) as origin, gateway(origin) as g, g.client() as client:
        await client.send(get())
        assert (await client.head()).status == 200
        go_on.set()
        assert await client.exactly(2) == b"ok"


async def test_153_an_upload_is_streamed_and_answered_while_it_comes() -> None:
    """The origin sees each part before the client sends the next: the body is not collected."""
    async with Origin(echo) as origin, gateway(origin) as g, g.client() as client:
        await client.send(post(b"Transfer-Encoding: chunked"))
        await origin.until(lambda: bool(origin.heads))
        upload = origin.heads[0]
        for i in range(1, 6):
            await client.send(b"4\r\npart\r\n")
            await origin.until(lambda n=i: len(upload.body) == 4 * n)  # type: ignore[misc]
        await client.send(b"0\r\n\r\n")
        assert (await client.response()).body == b"part" * 5


async def test_153_multipart_passes_unparsed() -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\n\x00\xff\r\n--b--\r\n'
    raw = post(
        b"Content-Type: multipart/form-data; boundary=b",
        b"Content-Length: %d" % len(body),
        body=body,
    )
    async with Origin(echo) as origin, gateway(origin) as g:
        assert (await g.ask(raw)).body == body
        assert origin.requests[0].one("content-type") == b"multipart/form-data; boundary=b"


async def test_a_route_can_rewrite_its_prefix() -> None:
    route = {"path": "/models/a/", "rewrite": Rewrite(prefix="/")}
    async with Origin() as origin, gateway(origin, route=route) as g:
        assert (await g.ask(get(target=b"/models/a/v1/x?y=1"))).status == 200
        assert origin.requests[0].target == b"/v1/x?y=1"
        response = await g.ask(get(target=b"/models/ab/v1/x"))
        assert (response.status, response.one("x-tailrace-reason")) == (404, b"no_route")


async def test_unix_sockets_work_on_both_sides(tmp_path: Path) -> None:
    inner, outer = f"unix:{tmp_path}/inner", f"unix:{tmp_path}/outer"
    async with (
        Origin() as origin,
        gateway(origin, listener={"address": inner}),
        gateway(inner, listener={"address": outer}) as g,
    ):
        assert (await g.ask(GOOD)).body == b"ok"


async def test_ipv6_works_on_both_sides() -> None:
    async with Origin() as origin, gateway(origin, listener={"address": "[::1]:0"}) as inner:
        url = f"http://[::1]:{inner.address[1]}"
        async with gateway(url, listener={"address": "[::1]:0"}) as outer:
            assert (await outer.ask(GOOD)).body == b"ok"


async def test_requests_spread_over_endpoints() -> None:
    async with Origin() as one, Origin() as two, gateway(one, two) as g, g.client() as client:
        for _ in range(60):
            await client.send(GOOD)
            assert (await client.response()).status == 200
        assert one.requests
        assert two.requests


async def test_an_interrupted_exchange_leaves_the_others_alone() -> None:
    script = each(*[answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", close=True)] * 3, echo)
    async with Origin(script) as origin, gateway(origin) as g:
        results = await asyncio.gather(*[g.ask(get()) for _ in range(3)], return_exceptions=True)
        assert all(isinstance(result, Exception) for result in results)
        assert (await g.ask(GOOD)).status == 200


async def test_debug_headers_tell_what_became_of_an_exchange() -> None:
    telemetry = Telemetry(access_log=None, debug_headers=True)
    async with Origin() as origin, gateway(origin, telemetry=telemetry) as g:
        headers = dict((await g.ask(GOOD)).headers)
        assert headers[b"x-tailrace-endpoint"] == origin.url.removeprefix("http://").encode()
        assert headers[b"x-tailrace-attempts"] == b"1"
        assert headers[b"x-tailrace-hedged"] == b"false"
        assert headers[b"x-tailrace-queue-ms"] == b"0.000"
