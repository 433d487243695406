"""The rows: all there, well-formed, with verdicts that follow from their claims."""

from typing import Any

import pytest

from gateway.config_source import load
from loadtests import judging, scenario_report
from loadtests.faults import HEALTHY, Condition
from loadtests.records import End, Record, Tape
from loadtests.scenario import Claim, Run, Sample, Seen
from loadtests.scenario_report import Result
from loadtests.scenarios import EVENT, QUICK, all_runs
from loadtests.subjects import SUBJECTS, configuration

RUNS = all_runs(EVENT)
FINE = Record(1.0, 0.05, 0.04, 0.001, 0.02, 200, 0, End.FINISHED, 0, False, "")


def seen(run: Run, subject: str = "tailrace", **given: Any) -> Seen:
    """A run that went well: an answer every 10 ms for each kind of client."""
    names = [flow.name for flow in run.flows]
    steps = int(run.seconds * 100)
    records = [
        FINE._replace(at=n / 100, flow=flow) for n in range(steps) for flow in range(len(names))
    ]
    tape = Tape(names, 1.0, run.seconds, 1, 0, [""], len(records))
    server = dict.fromkeys(("busy_seconds", "wasted_seconds", "arrived", "refused", "in_service",
                            "queued", "held"), 0.0)  # fmt: skip
    samples = [
        Sample(n / 4, tuple({**server, "arrived": n * 50.0} for _ in range(run.endpoints)))
        for n in range(int(run.seconds * 4))
    ]
    rest = Sample(run.seconds, (server,) * run.endpoints)
    cpu = {"generator": 1.0, "proxy": 1.0, "servers": 1.0}
    return Seen(subject, tape, records, samples, rest, cpu, **given)


def test_every_row_of_the_table_is_there() -> None:
    assert sorted({run.row for run in RUNS}) == list(range(1, 16))
    assert len({(run.row, run.name) for run in RUNS}) == len(RUNS)
    assert [run.name for run in all_runs(QUICK)] == [run.name for run in RUNS]
    assert sum(run.seconds for run in all_runs(QUICK)) < sum(run.seconds for run in RUNS) / 2


@pytest.mark.parametrize("run", [*RUNS, *all_runs(QUICK)], ids=lambda run: f"{run.row} {run.name}")
def test_a_row_is_well_formed(run: Run, tmp_path: Any) -> None:
    assert set(run.subjects) <= set(SUBJECTS)
    assert "tailrace" in run.subjects
    assert all(0 <= event.endpoint < run.endpoints for event in run.events)
    assert all(0 <= event.at <= run.seconds for event in run.events)
    # Whatever ails an endpoint ends with the event, unless it is how this server is.
    last = {event.endpoint: event.what for event in sorted(run.events, key=lambda e: e.at)}
    if run.row not in (12, 13, 14):
        assert all(what in (HEALTHY, "start") for what in last.values())
    file = tmp_path / "tailrace.yaml"
    file.write_text(str(configuration(8080, 9901, [8000], run.filters, run.cluster)))
    load(file)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.row} {run.name}")
def test_a_row_can_judge_whatever_it_sees(run: Run) -> None:
    for subject in run.subjects:
        result = Result.of(run, seen(run, subject))
        assert result.claims
        texts = [claim.text for claim in result.claims]
        assert len(set(texts)) == len(texts)
        assert any(claim.bound is not None for claim in result.claims)
        assert result.as_dict()["verdict"] in ("held", "missed", "not measured")


def test_claims_and_their_verdicts() -> None:
    high, low = Claim("a", 0.96, ">=", 0.95, "%"), Claim("b", 0.06, "<=", 0.05, "ms")
    nothing = Claim("c", None, "<=", 1)
    assert (high.holds, low.holds, nothing.holds, Claim("d", 1.0).holds) == (
        True,
        False,
        None,
        None,
    )
    assert str(high) == "a: 96 % (>= 95 %)"
    assert str(low) == "b: 60 ms (<= 50 ms)"
    assert str(nothing) == "c: not measured (<= 1)"

    def verdict(*claims: Claim, valid: bool = True) -> str:
        return Result(1, "x", "tailrace", claims, valid, {}).verdict

    assert verdict(high) == "held"
    assert verdict(high, low, nothing) == "missed"
    assert verdict(high, nothing) == "not measured"
    assert verdict(high, valid=False) == "invalid"
    assert verdict(Claim("d", 1.0)) == ""


