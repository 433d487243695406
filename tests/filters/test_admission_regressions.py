"""What once went wrong in admission and its limit, each as one test."""

import pytest

from filters.admission import Queue
from filters.api import Reason
from filters.limits import AdaptiveLimit
from tests.filters.gates import OK, Bench, settle


async def test_what_costs_more_than_the_limit_passes_an_idle_gate() -> None:
    bench = Bench(2)
    dear = await bench.arrive(cost=5.0)
    assert dear.begun


@pytest.mark.parametrize("leaves", ["cancel", "deadline"])
async def test_when_a_dear_one_leaves_whom_it_kept_waiting_gets_the_room(leaves: str) -> None:
    bench = Bench(2)
    first = await bench.arrive()
    dear, cheap = await bench.arrive(cost=2.0, within=1.0), await bench.arrive()
    assert first.begun
    assert dear.waiting
    assert cheap.waiting
    if leaves == "cancel":
        dear.task.cancel()
    await bench.advance(1.0)
    assert cheap.begun


async def test_a_timeout_is_called_one_after_a_reload() -> None:
    bench = Bench(1, queue=Queue(timeout=3.0))
    await bench.arrive()
    second = await bench.arrive()
    bench.use(queue=Queue(timeout=9.0))
    await bench.advance(3.0)
    assert second.refusal().reason is Reason.QUEUE_TIMEOUT


async def test_a_deadline_is_called_one_after_a_reload() -> None:
    bench = Bench(1, queue=Queue(timeout=3.0))
    await bench.arrive()
    second = await bench.arrive(within=2.0)
    bench.use(queue=Queue(timeout=1.0))
    await bench.advance(2.0)
    assert second.refusal().reason is Reason.DEADLINE


async def test_a_dry_run_lets_in_who_waits_already() -> None:
    bench = Bench(1)
    await bench.arrive()
    second = await bench.arrive()
    bench.use(dry_run=True)
    await settle()
    assert second.begun


def test_a_trial_after_other_bounds_is_no_larger_than_the_limit() -> None:
    limit = AdaptiveLimit(512)
    limit.bound(10, 10)
    limit.bound(10, 4096)
    now = 0.0
    for _ in range(400):
        now += 0.01
        limit.ended(now, 0.02, 10, limit.begun(10), 9, True)
        assert limit.level <= 2 * limit.value


@pytest.mark.parametrize("waiting", [True, False])
def test_answers_that_take_no_time(waiting: bool) -> None:
    limit = AdaptiveLimit(8 if waiting else 512)
    now = 0.0
    for k in range(400):
        n = 8 if waiting else (4 if k < 300 else k - 290)
        now += 0.01
        limit.ended(now, 0.0, n, limit.begun(n), n, waiting)


async def test_a_reload_of_fair_by_reaches_load_shed() -> None:
    from filters.admission import Config as Admission
    from tests.gateway.test_reload_filters import change, parts
    from tests.harness import gateway

    async with gateway("http://127.0.0.1:1") as g:
        await change(g, admission=Admission(fair_by="header:x-team"))
        gate, load_shed = parts(g).gate, parts(g).load_shed
        assert gate is not None
        assert load_shed is not None
        assert gate.fair_by == b"x-team"
        assert load_shed._fair_by == b"x-team"


def test_a_limit_that_is_confirmed_for_hours_still_rests_and_tries() -> None:
    limit = AdaptiveLimit(16, 1, 16)
    limit._confirmed = 5000
    now = 0.0
    for _ in range(3000):
        now += 0.01
        mark = limit.begun(limit.level)
        limit.ended(now, 0.1, limit.level, mark, limit.level - 1, waiting=True)
    assert limit.trials > 0


def test_a_trial_that_nobody_waits_for_any_more_is_dropped() -> None:
    limit = AdaptiveLimit(16)
    for n in range(10):
        limit.ended(n / 100, 0.1, 16, limit.begun(16), 15, waiting=True)
    assert limit.level != limit.value or limit.describe(0.1)["trial"] is not None
    limit.ended(10.0, 0.1, 2, 0, 1, waiting=False)
    assert limit.describe(10.0)["trial"] is None
    assert limit.level == limit.value


async def test_without_a_queue_the_limit_learns_from_those_turned_away() -> None:
    bench = Bench(1)
    bench.use(limit="adaptive", initial=16, queue=Queue(size=0))
    under_way = [await bench.arrive() for _ in range(16)]
    for _ in range(400):
        turned_away = await bench.arrive()
        assert turned_away.refusal().reason is Reason.QUEUE_FULL
        bench.clock.advance(0.02)
        under_way.pop(0).end.set_result(OK)
        await settle()
        under_way += [await bench.arrive() for _ in range(bench.gate.limit.level - len(under_way))]
    limit = bench.gate.limit
    assert isinstance(limit, AdaptiveLimit)
    assert limit.trials > 0


def test_one_push_back_among_many_answers_is_forgotten() -> None:
    limit = AdaptiveLimit(512)
    limit.pushed_back(1.0, 3)
    assert limit.value == 256
    for n in range(40):
        limit.ended(1.1 + n / 100, 0.02, 3, 0, 2, False)
    assert limit.value == 512


@pytest.mark.parametrize("goes", ["cancel", "timeout"])
async def test_a_hold_ends_with_the_last_waiter_though_nobody_got_a_permit(goes: str) -> None:
    """The limit fell below what is in flight, which holds the shedder's clocks; the waiters left
    before it was made up for. An overload that stayed on hold would never end."""
    bench = Bench(3, queue=Queue(size=4, timeout=2.0))
    gate, shedder = bench.gate, bench.gate.shedder
    running = [await bench.arrive() for _ in range(3)]
    waiting = [await bench.arrive() for _ in range(3)]
    for _ in range(30):  # the server is seen to serve
        waiting.append(await bench.arrive())
        running.pop(0).end.set_result(OK)
        await bench.advance(0.05)
        running.append(waiting.pop(0))
    waiting += [await bench.arrive() for _ in range(6)]
    assert shedder.overloaded
    assert len(gate.queue) > 0
    bench.use(limit=1)
    running.pop(0).end.set_result(OK)
    await settle()
    assert gate.in_flight == 2
    assert len(gate.queue) > 0
    assert shedder.keep(bench.clock.now()) is None  # on hold
    admitted = gate.admitted
    if goes == "cancel":
        for each in waiting:
            each.task.cancel()
        await settle()
    else:
        await bench.advance(2.0)
    assert len(gate.queue) == 0
    assert (gate.in_flight, gate.admitted) == (2, admitted)
    for _ in range(100):
        bench.clock.advance(0.2)
        shedder.stands(bench.clock.now())
    assert not shedder.overloaded
