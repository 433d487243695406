"""Shares, movement and black holes. Latencies and failures are simulated in plain numbers."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancer import (
    DECAY,
    Balancer,
    ConsistentHash,
    LeastRequest,
    Load,
    PeakEwma,
    RoundRobin,
    _pair,
    balancer,
)
from gateway.config import Balance

ALL: list[Callable[[], Balancer]] = [
    RoundRobin,
    LeastRequest,
    PeakEwma,
    lambda: ConsistentHash(1.25),
]


def loads(*weights: float) -> list[Load]:
    return [Load(f"http://10.0.0.{n}:8000", weight) for n, weight in enumerate(weights)]


def sample(load: Load, now: float, seconds: float, *, failed: bool = False) -> None:
    load.start(now)
    load.finish(now, seconds, failed)


Behaviour = Callable[[float], tuple[float, bool]]
"""Seconds since the start -> how long an attempt takes, and whether it then fails."""


def simulate(
    policy: Balancer,
    behaviours: list[Behaviour],
    seconds: float,
    rate: float = 100,
    since: float = 0,
) -> Counter[str]:
    """Attempts per endpoint, of those that started at ``since`` or later."""
    rng = Random(7)
    endpoints = loads(*[1.0] * len(behaviours))
    flying: list[tuple[float, int, float, bool]] = []
    counts: Counter[str] = Counter({load.name: 0 for load in endpoints})
    for tick in range(int(seconds * rate)):
        now = tick / rate
        while flying and flying[0][0] <= now:
            end, place, took, failed = heapq.heappop(flying)
            endpoints[place].finish(end, took, failed)
        chosen = policy.choose(endpoints, now, rng, None)
        place = endpoints.index(chosen)
        chosen.start(now)
        took, failed = behaviours[place](now)
        heapq.heappush(flying, (now + took, place, took, failed))
        counts[chosen.name] += now >= since
    return counts


def steady(seconds: float) -> Behaviour:
    return lambda _: (seconds, False)


@pytest.mark.parametrize("make", ALL)
def test_a_single_candidate_is_chosen(make: Callable[[], Balancer]) -> None:
    only = loads(1)
    only[0].active = 10_000
    assert make().choose(only, 0.0, Random(1), b"key") is only[0]


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        ("round_robin", RoundRobin),
        ("least_request", LeastRequest),
        ("peak_ewma", PeakEwma),
        ("consistent_hash", ConsistentHash),
    ],
)
def test_the_configuration_names_the_policy(policy: str, kind: type) -> None:
    assert type(balancer(Balance(policy=policy))) is kind  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.floats(0.001, 1000), st.integers(0, 10_000)), min_size=1, max_size=30),
    st.integers(0, 2**32),
    st.one_of(st.none(), st.binary(max_size=40)),
    st.sampled_from(ALL),
)
def test_a_choice_is_always_one_of_the_candidates(
    shapes: list[tuple[float, int]], seed: int, key: bytes | None, make: Callable[[], Balancer]
) -> None:
    candidates = loads(*[weight for weight, _ in shapes])
    for load, (_, active) in zip(candidates, shapes, strict=True):
        load.active = active
    chosen = make().choose(candidates, 5.0, Random(seed), key)
    assert any(chosen is load for load in candidates)


class TestRoundRobin:
    def test_shares_follow_weights_and_heavy_ones_do_not_come_in_a_row(self) -> None:
        candidates = loads(5, 1, 1)
        policy = RoundRobin()
        rng = Random(1)
        order = [candidates.index(policy.choose(candidates, 0, rng, None)) for _ in range(7)]
        assert order == [0, 0, 1, 0, 2, 0, 0]

    def test_a_missing_candidate_does_not_lose_its_turn_to_one_only(self) -> None:
        candidates = loads(1, 1, 1)
        policy = RoundRobin()
        rng = Random(1)
        some = Counter(policy.choose(candidates[:2], 0, rng, None).name for _ in range(100))
        assert set(some.values()) == {50}


class TestPairs:
    def test_every_ordered_pair_comes_equally_often_and_never_one_twice(self) -> None:
        rng = Random(3)
        candidates = loads(1, 1, 1)
        pairs = Counter(
            (one.name, two.name) for one, two in (_pair(candidates, rng) for _ in range(6000))
        )
        assert len(pairs) == 6
        assert all(one != two for one, two in pairs)
        assert all(850 < count < 1150 for count in pairs.values())

    def test_of_two_the_idle_one_is_always_chosen(self) -> None:
        candidates = loads(1, 1)
        candidates[0].active = 1
        rng = Random(1)
        for policy in (LeastRequest(), PeakEwma()):
            for _ in range(50):
                assert policy.choose(candidates, 0, rng, None) is candidates[1]

    def test_weight_is_capacity(self) -> None:
        candidates = loads(4, 1)
        candidates[0].active, candidates[1].active = 6, 1
        assert LeastRequest().choose(candidates, 0, Random(1), None) is candidates[0]
        candidates[0].active = 8
        assert LeastRequest().choose(candidates, 0, Random(1), None) is candidates[1]


class TestLoad:
    def test_a_slower_sample_counts_at_once_and_a_faster_one_by_time(self) -> None:
        load = Load("a")
        sample(load, 0.0, 0.1)
        sample(load, 0.0, 2.0)
        load.active = 1
        assert load.latency(0.0) == 2.0
        load.active = 0
        sample(load, DECAY, 0.1)
        assert load.latency(DECAY) == pytest.approx(0.1 + 1.9 / 2.718281828)

    def test_an_idle_endpoint_is_forgiven_a_hanging_one_is_not(self) -> None:
        load = Load("a")
        sample(load, 0.0, 2.0, failed=False)
        sample(load, 0.0, 2.0, failed=True)
        assert load.latency(5 * DECAY) < 0.02
        assert load.failing(5 * DECAY) < 0.01
        load.start(5 * DECAY)
        assert load.latency(10 * DECAY) == 2.0

    def test_reading_changes_nothing(self) -> None:
        load = Load("a")
        sample(load, 0.0, 2.0)
        first = load.latency(3.0)
        load.latency(50.0)
        assert load.latency(3.0) == first

    def test_an_attempt_that_says_nothing_only_gives_its_place_back(self) -> None:
        load = Load("a")
        sample(load, 0.0, 2.0)
        load.start(1.0)
        load.finish(9.0, None, failed=True)
        assert (load.active, load.failing(0.0), load.latency(0.0)) == (0, 0.0, 2.0)

    def test_who_turns_attempts_away_does_not_come_to_look_fast(self) -> None:
        """It never has anything in flight, so time alone would heal it."""
        load = Load("a")
        sample(load, 0.0, 2.0)
        for second in range(1, 100):
            load.start(second)
            load.push_back(second)
            load.finish(second, None, failed=False)
        assert load.latency(100.0) > 0.3
        assert load.latency(200.0) < 0.001

    def test_who_is_pardoned_is_as_new(self) -> None:
        load = Load("a")
        sample(load, 0.0, 2.0)
        sample(load, 0.0, 2.0, failed=True)
        load.pardon()
        assert (load.latency(0.0), load.failing(0.0), load.pressure(0.0)) == (0, 0, 1)

    def test_a_fast_failure_never_improves_the_estimate(self) -> None:
        load = Load("a")
        sample(load, 0.0, 2.0)
        sample(load, 0.0, 0.001, failed=True)
        assert load.latency(0.0) == 2.0
        sample(load, 0.0, 60.0, failed=True)
        assert load.latency(0.0) == 60.0

    @given(
        st.lists(
            st.tuples(st.floats(0, 100), st.one_of(st.none(), st.floats(0, 1e4)), st.booleans())
        )
    )
    def test_estimates_stay_within_what_was_seen(
        self, steps: list[tuple[float, float | None, bool]]
    ) -> None:
        load = Load("a")
        now, slowest = 0.0, 0.0
        for pause, seconds, failed in steps:
            now += pause
            load.start(now)
            load.finish(now, seconds, failed)
            slowest = max(slowest, seconds or 0.0)
            assert 0 <= load.latency(now) <= slowest * (1 + 1e-9)
            assert 0 <= load.failing(now) <= 1
            assert load.pressure(now) >= 1
            assert load.active == 0


class TestRouting:
    def test_the_slow_endpoint_gets_little(self) -> None:
        counts = simulate(PeakEwma(), [steady(0.02), steady(0.02), steady(2.0)], 60, since=5)
        assert counts["http://10.0.0.2:8000"] < 0.02 * counts.total()

    @pytest.mark.parametrize("make", [LeastRequest, PeakEwma])
    def test_a_fast_failing_endpoint_is_no_black_hole(self, make: Callable[[], Balancer]) -> None:
        broken: Behaviour = lambda _: (0.001, True)  # noqa: E731
        counts = simulate(make(), [steady(0.5), steady(0.5), broken], 120, since=5)
        assert counts["http://10.0.0.2:8000"] < 0.04 * counts.total()

    @pytest.mark.parametrize("make", [LeastRequest, PeakEwma])
    def test_an_endpoint_that_recovers_gets_its_share_back(
        self, make: Callable[[], Balancer]
    ) -> None:
        healing: Behaviour = lambda now: (0.001, True) if now < 30 else (0.5, False)  # noqa: E731
        counts = simulate(make(), [steady(0.5), steady(0.5), healing], 180, since=90)
        assert counts["http://10.0.0.2:8000"] > 0.25 * counts.total()

    @pytest.mark.parametrize("make", [LeastRequest, PeakEwma])
    def test_a_hanging_endpoint_is_left_alone(self, make: Callable[[], Balancer]) -> None:
        hanging: Behaviour = lambda now: (0.02, False) if now < 10 else (1e9, False)  # noqa: E731
        counts = simulate(make(), [steady(0.02), steady(0.02), hanging], 120, since=10)
        assert counts["http://10.0.0.2:8000"] < 0.02 * counts.total()

    def test_a_new_endpoint_is_not_flooded_before_its_first_answer(self) -> None:
        counts = simulate(PeakEwma(), [steady(5), steady(5), steady(5)], 4)
        assert max(counts.values()) < 1.1 * min(counts.values())

    def test_a_slow_endpoint_that_was_idle_is_asked_once_and_not_flooded(self) -> None:
        slow, fast = loads(1, 1)
        sample(slow, 0.0, 10.0)
        sample(fast, 100.0, 0.5)
        fast.active = 3
        assert PeakEwma().choose([slow, fast], 100.0, Random(1), None) is slow
        slow.start(100.0)
        assert PeakEwma().choose([slow, fast], 101.0, Random(1), None) is fast

    def test_rare_failures_everywhere_do_not_swing_the_traffic(self) -> None:
        rng = Random(5)
        flaky: Behaviour = lambda _: (0.02, rng.random() < 0.01)  # noqa: E731
        counts = simulate(PeakEwma(), [flaky, flaky], 60)
        assert min(counts.values()) > 0.35 * counts.total()


KEYS = [b"session-%d" % n for n in range(4000)]


def homes(candidates: list[Load]) -> dict[bytes, str]:
    policy = ConsistentHash(1.25)
    return {key: policy.choose(candidates, 0, Random(1), key).name for key in KEYS}


class TestConsistentHash:
    def test_keys_spread_by_weight(self) -> None:
        counts = Counter(homes(loads(1, 1, 2)).values())
        assert counts["http://10.0.0.2:8000"] == pytest.approx(2000, rel=0.08)
        assert counts["http://10.0.0.0:8000"] == pytest.approx(1000, rel=0.1)

    def test_a_lost_endpoint_moves_only_its_own_keys_and_spreads_them(self) -> None:
        candidates = loads(1, 1, 1, 1)
        before, after = homes(candidates), homes(candidates[:3])
        lost = candidates[3].name
        moved = Counter(after[key] for key in KEYS if before[key] == lost)
        assert all(before[key] == after[key] for key in KEYS if before[key] != lost)
        assert min(moved.values()) > 250

    def test_a_heavier_endpoint_only_draws_keys_to_itself(self) -> None:
        before, after = homes(loads(1, 1, 1)), homes(loads(1, 1, 1.5))
        moved = {after[key] for key in KEYS if before[key] != after[key]}
        assert moved == {"http://10.0.0.2:8000"}

    def test_the_order_of_the_candidates_is_no_matter(self) -> None:
        candidates = loads(1, 2, 3)
        assert homes(candidates) == homes(candidates[::-1])

    def test_the_same_key_goes_to_the_same_place_in_every_process(self) -> None:
        chosen = ConsistentHash(1.25).choose(loads(1, 1, 1, 1), 0, Random(1), b"session-1")
        assert chosen.name == "http://10.0.0.3:8000"

    def test_without_a_key_the_less_loaded_is_chosen(self) -> None:
        candidates = loads(1, 1)
        candidates[0].active = 5
        assert ConsistentHash(1.25).choose(candidates, 0, Random(1), None) is candidates[1]

    @given(
        st.lists(st.floats(0.1, 10), min_size=1, max_size=8),
        st.floats(1.01, 3),
        st.lists(st.sampled_from(KEYS[:5]), min_size=1, max_size=200),
    )
    def test_no_endpoint_ever_has_more_than_its_bounded_share(
        self, weights: list[float], bound: float, keys: list[bytes]
    ) -> None:
        candidates = loads(*weights)
        policy = ConsistentHash(bound)
        for total, key in enumerate(keys, 1):
            chosen = policy.choose(candidates, 0, Random(1), key)
            chosen.start(0)
            share = bound * total * chosen.weight / sum(weights)
            assert chosen.active < share + 1 + 1e-9
