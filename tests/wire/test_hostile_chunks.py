"""Cases 94 to 111: the grammar of chunks, extensions and trailers."""

from __future__ import annotations

import pytest

from tests.harness import gateway
from tests.wire.client import TruncatedError
from tests.wire.origin import Origin, chunks
from tests.wire.table import (
    WAYS,
    Row,
    accepted,
    check_refusal,
    chunked,
    deliver,
    refused,
    table,
    untouched,
)

END = b"0\r\n\r\n"
REST = b"\r\nhello\r\n" + END


def size(raw: bytes) -> bytes:
    return chunked(raw + REST)


def trailers(*lines: bytes) -> bytes:
    return chunked(b"5\r\nhello\r\n0\r\n" + b"".join(each + b"\r\n" for each in lines) + b"\r\n")


BAD = [
    Row(94, "empty", size(b"")),
    Row(95, "hex-prefix", size(b"0x5")),
    Row(95, "plus", size(b"+5")),
    Row(95, "minus", size(b"-1")),
    Row(95, "digit-separator", size(b"1_0")),
    Row(95, "leading-space", size(b" 5")),
    Row(95, "leading-tab", size(b"\t5")),
    Row(95, "trailing-space", size(b"5 ")),
    Row(95, "trailing-tab", size(b"5\t")),
    Row(95, "space-before-extension", size(b"5 ;a")),
    Row(95, "letter", size(b"g")),
    Row(95, "8-bit", size(b"\xb5")),
    Row(95, "unicode-digit", size("\uff15".encode())),
    Row(96, "17-digits", size(b"F" * 17)),
    Row(96, "16-digits-overflow", size(b"F" * 16), (400, 413)),
    Row(96, "leading-zeros", size(b"0" * 20 + b"5")),
    Row(96, "wraps-to-five", size(b"10000000000000005")),
    Row(97, "bare-lf-after-size", chunked(b"5\nhello\r\n" + END)),
    Row(97, "bare-lf-after-last-size", chunked(b"5\r\nhello\r\n0\n\r\n")),
    Row(97, "bare-lf-ends-trailers", chunked(b"5\r\nhello\r\n0\r\n\n")),
    Row(98, "bare-cr-after-size", chunked(b"5\rhello\r\n" + END)),
    Row(98, "cr-cr-lf-after-size", chunked(b"5\r\r\nhello\r\n" + END)),
    Row(99, "bare-lf-after-data", chunked(b"5\r\nhello\n" + END)),
    Row(99, "bare-cr-after-data", chunked(b"5\r\nhello\r" + END)),
    Row(100, "no-crlf-after-data", chunked(b"5\r\nhello" + END)),
    Row(101, "junk-after-data", chunked(b"5\r\nhelloXX" + END)),
    Row(102, "spill", chunked(b"5\r\nhelloworld\r\n" + END)),
    Row(102, "spill-by-one", chunked(b"5\r\nhello!\r\n" + END)),
    Row(103, "extension-bare-semicolon", size(b"5;")),
    Row(103, "extension-bad-token", size(b"5;a(b")),
    Row(103, "extension-no-name", size(b"5;=b")),
    Row(103, "extension-ctl", size(b"5;a=\x01")),
    Row(103, "extension-nul", size(b"5;a=\x00")),
    Row(103, "extension-cr", size(b"5;a\rb")),
    Row(103, "extension-lf", size(b"5;a\nb")),
    Row(103, "extension-lf-end", chunked(b"5;a\nhello\r\n" + END)),
    Row(103, "extension-unclosed-quote", size(b'5;a="b')),
    Row(103, "extension-lf-in-quotes", size(b'5;a="b\nc"')),
    Row(105, "extension-5k", size(b"5;a=" + b"b" * 5000)),
    Row(105, "extensions-5k-together", chunked((b"1;a=" + b"b" * 96 + b"\r\nx\r\n") * 60 + END)),
    Row(107, "33-trailers", trailers(*[b"X-%d: 1" % i for i in range(33)]), (400, 431)),
    Row(107, "trailers-9k", trailers(b"X-A: " + b"a" * 9000), (400, 431)),
    Row(107, "trailers-9k-forbidden", trailers(*[b"Cookie: " + b"a" * 900] * 10), (400, 431)),
    Row(107, "33-forbidden-trailers", trailers(*[b"Host: a"] * 33), (400, 431)),
    Row(108, "trailer-obs-fold", trailers(b"X-A: 1", b" 2")),
    Row(108, "trailer-space-before-colon", trailers(b"X-A : 1")),
    Row(108, "trailer-empty-name", trailers(b": 1")),
    Row(108, "trailer-bad-name", trailers(b"X(A: 1")),
    Row(108, "trailer-no-colon", trailers(b"XA")),
    Row(108, "trailer-ctl", trailers(b"X-A: \x01")),
    Row(108, "trailer-nul", trailers(b"X-A: \x00")),
    Row(108, "trailer-bare-cr", trailers(b"X-A: 1\rX")),
    Row(108, "trailer-bare-lf", trailers(b"X-A: 1\nX-B: 2")),
    Row(111, "after-ten-good", chunked(chunks([b"good"] * 10)[:-5] + b"zz\r\n")),
]


