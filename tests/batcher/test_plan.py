"""Who goes together and when, one rule at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from math import inf

import pytest

from gpu_batcher import lanes
from gpu_batcher.lanes import Waiting
from gpu_batcher.pacing import Bounds
from gpu_batcher.plan import TURNS, Batch, Plan


def waiting(
    name: object = "",
    key: Hashable = "model",
    rows: int = 1,
    size: int = 100,
    length: int = 1,
    priority: int = 1,
    tenant: int = 0,
    deadline: float = inf,
    arrived: float = 0.0,
) -> Waiting[object]:
    return Waiting(name, key, rows, size, length, priority, tenant, deadline, arrived)


def busy(bounds: Bounds, *calls: Waiting[object]) -> tuple[Plan[object], Batch[object]]:
    """A plan of one slot, which is taken, in which calls have gathered."""
    plan: Plan[object] = Plan(bounds)
    plan.add(waiting(key="first"), 0.0)
    batch = plan.take(0.0)
    assert batch is not None
    for each in calls:
        assert plan.add(each, each.arrived) is None
    return plan, batch


def one_slot(**bounds: object) -> Bounds:
    return Bounds(max_in_flight=1, **bounds)  # type: ignore[arg-type]


def drain(plan: Plan[object], batch: Batch[object], now: float = 0.0) -> list[list[object]]:
    """The batches that follow, each as the names of its members."""
    batches = []
    following: Batch[object] | None = batch
    while following is not None:
        plan.ended(following, now, ok=False)
        following = plan.take(now)
        if following is not None:
            batches.append([each.item for each in following.members])
    return batches


def dense(plan: Plan[object], latency: float = 0.01, gap: float = 0.0001, crowd: int = 10) -> float:
    """Teach the plan that a batch takes ``latency``, arrivals follow each other by ``gap``, and
    ``crowd`` calls are there at once."""
    now = 0.0

    def answer() -> None:
        while (batch := plan.take(now)) is not None:
            plan.started(batch, now - latency)
            plan.ended(batch, now, ok=True)

    for _ in range(4):
        for _ in range(crowd):
            plan.add(waiting(arrived=now), now)
            now += gap
        answer()
    while (due := plan.next_due(now)) is not None:
        now = due
        answer()
    return now


# -- when ------------------------------------------------------------------------------------------


def test_the_first_one_leaves_at_once() -> None:
    plan: Plan[object] = Plan(Bounds())
    plan.add(waiting("a"), 0.0)
    assert plan.next_due(0.0) == 0.0
    batch = plan.take(0.0)
    assert batch is not None
    assert [each.item for each in batch.members] == ["a"]
    assert plan.take(0.0) is None
    assert plan.next_due(0.0) is None


def test_while_no_slot_is_free_they_gather() -> None:
    plan, batch = busy(one_slot(), *(waiting(n) for n in range(5)))
    assert plan.take(9.0) is None
    assert plan.next_due(9.0) is None
    assert drain(plan, batch) == [[0, 1, 2, 3, 4]]


def test_where_more_are_expected_soon_the_first_one_waits_for_them() -> None:
    plan: Plan[object] = Plan(Bounds(max_rows=8))
    now = dense(plan)
    plan.add(waiting(arrived=now), now)
    assert plan.take(now) is None
    due = plan.next_due(now)
    assert due is not None
    assert now < due <= now + 0.001  # a few gaps, far less than max_delay
    for _ in range(7):
        plan.add(waiting(arrived=now), now)
    full = plan.take(now)
    assert full is not None
    assert full.rows == 8


def test_an_arrival_that_does_not_come_is_waited_for_no_longer() -> None:
    plan: Plan[object] = Plan(Bounds())
    now = dense(plan)
    plan.add(waiting(arrived=now), now)
    due = plan.next_due(now)
    assert due is not None
    assert plan.take(due - 1e-6) is None
    assert plan.take(due) is not None


def test_after_a_silence_the_first_one_does_not_wait() -> None:
    plan: Plan[object] = Plan(Bounds())
    now = dense(plan) + 1.0
    plan.add(waiting(arrived=now), now)
    assert plan.take(now) is not None


def test_nobody_waits_longer_than_max_delay_for_a_stream_that_goes_on() -> None:
    plan: Plan[object] = Plan(Bounds(max_rows=10_000, max_delay=0.005))
    now = start = dense(plan, latency=10.0, crowd=100)
    while (batch := plan.take(now)) is None:
        assert now - start <= 0.005
        plan.add(waiting(arrived=now), now)
        due = plan.next_due(now)
        assert due is not None
        now = min(due, now + 0.0001)
    assert len(batch.members) == pytest.approx(50, abs=2)


def test_when_all_are_here_who_were_seen_at_once_of_late_nobody_waits() -> None:
    plan: Plan[object] = Plan(Bounds())
    now = dense(plan, crowd=10)
    for _ in range(10):
        assert plan.take(now) is None
        plan.add(waiting(arrived=now), now)
    batch = plan.take(now)
    assert batch is not None
    assert batch.rows == 10


def test_a_few_wait_for_many_that_are_in_flight_and_for_their_callers() -> None:
    plan: Plan[object] = Plan(Bounds(max_in_flight=2))
    now = dense(plan, crowd=10)
    for _ in range(10):
        plan.add(waiting(arrived=now), now)
    many = plan.take(now)
    assert many is not None
    plan.started(many, now)
    for n in range(5):
        now += 0.0001
        assert plan.take(now) is None, n
        plan.add(waiting(arrived=now), now)
    few = plan.take(now)
    assert few is not None, "half of what is in flight"
    now += 0.0001
    plan.add(waiting(arrived=now), now)
    assert plan.take(now) is None
    plan.ended(many, now + 0.001, ok=True)
    assert plan.take(now + 0.001) is None
    plan.ended(few, now + 0.002, ok=True)
    assert plan.take(now + 0.002) is None, "its callers may come again"
    assert plan.next_due(now + 0.002) == pytest.approx(now + 0.0022, abs=1e-4)


def test_a_deadline_ends_the_wait_in_time() -> None:
    plan: Plan[object] = Plan(Bounds(max_rows=10_000, max_delay=1.0))
    now = dense(plan, latency=0.5, gap=0.0002)
    deadline = now + 0.5003
    plan.add(waiting(arrived=now, deadline=deadline), now)
    due = plan.next_due(now)
    assert due is not None
    assert due == pytest.approx(deadline - 0.5, abs=1e-6)


def test_without_delay_nobody_waits() -> None:
    plan: Plan[object] = Plan(Bounds(max_delay=0.0))
    now = dense(plan)
    plan.add(waiting(arrived=now), now)
    assert plan.take(now) is not None


# -- how large -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "sizes"),
    [
        ({"max_rows": 4}, [2, 2, 2]),  # two rows each
        ({"max_items": 3}, [3, 3]),
        ({"max_bytes": 450}, [4, 2]),
        ({"max_padded": 50}, [5, 1]),  # five long
    ],
)
def test_each_bound_holds(bounds: dict[str, int], sizes: list[int]) -> None:
    calls = [waiting(n, rows=2 if "max_rows" in bounds else 1, length=10) for n in range(6)]
    plan, batch = busy(one_slot(**bounds), *calls)
    assert [len(each) for each in drain(plan, batch)] == sizes


def test_a_call_that_is_too_large_goes_alone_and_is_never_divided() -> None:
    calls = [waiting("a"), waiting("large", rows=100, size=1 << 30, length=1 << 20), waiting("b")]
    plan, batch = busy(one_slot(max_rows=8, max_padded=64), *calls)
    assert drain(plan, batch) == [["a"], ["large"], ["b"]]


def test_nobody_passes_a_large_one_for_ever() -> None:
    calls = [waiting("small"), waiting("large", rows=8), *(waiting("small") for _ in range(8))]
    plan, batch = busy(one_slot(max_rows=8), *calls)
    assert "large" in drain(plan, batch)[1]


def test_preferred_sizes_are_filled_if_the_rest_can_wait() -> None:
    bounds = one_slot(preferred=(4, 8), max_delay=1.0)
    calls = [waiting(n) for n in range(11)]
    plan, batch = busy(bounds, *calls)
    assert [len(each) for each in drain(plan, batch, now=0.5)] == [8, 3]
    late, batch = busy(bounds, *(waiting(n) for n in range(11)))
    assert [len(each) for each in drain(late, batch, now=1.0)] == [11]


def test_lengths_of_different_buckets_share_no_batch() -> None:
    lengths = [1, 16, 17, 64, 65, 1000]
    plan, batch = busy(one_slot(buckets=(16, 64)), *(waiting(n, length=n) for n in lengths))
    found = drain(plan, batch)
    assert sorted(sorted(map(str, each), key=int) for each in found) == [
        ["1", "16"],
        ["17", "64"],
        ["65", "1000"],
    ]


# -- who --------------------------------------------------------------------------------------


def test_the_best_class_is_first_and_of_a_tenant_the_earliest_deadline() -> None:
    calls = [
        waiting("low", priority=3),
        waiting("late", deadline=9.0),
        waiting("early", deadline=8.0),
        waiting("best", priority=0),
        waiting("any"),
    ]
    plan, batch = busy(one_slot(max_rows=1), *calls)
    assert drain(plan, batch) == [["best"], ["early"], ["late"], ["any"], ["low"]]


def test_tenants_share_each_batch_whatever_their_backlog() -> None:
    hog = [waiting("hog", tenant=1) for _ in range(100)]
    mice = [waiting("mouse", tenant=2 + n % 2) for n in range(8)]
    plan, batch = busy(one_slot(max_rows=12), *hog, *mice)
    assert Counter(drain(plan, batch)[0]) == {"hog": 4, "mouse": 8}


def test_a_short_deadline_passes_nobody_elses() -> None:
    plan, batch = busy(
        one_slot(max_rows=2),
        *(waiting("hasty", tenant=1, deadline=1.0) for _ in range(4)),
        *(waiting("patient", tenant=2) for _ in range(2)),
    )
    assert [sorted(map(str, each)) for each in drain(plan, batch)][:2] == [["hasty", "patient"]] * 2


def test_tenants_share_by_rows() -> None:
    plan, batch = busy(
        one_slot(max_rows=16),
        *(waiting("wide", rows=4, tenant=1) for _ in range(8)),
        *(waiting("narrow", tenant=2) for _ in range(32)),
    )
    assert Counter(drain(plan, batch)[0])["narrow"] in range(6, 11)


def test_keys_take_turns() -> None:
    many = [waiting("a", key="a", length=1 + n % 40) for n in range(40)]
    few = [waiting("b", key="b") for _ in range(2)]
    plan, batch = busy(one_slot(max_rows=1, buckets=(10, 20, 30)), *many, *few)
    first = [each[0] for each in drain(plan, batch)][:5]
    assert first.count("b") == 2


def test_a_class_that_has_waited_for_long_has_one_turn_in_eight() -> None:
    plan, batch = busy(
        one_slot(max_rows=1, age=1.0),
        *(waiting("best", priority=0) for _ in range(99)),
        *(waiting("low", priority=2, key="other") for _ in range(9)),
    )
    assert [each[0] for each in drain(plan, batch, now=1.9)].index("low") == 99
    plan, batch = busy(
        one_slot(max_rows=1, age=1.0),
        *(waiting("best", priority=0) for _ in range(99)),
        *(waiting("low", priority=2, key="other") for _ in range(9)),
    )
    served = [each[0] for each in drain(plan, batch, now=2.0)]
    assert served[: 5 * TURNS].count("low") == 5


# -- leaving ---------------------------------------------------------------------------------------


def test_who_leaves_is_in_no_batch() -> None:
    calls = [waiting(n) for n in range(4)]
    plan, batch = busy(one_slot(), *calls)
    assert plan.remove(calls[1])
    assert not plan.remove(calls[1])
    assert drain(plan, batch) == [[0, 2, 3]]
    assert not plan.remove(calls[0])


def test_who_is_too_late_is_in_no_batch_but_reported_once() -> None:
    calls = [waiting(n, deadline=1.0 + n) for n in range(4)]
    plan, batch = busy(one_slot(), *calls)
    assert plan.next_due(0.0) == 1.0
    plan.ended(batch, 2.0, ok=True)
    rest = plan.take(2.0)
    assert rest is not None
    assert [each.item for each in rest.members] == [2, 3]
    assert plan.next_due(2.0) == 2.0
    assert plan.remove(calls[0])
    assert plan.expire(2.0) == [calls[1]]
    assert plan.expire(2.0) == []


def test_of_a_full_queue_the_lowest_class_the_largest_tenant_its_newest_goes() -> None:
    hog = [waiting(("hog", n), priority=2, tenant=1, rows=2) for n in range(3)]
    mouse = waiting("mouse", priority=2, tenant=2, rows=3)
    plan, _ = busy(one_slot(max_waiting=4), *hog, mouse)
    best = waiting("best", priority=0)
    assert plan.add(best, 0.0) is hog[2]
    again = waiting("another mouse", priority=2, tenant=2)
    assert plan.add(again, 0.0) is again  # it would be as large as the hog is now
    lowest = waiting("lowest", priority=3)
    assert plan.add(lowest, 0.0) is lowest
    small = waiting("small", priority=2, tenant=3)
    assert plan.add(small, 0.0) is hog[1]
    assert len(plan) == 4


def test_without_a_queue_only_the_newcomer_is_refused() -> None:
    plan: Plan[object] = Plan(Bounds(max_waiting=0))
    newcomer = waiting()
    assert plan.add(newcomer, 0.0) is newcomer
    assert len(plan) == 0


# -- what it remembers -----------------------------------------------------------------------


def test_keys_that_are_gone_leave_nothing_behind() -> None:
    plan: Plan[object] = Plan(Bounds())
    for n in range(5000):
        now = n * 0.001
        plan.add(waiting(key=n, arrived=now), now)
        batch = plan.take(now)
        assert batch is not None
        plan.started(batch, now)
        plan.ended(batch, now + 0.0005, ok=True)
        assert len(plan._lanes) <= lanes.MOST_IDLE + 1
    later = 5.0 + lanes.IDLE
    plan.add(waiting(key="new", arrived=later), later)
    assert len(plan._lanes) == len(plan._lanes._lines) == 1
    assert len(plan._agenda) == 1


def test_bodies_that_left_are_not_kept() -> None:
    plan, _ = busy(one_slot(max_waiting=10_000), waiting("stays"))
    for _ in range(5000):
        gone = waiting(deadline=1e6)
        plan.add(gone, 0.0)
        plan.remove(gone)
    lane = next(lane for lane in plan._lanes if lane.count)
    assert len(plan._deadlines) < 200
    assert len(lane._latest) < 200
    assert all(len(flow.calls) < 200 for flow in lane.shelves[1]._flows.values())
    assert len(plan._crowds[1]._heavy) < 200
    assert plan.describe()["waiting"] == 1