def test_a_generator_that_fell_behind_makes_no_figure() -> None:
    run = RUNS[0]
    good = seen(run)
    late = [r._replace(lag=0.1) if n % 20 == 0 else r for n, r in enumerate(good.records)]
    assert good.valid()
    assert not seen(run).__class__(**{**good.__dict__, "records": late}).valid()


def test_the_table_has_a_line_for_each_claim_and_a_verdict_for_tailrace() -> None:
    ours = Result(1, "x", "tailrace", (Claim("a", 0.9, ">=", 0.95, "%"), Claim("b", 1)), True, {})
    theirs = Result(1, "x", "envoy", (Claim("a", 0.99, ">=", 0.95, "%"), Claim("c", 2)), False, {})
    assert scenario_report.rows([theirs, ours]) == [
        ["scenario", "figure", "demanded", "envoy", "tailrace", ""],
        ["1 x", "a", ">= 95 %", "(99 %)", "90 %", "MISSED"],
        ["", "b", "", "", "1", ""],
        ["", "c", "", "(2)", "", ""],
    ]
    machine = dict.fromkeys(("date", "cpu", "cores", "kernel", "python"), "?")
    page = scenario_report.markdown([ours], machine, {"tailrace": "1.2.3"}, "command")
    assert "| 1 x | a | >= 95 % | 90 % | MISSED |" in page
    assert "tailrace 1.2.3" in page


def test_a_timeline_has_a_line_for_each_second() -> None:
    run = RUNS[0]
    heading, *lines = scenario_report.timeline(seen(run), run.seconds)
    assert len(lines) == int(run.seconds)
    assert heading.split()[:3] == ["second", "due", "ok"]
    assert lines[10].split()[:4] == ["10", "100", "100", "100"]


# -- judging ---------------------------------------------------------------------------------------


def _samples() -> list[Sample]:
    def at(seconds: float, arrived: float, state: str) -> Sample:
        clusters = {"clusters": {"llm": {"endpoints": [
            {"state": "healthy", "in_flight": 1}, {"state": state, "in_flight": 2}]}}}  # fmt: skip
        filters = {"all": {"admission": {"limit": {"value": seconds * 4}, "waiting": 3}}}
        return Sample(seconds, ({"arrived": arrived}, {"arrived": 2 * arrived}), clusters, filters)

    return [at(n / 4, n * 25.0, "ejected" if n >= 8 else "healthy") for n in range(17)]


def test_what_servers_and_gateway_say() -> None:
    samples = _samples()
    assert judging.counted(samples, "arrived", 1.0, 3.0) == 3 * 200
    assert judging.counted(samples, "arrived", 9.0, 10.0) == 0
    assert judging.limits(samples, 1.0, 2.0) == [4, 5, 6, 7, 8]
    assert judging.states(samples[0]) == ["healthy", "healthy"]
    assert judging.states(samples[-1]) == ["healthy", "ejected"]
    assert judging.in_flight(samples[0]) == 6
    assert judging.in_flight(Sample(0.0, ())) is None
    rates = list(judging.arrival_rates(samples, 1))
    assert rates[0][0] == 0.5
    assert {round(rate) for _, rate in rates} == {200}


def test_a_dead_server_has_no_counts() -> None:
    samples = [*_samples()[:4], Sample(1.0, ({"arrived": 100.0}, None)), *_samples()[5:]]
    assert judging.counted(samples, "arrived", 0.0, 4.0) == 3 * 400
    assert len(list(judging.arrival_rates(samples, 1))) == 14


def test_goodput_counts_what_came_in_time_in_the_window() -> None:
    view = seen(RUNS[0])
    assert judging.goodput(view, 10, 20, 100, 0.2) == pytest.approx(1.0, abs=0.01)
    assert judging.goodput(view, 10, 20, 100, 0.01) == 0


def test_conditions_say_only_what_differs() -> None:
    assert Condition(status=503) != HEALTHY
    assert Condition() == HEALTHY
