"""The arrival check: who asks whom, what is counted, what ``dry_run`` leaves undone."""

from __future__ import annotations

import json
from random import Random

import msgspec
import pytest

from filters.api import Priority, Reason, Reject
from filters.load_shed import Config, LoadShed
from filters.shedder import Shedder
from filters.strain import Strain
from filters.tenants import tenant_of
from tests.filters.doubles import exchange

KEY = b"authorization"


def standing() -> Shedder:
    """A shedder in overload, with whose threshold hardly anybody passes."""
    shedder = Shedder(Random(1))
    shedder.queue(1000.0, 100)
    for n in range(1000):
        shedder.arrived(Priority.CRITICAL_PLUS, 1, 1000 + n * 0.001)
        if n % 10 == 0:
            shedder.served(1000 + n * 0.001)
    shedder.full(1001.0)
    assert shedder.overloaded
    return shedder


def strained(pressure: float = 3.0) -> Strain:
    strain = Strain(0.1)
    now = 995.0
    while strain.pressure < pressure:
        now += 0.2
        strain.looked(0.3, now)
    strain.looked(0.3, 1001.0)
    return strain


def check(
    config: Config | None, shedder: Shedder | None = None, strain: Strain | None = None
) -> LoadShed:
    return LoadShed(config, shedder, strain, KEY, Random(2))


def test_in_calm_it_counts_and_computes_no_tenant() -> None:
    shedder = Shedder(Random(1))
    shed = check(Config(), shedder, Strain(0.1, 0.9, 0.9))
    subject = exchange(headers={KEY: b"Bearer a"})
    subject.priority = Priority.SHEDDABLE
    shed.arrive(subject, 1000.0)
    assert shedder.arrivals == [0, 0, 0, 1]
    assert subject.tenant == 0
    assert subject.shadowed is None


def test_a_standing_queue_is_refused_at_arrival_with_a_time_to_come_back() -> None:
    shedder = standing()
    shed = check(Config(), shedder)
    subject = exchange(headers={KEY: b"Bearer a"})
    subject.priority = Priority.SHEDDABLE
    with pytest.raises(Reject) as refused:
        shed.arrive(subject, 1001.0)
    assert refused.value.reason is Reason.SHED
    assert 1 <= (refused.value.retry_after or 0) <= 10
    assert "100/s are served" in refused.value.detail
    assert shed.shed == 1
    assert shedder.refused == [0, 0, 0, 1]
    assert subject.tenant == tenant_of(exchange(headers={KEY: b"Bearer a"}), KEY)


def test_the_gateways_own_health_comes_first() -> None:
    shedder = standing()
    shed = check(Config(), shedder, strained())
    subject = exchange()
    before = sum(shedder.arrivals)
    with pytest.raises(Reject) as refused:
        shed.arrive(subject, 1001.0)
    assert refused.value.reason is Reason.STRAINED
    assert refused.value.detail == "the event loop is 300 ms late"
    assert (refused.value.retry_after or 0) >= 1
    assert (shed.strained, shed.shed) == (1, 0)
    assert sum(shedder.arrivals) == before
    best = exchange()
    best.priority = Priority.CRITICAL_PLUS
    check(Config(), None, strained()).arrive(best, 1001.0)


def test_dry_run_says_what_it_would_do_and_does_nothing() -> None:
    shedder = standing()
    shed = check(Config(dry_run=True), shedder)
    subject = exchange()
    subject.priority = Priority.SHEDDABLE
    shed.arrive(subject, 1001.0)
    assert subject.shadowed is Reason.SHED
    assert (shed.would_shed, shed.shed) == (1, 0)
    assert sum(shedder.refused) == 0
    shed = check(Config(dry_run=True), None, strained())
    subject = exchange()
    shed.arrive(subject, 1001.0)
    assert subject.shadowed is Reason.STRAINED
    assert (shed.would_strain, shed.strained) == (1, 0)


def test_without_a_configuration_it_only_counts() -> None:
    shedder = standing()
    shed = check(None, shedder, strained())
    subject = exchange()
    subject.priority = Priority.SHEDDABLE
    before = sum(shedder.arrivals)
    shed.arrive(subject, 1001.0)
    assert sum(shedder.arrivals) == before + 1
    assert sum(shedder.refused) == 0
    assert subject.shadowed is None


def test_it_has_nothing_to_say_where_nobody_measures() -> None:
    check(Config()).arrive(exchange(), 1000.0)


def test_a_reload_keeps_the_counts() -> None:
    before = check(Config())
    before.shed, before.strained, before.would_shed, before.would_strain = 1, 2, 3, 4
    after = check(Config(dry_run=True))
    after.take_over(before)
    told = after.describe(0.0)
    assert [told[name] for name in ("shed", "strained", "would_shed", "would_strain")] == [
        1, 2, 3, 4,
    ]  # fmt: skip
    assert told["dry_run"]


def test_it_can_be_shown() -> None:
    shown = check(Config(), standing(), strained()).describe(1001.0)
    assert json.loads(json.dumps(shown)) == shown
    assert json.dumps(check(Config()).describe(0.0))


def test_the_tenant_is_the_header_or_else_the_address() -> None:
    one = exchange(headers={KEY: b"Bearer a"})
    same = exchange(headers={KEY: b"Bearer a"})
    other = exchange(headers={KEY: b"Bearer b"})
    bare = exchange()
    elsewhere = exchange()
    elsewhere.client = "10.0.0.1"
    assert tenant_of(one, KEY) == tenant_of(same, KEY) != 0
    assert len({tenant_of(each, KEY) for each in (one, other, bare, elsewhere)}) == 4
    assert tenant_of(exchange(headers={KEY: b"Bearer a"}), None) == tenant_of(bare, KEY)
    nobody = exchange()
    nobody.client = ""
    assert tenant_of(nobody, KEY) != 0


def test_thresholds_can_be_off() -> None:
    config = msgspec.convert({"loop_lag": None, "memory": None, "files": None}, Config)
    strain = Strain(config.loop_lag, config.memory, config.files)
    for n in range(100):
        strain.looked(10.0, n * 0.1)
        strain.measured(1.0, 1.0, n * 0.1)
    assert strain.pressure == 0
