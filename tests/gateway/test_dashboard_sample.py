"""What the dashboard says is right: samples, percentiles and the headline."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.api import Priority, Reason
from gateway.dashboard_sample import (
    CLIENT,
    REFUSED,
    Sample,
    Sampler,
    kind_of,
    quantile,
    together,
)
from gateway.headline import WHY, headline
from gateway.metrics import Metrics

BUCKETS = (0.01, 0.1, 1.0)
OK = ("c", 2, None, Priority.CRITICAL)


def end(metrics: Metrics, key: Any, seconds: float, count: int = 1, route: str = "r") -> None:
    counters = metrics.route(route)
    for _ in range(count):
        counters.requests[key] = counters.requests.get(key, 0) + 1
        counters.durations.add(seconds)
        counters.first_bytes.add(seconds)


# -- samples -------------------------------------------------------------------------------------


def test_a_sample_is_what_came_since_the_last_one() -> None:
    metrics = Metrics(BUCKETS)
    sampler = Sampler(metrics)
    end(metrics, OK, 0.05, 3)
    end(metrics, ("c", 5, Reason.SHED, Priority.SHEDDABLE), 0.001, 2)
    end(metrics, ("c", 5, Reason.UPSTREAM_RESET, Priority.CRITICAL), 0.2)
    end(metrics, ("c", 4, None, Priority.CRITICAL), 0.2)
    metrics.refuse(Reason.MALFORMED)
    first = sampler.sample(100.0, 1.0)
    assert (first.good, first.refused, first.failed, first.client) == (3, 2, 1, 2)
    assert first.reasons == {"shed": 2, "upstream_reset": 1, "malformed": 1}
    assert first.classes == {"critical": [5, 0], "sheddable": [2, 2]}
    end(metrics, OK, 0.05)
    second = sampler.sample(101.0, 1.0)
    assert (second.good, second.ended, second.reasons) == (1, 1, {})
    assert sampler.sample(102.0, 1.0).ended == 0
    assert sampler.recent("r") == {"rate": round(8 / 3, 2), "refused": 0.67, "failed": 0.33}


def test_a_reload_with_other_buckets_begins_the_percentiles_again() -> None:
    metrics = Metrics(BUCKETS)
    sampler = Sampler(metrics)
    end(metrics, OK, 0.05, 100)
    assert sampler.sample(1.0, 1.0).total is not None
    metrics.use((0.5, 5.0))
    end(metrics, OK, 3.0)
    found = sampler.sample(2.0, 1.0)
    assert found.good == 1
    assert found.total is not None
    assert 500 < found.total[0] < 5000


@given(
    st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any),
    st.floats(0.01, 1.0),
)
def test_a_quantile_lies_in_its_bucket(counts: list[int], share: float) -> None:
    found = quantile(BUCKETS, counts, share)
    assert found is not None
    below = sum(n for n, bound in zip(counts, BUCKETS, strict=False) if bound <= found)
    assert 0 <= found <= BUCKETS[-1]
    assert below <= share * sum(counts) + 1e-9 or found in BUCKETS


def test_a_quantile_of_nothing_is_none() -> None:
    assert quantile(BUCKETS, [0, 0, 0, 0], 0.5) is None
    assert quantile(BUCKETS, [0, 0, 0, 1], 0.5) == 1.0
    assert quantile(BUCKETS, [0, 2, 0, 0], 0.5) == pytest.approx(0.055)


def test_every_reason_is_somebodys() -> None:
    assert not REFUSED & CLIENT
    kinds = {reason: kind_of(reason, 5) for reason in Reason}
    assert kinds[Reason.CLIENT_STALLED] == kinds[Reason.MALFORMED] == "client"
    assert kinds[Reason.SHED] == kinds[Reason.NO_ENDPOINT] == "refused"
    assert kinds[Reason.INTERNAL] == kinds[Reason.UPSTREAM_STATUS] == "failed"
    words = {reason.value for reason, kind in kinds.items() if kind != "client"} | {"5xx"}
    assert words == set(WHY)


def test_many_idle_routes_are_not_looked_into() -> None:
    metrics = Metrics(BUCKETS)
    for number in range(500):
        end(metrics, OK, 0.05, route=f"r{number}")
    sampler = Sampler(metrics)
    assert sampler.sample(1.0, 1.0).good == 500
    for counters in metrics.routes.values():
        counters.requests = None  # type: ignore[assignment]
    assert sampler.sample(2.0, 1.0).good == 0


# -- the headline --------------------------------------------------------------------------------


def stands(**changes: Any) -> dict[str, Any]:
    endpoint = {"endpoint": "a:1", "state": "healthy", "why": "not checked", "pushed_back": False}
    cluster = {"name": "llm", "total": 1, "out": 0, "doubted": False, "endpoints": [endpoint]}
    return {"draining": False, "clusters": [cluster], "routes": [], "gateway": {},
            "config": {"last_error": None}, **changes}  # fmt: skip


def of(*states: str, why: str = "5 failures in a row; for 3.2 s more") -> dict[str, Any]:
    endpoints = [
        {"endpoint": f"{name}:1", "state": state, "why": why, "pushed_back": False}
        for name, state in zip("abcdefgh", states, strict=False)
    ]
    out = sum(each != "healthy" for each in states)
    return {"name": "llm", "total": len(states), "out": out, "doubted": False,
            "tried": len(states) > 1, "endpoints": endpoints}  # fmt: skip


QUIET = Sample(at=0, seconds=10)


@pytest.mark.parametrize(
    ("state", "recent", "first"),
    [
        (stands(), QUIET, ("good", "everything is fine: 1 endpoint serves, no traffic now")),
        (
            stands(clusters=[of("healthy", "healthy")]),
            Sample(at=0, seconds=10, good=1234),
            ("good", "everything is fine: all 2 endpoints serve, 123 requests/s"),
        ),
        (
            stands(clusters=[of("healthy", "ejected", "healthy")]),
            QUIET,
            ("warn", "endpoint b:1 is ejected: 5 failures in a row; 2 of 3 serve"),
        ),
        (
            stands(clusters=[of("ejected", "unhealthy")]),
            QUIET,
            (
                "bad",
                "all 2 endpoints of llm are out: 5 failures in a row; they are tried all the same",
            ),
        ),
        (
            stands(clusters=[of("ejected")]),
            QUIET,
            ("bad", "the only endpoint of llm is out: 5 failures in a row"),
        ),
        (
            stands(clusters=[of(*["ejected"] * 4, *["healthy"] * 4)]),
            QUIET,
            ("warn", "4 endpoints of llm are out; 4 of 8 serve; 5 failures in a row"),
        ),
        (
            stands(),
            Sample(
                at=0, seconds=10, good=88, refused=12, reasons={"shed": 12},
                classes={"critical": [60, 0], "sheddable": [40, 12]},
            ),
            ("warn", "refusing 30% of sheddable: more comes than is served (shed)"),
        ),
        (
            stands(),
            Sample(
                at=0, seconds=10, good=90, refused=10, reasons={"queue_full": 10},
                classes={"critical": [100, 10]},
            ),
            ("bad", "refusing 10% of critical: the queue is full (queue_full)"),
        ),
        (
            stands(),
            Sample(at=0, seconds=10, good=98, failed=2, reasons={"upstream_reset": 2}),
            ("bad", "2.0% of answers are failures: endpoints break off (upstream_reset)"),
        ),
        (
            stands(config={"last_error": "x.yaml: unknown key"}),
            QUIET,
            ("warn", "the last reload failed, the old configuration stays: x.yaml: unknown key"),
        ),
        (stands(draining=True), QUIET, ("warn", None)),
        (stands(gateway={"strained": "memory"}), QUIET, ("bad", None)),
    ],
)  # fmt: skip
def test_the_headline_says_it(
    state: dict[str, Any], recent: Sample, first: tuple[str, str | None]
) -> None:
    line = headline(state, recent)[0]
    assert line.level == first[0]
    assert first[1] is None or line.text == first[1]


def test_the_worst_comes_first() -> None:
    state = stands(clusters=[of("ejected", "healthy", "healthy")], draining=True)
    lines = headline(state, Sample(at=0, seconds=1, good=50, failed=50, reasons={"stall": 50}))
    assert [line.level for line in lines] == ["bad", "warn", "warn"]


def test_a_few_failures_of_few_are_no_news() -> None:
    assert headline(stands(), Sample(at=0, seconds=10, failed=3))[0].level == "good"


def test_samples_add_up() -> None:
    one = Sample(at=1, good=2, reasons={"shed": 1}, refused=1, classes={"critical": [3, 1]})
    two = Sample(at=2, good=1, classes={"critical": [1, 0]}, hedges=(1, 2))
    both = together([one, two])
    assert (both.at, both.seconds, both.good, both.ended) == (2, 2, 3, 4)
    assert (both.reasons, both.classes) == ({"shed": 1}, {"critical": [4, 1]})
    assert both.hedges == (1, 2)
    assert one.classes == {"critical": [3, 1]}
