"""Whoever is to blame is found, the others are answered, and it costs little."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpu_batcher.contain import (
    BURST,
    HOLD,
    SHARE,
    Allowance,
    Bisection,
    Containment,
    Part,
    Verdict,
    blames_request,
    killed_server,
)
from gpu_batcher.pacing import Bounds
from tests.batcher.planned import Server, World

RICH = 1e9


def divide(bisection: Bisection[int], poison: set[int]) -> tuple[list[int], dict[int, Verdict]]:
    """Run it to its end, one part at a time: who was answered, and the verdicts on the others."""
    answered: list[int] = []
    while (part := bisection.next()) is not None:
        if poison.intersection(part.members):
            bisection.failed(part)
        else:
            bisection.passed(part)
            answered += part.members
    assert bisection.done
    return answered, dict(bisection.settled())


def solve(size: int, poison: set[int]) -> Bisection[int]:
    """Divide a batch, and assert that everybody gets what is theirs."""
    bisection = Bisection(range(size), Allowance(0.0, RICH))
    answered, verdicts = divide(bisection, poison)
    assert sorted([*answered, *verdicts]) == list(range(size))
    assert not poison.intersection(answered)
    own = {member for member, verdict in verdicts.items() if verdict is Verdict.OWN}
    assert own <= poison
    assert bisection.stopped is Verdict.SERVER or own == poison
    return bisection


# -- whom to blame ------------------------------------------------------------------------------


@given(st.integers(2, 80), st.data())
def test_the_culprits_are_found_and_nobody_else_is_blamed(size: int, data: st.DataObject) -> None:
    poison = data.draw(st.sets(st.integers(0, size - 1), max_size=3))
    bisection = solve(size, poison)
    assert bisection.spent <= 2 * size - 2
    assert bisection.blameless == (not poison)


@given(st.integers(2, 40), st.data())
def test_of_many_culprits_each_gets_its_own_error_or_it_is_taken_for_the_server(
    size: int, data: st.DataObject
) -> None:
    solve(size, data.draw(st.sets(st.integers(0, size - 1))))


def test_one_culprit_in_a_full_batch_takes_ten_parts() -> None:
    spent = [solve(64, {place}).spent for place in range(64)]
    assert (min(spent), max(spent)) == (8, 12)
    assert sum(spent) / 64 == 10.0


def test_two_culprits_in_a_full_batch() -> None:
    spent = [solve(64, set(pair)).spent for pair in combinations(range(64), 2)]
    assert max(spent) <= 24
    assert sum(spent) / len(spent) < 18.5


@pytest.mark.parametrize("size", [2, 3, 5, 8, 33, 64, 100])
def test_one_culprit_takes_at_most_two_parts_for_each_halving(size: int) -> None:
    halvings = (size - 1).bit_length()
    assert all(solve(size, {place}).spent <= 2 * halvings for place in range(size))


def test_where_nobody_is_to_blame_all_are_answered_after_two() -> None:
    bisection = solve(64, set())
    assert bisection.spent == 2
    assert bisection.blameless


def test_half_of_the_innocent_are_answered_after_the_first_step() -> None:
    steps = []
    for place in range(64):
        bisection: Bisection[int] = Bisection(range(64), Allowance(0.0, RICH))
        rounds = 0
        while not bisection.done:
            rounds += 1
            running = []
            while (part := bisection.next()) is not None:
                running.append(part)
            for part in running:
                if place in part.members:
                    bisection.failed(part)
                else:
                    bisection.passed(part)
                    steps += [rounds] * len(part.members)
    steps.sort()
    assert steps[len(steps) // 2] <= 2
    assert sum(steps) / len(steps) < 2.6


# -- when it is the server ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16, 64, 200])
def test_a_server_that_fails_everything_is_found_out_in_five_parts(size: int) -> None:
    bisection: Bisection[int] = Bisection(range(size), Allowance(0.0, RICH))
    while (part := bisection.next()) is not None:
        bisection.failed(part)
    assert bisection.done
    assert bisection.stopped is Verdict.SERVER
    assert bisection.spent <= 5
    verdicts = Counter(verdict for _, verdict in bisection.settled())
    assert verdicts[Verdict.OWN] == 2  # they failed alone: it is what they would have got anyway
    assert verdicts[Verdict.SERVER] == size - 2


def test_several_culprits_are_hardly_ever_taken_for_the_server() -> None:
    rng = Random(7)
    taken = tried = 0
    for _ in range(20_000):
        poison = {place for place in range(64) if rng.random() < 0.01}
        if poison:
            tried += 1
            taken += solve(64, poison).stopped is not None
    assert tried > 9_000
    assert taken / tried < 1e-3


def test_a_failure_of_the_servers_ends_it_for_all() -> None:
    bisection: Bisection[int] = Bisection(range(8), Allowance(0.0, RICH))
    first, second = bisection.next(), bisection.next()
    assert first is not None
    assert second is not None
    bisection.broke(first)
    assert bisection.next() is None
    assert not bisection.done
    bisection.passed(second)  # what was on its way is still answered
    assert bisection.done
    assert bisection.settled() == [(place, Verdict.SERVER) for place in range(4)]


def test_after_a_failing_server_nothing_is_divided_until_it_works_or_a_while_has_passed() -> None:
    containment: Containment[int] = Containment()

    def found_failing(now: float) -> None:
        begun = containment.begin(range(64), now)
        assert isinstance(begun, Bisection)
        while (part := begun.next()) is not None:
            begun.failed(part)
        containment.ended(begun, now)

    found_failing(10.0)
    assert containment.begin(range(64), 10.0 + HOLD / 2) is Verdict.SERVER
    found_failing(10.0 + HOLD)
    containment.passed()
    assert isinstance(containment.begin(range(64), 10.0 + HOLD), Bisection)


# -- the budget ------------------------------------------------------------------------------------


def test_when_the_budget_is_spent_the_rest_can_come_again() -> None:
    bisection = Bisection(range(64), Allowance(0.0, 3.0))
    answered, verdicts = divide(bisection, {63})
    assert bisection.stopped is Verdict.BUDGET
    assert bisection.spent == 3
    assert answered == list(range(48))
    assert verdicts == dict.fromkeys(range(48, 64), Verdict.BUDGET)


def test_no_bisection_is_begun_that_cannot_do_its_first_step() -> None:
    containment: Containment[int] = Containment(0.0, 3.0)
    assert isinstance(containment.begin(range(4), 0.0), Bisection)
    assert containment.allowance.withdraw()
    assert containment.allowance.withdraw()
    assert containment.begin(range(4), 0.0) is Verdict.BUDGET


@given(st.lists(st.one_of(st.integers(1, 50), st.none()), max_size=200))
def test_of_any_requests_in_a_row_no_more_than_the_share_and_the_burst(
    events: list[int | None],
) -> None:
    allowance = Allowance(SHARE, 5.0)
    taken: list[tuple[int, int]] = [(0, 0)]  # requests and parts so far
    for each in events:
        requests, parts = taken[-1]
        if each is not None:
            allowance.deposit(each)
            requests += each
        elif allowance.withdraw():
            parts += 1
        taken.append((requests, parts))
    for first, (before, paid) in enumerate(taken):
        for after, spent in taken[first:]:
            assert spent - paid <= SHARE * (after - before) + 5.0 + 1e-6


# -- statuses --------------------------------------------------------------------------------------


def test_only_what_a_request_can_cause_is_blamed_on_one() -> None:
    blamed = [status for status in range(600) if blames_request(status)]
    assert blamed == [400, 413, 415, 422, 500]


def test_a_reset_alone_kills_nobody() -> None:
    assert killed_server(sent=True, reset=True, refused_after=True)
    assert not killed_server(sent=True, reset=True, refused_after=False)
    assert not killed_server(sent=False, reset=True, refused_after=True)
    assert not killed_server(sent=True, reset=False, refused_after=True)


# -- several parts at once, and clients that leave ----------------------------------------------


class Parted(RuleBasedStateMachine):
    """Parts run side by side, end in any order, clients leave, the server breaks now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 21
        self.poison = {3, 4, 17}
        self.bisection: Bisection[int] = Bisection(range(self.size), Allowance(0.0, 60.0))
        self.running: list[Part[int]] = []
        self.answered: list[int] = []
        self.verdicts: dict[int, Verdict] = {}
        self.left: set[int] = set()
        self.alone: set[int] = set()

    @rule()
    def run(self) -> None:
        part = self.bisection.next()
        if part is not None:
            assert part.members
            assert not self.left.intersection(part.members)
            for other in self.running:
                assert not set(other.members).intersection(part.members)
            self.running.append(part)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fate=st.sampled_from(["right"] * 12 + ["moment", "broke"]))
    def end(self, data: st.DataObject, fate: str) -> None:
        part = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if fate == "broke":
            self.bisection.broke(part)
        elif fate == "moment" or self.poison.intersection(part.members):
            self.bisection.failed(part)
            if len(part.members) == 1:
                self.alone.update(part.members)
        else:
            self.bisection.passed(part)
            self.answered += part.members

    @rule(member=st.integers(0, 20))
    def leave(self, member: int) -> None:
        if member not in self.answered and member not in self.verdicts:
            self.bisection.leave(member)
            self.left.add(member)

    @invariant()
    def each_gets_one_thing(self) -> None:
        for member, verdict in self.bisection.settled():
            assert member not in self.verdicts
            assert verdict is not Verdict.OWN or member in self.alone
            self.verdicts[member] = verdict
        assert len(self.answered) == len(set(self.answered))
        assert not self.poison.intersection(self.answered)
        assert not set(self.verdicts).intersection(self.answered)

    def teardown(self) -> None:
        while not self.bisection.done:
            self.run()
            while self.running:
                part = self.running.pop()
                if self.poison.intersection(part.members):
                    self.bisection.failed(part)
                    if len(part.members) == 1:
                        self.alone.update(part.members)
                else:
                    self.bisection.passed(part)
                    self.answered += part.members
        self.each_gets_one_thing()
        told = set(self.answered).union(self.verdicts)
        assert told.union(self.left) == set(range(self.size))
        assert not self.running
        assert self.bisection.next() is None


