"""Who killed a server, as far as it can be known: a bystander is never refused for it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from filters.api import FAILED, OK, Outcome, Reason
from gateway.batch_send import BatchExchange, Deaths
from gpu_batcher.quarantine import FIRST, Quarantine, Standing
from tests.batcher.flown import fly


class Deadly:
    """A route's ``Deaths`` with its quarantine; attempts at one endpoint, which end when told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.quarantine = Quarantine(refuse=True)
        self.deaths = Deaths(
            SimpleNamespace(now=lambda: self.now),
            lambda marks, now: self.quarantine.killed(marks, now),
        )

    def begin(self, *marks: bytes, where: str = "one") -> Any:
        exchange: Any = SimpleNamespace()
        if marks:
            exchange = BatchExchange.__new__(BatchExchange)
            exchange.marks = lambda: list(marks)
        attempt: Any = SimpleNamespace(exchange=exchange, endpoint="")
        end: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        async def upstream(attempt: Any) -> Outcome:
            attempt.endpoint = where  # chosen further in
            return await end

        task = asyncio.ensure_future(self.deaths(attempt, upstream))

        async def ended(outcome: Outcome) -> None:
            end.set_result(outcome)
            await task

        return ended

    async def refused(self) -> None:
        ended = self.begin()
        await asyncio.sleep(0)
        await ended(Outcome(FAILED, 0, Reason.CONNECT_FAILED, sent=False, complete=False))

    def look(self, mark: bytes) -> Standing:
        return self.quarantine.look(mark, self.now)


RESET = Outcome(FAILED, 0, Reason.UPSTREAM_RESET, complete=True)
CUT = Outcome(FAILED, 0, Reason.UPSTREAM_RESET, complete=False)
HALF_OPEN = Outcome(FAILED, 0, Reason.CONNECT_FAILED, complete=True)


async def crashes(beside: str) -> Standing:
    """A victim in a batch of its own, twice in flight while something kills the server."""
    world = Deadly()
    for crash in range(2):
        world.now += 10.0
        killer = world.begin(*([] if beside in ("other", "cut") else [b"k%d" % crash]))
        victim = world.begin(b"v")
        await asyncio.sleep(0)
        if beside == "late":  # its own connection breaks after the next one was refused
            await killer(RESET)
            await world.refused()
            await victim(RESET)
        elif beside == "kept":
            await killer(RESET)
            await victim(HALF_OPEN)
        else:
            await killer(CUT if beside == "cut" else RESET)
            await victim(RESET)
        await world.refused()
    assert not world.deaths._flying
    assert not world.deaths._beside
    return world.look(b"v")


@pytest.mark.parametrize("beside", ["batch", "other", "cut", "late", "kept"])
def test_who_was_in_flight_beside_a_killer_is_never_refused(beside: str) -> None:
    assert fly(crashes(beside)) is Standing.ALONE


def test_who_was_alone_in_flight_is_certain() -> None:
    async def work() -> Standing:
        world = Deadly()
        for _ in range(2):
            world.now += 10.0
            elsewhere = world.begin(b"other", where="two")
            killer = world.begin(b"k")
            await asyncio.sleep(0)
            await killer(RESET)
            await world.refused()
            await elsewhere(Outcome(OK, 200))
        return world.look(b"k")

    assert fly(work()) is Standing.REFUSED


def test_what_broke_half_sent_is_company_but_no_suspect() -> None:
    async def work() -> tuple[Standing, int]:
        world = Deadly()
        for _ in range(2):
            world.now += 10.0
            half = world.begin(b"half")
            whole = world.begin(b"whole")
            await asyncio.sleep(0)
            await half(CUT)
            await asyncio.sleep(0)
            await whole(RESET)
            await world.refused()
        assert world.look(b"half") is Standing.FREE
        return world.look(b"whole"), len(world.quarantine)

    assert fly(work()) == (Standing.ALONE, 1)


def test_several_suspects_of_one_death_are_one_kill() -> None:
    async def work() -> tuple[Standing, ...]:
        world = Deadly()
        both = world.begin(b"a"), world.begin(b"a", b"b")
        await asyncio.sleep(0)
        for each in both:
            await each(RESET)
        await world.refused()
        return world.look(b"a"), world.look(b"b"), world.look(b"")

    assert fly(work()) == (Standing.FREE,) * 3


def test_an_empty_mark_is_remembered_by_nobody() -> None:
    quarantine = Quarantine(refuse=True)
    for now in (0.0, 1.0):
        quarantine.killed([b"v", b""], now)
    assert len(quarantine) == 1
    assert quarantine.look(b"v", 1.0) is Standing.ALONE
    assert quarantine.look(b"", 1.0) is Standing.FREE
    assert quarantine.look(b"v", 1.0 + FIRST) is Standing.FREE
