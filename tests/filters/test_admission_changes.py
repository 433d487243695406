"""The gate while its configuration changes, what it tells the limit, and any course of events."""

from __future__ import annotations

import asyncio
import json
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.admission import Admission, Queue
from filters.api import Kind, Outcome, Priority, Reason, Reject
from filters.limits import AdaptiveLimit, FixedLimit
from filters.rate_limit import Config as RateConfig
from filters.rate_limit import RateLimit
from tests.filters.gates import OK, Bench, settle

# -- dry run and reload --------------------------------------------------------------------------


async def test_a_dry_run_lets_everything_pass_and_counts() -> None:
    bench = Bench(2, queue=Queue(size=0), dry_run=True)
    journeys = [await bench.arrive() for _ in range(5)]
    assert all(each.begun for each in journeys)
    gate = bench.gate
    assert (gate.would_wait, gate.admitted, gate.waited, gate.full) == (3, 5, 0, 0)
    for each in journeys:
        assert (each.subject.queued, each.subject.granted) == (0, False)
        assert each.subject.reason is None
        each.end.set_result(OK)
    await settle()
    assert gate.in_flight == 0
    assert [each.subject.shadowed for each in journeys] == [None, None, *["queue"] * 3]


async def test_of_several_dry_runs_the_first_is_told_and_all_are_counted() -> None:
    """Had the first one acted, the others would never have seen the exchange."""
    bench = Bench(1, dry_run=True)
    limit = RateLimit(RateConfig(key="route", rate=1.0, burst=1, dry_run=True))
    bench.admission = Admission(bench.gate, bench.clock, [limit.arrive])
    journeys = [await bench.arrive() for _ in range(2)]
    assert [each.subject.shadowed for each in journeys] == [None, "rate_limited"]
    assert (limit.would_refuse, bench.gate.would_wait) == (1, 1)


async def test_who_came_in_a_dry_run_counts_when_it_is_over() -> None:
    bench = Bench(1, dry_run=True)
    first, second = await bench.arrive(), await bench.arrive()
    bench.use(dry_run=False)
    third = await bench.arrive()
    first.end.set_result(OK)
    await settle()
    assert third.waiting
    second.end.set_result(OK)
    await settle()
    assert third.begun


async def test_a_higher_limit_lets_waiters_in_at_once() -> None:
    bench = Bench(1)
    journeys = [await bench.arrive() for _ in range(5)]
    bench.use(limit=3)
    await settle()
    assert [each.begun for each in journeys] == [True] * 3 + [False] * 2
    assert bench.gate.in_flight == 3


async def test_a_lower_limit_lets_what_is_in_flight_end() -> None:
    bench = Bench(3)
    journeys = [await bench.arrive() for _ in range(4)]
    bench.use(limit=1)
    for each in journeys[:2]:
        each.end.set_result(OK)
        await settle()
        assert journeys[3].waiting
        assert bench.gate.shedder._held  # this wait is not the server's fault
    journeys[2].end.set_result(OK)
    await settle()
    assert journeys[3].begun
    assert not bench.gate.shedder._held
    assert bench.gate.in_flight == 1


async def test_from_fixed_to_adaptive_and_back() -> None:
    bench = Bench(1)
    journeys = [await bench.arrive() for _ in range(4)]
    bench.use(limit="adaptive", initial=2)
    await settle()
    assert isinstance(bench.gate.limit, AdaptiveLimit)
    assert [each.begun for each in journeys] == [True, True, False, False]
    bench.use(limit=3)
    await settle()
    assert isinstance(bench.gate.limit, FixedLimit)
    assert [each.begun for each in journeys] == [True, True, True, False]
    for each in journeys:  # the limit that they began with is there no more
        each.end.set_result(OK)
        await settle()
    assert bench.gate.in_flight == 0


