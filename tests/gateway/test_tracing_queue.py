"""What a collector that is dead, slow or wrong costs: nothing on the path, nothing unbounded."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any

from gateway.span_queue import Rarely, SpanCounts, SpanQueue
from tests.gateway.administered import GET
from tests.gateway.collector import collector, tracing_gateway
from tests.harness import eventually
from tests.wire.origin import BOUND, Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest


class Stuck:
    """An exporter that takes a batch and does not return until it is told to."""

    def __init__(self, *, sent: bool = True) -> None:
        self.taken: list[int] = []
        self.taking = threading.Event()
        self.go = threading.Event()
        self.sent = sent

    def __call__(self, spans: Sequence[Any]) -> bool:
        self.taken.append(len(spans))
        self.taking.set()
        assert self.go.wait(BOUND)
        return self.sent


def counted(counts: SpanCounts) -> tuple[int, int, int]:
    return counts.exported, counts.failed, counts.dropped


def test_a_slow_collector_holds_a_bounded_number_of_spans() -> None:
    counts, export = SpanCounts(), Stuck()
    queue = SpanQueue(export, counts, size=20, batch=5, delay=BOUND)
    for span in range(5):
        queue.put(span)
    assert export.taking.wait(BOUND), "a whole batch is sent at once"
    for span in range(20):
        assert not queue.full
        queue.put(span)
    assert queue.full
    for span in range(1000):
        queue.put(span)
    assert counted(counts) == (0, 0, 1000)
    export.go.set()
    queue.stop()
    assert counted(counts) == (25, 0, 1000)
    assert export.taken == [5] * 5
    queue.put("after the end")
    assert counted(counts) == (25, 0, 1001)


def test_what_is_left_is_sent_at_the_end() -> None:
    counts, export = SpanCounts(), Stuck()
    export.go.set()
    queue = SpanQueue(export, counts, delay=BOUND)
    queue.put("a")
    queue.stop()
    assert (counted(counts), export.taken) == ((1, 0, 0), [1])


def test_a_span_is_sent_when_its_time_has_come() -> None:
    export = Stuck()
    queue = SpanQueue(export, SpanCounts(), delay=0.01)
    queue.put("a")
    assert export.taking.wait(BOUND)
    export.go.set()
    queue.stop()


def test_a_failure_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    counts = SpanCounts()
    answers = [False, False, True, RuntimeError("a mistake"), True]
    given = iter(answers)

    def export(spans: Sequence[Any]) -> bool:
        answer = next(given)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    queue = SpanQueue(export, counts, batch=1, delay=0.001)
    for _ in answers:
        queue.put("span")
    queue.stop()
    assert counted(counts) == (2, 3, 0)
    told = [each.getMessage() for each in caplog.records if "collector" in each.getMessage()]
    assert (
        told
        == [
            "the collector of spans does not take them",
            "the collector of spans takes them again",
        ]
        * 2
    )


async def test_no_span_is_made_while_there_is_no_room() -> None:
    """Then an exchange that would be sampled costs as much as one that is not."""
    async with Origin() as origin, tracing_gateway(origin, otlp="http://127.0.0.1:1") as running:
        tracing = running.server.telemetry._tracing
        assert tracing is not None
        queue, export = tracing._queue, Stuck(sent=False)
        queue._export, queue._size = export, 2
        assert (await running.ask(GET)).status == 200
        assert await asyncio.to_thread(export.taking.wait, BOUND)
        while not queue.full:
            queue.put("waits behind those that the collector does not take")
        assert (await running.ask(GET)).status == 200
        counts = running.server.telemetry.spans
        assert (counts.untraced, counts.dropped) == (1, 0)
        assert len(origin.requests[0].values("traceparent")) == 1
        assert origin.requests[1].values("traceparent") == []
        export.go.set()


async def test_a_collector_that_is_gone_is_counted() -> None:
    async with Origin() as origin, tracing_gateway(origin, otlp="http://127.0.0.1:1") as running:
        counts = running.server.telemetry.spans
        tracing = running.server.telemetry._tracing
        assert tracing is not None
        tracing._exporter.shutdown()  # type: ignore[no-untyped-call]  # it retries no more
        assert (await running.ask(GET)).status == 200
        await eventually(lambda: counts.failed == 2)
        assert counts.exported == counts.dropped == 0


async def test_what_was_exported_is_counted() -> None:
    async with collector() as found, Origin() as origin:
        async with tracing_gateway(origin, otlp=found.url) as running:
            await running.ask(GET)
            counts = running.server.telemetry.spans
        await eventually(lambda: counts.exported == 2)
        assert len(found.spans) == 2


def test_the_library_repeats_itself_rarely() -> None:
    def record(text: str, created: float) -> logging.LogRecord:
        made = logging.LogRecord("x", logging.ERROR, "x.py", 1, text, ("argument",), None)
        made.created = created
        return made

    rarely = Rarely(10.0)
    assert rarely.filter(record("failed: %s", 100.0))
    assert not rarely.filter(record("failed: %s", 109.9))
    assert rarely.filter(record("retrying: %s", 109.9))
    assert rarely.filter(record("failed: %s", 110.1))
