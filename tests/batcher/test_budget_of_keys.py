"""The budget for dividing batches among keys that come and go."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from gpu_batcher.flight import RefusedError, Why
from tests.batcher.flown import Server, call, coalescer, fly, terms


def test_keys_that_were_busy_before_keep_no_budget_from_others() -> None:
    """Two models were asked for a while, and then nobody asks for them any more."""
    poison = set(Random(2).sample(range(10_000, 16_400), 64))
    server = Server(poison=poison)
    marks = iter(range(10_000, 16_400))

    async def client(batcher: Any) -> list[Why]:
        whys = []
        for mark in marks:
            try:
                await batcher.submit(call(mark, key="third"), terms(mark))
            except RefusedError as error:
                whys.append(error.why)
        return whys

    async def work() -> list[list[Why]]:
        batcher = coalescer(server)
        for key in ("first", "second"):
            for turn in range(20):
                ones = [batcher.submit(call(n, key=key), terms(n)) for n in range(turn, turn + 50)]
                await asyncio.gather(*ones)
        return await asyncio.gather(*(client(batcher) for _ in range(64)))

    assert [why for whys in fly(work()) for why in whys] == []
