"""The plan, step by step, against somebody who looks at everybody: each waiting call leaves exactly
once, in a batch that is within all bounds, or because it left, was late or had to go."""

from __future__ import annotations

from collections import Counter
from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gpu_batcher import lanes
from gpu_batcher.lanes import Waiting
from gpu_batcher.pacing import UNBOUNDED, Bounds
from gpu_batcher.plan import Batch, Plan

EPSILON = 1e-9
DELAY = 0.004

BOUNDS = st.builds(
    Bounds,
    max_rows=st.sampled_from([1, 4, 9]),
    max_items=st.sampled_from([3, UNBOUNDED]),
    max_bytes=st.sampled_from([250, 1 << 20]),
    max_padded_bytes=st.sampled_from([500, UNBOUNDED]),
    mask_bytes=st.sampled_from([0, 8]),
    max_padded=st.sampled_from([60, UNBOUNDED]),
    max_delay=st.sampled_from([0.0, DELAY]),
    target=st.sampled_from([0.001, 0.02]),
    max_in_flight=st.integers(1, 3),
    max_waiting=st.sampled_from([0, 3, 12]),
    preferred=st.sampled_from([(), (2, 4, 8)]),
    buckets=st.sampled_from([(), (10, 20)]),
    age=st.just(0.01),
)


