"""Spans through OpenTelemetry: one for each sampled exchange, one for each of its attempts.

Imported only when tracing is configured. The decision to sample is made here, by hand and before
any object exists, so an exchange that is not sampled costs a comparison and, if the client named a
parent, its parsing; and none is sampled while the queue to the collector is full. Names of
attributes are those of the semantic conventions for HTTP and (``gen_ai.py``) for generative AI.

    SERVER  POST /v1              an exchange; its parent is the client's span, if it named one
      CLIENT  POST                an attempt: server.address, tailrace.outcome
      CLIENT  POST                a retry, or a hedge (tailrace.hedge)
    CLIENT  batch                 linked to the exchanges in it, and they to it
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from filters.api import Priority
from gateway import gen_ai, trace_context
from gateway.span_queue import Rarely, SpanCounts, SpanQueue
from gateway.tries import Try, verdict

if TYPE_CHECKING:
    from random import Random

    from filters.api import Attempt, Exchange, Outcome
    from gateway import config

EXPORT_TIMEOUT_S = 5.0
LINKS = 128
"""Exchanges that the span of a batch is linked to; the SDK keeps no more by default."""
_METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE")
)
_SENT_TEXT = 512
"""Characters of what the client wrote that an attribute takes."""
_CLASSES = tuple(each.name.lower() for each in Priority)
_current: ContextVar[Try | None] = ContextVar("tailrace-attempt", default=None)
"""The attempt that this task makes: a hedge runs in a task of its own, beside the first one."""
logging.getLogger(OTLPSpanExporter.__module__).addFilter(Rarely())


class ExchangeSpans:
    """The spans of one sampled exchange. ``exchange.span`` is one of these, or None.

    Those of the attempts end with the exchange, at the times that were noted: who has lost a race
    is known only then.
    """

    __slots__ = ("_began", "server", "trace_id", "traced_before", "tries")

    def __init__(self, server: Span, *, traced_before: bool) -> None:
        self._began = time.time_ns()
        self.server = server
        self.trace_id = f"{server.get_span_context().trace_id:032x}"
        self.traced_before = traced_before
        self.tries: list[Try] = []

    def header_line(self) -> bytes:
        """``traceparent`` for the upstream: that of the attempt which this task makes."""
        made = _current.get()
        span = made.span if made is not None and made in self.tries else self.server
        return _line(span)

    def begin(self, made: Try) -> None:
        """A further attempt: after those before it, or in a race with one of them."""
        for each in self.tries:
            if not each.ended and each.outcome is not None and each.outcome.answer is None:
                each.ended = made.began  # its answer was thrown away before this
            if each.open and made.attempt.exchange.hedged:
                each.raced = made.raced = made.hedge = True
        self.tries.append(made)
        _current.set(made)

    def end(self, exchange: Exchange) -> None:
        """The exchange is over, and with it every attempt."""
        answered = [each for each in self.tries if each.open and each.outcome is not None]
        winner = answered[-1] if answered else None
        for each in self.tries:
            won = each is winner
            lost = each.raced and winner is not None and winner.raced and not won
            if not each.ended and lost and exchange.first_byte is not None:
                # When the winner's first byte came: that is when this one was dropped.
                won_at = self._began + int((exchange.first_byte - exchange.arrived) * 1e9)
                each.ended = max(won_at, each.began)
            _finish_try(each, *verdict(each, exchange, won=won, lost=lost))
            each.span.end(each.ended or None)
        self.tries.clear()
        _current.set(None)  # a kept connection's task would hold the exchange until its next one


class Tracing:
    """Makes the spans and exports them in the background; a collector that fails costs nothing."""

    def __init__(
        self, settings: config.Tracing, rng: Random, counts: SpanCounts | None = None
    ) -> None:
        self._share = settings.sample
        self._rng = rng
        self._counts = counts or SpanCounts()
        self._exporter = OTLPSpanExporter(
            endpoint=settings.otlp.rstrip("/") + "/v1/traces", timeout=EXPORT_TIMEOUT_S
        )
        self._queue = SpanQueue(self._send, self._counts)
        provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create({"service.name": settings.service_name}),
            id_generator=_Ids(rng),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(_Processor(self._queue))
        self._tracer = provider.get_tracer("tailrace")

    def begin(self, exchange: Exchange) -> None:
        """Set ``exchange.span`` if this exchange is sampled and there is room for its spans.

        A trusted client's decision is respected in both directions; anybody else's would let
        strangers fill the collector, so for them only the share counts.
        """
        given = exchange.request.index.get(b"traceparent")
        parent = None if given is None else trace_context.parse(given)
        if parent is not None and exchange.trusted:
            if not parent.sampled:
                return
        elif self._rng.random() >= self._share:
            return
        if self._queue.full:
            self._counts.untraced += 1
            return
        context = None if parent is None else _remote(parent)
        method, attributes = _request(exchange)
        server = self._tracer.start_span(
            f"{method} {exchange.route.name}", context, SpanKind.SERVER, attributes
        )
        exchange.span = ExchangeSpans(server, traced_before=parent is not None)

    def end(self, exchange: Exchange, status: int) -> None:
        """The exchange is over, its last byte relayed."""
        spans: ExchangeSpans = exchange.span
        spans.end(exchange)
        server = spans.server
        reason = None if exchange.reason is None else exchange.reason.value
        _finish(server, status, reason, failed=status >= 500)
        told: dict[str, Any] = {
            "tailrace.attempts": exchange.attempts,
            "tailrace.priority": _CLASSES[exchange.priority],
        }
        if exchange.queued:
            told["tailrace.queue_wait"] = exchange.queued
        if exchange.hedged:
            told["tailrace.hedged"] = True
        server.set_attributes(told | gen_ai.of_exchange(exchange))
        server.end()

    def begin_attempt(self, attempt: Attempt) -> Try:
        """A span for an attempt, in the task that makes it."""
        spans: ExchangeSpans = attempt.exchange.span
        method = _method(attempt.exchange.request.method)
        now = time.time_ns()
        span = self._tracer.start_span(
            method,
            set_span_in_context(spans.server),
            SpanKind.CLIENT,
            {
                "http.request.method": method,
                "tailrace.attempt": attempt.number,
                "tailrace.cluster": attempt.exchange.route.cluster,
            },
            start_time=now,
        )
        if attempt.number > 1:
            span.set_attribute("http.request.resend_count", attempt.number - 1)
        made = Try(attempt, span, now)
        spans.begin(made)
        return made

    def end_attempt(self, attempt: Attempt, made: Try, outcome: Outcome | None) -> None:
        """An attempt has an answer, or failed; None: it was cancelled. The span of an answer ends
        with its last byte."""
        made.outcome = outcome
        made.endpoint = attempt.endpoint
        if outcome is None or outcome.answer is None:
            made.ended = time.time_ns()

    def begin_batch(self, batch: Exchange, members: Iterable[Exchange]) -> None:
        """Set the span of an exchange that several are sent on as, below which its attempts have
        theirs: a trace of its own, because it has several causes, linked to each member that is
        sampled (at most ``LINKS``), and they to it. None is set where no member is sampled, or
        there is no room. O(members)."""
        span = self._linked(members, None)
        if span is not None:
            batch.span = ExchangeSpans(span, traced_before=False)

    def end_batch(self, batch: Exchange, status: int, told: Mapping[str, int | str]) -> None:
        """It is answered, or has failed. ``status`` 0: no answer came. ``told``: attributes."""
        spans: ExchangeSpans = batch.span
        spans.end(batch)
        spans.server.set_attributes(dict(told))
        reason = None if batch.reason is None else batch.reason.value
        _finish(spans.server, status, reason, failed=status >= 400 or not status)
        spans.server.end()

    def local_batch(
        self, members: Iterable[Exchange], seconds: float, told: Mapping[str, int | str]
    ) -> None:
        """The span of a batch that has just ended in this process, and took so long."""
        span = self._linked(members, time.time_ns() - int(seconds * 1e9))
        if span is not None:
            span.set_attributes(dict(told))
            _finish(span, 0, None, failed="tailrace.batch.why" in told)
            span.end()

    def _linked(self, members: Iterable[Exchange], began: int | None) -> Span | None:
        sampled = [each.span.server for each in members if isinstance(each.span, ExchangeSpans)]
        if not sampled or self._queue.full:
            return None
        links = [Link(each.get_span_context()) for each in sampled[:LINKS]]
        span = self._tracer.start_span(
            "batch", Context(), SpanKind.INTERNAL, links=links, start_time=began
        )
        for each in sampled[:LINKS]:
            each.add_link(span.get_span_context())
        return span

    async def stop(self, seconds: float) -> None:
        """Export what is left, but wait no longer than ``seconds``."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._queue.stop()
            self._exporter.shutdown()  # type: ignore[no-untyped-call]
            with suppress(RuntimeError):  # the loop is closed: nobody waited this long
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=shut_down, name="tracing-stop", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await ended.wait()

    def _send(self, spans: Any) -> bool:
        return self._exporter.export(spans) is SpanExportResult.SUCCESS


