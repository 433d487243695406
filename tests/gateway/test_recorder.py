"""Why was I refused: what is kept of exchanges out of the usual, and how it is told."""

from __future__ import annotations

import json
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest

from filters.admission import Config as Admission
from filters.api import NOTES, Exchange, Reason, Reject
from filters.hedge import Config as Hedge
from filters.rate_limit import Config as RateLimit
from filters.retry import Config as Retry
from gateway.config import Filters
from gateway.metrics import Metrics
from gateway.recorder import A_SECOND, ENOUGH, SIZES, Recorder
from tests.gateway.administered import Running, administered
from tests.harness import eventually
from tests.wire.client import Client
from tests.wire.origin import Origin, answer, silent

BODY = b"a secret prompt"
ASK = (
    b"POST /v1/completions?api_key=hunter2 HTTP/1.1\r\nHost: a\r\nx-request-id: mine-1\r\n"
    b"authorization: Bearer hunter2\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


async def explained(running: Running, request_id: str = "mine-1") -> Any:
    answered = await running.ask(f"/explain?request_id={request_id}")
    assert answered.status == 200, answered.text
    assert "hunter2" not in answered.text
    assert "secret" not in answered.text
    return answered.json["exchanges"]


async def send(running: Running, raw: bytes = ASK) -> int:
    async with await Client.connect(running.server.addresses[0]) as client:
        await client.send(raw)
        return (await client.response(b"POST")).status


def decided(told: Any) -> dict[str, tuple[str, str]]:
    return {row["filter"]: (row["decided"], row["why"]) for row in told["filters"]}


# -- on a running gateway ------------------------------------------------------------------------


async def test_an_ordinary_exchange_is_not_kept() -> None:
    async with Origin() as origin, administered(origin) as running:
        assert await send(running) == 200
        answered = await running.ask("/explain?request_id=mine-1")
        assert (answered.status, answered.json["error"]["code"]) == (404, "not_found")
        assert (await running.ask("/explain")).status == 400
        assert running.server.telemetry.recorder.last == 0


async def test_who_is_over_a_rate_limit_is_told_so() -> None:
    route = {"filters": Filters(rate_limit=RateLimit(rate=0.001, burst=1))}
    async with Origin() as origin, administered(origin, route=route) as running:
        assert await send(running) == 200
        assert await send(running) == 429
        (told,) = await explained(running)
        assert (told["kind"], told["status"], told["reason"]) == ("refused", 429, "rate_limited")
        assert (told["method"], told["path"]) == ("POST", "/v1/completions")
        found = decided(told)
        assert found["rate_limit"] == (
            "refused",
            "rate_limited; nothing of its burst was left",
        )
        assert "admission" not in found  # it was never asked
        assert told["attempted"] == []


async def test_a_retry_tells_both_attempts() -> None:
    bad = Origin(answer(b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n"))
    async with bad, Origin() as good:
        route = {"filters": Filters(retry=Retry(attempts=3))}
        async with administered(bad, good, route=route) as running:
            while not bad.requests:
                assert await send(running) == 200
            told = (await explained(running))[0]
            assert (told["kind"], told["attempts"], told["reason"]) == ("retried", 2, "")
            first, second = told["attempted"]
            assert (first["what"], first["endpoint"]) == ("attempt 1", bad.authority)
            assert (first["result"], second["result"]) == ("head 503", "head 200")
            assert second["endpoint"] == good.authority
            assert second["at_ms"] >= first["at_ms"] + first["ms"]
            assert decided(told)["retry"] == ("retried", "2 attempts in all")


async def test_a_failure_says_why_it_was_not_tried_again() -> None:
    route = {"filters": Filters(retry=Retry(attempts=2))}
    async with administered("http://127.0.0.1:1", route=route) as running:
        assert await send(running) in (502, 503)
        told = (await explained(running))[0]
        assert told["kind"] == "failed"
        assert told["reason"] == "connect_failed"
        whats = [row["what"] for row in told["attempted"]]
        assert whats == ["attempt 1", "attempt 2", "retry"]
        assert told["attempted"][-1]["result"] == "none: attempts"
        assert decided(told)["attempts"][0] == "failed"


async def test_who_waited_in_vain_is_told_how_full_it_was() -> None:
    queue = Admission(limit=1).queue
    waiting = type(queue)(size=1, timeout=0.05)
    route = {"filters": Filters(admission=Admission(limit=1, queue=waiting), load_shed=None)}
    async with (
        Origin(silent) as origin,
        administered(origin, route=route) as running,
        await Client.connect(running.server.addresses[0]) as first,
    ):
        await first.send(ASK.replace(b"mine-1", b"first"))
        await origin.until(lambda: bool(origin.requests))
        assert await send(running) in (429, 503)
        (told,) = await explained(running)
        assert told["reason"] == "queue_timeout"
        decision, why = decided(told)["admission"]
        assert decision == "refused"
        assert "in the queue; 1 in flight of 1" in why
        assert told["queued_ms"] >= 50


async def test_a_hedge_tells_who_won(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filters.hedge.Policy.delay", lambda policy, length, now: 0.01)
    async with Origin(silent) as hangs, Origin() as good:
        route = {"filters": Filters(hedge=Hedge(min=0.01))}
        async with administered(hangs, good, route=route) as running:
            # Which of the two is asked first is up to the balancer.
            while not hangs.requests:
                assert await send(running) == 200
            told = (await explained(running))[0]
            assert (told["kind"], told["hedged"]) == ("hedged", True)
            assert told["endpoint"] == good.authority
            results = [row["result"] for row in told["attempted"]]
            assert "late: a second attempt begins" in results
            assert "the second won" in results
            assert decided(told)["hedge"][0] == "hedged"


async def test_what_never_became_an_exchange_is_kept_too() -> None:
    async with Origin() as origin, administered(origin) as running:
        assert await send(running, b"GET / HTTP/1.1\r\n\r\n") == 400
        (told,) = running.server.telemetry.recorder.latest(5)
        assert (told["kind"], told["reason"]) == ("client", "malformed")
        (found,) = await explained(running, told["request_id"])
        assert found["detail"]


async def test_what_is_slow_for_its_route_is_kept() -> None:
    async with Origin() as origin, administered(origin) as running:
        assert await send(running) == 200
        running.server.telemetry.metrics.route("/").slow = 0.0
        assert await send(running) == 200
        (told,) = await explained(running)
        assert told["kind"] == "slow"
        (attempt,) = told["attempted"]
        assert (attempt["endpoint"], attempt["result"]) == (origin.authority, "status 200")


async def test_a_client_that_leaves_is_kept_apart() -> None:
    async with Origin(silent) as origin, administered(origin) as running:
        async with await Client.connect(running.server.addresses[0]) as client:
            await client.send(ASK)
            await origin.until(lambda: bool(origin.requests))
        recorder = running.server.telemetry.recorder
        await eventually(lambda: recorder.last == 1)
        assert recorder.latest(1)[0]["kind"] == "client"


# -- bounds --------------------------------------------------------------------------------------


def exchange(request_id: bytes = b"x", reason: Reason | None = Reason.SHED) -> Exchange:
    request: Any = SimpleNamespace(method=b"GET", path=b"/" + b"p" * 5000)
    body: Any = SimpleNamespace(received=0)
    downstream: Any = SimpleNamespace(bytes_sent=0)
    made = Exchange(request, body, downstream, "1.2.3.4", True, False, 0.0)
    made.route = SimpleNamespace(name="r", cluster="c")
    made.request_id, made.reason = request_id, reason
    return made


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The calendar, by hand."""
    now = [1000.0]
    monkeypatch.setattr("gateway.recorder.time", lambda: now[0])
    return now


def test_a_flood_is_bounded_and_leaves_the_others_alone(second: list[float]) -> None:
    recorder = Recorder()
    slow = exchange(b"slow", None)
    recorder.ended(slow, 200, "", 9.0, None)
    for _ in range(10 * A_SECOND):
        recorder.ended(exchange(), 503, "d" * 5000, 0.001, None)
    assert recorder.last == 1 + A_SECOND
    assert recorder.skipped == 9 * A_SECOND
    for _ in range(20):
        second[0] += 1
        for number in range(A_SECOND):
            recorder.ended(exchange(b"%d" % number), 503, "", 0.001, None)
    assert len(recorder._rings["refused"]) == SIZES["refused"]
    assert recorder.explain("slow")[0]["kind"] == "slow"
    assert len(recorder.explain("0")) == SIZES["refused"] // A_SECOND
    assert max(len(k.path) for ring in recorder._rings.values() for k in ring) <= 256
    json.dumps(recorder.latest(60))


def test_newer_ones_come_once_and_in_order(second: list[float]) -> None:
    recorder = Recorder()
    for number in range(8):
        recorder.ended(exchange(b"%d" % number), 503, "", 0.001, None)
    last = recorder.last
    recorder.refused(Reject(Reason.HEAD_TOO_LARGE), 431, "1.2.3.4", b"r")
    recorder.ended(exchange(b"new", Reason.STALL), 504, "", 0.001, None)
    assert [each["request_id"] for each in recorder.after(last, 60)] == ["r", "new"]
    assert [each["id"] for each in recorder.latest(60)] == list(range(1, 11))


def test_an_id_of_any_bytes_is_found_and_is_text() -> None:
    recorder = Recorder()
    recorder.ended(exchange(b"<img>"), 503, "", 0.001, None)
    assert recorder.explain("<img>")[0]["request_id"] == "<img>"
    assert recorder.explain("\udcff") == []


def test_notes_are_bounded() -> None:
    made = exchange()
    for number in range(3 * NOTES):
        made.note(float(number), "attempt", "a", 0.0, "x")
    assert made.notes is not None
    assert len(made.notes) == NOTES


def test_slow_is_learned_from_enough() -> None:
    metrics = Metrics((0.01, 0.1, 1.0))
    recorder = Recorder()
    counters = metrics.route("r")
    for _ in range(ENOUGH - 1):
        counters.durations.add(0.05)
    recorder.look(metrics, 0.0)
    assert counters.slow == inf
    for _ in range(ENOUGH):
        counters.durations.add(0.05)
    recorder.look(metrics, 1.0)
    assert counters.slow == inf  # not every second
    recorder.look(metrics, 100.0)
    assert 0.05 < counters.slow <= 0.1
    recorder.look(metrics, 200.0)
    assert counters.slow == inf  # nothing came: nothing is known
