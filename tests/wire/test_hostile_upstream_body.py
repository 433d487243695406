"""Cases 130 to 133, 138 to 141, 144, 146: bodies that lie, connections that die."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from tests.harness import GOOD, Gateway, Retry, gateway
from tests.wire.client import TruncatedError
from tests.wire.origin import (
    OK,
    Connection,
    Origin,
    Request,
    answer,
    by_target,
    chunks,
    crash,
    each,
    slam,
)
from tests.wire.table import WAYS, check_refusal, chunked, deliver, get, post

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def counted(length: int, body: bytes, *lines: bytes) -> bytes:
    extra = b"".join(line + b"\r\n" for line in lines)
    return HEAD + b"Content-Length: %d\r\n%s\r\n%s" % (length, extra, body)


TRUNCATED = {
    "130-bad-size": (CHUNKED + b"5\r\nhello\r\nzz\r\n", False),
    "130-size-with-prefix": (CHUNKED + b"5\r\nhello\r\n0x5\r\nhello\r\n0\r\n\r\n", False),
    "130-bare-lf": (CHUNKED + b"5\r\nhello\r\n5\nhello\r\n0\r\n\r\n", False),
    "130-spill": (CHUNKED + b"5\r\nhello\r\n3\r\nhello\r\n0\r\n\r\n", False),
    "130-overflow": (CHUNKED + b"5\r\nhello\r\nfffffffffffffffff\r\n", False),
    "130-bad-trailer": (CHUNKED + b"5\r\nhello\r\n0\r\nA : b\r\n\r\n", False),
    "131-short": (counted(10, b"hello"), True),
    "131-chunked-ends-between": (CHUNKED + b"5\r\nhello\r\n", True),
    "131-chunked-ends-inside": (CHUNKED + b"5\r\nhello\r\n5\r\nhe", True),
    "131-chunked-no-final-crlf": (CHUNKED + b"5\r\nhello\r\n0\r\n", True),
}


@pytest.mark.parametrize("name", TRUNCATED)
@pytest.mark.parametrize("way", WAYS)
async def test_a_truncated_body_is_visibly_truncated(name: str, way: str) -> None:
    """Never a clean end: no last chunk, no full length. The head may be 200, or a 502 in time."""
    raw, close = TRUNCATED[name]
    async with Origin(by_target({b"/x": answer(raw, close=close)})) as origin, gateway(origin) as g:
        async with g.client() as client:
            await deliver(client, get(), way)
            try:
                check_refusal(await client.response(), 502)
            except TruncatedError as truncated:
                assert b"hello".startswith(truncated.body[:5])  # noqa: PT017
        await origin.until(lambda: all(c.gone for c in origin.connections if _asked(c, b"/x")))
        assert (await g.ask(GOOD)).body == b"ok"


def _asked(connection: Connection, target: bytes) -> bool:
    return connection.requests[-1].target == target


async def test_131_a_body_that_stops_after_the_head_went_out_is_truncated() -> None:
    """The client has seen the head and the first bytes: from here only an abort is honest."""
    stop = asyncio.Event()

    async def script(connection: Connection, request: Request) -> None:
        connection.send(CHUNKED + b"5\r\nhello\r\n")
        await stop.wait()
        connection.reset()

    async with Origin(script) as origin, gateway(origin) as g, g.client() as client:
        await client.send(get())
        assert (await client.head()).status == 200
        assert await client.chunk() == b"hello"
        stop.set()
        assert await client.rest() == b""


EXTRA = {
    "132-after-length": counted(2, b"okHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"),
    "132-after-chunked": CHUNKED + chunks([b"ok"]) + counted(6, b"poison"),
    "132-garbage": counted(2, b"ok\x00\x01"),
    "132-one-byte": counted(2, b"ok\n"),
}


@pytest.mark.parametrize("name", EXTRA)
@pytest.mark.parametrize("way", WAYS)
async def test_extra_bytes_reach_nobody(name: str, way: str) -> None:
    async with Origin(by_target({b"/x": answer(EXTRA[name])})) as origin, gateway(origin) as g:
        async with g.client() as client:
            await deliver(client, get(), way)
            assert (await client.response()).body == b"ok"
            await origin.until(lambda: origin.connections[-1].gone)
            await client.send(GOOD)
            assert (await client.response()).body == b"ok"
        assert (await g.ask(GOOD)).body == b"ok"


@pytest.mark.parametrize(
    "noise", [b"x", OK, b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"]
)
async def test_133_unsolicited_bytes_on_an_idle_connection_close_it(noise: bytes) -> None:
    async with Origin() as origin, gateway(origin) as g:
        assert (await g.ask(GOOD)).status == 200
        origin.connections[0].send(noise)
        await origin.until(lambda: origin.connections[0].gone)
        response = await g.ask(get())
        assert (response.status, response.body) == (200, b"ok")
        assert [len(c.requests) for c in origin.connections] == [1, 1]


NO_BODY = {
    "204": (b"GET", b"HTTP/1.1 204 No Content\r\n\r\npoison"),
    "204-length": (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison"),
    "204-chunked": (b"GET", CHUNKED.replace(b"200", b"204") + chunks([b"poison"])),
    "304": (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\npoison"),
    "head": (b"HEAD", counted(6, b"poison")),
    "head-chunked": (b"HEAD", CHUNKED + chunks([b"poison"])),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_BODY)
@pytest.mark.parametrize("way", WAYS)
async def test_138_bodies_where_none_may_be_are_not_forwarded(name: str, way: str) -> None:
    method, raw = NO_BODY[name]
    async with (
        Origin(by_target({b"/x": answer(raw)})) as origin,
        gateway(origin) as g,
        g.client() as client,
    ):
        await deliver(client, method + get()[3:], way)
        response = await client.response(method)
        if response.status != 502:
            await origin.until(lambda: origin.connections[-1].gone)
            await client.send(GOOD)
            assert (await client.response()).body == b"ok"
            assert b"poison" not in client.raw


async def test_138_the_length_of_a_head_answer_and_of_304_is_kept() -> None:
    not_modified = b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"
    scripts = {b"/x": answer(counted(6, b"")), b"/y": answer(not_modified)}
    async with Origin(by_target(scripts)) as origin, gateway(origin) as g, g.client() as client:
        await client.send(b"HEAD" + get()[3:])
        assert (await client.response(b"HEAD")).values("content-length") == [b"6"]
        await client.send(get(target=b"/y"))
        response = await client.response()
        assert (response.status, response.one("etag")) == (304, b"x")
        assert response.values("transfer-encoding") == []
        await client.send(GOOD)
        assert (await client.response()).body == b"ok"
        assert len(origin.connections) == 1


async def test_139_a_body_that_ends_with_its_connection_is_framed_anew() -> None:
    raw = HEAD + b"\r\nuntil the end"
    async with Origin(by_target({b"/x": answer(raw, close=True)})) as origin, gateway(origin) as g:
        async with g.client() as client:
            await client.send(get())
            response = await client.response()
            assert (response.framing, response.body) == ("chunked", b"until the end")
            await client.send(GOOD)
            assert (await client.response()).body == b"ok"
        async with g.client() as client:
            await client.send(get(b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"))
            response = await client.response()
            assert (response.framing, response.body) == ("close", b"until the end")
            assert client.ended == "eof"


async def test_139_a_chunked_answer_is_not_chunked_for_1_0() -> None:
    raw = CHUNKED + chunks([b"ab", b"cd"])
    async with Origin(answer(raw)) as origin, gateway(origin) as g, g.client() as client:
        await client.send(get().replace(b"HTTP/1.1", b"HTTP/1.0"))
        response = await client.response()
        assert (response.framing, response.body) == ("close", b"abcd")


async def warm(origin: Origin, g: Gateway) -> None:
    """Leave one idle connection in the pool."""
    assert (await g.ask(GOOD)).status == 200
    assert origin.open == 1


REPLAYED = {
    "get": get(),
    "put": b"PUT" + post(b"Content-Length: 5", body=b"hello")[4:],
    "chat": post(b"Content-Length: 5", body=b"hello", target=b"/v1/chat/completions"),
    "keyed": post(b"Idempotency-Key: k", b"Content-Length: 5", body=b"hello"),
    "chunked": b"PUT" + chunked(b"5\r\nhello\r\n0\r\n\r\n")[4:],
}


@pytest.mark.parametrize("end", [slam, crash])
@pytest.mark.parametrize("name", REPLAYED)
async def test_140_a_stale_connection_is_replaced_once(name: str, end: object) -> None:
    script = each(answer(OK), end, answer(OK))  # type: ignore[arg-type]
    async with Origin(script) as origin, gateway(origin, retry=Retry()) as g:
        await warm(origin, g)
        response = await g.ask(REPLAYED[name])
        assert (response.status, response.body) == (200, b"ok")
        assert [len(c.requests) for c in origin.connections] == [2, 1]
        assert bytes(origin.requests[-1].body) == (b"" if name == "get" else b"hello")


@pytest.mark.parametrize("end", [slam, crash])
@pytest.mark.parametrize("target", [b"/x", b"/v1/files", b"/v1/batches", b"/v1/responses"])
async def test_140_a_post_that_was_sent_is_not_replayed(target: bytes, end: object) -> None:
    async def stale(connection: Connection, request: Request) -> None:
        await connection.body(request)
        await end(connection, request)  # type: ignore[operator]

    script = each(answer(OK), stale, answer(OK))
    async with Origin(script) as origin, gateway(origin, retry=Retry()) as g:
        await warm(origin, g)
        response = await g.ask(post(b"Content-Length: 5", body=b"hello", target=target))
        check_refusal(response, 502, reason="upstream_reset")
        assert [request.target for request in origin.heads] == [b"/good", target]


@pytest.mark.parametrize("end", [slam, crash])
async def test_140_a_fresh_connection_that_dies_is_no_stale_one(end: object) -> None:
    async with Origin(end) as origin, gateway(origin) as g:  # type: ignore[arg-type]
        check_refusal(await g.ask(get()), 502, reason="upstream_reset")
        assert len(origin.heads) == 1


async def test_141_a_refused_connection_is_502() -> None:
    # Not a port that was just closed: the gateway's own listener may be given that one.
    async with gateway("http://127.0.0.1:1") as g, g.client() as client:
        for _ in range(2):
            await client.send(get())
            check_refusal(await client.response(), 502, reason="connect_failed")
        await client.send(post(b"Content-Length: 5", body=b"hello"))
        check_refusal(await client.response(), 502, reason="connect_failed")


async def test_141_a_connection_that_is_accepted_and_reset_is_502() -> None:
    async with Origin(greet=Connection.reset) as origin, gateway(origin) as g:
        response = await g.ask(get())
        check_refusal(response, 502)
        assert response.one("x-tailrace-reason") in {b"upstream_reset", b"connect_failed"}


async def test_141_a_name_that_does_not_resolve_is_502() -> None:
    async with gateway("http://nowhere.invalid:80") as g:
        response = await g.ask(get())
        check_refusal(response, 502, 503)
        assert response.one("x-tailrace-reason") in {b"connect_failed", b"no_endpoint"}


async def test_144_the_pool_follows_what_the_upstream_says() -> None:
    closing = answer(counted(2, b"ok", b"Connection: close"))
    old = answer(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")
    kept = answer(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")
    script = each(answer(OK), closing, answer(OK), old, kept, answer(OK))
    async with Origin(script) as origin, gateway(origin) as g, g.client() as client:
        for _ in range(6):
            await client.send(get())
            response = await client.response()
            assert (response.status, response.body, response.closes) == (200, b"ok", False)
        assert [len(c.requests) for c in origin.connections] in ([2, 2, 2], [2, 2, 1, 1])
        await origin.until(lambda: origin.connections[0].gone and origin.connections[1].gone)


async def test_146_coded_bodies_pass_untouched() -> None:
    """A gzip bomb of 10 MB in 10 KB is 10 KB to a proxy that never unpacks."""
    body = gzip.compress(bytes(10_000_000))
    raw = counted(len(body), body, b"Content-Encoding: gzip")
    async with Origin(answer(raw)) as origin, gateway(origin) as g, g.client() as client:
        await client.send(get(b"Accept-Encoding: gzip"))
        response = await client.response()
        assert response.one("content-encoding") == b"gzip"
        assert response.body == body
        assert origin.requests[0].one("accept-encoding") == b"gzip"
        upload = post(b"Content-Encoding: gzip", b"Content-Length: %d" % len(body), body=body)
        await client.send(upload)
        assert (await client.response()).status == 200
        assert origin.requests[1].body == body
