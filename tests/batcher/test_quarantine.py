"""Who has done harm goes alone or not at all, bystanders are out of it soon, and it forgets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gpu_batcher.quarantine import FIRST, LONGEST, Quarantine, Standing

BAD, GOOD = b"bad", b"good"


def strike(quarantine: Quarantine, mark: bytes, now: float) -> None:
    """It fails alone, and the server goes on answering others."""
    quarantine.failed_alone(mark)
    quarantine.passed([GOOD], now)


def convicted(refuse: bool) -> Quarantine:
    quarantine = Quarantine(refuse)
    strike(quarantine, BAD, 0.0)
    assert quarantine.look(BAD, 1.0) is Standing.FREE
    strike(quarantine, BAD, 1.0)
    return quarantine


@pytest.mark.parametrize("refuse", [False, True])
def test_who_failed_alone_twice_is_in_quarantine(refuse: bool) -> None:
    quarantine = convicted(refuse)
    assert quarantine.look(BAD, 2.0) is (Standing.REFUSED if refuse else Standing.ALONE)
    assert quarantine.look(GOOD, 2.0) is Standing.FREE
    assert quarantine.quarantined(2.0) == 1


def test_alone_ends_after_its_time_and_refused_becomes_alone_for_as_long() -> None:
    assert convicted(False).look(BAD, 1.0 + FIRST) is Standing.FREE
    quarantine = convicted(True)
    assert quarantine.look(BAD, 0.9 + FIRST) is Standing.REFUSED
    assert quarantine.look(BAD, 1.0 + FIRST) is Standing.ALONE
    assert quarantine.look(BAD, 1.0 + 2 * FIRST) is Standing.FREE
    assert len(quarantine) == 0


def test_each_further_offence_doubles_the_time_up_to_a_bound() -> None:
    quarantine = convicted(True)
    now, times = 1.0, [FIRST]
    for _ in range(6):
        now += times[-1]
        assert quarantine.look(BAD, now) is Standing.ALONE
        strike(quarantine, BAD, now)
        ends = next(n for n in range(1, 2000) if quarantine.look(BAD, now + n) is Standing.ALONE)
        times.append(float(ends))
    assert times[-1] == LONGEST
    assert all(after == min(LONGEST, 2 * before) for before, after in pairwise(times))


def test_a_success_clears() -> None:
    quarantine = convicted(False)
    quarantine.passed([BAD], 2.0)
    assert quarantine.look(BAD, 2.0) is Standing.FREE
    assert not quarantine.active(2.0)


def test_a_first_strike_is_forgotten() -> None:
    quarantine = Quarantine()
    strike(quarantine, BAD, 0.0)
    strike(quarantine, BAD, FIRST)
    assert quarantine.look(BAD, FIRST) is Standing.FREE


# -- killed servers -----------------------------------------------------------------------------


def test_bystanders_of_two_killed_batches_are_suspects_until_they_pass() -> None:
    quarantine = Quarantine(refuse=True)
    crowd = [b"%d" % n for n in range(63)]
    quarantine.killed([*crowd, BAD], 0.0)
    assert quarantine.look(crowd[0], 0.1) is Standing.FREE
    quarantine.killed([*crowd, BAD], 1.0)
    assert {quarantine.look(mark, 1.1) for mark in (*crowd, BAD)} == {Standing.ALONE}
    for mark in crowd:
        quarantine.passed([mark], 2.0)
    assert {quarantine.look(mark, 2.1) for mark in crowd} == {Standing.FREE}
    quarantine.killed([BAD], 2.0)  # alone, this time
    assert quarantine.look(BAD, 2.1) is Standing.REFUSED
    assert len(quarantine) == 1


def test_who_was_in_one_killed_batch_is_free_and_forgotten() -> None:
    quarantine = Quarantine()
    quarantine.killed([GOOD, BAD], 0.0)
    quarantine.killed([BAD], FIRST)
    assert quarantine.look(BAD, FIRST) is Standing.FREE
    quarantine.passed([GOOD], FIRST)
    assert len(quarantine) == 1


# -- a failing server is no reason -----------------------------------------------------------------


def test_what_fails_while_nothing_passes_is_not_counted() -> None:
    quarantine = Quarantine(refuse=True)
    marks = [b"%d" % n for n in range(50)]
    for _ in range(3):
        for mark in marks:
            quarantine.failed_alone(mark)
    quarantine.passed([], 1.0)
    assert {quarantine.look(mark, 1.0) for mark in marks} == {Standing.FREE}
    assert len(quarantine) == 0


def test_an_outage_is_at_most_one_strike_however_often_it_is_tried_again() -> None:
    quarantine = Quarantine()
    for _ in range(9):
        quarantine.failed_alone(BAD)
    assert quarantine.active(0.0)
    quarantine.passed([GOOD], 1.0)
    assert quarantine.look(BAD, 1.0) is Standing.FREE


def test_who_passes_after_all_has_no_strike() -> None:
    quarantine = Quarantine()
    quarantine.failed_alone(BAD)
    quarantine.passed([BAD], 0.0)
    assert not quarantine.active(0.0)


# -- memory --------------------------------------------------------------------------------------


def test_it_remembers_a_bounded_number_those_that_matter_last() -> None:
    quarantine = Quarantine(size=10)
    for _ in range(2):
        quarantine.killed([BAD], 0.0)
    for n in range(100):
        quarantine.killed([b"%d" % n, b"x"], 0.0)
        assert quarantine.look(BAD, 0.0) is Standing.ALONE
    assert len(quarantine) == 10
    quarantine.killed([b"many %d" % n for n in range(100)], 0.0)
    assert len(quarantine) == 10
    nothing = Quarantine(size=0)
    nothing.killed([BAD], 0.0)
    strike(nothing, BAD, 0.0)
    assert len(nothing) == 0


def test_what_nobody_asks_for_is_forgotten_as_well() -> None:
    quarantine = Quarantine()
    quarantine.killed([b"%d" % n for n in range(100)], 0.0)
    assert quarantine.active(FIRST - 1)
    assert not quarantine.active(FIRST + 1)
    assert len(quarantine) == 0


class Remembering(RuleBasedStateMachine):
    """Whatever happens: bounded, and everything is over some time after the last offence."""

    def __init__(self) -> None:
        super().__init__()
        self.quarantine = Quarantine(refuse=True, size=3)
        self.now = 0.0

    @rule(mark=st.integers(0, 4))
    def fails(self, mark: int) -> None:
        self.quarantine.failed_alone(b"%d" % mark)

    @rule(marks=st.lists(st.integers(0, 4), max_size=3))
    def passes(self, marks: list[int]) -> None:
        named = [b"%d" % mark for mark in marks]
        self.quarantine.passed(named, self.now)
        assert all(self.quarantine.look(mark, self.now) is Standing.FREE for mark in named)

    @rule(marks=st.lists(st.integers(0, 4), min_size=1, max_size=3))
    def kills(self, marks: list[int]) -> None:
        self.quarantine.killed([b"%d" % mark for mark in marks], self.now)

    @rule(seconds=st.sampled_from([0.5, 30.0, 100.0]))
    def waits(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def bounded(self) -> None:
        assert len(self.quarantine) <= 3
        if not self.quarantine.active(self.now):
            assert len(self.quarantine) == 0
            assert self.quarantine.look(b"0", self.now) is Standing.FREE

    def teardown(self) -> None:
        self.quarantine.passed([], self.now)
        assert not self.quarantine.active(self.now + 2 * LONGEST + 1.0)


TestRemembering = Remembering.TestCase
