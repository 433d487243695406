"""Cases 60 to 75: Content-Length, and bodies that are not as long as it says."""

from __future__ import annotations

import pytest

from gateway.config import Limits, Timeouts
from tests.harness import GOOD, gateway
from tests.wire.origin import Origin
from tests.wire.table import (
    WAYS,
    Row,
    accepted,
    check_refusal,
    chunked,
    deliver,
    post,
    refused,
    table,
    untouched,
)


def length(value: bytes, *more: bytes, body: bytes = b"hello") -> bytes:
    return post(b"Content-Length:" + value, *more, body=body)


BAD = [
    Row(60, "non-numeric", length(b" five")),
    Row(60, "digit-and-letter", length(b" 1Z")),
    Row(60, "decimal-point", length(b" 5.0")),
    Row(60, "exponent", length(b" 5e0")),
    Row(61, "plus", length(b" +5")),
    Row(62, "minus-one", length(b" -1")),
    Row(62, "minus-zero", length(b" -0")),
    Row(63, "hex", length(b" 0x5")),
    Row(63, "octal", length(b" 0o5")),
    Row(64, "digit-separator", length(b" 1_0")),
    Row(65, "space-inside", length(b" 1 0")),
    Row(65, "tab-inside", length(b" 1\t0")),
    Row(66, "empty", length(b"")),
    Row(66, "blank", length(b"  ")),
    Row(67, "list-of-equals", length(b" 5, 5")),
    Row(67, "list-without-space", length(b" 5,5")),
    Row(67, "two-equal-lines", length(b" 5", b"Content-Length: 5")),
    Row(67, "trailing-comma", length(b" 5,")),
    Row(68, "two-different-lines", length(b" 5", b"content-length: 6")),
    Row(68, "zero-and-five", length(b" 0", b"Content-Length: 5")),
    Row(68, "list-of-different", length(b" 5, 6")),
    Row(69, "2-to-the-63", length(b" 9223372036854775808")),
    Row(69, "2-to-the-64-plus-5", length(b" 18446744073709551621")),
    Row(69, "thirty-digits", length(b" " + b"9" * 30)),
    Row(69, "four-thousand-digits", length(b" " + b"1" * 4500)),
    Row(70, "leading-zeros", length(b" 005")),
    Row(70, "leading-zero", length(b" 05")),
    Row(70, "two-zeros", length(b" 00")),
    Row(71, "nbsp-before", length(b" \xa05")),
    Row(71, "nbsp-after", length(b" 5\xa0")),
    Row(71, "unicode-digit", length(b" " + "\u0665".encode())),
    Row(71, "fullwidth-digit", length(b" " + "\uff15".encode())),
    Row(71, "vertical-tab-after", length(b" 5\x0b")),
    Row(71, "nul-after", length(b" 5\x00")),
    Row(68, "get-with-two-lengths", b"GET" + length(b" 5", b"Content-Length: 6")[4:]),
    Row(67, "1.0", length(b" 5, 5").replace(b"HTTP/1.1", b"HTTP/1.0")),
]


@table(BAD)
async def test_refused(row: Row, way: str) -> None:
    await refused(row, way)


TOO_LARGE = [
    Row(72, "declared", length(b" 1001", body=b""), (413,)),
    Row(72, "declared-huge", length(b" 999999999999999999", body=b""), (413,)),
    Row(72, "declared-and-sent", length(b" 1001", body=b"a" * 1001), (413,)),
]


@table(TOO_LARGE)
async def test_too_large_is_refused_before_its_body(row: Row, way: str) -> None:
    await refused(row, way, limits=Limits(body_bytes=1000))


@pytest.mark.parametrize("way", WAYS)
async def test_072_a_chunked_body_is_counted_as_it_comes(way: str) -> None:
    row = Row(72, "", chunked(b"1f4\r\n" + b"a" * 500 + b"\r\n" + b"1f5\r\n" + b"b" * 501), (413,))
    await refused(row, way, mid_body=True, limits=Limits(body_bytes=1000))


@pytest.mark.parametrize("way", WAYS)
async def test_072_a_body_of_the_limit_passes(way: str) -> None:
    limits = Limits(body_bytes=1000)
    request = await accepted(Row(72, "", length(b" 1000", body=b"a" * 1000)), way, limits=limits)
    assert request.body == b"a" * 1000
    assert request.values("content-length") == [b"1000"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sent", [b"", b"some"])
async def test_073_a_body_that_stops_coming_is_408(sent: bytes, way: str) -> None:
    async with Origin() as origin, gateway(origin, timeouts=Timeouts(body_idle=0.2)) as g:
        async with g.client() as client:
            await deliver(client, length(b" 999999999", body=sent), way)
            check_refusal(await client.response(), 408, reason="body_timeout")
            assert await client.rest() == b""
        goods = 2 if way == "pipelined" else 1
        await untouched(origin, g, goods=goods, mid_body=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "raw",
    [length(b" 9", body=b"short"), chunked(b"5\r\nhello\r\n"), chunked(b"5\r\nhel"), chunked(b"")],
    ids=["length", "chunked-between", "chunked-inside", "chunked-nothing"],
)
async def test_074_a_short_body_never_becomes_a_complete_message(raw: bytes, way: str) -> None:
    async with Origin() as origin, gateway(origin) as g:
        async with g.client() as client:
            await deliver(client, raw, way)
            client.half_close()
            rest = await client.rest()
            assert rest == b"" or rest.startswith(b"HTTP/1.1 400 ")
        await untouched(origin, g, goods=2 if way == "pipelined" else 1, mid_body=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "raw", [length(b" 0", body=b""), length(b" 5"), chunked(b"5\r\nhello\r\n0\r\n\r\n")]
)
async def test_075_bytes_behind_a_body_are_the_next_request(raw: bytes, way: str) -> None:
    async with Origin() as origin, gateway(origin) as g, g.client() as client:
        await deliver(client, raw + GOOD, way)
        for _ in range(2):
            assert (await client.response()).body == b"ok"
        assert [r.target for r in origin.requests[-2:]] == [b"/x", b"/good"]


@pytest.mark.parametrize("way", WAYS)
async def test_075_garbage_behind_a_body_is_a_bad_request(way: str) -> None:
    async with Origin() as origin, gateway(origin) as g:
        async with g.client() as client:
            await deliver(client, length(b" 0", body=b"hello\r\n\r\n"), way)
            assert (await client.response()).body == b"ok"
            check_refusal(await client.response(), 400)
            assert await client.rest() == b""
        assert {bytes(r.body) for r in origin.requests} == {b""}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", [b"GET", b"OPTIONS", b"DELETE", b"HEAD"])
async def test_bodies_of_methods_that_seldom_have_one_are_forwarded(
    method: bytes, way: str
) -> None:
    """Dropping the body and its length would make its bytes the next request (0.CL)."""
    async with Origin() as origin, gateway(origin) as g, g.client() as client:
        await deliver(client, method + length(b" 5")[4:], way)
        response = await client.response(b"HEAD")
        assert response.status == 200
        if method != b"HEAD":
            assert await client.exactly(2) == b"ok"
        request = origin.requests[-1]
        assert (request.method, bytes(request.body)) == (method, b"hello")


@pytest.mark.parametrize("way", WAYS)
async def test_optional_whitespace_around_a_length_is_fine(way: str) -> None:
    request = await accepted(Row(71, "", length(b" \t5 \t")), way)
    assert request.one("content-length") == b"5"
