"""The cluster in virtual time: what answers mean, who is chosen, and one probe at a time."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from filters.api import Attempt, Headers, Kind, Outcome, Reason
from filters.outlier import Config
from filters.standing import LEAST, RAMP, Cause, Phase
from gateway import config
from tests.filters.doubles import WholeBody
from tests.gateway.fake_cluster import World, retry_after

OK = Outcome(Kind.OK, 200)
RAMP_LOOKS = 10
"""Looks of ejection while an endpoint comes back."""


@pytest.mark.parametrize(
    ("status", "headers", "kind", "seconds"),
    [
        (200, [], Kind.OK, None),
        (404, [], Kind.OK, None),
        (429, [], Kind.PUSHED_BACK, None),
        (429, retry_after(b"3"), Kind.PUSHED_BACK, 3),
        (503, [], Kind.FAILED, None),
        (503, retry_after(b"3"), Kind.PUSHED_BACK, 3),
        (503, retry_after(b"Fri, 31 Dec 1999 23:59:59 GMT"), Kind.PUSHED_BACK, 1),
        (503, retry_after(b"9" * 400), Kind.PUSHED_BACK, 30),
        (503, retry_after(b"0"), Kind.PUSHED_BACK, 0),
        (429, retry_after(b"0"), Kind.PUSHED_BACK, 0),
        (500, retry_after(b"3"), Kind.FAILED, None),
        (502, [], Kind.FAILED, None),
    ],
)
async def test_load_is_told_from_failure(
    status: int, headers: Headers, kind: Kind, seconds: float | None
) -> None:
    world = World(1)
    world.pools[0].script = lambda: world.pools[0].answer(status, headers)
    outcome = await world.ask()
    assert (outcome.kind, outcome.retry_after) == (kind, seconds)
    endpoint = world.endpoints[0]
    assert (endpoint.served, endpoint.failed) == (1, kind is Kind.FAILED)
    assert (endpoint.weight == LEAST) is (kind is Kind.PUSHED_BACK)
    assert world.cluster.calm(world.clock.now()) is (kind is not Kind.PUSHED_BACK)


class TestPushBack:
    async def test_the_others_take_over_for_as_long(self) -> None:
        world = World(2, policy="round_robin")
        for pool in world.pools:
            pool.script = lambda: pool.answer(200)  # noqa: B023
        first = world.pools[0]
        first.script = lambda: first.answer(429, retry_after(b"5"))
        await world.ask(tried=("e1:80",))
        first.script = lambda: first.answer(200)
        first.sent = 0
        for _ in range(100):
            await world.ask()
        assert 1 <= first.sent <= 10
        world.wait(5.1)
        assert world.endpoints[0].weight == 1

    async def test_a_retry_goes_to_whoever_does_not_push_back(self) -> None:
        world = World(3)
        now = world.clock.now()
        for k in (0, 1):
            pool = world.pools[k]
            pool.script = lambda: pool.answer(503, retry_after(b"5"))  # noqa: B023
            await world.ask(tried=tuple(e.name for e in world.endpoints if e.name != f"e{k}:80"))
        assert world.cluster.retry_at(now) == now
        for _ in range(20):
            assert world.cluster.choose(Attempt(world.exchange(), 2, ("e0:80",)), now) is not None
            assert (await world.ask(tried=("e0:80",))).status == 200

    async def test_when_all_do_it_waits_for_the_first(self) -> None:
        world = World(2)
        for k, seconds in ((0, b"5"), (1, b"2")):
            pool = world.pools[k]
            answer = pool.answer(503, retry_after(seconds))
            pool.script = lambda answer=answer: answer  # type: ignore[misc]
            await world.ask(tried=(world.endpoints[1 - k].name,))
        now = world.clock.now()
        assert world.cluster.retry_at(now) == now + 2
        assert world.cluster.saturated(now + 1.9)
        assert not world.cluster.saturated(now + 2)
        assert not world.cluster.calm(now + 4.9)
        assert world.cluster.calm(now + 5)

    async def test_our_own_bound_on_connections_is_load(self) -> None:
        world = World(2)
        await world.fail(0, 9, reason=Reason.POOL_EXHAUSTED, sent=False, complete=False)
        assert world.endpoints[0].state == "healthy"
        assert world.endpoints[0].weight == LEAST
        assert world.endpoints[0].failed == 0


async def test_a_fault_of_the_judge_costs_no_exchange(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(3)
    await world.fail(1)
    world.wait(5)
    await world.ask()
    assert world.endpoints[1].weight == LEAST
    monkeypatch.setattr("filters.outlier.charges.failing", lambda *_: 1 // 0)
    for _ in range(RAMP_LOOKS):
        world.clock.advance(RAMP / RAMP_LOOKS)
        assert (await world.ask()).status == 200
    assert world.endpoints[1].weight == 1  # what time does goes on
    assert world.cluster.faults == RAMP_LOOKS
    assert caplog.text.count("ZeroDivisionError") == 1


class TestEjected:
    async def test_nobody_is_sent_to_who_is_out(self) -> None:
        world = World(3)
        await world.fail(1)
        bad = world.endpoints[1]
        world.pools[1].sent = 0
        for _ in range(50):
            await world.ask()
        assert world.pools[1].sent == 0
        assert bad.state == "ejected"
        assert bad.why == "5 failures in a row, last: upstream_reset; for 5.0 s more"
        assert world.cluster.has_other(("e0:80",))
        assert not world.cluster.has_other(("e0:80", "e2:80"))

    async def test_exactly_one_request_probes(self) -> None:
        world = World(2)
        await world.fail(0)
        pool = world.pools[0]
        pool.gate, pool.sent = asyncio.Event(), 0
        world.clock.advance(5)
        assert world.endpoints[0].state == "probing"
        probe = asyncio.create_task(world.ask())
        await asyncio.sleep(0)
        for _ in range(50):
            await world.ask()
        assert pool.sent == 1
        pool.gate.set()
        await probe
        assert world.endpoints[0].state == "healthy"
        assert world.endpoints[0].weight == LEAST
        assert world.cluster.outlier.probes == 1

    async def test_a_probe_is_safe_to_send_again_if_there_is_a_choice(self) -> None:
        world = World(2)
        await world.fail(0)
        world.pools[0].sent = 0
        world.wait(5)
        await world.ask(safe=False)
        await world.ask(tried=("e1:80", "e0:80"))
        assert world.pools[0].sent == 0
        world.clock.advance(2)  # nobody else comes
        await world.ask(safe=False)
        assert world.pools[0].sent == 1

    async def test_a_body_that_still_comes_neither_probes_nor_times(self) -> None:
        world = World(2)
        await world.fail(0)
        world.pools[0].sent = 0
        world.wait(5)
        body = WholeBody()
        body.complete = False
        kept = len(world.endpoints[1].standing.recent)
        outcome = await world.cluster.attempt(Attempt(world.exchange(body=body), 1, ()))
        assert world.pools[0].sent == 0
        assert len(world.endpoints[1].standing.recent) == kept
        outcome.discard()

    async def test_a_client_that_leaves_probes_nothing(self) -> None:
        world = World(2)
        await world.fail(0)
        world.wait(5)
        world.pools[0].gate = asyncio.Event()
        probe = asyncio.create_task(world.ask())
        await asyncio.sleep(0)
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        standing = world.endpoints[0].standing
        assert (standing.phase, standing.probe) == (Phase.PROBING, None)
        assert world.endpoints[0].active == 0

    async def test_a_probe_that_finds_no_connection_proves_nothing(self) -> None:
        world = World(2)
        await world.fail(0)
        world.wait(5)
        pool, standing = world.pools[0], world.endpoints[0].standing
        full = {"sent": False, "complete": False}
        pool.script = lambda: Outcome(Kind.FAILED, 0, Reason.POOL_EXHAUSTED, **full)  # type: ignore[arg-type]
        pool.sent = 0
        await world.ask()
        assert pool.sent == 1
        assert (standing.phase, standing.probe, standing.repeats) == (Phase.PROBING, None, 1)
        pool.script = lambda: pool.answer(200)
        await world.ask()
        assert (pool.sent, standing.phase) == (2, Phase.HEALTHY)
        assert world.cluster.outlier.probes == 2

    async def test_a_stream_is_timed_by_its_first_byte(self) -> None:
        world = World(2)
        for pool in world.pools:
            pool.script = lambda: pool.answer(200, waits=True)  # noqa: B023
        attempt = Attempt(world.exchange(), 1, ("e1:80",))
        outcome = await world.cluster.attempt(attempt)
        sample = world.endpoints[0].standing.recent[-1]
        assert sample.resolve() == 0
        world.clock.advance(0.5)
        cast("Any", outcome.answer).first_byte = world.clock.now()
        assert sample.resolve() == 1
        assert sample.seconds == 0.5
        world.clock.advance(60)
        assert outcome.permit is not None
        outcome.permit.release(OK)
        assert world.endpoints[0].latency(world.clock.now()) == 0.5

    async def test_a_tunnel_owes_no_answer(self) -> None:
        world = World(1)
        world.pools[0].script = lambda: world.pools[0].answer(101, waits=True)
        outcome = await world.cluster.attempt(Attempt(world.exchange(), 1, ()))
        assert world.endpoints[0].standing.recent[-1].resolve() != 0
        outcome.discard()

    async def test_the_only_one_that_refuses(self) -> None:
        world = World(1)
        await world.fail(0, reason=Reason.CONNECT_FAILED, sent=False, complete=False)
        world.pools[0].sent = 0
        outcome = await world.ask()
        assert (outcome.reason, outcome.retry_after) == (Reason.NO_ENDPOINT, 1.0)
        assert world.pools[0].sent == 0
        world.clock.advance(0.4)
        assert (await world.ask()).retry_after == pytest.approx(0.6)
        world.clock.advance(0.6)
        assert (await world.ask(safe=False)).status == 200
        assert world.endpoints[0].state == "healthy"

    async def test_checks_and_ejection_together(self) -> None:
        world = World(3)
        await world.fail(0)
        world.endpoints[1].mark(False, "fails its check", world.clock.now())
        world.cluster.refresh()
        assert await world.chosen(30) == {"e2:80": 30}
        world.endpoints[2].mark(False, "fails its check", world.clock.now())
        world.cluster.refresh()  # the checks are doubted, the ejection is not
        assert set(await world.chosen(30)) == {"e1:80", "e2:80"}
        assert world.endpoints[1].state == "unhealthy"
        world.endpoints[0].mark(True, "passes its check", world.clock.now())
        world.cluster.refresh()

    async def test_nobody_passes_both_judges(self) -> None:
        world = World(2, policy="round_robin")
        await world.fail(0)
        world.pools[0].script = lambda: world.pools[0].answer(500)
        world.endpoints[1].mark(False, "fails its check", world.clock.now())
        world.cluster.refresh()
        assert set(await world.chosen(40)) == {"e0:80", "e1:80"}

    async def test_a_storm_of_failures_is_not_a_storm_of_looks(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world = World(40)
        looks = 0
        evaluate = world.cluster.outlier.evaluate

        def counted(*args: Any) -> Any:
            nonlocal looks
            looks += 1
            return evaluate(*args)

        monkeypatch.setattr(world.cluster.outlier, "evaluate", counted)
        for pool in world.pools[:20]:
            pool.script = lambda: Outcome(Kind.FAILED, 0, Reason.UPSTREAM_RESET)
        for _ in range(1000):
            await world.ask()
            world.clock.advance(0.001)
        assert sum(each.state == "ejected" for each in world.endpoints) >= 15
        assert looks <= 1 / world.cluster.outlier.interval(40) * 11 + 2

    async def test_each_state_is_explained(self) -> None:
        world = World(3)
        one, other, last = world.endpoints
        assert (one.state, one.why) == ("healthy", "not checked")
        await world.fail(0)
        await world.fail(1)
        held = "only the cap on ejection keeps it in: 5 failures in a row, last: upstream_reset"
        assert (other.state, other.why) == ("healthy", held)
        assert other.weight == LEAST
        assert one.since == world.clock.now()
        world.clock.advance(5)
        probing = "5 failures in a row, last: upstream_reset; the next request decides"
        assert (one.state, one.why) == ("probing", probing)
        await world.chosen(1)
        world.wait(RAMP / 2)
        assert one.why == "back at 50% of its share: its probe was answered in 0 ms"
        last.mark(False, "fails its check: status 500", world.clock.now())
        world.cluster.refresh()
        assert (last.state, last.why) == ("unhealthy", "fails its check: status 500")
        assert last.since == world.clock.now()

    async def test_by_hand(self) -> None:
        world = World(2)
        one, other = world.endpoints
        assert world.cluster.eject(one, "new disk") == ""
        assert one.why == "new disk; for 3600.0 s more"
        assert "1 may be" in world.cluster.eject(other, "that one too")
        assert set(await world.chosen(9)) == {other.name}
        world.cluster.restore(one)
        assert one.state == "healthy"
        world.wait(RAMP)
        assert set(await world.chosen(50)) == {one.name, other.name}

    async def test_a_reload_keeps_who_is_out(self) -> None:
        world = World(3)
        await world.fail(0)
        settings = config.Cluster(
            endpoints=world.cluster.settings.endpoints, outlier=Config(consecutive_failures=9)
        )
        after = world.make(settings)
        after.take_over(world.cluster)
        after.members(dict(world.cluster.endpoints))
        world.cluster = after
        assert set(await world.chosen(30)) == {"e1:80", "e2:80"}
        assert after.outlier.ejections[Cause.CONSECUTIVE] == 1
        world.clock.advance(5)
        await world.chosen(1)
        assert world.endpoints[0].state == "healthy"

    async def test_a_probe_under_way_through_a_reload(self) -> None:
        """It ends in the cluster it began in; the new one sees it at its next look."""
        world = World(2)
        await world.fail(0)
        world.wait(5)
        world.pools[0].gate = asyncio.Event()
        probe = asyncio.create_task(world.ask())
        await asyncio.sleep(0)
        after = world.make(world.cluster.settings)
        after.take_over(world.cluster)
        after.members(dict(world.cluster.endpoints))
        world.pools[0].gate.set()
        await probe
        world.cluster = after
        world.pools[0].sent = 0
        world.clock.advance(10)
        for _ in range(50):
            await world.ask()
        assert world.pools[0].sent > 0
