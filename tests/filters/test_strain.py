"""Strain: what measurements mean, by class; and that no verdict outlasts its reason."""

from __future__ import annotations

import json
from itertools import pairwise
from math import exp
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.api import Priority
from filters.strain import ALL_BUT_BEST, HELPS, SHEDDABLE, STALE, Strain
from filters.tenants import MOST, Rates

RNG = Random(1)


def refused(strain: Strain, now: float) -> list[float]:
    """The share that is refused of each class."""
    if not strain.pressure:
        return [0.0] * 4
    return [sum(strain.refuses(each, now, RNG) for _ in range(400)) / 400 for each in Priority]


# -- the event loop ------------------------------------------------------------------------------


def test_lag_must_last_for_a_second() -> None:
    strain = Strain(0.1)
    strain.looked(5.0, 0.0)  # one long pause
    strain.looked(0.0, 0.1)
    for n in range(1, 5):
        strain.looked(0.15, n * 0.2)
        assert strain.pressure == 0
    strain.looked(0.05, 1.0)
    for n in range(5):
        strain.looked(0.15, 1.2 + n * 0.2)
        assert strain.pressure == 0
    strain.looked(0.15, 2.21)
    assert strain.pressure > 0
    assert strain.why == "the event loop is 150 ms late"


def test_classes_are_refused_one_after_the_other_and_the_best_never() -> None:
    strain = Strain(0.1)
    now, seen = 0.0, [[0.0] * 4]
    for _ in range(40):
        now += 0.2
        strain.looked(0.2, now)
        seen.append(refused(strain, now))
    for before, after in pairwise(seen):
        assert all(b <= a + 0.15 for b, a in zip(before, after, strict=True))
    for shares in seen:
        assert shares[0] == 0
        assert shares == sorted(shares)
        assert sum(0 < share < 1 for share in shares) <= 1
    assert seen[-1] == [0, 1, 1, 1]


def test_what_was_refused_comes_back_step_by_step() -> None:
    strain = Strain(0.1)
    now = 0.0
    for _ in range(30):
        now += 0.2
        strain.looked(0.2, now)
    assert strain.pressure == ALL_BUT_BEST
    steps = 0
    while strain.pressure:
        before = strain.pressure
        now += 0.1
        strain.looked(0.01, now)
        assert 0 < before - strain.pressure < 0.1
        steps += 1
    assert 20 <= steps * 0.1 * 10 <= 100
    assert strain.why == ""


# -- memory and files ----------------------------------------------------------------------------


def test_use_refuses_by_how_near_the_limit_is() -> None:
    strain = Strain(None, 0.8, 0.8)
    strain.measured(0.5, 0.1, 0.0)
    assert strain.pressure == 0
    strain.measured(0.81, 0.1, 1.0)
    assert strain.pressure == SHEDDABLE
    assert refused(strain, 1.0) == [0, 0, 1, 1]
    assert strain.why == "memory at 81.0% of the cgroup's limit"
    strain.measured(0.92, 0.85, 2.0)
    assert refused(strain, 2.0) == [0, 1, 1, 1]
    strain.measured(0.5, 0.85, 3.0)
    assert refused(strain, 3.0) == [0, 0, 1, 1]
    assert strain.why == "open files at 85.0% of their limit"
    strain.measured(0.5, 0.2, 4.0)
    assert strain.pressure == 0


def test_a_level_that_nothing_lowers_refuses_for_a_while_only() -> None:
    strain = Strain(None, 0.9)
    strain.measured(0.5, None, 0.0)
    for n in range(1, 60):
        strain.measured(0.96, None, float(n))
        assert (strain.pressure > 0) == (n < 1 + HELPS)
    strain.measured(0.97, None, 60.0)  # it grows on
    assert strain.pressure == ALL_BUT_BEST