TestParted = Parted.TestCase


# -- with the plan, against a modelled server --------------------------------------------------


def outcomes(world: World) -> Counter[tuple[bool, str]]:
    return Counter((ask.poison, ask.outcome) for ask in world.asks)


def check(world: World) -> None:
    """One poison in 100: all others are answered, at most 20 inferences for 100 requests."""
    found = outcomes(world)
    assert set(found) <= {(False, "ok"), (True, "own")}
    assert found[True, "own"] > 0
    assert world.inferences <= 0.20 * len(world.asks)
    assert len(world.plan) == world.plan.in_flight == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("clients", "slots", "instances"), [(64, 1, 1), (64, 2, 1), (128, 4, 2)])
def test_one_poison_in_a_hundred_costs_little(
    seed: int, clients: int, slots: int, instances: int
) -> None:
    rng = Random(seed)
    world = World(Bounds(max_in_flight=slots), Server(instances=instances))
    world.closed(clients, 8000 // clients, rng, poison=lambda: rng.random() < 0.01)
    world.run()
    check(world)


@pytest.mark.parametrize("seed", range(4))
def test_every_hundredth_is_poison(seed: int) -> None:
    rng = Random(seed)
    world = World(Bounds(max_in_flight=1), Server())
    world.closed(64, 125, rng, poison=lambda: len(world.asks) % 100 == 99)
    world.run()
    check(world)


@pytest.mark.parametrize("seed", range(4))
def test_requests_at_random_with_poison_among_them(seed: int) -> None:
    world = World(Bounds(max_in_flight=1), Server())
    world.open(3000.0, 3.0, Random(seed), poison=0.01)
    world.run()
    check(world)


def test_a_server_that_is_ill_is_not_driven_further_by_bisection() -> None:
    world = World(Bounds(max_in_flight=2), Server(ill=(0.2, 1.2)))
    world.closed(64, 400, Random(1))
    world.run()
    while_ill = [ask for ask in world.asks if ask.arrived < 1.2]
    assert world.inferences - len(world.batches) <= 0.01 * len(while_ill) + BURST
    later = [ask for ask in world.asks if ask.arrived > 1.25]
    assert len(later) > 1000
    assert {ask.outcome for ask in later} == {"ok"}


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("clients", [8, 64, 200])
def test_a_server_that_fails_everything_for_five_seconds(clients: int, slots: int) -> None:
    """While it restarts, say: nothing is stuck, and next to nothing is spent on bisections."""
    world = World(Bounds(max_in_flight=slots), Server(ill=(1.0, 6.0)))

    def client() -> None:
        if world.now < 7.0:
            world.ask(then=lambda: world.at(world.now + 0.002, client))

    for _ in range(clients):
        world.at(0.0, client)
    world.run()
    assert world.inferences - len(world.batches) <= BURST
    assert len(world.plan) == world.plan.in_flight == 0
    late = [ask for ask in world.asks if ask.arrived > 6.05]
    assert len(late) > 1000
    assert {ask.outcome for ask in late} == {"ok"}


def test_a_server_that_cannot_take_large_batches_gets_smaller_ones() -> None:
    world = World(Bounds(max_in_flight=1), Server(most_rows=40))
    world.closed(128, 100, Random(1))
    world.run()
    assert {ask.outcome for ask in world.asks} == {"ok"}
    assert world.inferences - len(world.batches) < 150
