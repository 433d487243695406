"""The gate: every permit comes back exactly once, and who waits gets it in time or an answer."""

from __future__ import annotations

import asyncio

import pytest

from filters.admission import Admission, Queue
from filters.api import Exchange, Kind, Outcome, Priority, Reason, Reject
from tests.filters.gates import OK, Bench, settle

# -- permits -------------------------------------------------------------------------------------


async def test_a_permit_is_held_to_the_end_of_the_journey() -> None:
    bench = Bench(2)
    journey = await bench.arrive()
    assert journey.begun
    assert bench.gate.in_flight == 1
    await bench.advance(3600)
    assert bench.gate.in_flight == 1
    journey.end.set_result(OK)
    assert await journey.task is OK
    assert bench.gate.in_flight == 0
    assert bench.gate.admitted == 1
    assert journey.subject.queued == 0


@pytest.mark.parametrize("waited", [False, True])
@pytest.mark.parametrize("error", [Reject(Reason.NO_ENDPOINT), ValueError()])
async def test_it_comes_back_when_the_journey_fails(error: Exception, waited: bool) -> None:
    bench = Bench(1)
    journey = await bench.arrive()
    if waited:
        first, journey = journey, await bench.arrive()
        first.end.set_result(OK)
        await settle()
    assert bench.gate.in_flight == 1
    journey.end.set_exception(error)
    with pytest.raises(type(error)):
        await journey.task
    assert bench.gate.in_flight == 0


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(Kind.OK, 404),
        Outcome(Kind.FAILED, 503),
        Outcome(Kind.PUSHED_BACK, 429),
        Outcome(Kind.IGNORED),
    ],
    ids=repr,
)
async def test_it_comes_back_whatever_the_outcome(outcome: Outcome) -> None:
    bench = Bench(1)
    bench.use(limit="adaptive", initial=1)
    first, second = await bench.arrive(), await bench.arrive()
    for each in (first, second):
        assert each.begun
        each.end.set_result(outcome)
        assert await each.task is outcome
        await settle()
    assert bench.gate.in_flight == 0


async def test_who_leaves_while_waiting_gives_the_place_up() -> None:
    bench = Bench(1, queue=Queue(size=1))
    first, second = await bench.arrive(), await bench.arrive()
    second.task.cancel()
    await settle()
    assert second.task.cancelled()
    assert len(bench.gate.queue) == 0
    assert bench.gate.shedder.length == 0
    third = await bench.arrive()
    first.end.set_result(OK)
    await settle()
    assert third.begun
    assert not second.begun
    assert bench.gate.in_flight == 1


async def test_who_leaves_in_the_very_moment_of_the_grant_gives_it_back() -> None:
    """The permit is granted, the task is cancelled before it has run again."""
    bench = Bench(1)
    first, second, third = [await bench.arrive() for _ in range(3)]
    first.end.set_result(OK)
    while len(bench.gate.queue) == 2:  # noqa: ASYNC110 - up to the grant and no further
        await asyncio.sleep(0)
    assert bench.gate.in_flight == 1
    assert second.waiting
    second.task.cancel()
    await settle()
    assert second.task.cancelled()
    assert not second.begun
    assert third.begun
    assert bench.gate.in_flight == 1
    third.end.set_result(OK)
    await settle()
    assert bench.gate.in_flight == 0


async def test_who_is_granted_a_permit_after_leaving_gives_it_back() -> None:
    """The task is cancelled, the permit is granted before it has run again."""
    bench = Bench(1)
    first, second, third = [await bench.arrive() for _ in range(3)]
    first.end.set_result(OK)
    second.task.cancel()
    await settle()
    assert first.task.result() is OK
    assert second.task.cancelled()
    assert third.begun
    assert bench.gate.in_flight == 1


async def test_who_leaves_in_the_very_moment_of_a_refusal_gives_nothing_back() -> None:
    bench = Bench(1, queue=Queue(timeout=1.0))
    await bench.arrive()
    second = await bench.arrive()
    bench.clock.advance(1.0)
    second.task.cancel()
    await settle()
    assert second.task.cancelled()
    assert bench.gate.in_flight == 1
    assert len(bench.gate.queue) == 0


async def test_who_leaves_in_flight_makes_room() -> None:
    bench = Bench(1)
    first, second = await bench.arrive(), await bench.arrive()
    first.task.cancel()
    await settle()
    assert first.task.cancelled()
    assert second.begun
    assert bench.gate.in_flight == 1


# -- waiting -------------------------------------------------------------------------------------


async def test_the_best_class_is_next_and_in_it_the_oldest() -> None:
    bench = Bench(1)
    running = await bench.arrive()
    waiting = [await bench.arrive(Priority(rank)) for rank in (2, 1, 3, 0, 1, 0)]
    served = []
    for _ in waiting:
        running.end.set_result(OK)
        await settle()
        (running,) = (each for each in waiting if each.begun and not each.task.done())
        served.append(waiting.index(running))
    assert served == [3, 5, 1, 4, 0, 2]


async def test_tenants_take_turns() -> None:
    bench = Bench(1)
    running = await bench.arrive()
    many = [await bench.arrive(tenant=b"many") for _ in range(5)]
    few = await bench.arrive(tenant=b"few")
    for _ in range(2):
        running.end.set_result(OK)
        await settle()
        running = next(j for j in (*many, few) if j.begun and not j.task.done())
    assert few.begun