class Against(RuleBasedStateMachine):
    """Time goes on in small steps, and the plan is asked whenever it said so, as by a coalescer."""

    @initialize(bounds=BOUNDS)
    def begin(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.plan: Plan[int] = Plan(bounds)
        self.live: dict[int, Waiting[int]] = {}
        self.added: dict[int, float] = {}  # its body may have come in before, bit by bit
        self.running: list[Batch[int]] = []
        self.fate: Counter[int] = Counter()
        self.now = 0.0
        self.names = 0
        self.free_since = 0.0

    # -- what happens ------------------------------------------------------------------------------

    @rule(
        key=st.integers(0, 2),
        rows=st.sampled_from([1, 1, 1, 2, 5, 12]),
        size=st.sampled_from([10, 100, 300]),
        length=st.sampled_from([1, 5, 10, 11, 30]),
        priority=st.integers(0, 3),
        tenant=st.integers(0, 2),
        lasts=st.sampled_from([0.0, 0.003, 0.05, inf, inf, inf]),
        ago=st.sampled_from([0.0, 0.0, 0.002]),
    )
    def add(
        self,
        key: int,
        rows: int,
        size: int,
        length: int,
        priority: int,
        tenant: int,
        lasts: float,
        ago: float,
    ) -> None:
        self.names += 1
        new = Waiting(
            self.names, key, rows, size, length, priority, tenant, self.now + lasts, self.now - ago
        )
        before = dict(self.live)
        gone = self.plan.add(new, self.now)
        self.live[self.names] = new
        self.added[self.names] = self.now
        if gone is not None:
            self.had_to_go(gone, new, before)
        self.expire()  # what it came across
        self.pump()

    def had_to_go(
        self, gone: Waiting[int], new: Waiting[int], before: dict[int, Waiting[int]]
    ) -> None:
        valid = {name: each for name, each in before.items() if each.deadline > self.now}
        assert len(valid) >= self.bounds.max_waiting
        everybody = [*valid.values(), new]
        worst = max(each.priority for each in everybody)
        assert gone.priority == worst
        held: Counter[int] = Counter()
        for each in everybody:
            if each.priority == worst:
                held[each.tenant] += each.rows
        assert held[gone.tenant] == max(held.values())
        whose = (worst, gone.tenant)
        mine = [each.item for each in everybody if (each.priority, each.tenant) == whose]
        assert gone.item == max(mine)
        self.leaves(gone)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        each = self.live[data.draw(st.sampled_from(sorted(self.live)))]
        assert self.plan.remove(each)
        assert not self.plan.remove(each)
        self.leaves(each)

    @rule(seconds=st.sampled_from([0.0001, 0.0005, 0.002, 0.02]))
    def wait(self, seconds: float) -> None:
        """Ask whenever the plan wants to be asked."""
        until = self.now + seconds
        while (due := self.plan.next_due(self.now)) is not None and due <= until:
            assert due > self.now, "it was asked already"
            self.now = due
            self.expire()
            self.pump()
        self.now = until

    @precondition(lambda self: self.running)
    @rule(data=st.data(), ok=st.booleans(), overfilled=st.booleans())
    def end(self, data: st.DataObject, ok: bool, overfilled: bool) -> None:
        batch = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if not ok and overfilled:
            self.plan.overfilled(batch)
        if len(self.running) + 1 == self.bounds.max_in_flight:
            self.free_since = self.now
        self.plan.ended(batch, self.now, ok)
        self.expire()
        self.pump()

    def width(self, each: Waiting[int]) -> float:
        return each.size / each.rows + self.bounds.mask_bytes * each.length

    # -- what must hold ---------------------------------------------------------------

    def leaves(self, each: Waiting[int]) -> None:
        assert self.live.pop(each.item) is each
        self.fate[each.item] += 1

    def expire(self) -> None:
        for each in self.plan.expire(self.now):
            assert each.deadline <= self.now
            self.leaves(each)

    def pump(self) -> None:
        while (batch := self.plan.take(self.now)) is not None:
            self.plan.started(batch, self.now)
            self.running.append(batch)
            self.check(batch)
        for each in self.live.values():
            assert each.deadline > self.now
        if len(self.running) < self.bounds.max_in_flight:
            for each in self.live.values():
                assert self.now < each.arrived + self.bounds.max_delay

    def check(self, batch: Batch[int]) -> None:
        bounds, members = self.bounds, batch.members
        assert len(self.running) <= bounds.max_in_flight
        assert members
        assert {each.key for each in members} == {batch.key}
        assert batch.rows == sum(each.rows for each in members)
        assert batch.size == sum(each.size for each in members)
        assert batch.length == max(each.length for each in members)
        if len(members) > 1:
            assert batch.rows <= bounds.max_rows
            assert len(members) <= bounds.max_items
            assert batch.size <= bounds.max_bytes
            assert batch.rows * batch.length <= bounds.max_padded
            assert batch.rows * max(map(self.width, members)) <= bounds.max_padded_bytes
        if bounds.buckets:
            assert len({(each.length > 10) + (each.length > 20) for each in members}) == 1
        for each in members:
            assert each.deadline > self.now
            soonest = max(self.added[each.item], self.free_since)
            latest = max(each.arrived + bounds.max_delay, soonest)
            assert self.now <= latest + EPSILON
            self.leaves(each)

    @invariant()
    def it_counts_right(self) -> None:
        if not hasattr(self, "plan"):
            return
        assert len(self.plan) == len(self.live) <= max(self.bounds.max_waiting, 0)
        assert self.plan.in_flight == len(self.running)
        assert all(times == 1 for times in self.fate.values())
        due = self.plan.next_due(self.now)
        if self.live and len(self.running) < self.bounds.max_in_flight:
            assert due is not None
            earliest = min(each.arrived for each in self.live.values())
            assert due <= max(self.now, earliest + self.bounds.max_delay)

    def teardown(self) -> None:
        if not hasattr(self, "plan"):
            return
        while self.running or self.live:
            while self.running:
                batch = self.running.pop()
                self.free_since = self.now
                self.plan.ended(batch, self.now, ok=True)
            self.expire()
            self.pump()
            self.wait(DELAY)
        self.forgotten()

    def forgotten(self) -> None:
        plan = self.plan
        assert self.fate.total() == self.names
        assert len(plan) == plan.in_flight == len(plan._agenda) == 0
        assert plan.next_due(self.now) is None
        assert not plan._deadlines
        assert not plan._lapsed
        assert not any(crowd.holders for crowd in plan._crowds)
        for lane in plan._lanes:
            assert (lane.count, lane.rows, lane.size, lane.running) == (0, 0, 0, 0)
            assert not lane.shelves
        plan._lanes.forget(self.now + lanes.IDLE)
        assert not len(plan._lanes)
        assert not plan._lanes._lines
        assert not plan._lanes._idle


TestAgainst = Against.TestCase
TestAgainst.settings = settings(max_examples=60, stateful_step_count=60)
