"""Cases 126 to 129, 134 to 137: answer heads that must not reach a client as they are."""

from __future__ import annotations

import pytest

from tests.harness import GOOD, gateway
from tests.wire.origin import Origin, answer, by_target
from tests.wire.table import WAYS, check_refusal, deliver, get

OK_HEAD = b"HTTP/1.1 200 OK\r\n"
INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"


def head(*lines: bytes, body: bytes = b"", status: bytes = OK_HEAD) -> bytes:
    return status + b"".join(each + b"\r\n" for each in lines) + b"\r\n" + body


def status(line: bytes) -> bytes:
    return head(b"Content-Length: 2", body=b"ok", status=line + b"\r\n")


def wide(lines: int) -> list[bytes]:
    return [b"X-%d: " % i + b"a" * 4000 for i in range(lines)]


def interim(count: int) -> bytes:
    return INTERIM * count + head(b"Content-Length: 2", body=b"ok")


BODY = b"5\r\nhello\r\n0\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"

BAD: dict[str, bytes] = {
    "126-length-and-coding": head(b"Content-Length: 5", CHUNKED, body=BODY),
    "126-coding-and-length": head(CHUNKED, b"Content-Length: 15", body=BODY),
    "127-two-lengths": head(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!"),
    "127-list-of-lengths": head(b"Content-Length: 5, 6", body=b"hello!"),
    "128-length-text": head(b"Content-Length: five", body=b"hello"),
    "128-length-negative": head(b"Content-Length: -5", body=b"hello"),
    "128-length-plus": head(b"Content-Length: +5", body=b"hello"),
    "128-length-hex": head(b"Content-Length: 0x5", body=b"hello"),
    "128-length-empty": head(b"Content-Length:", body=b"hello"),
    "128-length-overflow": head(b"Content-Length: 18446744073709551621", body=b"hello"),
    "129-gzip": head(b"Transfer-Encoding: gzip", body=b"hello"),
    "129-chunked-not-last": head(b"Transfer-Encoding: chunked, gzip", body=BODY),
    "129-gzip-chunked": head(b"Transfer-Encoding: gzip, chunked", body=BODY),
    "129-chunked-twice": head(CHUNKED, CHUNKED, body=BODY),
    "129-xchunked": head(b"Transfer-Encoding: xchunked", body=BODY),
    "129-empty": head(b"Transfer-Encoding:", body=BODY),
    "129-1.0": head(CHUNKED, body=BODY, status=b"HTTP/1.0 200 OK\r\n"),
    "134-status-099": status(b"HTTP/1.1 099 Low"),
    "134-status-000": status(b"HTTP/1.1 000 Zero"),
    "134-status-1000": status(b"HTTP/1.1 1000 High"),
    "134-status-abc": status(b"HTTP/1.1 abc Text"),
    "134-status-20": status(b"HTTP/1.1 20 Short"),
    "134-no-status": status(b"HTTP/1.1 "),
    "134-http-0.9": b"<html>hello</html>\r\n\r\n",
    "134-http-2.0": status(b"HTTP/2.0 200 OK"),
    "134-other-protocol": status(b"RTSP/1.0 200 OK"),
    "134-two-spaces": status(b"HTTP/1.1  200 OK"),
    "134-ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "134-reason-with-ctl": status(b"HTTP/1.1 200 O\x01K"),
    "134-bare-lf": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "135-value-cr": head(b"X-A: 1\rX-B: 2", b"Content-Length: 0"),
    "135-value-lf": head(b"X-A: 1\nX-B: 2", b"Content-Length: 0"),
    "135-value-nul": head(b"X-A: 1\x002", b"Content-Length: 0"),
    "135-value-ctl": head(b"X-A: 1\x1b2", b"Content-Length: 0"),
    "135-obs-fold": head(b"X-A: 1", b" 2", b"Content-Length: 0"),
    "135-space-before-colon": head(b"X-A : 1", b"Content-Length: 0"),
    "135-empty-name": head(b": 1", b"Content-Length: 0"),
    "135-bad-name": head(b"X(A: 1", b"Content-Length: 0"),
    "135-no-colon": head(b"XA", b"Content-Length: 0"),
    "136-head-over-64k": head(*wide(20), b"Content-Length: 0"),
    "136-one-value-100k": head(b"X: " + b"a" * 100_000, b"Content-Length: 0"),
    "136-200-headers": head(*[b"X-%d: 1" % i for i in range(200)], b"Content-Length: 0"),
    "136-unfinished": OK_HEAD + b"X: " + b"a" * 200_000,
    "137-interim-17": interim(17),
    "137-interim-1000": interim(1000),
    "137-interim-with-length": INTERIM[:-2] + b"Content-Length: 5\r\n\r\nhello" + interim(0),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("way", WAYS)
async def test_a_broken_head_is_502(name: str, way: str) -> None:
    """Refused before a byte of it is seen, its connection closed, and the next request works."""
    async with Origin(by_target({b"/x": answer(BAD[name])})) as origin, gateway(origin) as g:
        async with g.client() as client:
            await deliver(client, get(), way)
            check_refusal(await client.response(), 502, reason="upstream_protocol")
            # Nothing was wrong on the client's side, so its connection goes on.
            await client.send(GOOD)
            assert (await client.response()).body == b"ok"
        for connection in origin.connections:
            if connection.requests[-1].target == b"/x":
                await origin.until(lambda c=connection: c.gone)  # type: ignore[misc]


FINE: dict[str, bytes] = {
    "134-empty-reason": status(b"HTTP/1.1 200 "),
    "134-no-reason": status(b"HTTP/1.1 200"),
    "134-8-bit-reason": status(b"HTTP/1.1 200 d\xe9j\xe0 vu"),
    "134-1.0": status(b"HTTP/1.0 200 OK"),
    "137-interim-16": interim(16),
    "137-interim-then-chunked": INTERIM + head(CHUNKED, body=b"2\r\nok\r\n0\r\n\r\n"),
    "128-length-padded": head(b"Content-Length: \t2 ", body=b"ok"),
    "135-8-bit-value": head(b"X-A: \xe9", b"Content-Length: 2", body=b"ok"),
    "126-chunked-case": head(b"Transfer-Encoding: Chunked", body=b"2\r\nok\r\n0\r\n\r\n"),
    "136-head-below-64k": head(*wide(15), b"Content-Length: 2", body=b"ok"),
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
async def test_an_unusual_head_is_forwarded(name: str) -> None:
    async with Origin(answer(FINE[name])) as origin, gateway(origin) as g, g.client() as client:
        await client.send(get())
        response = await client.response()
        assert (response.status, response.body) == (200, b"ok")


async def test_135_repeated_lengths_that_agree_are_one() -> None:
    """Some servers write the length twice; unlike a request's, it is no attack (RFC 9112 6.3)."""
    raw = head(b"Content-Length: 2", b"Content-Length: 2", body=b"ok")
    async with Origin(answer(raw)) as origin, gateway(origin) as g, g.client() as client:
        await client.send(get())
        response = await client.response()
        if response.status == 200:
            assert response.values("content-length") == [b"2"]
        else:
            check_refusal(response, 502)


HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: X\r\nX: 1\r\n\r\n"


@pytest.mark.parametrize("way", WAYS)
async def test_137_early_hints_are_forwarded_to_1_1(way: str) -> None:
    raw = HINTS + head(b"Content-Length: 2", body=b"ok")
    async with (
        Origin(by_target({b"/x": answer(raw)})) as origin,
        gateway(origin) as g,
        g.client() as client,
    ):
        await deliver(client, get(), way)
        response = await client.response()
        assert [each.status for each in response.interim] == [103]
        assert response.interim[0].values("link") == [b"</a.css>; rel=preload"]
        assert response.interim[0].values("x") == []
        assert (response.status, response.body) == (200, b"ok")


@pytest.mark.parametrize(
    "interim_head", [HINTS, b"HTTP/1.1 102 P\r\n\r\n", b"HTTP/1.1 100 C\r\n\r\n"]
)
async def test_137_nothing_interim_is_forwarded_to_1_0(interim_head: bytes) -> None:
    raw = interim_head + head(b"Content-Length: 2", body=b"ok")
    async with Origin(answer(raw)) as origin, gateway(origin) as g, g.client() as client:
        await client.send(get().replace(b"HTTP/1.1", b"HTTP/1.0"))
        response = await client.response()
        assert response.interim == []
        assert (response.status, response.body) == (200, b"ok")


async def test_145_set_cookie_lines_are_never_joined() -> None:
    lines = [b"Set-Cookie: a=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT", b"X: y", b"set-cookie: b=2"]
    raw = head(*lines, b"Content-Length: 2", body=b"ok")
    async with Origin(answer(raw)) as origin, gateway(origin) as g, g.client() as client:
        await client.send(get())
        response = await client.response()
        assert response.values("set-cookie") == [
            b"a=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT",
            b"b=2",
        ]