async def test_a_reload_keeps_what_the_limit_has_learned() -> None:
    bench = Bench(1)
    bench.use(limit="adaptive", initial=50)
    limit = bench.gate.limit
    for _ in range(3):
        limit.pushed_back(bench.clock.now(), 7)
        limit.ended(bench.clock.now(), 0.02, 7, 0, 7, False)
    bench.use(initial=100, queue=Queue(size=3))
    assert bench.gate.limit is limit
    assert limit.value == 7
    bench.use(min=10)
    assert limit.value == 10
    bench.use(min=1, max=4)
    assert limit.value == 4
    assert bench.gate.queue.size == 3


async def test_a_smaller_queue_sends_nobody_away() -> None:
    bench = Bench(1)
    waiting = [await bench.arrive() for _ in range(4)][1:]
    bench.use(queue=Queue(size=1))
    assert all(each.waiting for each in waiting)
    assert (await bench.arrive()).refusal().reason is Reason.QUEUE_FULL


# -- what the limit is told ----------------------------------------------------------------------


async def test_only_good_answers_and_push_back_are_told() -> None:
    bench = Bench(9)
    with (
        mock.patch.object(FixedLimit, "ended") as ended,
        mock.patch.object(FixedLimit, "pushed_back") as pushed_back,
    ):
        outcomes = (
            Outcome(Kind.OK, 500),
            Outcome(Kind.OK, 404),
            Outcome(Kind.FAILED, 503),
            Outcome(Kind.IGNORED),
        )
        for outcome in outcomes:
            journey = await bench.arrive()
            journey.end.set_result(outcome)
            await settle()
        upgrade = await bench.arrive()
        upgrade.subject.upgrade = True
        upgrade.end.set_result(Outcome(Kind.OK, 101))
        await settle()
        ended.assert_not_called()
        pushed_back.assert_not_called()
        good, refused = await bench.arrive(), await bench.arrive()
        await bench.advance(0.25)
        good.end.set_result(OK)
        await settle()
        now = bench.clock.now()
        ended.assert_called_once_with(now, 0.25, 1.0, 0, 1.0, False)
        refused.end.set_result(Outcome(Kind.PUSHED_BACK, 429))
        await settle()
        pushed_back.assert_called_once_with(now, 0.0)


async def test_the_time_in_the_queue_is_not_the_servers() -> None:
    bench = Bench(1)
    first, second = await bench.arrive(), await bench.arrive()
    await bench.advance(2.0)
    first.end.set_result(OK)
    await settle()
    await bench.advance(0.5)
    with mock.patch.object(FixedLimit, "ended") as ended:
        second.end.set_result(OK)
        await settle()
    ended.assert_called_once_with(bench.clock.now(), 0.5, 1.0, 0, 0.0, False)


async def test_what_it_shows() -> None:
    bench = Bench(1)
    await bench.arrive()
    await bench.arrive(Priority.SHEDDABLE)
    await bench.advance(1.5)
    shown = json.loads(json.dumps(bench.gate.describe(bench.clock.now())))
    assert shown["in_flight"] == 1
    assert shown["queue"]["waiting"] == 1
    assert shown["queue"]["by_class"]["sheddable"] == 1
    assert shown["queue"]["oldest_s"] == 1.5


# -- any course of events ------------------------------------------------------------------------

NUMBER = st.integers(0, 30)
EVENT = st.one_of(
    st.tuples(st.just("arrive"), st.sampled_from(Priority), st.sampled_from((None, 0.5, 4.0))),
    st.tuples(st.just("end"), NUMBER, st.sampled_from(("ok", "fail", "push back"))),
    st.tuples(st.just("cancel"), NUMBER, st.none()),
    st.tuples(st.just("end and cancel"), NUMBER, NUMBER),
    st.tuples(st.just("limit"), st.sampled_from((2, 3, 5, "adaptive")), st.none()),
    st.tuples(st.just("size"), st.integers(0, 6), st.none()),
    st.tuples(st.just("advance"), st.sampled_from((0.01, 0.4, 3.0)), st.none()),
)


