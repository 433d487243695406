"""The virtual-time loop: time jumps, order is kept, and what can never end says so."""

import asyncio
import time
from random import Random

import pytest

from gateway.clock import LoopClock
from gateway.sim.loop import START, Deadlock, VirtualLoop, run


def test_a_year_passes_at_once() -> None:
    async def main() -> float:
        await asyncio.sleep(365 * 86400)
        return asyncio.get_running_loop().time()

    assert run(main(), VirtualLoop()) == START + 365 * 86400


def test_timers_fire_in_order_at_their_own_time() -> None:
    rng = Random(7)
    times = [rng.uniform(0, 1e5) for _ in range(500)]
    fired: list[tuple[float, float]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for each in times:
            loop.call_at(START + each, lambda due: fired.append((due, loop.time())), each)
        await asyncio.sleep(1e5 + 1)

    run(main(), VirtualLoop())
    assert [each for each, _ in fired] == sorted(times)
    assert all(at == START + each for each, at in fired)


def test_what_is_ready_runs_before_time_passes() -> None:
    seen: list[float] = []

    async def busy() -> None:
        for _ in range(1000):
            await asyncio.sleep(0)
            seen.append(asyncio.get_running_loop().time())

    async def main() -> None:
        await asyncio.gather(busy(), asyncio.sleep(0.001))

    run(main(), VirtualLoop())
    assert seen == [START] * 1000


def test_a_cancelled_timer_does_not_move_time() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(1000, lambda: None).cancel()
        await asyncio.sleep(1)
        return loop.time()

    assert run(main(), VirtualLoop()) == START + 1


def test_timeouts_and_cancellation_are_those_of_asyncio() -> None:
    async def main() -> str:
        try:
            async with asyncio.timeout(5):
                await asyncio.sleep(10)
        except TimeoutError:
            return f"{asyncio.get_running_loop().time() - START}"
        return "not in time"

    assert run(main(), VirtualLoop()) == "5.0"


def test_the_production_clock_is_exact_here() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        clock = LoopClock(loop)
        rang: list[float] = []
        for seconds in (0.25, 3.0, 7.5):
            clock.call_at(START + seconds, lambda: rang.append(loop.time() - START))
        await asyncio.sleep(10)
        return rang

    assert run(main(), VirtualLoop()) == [0.25, 3.0, 7.5]


def test_a_deadlock_is_an_error_that_names_who_waits() -> None:
    async def waits_for_nobody() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        await asyncio.sleep(2)
        await asyncio.gather(waits_for_nobody())

    with pytest.raises(Deadlock, match=r"at 2\.000000 s these wait: .*waits_for_nobody"):
        run(main(), VirtualLoop())


def test_a_run_without_end_is_an_error() -> None:
    async def main() -> None:
        for _ in range(1000):
            await asyncio.sleep(1)

    with pytest.raises(Deadlock, match="still not done"):
        run(main(), VirtualLoop(limit=100))


def test_what_main_raises_is_raised_and_nothing_stays_behind() -> None:
    ended: list[str] = []

    async def background() -> None:
        try:
            await asyncio.sleep(1e9)
        finally:
            ended.append("background")

    async def main() -> None:
        task = asyncio.create_task(background())
        await asyncio.sleep(1)
        assert not task.done()
        raise LookupError("seen")

    loop = VirtualLoop()
    with pytest.raises(LookupError, match="seen"):
        run(main(), loop)
    assert ended == ["background"]
    assert loop.is_closed()


@pytest.mark.parametrize("ask", ["thread", "socket"])
def test_nothing_reaches_outside(ask: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        if ask == "thread":
            await loop.run_in_executor(None, time.time)
        else:
            await loop.create_connection(asyncio.Protocol, "localhost", 1)

    with pytest.raises(RuntimeError, match="no threads in virtual time"):
        run(main(), VirtualLoop())
