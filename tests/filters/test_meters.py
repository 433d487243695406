"""The sketch against sorting: how exact it is, and what it forgets."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.meters import GROWTH, LOWEST, SIZE, Quantiles

pauses = st.floats(0, 5, allow_nan=False)
values = st.floats(LOWEST, 4000)


def exact(samples: list[tuple[float, float]], q: float, now: float, half_life: float) -> float:
    """The weighted quantile, by sorting."""
    weighted = sorted((value, 2 ** ((when - now) / half_life)) for when, value in samples)
    wanted = q * math.fsum(weight for _, weight in weighted)
    total = 0.0
    for value, weight in weighted:
        total += weight
        if total >= wanted * (1 - 1e-9):
            return value
    raise AssertionError


@given(
    st.lists(st.tuples(pauses, values), min_size=1, max_size=80),
    st.floats(0.01, 1.0),
    st.sampled_from([0.1, 5.0, 60.0]),
)
def test_a_quantile_is_at_most_five_percent_above_the_exact_one(
    steps: list[tuple[float, float]], q: float, half_life: float
) -> None:
    sketch, now = Quantiles(half_life), 5000.0
    samples = []
    for pause, value in steps:
        now += pause
        sketch.add(value, now)
        samples.append((now, value))
    found = sketch.quantile(q)
    # Where the sum of weights meets q to the last digit, either neighbour is right.
    low = exact(samples, q - 1e-6, now, half_life)
    last = q + 1e-6 >= 1
    high = max(v for _, v in samples) if last else exact(samples, q + 1e-6, now, half_life)
    assert low * (1 - 1e-9) <= found <= high * GROWTH * (1 + 1e-9)
    count = math.fsum(2 ** ((when - now) / half_life) for when, _ in samples)
    assert sketch.count(now) == pytest.approx(count)


@given(st.lists(values, min_size=1), st.lists(st.floats(0.01, 1.0), min_size=2, max_size=2))
def test_quantiles_are_in_order(seen: list[float], qs: list[float]) -> None:
    sketch = Quantiles(10)
    for value in seen:
        sketch.add(value, 1.0)
    assert sketch.quantile(min(qs)) <= sketch.quantile(max(qs))


def test_a_sketch_forgets_by_halves() -> None:
    sketch = Quantiles(10)
    for _ in range(64):
        sketch.add(1.0, 100.0)
    assert [sketch.count(100.0 + t) for t in (0, 10, 20)] == [64.0, 32.0, 16.0]
    sketch.add(3.0, 160.0)
    assert sketch.count(160.0) == 3.0 - 1.0
    for _ in range(9):
        sketch.add(3.0, 160.0)
    assert sketch.quantile(0.5) == pytest.approx(3.0, rel=GROWTH - 1)


def test_a_sketch_lives_through_years_of_work_and_of_idleness() -> None:
    sketch = Quantiles(60)
    for hour in range(24 * 365):
        sketch.add(0.02 if hour < 8000 else 0.5, hour * 3600.0)
    now = 24 * 365 * 3600.0
    assert sketch.quantile(0.5) == pytest.approx(0.5, rel=GROWTH - 1)
    assert sketch.count(now) < 1.1
    sketch.add(7.0, now * 1000)
    assert sketch.count(now * 1000) == 1.0
    assert sketch.quantile(0.01) == pytest.approx(7.0, rel=GROWTH - 1)


def test_what_is_out_of_range_counts_at_the_edge() -> None:
    sketch = Quantiles(60)
    for value in (0.0, LOWEST / 10, 1e9):
        sketch.add(value, 1.0)
    assert sketch.quantile(0.5) == LOWEST
    assert sketch.quantile(1.0) == pytest.approx(LOWEST * GROWTH ** (SIZE - 1))


def test_an_empty_sketch_says_nothing() -> None:
    sketch = Quantiles(60)
    assert (sketch.quantile(0.95), sketch.count(5.0)) == (0.0, 0.0)


def test_of_a_lognormal_load_the_share_above_the_quantile_is_not_more_than_asked_for() -> None:
    sketch, rng = Quantiles(1e9), Random(4)
    seen = [0.02 * math.exp(rng.gauss(0, 0.5)) for _ in range(20_000)]
    for value in seen:
        sketch.add(value, 1.0)
    for q in (0.5, 0.9, 0.95, 0.99):
        above = sum(value > sketch.quantile(q) for value in seen) / len(seen)
        assert (1 - q) * 0.7 < above <= (1 - q) + 1e-9
