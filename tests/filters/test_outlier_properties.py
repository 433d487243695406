"""What holds for ejection whatever happens, by generated histories."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from filters.outlier import Config, cap
from filters.standing import KEPT, NEEDED, SPAN, Cause, Phase, Sample, Standing
from tests.filters.fleet import Fleet

Step = Callable[[Fleet], None]
LONGEST = 20.0
"""Seconds after which every ejection in these tests is over."""


def _of(fleet: Fleet, k: int) -> Standing:
    return fleet.all[k % len(fleet.all)]


def serve(k: int, seconds: float, times: int) -> Step:
    return lambda fleet: fleet.serve(_of(fleet, k), seconds, times)


def fail(k: int, times: int, refused: bool) -> Step:
    return lambda fleet: fleet.fail(_of(fleet, k), times, refused=refused)


def leave(k: int) -> Step:
    """An attempt that nobody waits for any more."""
    return lambda fleet: fleet.dropped(_of(fleet, k), fleet.start(_of(fleet, k)))


def hang(k: int, times: int) -> Step:
    def step(fleet: Fleet) -> None:
        for _ in range(times):
            fleet.start(_of(fleet, k))

    return step


def push_back(k: int, seconds: float) -> Step:
    return lambda fleet: _of(fleet, k).push_back(seconds, fleet.now)


def check(k: int, passes: bool) -> Step:
    return lambda fleet: setattr(_of(fleet, k), "checked", passes)


def eject(k: int) -> Step:
    def step(fleet: Fleet) -> None:
        fleet.policy.eject(_of(fleet, k), fleet.all, "by hand", fleet.now)

    return step


def restore(k: int) -> Step:
    return lambda fleet: fleet.effects.extend(fleet.policy.restore(_of(fleet, k), fleet.now))


def wait(seconds: float) -> Step:
    return lambda fleet: fleet.wait(seconds)


ANY = st.integers(0, 5)
STEPS = st.one_of(
    st.builds(serve, ANY, st.sampled_from((0.005, 0.02, 0.2, 3.0)), st.integers(1, 30)),
    st.builds(fail, ANY, st.integers(1, 12), st.booleans()),
    st.builds(leave, ANY),
    st.builds(hang, ANY, st.integers(1, 12)),
    st.builds(push_back, ANY, st.floats(0, 100)),
    st.builds(wait, st.floats(0, 12)),
)
BY_HAND = st.one_of(
    STEPS, st.builds(eject, ANY), st.builds(restore, ANY), st.builds(check, ANY, st.booleans())
)
CONFIGS = st.builds(
    Config,
    consecutive_failures=st.integers(1, 6),
    failure_percent=st.sampled_from((None, 0.1, 0.5)),
    base_ejection=st.floats(0.1, 10),
    max_ejection=st.floats(0.1, LONGEST),
    max_ejected=st.floats(0, 1),
)


@given(CONFIGS, st.integers(1, 6), st.lists(BY_HAND, max_size=60))
def test_never_more_out_than_the_cap_and_never_all(
    config: Config, n: int, steps: list[Step]
) -> None:
    fleet = Fleet(n, config)
    for step in steps:
        step(fleet)
        out = [s for s in fleet.all if s.phase is not Phase.HEALTHY]
        if n == 1:
            assert all(s.cause is Cause.REFUSED for s in out)
            continue
        assert len(out) <= cap(n, config.max_ejected)
        assert len(out) < n
        assert all(0 < s.share <= 1 for s in fleet.all)


@given(CONFIGS, st.integers(1, 6), st.lists(STEPS, max_size=40))
def test_nobody_stays_ejected(config: Config, n: int, steps: list[Step]) -> None:
    """Time alone leads to the probe, a good probe leads back, and time to the full share."""
    fleet = Fleet(n, config)
    for step in steps:
        step(fleet)
    fleet.wait(SPAN + 1)  # from here on there is nothing left to charge anybody with
    fleet.wait(LONGEST)
    assert not any(s.phase is Phase.EJECTED for s in fleet.all)
    for s in fleet.all:
        if s.phase is Phase.PROBING:
            s.probe = None
            fleet.serve(s, 0.001)
    assert fleet.out == []
    for s in fleet.all:
        fleet.serve(s, 0.02, 64)
    fleet.wait(40.0)
    assert [s.share for s in fleet.all] == [1] * n


@given(CONFIGS, st.integers(2, 6), st.lists(STEPS, max_size=40))
def test_a_probe_that_hangs_does_not_keep_anybody_out(
    config: Config, n: int, steps: list[Step]
) -> None:
    fleet = Fleet(n, config)
    for step in steps:
        step(fleet)
    fleet.wait(LONGEST)
    probing = [s for s in fleet.all if s.phase is Phase.PROBING]
    for s in probing:
        fleet.start(s)
    # The others' time to first byte, here at most 3 s, times the factor, bounds the wait.
    fleet.wait(LONGEST + 3 * 3.0)
    fleet.wait(LONGEST)
    assert all(s.phase is Phase.HEALTHY or s.probe is None for s in probing)


@given(CONFIGS, st.integers(2, 6), st.lists(BY_HAND, max_size=60))
def test_the_same_history_decides_the_same(config: Config, n: int, steps: list[Step]) -> None:
    fleets = Fleet(n, config), Fleet(n, config)
    for fleet in fleets:
        for step in steps:
            step(fleet)
    one, other = fleets
    assert one.out == other.out
    assert [e[::2] for e in one.effects] == [e[::2] for e in other.effects]


@given(st.integers(2, 6), st.data())
def test_who_does_as_all_do_is_never_ejected(n: int, data: st.DataObject) -> None:
    """Whatever they do, if they all do it at the same time."""
    fleet = Fleet(n)
    together = st.sampled_from(("fail", "slow", "fast", "hang", "wait"))
    for what in data.draw(st.lists(together, max_size=40)):
        for s in fleet.all:
            if what == "fail":
                fleet.bad(s, fleet.start(s))
            elif what == "hang":
                fleet.start(s)
            elif what != "wait":
                fleet.serve(s, 2.0 if what == "slow" else 0.02)
        fleet.wait(0.3)
    assert fleet.out == []


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=KEPT), st.floats(0.001, 10))
def test_slower_needs_a_clear_majority(times: list[float], limit: float) -> None:
    """Of some newest attempts, more are above the limit than chance would have it."""
    s = Standing("e", 0.0)
    for n, seconds in enumerate(times):
        sample = Sample(n * 0.01)
        sample.verdict, sample.seconds = 1, seconds
        s.keep(sample, 0)
    found = s.slower_than(limit, 1.0)
    if found is None:
        assert not all(each > limit for each in times[-8:]) or len(times) < 8
    else:
        newest = times[-found.n :]
        slow = sum(each > limit for each in newest)
        assert slow >= NEEDED[found.n]
        assert found.value == sorted(newest)[found.n // 2] > limit


@given(st.lists(st.integers(0, 400), min_size=70, max_size=300))
def test_what_is_kept_reaches_back_behind_what_is_in_flight(active: list[int]) -> None:
    """Thinned out, so that half of what is kept is older than the attempts under way."""
    s = Standing("e", 0.0)
    most = max(active)
    for n in range(2000):
        s.keep(Sample(float(n)), most)
    assert len(s.recent) == KEPT
    assert s.recent[0].started < 2000 - 1.5 * most or most < KEPT // 2
