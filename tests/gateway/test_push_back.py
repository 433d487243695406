"""An endpoint that turns everything away at once is no black hole, and what is said of it holds."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from filters.api import Attempt, Outcome, Reason
from filters.standing import LEAST, RAMP
from tests.gateway.fake_cluster import World, retry_after

POLICIES = ["peak_ewma", "least_request", "round_robin", "consistent_hash"]
REFUSED: dict[str, Any] = {"reason": Reason.CONNECT_FAILED, "sent": False, "complete": False}


def full(world: World, k: int, seconds: bytes = b"0", status: int = 503) -> None:
    """Endpoint ``k`` turns everything away from now on."""
    pool = world.pools[k]
    pool.script = lambda: pool.answer(status, retry_after(seconds))


async def serve(world: World, rate: float, busy: float, seconds: float) -> int:
    """Exchanges at ``rate``, each ``busy`` seconds in flight where it is served. How many were
    turned away."""
    flying: list[tuple[float, Outcome]] = []
    turned = 0
    for _ in range(int(rate * seconds)):
        world.clock.advance(1 / rate)
        now = world.clock.now()
        while flying and flying[0][0] <= now:
            outcome = flying.pop(0)[1]
            permit, outcome.permit = outcome.permit, None
            assert permit is not None
            permit.release(outcome)
        outcome = await world.cluster.attempt(Attempt(world.exchange(), 1, ()))
        if outcome.status == 200:
            flying.append((now + busy, outcome))
        else:
            turned += 1
            outcome.discard()
    return turned


class TestNoBlackHole:
    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("busy", [0.02, 5.0])
    @pytest.mark.parametrize("status", [429, 503])
    async def test_who_only_turns_away(self, policy: str, busy: float, status: int) -> None:
        world = World(2, policy=policy)
        full(world, 1, status=status)
        assert await serve(world, 100, busy, 20) <= 24  # of 2000
        assert world.endpoints[1].share < LEAST

    async def test_nor_where_little_is_asked(self) -> None:
        world = World(2)
        full(world, 1, status=429)
        assert await serve(world, 1, 0.02, 100) <= 16

    async def test_it_takes_part_again_once_it_serves(self) -> None:
        world = World(2)
        full(world, 1)
        await serve(world, 100, 0.02, 60)
        world.pools[1].script = lambda: world.pools[1].answer(200)
        world.pools[1].sent = 0
        await serve(world, 100, 0.02, 30)
        assert world.pools[1].sent > 500
        assert world.endpoints[1].share == 1

    async def test_all_of_them_go_on_alike(self) -> None:
        world = World(3)
        for k in range(3):
            full(world, k)
        await serve(world, 100, 0.02, 60)
        now = world.clock.now()
        assert world.cluster.saturated(now)
        assert world.cluster.retry_at(now) <= now + 1  # however long it lasts
        sent = sorted(pool.sent for pool in world.pools)
        assert sent[0] > 1000
        for pool in world.pools:
            pool.script = lambda: pool.answer(200)  # noqa: B023
        assert await serve(world, 100, 0.02, 1) == 0

    async def test_an_answer_among_them_ends_the_row(self) -> None:
        world = World(1)
        one = world.endpoints[0]
        full(world, 0)
        for _ in range(5):
            await world.ask()
        assert one.weight == LEAST / 16
        world.pools[0].script = lambda: world.pools[0].answer(200)
        await world.ask()
        world.wait(0)
        assert one.weight == LEAST


class TestWithoutTraffic:
    async def test_push_back_ends_by_itself(self) -> None:
        world = World(2)
        full(world, 1, b"2", 429)
        one = world.endpoints[1]
        await world.ask(tried=("e0:80",))
        assert (one.share, one.why) == (LEAST, "pushes back, 2.0 s more")
        world.clock.advance(4)
        assert (one.share, one.why) == (1, "not checked")

    async def test_so_does_the_ramp(self) -> None:
        world = World(3)
        await world.fail(0)
        world.wait(5)
        await world.ask()
        one = world.endpoints[0]
        world.clock.advance(RAMP / 2)
        assert one.share == 0.5
        assert one.why == "back at 50% of its share: its probe was answered in 0 ms"
        world.clock.advance(RAMP / 2)
        assert (one.share, one.why) == (1, "not checked")


class TestTotalOutage:
    def said(self, caplog: pytest.LogCaptureFixture) -> list[int]:
        said = [each.levelno for each in caplog.records if "is ejected" in each.message]
        caplog.clear()
        return said

    async def test_the_first_is_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "tailrace")
        world = World(1)
        for _ in range(2):
            await world.fail(0, **REFUSED)
            world.wait(0)
            for _ in range(9):
                world.wait(1)
                await world.fail(0, 1, **REFUSED)
            assert self.said(caplog) == [logging.WARNING] + [logging.INFO] * 9
            world.wait(1)
            await world.ask()
            assert world.endpoints[0].state == "healthy"
            world.wait(31)  # soon again would be a repeat
