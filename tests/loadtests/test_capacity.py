"""The model of a server behind the stand-in."""

import statistics
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.capacity import Batch, Counters, ServiceTimes, Slots


@dataclass(eq=False)
class Job:
    began: list[float] = field(default_factory=list)

    def begin(self, now: float) -> None:
        self.began.append(now)


def test_service_times_have_their_mean_in_every_block() -> None:
    times = ServiceTimes(0.02, 0.5, seed=1)
    for _ in range(20):
        block = [times.draw() for _ in range(400)]
        assert statistics.fmean(block) == pytest.approx(0.02, rel=0.02)
    deviation = statistics.stdev(times.draw() for _ in range(20_000))
    assert deviation == pytest.approx(0.02 * 0.533, rel=0.05)


def test_service_times_are_shuffled() -> None:
    times = ServiceTimes(0.02, 0.5, seed=1)
    block = [times.draw() for _ in range(400)]
    halves = statistics.fmean(block[:200]), statistics.fmean(block[200:])
    assert halves[0] == pytest.approx(halves[1], rel=0.25)
    assert block not in (sorted(block), sorted(block, reverse=True))


def test_service_times_without_a_spread_and_of_a_mixture() -> None:
    assert ServiceTimes(0.02, 0.0, seed=1).draw() == 0.02
    assert ServiceTimes(0.0, 0.0, seed=1).draw() == 0
    times = ServiceTimes(0.0, 0.0, seed=1, mixture=(0.005, 0.5))
    drawn = [times.draw() for _ in range(400)]
    assert drawn.count(0.005) == drawn.count(0.5) == 200


def test_a_late_timer_does_not_make_the_next_one_late() -> None:
    slots = Slots(1, 0, Counters())
    first, early, later = Job(), Job(), Job()
    slots.enter(first, 0.0)
    slots.enter(early, 1.0)
    slots.enter(later, 5.0)
    slots.finish(first, 2.0)
    slots.finish(early, 3.0)
    assert early.began == [2.0]
    assert later.began == [5.0], "work does not begin before it has come"


def test_fewer_slots_let_what_runs_end_and_more_begin_at_once() -> None:
    counters = Counters()
    slots = Slots(2, 0, counters)
    jobs = [Job() for _ in range(5)]
    for job in jobs:
        slots.enter(job, 0.0)
    slots.resize(1, 1.0)
    assert counters.in_service == 2
    slots.finish(jobs[0], 2.0)
    assert [len(job.began) for job in jobs] == [1, 1, 0, 0, 0]
    slots.finish(jobs[1], 3.0)
    assert jobs[2].began == [3.0]
    slots.resize(3, 4.0)
    assert [job.began for job in jobs[3:]] == [[4.0], [4.0]]
    assert slots.inside == 3


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 4), st.integers(0, 3))
def test_every_work_leaves_once_whatever_happens(steps: list[int], size: int, queue: int) -> None:
    counters = Counters()
    slots = Slots(size, queue, counters)
    inside: list[Job] = []
    entered = 0
    for now, step in enumerate(steps):
        working = [job for job in inside if job.began]
        if step < 5:
            job = Job()
            if slots.enter(job, now):
                inside.append(job)
                entered += 1
        elif step < 7 and working:
            inside.remove(working[0])
            slots.finish(working[0], now, wanted=step == 5)
        elif step < 9 and inside:
            slots.cancel(inside.pop(step % len(inside)), now)
        assert counters.in_service == sum(bool(job.began) for job in inside) <= size
        assert counters.queued == len(inside) - counters.in_service
        assert slots.inside == len(inside)
        assert counters.queued == 0 or counters.in_service == size
    assert entered == len(inside) + counters.served + counters.wasted + counters.cancelled
    assert all(len(job.began) <= 1 for job in inside)


def test_a_batch_s_throughput_grows_up_to_its_size() -> None:
    batch = Batch(256, 3.0)
    assert batch.factor(0) == 1
    assert batch.factor(256) == batch.factor(1000) == 3
    rates = [n / batch.factor(n) for n in range(1, 257)]
    assert rates == sorted(rates)
    assert Batch(0, 3.0).factor(100) == 1