def test_what_is_in_use_at_the_start_is_anothers() -> None:
    strain = Strain(None, 0.9, 0.9)
    strain.measured(0.97, 0.1, 0.0)
    assert strain.pressure == 0
    strain.measured(0.972, 0.1, 1.0)
    assert strain.pressure == 0
    strain.measured(0.98, 0.1, 2.0)
    assert strain.pressure == ALL_BUT_BEST


def test_no_limit_is_no_strain() -> None:
    strain = Strain(0.1, 0.9, 0.9)
    for n in range(5):
        strain.measured(None, None, float(n))
    assert strain.pressure == 0
    assert strain.describe(4.0)["memory"] is None


# -- both ----------------------------------------------------------------------------------------


def test_what_nobody_measures_any_more_refuses_nobody() -> None:
    strain = Strain(0.1, 0.9)
    strain.measured(0.5, None, 0.0)
    strain.measured(0.96, None, 1.0)
    assert strain.refuses(Priority.SHEDDABLE, 1.0 + STALE, RNG)
    for n in range(40):  # the loop is still looked at, memory no more
        strain.looked(0.0, 1.0 + n * 0.1)
    assert strain.pressure == 0
    strain.measured(0.97, None, 6.0)
    assert strain.pressure
    assert json.loads(json.dumps(strain.describe(6.0)))["refused"] == [
        "critical", "sheddable_plus", "sheddable",
    ]  # fmt: skip
    assert not strain.refuses(Priority.SHEDDABLE, 6.0 + STALE + 0.1, RNG)
    assert strain.pressure == 0


fed = st.lists(
    st.tuples(
        st.sampled_from((0.01, 0.2, 1.0, 5.0)),
        st.one_of(st.floats(0, 2), st.tuples(*[st.one_of(st.none(), st.floats(0, 1))] * 2)),
    ),
    max_size=60,
)


@given(fed)
def test_it_always_ends(fed: list[tuple[float, float | tuple[float | None, float | None]]]) -> None:
    strain = Strain(0.1, 0.9, 0.9)
    now = 0.0
    for gap, what in fed:
        now += gap
        if isinstance(what, tuple):
            strain.measured(*what, now)
        else:
            strain.looked(what, now)
        assert 0 <= strain.pressure <= ALL_BUT_BEST
        assert bool(strain.pressure) == bool(strain.why)
        assert not strain.refuses(Priority.CRITICAL_PLUS, now, RNG)
    held = 0.95
    for _ in range(100):  # all is well but for memory, which stays where it is
        now += 0.1
        strain.looked(0.0, now)
        strain.measured(held, 0.5, now)
    strain.measured(held, 0.5, now + HELPS)
    assert strain.pressure == 0


# -- the rates of tenants ------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.2, 5.0, 300.0])
def test_a_rate_is_measured(rate: float) -> None:
    rates, rng = Rates(1.0), Random(3)
    now, found = 0.0, []
    for _ in range(4000):
        now += rng.uniform(0.8, 1.2) / rate
        found.append(rates.sent(7, now))
    assert sum(found[500:]) / 3500 == pytest.approx(rate, rel=0.1)


def test_a_rate_follows_within_the_window() -> None:
    rates = Rates(1.0)
    now = 0.0
    for _ in range(1000):
        now += 0.1
        before = rates.sent(7, now)
    for _ in range(1000):
        now += 0.001
        after = rates.sent(7, now)
    assert before == pytest.approx(10, rel=0.01)
    assert after == pytest.approx(10 * exp(-1) + 1000 * (1 - exp(-1)), rel=0.01)


def test_requests_at_the_same_time_count_too() -> None:
    rates = Rates(1.0)
    assert [rates.sent(7, 5.0) for _ in range(3)] == [1, 2, 3]


def test_tenants_are_bounded_and_the_busy_are_kept() -> None:
    rates = Rates(1.0)
    for n in range(5 * MOST):
        rates.sent(n + 2, n * 0.0001)
        if n % 10 == 0:
            busy = rates.sent(1, n * 0.0001)
        assert len(rates) <= 2 * MOST
    assert busy > 500
