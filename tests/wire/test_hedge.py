"""Hedging on real sockets: the head is withheld, the first body wins, the loser is hung up on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from filters.admission import Config as Admission
from filters.hedge import Config as Hedge
from filters.hedge import Refusal
from gateway.config import Filters
from tests.harness import Gateway, Retry, eventually, gateway
from tests.wire.client import Client, Response
from tests.wire.origin import OK, Connection, Origin, Request, Script, answer, chunks, each
from tests.wire.table import get, post

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"
ASK = post(b"Content-Length: 2", body=b"{}", target=b"/v1/chat/completions")
WARM = 60
"""Requests that teach the filter what is usual here; it wants 50."""


class Pair:
    """Two origins behind a gateway that has learned how fast they are."""

    def __init__(self, origins: tuple[Origin, Origin], g: Gateway) -> None:
        self.origins = origins
        self.gateway = g
        self.warm = self.asked
        self.hung: list[Connection] = []

    @property
    def asked(self) -> int:
        return sum(len(origin.requests) for origin in self.origins)

    def play(self, *scripts: Script) -> None:
        """The next request, whichever origin it comes to, gets the first script, and so on; what
        comes after the last one is answered."""
        order = each(*scripts, answer(OK))
        for origin in self.origins:
            origin.script = order

    async def head_only(self, connection: Connection, request: Request) -> None:
        """What a model server does that hangs before its first token."""
        await connection.body(request)
        connection.send(HEAD)
        self.hung.append(connection)
        await connection.until(lambda: connection.gone)

    async def ask(self) -> Response:
        return await self.gateway.ask(ASK, b"POST")

    async def check(self, asked: int) -> None:
        """So many requests came, those that hung were hung up on, and no permit is left."""
        assert self.asked == self.warm + asked
        endpoints = self.gateway.server.wiring.clusters["c"].endpoints.values()
        await eventually(lambda: all(connection.gone for connection in self.hung))
        await eventually(lambda: not any(endpoint.active for endpoint in endpoints))


@asynccontextmanager
async def warmed(**filters: Any) -> AsyncIterator[Pair]:
    route = {"filters": Filters(**{"hedge": Hedge(), "retry": None, **filters})}
    async with Origin() as a, Origin() as b, gateway(a, b, route=route) as g:
        async with g.client() as client:
            for _ in range(WARM):
                await client.send(ASK)
                assert (await client.response(b"POST")).body == b"ok"
        yield Pair((a, b), g)


async def test_a_stream_that_hangs_behind_its_head_is_answered_by_another() -> None:
    async with warmed() as pair:
        for n in range(1, 4):
            pair.play(pair.head_only, answer(HEAD + chunks([b"data: 1\n\n", b"data: 2\n\n"])))
            response = await pair.ask()
            assert (response.status, response.body) == (200, b"data: 1\n\ndata: 2\n\n")
            await pair.check(2 * n)
        assert len(pair.hung) == 3
        assert (await pair.ask()).body == b"ok"


async def test_tokens_are_relayed_as_they_come_after_a_hedge_as_before() -> None:
    more = asyncio.Event()

    async def stream(connection: Connection, request: Request) -> None:
        await connection.body(request)
        connection.send(HEAD + b"1\r\na\r\n")
        await more.wait()
        connection.send(b"1\r\nb\r\n0\r\n\r\n")

    async with warmed() as pair, pair.gateway.client() as client:
        pair.play(pair.head_only, stream)
        await client.send(ASK)
        assert (await client.head()).status == 200
        assert await client.chunk() == b"a"
        more.set()
        assert await client.chunk() == b"b"
        assert await client.chunk() == b""
        await pair.check(2)


@pytest.mark.parametrize("bad", [BUSY, EMPTY])
async def test_what_is_refused_or_empty_never_wins_over_what_still_runs(bad: bytes) -> None:
    told = asyncio.Event()

    async def waits(connection: Connection, request: Request) -> None:
        await connection.body(request)
        connection.send(HEAD)
        await told.wait()
        connection.send(chunks([b"worth waiting for"]))

    async def fails(connection: Connection, request: Request) -> None:
        await connection.body(request)
        connection.send(bad)
        told.set()

    async with warmed() as pair:
        pair.play(waits, fails)
        response = await pair.ask()
        assert (response.status, response.body) == (200, b"worth waiting for")
        await pair.check(2)


async def test_both_hang_until_the_client_leaves() -> None:
    async with warmed() as pair:
        pair.play(pair.head_only, pair.head_only)
        client = await Client.connect(pair.gateway.address)
        await client.send(ASK)
        await eventually(lambda: len(pair.hung) == 2)
        await client.close()
        await pair.check(2)
        assert (await pair.ask()).body == b"ok"


@pytest.mark.parametrize("dry_run", [True, False])
async def test_there_is_no_hedge_while_the_limit_is_reached_but_in_a_dry_run(dry_run: bool) -> None:
    async with warmed(admission=Admission(limit=1, dry_run=dry_run)) as pair:
        (hedge,) = (each.hedge for each in pair.gateway.server.wiring.filters.values())
        assert hedge is not None
        pair.play(pair.head_only)
        client = await Client.connect(pair.gateway.address)
        await client.send(ASK)
        if dry_run:
            assert (await client.response(b"POST")).body == b"ok"
        else:
            await eventually(lambda: hedge.refused[Refusal.NOT_CALM] == 1)
        await client.close()
        assert hedge.started == dry_run
        await pair.check(1 + dry_run)


async def test_a_stream_that_breaks_behind_its_head_is_tried_again() -> None:
    async def breaks(connection: Connection, request: Request) -> None:
        await connection.body(request)
        connection.send(HEAD)
        connection.reset()

    async with warmed(retry=Retry(attempts=2)) as pair:
        pair.play(breaks)
        response = await pair.ask()
        assert (response.status, response.body) == (200, b"ok")
        await pair.check(2)


async def test_one_that_breaks_for_good_is_a_bad_gateway() -> None:
    async def breaks(connection: Connection, request: Request) -> None:
        await connection.body(request)
        connection.send(HEAD)
        connection.close()

    async with warmed() as pair:
        pair.play(breaks, breaks)
        response = await pair.ask()
        assert (response.status, response.one("x-tailrace-reason")) == (502, b"upstream_reset")


@pytest.mark.parametrize(
    ("raw", "method", "status", "body"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"GET", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", b"GET", 304, b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"HEAD", 200, b""),
        (EMPTY, b"GET", 200, b""),
        (BUSY, b"GET", 503, b"busy"),
        (HEAD + chunks([b"x" * 300_000]), b"GET", 200, b"x" * 300_000),
    ],
)
async def test_an_answer_passes_as_it_does_without_hedging(
    raw: bytes, method: bytes, status: int, body: bytes
) -> None:
    async with warmed() as pair:
        pair.play(answer(raw), answer(raw))
        response = await pair.gateway.ask(method + get()[3:], method)
        assert (response.status, response.body) == (status, body)
