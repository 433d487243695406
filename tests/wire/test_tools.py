"""The tools of these tests, tried on each other: a deaf origin would let every test pass."""

from __future__ import annotations

import pytest

from tests.wire.client import Client, MalformedError, TruncatedError
from tests.wire.origin import Origin, answer, chunks, crash, echo

REQUEST = b"POST /a HTTP/1.1\r\nHost: t\r\n"


async def dial(origin: Origin) -> Client:
    return await Client.connect(("127.0.0.1", origin.port))


async def test_origin_reads_both_framings_byte_by_byte() -> None:
    async with Origin(echo) as origin:
        async with await dial(origin) as client:
            await client.drip(REQUEST + b"Content-Length: 5\r\n\r\nhello")
            assert (await client.response()).body == b"hello"
            await client.drip(
                REQUEST
                + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nX-T: 1\r\n\r\n"
            )
            assert (await client.response()).body == b"hello"
        assert [r.chunks for r in origin.requests] == [0, 2]
        assert origin.requests[1].trailers == [(b"X-T", b"1")]
        await origin.until(lambda: origin.open == 0)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET  /a HTTP/1.1\r\nHost: t\r\n\r\n",
        b"GET /a HTTP/1.1\r\n\r\n",
        REQUEST + b"Content-Length: 05\r\n\r\nhello",
        REQUEST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        REQUEST + b"Transfer-Encoding: Chunked\r\n\r\n",
        REQUEST + b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\n",
        b"GET /a HTTP/1.1\r\nHost: t\r\nA : b\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: t\r\n folded\r\n\r\n",
    ],
)
async def test_origin_notices_what_a_gateway_must_not_send(raw: bytes) -> None:
    async def offend() -> None:
        async with Origin() as origin, await dial(origin) as client:
            await client.send(raw)
            await origin.until(lambda: bool(origin.violations))

    with pytest.raises(AssertionError):
        await offend()


async def test_client_sees_truncation_and_resets() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"
    async with Origin(answer(head, close=True)) as origin, await dial(origin) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        with pytest.raises(TruncatedError):
            await client.response()
        assert client.ended == "eof"


async def test_client_refuses_what_is_not_strict() -> None:
    for raw in (
        b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\rc\r\nContent-Length: 0\r\n\r\n",
    ):
        async with Origin(answer(raw)) as origin, await dial(origin) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
            with pytest.raises(MalformedError):
                await client.response()


async def test_origin_resets_and_sees_resets() -> None:
    async with Origin() as origin:
        origin.script = crash
        client = await dial(origin)
        await client.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        await client.rest()
        assert client.ended == "reset"
        client = await dial(origin)
        await client.send(b"GET")
        await origin.until(lambda: origin.connections[-1].raw == b"GET")
        client.reset()
        await origin.until(lambda: origin.connections[-1].gone)


def test_chunks_are_what_they_say() -> None:
    assert chunks([b"ab", b"c"]) == b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