class Course:
    """A gate under any events. A grant above the limit fails as it is made.

    ``costs`` are given to arrivals in turn. They are at most the least limit: one that costs more
    is alone, which has a test of its own.
    """

    def __init__(self, costs: list[float]) -> None:
        self.bench = Bench(3, queue=Queue(size=5, timeout=5.0))
        self.journeys = self.bench.journeys
        self.costs = costs
        self.wrong: list[str] = []

    def granted(self, limit: FixedLimit | AdaptiveLimit, in_use: float) -> int:
        if in_use > limit.level:
            self.wrong.append(f"{in_use} in use, {limit.level} allowed")
        return 0

    async def meet(self, what: str, first: object, second: object) -> None:
        bench = self.bench
        alive = [each for each in self.journeys if not each.task.done()]
        begun = [each for each in alive if each.begun]
        if what == "arrive":
            assert isinstance(first, Priority)
            cost = self.costs[len(self.journeys) % len(self.costs)]
            within = second if isinstance(second, float) else None
            tenant = b"%d" % (len(self.journeys) % 3)
            bench.post(first, tenant=tenant, cost=cost, within=within)
        elif what == "limit":
            bench.use(limit=first, initial=4, min=2)
        elif what == "size":
            bench.use(queue=Queue(size=int(str(first)), timeout=5.0))
        elif what == "advance":
            assert isinstance(first, float)
            bench.clock.advance(first)
        elif what == "cancel":
            if alive:
                alive[int(str(first)) % len(alive)].task.cancel()
        elif begun:
            journey = begun[int(str(first)) % len(begun)]
            if second == "fail":
                journey.end.set_exception(ValueError())
            else:
                journey.end.set_result(Outcome(Kind.PUSHED_BACK) if second == "push back" else OK)
            if what == "end and cancel":
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                alive[int(str(second)) % len(alive)].task.cancel()
        await settle()

    def check(self) -> None:
        assert not self.wrong
        gate, costs = self.bench.gate, self.bench.costs
        alive = [each for each in self.journeys if not each.task.done()]
        begun = [each for each in alive if each.begun]
        assert gate.in_flight == sum(costs[each.subject] for each in begun)
        assert len(gate.queue) == len(alive) - len(begun) == gate.shedder.length
        if gate.queue:
            assert gate.in_flight > 0
            if set(self.costs) == {1.0}:
                assert gate.in_flight >= gate.limit.level

    async def go(self, events: list[tuple[str, object, object]]) -> None:
        for what, first, second in events:
            await self.meet(what, first, second)
            self.check()
        while any(not each.task.done() for each in self.journeys):
            begun = [each for each in self.journeys if each.begun and not each.task.done()]
            assert begun, "everybody waits, for nothing"
            begun[0].end.set_result(OK)
            await settle()
            self.check()
        assert self.bench.gate.in_flight == 0
        assert len(self.bench.gate.queue) == 0
        for each in self.journeys:
            if not each.task.cancelled():
                error = each.task.exception()
                assert error is None or isinstance(error, (Reject, ValueError))


@pytest.mark.parametrize("costs", [[1.0], [1.0, 2.0, 0.5]], ids=["alike", "dear and cheap"])
@given(events=st.lists(EVENT, max_size=60))
def test_permits_are_never_lost_and_nobody_waits_for_nothing(
    costs: list[float], events: list[tuple[str, object, object]]
) -> None:
    course = Course(costs)
    with (
        mock.patch.object(FixedLimit, "begun", lambda limit, n: course.granted(limit, n)),
        mock.patch.object(AdaptiveLimit, "begun", lambda limit, n: course.granted(limit, n)),
    ):
        asyncio.run(_go(course, events))


async def _go(course: Course, events: list[tuple[str, object, object]]) -> None:
    await course.go(events)
