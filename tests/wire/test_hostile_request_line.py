"""Cases 1 to 32: what can be wrong before the first header."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from gateway.config import Limits, Timeouts
from tests.harness import GOOD, gateway
from tests.wire.origin import BOUND, Origin
from tests.wire.table import (
    HOST,
    WAYS,
    Row,
    accepted,
    check_refusal,
    deliver,
    get,
    refused,
    table,
    untouched,
)


def line(raw: bytes) -> bytes:
    return raw + b"\r\n" + HOST + b"\r\n"


def target(raw: bytes) -> bytes:
    return get(target=raw)


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="a.test")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


BAD = [
    Row(3, "tab-after-method", line(b"GET\t/ HTTP/1.1")),
    Row(3, "tab-before-version", line(b"GET /\tHTTP/1.1")),
    Row(4, "two-spaces-after-method", line(b"GET  / HTTP/1.1")),
    Row(4, "two-spaces-before-version", line(b"GET /  HTTP/1.1")),
    Row(4, "leading-space", line(b" GET / HTTP/1.1")),
    Row(5, "trailing-space", line(b"GET / HTTP/1.1 ")),
    Row(5, "trailing-tab", line(b"GET / HTTP/1.1\t")),
    Row(6, "no-target", line(b"GET HTTP/1.1")),
    Row(6, "empty-target", line(b"GET  HTTP/1.1")),
    Row(7, "http-0.9", b"GET /\r\n\r\n"),
    Row(7, "http-0.9-with-headers", line(b"GET /")),
    Row(8, "no-minor", line(b"GET / HTTP/1")),
    Row(8, "zero-major", line(b"GET / HTTP/01.1")),
    Row(8, "space-in-version", line(b"GET / HTTP/ 1.1")),
    Row(8, "lowercase-http", line(b"GET / http/1.1")),
    Row(8, "long-minor", line(b"GET / HTTP/1.10")),
    Row(8, "no-dot", line(b"GET / HTTP/11")),
    Row(8, "letters", line(b"GET / HTTP/1.x")),
    Row(9, "http-2.0", line(b"GET / HTTP/2.0"), (505,)),
    Row(9, "http-9.9", line(b"GET / HTTP/9.9"), (505,)),
    Row(9, "http-0.9-named", line(b"GET / HTTP/0.9"), (400, 505)),
    Row(10, "http-1.2", line(b"GET / HTTP/1.2"), (505,)),
    Row(11, "rtsp", line(b"OPTIONS / RTSP/1.0")),
    Row(11, "ice", line(b"SOURCE / ICE/1.0")),
    Row(11, "rtsp-get", line(b"GET / RTSP/1.0")),
    Row(12, "bare-lf", b"GET / HTTP/1.1\n" + HOST + b"\r\n"),
    Row(12, "bare-lf-everywhere", b"GET / HTTP/1.1\nHost: a.test\n\n"),
    Row(13, "bare-cr", b"GET / HTTP/1.1\r" + HOST + b"\r\n"),
    Row(13, "bare-cr-in-target", line(b"GET /a\rb HTTP/1.1")),
    Row(14, "three-leading-crlf", b"\r\n\r\n\r\n" + get()),
    Row(14, "leading-lf", b"\n" + get()),
    *[Row(15, f"target-byte-{b:02x}", target(b"/a%cb" % b)) for b in (0, 1, 8, 0x1B, 0x1F, 0x7F)],
    *[Row(16, f"target-byte-{b:02x}", target(b"/a%cb" % b)) for b in (0x80, 0xA0, 0xC3, 0xFF)],
    Row(16, "target-utf8", target("/café".encode())),
    *[Row(17, f"target-byte-{b:02x}", target(b"/a%cb" % b)) for b in b'\\<>"{}|^`'],
    Row(18, "fragment", target(b"/a#frag")),
    Row(18, "fragment-only", target(b"/#")),
    Row(19, "space-in-target", target(b"/a b")),
    Row(20, "get-asterisk", target(b"*")),
    Row(20, "options-asterisk-and-more", line(b"OPTIONS *x HTTP/1.1")),
    Row(21, "no-slash", target(b"foo")),
    Row(21, "authority-form", target(b"a.test:80")),
    Row(21, "query-only", target(b"?a=b")),
    Row(23, "absolute-other-host", target(b"http://b.test/x")),
    Row(23, "absolute-other-port", target(b"http://a.test:81/x")),
    Row(23, "absolute-userinfo", target(b"http://u@a.test/x")),
    Row(23, "absolute-no-host", target(b"http:///x")),
    Row(23, "absolute-other-scheme", target(b"ftp://a.test/x")),
    Row(24, "target-8191", target(b"/" + b"a" * 8190), (414,)),
    Row(24, "target-60000", target(b"/" + b"a" * 59999), (414,)),
    Row(25, "method-33", line(b"A" * 33 + b" / HTTP/1.1")),
    Row(25, "method-not-a-token", line(b"GE(T / HTTP/1.1")),
    Row(25, "method-8-bit", line(b"G\xc9T / HTTP/1.1")),
    Row(25, "method-empty", line(b" / HTTP/1.1")),
    Row(26, "lowercase", line(b"get / HTTP/1.1")),
    Row(26, "mixed-case", line(b"Get / HTTP/1.1")),
    Row(27, "connect", b"CONNECT a.test:443 HTTP/1.1\r\n" + HOST + b"\r\n", (405,)),
    Row(27, "connect-origin-form", line(b"CONNECT / HTTP/1.1"), (405,)),
    Row(27, "connect-with-data", line(b"CONNECT a.test:80 HTTP/1.1") + GOOD, (405,)),
    Row(29, "binary", bytes(range(128, 256)) + b"\r\n\r\n"),
    Row(29, "nul-bytes", b"\x00" * 40 + b"\r\n\r\n"),
    Row(29, "client-hello", client_hello()),
    Row(30, "h2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (505,)),
    *[
        Row(32, f"dot-segment-{name}", target(raw))
        for name, raw in {
            "parent": b"/a/../b",
            "parent-first": b"/../b",
            "parent-last": b"/a/..",
            "same": b"/a/./b",
            "same-last": b"/a/.",
            "encoded": b"/a/%2e%2e/b",
            "encoded-upper": b"/a/%2E%2E/b",
            "half-encoded": b"/a/.%2e/b",
            "half-encoded-first": b"/a/%2e./b",
            "encoded-same": b"/a/%2e/b",
            "before-query": b"/a/..?x=1",
            "absolute-form": b"http://a.test/a/../b",
        }.items()
    ],
]


@table(BAD)
async def test_refused(row: Row, way: str) -> None:
    await refused(row, way)


@pytest.mark.parametrize("method", [b"TRACE", b"TRACK"])
@pytest.mark.parametrize("way", WAYS)
async def test_028_trace_is_refused_and_not_echoed(method: bytes, way: str) -> None:
    raw = line(method + b" / HTTP/1.1\r\nAuthorization: Bearer s3cret")
    async with Origin() as origin, gateway(origin) as g:
        async with g.client() as client:
            await deliver(client, raw, way)
            check_refusal(await client.response(), 405)
            await client.rest()
            assert b"s3cret" not in client.raw
        await untouched(origin, g, goods=2 if way == "pipelined" else 1)


GOOD_TARGETS = [
    Row(24, "target-8190", target(b"/" + b"a" * 8189)),
    Row(24, "target-8000", target(b"/" + b"a" * 7999)),
    Row(31, "nul-encoded", target(b"/a%00b")),
    Row(31, "crlf-encoded", target(b"/a%0d%0aX-Injected:%201")),
    Row(31, "query", target(b"/a?x=/../&y=%2e%2e")),
    Row(32, "two-slashes", target(b"/a//b")),
    Row(32, "two-slashes-first", target(b"//a")),
    Row(32, "slash-encoded", target(b"/a%2fb")),
    Row(32, "backslash-encoded", target(b"/a%5cb")),
    Row(32, "parameter", target(b"/a;p=1/b")),
    Row(32, "three-dots", target(b"/.../..a/b..")),
]


@table(GOOD_TARGETS)
async def test_forwarded_untouched(row: Row, way: str) -> None:
    request = await accepted(row, way)
    assert request.target == row.raw.split(b" ")[1]


ABSOLUTE = {
    b"http://a.test/x?y=1": b"/x?y=1",
    b"http://A.TEST/x": b"/x",
    b"HTTP://a.test/x": b"/x",
    b"http://a.test:80/x": b"/x",
    b"http://a.test": b"/",
    b"http://a.test?y=1": b"/?y=1",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("raw", ABSOLUTE)
async def test_022_absolute_form_of_the_same_host_is_rewritten(raw: bytes, way: str) -> None:
    request = await accepted(Row(22, "", target(raw)), way)
    assert request.target == ABSOLUTE[raw]
    assert request.one("host").lower() in {b"a.test", b"a.test:80"}


@pytest.mark.parametrize("way", WAYS)
async def test_020_options_asterisk_is_forwarded(way: str) -> None:
    request = await accepted(Row(20, "", line(b"OPTIONS * HTTP/1.1")), way)
    assert (request.method, request.target) == (b"OPTIONS", b"*")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", [b"PURGE", b"M-SEARCH", b"QUERY", b"A" * 32, b"X_Y1"])
async def test_025_unknown_methods_are_forwarded(method: bytes, way: str) -> None:
    request = await accepted(Row(25, "", line(method + b" /x HTTP/1.1")), way)
    assert request.method == method


@pytest.mark.parametrize("lines", [1, 2])
@pytest.mark.parametrize("way", WAYS)
async def test_014_up_to_two_leading_empty_lines_are_ignored(lines: int, way: str) -> None:
    request = await accepted(Row(14, "", b"\r\n" * lines + get()), way)
    assert request.target == b"/x"


async def test_024_the_limit_is_configurable() -> None:
    limits = Limits(target_bytes=20)
    await refused(Row(24, "", target(b"/" + b"a" * 20), (414,)), "whole", limits=limits)
    await accepted(Row(24, "", target(b"/" + b"a" * 19)), "whole", limits=limits)


@pytest.mark.parametrize("way", ["whole", "pipelined"])
async def test_001_a_connection_that_sends_nothing_ends(way: str) -> None:
    timeouts = Timeouts(head=0.2, idle=0.2)
    async with Origin() as origin, gateway(origin, timeouts=timeouts) as g:
        async with g.client() as client:
            await deliver(client, b"", way)
            rest = await client.rest()
            assert rest == b"" or rest.startswith(b"HTTP/1.1 408 ")
            assert client.ended == "eof"
        await untouched(origin, g, goods=2 if way == "pipelined" else 1)


@pytest.mark.parametrize("way", ["whole", "pipelined"])
@pytest.mark.parametrize(
    "part", [b"G", b"GET /x HTTP/1.1\r\nHo", b"GET /x HTTP/1.1\r\nHost: a\r\n"]
)
async def test_002_a_head_that_stays_unfinished_is_408(part: bytes, way: str) -> None:
    async with Origin() as origin, gateway(origin, timeouts=Timeouts(head=0.2)) as g:
        async with g.client() as client:
            await deliver(client, part, way)
            check_refusal(await client.response(), 408, reason="head_timeout")
            assert await client.rest() == b""
        await untouched(origin, g, goods=2 if way == "pipelined" else 1)


@pytest.mark.parametrize("after_good", [False, True])
async def test_056_the_head_deadline_is_total_not_per_byte(*, after_good: bool) -> None:
    """A byte every few milliseconds forever: each byte is in time, the head never is."""
    async with Origin() as origin, gateway(origin, timeouts=Timeouts(head=0.3)) as g:
        async with g.client() as client:
            await deliver(client, b"", "pipelined" if after_good else "whole")
            answer = asyncio.ensure_future(client.response())
            await client.send(b"GET /x HTTP/1.1\r\nX: ")
            async with asyncio.timeout(BOUND):
                while not answer.done():
                    await client.send(b"a")
                    await asyncio.wait([answer], timeout=0.01)
            check_refusal(answer.result(), 408, reason="head_timeout")
        await untouched(origin, g, goods=2 if after_good else 1)
