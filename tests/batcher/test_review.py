"""What clients can do to each other by what they invent: keys, lengths, and batches that they
spoil. Nobody is to lose by it but whoever does it."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections import Counter
from itertools import count
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_batcher import lanes
from gpu_batcher.allowance import BURST, KEYS, SHARE, Allowance, Purses
from gpu_batcher.api import Call, Job, Reply, TooLargeError
from gpu_batcher.contain import HOLD, Bisection, Containment, Verdict
from gpu_batcher.flight import RefusedError
from gpu_batcher.lanes import Waiting
from gpu_batcher.pacing import Bounds
from gpu_batcher.plan import Plan
from tests.batcher.flown import Server, call, coalescer, fly, own, terms

LONG = 250_000

# -- keys that clients invent ----------------------------------------------------------------------


def served(plan: Plan[None], key: object, now: float) -> None:
    plan.add(Waiting(None, key, 1, 10, arrived=now), now)
    batch = plan.take(now)
    assert batch is not None
    plan.started(batch, now)
    plan.ended(batch, now + 0.001, ok=True)


@pytest.mark.parametrize("size", [100_000, 12_000, 3_000])
def test_keys_that_nobody_uses_any_more_hold_little_memory(size: int) -> None:
    plan: Plan[None] = Plan(Bounds())
    tracemalloc.start()
    try:
        for n in range(1100):
            served(plan, ("model", (("user", b"%d" % n + bytes(size)),)), n * 0.01)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 5 << 20


def test_who_leaves_again_leaves_no_key_behind_though_nothing_else_happens() -> None:
    plan: Plan[None] = Plan(Bounds(max_in_flight=1, max_delay=0.0))
    plan.add(Waiting(None, "busy", 1, 10, priority=0), 0.0)
    assert plan.take(0.0) is not None
    plan.add(Waiting(None, "stays", 1, 10, priority=0), 0.0)
    tracemalloc.start()
    try:
        gone = [Waiting(None, b"%d" % n + bytes(100_000), 1, 10) for n in range(200)]
        for each in gone:
            plan.add(each, 0.0)
        while gone:
            plan.remove(gone.pop())
        for n in range(2000):
            one = Waiting(None, b"%d" % n + bytes(100_000), 1, 10, priority=3)
            plan.add(one, 0.0)
            plan.remove(one)
        del each, one
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 << 20
    assert len(plan._agenda) < 800


def test_a_lane_with_a_small_key_keeps_what_it_has_learned() -> None:
    plan: Plan[None] = Plan(Bounds())
    served(plan, "model", 0.0)
    for n in range(50):
        served(plan, b"%d" % n + bytes(1 << 20), 0.01 * n)
    pace = next(iter(plan._lanes)).pace
    assert len(plan._lanes) == 1
    assert pace.latency > 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20_000)), max_size=60))
def test_the_bytes_of_idle_keys_are_counted_right(visits: list[tuple[int, int]]) -> None:
    plan: Plan[None] = Plan(Bounds())
    for n, (name, size) in enumerate(visits):
        served(plan, (name, bytes(size)), 0.01 * n)
        idle = plan._lanes._idle
        assert plan._lanes._idle_bytes == sum(lane.line.weight for lane in idle)
        assert plan._lanes._idle_bytes <= lanes.IDLE_BYTES
    plan._lanes.forget(1e6)
    assert plan._lanes._idle_bytes == len(plan._lanes) == 0


# -- one long row among many short ones ------------------------------------------------------------


def padded(bounds: Bounds, sizes: list[tuple[int, int]]) -> list[list[int]]:
    """The lengths in each batch of calls of one row with these (size, length)."""
    plan: Plan[int] = Plan(bounds)
    for size, length in sizes:
        plan.add(Waiting(length, "m", 1, size, length), 0.0)
    batches = []
    while (batch := plan.take(1.0)) is not None:
        batches.append([each.item for each in batch.members])
        plan.ended(batch, 1.0, ok=False)
    return batches


def test_a_long_one_goes_apart_and_all_the_short_ones_together() -> None:
    bounds = Bounds(max_in_flight=1, max_padded_bytes=8 << 20)
    calls = [(64, 16)] * 20 + [(4 * LONG, LONG)] + [(64, 16)] * 20
    assert sorted(padded(bounds, calls)) == [[16] * 40, [LONG]]
    assert padded(Bounds(max_in_flight=1), calls) == [[16] * 20 + [LONG] + [16] * 20]


def test_lengths_that_differ_usually_share_a_batch() -> None:
    bounds = Bounds(max_in_flight=1, max_padded_bytes=8 << 20)
    rng = Random(1)
    calls = [(8 * n, n) for n in (rng.randint(8, 512) for _ in range(64))]
    assert [len(each) for each in padded(bounds, calls)] == [64]


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 300_000)), max_size=60),
    st.sampled_from([0, 8]),
)
def test_what_is_padded_is_little_or_a_few_times_what_was_there(
    calls: list[tuple[int, int]], masks: int
) -> None:
    most = 3 << 20
    plan: Plan[None] = Plan(
        Bounds(max_in_flight=1, max_padded_bytes=most, mask_bytes=masks, max_bytes=1 << 30)
    )
    for rows, length in calls:
        plan.add(Waiting(None, "m", rows, rows * 4 * length, length), 0.0)
    while (batch := plan.take(1.0)) is not None:
        plan.ended(batch, 1.0, ok=False)
        one = 4 + masks
        whole = batch.rows * max(one * each.length for each in batch.members)
        there = sum(one * each.rows * each.length for each in batch.members)
        if len(batch.members) > 1:
            assert whole <= most
            assert whole <= max(lanes.ROOM + 64 * one, 2 * lanes.RATIO * there)


class Buffer(Server):
    """Rows as long as the longest have to fit."""

    fits = 1000
    tried = 0

    async def run(self, job: Job) -> list[Reply]:
        if len(job.calls) * max(each.length for each in job.calls) > self.fits:
            self.tried += 1
            raise TooLargeError
        return await super().run(job)


def test_where_it_does_not_fit_after_all_the_plan_is_told_once_and_all_are_answered() -> None:
    server = Buffer(poison={40})

    async def work() -> tuple[list[Any], int]:
        batcher = coalescer(server)
        told: list[object] = []
        object.__setattr__(batcher._means, "overfilled", told.append)
        calls = [Call("m", 1, 100, 500 if n == 5 else 1, notes=n) for n in range(64)]
        got = await asyncio.gather(
            *[batcher.submit(each, terms(n)) for n, each in enumerate(calls)]
        )
        return list(got), len(told)

    got, told = fly(work())
    assert [each.body for each in got if each.status == 200] == [
        own(n) for n in range(64) if n - 40
    ]
    assert got[40].body == b"row 40 is poison"  # its half is divided, not refused
    assert told == 1
    assert server.tried <= 6


# -- what one key costs is not another's loss ------------------------------------------------------


async def crowd(attackers: int, rate: int, tally: Counter[str]) -> Any:
    """32 clients with one culprit in ``rate``, beside one that sends culprits only, in its lane."""
    server = Server(poison=set(range(10**6, 2 * 10**6)))
    batcher = coalescer(server)
    bad, good = count(10**6), count()

    async def client(number: int) -> None:
        for turn in range(100):
            poison = (turn + 3 * number) % rate == 0
            mark = next(bad) if poison else next(good)
            try:
                await batcher.submit(call(mark, key="v"), terms(mark))
                why = "ok"
            except RefusedError as error:
                why = error.why.value
            if not poison:
                tally[why] += 1

    async def attacker() -> None:
        while True:
            some = [next(bad) for _ in range(attackers)]
            work = [batcher.submit(call(n, key="a"), terms(n)) for n in some]
            await asyncio.gather(*work, return_exceptions=True)

    attack = asyncio.create_task(attacker()) if attackers else None
    await asyncio.gather(*(client(number) for number in range(32)))
    if attack is not None:
        attack.cancel()
    await batcher.close()


@pytest.mark.parametrize("attackers", [0, 2, 4, 8])
def test_who_spoils_batches_of_its_own_key_costs_others_next_to_nothing(attackers: int) -> None:
    tally: Counter[str] = Counter()
    fly(crowd(attackers, 100, tally))
    assert tally["ok"] >= 0.985 * tally.total(), tally


def fail_all(bisection: Any) -> None:
    while (part := bisection.next()) is not None:
        bisection.failed(part)


def test_a_server_that_fails_for_one_key_is_no_reason_for_others() -> None:
    containment: Containment[int] = Containment()

    def found(key: str, now: float) -> None:
        begun = containment.begin(range(64), now, key)
        assert isinstance(begun, Bisection)
        fail_all(begun)
        containment.ended(begun, now, key)

    found("a", 0.0)
    assert containment.begin(range(64), 0.5, "a") is Verdict.SERVER
    assert isinstance(containment.begin(range(64), 0.5, "b"), Bisection)
    containment.passed("b")
    assert containment.begin(range(64), 0.5, "a") is Verdict.SERVER
    found("b", 0.6)  # but something passed since it was found for "a"
    assert isinstance(containment.begin(range(64), 0.6, "c"), Bisection)
    found("c", 0.7)
    assert containment.begin(range(64), 0.6 + HOLD, "d") is Verdict.SERVER
    assert isinstance(containment.begin(range(64), 0.7 + HOLD, "d"), Bisection)


def test_one_key_twice_is_not_two_keys() -> None:
    containment: Containment[int] = Containment()
    for _ in range(2):  # two batches of it were in flight
        begun = Bisection(range(64), Allowance(0.0, 1e9))
        fail_all(begun)
        containment.ended(begun, 0.0, "a")
    assert isinstance(containment.begin(range(64), 0.0, "b"), Bisection)


def test_with_little_at_hand_a_batch_is_divided_thriftily() -> None:
    spent = []
    for burst, taken in ((64.0, 0), (64.0, 33)):
        containment: Containment[int] = Containment(0.0, burst)
        for _ in range(taken):
            assert containment.allowance.withdraw()
        begun = containment.begin(range(64), 0.0)
        assert isinstance(begun, Bisection)
        while (part := begun.next()) is not None:
            (begun.failed if 21 in part.members else begun.passed)(part)
        assert begun.culprits == 1
        spent.append(begun.spent)
    assert spent[1] < spent[0]


def test_what_a_forgotten_key_had_is_anybodys_again() -> None:
    purses = Purses(1.0, BURST)
    purses.deposit("gone", 20)
    for n in range(KEYS):
        purses.of(n)
    assert purses.owned == 0.0
    assert hash("gone") not in purses.known


def test_one_key_takes_half_of_what_is_there_and_what_others_brought_is_theirs() -> None:
    containment: Containment[int] = Containment(0.15, 64.0)
    containment.requested("v", 100)
    containment.requested("a", 1)
    begun = containment.begin(range(1 << 12), 0.0, "a")
    assert isinstance(begun, Bisection)
    for turn in range(200):  # a fresh failure each time, so the server is not in doubt
        part = begun.next()
        if part is None:
            break
        (begun.failed if turn % 3 else begun.passed)(part)
    assert begun.spent <= 0.15 + (64 - 15) / 2 + 1
    for n in range(100):  # and whatever other keys it invents
        while containment._purses.of(f"a{n}").withdraw():
            pass
    assert 15.0 <= containment._purses.of("v").left < 17.0


def test_a_single_key_may_spend_all_there_is() -> None:
    containment: Containment[int] = Containment(0.15, 64.0)
    containment.requested("m", 1000)
    purse = containment._purses.of("m")
    assert sum(1 for _ in range(100) if purse.withdraw()) == 64


EVENTS = st.tuples(st.integers(0, 3 * KEYS), st.integers(0, 40), st.integers(0, 20))


@given(st.lists(EVENTS, max_size=80))
def test_purses_divide_the_allowance_and_add_nothing(
    events: list[tuple[int, int, int]],
) -> None:
    purses, plain = Purses(SHARE, BURST), Allowance(SHARE, BURST)
    old = [purses.of(n) for n in range(3)]
    for key, requests, parts in events:
        purses.deposit(key, requests)
        plain.deposit(requests)
        for purse in (purses.of(key), old[key % 3]):
            for _ in range(parts):
                left = purse.left
                took = purse.withdraw()
                assert took == (left >= 1.0)
                assert not took or plain.withdraw()
        held = sum(purse.own for purse in purses.known.values())
        assert held == pytest.approx(purses.owned, abs=1e-6)
        assert -1e-6 <= purses.owned <= purses.allowance.balance + 1e-6
        assert purses.allowance.balance == pytest.approx(plain.balance, abs=1e-6)
        assert len(purses.known) <= KEYS


# -- dividing thriftily ----------------------------------------------------------------------------


@given(st.integers(2, 70), st.data())
def test_thriftily_everybody_gets_their_own_as_well(size: int, data: st.DataObject) -> None:
    poison = data.draw(st.sets(st.integers(0, size - 1), max_size=3))
    left = data.draw(st.dictionaries(st.integers(0, size - 1), st.integers(0, 5), max_size=3))
    bisection = Bisection(range(size), Allowance(0.0, 1e9), thrifty=True)
    answered: list[int] = []
    for turn in count():
        for member, when in left.items():
            if when == turn and member not in answered:
                bisection.leave(member)
        part = bisection.next()
        if part is None:
            break
        if poison.intersection(part.members):
            bisection.failed(part)
        else:
            bisection.passed(part)
            answered += part.members
    assert bisection.done
    verdicts = dict(bisection.settled())
    assert not poison.intersection(answered)
    assert len(answered) == len(set(answered))
    assert not set(answered).intersection(verdicts)
    assert set(range(size)) <= {*answered, *verdicts, *left}
    assert {each for each, why in verdicts.items() if why is Verdict.OWN} <= poison
    if bisection.stopped is None and not left:
        assert {each for each, why in verdicts.items() if why is Verdict.OWN} == poison


def test_thriftily_a_culprit_costs_a_quarter_less() -> None:
    def cost(culprit: int, thrifty: bool) -> int:
        bisection = Bisection(range(64), Allowance(0.0, 1e9), thrifty=thrifty)
        while (part := bisection.next()) is not None:
            (bisection.failed if culprit in part.members else bisection.passed)(part)
        return bisection.spent

    plain, thrifty = (sum(cost(n, how) for n in range(64)) / 64 for how in (False, True))
    assert thrifty < 0.78 * plain


@pytest.mark.parametrize("size", [8, 16, 64, 200])
def test_thriftily_a_server_that_fails_everything_is_found_out_soon(size: int) -> None:
    bisection = Bisection(range(size), Allowance(0.0, 1e9), thrifty=True)
    fail_all(bisection)
    assert bisection.stopped is Verdict.SERVER
    assert bisection.spent <= 6
