"""Cases 112 to 120: keep-alive, pipelining, hop-by-hop headers, Expect, clients that leave."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.config import AccessLog, Telemetry
from tests.harness import GOOD, eventually, gateway
from tests.wire.client import Client
from tests.wire.origin import OK, Connection, Origin, Request, answer, by_target, silent
from tests.wire.table import (
    WAYS,
    Row,
    accepted,
    check_refusal,
    chunked,
    deliver,
    get,
    post,
    refused,
    table,
)

BAD = [
    Row(113, "nominates-host", get(b"Connection: close, Host")),
    Row(113, "nominates-host-case", get(b"Connection: hOST")),
    Row(113, "nominates-length", post(b"Connection: Content-Length", b"Content-Length: 0")),
    Row(113, "nominates-coding", chunked(b"0\r\n\r\n", b"Connection: transfer-encoding")),
    Row(113, "nominates-on-second-line", get(b"Connection: close", b"Connection: Host")),
    Row(120, "expect-unknown", post(b"Expect: 200-ok", b"Content-Length: 0"), (417,)),
    Row(120, "expect-more", post(b"Expect: 100-continue, x", b"Content-Length: 0"), (417,)),
    Row(120, "expect-prefixed", post(b"Expect: y 100-continue", b"Content-Length: 5"), (417,)),
    Row(120, "expect-suffix", post(b"Expect: 100-continuexx", b"Content-Length: 5"), (417,)),
]


@table(BAD)
async def test_refused(row: Row, way: str) -> None:
    await refused(row, way)


@pytest.mark.parametrize("way", WAYS)
async def test_112_close_is_honoured_and_what_follows_is_ignored(way: str) -> None:
    async with Origin() as origin, gateway(origin) as g, g.client() as client:
        await deliver(client, get(b"Connection: close") + get(target=b"/after"), way)
        response = await client.response()
        assert (response.status, response.body, response.closes) == (200, b"ok", True)
        assert await client.rest() == b""
        assert (await g.ask(GOOD)).status == 200
        assert b"/after" not in [request.target for request in origin.heads]


@pytest.mark.parametrize("way", WAYS)
async def test_112_http_1_0_closes_unless_asked_not_to(way: str) -> None:
    raw = get().replace(b"HTTP/1.1", b"HTTP/1.0")
    async with Origin() as origin, gateway(origin) as g:
        async with g.client() as client:
            await deliver(client, raw, way)
            assert (await client.response()).body == b"ok"
            assert await client.rest() == b""
        async with g.client() as client:
            await deliver(client, raw[:-2] + b"Connection: Keep-Alive\r\n\r\n", way)
            response = await client.response()
            assert response.body == b"ok"
            if not response.closes:
                assert [v.lower() for v in response.values("connection")] == [b"keep-alive"]
                await client.send(raw)
                assert (await client.response()).body == b"ok"


KEPT = {
    "authorization": b"Bearer a",
    "cookie": b"a=b",
    "content-type": b"a/b",
    "x-request-id": b"id-1",
}


@pytest.mark.parametrize("way", WAYS)
async def test_113_nominated_headers_are_removed_but_protected_ones_stay(way: str) -> None:
    """Nomination must not strip what authenticates, frames or attributes a request.

    The upstream, or a proxy behind us, would then decide on a request that we did not see.
    """
    names = [
        b"X-Custom",
        *[name.encode() for name in KEPT],
        b"X-Forwarded-For",
        b"X-Forwarded-Host",
    ]
    lines = [name.encode() + b": " + value for name, value in KEPT.items()]
    raw = get(b"Connection: " + b", ".join(names), b"X-Custom: 1", b"X-Other: 2", *lines)
    request = await accepted(Row(113, "", raw), way)
    assert request.values("x-custom") == []
    assert request.one("x-other") == b"2"
    assert {name: request.one(name) for name in KEPT} == KEPT
    assert request.one("x-forwarded-for").endswith(b"127.0.0.1")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "lines",
    [
        (b"Connection:", b"Connection: X-Custom"),
        (b"Connection: X-Custom", b"Connection:"),
        (b"Connection: ,", b"Connection: , x-CUSTOM ,"),
        (b"Connection: keep-alive", b"connection:\tX-Custom"),
    ],
)
async def test_114_every_connection_line_counts(lines: tuple[bytes, ...], way: str) -> None:
    request = await accepted(Row(114, "", get(*lines, b"X-Custom: 1")), way)
    assert request.values("x-custom") == []


HOP_BY_HOP = [
    b"Keep-Alive: timeout=5",
    b"Proxy-Connection: keep-alive",
    b"Proxy-Authorization: Basic x",
    b"TE: trailers, deflate;q=0.5",
]


@pytest.mark.parametrize("way", WAYS)
async def test_115_hop_by_hop_headers_are_not_forwarded(way: str) -> None:
    request = await accepted(Row(115, "", get(*HOP_BY_HOP)), way)
    for name in ("keep-alive", "proxy-connection", "proxy-authorization"):
        assert request.values(name) == []
    assert request.values("te") in ([], [b"trailers"])


async def test_115_hop_by_hop_headers_of_answers_are_not_forwarded() -> None:
    lines = b"Keep-Alive: timeout=5\r\nConnection: X-Hop\r\nX-Hop: 1\r\nProxy-Connection: close\r\n"
    raw = b"HTTP/1.1 200 OK\r\n" + lines + b"X-End: 2\r\nContent-Length: 2\r\n\r\nok"
    async with Origin(answer(raw)) as origin, gateway(origin) as g, g.client() as client:
        await client.send(get())
        response = await client.response()
        for name in ("keep-alive", "x-hop", "proxy-connection"):
            assert response.values(name) == []
        assert response.one("x-end") == b"2"


async def name_target(connection: Connection, request: Request) -> None:
    await connection.body(request)
    connection.send(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request.target) + request.target
    )


async def test_116_a_thousand_pipelined_requests_are_answered_in_order() -> None:
    async with Origin(name_target) as origin, gateway(origin) as g, g.client() as client:
        await client.send(b"".join(get(target=b"/%d" % i) for i in range(1000)))
        for i in range(1000):
            assert (await client.response()).body == b"/%d" % i
        assert len(origin.requests) == 1000


async def test_116_pipelined_requests_are_read_no_further_than_the_limit() -> None:
    """While the first waits, the rest stays in the socket: the upstream sees only it."""
    async with Origin(silent) as origin, gateway(origin) as g, g.client() as client:
        await client.send(b"".join(get(target=b"/%d" % i) for i in range(100)))
        await origin.until(lambda: bool(origin.requests))
        origin.script = answer(OK)
        assert (await g.ask(GOOD)).status == 200
        assert [r.target for r in origin.requests] == [b"/0", b"/good"]


@pytest.mark.parametrize("way", WAYS)
async def test_117_good_requests_before_a_bad_one_are_answered(way: str) -> None:
    async with Origin(name_target) as origin, gateway(origin) as g, g.client() as client:
        good = b"".join(get(target=b"/%d" % i) for i in range(10))
        if way == "bytes":
            await client.drip(good + b"BAD\r\n\r\n")
        else:
            await client.send(good + b"BAD\r\n\r\n" + get(target=b"/after"))
        for i in range(10):
            assert (await client.response()).body == b"/%d" % i
        check_refusal(await client.response(), 400)
        assert await client.rest() == b""
        assert [r.target for r in origin.heads] == [b"/%d" % i for i in range(10)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("raw", [get(), chunked(b"2\r\nhi\r\n0\r\n\r\n")], ids=["get", "post"])
async def test_118_a_half_closed_client_still_gets_its_answer(raw: bytes, way: str) -> None:
    release = asyncio.Event()

    async def late(connection: Connection, request: Request) -> None:
        await connection.body(request)
        await release.wait()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")

    async with (
        Origin(by_target({b"/x": late})) as origin,
        gateway(origin) as g,
        g.client() as client,
    ):
        await deliver(client, raw, way)
        client.half_close()
        await origin.until(lambda: b"/x" in [each.target for each in origin.requests])
        # A whole exchange later the gateway has surely seen the FIN.
        assert (await g.ask(GOOD)).status == 200
        release.set()
        assert (await client.response()).body == b"late"
        assert await client.rest() == b""


@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_119_a_client_that_leaves_cancels_its_upstream_request(
    leave: str, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    telemetry = Telemetry(access_log=AccessLog(path=str(log)))
    async with Origin(silent) as origin, gateway(origin, telemetry=telemetry) as g:
        client = await Client.connect(g.address)
        await client.send(post(b"Content-Length: 5", body=b"hello"))
        await origin.until(lambda: bool(origin.requests))
        if leave == "reset":
            client.reset()
        else:
            await client.close()
        await origin.until(lambda: origin.open == 0)
        await eventually(lambda: log.exists() and b"499" in log.read_bytes())
        assert b"client_gone" in log.read_bytes()


@pytest.mark.parametrize("value", [b"100-continue", b"100-Continue"])
@pytest.mark.parametrize("way", WAYS)
async def test_120_expect_is_answered_here_and_not_forwarded(value: bytes, way: str) -> None:
    async with Origin() as origin, gateway(origin) as g, g.client() as client:
        await deliver(client, post(b"Content-Length: 5", b"Expect: " + value), way)
        assert (await client.head()).status == 100
        await client.send(b"hello")
        response = await client.response()
        assert (response.status, response.interim) == (200, [])
        assert origin.requests[-1].body == b"hello"
        assert origin.requests[-1].values("expect") == []


async def test_120_no_100_is_needed_when_the_body_comes_at_once() -> None:
    async with Origin() as origin, gateway(origin) as g, g.client() as client:
        await client.send(post(b"Content-Length: 5", b"Expect: 100-continue", body=b"hello") + GOOD)
        first = await client.response()
        assert [each.status for each in first.interim] in ([], [100])
        assert (await client.response()).interim == []


@pytest.mark.parametrize("way", WAYS)
async def test_120_expect_on_http_1_0_is_ignored(way: str) -> None:
    raw = post(b"Content-Length: 5", b"Expect: 100-continue", body=b"hello")
    async with Origin() as origin, gateway(origin) as g, g.client() as client:
        await deliver(client, raw.replace(b"HTTP/1.1", b"HTTP/1.0"), way)
        response = await client.response()
        assert (response.status, response.interim) == (200, [])
        assert origin.requests[-1].values("expect") == []


async def test_120_an_upstream_that_answers_before_the_body_is_not_used_again() -> None:
    """Its connection still owes the rest of a body; the next request there would be that body."""

    async def early(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")

    async with Origin(by_target({b"/x": early})) as origin, gateway(origin) as g:
        async with g.client() as client:
            await client.send(post(b"Content-Length: 100", body=b"some"))
            response = await client.response()
            assert (response.status, response.body) == (403, b"no")
            await origin.until(lambda: origin.connections[0].gone)
        assert (await g.ask(GOOD)).status == 200
        assert [len(each.requests) for each in origin.connections] == [1, 1]


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_120_the_rest_of_a_body_that_was_answered_early_is_no_request(framing: str) -> None:
    """The client sends on: what follows is still body, up to its end, or the connection closes."""

    async def early(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")

    rest = get(target=b"/smuggled")
    if framing == "length":
        raw, end = post(b"Content-Length: %d" % len(rest)), rest
    else:
        raw, end = chunked(b"1\r\na\r\n"), b"%x\r\n%s\r\n0\r\n\r\n" % (len(rest), rest)
    async with Origin(by_target({b"/x": early})) as origin, gateway(origin) as g:
        async with g.client() as client:
            await client.send(raw)
            assert (await client.response()).status == 403
            await client.send(end + GOOD)
            client.half_close()
            remaining = await client.rest()
            assert remaining == b"" or remaining.count(b"HTTP/1.1 ") == 1
        assert (await g.ask(GOOD)).status == 200
        assert b"/smuggled" not in [request.target for request in origin.heads]
