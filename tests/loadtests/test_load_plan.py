"""The schedule of an open-loop load."""

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.load_plan import Flow, Load, arrivals, schedule

PHASES = st.lists(
    st.tuples(st.floats(0.1, 20), st.floats(0, 50) | st.just(0.0)), min_size=1, max_size=4
)


@given(PHASES, st.integers(), st.integers(0, 5))
def test_requests_are_due_in_order_and_within_their_phases(
    phases: list[tuple[float, float]], seed: int, once: int
) -> None:
    flow = Flow("a", tuple(phases), once=once)
    due = list(arrivals(flow, Random(seed)))
    assert due == sorted(due)
    assert due[:once] == [0.0] * once
    start = 0.0
    for seconds, rate in phases:
        inside = [at for at in due[once:] if start <= at < start + seconds]
        assert rate > 0 or not inside
        start += seconds
    assert all(0 <= at < flow.seconds for at in due)


def test_arrivals_are_poisson_at_each_phase_s_rate() -> None:
    flow = Flow("a", ((100.0, 50.0), (100.0, 200.0)))
    due = list(arrivals(flow, Random(1)))
    first = [at for at in due if at < 100]
    assert len(first) == pytest.approx(5000, rel=0.06)
    assert len(due) - len(first) == pytest.approx(20000, rel=0.03)
    # Of a Poisson process, the counts of equal stretches have a variance equal to their mean.
    counts = [sum(n <= at < n + 1 for at in first) for n in range(100)]
    mean = sum(counts) / 100
    assert sum((n - mean) ** 2 for n in counts) / 99 == pytest.approx(mean, rel=0.5)


def test_a_flow_s_arrivals_do_not_depend_on_the_others() -> None:
    one, two = Flow("one", ((10.0, 5.0),)), Flow("two", ((10.0, 7.0),))
    both = schedule(Load(targets=(1,), flows=(one, two)))
    alone = schedule(Load(targets=(1,), flows=(one,)))
    assert [each for each in both if each[1] == 0] == alone
    assert both == sorted(both)
    assert both != schedule(Load(targets=(1,), flows=(one, two), seed=2))


def test_a_load_survives_the_way_to_its_process() -> None:
    flow = Flow("a", ((1.0, 2.0),), headers=(("a", "b"),), tokens=(1, 2), patience=(0.1, 0.2))
    load = Load(targets=(1, 2), flows=(flow,), seed=3)
    assert msgspec.json.decode(msgspec.json.encode(load), type=Load) == load


def test_the_longest_load_counts_retries_and_patience() -> None:
    flow = Flow("a", ((10.0, 1.0),), patience=(1.0, 5.0), retries=3, backoff=0.1)
    assert Load(targets=(1,), flows=(flow,)).longest == pytest.approx(10 + 4 * 5.15)
