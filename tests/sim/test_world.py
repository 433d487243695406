"""The judges are judged: each invariant notices what it is there to notice."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from filters import budget
from filters.api import Exchange, Outcome
from gateway import cluster, config, wiring
from gateway.body import RequestBody
from gateway.proxy import Forward
from gateway.sim.clients import Client, Traffic
from gateway.sim.loop import START, VirtualLoop, run
from gateway.sim.scenario import world
from gateway.sim.servers import Condition, Model, ModelServer
from gateway.sim.stats import attempts_per_request, failures, quantile
from gateway.sim.world import Plan, overspent, simulate

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


class Listener:
    """A Waiter that writes down what it hears, and when."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.heard: list[tuple[float, str]] = []

    def _hear(self, word: str) -> None:
        self.heard.append((round(self._loop.time() - START, 6), word))

    def began(self, status: int, retry_after: int | None) -> None:
        self._hear(f"head {status}")

    def piece(self, data: bytes) -> None:
        self._hear("piece")

    def ended(self, data: bytes) -> None:
        self._hear("end")

    def reset(self) -> None:
        self._hear("reset")


def _play(model: Model, story: Callable[[ModelServer, VirtualLoop], list[Listener]]) -> Any:
    """Run ``story`` against one server for 10 s; what the listeners heard, and the server."""
    loop = VirtualLoop()

    async def main() -> Any:
        server = ModelServer("one", model, loop, Random(1))
        listeners = story(server, loop)
        await asyncio.sleep(10)
        return SimpleNamespace(server=server, heard=[each.heard for each in listeners])

    return run(main(), loop)


EXACT = Model(slots=1, mean=1.0, sigma=0)


def test_a_server_works_in_the_order_of_arrival() -> None:
    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        listeners = [Listener(loop) for _ in range(3)]
        for each in listeners:
            server.accept(each, None)
        return listeners

    played = _play(EXACT, story)
    assert played.heard == [[(float(n), "head 200"), (float(n), "end")] for n in (1, 2, 3)]
    assert (played.server.served, played.server.in_flight, played.server.busy) == (3, 0, 0)


def test_who_leaves_the_queue_or_a_slot_makes_room() -> None:
    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        listeners = [Listener(loop) for _ in range(3)]
        jobs = [server.accept(each, None) for each in listeners]
        loop.call_later(0.5, server.abandon, jobs[0])
        loop.call_later(0.6, server.abandon, jobs[1])
        loop.call_later(0.7, server.abandon, jobs[1])
        return listeners

    played = _play(EXACT, story)
    assert played.heard == [[], [], [(1.6, "head 200"), (1.6, "end")]]
    assert (played.server.served, played.server.cancelled, played.server.busy) == (1, 2, 0)


def test_a_server_that_does_not_notice_works_for_nobody() -> None:
    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        first, second = Listener(loop), Listener(loop)
        loop.call_later(0.5, server.abandon, server.accept(first, None))
        server.accept(second, None)
        return [first, second]

    played = _play(replace(EXACT, aborts=False), story)
    assert played.heard == [[], [(2.0, "head 200"), (2.0, "end")]]
    assert (played.server.served, played.server.wasted) == (1, 1)


def test_a_stream_has_its_head_at_once_and_its_tokens_at_their_pace() -> None:
    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        listener = Listener(loop)
        server.accept(listener, None)
        return [listener]

    played = _play(replace(EXACT, tokens=3, pace=0.25, head_first=True), story)
    heard = [(0.0, "head 200"), (1.0, "piece"), (1.25, "piece"), (1.5, "end")]
    assert played.heard == [heard]


def test_death_breaks_what_is_there() -> None:
    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        listeners = [Listener(loop) for _ in range(2)]
        for each in listeners:
            server.accept(each, None)
        loop.call_later(0.5, server.become, Condition(refuses=True))
        return listeners

    played = _play(EXACT, story)
    assert played.heard == [[(0.5, "reset")], [(0.5, "reset")]]
    assert (played.server.refuses, played.server.in_flight, played.server.busy) == (True, 0, 0)


def test_more_slots_take_what_waits() -> None:
    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        listeners = [Listener(loop) for _ in range(2)]
        for each in listeners:
            server.accept(each, None)
        loop.call_later(0.5, server.become, Condition(slots=2, slow=2.0))
        return listeners

    played = _play(EXACT, story)
    assert [heard[-1] for heard in played.heard] == [(1.0, "end"), (2.5, "end")]


def test_service_times_have_the_mean_that_they_say() -> None:
    rng = Random(3)
    model = Model(mean=0.02, sigma=0.5)
    mean = sum(model.seconds(rng) for _ in range(20_000)) / 20_000
    assert mean == pytest.approx(0.02, rel=0.02)


def test_arrivals_follow_the_phases() -> None:
    traffic = Traffic("chat", ((10.0, 20.0), (10.0, 0.0), (10.0, 100.0)))
    report = simulate(replace(SMALL, traffic=(traffic,)), 4)
    counts = [len(report.arrived(at, at + 10)) for at in (0, 10, 20)]
    assert counts[1] == 0
    assert counts[0] == pytest.approx(200, abs=5 * 200**0.5)
    assert counts[2] == pytest.approx(1000, abs=5 * 1000**0.5)


def test_figures_of_a_run() -> None:
    report = simulate(
        replace(SMALL, events=tuple((0.5, n, Condition(status=503)) for n in (0, 1))), 1
    )
    failed = sum(not each.ok for each in report.records)
    assert failures(report.records) == {"status 503": failed}
    assert 1 < attempts_per_request(report.records) < 2
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([], 0.5) == 0.0
