"""The judges are judged: each invariant notices what it is there to notice."""

from dataclasses import replace
from typing import Any, cast

import pytest

from filters import budget
from filters.admission import Gate
from filters.api import Exchange, Outcome
from gateway import cluster, config, wiring
from gateway.body import RequestBody
from gateway.endpoint import Endpoint
from gateway.proxy import Forward
from gateway.sim.audit import cap, over_cap, overspent
from gateway.sim.clients import Client
from gateway.sim.crowds import Traffic
from gateway.sim.models import Condition, Model
from gateway.sim.scenario import world
from gateway.sim.servers import ModelServer
from gateway.sim.world import Plan, simulate

SMALL = Plan(world(2, config.Filters()), (Model(),), (Traffic("chat", ((1.0, 100.0),)),))


def _broken(plan: Plan = SMALL) -> str:
    return "; ".join(simulate(plan, 1).broken)


def test_a_sound_run_breaks_nothing() -> None:
    report = simulate(SMALL, 1)
    assert report.broken == ()
    assert len(report.records) > 50
    assert sum(server.served for server in report.servers) == len(report.records)


def test_a_permit_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.Permit, "release", lambda self, outcome: None)
    assert "permits of server-0:8000 not given back" in _broken()


def test_a_permit_of_admission_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "give_back", lambda self, cost, now: None)
    assert "permits of all not given back, 0 in its queue" in _broken()


def test_too_many_ejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoint, "state", property(lambda self: "ejected"))
    assert "2 of 2 ejected in llm at 0.0 s, 1 may be" in _broken()


def test_the_run_is_sampled() -> None:
    report = simulate(SMALL, 1)
    times = [each.at for each in report.samples]
    assert times[:11] == pytest.approx([n / 10 for n in range(11)])
    assert {each.states for each in report.samples} == {("healthy", "healthy")}
    assert {gauge.limit for each in report.samples for gauge in each.routes} == {512}
    assert sum(sent for sent, _ in report.samples[-1].servers) == len(report.records)


def test_an_exchange_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forgets(self: Forward, exchange: Exchange) -> Outcome:
        return Outcome(cast("Any", None))

    monkeypatch.setattr(Forward, "__call__", forgets)
    assert "the chain returned without an end" in _broken()


def test_an_exchange_that_ends_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Client.finish

    def twice(self: Client, data: bytes, trailers: Any) -> None:
        original(self, data, trailers)
        original(self, data, trailers)

    monkeypatch.setattr(Client, "finish", twice)
    assert "finished after finished" in _broken()


def test_an_exception_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(self: Forward, exchange: Exchange) -> Outcome:
        raise ZeroDivisionError

    monkeypatch.setattr(Forward, "__call__", fails)
    assert "an exception inside" in _broken()


def test_bodies_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestBody, "release", lambda self: None)
    assert "bytes of bodies still kept" in _broken()


def test_work_that_is_left_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelServer, "abandon", lambda self, job: None)
    hanging = replace(
        SMALL,
        traffic=(Traffic("chat", ((1.0, 20.0),), patience=(0.1, 0.1)),),
        events=((0.0, 0, Condition(hangs=True)), (0.0, 1, Condition(hangs=True))),
    )
    assert "in flight at server-0:8000" in _broken(hanging)


def test_an_overspent_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget.Budget, "balance", lambda self, now: 1.0)
    failing = replace(SMALL, events=tuple((0.0, n, Condition(status=503)) for n in (0, 1)))
    assert "budget overspent" in _broken(failing)


def test_the_audit_counts_what_the_budget_allows() -> None:
    settings = budget.Config(ratio=0.1, min_per_second=0.1)
    earned = [(100, "request")] * 20
    assert overspent([*earned, *[(109, "retry")] * 3], settings) == []
    assert len(overspent([*earned, *[(109, "retry")] * 4], settings)) == 1
    assert len(overspent([*earned, *[(110, "retry")] * 2], settings)) == 1


def test_the_audit_holds_hedges_to_their_part() -> None:
    settings = budget.Config(ratio=0.1, hedges=0.05, min_per_second=0.2)
    earned = [(100, "request")] * 40
    assert overspent([*earned, *[(100, "hedge")] * 3], settings) == []
    assert overspent([*earned, *[(100, "retry")] * 3, *[(100, "hedge")] * 3], settings) == []
    (said,) = overspent([*earned, *[(100, "hedge")] * 4], settings)
    assert "hedges overspent" in said


@pytest.mark.parametrize(
    ("members", "share", "allowed"),
    [(1, 0.5, 1), (2, 0.5, 1), (2, 1.0, 1), (3, 0.1, 1), (4, 0.5, 2), (5, 0.5, 2), (10, 1.0, 9)],
)
def test_how_many_may_be_ejected(members: int, share: float, allowed: int) -> None:
    assert cap(members, share) == allowed
    states = ["ejected"] * allowed + ["healthy"] * (members - allowed)
    assert over_cap(states, share, "here") == []
    if allowed < members:
        assert over_cap(["ejected", *states[:-1]], share, "here") != []


def test_a_task_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    original = wiring.Wiring.route
    kept: list[object] = []

    def leaks(self: wiring.Wiring, request: Any) -> Any:
        loop = self._seams.loop
        if not kept:
            kept.append(loop.create_task(_for_ever(loop)))
        return original(self, request)

    monkeypatch.setattr(wiring.Wiring, "route", leaks)
    assert "1 tasks left" in _broken()


async def _for_ever(loop: Any) -> None:
    await loop.create_future()
