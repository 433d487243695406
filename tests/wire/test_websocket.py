"""Tunnels: byte for byte both ways, and both sides end when one does (case 125)."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.harness import GOOD, gateway
from tests.wire.client import Client
from tests.wire.origin import Connection, Origin, Request, by_target
from tests.wire.table import get
from tests.wire.test_hostile_upgrade import SWITCH, WEBSOCKET

ASK = get(*WEBSOCKET, b"Sec-WebSocket-Protocol: chat", target=b"/ws")


async def echo_frames(connection: Connection, request: Request) -> None:
    """Everything comes back as it is: the tunnel has no idea of frames."""
    connection.switch()
    connection.send(SWITCH)
    while True:
        await connection.until(lambda: bool(connection.tunnel))
        connection.send(bytes(connection.tunnel))
        connection.tunnel.clear()


async def opened(client: Client) -> None:
    await client.send(ASK)
    response = await client.response()
    assert response.status == 101
    assert response.one("upgrade").lower() == b"websocket"
    assert response.one("connection").lower() == b"upgrade"
    assert response.one("sec-websocket-accept") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


async def test_echo_through_the_tunnel() -> None:
    async with Origin(echo_frames) as origin, gateway(origin) as g, g.client() as client:
        await opened(client)
        request = origin.requests[0]
        assert request.one("sec-websocket-key") == b"dGhlIHNhbXBsZSBub25jZQ=="
        assert request.one("sec-websocket-protocol") == b"chat"
        assert request.one("upgrade").lower() == b"websocket"
        for frame in (b"\x81\x85\x00\x00\x00\x00hello", b"\x00", b"GET / HTTP/1.1\r\n\r\n"):
            await client.send(frame)
            assert await client.exactly(len(frame)) == frame


async def test_a_large_amount_through_the_tunnel() -> None:
    data = random.Random(2).randbytes(4_000_000)
    async with Origin(echo_frames) as origin, gateway(origin) as g, g.client() as client:
        await opened(client)
        sending = asyncio.ensure_future(client.send(data))
        assert await client.exactly(len(data)) == data
        await sending


async def test_frames_right_behind_the_101_are_not_lost() -> None:
    async def greet(connection: Connection, request: Request) -> None:
        connection.switch()
        connection.send(SWITCH + b"hello")
        await connection.until(lambda: connection.gone)

    async with Origin(greet) as origin, gateway(origin) as g, g.client() as client:
        await opened(client)
        assert await client.exactly(5) == b"hello"


@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_125_the_client_ends_and_the_upstream_side_ends(leave: str) -> None:
    async with Origin(echo_frames) as origin, gateway(origin) as g:
        client = await Client.connect(g.address)
        await opened(client)
        if leave == "reset":
            client.reset()
        else:
            await client.close()
        await origin.until(lambda: origin.open == 0)


@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_125_the_upstream_ends_and_the_client_side_ends(leave: str) -> None:
    async with Origin(echo_frames) as origin, gateway(origin) as g, g.client() as client:
        await opened(client)
        connection = origin.connections[0]
        connection.send(b"last")
        if leave == "reset":
            # A reset may overtake what was sent before it; so that is read first.
            assert await client.exactly(4) == b"last"
            connection.reset()
            await client.rest()
        else:
            connection.close()
            assert await client.rest() == b"last"
        assert client.ended


async def test_125_one_half_closed_tunnel_ends_on_both_sides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The upstream never answers the half-close: the gateway ends the tunnel in its grace."""
    monkeypatch.setattr("gateway.tunnel.GRACE_S", 0.1)
    async with Origin(echo_frames, half_open=True) as origin, gateway(origin) as g:
        async with g.client() as client:
            await opened(client)
            client.half_close()
            await client.rest()
        await origin.until(lambda: origin.connections[0].gone)


async def test_a_tunnel_leaves_other_exchanges_alone() -> None:
    async with (
        Origin(by_target({b"/ws": echo_frames})) as origin,
        gateway(origin) as g,
        g.client() as tunnel,
        g.client() as client,
    ):
        await opened(tunnel)
        await client.send(GOOD)
        assert (await client.response()).body == b"ok"
        await tunnel.send(b"x")
        assert await tunnel.exactly(1) == b"x"


async def test_stopping_the_gateway_ends_tunnels() -> None:
    async with Origin(echo_frames) as origin:
        async with gateway(origin) as g:
            client = await Client.connect(g.address)
            await opened(client)
        await client.rest()
        assert client.ended
        await origin.until(lambda: origin.open == 0)
        await client.close()
