"""Cases 43 to 59: header syntax, sizes and counts."""

from __future__ import annotations

import pytest

from gateway.config import Limits
from tests.wire.table import HOST, WAYS, Row, accepted, get, post, refused, table

BAD = [
    Row(43, "space-before-colon", get(b"X-A : 1")),
    Row(43, "tab-before-colon", get(b"X-A\t: 1")),
    Row(44, "no-colon", get(b"NoColon")),
    Row(45, "empty-name", get(b": value")),
    *[
        Row(46, f"name-byte-{byte:02x}", get(b"X%cA: 1" % byte))
        for byte in (0, 1, 0x20, 0x22, 0x28, 0x2C, 0x2F, 0x3B, 0x3D, 0x40, 0x5B, 0x7F, 0x80, 0xE9)
    ],
    Row(47, "space-before-first", b"GET /x HTTP/1.1\r\n " + HOST + b"\r\n"),
    Row(47, "tab-before-first", b"GET /x HTTP/1.1\r\n\t" + HOST + b"\r\n"),
    Row(48, "obs-fold-space", get(b"X-A: 1", b" 2")),
    Row(48, "obs-fold-tab", get(b"X-A: 1", b"\t2")),
    Row(48, "obs-fold-empty", get(b"X-A: 1", b" ")),
    Row(49, "bare-lf-after-value", get(b"X-A: 1\nX-B: 2")),
    Row(49, "bare-lf-ends-head", get(b"X-A: 1")[:-2] + b"\n"),
    Row(50, "bare-cr-in-value", get(b"X-A: 1\rX-B: 2")),
    *[
        Row(51, f"value-byte-{byte:02x}", get(b"X-A: 1%c2" % byte))
        for byte in (0, 1, 8, 0x0B, 0x0C, 0x0E, 0x1B, 0x1F, 0x7F)
    ],
    Row(52, "crlf-cr", get(b"X-A: 1")[:-2] + b"\rX"),
    Row(53, "block-over-64k", get(*[b"X-%d: " % i + b"a" * 4000 for i in range(18)]), (431,)),
    Row(54, "101-headers", get(*[b"X-%d: 1" % i for i in range(100)]), (431,)),
    Row(54, "5000-headers", get(*[b"X: 1"] * 5000), (431,)),
    Row(55, "one-value-100k", get(b"X-A: " + b"a" * 100_000), (431,)),
    Row(55, "one-name-100k", get(b"a" * 100_000 + b": 1"), (431,)),
    Row(57, "underscore-length", post(b"Content_Length: 5", body=b"hello")),
    Row(57, "underscore-coding", post(b"Transfer_Encoding: chunked", body=b"0\r\n\r\n")),
    Row(57, "underscore-forwarded", get(b"X_Forwarded_For: 1.2.3.4")),
    Row(57, "underscore-forwarded-mixed", get(b"X-Forwarded_Proto: https")),
    Row(57, "underscore-deadline", get(b"x_request_timeout_ms: 1")),
    Row(58, "two-content-types", post(b"Content-Type: a/b", b"content-type: a/c")),
    Row(58, "two-authorizations", get(b"Authorization: Bearer a", b"Authorization: Bearer b")),
    Row(58, "two-content-codings", post(b"Content-Encoding: gzip", b"Content-Encoding: br")),
    Row(59, "1000-cookie-lines", get(*[b"Cookie: a=b"] * 1000), (431,)),
    Row(59, "cookie-64k", get(b"Cookie: a=" + b"b" * 65536), (431,)),
]


@table(BAD)
async def test_refused(row: Row, way: str) -> None:
    await refused(row, way)


@pytest.mark.parametrize("way", WAYS)
async def test_054_as_many_headers_as_allowed_pass(way: str) -> None:
    request = await accepted(Row(54, "", get(*[b"X-%d: 1" % i for i in range(99)])), way)
    assert len([key for key, _ in request.headers if key.lower().startswith(b"x-")]) >= 99


@pytest.mark.parametrize("way", WAYS)
async def test_053_a_head_just_below_the_limit_passes(way: str) -> None:
    lines = [b"X-%d: " % i + bytes([97 + i]) * 6000 for i in range(10)]
    request = await accepted(Row(53, "", get(*lines)), way)
    for i in range(10):
        assert request.one(f"x-{i}") == bytes([97 + i]) * 6000


async def test_053_the_limits_are_configurable() -> None:
    limits = Limits(head_bytes=1000, headers=3)
    await refused(Row(53, "", get(b"X: " + b"a" * 1000), (431,)), "whole", limits=limits)
    await refused(Row(54, "", get(b"X: 1", b"Y: 1", b"Z: 1"), (431,)), "whole", limits=limits)
    await accepted(Row(54, "", get(b"X: 1", b"Y: 1")), "whole", limits=limits)


@pytest.mark.parametrize("way", WAYS)
async def test_053_an_unfinished_head_is_refused_at_the_limit(way: str) -> None:
    """Not at its end, which may never come."""
    raw = get(b"X-A: " + b"a" * 70_000)[:-4]
    await refused(Row(53, "", raw, (431,)), way)


@pytest.mark.parametrize("way", WAYS)
async def test_057_other_underscores_pass(way: str) -> None:
    request = await accepted(Row(57, "", get(b"my_header: 1")), way)
    assert request.one("my_header") == b"1"


@pytest.mark.parametrize("way", WAYS)
async def test_059_a_thousand_cookies_in_one_line_pass(way: str) -> None:
    cookies = b"; ".join(b"c%d=v%d" % (i, i) for i in range(1000))
    request = await accepted(Row(59, "", get(b"Cookie: " + cookies)), way)
    assert request.one("cookie") == cookies


@pytest.mark.parametrize("way", WAYS)
async def test_051_tab_and_8_bit_values_pass_untouched(way: str) -> None:
    request = await accepted(Row(51, "", get("X-A: a\tb é".encode(), b"X-B: \xff\x80")), way)
    assert request.one("x-a") == "a\tb é".encode()
    assert request.one("x-b") == b"\xff\x80"


@pytest.mark.parametrize("way", WAYS)
async def test_header_lines_keep_their_order_and_number(way: str) -> None:
    lines = [b"X-A: 1", b"X-B: 2", b"X-A: 3", b"Accept:", b"x-a: 4"]
    request = await accepted(Row(0, "", get(*lines)), way)
    assert request.values("x-a") == [b"1", b"3", b"4"]
    assert request.values("accept") == [b""]
