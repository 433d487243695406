"""Simulated clients: when they come, that they try again, and what is counted over them."""

from dataclasses import replace

import pytest

from filters import retry
from gateway import config
from gateway.sim.crowds import Traffic
from gateway.sim.models import Condition, Model
from gateway.sim.records import Record, calls
from gateway.sim.scenario import world
from gateway.sim.stats import (
    attempts_per_request,
    failed,
    failures,
    goodput,
    quantile,
    refused_upstream,
    share,
    turning_point,
    within,
    within_own,
)
from gateway.sim.world import Plan, simulate

SMALL = Plan(world(2, config.Filters()), (Model(),), (Traffic("chat", ((1.0, 100.0),)),))
REFUSING = tuple((0.5, n, Condition(status=503)) for n in (0, 1))


def test_arrivals_follow_the_phases() -> None:
    traffic = Traffic("chat", ((10.0, 20.0), (10.0, 0.0), (10.0, 100.0)))
    report = simulate(replace(SMALL, traffic=(traffic,)), 4)
    counts = [len(report.arrived(at, at + 10)) for at in (0, 10, 20)]
    assert counts[1] == 0
    assert counts[0] == pytest.approx(200, abs=5 * 200**0.5)
    assert counts[2] == pytest.approx(1000, abs=5 * 1000**0.5)


def test_many_can_come_in_the_same_moment() -> None:
    traffic = Traffic("chat", ((2.0, 0.0),), at_once=((0.5, 7), (1.0, 3)))
    report = simulate(replace(SMALL, traffic=(traffic,)), 1)
    assert [each.arrived for each in report.records] == [0.5] * 7 + [1.0] * 3


def test_who_gets_no_good_answer_tries_again() -> None:
    filters = config.Filters(retry=retry.Config(attempts=1))
    traffic = Traffic("chat", ((1.0, 50.0),), tries=4, backoff=(0.1, 0.2))
    report = simulate(Plan(world(2, filters), (Model(),), (traffic,), REFUSING), 1)
    made = calls(report.records)
    assert {each.tries for each in made} == {1, 4}
    assert sum(each.tries for each in made) == len(report.records)
    for call in made:
        assert call.ok == (call.tries == 1)
        assert call.latency >= (call.tries - 1) * 0.1
    again = [each for each in report.records if each.tries]
    assert min(each.arrived for each in again) >= 0.6
    assert report.broken == ()


def test_who_is_content_does_not_try_again() -> None:
    report = simulate(replace(SMALL, traffic=(Traffic("chat", ((1.0, 50.0),), tries=4),)), 1)
    assert {each.tries for each in report.records} == {0}


def test_the_record_knows_the_work_of_the_answer() -> None:
    report = simulate(SMALL, 1)
    assert all(0 < each.service <= each.latency for each in report.records)
    refused = [r for r in simulate(replace(SMALL, events=REFUSING), 1).records if not r.ok]
    assert {each.service for each in refused} == {0.0}
    assert all(each.refused and not each.retry_after for each in refused)


def test_a_refusal_that_says_when_to_come_back() -> None:
    ill = tuple((0.0, n, Condition(status=429, retry_after=3)) for n in (0, 1))
    report = simulate(replace(SMALL, events=ill), 1)
    assert all(each.refused and each.retry_after for each in report.records)


def test_figures_of_a_run() -> None:
    report = simulate(
        replace(SMALL, events=tuple((0.5, n, Condition(status=503)) for n in (0, 1))), 1
    )
    failed = sum(not each.ok for each in report.records)
    assert failures(report.records) == {"status 503": failed}
    assert 1 < attempts_per_request(report.records) < 2
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([], 0.5) == 0.0


def _answered(service: float, latency: float) -> Record:
    return Record(
        "chat", 1, 0, 0.0, "finished", 200, "", latency, latency, service, 0.0, False, False, (), ()
    )  # fmt: skip


def test_goodput_is_the_useful_part_of_capacity() -> None:
    # In 10 s, 2 slots can do 100 answers of 0.2 s.
    useful = [_answered(0.2, 0.3)] * 60
    late = [_answered(0.2, 5.0)] * 40
    assert goodput([*useful, *late], 10.0, 2, within(1.0)) == pytest.approx(0.6)
    assert goodput([], 10.0, 2, within(1.0)) == 0.0
    assert share([*useful, *late], within_own(2)) == 0.6
    assert share([], within(1.0)) == 1.0
    assert failed(useful) == 0


def test_since_when_it_is_good_for_good() -> None:
    assert turning_point([0.2, 0.9, 0.3, 0.9, 1.0], 0.9) == 3
    assert turning_point([1.0, 1.0], 0.9) == 0
    assert turning_point([1.0, 0.1], 0.9) == 2


def test_what_servers_refused_in_a_while() -> None:
    report = simulate(replace(SMALL, events=REFUSING), 1)
    sent, refused = refused_upstream(report.sampled(0.5, 1.2))
    assert 0 < refused <= sent
    assert refused_upstream(report.sampled(0.0, 0.5))[1] == 0
    assert refused_upstream([]) == (0, 0)
