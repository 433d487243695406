"""What callers of the queue rely on: order, fairness, who gives way, and that it forgets."""

from __future__ import annotations

import random
from collections import Counter, deque
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters import flows
from filters.queueing import AGE, TURNS, FairQueue, Waiter

LEVELS = st.integers(0, 3)
TENANTS = st.integers(0, 4)
COSTS = st.sampled_from([0.5, 1.0, 1.0, 1.0, 4.0])
FOREVER = 1e9
ROOM = 1e9


def waiter(
    name: object,
    level: int = 1,
    tenant: int = 0,
    cost: float = 1.0,
    arrived: float = 0.0,
    expires: float = FOREVER,
) -> Waiter[object]:
    return Waiter(name, level, tenant, cost, arrived, expires)


def drain(queue: FairQueue[object], newest: bool = False, now: float = 0.0) -> list[object]:
    served = []
    while (each := queue.pop(now, ROOM, newest)) is not None:
        served.append(each.item)
    return served


def fill(queue: FairQueue[object], *waiters: Waiter[object]) -> None:
    for each in waiters:
        assert queue.push(each, each.arrived) is None


# -- what it does, one thing at a time ---------------------------------------------------------


def test_one_tenant_is_served_in_order_or_newest_first() -> None:
    for newest, expected in ((False, [0, 1, 2, 3]), (True, [3, 2, 1, 0])):
        queue: FairQueue[object] = FairQueue(9)
        fill(queue, *(waiter(n) for n in range(4)))
        assert drain(queue, newest) == expected


def test_the_best_class_is_first() -> None:
    queue: FairQueue[object] = FairQueue(9)
    fill(queue, *(waiter(level, level) for level in (3, 1, 2, 0)))
    assert queue.by_level() == (1, 1, 1, 1)
    assert drain(queue) == [0, 1, 2, 3]


def test_tenants_take_turns_whatever_their_backlog_in_either_order() -> None:
    for newest in (False, True):
        queue: FairQueue[object] = FairQueue(99)
        fill(queue, *(waiter("hog", tenant=1) for _ in range(9)))
        fill(queue, *(waiter("mouse", tenant=2) for _ in range(3)))
        assert drain(queue, newest)[:6].count("mouse") == 3


def test_a_tenant_that_asks_again_after_each_answer_is_not_first_every_time() -> None:
    queue: FairQueue[object] = FairQueue(99)
    fill(queue, *(waiter("many", tenant=1) for _ in range(20)))
    fill(queue, waiter("one", tenant=2))
    served = []
    for _ in range(20):
        taken = queue.pop(0.0, ROOM, newest=False)
        assert taken is not None
        served.append(taken.item)
        if taken.item == "one":
            fill(queue, waiter("one", tenant=2))
    assert served.count("many") == 10


def test_a_newcomer_joins_the_round_and_does_not_catch_up() -> None:
    queue: FairQueue[object] = FairQueue(99)
    fill(queue, *(waiter(n % 2, tenant=n % 2) for n in range(40)))
    for _ in range(20):
        assert queue.pop(0.0, ROOM, newest=False) is not None
    fill(queue, *(waiter(2, tenant=2) for _ in range(20)))
    assert Counter(drain(queue)[:12]) == {0: 4, 1: 4, 2: 4}


def test_costs_leave_no_rounding_error() -> None:
    queue: FairQueue[object] = FairQueue(99)
    fill(queue, *(waiter(n, cost=0.1 * n) for n in range(1, 20)))
    drain(queue)
    assert queue.cost() == 0.0


def test_nobody_passes_an_expensive_one() -> None:
    queue: FairQueue[object] = FairQueue(9)
    fill(queue, waiter("dear", cost=8.0), waiter("cheap"), waiter("other", tenant=1))
    assert queue.pop(0.0, 7.5, newest=False) is None
    assert len(queue) == 3
    assert queue.cost() == 10.0
    assert drain(queue)[0] == "dear"


def test_a_flood_is_displaced_and_not_its_neighbour() -> None:
    queue: FairQueue[object] = FairQueue(4)
    hog = [waiter(f"hog {n}", tenant=1) for n in range(4)]
    fill(queue, *hog)
    first, second, third = (waiter(f"mouse {n}", tenant=2) for n in range(3))
    assert queue.push(first, 0.0) is hog[3]
    assert queue.push(second, 0.0) is hog[2]
    assert queue.push(third, 0.0) is third  # it would hold more than the flood does
    again = waiter("hog again", tenant=1)
    assert queue.push(again, 0.0) is again


def test_newest_first_the_oldest_of_the_flood_gives_its_place() -> None:
    queue: FairQueue[object] = FairQueue(3)
    hog = [waiter(n, tenant=1) for n in range(3)]
    fill(queue, *hog)
    assert queue.push(waiter("mouse", tenant=2), 0.0, newest=True) is hog[0]
    assert queue.push(waiter("fresh", tenant=1), 0.0, newest=True) is hog[1]
    assert drain(queue, newest=True) == ["fresh", "mouse", 2]