class _Processor(SpanProcessor):
    """From the SDK to our queue."""

    def __init__(self, queue: SpanQueue) -> None:
        self._put = queue.put

    def on_end(self, span: ReadableSpan) -> None:
        self._put(span)


class _Ids(IdGenerator):
    """Ids from the gateway's own source of randomness, so that a simulation repeats them."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def generate_span_id(self) -> int:
        return self._rng.getrandbits(64) or 1

    def generate_trace_id(self) -> int:
        return self._rng.getrandbits(128) or 1


def _remote(parent: trace_context.Parent) -> Any:
    context = SpanContext(
        int(parent.trace_id, 16), int(parent.span_id, 16), True, TraceFlags(TraceFlags.SAMPLED)
    )
    return set_span_in_context(NonRecordingSpan(context))


def _method(method: bytes) -> str:
    name = method.decode("latin-1")
    return name if name in _METHODS else "_OTHER"


def _request(exchange: Exchange) -> tuple[str, dict[str, str]]:
    request = exchange.request
    method = _method(request.method)
    attributes = {
        "http.request.method": method,
        "url.path": _text(request.path),
        "url.scheme": "https" if exchange.secure else "http",
        "server.address": _text(request.host),
        "client.address": exchange.client,
        "network.protocol.version": f"1.{request.minor}",
        "tailrace.route": exchange.route.name,
        "tailrace.request_id": exchange.request_id.decode("latin-1"),
    }
    if method == "_OTHER":
        attributes["http.request.method_original"] = _text(request.method)
    if b"user-agent" in request.index:
        attributes["user_agent.original"] = _text(request.index[b"user-agent"])
    return method, attributes


def _text(value: bytes) -> str:
    return value[:_SENT_TEXT].decode("utf-8", "replace")


def _finish(span: Span, status: int, reason: str | None, *, failed: bool) -> None:
    if status:
        span.set_attribute("http.response.status_code", status)
    if failed or reason:
        span.set_attribute("error.type", reason or str(status))
    if failed:
        span.set_status(Status(StatusCode.ERROR))


def _line(span: Span) -> bytes:
    context = span.get_span_context()
    return trace_context.line(context.trace_id, context.span_id)


def _finish_try(made: Try, result: str, error: str | None) -> None:
    span, endpoint, outcome = made.span, made.endpoint, made.outcome
    told: dict[str, Any] = {"tailrace.outcome": result}
    if made.hedge:
        told["tailrace.hedge"] = True
    if endpoint.startswith("unix:"):
        told["server.address"] = endpoint
    elif endpoint:
        host, _, port = endpoint.rpartition(":")
        told["server.address"] = host.strip("[]")
        told["server.port"] = int(port)
    status = 0
    if outcome is not None:
        status = outcome.status
        if outcome.detail:
            told["tailrace.detail"] = outcome.detail[:_SENT_TEXT]
    span.set_attributes(told)
    # For a client every status from 400 on is an error, for a server only its own.
    failed = result != "lost" and (status >= 400 or result != "ok")
    _finish(span, status, error, failed=failed)
