"""The queue, step by step, against a naive one that looks at everybody."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from filters.queueing import FairQueue, Waiter
from tests.filters.test_queueing import COSTS, TENANTS, remembers_little

TURNS = 3
"""Instead of 8, so that short runs see what ageing does."""
LEVELS = st.sampled_from([0, 1, 1, 3])


def is_heap(keys: list[tuple[float, int]]) -> bool:
    return all(keys[(n - 1) // 2] <= keys[n] for n in range(1, len(keys)))


class Naive:
    """The same rules, by looking at everybody each time; it remembers every tenant."""

    def __init__(self) -> None:
        self.live: list[Waiter[object]] = []
        self.lapsed: list[Waiter[object]] = []
        self.starts: list[dict[int, float]] = [{} for _ in range(4)]
        self.virtual = [0.0] * 4
        self.served = [0] * 4
        self.turn = self.pops = 0

    def of(self, level: int, tenant: int | None = None) -> list[Waiter[object]]:
        return [w for w in self.live if w.level == level and tenant in (None, w.tenant)]

    def add(self, newcomer: Waiter[object]) -> None:
        starts, tenant = self.starts[newcomer.level], newcomer.tenant
        if not self.of(newcomer.level, tenant):
            virtual = self.virtual[newcomer.level]
            starts[tenant] = max(virtual, starts.get(tenant, virtual))
        self.live.append(newcomer)

    def out(self, gone: Waiter[object]) -> None:
        self.live.remove(gone)
        if not self.of(gone.level):
            self.starts[gone.level].clear()
            self.virtual[gone.level] = 0.0

    def lapse(self, now: float) -> None:
        for each in sorted((w for w in self.live if w.expires <= now), key=lambda w: w.expires):
            self.out(each)
            self.lapsed.append(each)

    def next_level(self, now: float, age: float) -> int:
        waiting = [level for level in range(4) if self.of(level)]
        overdue = [n for n in waiting[1:] if self.of(n)[0].arrived + n * age <= now]
        if self.turn + 1 >= TURNS and overdue:
            return min(overdue, key=lambda n: self.served[n])
        return waiting[0]

    def next_tenants(self, level: int) -> set[int]:
        starts = {w.tenant: self.starts[level][w.tenant] for w in self.of(level)}
        self.virtual[level] = max(self.virtual[level], min(starts.values()))
        return {tenant for tenant, start in starts.items() if start == min(starts.values())}

    def largest(self, extra: Waiter[object] | None = None) -> set[tuple[int, int]]:
        """(level, tenant) of those with the largest backlog in the lowest class."""
        everybody = [*self.live, extra] if extra is not None else self.live
        lowest = max(w.level for w in everybody)
        backlog: Counter[int] = Counter()
        for each in everybody:
            if each.level == lowest:
                backlog[each.tenant] += each.cost  # type: ignore[assignment]
        most = max(backlog.values())
        return {(lowest, tenant) for tenant, held in backlog.items() if held == most}


class Against(RuleBasedStateMachine):
    """``exact`` checks whose turn it is among tenants, too."""

    exact = True

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("filters.queueing.TURNS", TURNS)
        self.queue: FairQueue[object] = FairQueue(9)
        self.naive = Naive()
        self.now = 0.0
        self.names = 0

    def teardown(self) -> None:
        self.patch.undo()

    @rule(
        level=LEVELS,
        comers=st.lists(st.tuples(TENANTS, COSTS), min_size=1, max_size=4),
        lasts=st.sampled_from([0.0, 3.0, 10.0, 1e9, 1e9]),
        newest=st.booleans(),
    )
    def push(self, level: int, comers: list[tuple[int, float]], lasts: float, newest: bool) -> None:
        for tenant, cost in comers:
            self.names += 1
            new = Waiter[object](self.names, level, tenant, cost, self.now, self.now + lasts)
            self.push_one(new, newest)

    def push_one(self, new: Waiter[object], newest: bool) -> None:
        naive, now = self.naive, self.now
        level, tenant = new.level, new.tenant
        if len(naive.live) >= self.queue.size:
            naive.lapse(now)
        full = len(naive.live) >= self.queue.size
        displaced = self.queue.push(new, now, newest)
        assert (displaced is not None) == full
        if displaced is None:
            naive.add(new)
            return
        worst = naive.largest(new) if naive.live else {(level, tenant)}
        assert (displaced.level, displaced.tenant) in worst
        if (level, tenant) in worst:  # it is its own loss
            mine = naive.of(level, tenant)
            assert displaced is (mine[0] if newest and mine else new)
        else:
            theirs = naive.of(displaced.level, displaced.tenant)
            assert displaced is theirs[0 if newest else -1]
        if displaced is not new:
            naive.out(displaced)
            naive.add(new)

    @rule(turns=st.integers(1, 5), room=st.sampled_from([1.0, 9.0, 9.0]), newest=st.booleans())
    def pop(self, turns: int, room: float, newest: bool) -> None:
        for _ in range(turns):
            self.pop_one(room, newest)

    def pop_one(self, room: float, newest: bool) -> None:
        naive = self.naive
        naive.lapse(self.now)
        taken = self.queue.pop(self.now, room, newest)
        if not naive.live:
            assert taken is None
            return
        level = naive.next_level(self.now, self.queue.age)
        tenants = naive.next_tenants(level) if self.exact else set(range(5))
        heads = [naive.of(level, tenant) for tenant in tenants]
        first = [each[-1 if newest else 0] for each in heads if each]
        if taken is None:
            assert max(each.cost for each in first) > room
            return
        assert taken in first
        assert taken.cost <= room
        assert taken.before is taken.after is None
        strayed = any(naive.of(better) for better in range(level))
        naive.turn = 0 if strayed else naive.turn + 1
        naive.pops += 1
        naive.served[level] = naive.pops
        naive.starts[level][taken.tenant] += taken.cost
        naive.out(taken)

    @precondition(lambda self: self.naive.live)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.naive.live))
        self.naive.out(gone)
        assert self.queue.remove(gone)
        assert not self.queue.remove(gone)

    @precondition(lambda self: self.naive.lapsed)
    @rule()
    def remove_an_expired_one(self) -> None:
        assert self.queue.remove(self.naive.lapsed.pop())

    @rule()
    def expire(self) -> None:
        self.naive.lapse(self.now)
        assert self.queue.expire(self.now) == self.naive.lapsed
        self.naive.lapsed = []

    @rule(keep=st.sampled_from([0, 4, 7]))
    def trim(self, keep: int) -> None:
        self.naive.lapse(self.now)
        for gone in self.queue.trim(keep, self.now):
            assert (gone.level, gone.tenant) in self.naive.largest()
            assert gone is self.naive.of(gone.level, gone.tenant)[0]
            self.naive.out(gone)
        assert len(self.naive.live) <= keep or keep >= len(self.queue)

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.5]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(size=st.sampled_from([0, 4, 9, 20, 20]))
    def resize(self, size: int) -> None:
        self.queue.size = size

    @invariant()
    def looks_the_same(self) -> None:
        queue, live = self.queue, self.naive.live
        assert len(queue) == len(live)
        assert queue.cost() == sum(each.cost for each in live)
        assert queue.by_level() == tuple(len(self.naive.of(level)) for level in range(4))
        assert queue.oldest() == min((each.arrived for each in live), default=None)
        assert queue.tenants() == len({(each.level, each.tenant) for each in live})
        waiting = [each.expires for each in (*self.naive.lapsed, *live)]
        assert queue.next_expiry() is None if not waiting else queue.next_expiry() in waiting
        if waiting and not self.naive.lapsed:
            assert queue.next_expiry() == min(waiting)
        assert remembers_little(queue)
        for level in queue._levels:
            assert is_heap([each[:2] for each in level.schedule])
            assert is_heap([each[:2] for each in level.heavy])
        assert is_heap([each[:2] for each in queue._deadlines])


class WithoutSlack(Against):
    """What is gone is swept out at once, so that sweeping is tested; who is next among tenants
    then depends on who was forgotten, and is tested above."""

    exact = False

    def __init__(self) -> None:
        super().__init__()
        for module in ("flows", "queueing"):
            self.patch.setattr(f"filters.{module}.SLACK", 0)


STEPS = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestAgainstNaive = Against.TestCase
TestAgainstNaive.settings = STEPS
TestWithoutSlack = WithoutSlack.TestCase
TestWithoutSlack.settings = STEPS
