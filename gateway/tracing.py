"""Spans through OpenTelemetry: one for each sampled exchange, one for each of its attempts.

Imported only when tracing is configured. The decision to sample is made here, by hand and before
any object exists, so an exchange that is not sampled costs a comparison and, if the client named a
parent, its parsing. Names of attributes are those of the semantic conventions for HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from gateway import trace_context

if TYPE_CHECKING:
    from random import Random

    from filters.api import Attempt, Exchange, Outcome
    from gateway import config

EXPORT_TIMEOUT_S = 5.0
_METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE")
)
_SENT_TEXT = 512
"""Characters of what the client wrote that an attribute takes."""


class ExchangeSpans:
    """The spans of one sampled exchange. ``exchange.span`` is one of these, or None."""

    __slots__ = ("_client", "server", "trace_id", "traced_before")

    def __init__(self, server: Span, *, traced_before: bool) -> None:
        self.server = server
        self.trace_id = f"{server.get_span_context().trace_id:032x}"
        self.traced_before = traced_before
        self._client: Span | None = None

    def attempt(self, client: Span) -> None:
        """A further attempt begins; the one before it is over, whether or not it had an answer."""
        self.end_attempt()
        self._client = client

    def end_attempt(self) -> None:
        if self._client is not None:
            self._client.end()
            self._client = None

    def header_line(self) -> bytes:
        """``traceparent`` for the upstream: the current attempt's."""
        context = (self._client or self.server).get_span_context()
        return trace_context.line(context.trace_id, context.span_id)


class Tracing:
    """Makes the spans and exports them in the background; a collector that fails costs nothing."""

    def __init__(self, settings: config.Tracing, rng: Random) -> None:
        self._share = settings.sample
        self._rng = rng
        exporter = OTLPSpanExporter(
            endpoint=settings.otlp.rstrip("/") + "/v1/traces", timeout=EXPORT_TIMEOUT_S
        )
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create({"service.name": settings.service_name}),
            id_generator=_Ids(rng),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tailrace")

    def begin(self, exchange: Exchange) -> None:
        """Set ``exchange.span`` if this exchange is sampled.

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
        context = None if parent is None else _remote(parent)
        method, attributes = _request(exchange)
        server = self._tracer.start_span(
            f"{method} {exchange.route.name}", context, SpanKind.SERVER, attributes
        )
        exchange.span = ExchangeSpans(server, traced_before=parent is not None)

    def end(self, exchange: Exchange, status: int) -> None:
        """The exchange is over, its last byte relayed."""
        spans: ExchangeSpans = exchange.span
        spans.end_attempt()
        reason = None if exchange.reason is None else exchange.reason.value
        _finish(spans.server, status, reason, failed=status >= 500)
        spans.server.set_attribute("tailrace.attempts", exchange.attempts)
        spans.server.end()

    def begin_attempt(self, attempt: Attempt) -> Span:
        spans: ExchangeSpans = attempt.exchange.span
        method = _method(attempt.exchange.request.method)
        client = self._tracer.start_span(
            method,
            set_span_in_context(spans.server),
            SpanKind.CLIENT,
            {"http.request.method": method, "tailrace.attempt": attempt.number},
        )
        if attempt.number > 1:
            client.set_attribute("http.request.resend_count", attempt.number - 1)
        spans.attempt(client)
        return client

    def end_attempt(self, attempt: Attempt, client: Span, outcome: Outcome | None) -> None:
        """An attempt has an answer, or failed. The span of an answer ends with its last byte."""
        client.set_attribute("tailrace.cluster", attempt.exchange.route.cluster)
        if attempt.endpoint:
            host, _, port = attempt.endpoint.rpartition(":")
            unix = attempt.endpoint.startswith("unix:")
            client.set_attribute("server.address", attempt.endpoint if unix else host.strip("[]"))
            if not unix:
                client.set_attribute("server.port", int(port))
        reason = "cancelled"
        if outcome is not None:
            reason = "" if outcome.reason is None else outcome.reason.value
        status = 0 if outcome is None else outcome.status
        # For a client every status from 400 on is an error, for a server only its own.
        _finish(client, status, reason, failed=status >= 400 or status == 0)
        if outcome is None or outcome.answer is None:
            attempt.exchange.span.end_attempt()

    async def stop(self, seconds: float) -> None:
        """Export what is left, but wait no longer than ``seconds``."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop is closed: nobody waited this long
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=shut_down, name="tracing-stop", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await ended.wait()


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
