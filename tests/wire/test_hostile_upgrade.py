"""Cases 121 to 124: what is tunnelled, what is not, and bytes that come too early."""

from __future__ import annotations

import pytest

from tests.harness import GOOD, gateway
from tests.wire.origin import Connection, Origin, Request, answer, by_target
from tests.wire.table import WAYS, Row, accepted, check_refusal, deliver, get, post

WEBSOCKET = (
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)

PLAIN = {
    "post": post(*WEBSOCKET, b"Content-Length: 0"),
    "http-1.0": get(*WEBSOCKET).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "no-connection": get(*WEBSOCKET[1:]),
    "connection-without-upgrade": get(b"Connection: keep-alive", *WEBSOCKET[1:]),
    "with-body": b"GET" + post(*WEBSOCKET, b"Content-Length: 5", body=b"hello")[4:],
    "with-chunked-body": b"GET"
    + post(*WEBSOCKET, b"Transfer-Encoding: chunked", body=b"1\r\na\r\n0\r\n\r\n")[4:],
    "h2c": get(
        b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQ"
    ),
    "unknown": get(b"Connection: Upgrade", b"Upgrade: foo/2"),
    "tls": get(b"Connection: Upgrade", b"Upgrade: TLS/1.0"),
    "list": get(b"Connection: Upgrade", b"Upgrade: h2c, websocket"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("raw", PLAIN.values(), ids=PLAIN.keys())
async def test_121_not_a_proper_upgrade_is_a_plain_request(raw: bytes, way: str) -> None:
    request = await accepted(Row(121, "", raw), way)
    assert request.values("upgrade") == []
    assert request.values("http2-settings") == []
    assert b"upgrade" not in b",".join(request.values("connection")).lower()
    assert bytes(request.body) in {b"", b"hello", b"a"}


@pytest.mark.parametrize("way", WAYS)
async def test_121_an_upgrade_to_nothing_cannot_start_a_tunnel(way: str) -> None:
    """An upstream that says 101 to a stripped Upgrade is broken: the client gets a 502."""
    async with Origin(by_target({b"/x": answer(SWITCH)})) as origin, gateway(origin) as g:
        async with g.client() as client:
            await deliver(client, get(b"Connection: Upgrade", b"Upgrade: h2c"), way)
            check_refusal(await client.response(), 502, reason="upstream_protocol")
        await origin.until(lambda: origin.connections[-1].gone)


@pytest.mark.parametrize("way", WAYS)
async def test_121_the_websocket_version_is_the_upstreams_business(way: str) -> None:
    raw = get(*WEBSOCKET).replace(b"Version: 13", b"Version: 99")
    version = b"Sec-WebSocket-Version: 13\r\n"
    refusal = b"HTTP/1.1 426 Upgrade\r\n" + version + b"Content-Length: 3\r\n\r\nold"
    async with Origin(by_target({b"/x": answer(refusal)})) as origin, gateway(origin) as g:
        async with g.client() as client:
            await deliver(client, raw, way)
            response = await client.response()
            assert (response.status, response.body) == (426, b"old")
            assert response.one("sec-websocket-version") == b"13"
        assert origin.requests[-1].one("upgrade").lower() == b"websocket"
        assert origin.requests[-1].one("connection").lower() == b"upgrade"


@pytest.mark.parametrize("way", WAYS)
async def test_123_bytes_before_the_101_are_held_until_it(way: str) -> None:
    async def agree(connection: Connection, request: Request) -> None:
        # Nothing may be behind the head: a refusal would make it the next request.
        assert connection.raw.endswith(b"\r\n\r\n")
        connection.switch()
        assert connection.tunnel == b""
        connection.send(SWITCH)
        await connection.until(lambda: connection.tunnel == b"early")
        connection.send(b"seen")

    async with (
        Origin(by_target({b"/x": agree})) as origin,
        gateway(origin) as g,
        g.client() as client,
    ):
        await deliver(client, get(*WEBSOCKET) + b"early", way)
        assert (await client.response()).status == 101
        assert await client.exactly(4) == b"seen"


@pytest.mark.parametrize("way", WAYS)
async def test_123_bytes_before_a_refused_upgrade_are_dropped(way: str) -> None:
    """They were meant for a tunnel. As a request they would be smuggled past the upstream."""
    refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"
    async with Origin(by_target({b"/x": answer(refusal)})) as origin, gateway(origin) as g:
        async with g.client() as client:
            await deliver(client, get(*WEBSOCKET) + get(target=b"/smuggled"), way)
            response = await client.response()
            assert (response.status, response.body) == (403, b"no")
            assert await client.rest() == b""
        assert (await g.ask(GOOD)).status == 200
        assert b"/smuggled" not in [request.target for request in origin.heads]


@pytest.mark.parametrize("way", WAYS)
async def test_124_a_101_that_nobody_asked_for_is_502(way: str) -> None:
    async with (
        Origin(by_target({b"/x": answer(SWITCH + b"tunnel")})) as origin,
        gateway(origin) as g,
        g.client() as client,
    ):
        await deliver(client, get(), way)
        check_refusal(await client.response(), 502, reason="upstream_protocol")
        await origin.until(lambda: origin.connections[-1].gone)
        assert b"tunnel" not in client.raw


async def test_124_a_101_to_another_protocol_is_502() -> None:
    other = SWITCH.replace(b"websocket", b"h2c")
    async with Origin(answer(other)) as origin, gateway(origin) as g, g.client() as client:
        await client.send(get(*WEBSOCKET))
        check_refusal(await client.response(), 502, reason="upstream_protocol")