def test_a_better_class_displaces_a_lower_one_and_never_the_other_way() -> None:
    queue: FairQueue[object] = FairQueue(2)
    low = waiter("low", 3)
    fill(queue, low, waiter("high", 0))
    assert queue.push(waiter("middle", 1), 0.0) is low
    assert queue.push(low, 0.0) is low
    assert queue.by_level() == (1, 1, 0, 0)


@pytest.mark.parametrize("size", [0, 1])
def test_a_full_queue_of_any_size(size: int) -> None:
    queue: FairQueue[object] = FairQueue(size)
    fill(queue, *(waiter(n) for n in range(size)))
    more = waiter("more")
    assert queue.push(more, 0.0) is more
    assert len(queue) == size


def test_a_place_whose_waiter_has_expired_is_free() -> None:
    queue: FairQueue[object] = FairQueue(1)
    fill(queue, waiter("late", expires=5.0))
    assert queue.push(waiter("next", 3), 5.0) is None
    assert queue.next_expiry() == 5.0
    assert [each.item for each in queue.expire(5.0)] == ["late"]
    assert queue.next_expiry() == FOREVER


def test_the_expired_are_never_served_and_are_reported_once() -> None:
    queue: FairQueue[object] = FairQueue(9)
    late = [waiter(n, expires=5.0 - n) for n in range(3)]
    fill(queue, *late, waiter("in time", expires=6.0))
    assert queue.next_expiry() == 3.0
    assert drain(queue, now=5.0) == ["in time"]
    assert queue.remove(late[1])
    assert not queue.remove(late[1])
    assert queue.expire(5.0) == [late[2], late[0]]
    assert queue.expire(FOREVER) == []
    assert queue.next_expiry() is None


def test_whoever_left_is_neither_served_nor_counted() -> None:
    queue: FairQueue[object] = FairQueue(9)
    here = [waiter(n, tenant=n % 2, arrived=float(n)) for n in range(5)]
    fill(queue, *here)
    assert queue.oldest() == 0.0
    assert queue.tenants() == 2
    for each in (here[0], here[3], here[1]):
        assert queue.remove(each)
        assert not queue.remove(each)
    assert queue.oldest() == 2.0
    assert queue.tenants() == 1
    assert len(queue) == queue.cost() == 2
    assert drain(queue) == [2, 4]
    assert queue.oldest() is None


def test_trimming_takes_the_lowest_class_its_flood_and_the_oldest_of_that() -> None:
    queue: FairQueue[object] = FairQueue(99)
    fill(queue, *(waiter(f"high {n}", 0, tenant=1) for n in range(2)))
    fill(queue, *(waiter(f"hog {n}", 2, tenant=1) for n in range(3)))
    fill(queue, waiter("mouse", 2, tenant=2))
    assert [each.item for each in queue.trim(4, 0.0)] == ["hog 0", "hog 1"]
    assert len(queue.trim(2, 0.0)) == 2
    assert queue.by_level() == (2, 0, 0, 0)
    assert len(queue.trim(-1, 0.0)) == 2


def test_a_smaller_size_after_a_reload_sends_nobody_away_and_lets_nobody_more_in() -> None:
    queue: FairQueue[object] = FairQueue(4)
    fill(queue, *(waiter(n, 2) for n in range(4)))
    queue.size = 2
    assert len(queue) == 4
    assert queue.push(waiter("better", 1), 0.0) is not None
    assert len(queue) == 4
    assert len(drain(queue)) == 4


# -- ageing ------------------------------------------------------------------------------------


@given(st.integers(1, 3), st.booleans())
def test_no_class_starves_and_the_best_one_loses_one_turn_in_eight(
    lowest: int, newest: bool
) -> None:
    """Better classes always have somebody fresh; one turn takes 0.1 s."""
    queue: FairQueue[object] = FairQueue(10_000)
    fill(queue, *(waiter(lowest, lowest) for _ in range(50)))
    turns = []
    for turn in range(300):
        now = turn / 10
        for level in range(lowest):
            fill(queue, waiter(level, level, tenant=1, arrived=now))
        taken = queue.pop(now, ROOM, newest)
        assert taken is not None
        turns.append(taken.level)
    early = int(lowest * AGE * 10)
    assert lowest not in turns[:early]
    waits = 0
    for level in turns[early:]:
        waits = 0 if level == lowest else waits + 1
        assert waits < 3 * TURNS
    strays = [turn for turn, level in enumerate(turns) if level > 0]
    assert all(b - a >= TURNS for a, b in pairwise(strays))


def test_a_standing_low_class_does_not_pass_a_fresh_best_one() -> None:
    """In order of arrival plus age it would: whoever comes now would wait for all of them."""
    queue: FairQueue[object] = FairQueue(10_000)
    fill(queue, *(waiter("low", 3) for _ in range(100)))
    fill(queue, *(waiter("best", 0, arrived=9.0) for _ in range(TURNS)))
    assert drain(queue, now=9.0)[: TURNS + 1].count("best") == TURNS


# -- fairness ----------------------------------------------------------------------------------


