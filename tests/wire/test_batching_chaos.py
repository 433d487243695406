"""Everything at once: faults, poison, deadlines, clients that leave, reloads. Nobody gets a row or
a word of another, and nothing is left in the end."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from filters.hedge import Config as Hedge
from filters.retry import Config as Retry
from gateway.config_batching import Batching
from tests.wire.client import TruncatedError
from tests.wire.oip import POISON, TARGET, Bench, Model, answered, ask, bench, plain
from tests.wire.origin import Connection, Request, answer, crash
from tests.wire.table import post

if TYPE_CHECKING:
    from tests.wire.client import Response

CLIENTS, TURNS = 24, 25
REFUSALS = {
    "batch_answer", "batch_failed", "bisection_budget", "deadline", "deadline_unreachable",
    "upstream_reset", "upstream_truncated", "upstream_status", "connect_failed", "no_endpoint",
}  # fmt: skip


async def truncated(connection: Connection, request: Request) -> None:
    await connection.body(request)
    connection.send(b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\nsecret")
    connection.close()


async def later(connection: Connection, request: Request) -> None:
    """An answer that comes after some who asked for it have left."""
    await asyncio.sleep(0.02)
    model = connection.origin
    assert isinstance(model, Model)
    model.batches.pop()
    await model.serve(connection, request)


FAULTS = (
    crash, truncated, later, later, answer(b"HTTP/1.1 503 X\r\nContent-Length: 6\r\n\r\nsecret"),
    answer(b"HTTP/1.1 500 X\r\nContent-Length: 6\r\n\r\nsecret"),
    answer(b"HTTP/1.1 200 X\r\nContent-Length: 6\r\n\r\nsecret"),
)  # fmt: skip


def judge(response: Response, values: list[int]) -> int:
    """Is it an answer that this caller may get?"""
    text = response.body
    if response.status == 200:
        assert answered(response) == [2 * value + 1 for value in values]
    elif response.values("x-tailrace-reason"):
        assert response.one("x-tailrace-reason").decode() in REFUSALS, response
        assert b"secret" not in text
    elif b"secret of" in text:
        assert json.loads(text) == {"error": f"secret of {values}"}
        assert values == [POISON]
    else:
        assert text == b"secret"  # it was alone, and this was said to it
    return response.status


async def client(b: Bench, number: int, rng: Random, statuses: list[int]) -> None:
    for turn in range(TURNS):
        first = 1_000_000 + 10_000 * number + 10 * turn
        values = [first + n for n in range(rng.randint(1, 3))]
        lines: list[bytes] = []
        if rng.random() < 0.03:
            values = [POISON]
        elif rng.random() < 0.1:
            lines = [b"X-Request-Timeout-Ms: %d" % rng.choice((3, 10, 30))]
        raw = ask(values, *lines, binary=rng.random() < 0.5)
        async with b.gateway.client() as connection:
            dice = rng.random()
            if dice < 0.05:
                await connection.send(raw[: rng.randrange(len(raw))])
                continue
            await connection.send(raw)
            if dice < 0.15:
                await asyncio.sleep(rng.random() / 100)
                continue
            if dice < 0.2:
                await connection.send(post(b"Content-Length: 9", body=b"not JSON!", target=TARGET))
            statuses.append(judge(await connection.response(b"POST"), values))


@pytest.mark.parametrize("seed", range(3))
async def test_nobody_gets_what_is_not_his(seed: int) -> None:
    rng = Random(seed)
    config = Batching("kserve_v2", max_rows=16, max_in_flight=3)
    filters = plain(retry=Retry(), hedge=Hedge())
    async with bench(config, models=2, route={"filters": filters}) as b:
        statuses: list[int] = []
        clients = [
            asyncio.ensure_future(client(b, number, Random(rng.random()), statuses))
            for number in range(CLIENTS)
        ]
        work = asyncio.gather(*clients)
        server = b.gateway.server
        while not work.done():
            model = rng.choice(b.models)
            model.faults.extend(rng.choices(FAULTS, k=rng.randint(0, 2)))
            model.short = int(rng.random() < 0.1)
            if rng.random() < 0.2:
                (route,) = server.config.routes
                changed = replace(config, max_rows=rng.choice((8, 16)))
                routes = (replace(route, batching=changed),)
                assert await server.reload(replace(server.config, routes=routes))
            await asyncio.sleep(0.005)
        try:
            await work
        except TruncatedError as error:  # no client may be left without an answer
            raise AssertionError(error.raw) from error
        assert statuses.count(200) > len(statuses) / 3
        assert any(len(batch) > 3 for batch in b.batches)
        for model in b.models:
            model.faults.clear()
            model.short = 0
        await b.idle()
