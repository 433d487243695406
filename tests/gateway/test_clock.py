"""Alarms ring in order and never early, near and far, cancelled or not."""

import random
from collections.abc import Callable

from gateway.clock import LoopClock, Timer
from gateway.sim.loop import VirtualLoop, run


def simulate(scene: Callable[[LoopClock, VirtualLoop], None]) -> None:
    loop = VirtualLoop()

    async def main() -> None:
        done = loop.create_future()
        clock = LoopClock(loop)
        scene(clock, loop)
        loop.call_later(10_000, lambda: done.set_result(None))
        await done

    run(main(), loop)


def test_alarms_near_and_far_ring_in_order_and_on_time() -> None:
    rang: list[tuple[float, float]] = []
    rng = random.Random(7)

    def scene(clock: LoopClock, loop: VirtualLoop) -> None:
        for _ in range(500):
            seconds = rng.choice([rng.uniform(0, 1), rng.uniform(0, 100), rng.uniform(0, 5000)])
            when = loop.time() + seconds
            clock.call_at(when, lambda when=when: rang.append((when, loop.time())))
            gone = clock.call_at(loop.time() + rng.uniform(0, 5000), lambda: rang.append((-1, -1)))
            gone.cancel()

    simulate(scene)
    assert len(rang) == 500
    assert all(when <= now <= when + 0.002 for when, now in rang)


def test_nothing_is_left_of_what_was_called_off() -> None:
    def scene(clock: LoopClock, loop: VirtualLoop) -> None:
        alarms = [clock.call_at(loop.time() + 3600 + i, lambda: None) for i in range(10_000)]
        assert len(clock.far) == 10_000
        for alarm in alarms:
            alarm.cancel()
            alarm.cancel()
        assert not clock.far
        near = [clock.call_at(loop.time() + 1, lambda: None) for _ in range(10_000)]
        for alarm in near:
            alarm.cancel()
        clock.call_at(loop.time() + 1, lambda: None)
        assert len(clock._heap) < 2000

    simulate(scene)


def test_a_timer_rings_at_its_last_bound_only() -> None:
    rang: list[float] = []

    def scene(clock: LoopClock, loop: VirtualLoop) -> None:
        start = loop.time()
        timer = Timer(clock, lambda: rang.append(loop.time() - start))
        timer.set(start + 600)
        clock.call_at(start + 1, lambda: timer.set(start + 5))
        clock.call_at(start + 4, lambda: setattr(timer, "due", start + 50))
        clock.call_at(start + 49, lambda: timer.set(start + 700))

    simulate(scene)
    assert len(rang) == 1
    assert 700 <= rang[0] < 700.01