@table(BAD)
async def test_refused(row: Row, way: str) -> None:
    await refused(row, way, mid_body=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "raw",
    [b"5;a", b"5;a=b", b'5;a="b"', b'5;a="b\\"c;d"', b"5;a=b;c=d;e", b"005", b"5;a=" + b"b" * 4000],
)
async def test_104_valid_extensions_are_accepted_and_dropped(raw: bytes, way: str) -> None:
    """The origin's reader takes a bare size only, so that an extension forwarded would show."""
    request = await accepted(Row(104, "", size(raw)), way)
    assert request.body == b"hello"


FORBIDDEN = [
    b"Host: b.test",
    b"Content-Length: 9",
    b"Transfer-Encoding: chunked",
    b"Authorization: Bearer x",
    b"Cookie: a=b",
    b"Content-Type: a/b",
    b"Content-Encoding: gzip",
    b"Connection: close",
    b"X-Forwarded-For: 9.9.9.9",
    b"X-Request-Timeout-Ms: 1",
    b"X-Tailrace-Reason: x",
]


@pytest.mark.parametrize("way", WAYS)
async def test_106_forbidden_trailers_are_dropped_and_others_forwarded(way: str) -> None:
    raw = trailers(*FORBIDDEN, b"X-Checksum: abc", b"x-checksum: def")
    request = await accepted(Row(106, "", raw), way)
    assert [(key.lower(), value) for key, value in request.trailers] == [
        (b"x-checksum", b"abc"),
        (b"x-checksum", b"def"),
    ]
    for line in FORBIDDEN:
        name, _, value = line.partition(b": ")
        if name != b"Transfer-Encoding":
            assert value not in request.values(name.decode().lower())


@pytest.mark.parametrize("way", WAYS)
async def test_107_as_many_trailers_as_allowed_pass(way: str) -> None:
    request = await accepted(Row(107, "", trailers(*[b"X-%d: 1" % i for i in range(32)])), way)
    assert len(request.trailers) == 32


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", [b"0", b"0\r\n", b"0\r\nX-A: 1\r\n", b"0\r\n\r"])
async def test_109_a_last_chunk_without_its_end_is_incomplete(end: bytes, way: str) -> None:
    async with Origin() as origin, gateway(origin) as g:
        async with g.client() as client:
            await deliver(client, chunked(b"5\r\nhello\r\n" + end), way)
            client.half_close()
            rest = await client.rest()
            assert rest == b"" or rest.startswith(b"HTTP/1.1 400 ")
        await untouched(origin, g, goods=2 if way == "pipelined" else 1, mid_body=True)


async def test_110_a_hundred_thousand_chunks_of_one_byte_are_coalesced() -> None:
    async with Origin() as origin, gateway(origin) as g, g.client() as client:
        await client.send(chunked(b"1\r\nx\r\n" * 100_000 + END))
        assert (await client.response()).status == 200
        (request,) = origin.requests
        assert request.body == b"x" * 100_000
        assert request.chunks < 10_000


@pytest.mark.parametrize("way", WAYS)
async def test_111_a_bad_chunk_late_in_a_stream_ends_the_upstream_connection(way: str) -> None:
    async with Origin() as origin, gateway(origin) as g:
        async with g.client() as client:
            await deliver(client, chunked(b"5\r\nfirst\r\n"), way)
            for count in range(3):
                # The body is on its way while it is still being sent.
                await origin.until(lambda: bool(origin.heads and origin.heads[-1].target == b"/x"))
                request = origin.heads[-1]
                await origin.until(lambda n=count, r=request: len(r.body) == 5 * (n + 1))  # type: ignore[misc]
                await client.send(b"5\r\nagain\r\n")
            await client.send(b"BAD\r")
            await client.send(b"x")
            try:
                check_refusal(await client.response(), 400)
            except TruncatedError as truncated:
                assert truncated.raw.endswith(b"ok") or not truncated.raw  # noqa: PT017
            await origin.until(lambda: origin.open == 0)
        await untouched(origin, g, goods=2 if way == "pipelined" else 1, mid_body=True)