@given(st.integers(), st.lists(COSTS, min_size=2, max_size=6), st.booleans())
def test_two_tenants_that_wait_all_the_time_get_the_same_within_two_costs(
    seed: int, costs: list[float], mixed: bool
) -> None:
    """For every interval, in any mixture of orders, whoever else comes and goes."""
    rng = random.Random(seed)
    queue: FairQueue[object] = FairQueue(100_000)
    ahead = lowest = highest = 0.0
    for turn in range(300):
        for tenant in (1, 2):
            for _ in range(rng.choice([1, 1, 3])):  # more than are ever served
                fill(queue, waiter(None, tenant=tenant, cost=rng.choice(costs)))
        if rng.random() < 0.3:
            fill(queue, waiter(None, tenant=3 + turn % 9, cost=rng.choice(costs)))
        taken = queue.pop(0.0, ROOM, mixed and rng.random() < 0.5)
        assert taken is not None
        ahead += {1: taken.cost, 2: -taken.cost}.get(taken.tenant, 0.0)
        lowest, highest = min(lowest, ahead), max(highest, ahead)
    assert highest - lowest <= 2 * max(costs)


@given(st.lists(st.tuples(TENANTS, LEVELS), max_size=60), st.integers(1, 9))
def test_a_tenant_displaces_only_those_who_hold_more(
    comers: list[tuple[int, int]], size: int
) -> None:
    queue: FairQueue[object] = FairQueue(size)
    held: Counter[tuple[int, int]] = Counter()
    for tenant, level in comers:
        newcomer = waiter(None, level, tenant)
        displaced = queue.push(newcomer, 0.0)
        if displaced is newcomer:
            continue
        held[level, tenant] += 1
        if displaced is not None:
            assert displaced.level >= level
            held[displaced.level, displaced.tenant] -= 1
            if displaced.level == level:
                assert held[level, tenant] <= held[level, displaced.tenant]


def test_nine_below_their_share_lose_nothing_to_one_that_floods() -> None:
    queue: FairQueue[object] = FairQueue(64)
    rng = random.Random(7)
    longest = 0
    for turn in range(5000):  # one served in each
        comers = [0] * 10 + ([rng.randint(1, 9)] if rng.random() < 0.6 else [])
        for tenant in comers:
            displaced = queue.push(waiter(None, tenant=tenant, arrived=turn), turn)
            assert displaced is None or displaced.tenant == 0
        taken = queue.pop(turn, ROOM, newest=False)
        assert taken is not None
        if taken.tenant:
            longest = max(longest, turn - int(taken.arrived))
    assert longest <= 40


# -- memory ------------------------------------------------------------------------------------


def remembers_little(queue: FairQueue[object]) -> bool:
    """Of waiters and tenants that are gone never more than of those that are here, and a few."""
    assert len(queue._deadlines) <= 2 * len(queue) + flows.SLACK
    for level in queue._levels:
        assert len(level.flows) == len(level.schedule)
        assert max(len(level.flows), len(level.heavy)) <= 2 * level.busy + flows.SLACK
        if not level.order:
            assert not level.flows
            assert not level.heavy
            assert level.virtual == 0.0
    return True


@given(st.integers(), st.integers(0, 200))
@settings(max_examples=20)
def test_tenants_and_waiters_that_are_gone_are_forgotten(seed: int, kept: int) -> None:
    """A crowd of tenants, each of which comes once, passes behind some who stay."""
    rng = random.Random(seed)
    queue: FairQueue[object] = FairQueue(100_000)
    fill(queue, *(waiter("stays", tenant=-n) for n in range(kept)))
    passing: deque[Waiter[object]] = deque()
    for turn in range(3000):
        passing.append(waiter(None, rng.randrange(4), turn, expires=FOREVER + rng.random()))
        fill(queue, passing[-1])
        if rng.random() < 0.5:
            queue.remove(passing[-1])
        elif len(passing) > 50:
            queue.pop(0.0, ROOM, newest=True)
        assert remembers_little(queue)
    queue.trim(0, 0.0)
    assert remembers_little(queue)
    assert not queue._deadlines


def test_a_tenant_that_comes_back_is_displaced_like_any_other() -> None:
    queue: FairQueue[object] = FairQueue(999)
    before = [waiter(n, tenant=1) for n in range(9)]
    fill(queue, *before, waiter("grows", tenant=2))
    for each in before:
        queue.remove(each)
    fill(queue, *(waiter("grows", tenant=2) for _ in range(200)))  # sweeps out what is stale
    fill(queue, waiter("back", tenant=1))
    assert [each.item for each in queue.trim(0, 0.0)][-2:] == ["grows", "back"]


def test_forgetting_many_tenants_at_once_gives_none_of_them_an_advantage() -> None:
    """A thousand that ask again after each answer, beside one that has a backlog."""
    queue: FairQueue[object] = FairQueue(100_000)
    fill(queue, *(waiter(None, tenant=-1) for _ in range(4000)))
    served: Counter[int] = Counter()
    for turn in range(12_000):
        fill(queue, waiter(None, tenant=turn % 1000))
        taken = queue.pop(0.0, ROOM, newest=False)
        assert taken is not None
        served[taken.tenant] += 1
        assert len(queue) <= 4000
    assert max(served[n] for n in range(1000)) <= served[-1] + 1