async def test_how_long_it_waited_is_noted() -> None:
    bench = Bench(1)
    first, second = await bench.arrive(), await bench.arrive()
    await bench.advance(2.5)
    first.end.set_result(OK)
    await settle()
    assert second.subject.queued == pytest.approx(2.5)
    assert first.subject.queued == 0
    assert [each.subject.granted for each in (first, second)] == [False, True]
    assert (bench.gate.admitted, bench.gate.waited) == (2, 1)


async def test_a_wait_in_vain_is_noted_too() -> None:
    bench = Bench(1, queue=Queue(timeout=3))
    await bench.arrive()
    refused, left = await bench.arrive(), await bench.arrive()
    await bench.advance(2)
    left.task.cancel()  # its client, or its deadline
    await settle()
    await bench.advance(1)
    assert refused.refusal().reason is Reason.QUEUE_TIMEOUT
    assert [each.subject.queued for each in (refused, left)] == [3, 2]
    assert [each.subject.granted for each in (refused, left)] == [False, False]


async def test_whoever_comes_does_not_pass_who_waits() -> None:
    bench = Bench(2)
    running = [await bench.arrive() for _ in range(2)]
    dear = await bench.arrive(cost=2.0)
    running[0].end.set_result(OK)
    await settle()
    late = await bench.arrive()
    assert dear.waiting
    assert late.waiting
    running[1].end.set_result(OK)
    await settle()
    assert dear.begun
    assert late.waiting
    dear.end.set_result(OK)
    await settle()
    assert late.begun


async def test_what_costs_more_than_the_limit_passes_alone() -> None:
    bench = Bench(2)
    running = [await bench.arrive() for _ in range(2)]
    dear, late = await bench.arrive(cost=5.0), await bench.arrive()
    running[0].end.set_result(OK)
    await settle()
    assert dear.waiting
    running[1].end.set_result(OK)
    await settle()
    assert dear.begun
    assert late.waiting
    assert bench.gate.in_flight == 5
    dear.end.set_result(OK)
    await settle()
    assert late.begun
    assert bench.gate.in_flight == 1


# -- refusals ------------------------------------------------------------------------------------


async def test_the_queue_timeout_ends_waiting() -> None:
    bench = Bench(1, queue=Queue(timeout=3.0))
    first = await bench.arrive()
    second = await bench.arrive()
    await bench.advance(2.0)
    third = await bench.arrive()
    await bench.advance(0.99)
    assert second.waiting
    await bench.advance(0.01)
    refusal = second.refusal()
    assert refusal.reason is Reason.QUEUE_TIMEOUT
    assert refusal.retry_after is not None
    assert 1 <= refusal.retry_after <= 10
    assert third.waiting
    await bench.advance(2.0)
    assert third.refusal().reason is Reason.QUEUE_TIMEOUT
    assert bench.gate.timed_out == 2
    assert bench.gate.in_flight == 1
    assert first.begun


async def test_the_deadline_ends_waiting_if_it_is_sooner() -> None:
    bench = Bench(1, queue=Queue(timeout=3.0))
    await bench.arrive()
    later, sooner = await bench.arrive(within=9.0), await bench.arrive(within=0.5)
    await bench.advance(0.5)
    assert sooner.refusal().reason is Reason.DEADLINE
    assert later.waiting
    await bench.advance(2.5)
    assert later.refusal().reason is Reason.QUEUE_TIMEOUT


async def test_nobody_is_sent_on_too_late_even_if_the_timer_is() -> None:
    bench = Bench(1, queue=Queue(timeout=3.0))
    first, second = await bench.arrive(), await bench.arrive()
    bench.clock.time += 3.0  # the timer is due, but has not fired
    first.end.set_result(OK)
    await settle()
    assert not second.begun
    await bench.advance(0.0)
    assert second.refusal().reason is Reason.QUEUE_TIMEOUT
    assert bench.gate.in_flight == 0


async def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    bench = Bench(1, queue=Queue(size=2))
    await bench.arrive()
    waiting = [await bench.arrive() for _ in range(2)]
    refusal = (await bench.arrive()).refusal()
    assert refusal.reason is Reason.QUEUE_FULL
    assert refusal.retry_after is not None
    assert 1 <= refusal.retry_after <= 10
    assert all(each.waiting for each in waiting)
    assert bench.gate.full == 1
    assert bench.gate.in_flight == 1


async def test_a_better_class_takes_the_place_of_a_lower_one() -> None:
    bench = Bench(1, queue=Queue(size=2))
    await bench.arrive()
    low = [await bench.arrive(Priority.SHEDDABLE) for _ in range(2)]
    best = await bench.arrive(Priority.CRITICAL_PLUS)
    gone = [each for each in low if each.task.done()]
    assert len(gone) == 1
    refusal = gone[0].refusal()
    assert refusal.reason is Reason.QUEUE_FULL
    assert refusal.retry_after is not None
    assert best.waiting
    assert len(bench.gate.queue) == 2


async def test_without_a_queue_nobody_waits() -> None:
    bench = Bench(1, queue=Queue(size=0))
    first = await bench.arrive()
    assert (await bench.arrive()).refusal().reason is Reason.QUEUE_FULL
    first.end.set_result(OK)
    await settle()
    assert (await bench.arrive()).begun


async def test_checks_come_before_anything_is_taken() -> None:
    bench = Bench(1)

    def never(subject: Exchange, now: float) -> None:
        raise Reject(Reason.RATE_LIMITED)

    bench.admission = Admission(bench.gate, bench.clock, [never])
    assert (await bench.arrive()).refusal().reason is Reason.RATE_LIMITED
    assert (bench.gate.in_flight, bench.gate.admitted, len(bench.gate.queue)) == (0, 0, 0)
