"""A client that leaves frees the model server: its connection is closed while it still works."""

from __future__ import annotations

import asyncio

import pytest

from tests.harness import GOOD, gateway
from tests.wire.client import Client
from tests.wire.origin import Connection, Origin, Request, by_target, silent
from tests.wire.table import get, post

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ASK = post(b"Content-Length: 2", body=b"{}", target=b"/v1/chat/completions")


async def stream(connection: Connection, request: Request) -> None:
    """Tokens until the reader is gone."""
    await connection.body(request)
    connection.send(HEAD)
    while not connection.gone:
        connection.send(b"5\r\ntoken\r\n")
        await asyncio.sleep(0.005)


async def first_token(client: Client) -> None:
    await client.send(ASK)
    assert (await client.head()).status == 200
    assert await client.chunk() == b"token"


@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_fifty_streams_whose_clients_vanish_leave_none_busy(leave: str) -> None:
    script = by_target({b"/v1/chat/completions": stream})
    async with Origin(script) as origin, gateway(origin) as g:
        clients = [await Client.connect(g.address) for _ in range(50)]
        await asyncio.gather(*[first_token(client) for client in clients])
        assert origin.open == 50
        for client in clients:
            if leave == "reset":
                client.reset()
            else:
                await client.close()
        await origin.until(lambda: origin.open == 0)
        assert (await g.ask(GOOD)).status == 200


async def test_a_client_that_leaves_before_the_first_byte_cancels_too() -> None:
    async with Origin(silent) as origin, gateway(origin) as g:
        clients = [await Client.connect(g.address) for _ in range(50)]
        for client in clients:
            await client.send(ASK)
        await origin.until(lambda: len(origin.requests) == 50)
        for client in clients:
            await client.close()
        await origin.until(lambda: origin.open == 0)


async def test_a_client_that_leaves_in_the_middle_of_its_upload_cancels_too() -> None:
    async with Origin() as origin, gateway(origin) as g:
        client = await Client.connect(g.address)
        await client.send(post(b"Content-Length: 1000", body=b"some"))
        await origin.until(lambda: bool(origin.heads))
        await client.close()
        await origin.until(lambda: origin.open == 0)
        assert origin.requests == []


async def test_the_exchanges_behind_in_the_pipeline_are_dropped_with_their_client() -> None:
    async with Origin(silent) as origin, gateway(origin) as g:
        client = await Client.connect(g.address)
        await client.send(get(target=b"/1") + get(target=b"/2") + get(target=b"/3"))
        await origin.until(lambda: bool(origin.requests))
        client.reset()
        await origin.until(lambda: origin.open == 0)
        origin.script = by_target({})
        assert (await g.ask(GOOD)).status == 200
        assert [request.target for request in origin.requests] == [b"/1", b"/good"]


async def test_stopping_the_gateway_closes_what_is_open() -> None:
    async with Origin(silent) as origin:
        async with gateway(origin) as g:
            client = await Client.connect(g.address)
            await client.send(get())
            await origin.until(lambda: bool(origin.requests))
        assert b"200 OK" not in await client.rest()
        assert client.ended
        await origin.until(lambda: origin.open == 0)
        await client.close()
