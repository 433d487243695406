"""The shedder: what it does to a route under every kind of load, and the rules it keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import inf
from random import Random
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.api import Priority
from filters.shedder import FEW, NEVER_DRAINS, Shedder
from tests.filters.overload import Route, Traffic, lognormal, within

CAPACITY = 400.0  # 8 slots, 20 ms
SEEDS = (1, 2)


def mixed(rng: Random) -> float:
    return 0.005 if rng.random() < 0.5 else 0.5


# -- overload ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "seconds"), [(2, 60), (5, 30), (10, 20)])
@pytest.mark.parametrize("seed", SEEDS)
def test_overload_serves_what_can_be_served_and_tells_the_others_at_once(
    factor: int, seconds: int, seed: int
) -> None:
    route = Route(seed).run(Traffic(((5, CAPACITY / 2), (seconds, factor * CAPACITY))))
    assert route.useful(8, 5 + seconds, within=0.2) >= 0.97 * CAPACITY
    assert within(route.refusals(), 0.05) >= 0.95
    assert not any(each.at < 5 for each in route.refusals())


def test_without_shedding_hardly_anybody_is_served_in_time() -> None:
    route = Route(1, shed=False).run(Traffic(((5, CAPACITY / 2), (15, 2 * CAPACITY))))
    assert route.useful(8, 20, within=0.2) < 0.1 * CAPACITY


@pytest.mark.parametrize("factor", [1.05, 1.2, 1.5])
def test_a_little_too_much_is_contained_too(factor: float) -> None:
    route = Route(3).run(Traffic(((5, CAPACITY / 2), (40, factor * CAPACITY))))
    assert route.useful(8, 45, within=0.2) >= 0.8 * CAPACITY
    assert sum(each.end == "ok" for each in route.between(8, 45)) >= 0.93 * 37 * CAPACITY


@pytest.mark.parametrize("seed", SEEDS)
def test_bursts_that_drain_are_the_queues_work(seed: int) -> None:
    bursts = ((1.0, 2 * CAPACITY), (29.0, 0.75 * CAPACITY)) * 4
    route = Route(seed).run(Traffic(((60, 0.75 * CAPACITY), *bursts)))
    assert route.refusals() == []
    assert route.shedder.episodes == 0
    assert within(route.calls, 5.0) == 1


def test_a_busy_server_is_not_an_overloaded_one() -> None:
    route = Route(1).run(Traffic(((120, 0.9 * CAPACITY),)))
    assert route.refusals() == []
    assert route.shedder.episodes == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_very_different_service_times(seed: int) -> None:
    heavy = Traffic(((5, 200), (45, 2 * CAPACITY)), service=lognormal(0.02, 1.5))
    assert Route(seed).run(heavy).useful(10, 50) >= 0.9 * CAPACITY
    capacity = 8 / 0.2525
    halves = Traffic(((5, capacity / 2), (200, 2 * capacity)), service=mixed)
    assert Route(seed).run(halves).useful(15, 205) >= 0.9 * capacity


@pytest.mark.parametrize("seed", SEEDS)
def test_the_better_class_does_not_notice(seed: int) -> None:
    best = Traffic(((5, 40), (25, 80)), priority=0)
    rest = Traffic(((5, 160), (25, 1920)), priority=3, tenants=(2,))
    route = Route(seed).run(best, rest)
    calls = [each for each in route.calls if each.priority == 0]
    assert within([each for each in calls if each.end == "ok"], 0.2) == 1
    assert [each for each in calls if each.end != "ok"] == []
    assert route.shedder.refused[0] == 0
    assert route.useful(8, 30, within=0.2) >= 0.97 * CAPACITY


@pytest.mark.parametrize("seed", SEEDS)
def test_tenants_below_their_share_lose_nothing(seed: int) -> None:
    nine = Traffic(((25, 0.6 * CAPACITY),), tenants=tuple(range(2, 11)))
    flood = Traffic(((5, 0), (20, 10 * CAPACITY)), tenants=(1,))
    route = Route(seed).run(nine, flood)
    theirs = [each for each in route.calls if each.tenant != 1]
    assert [each for each in theirs if each.end != "ok"] == []
    assert within(theirs, 0.2) >= 0.999
    assert sum(each.end == "ok" for each in route.between(8, 25)) >= 0.97 * 17 * CAPACITY


def test_retrying_clients_do_not_prolong_an_overload() -> None:
    load = Traffic(((5, 0.6 * CAPACITY), (20, 3 * CAPACITY), (15, 0.6 * CAPACITY)), retries=3)
    route = Route(1).run(load)
    late = route.between(28, 40)
    assert [each for each in late if each.end != "ok"] == []
    assert within(late, 0.2) >= 0.999
    ((_, ended),) = route.spans
    assert ended < 31


def test_a_server_that_becomes_slow_and_recovers() -> None:
    route = Route(1, finish=lambda now, s: now + s * (3 if 10 < now < 30 else 1)).run(
        Traffic(((60, 0.9 * CAPACITY),))
    )
    assert route.useful(13, 30, within=0.6) >= 0.95 * CAPACITY / 3
    assert route.useful(33, 60, within=0.2) >= 0.97 * 0.9 * CAPACITY
    ((began, ended),) = route.spans
    assert 12 < began < 14
    assert 30 < ended < 35


@pytest.mark.parametrize("patience", [5.0, inf])
@pytest.mark.parametrize("load", [0.5, 0.9])
def test_a_server_that_stops_and_comes_back(load: float, patience: float) -> None:
    """No rate that was measured as zero keeps anybody out."""

    def finish(now: float, service: float) -> float:
        return now + service if now + service < 10 or now >= 30 else 30 + service

    route = Route(4, finish=finish, patience=patience).run(Traffic(((60, load * CAPACITY),)))
    back = 34 if patience == inf else 31
    late = route.between(back, 60)
    assert within(late, 0.3) >= 0.98
    assert sum(each.end == "ok" for each in late) >= 0.98 * len(late)


def stream(rng: Random) -> float:
    return rng.uniform(10, 60)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_burst_in_front_of_long_streams_is_no_overload(seed: int) -> None:
    load = Traffic(((100, 5.0), (1, 30), (120, 5.0)), service=stream)
    route = Route(seed, slots=200, timeout=60, patience=60).run(load)
    assert route.shedder.episodes == 0
    assert route.refusals() == []


def test_too_many_long_streams_are_an_overload() -> None:
    load = Traffic(((100, 5.0), (200, 12.0)), service=stream)
    route = Route(1, slots=200, patience=60).run(load)
    assert route.shedder.since > 105
    late = route.between(150, 300)
    assert sum(each.end == "ok" for each in late) >= 0.9 * 150 * 200 / 35
    assert within([each for each in late if each.end != "ok"], 3.0) >= 0.8


def test_a_small_queue_that_is_full_is_an_overload_at_once() -> None:
    route = Route(1, size=64).run(Traffic(((5, CAPACITY / 2), (5, 5 * CAPACITY))))
    assert 5 < route.shedder.since < 5.2
    assert route.useful(6, 10, within=0.2) >= 0.95 * CAPACITY


# -- its rules -----------------------------------------------------------------------------------


def overloaded(rng: Random | None = None, length: int = 100) -> Shedder:
    """Of a queue that is full while 100/s are served and 1000/s come."""
    shedder = Shedder(rng or Random(1))
    now = 1000.0
    shedder.queue(now, length)
    for n in range(1000):
        now += 0.001
        shedder.arrived(Priority.CRITICAL, n % 10, now)
        if n % 10 == 0:
            shedder.served(now)
    shedder.full(now)
    assert shedder.overloaded
    return shedder


def test_whoever_looks_sees_the_share_refused_and_the_end() -> None:
    shedder = overloaded()
    shares = cast("dict[str, float]", shedder.describe(shedder.since)["refused_share"])
    assert 0.5 < shares["critical"] < 1
    assert shares["sheddable"] == 0, "nobody of it came"
    shedder.queue(shedder.since, 0)
    assert shedder.stands(shedder.since + 0.01)
    assert not shedder.stands(shedder.since + 60), "also when nobody comes any more"


def test_no_verdict_before_the_server_has_been_seen_to_serve() -> None:
    shedder = Shedder(Random(1))
    shedder.queue(0.0, 1024)
    for n in range(FEW - 1):
        shedder.served(n * 0.01)
        shedder.full(n * 0.01)
    assert not shedder.overloaded
    assert shedder.keep(1.0) is None
    shedder.served(1.0)
    shedder.full(1.0)
    assert shedder.overloaded


def test_what_is_served_without_waiting_says_nothing_about_the_server() -> None:
    shedder = Shedder(Random(1))
    for n in range(1000):
        shedder.served(n * 0.001)
    shedder.queue(1.0, 1024)
    shedder.full(1.0)
    assert not shedder.overloaded


def test_a_queue_that_stands_must_be_at_its_highest() -> None:
    shedder = Shedder(Random(1))
    length = 0
    for n in range(600):  # up for 1.5 s, then down a little
        now = n * 0.01
        length += 2 if n < 150 else -1 if n % 3 else 1
        shedder.served(now)
        shedder.queue(now, length)
    assert 100 < length < 300
    assert shedder.episodes == 0
    for n in range(600, 100 * int(NEVER_DRAINS + 1)):
        now = n * 0.01
        length += -1 if n % 2 else 1
        shedder.served(now)
        shedder.queue(now, length)
    assert shedder.episodes > 0


def test_it_ends_by_itself_when_nobody_comes_any_more() -> None:
    asks: tuple[Callable[[Shedder, float], object], ...] = (
        lambda shedder, now: shedder.arrived(Priority.SHEDDABLE, 7, now),
        lambda shedder, now: shedder.keep(now),
        lambda shedder, now: shedder.queue(now, 0),
    )
    for ask in asks:
        shedder = overloaded()
        shedder.queue(shedder.since + 1, 0)
        ask(shedder, shedder.since + 6)
        assert not shedder.overloaded
        assert shedder.keep(shedder.since + 6) is None


def test_a_rate_of_nothing_still_lets_one_wait() -> None:
    shedder = overloaded(length=1)
    now = shedder.since
    for n in range(30_000):  # 30 s in which nothing is served
        shedder.arrived(Priority.CRITICAL, n % 10, now := now + 0.001)
    assert shedder.overloaded
    assert shedder.drain < 1
    assert shedder.keep(now) == 1
    shedder.queue(now, 0)
    assert not shedder.arrived(Priority.SHEDDABLE, 1, now)


def test_shares_are_max_min_fair_within_the_class_on_the_margin() -> None:
    """Of 600/s that are let in, three tenants that send 100, 300 and 1600 get 100, 250 and 250."""
    rng = Random(5)
    shedder = Shedder(rng)
    rates = {1: 100, 2: 300, 3: 1600}
    passed = dict.fromkeys(rates, 0)
    begin = now = 100.0
    shedder.queue(now, 50)
    while now < begin + 40:
        now += rng.expovariate(2000)
        tenant = rng.choices(list(rates), list(rates.values()))[0]
        if not shedder.arrived(Priority.CRITICAL, tenant, now) and now > begin + 10:
            passed[tenant] += 1
        if rng.random() < 400 / 2000:
            shedder.served(now)
            shedder.full(now)
    assert passed[1] / 30 == pytest.approx(100, rel=0.1)
    assert passed[2] / 30 == pytest.approx(250, rel=0.15)
    assert passed[3] / 30 == pytest.approx(250, rel=0.15)


def test_classes_are_refused_from_the_lowest() -> None:
    rng = Random(6)
    shedder = Shedder(rng)
    now = 100.0
    shedder.queue(now, 50)
    for _ in range(40_000):  # 300/s of each class for 150/s of permits: 225/s are let in
        now += rng.expovariate(1200)
        level = rng.randrange(4)
        shedder.refused[level] += shedder.arrived(level, 1, now)
        if rng.random() < 150 / 1200:
            shedder.served(now)
            shedder.full(now)
    refused = [r / a for r, a in zip(shedder.refused, shedder.arrivals, strict=True)]
    assert 0.1 < refused[0] < 0.35
    assert min(refused[1:]) > 0.95
    report = shedder.describe(now)
    assert report["margin"] == "critical_plus"
    json.dumps(report)


def test_whoever_sends_little_in_a_good_class_is_certain_to_be_served() -> None:
    rng = Random(7)
    shedder = Shedder(rng)
    now = 100.0
    shedder.queue(now, 50)
    for _ in range(30_000):  # 300/s of the best class by ten tenants, 1700/s of the lowest
        now += rng.expovariate(2000)
        best = rng.random() < 300 / 2000
        level = Priority.CRITICAL_PLUS if best else Priority.SHEDDABLE
        shedder.arrived(level, rng.randrange(1, 11) if best else 11, now)
        if rng.random() < 400 / 2000:
            shedder.served(now)
            shedder.full(now)
    assert shedder.keep(now) == 6
    assert all(shedder.certain(Priority.CRITICAL_PLUS, tenant) for tenant in range(1, 11))
    assert not shedder.certain(Priority.SHEDDABLE, 11)
    shedder.hold(now, True)
    assert shedder.keep(now) is None  # nobody goes while no permits are handed out
    shedder.hold(now, False)
    assert shedder.keep(now) == 6


def test_retry_after_is_between_one_and_ten_seconds_and_grows() -> None:
    shedder = overloaded(Random(9))
    early = [shedder.retry_after(shedder.since) for _ in range(1000)]
    late = [shedder.retry_after(shedder.since + 600) for _ in range(1000)]
    assert min(early) >= 1
    assert max(early) <= 3
    assert max(early) - min(early) > 1.9
    assert min(late) > max(early)
    assert max(late) <= 10


def test_it_says_what_it_sees() -> None:
    shedder = overloaded()
    report = shedder.describe(shedder.since + 2)
    assert json.loads(json.dumps(report))["overloaded_for"] == 2
    assert report["drain"] == pytest.approx(100, rel=0.05)
    assert report["inflow"] == pytest.approx(1000, rel=0.05)
    assert report["allowed"] == pytest.approx(150, rel=0.05)
    assert report["margin"] is not None
    json.dumps(Shedder(Random(1)).describe(0.0))


steps = st.lists(
    st.tuples(
        st.sampled_from(("arrive", "serve", "push", "pop", "full", "keep", "flush", "flood")),
        st.integers(0, 3),
        st.sampled_from((0.0, 0.0, 0.001, 0.01, 0.09, 1.0, 30.0)),
    ),
    max_size=200,
)


@given(steps, st.integers(0, 5))
def test_whatever_it_is_told_it_never_locks_anybody_out(
    steps: list[tuple[str, int, float]], seed: int
) -> None:
    shedder = Shedder(Random(seed))
    now, length = 1000.0, 0
    for what, level, gap in steps:
        now += gap
        if what == "arrive":
            calm = not shedder.overloaded
            refused = shedder.arrived(level, seed + level, now)
            assert not (refused and (length == 0 or calm))
        elif what == "serve":
            for _ in range(10):
                shedder.served(now)
        elif what == "full":
            shedder.full(now)
        elif what == "keep":
            keep = shedder.keep(now)
            assert (keep is None) == (not shedder.overloaded)
            assert keep is None or keep >= 1
        elif what == "flood":
            for n in range(50):
                shedder.arrived(level, n, now)
        else:
            length = {"push": length + 10, "pop": max(0, length - 1), "flush": 0}[what]
            shedder.queue(now, length)
        assert shedder.length == length
        json.dumps(shedder.describe(now))
    for late in (60, 100):  # the queue's timeout has emptied it, then somebody comes
        shedder.queue(now + late, 0)
        assert not shedder.arrived(Priority.SHEDDABLE, 1, now + late)
    assert not shedder.overloaded
