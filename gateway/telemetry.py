"""EDGE 3: what is seen from outside of every exchange: counters, access log, spans.

The outermost exchange filter, so that refusals count and a duration ends with the last byte. All
of it is on the hot path of every request: see ``metrics.py`` and ``access_log.py`` for what that
costs, and ``collect.py`` for what is done only when somebody asks.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from filters.api import Attempt, Clock, Exchange, Outcome, Reason, Reject, Service
from gateway.access_log import AccessLog
from gateway.log_writer import LogWriter
from gateway.metrics import Metrics, RouteCounters
from gateway.recorder import Recorder
from gateway.replies import TABLE
from gateway.span_queue import SpanCounts

if TYPE_CHECKING:
    from random import Random

    from gateway import config
    from gateway.tracing import Tracing

log = logging.getLogger("tailrace")

STOP_S = 2.0
"""How long the end waits for the log's disk and for the collector of spans."""


class Telemetry:
    """An exchange filter, about 4 us for each exchange with the access log on."""

    def __init__(self, settings: config.Telemetry, clock: Clock, rng: Random) -> None:
        self.metrics = Metrics(settings.metrics.buckets)
        self.recorder = Recorder()
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._routes = self.metrics.routes
        self._log: AccessLog | None = None
        self._tracing: Tracing | None = None
        self.spans = SpanCounts()
        self._dropped = 0
        self._tasks: set[asyncio.Task[None]] = set()
        if settings.access_log is not None:
            writer = LogWriter(settings.access_log.path)
            self._log = AccessLog(settings.access_log, writer, rng)

    # -- the chains ------------------------------------------------------------------------------

    async def __call__(self, exchange: Exchange, next: Service[Exchange, Outcome]) -> Outcome:  # noqa: A002
        name = exchange.route.name
        counters = self._routes.get(name)
        if counters is None:
            counters = self.metrics.route(name)
        counters.in_flight += 1
        if self._tracing is not None:
            self._tracing.begin(exchange)
        try:
            outcome = await next(exchange)
        except BaseException:
            self._ended(exchange, counters, self._abandoned(exchange), "")
            raise
        # No status: the client was gone before its answer could begin.
        downstream: Any = exchange.downstream
        status = downstream.status or outcome.status or 499
        self._ended(exchange, counters, status, outcome.detail)
        return outcome

    def _abandoned(self, exchange: Exchange) -> int:
        """The status to show for an exchange that was cancelled: mostly, its client left."""
        if exchange.reason is None:
            exchange.reason = Reason.CLIENT_GONE
        return TABLE[exchange.reason].status

    def _ended(self, exchange: Exchange, counters: RouteCounters, status: int, detail: str) -> None:
        counters.in_flight -= 1
        key = (exchange.route.cluster, status // 100, exchange.reason, exchange.priority)
        requests = counters.requests
        requests[key] = requests.get(key, 0) + 1
        seconds = self._clock.now() - exchange.arrived
        counters.durations.add(seconds)
        first = exchange.first_byte
        if first is not None:
            first -= exchange.arrived
            counters.first_bytes.add(first)
        if exchange.granted:
            counters.queue_waits.add(exchange.queued)
        if exchange.span is not None and self._tracing is not None:
            self._tracing.end(exchange, status)
        if exchange.reason is not None or exchange.attempts > 1 or seconds > counters.slow:
            self.recorder.ended(exchange, status, detail, seconds, first)
        if self._log is not None:
            self._log.exchange(exchange, status, detail, seconds, first)

    def refused(self, reject: Reject, status: int, client: str, request_id: bytes) -> None:
        """Count and log what was refused before it became an exchange."""
        self.metrics.refuse(reject.reason)
        self.recorder.refused(reject, status, client, request_id)
        if self._log is not None:
            self._log.refusal(reject, status, client, request_id)

    async def attempt(self, attempt: Attempt, next: Service[Attempt, Outcome]) -> Outcome:  # noqa: A002
        """The innermost attempt filter where tracing is on: a span for each attempt."""
        tracing = self._tracing
        if tracing is None or attempt.exchange.span is None:
            return await next(attempt)
        made = tracing.begin_attempt(attempt)
        try:
            outcome = await next(attempt)
        except BaseException:
            tracing.end_attempt(attempt, made, None)
            raise
        tracing.end_attempt(attempt, made, outcome)
        return outcome

    # -- batches ---------------------------------------------------------------------------------

    def batch_begun(self, batch: Exchange, members: Iterable[Exchange]) -> None:
        """An exchange of our own, that is the inference of several."""
        if self._tracing is not None:
            self._tracing.begin_batch(batch, members)

    def batch_ended(self, batch: Exchange, status: int, told: Mapping[str, int | str]) -> None:
        """``status`` 0: no answer came. ``told``: attributes of its span."""
        if batch.span is not None and self._tracing is not None:
            self._tracing.end_batch(batch, status, told)

    def batch_here(
        self, members: Iterable[Exchange], seconds: float, told: Mapping[str, int | str]
    ) -> None:
        """A batch has ended that a model in this process has worked on."""
        if self._tracing is not None:
            self._tracing.local_batch(members, seconds, told)

    # -- life ------------------------------------------------------------------------------------

    @property
    def lines_dropped(self) -> int:
        """Lines of the access log that were lost so far."""
        return self._dropped + (0 if self._log is None else self._log.writer.dropped)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin what runs in the background. Spans begin when their library is loaded."""
        self._trace(self._settings.tracing)

    def use(self, settings: config.Telemetry) -> None:
        """Put other settings in force; exchanges under way are counted and logged by them."""
        old, self._settings = self._settings, settings
        self.metrics.use(settings.metrics.buckets)
        if settings.access_log != old.access_log:
            self._use_log(settings.access_log)
        if settings.tracing != old.tracing:
            self._trace(settings.tracing)

    async def stop(self) -> None:
        """Write and export what is left, within ``STOP_S``."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        tracing, self._tracing = self._tracing, None
        ends = [] if self._log is None else [self._log.writer.stop(STOP_S)]
        if tracing is not None:
            ends.append(tracing.stop(STOP_S))
        await asyncio.gather(*ends)

    def _use_log(self, settings: config.AccessLog | None) -> None:
        writer = None if self._log is None else self._log.writer
        if writer is not None and (settings is None or settings.path != writer.path):
            self._dropped += writer.dropped
            self._background(writer.stop(STOP_S))
            writer = None
        self._log = None
        if settings is not None:
            self._log = AccessLog(settings, writer or LogWriter(settings.path), self._rng)

    def _trace(self, settings: config.Tracing | None) -> None:
        old, self._tracing = self._tracing, None
        if old is not None:
            self._background(old.stop(STOP_S))
        if settings is not None:
            self._background(self._load_tracing(settings))

    async def _load_tracing(self, settings: config.Tracing) -> None:
        # Half a second of imports, on a thread: the listeners are open and serving.
        try:
            library = await asyncio.to_thread(importlib.import_module, "gateway.tracing")
            made: Tracing = await asyncio.to_thread(
                lambda: library.Tracing(settings, self._rng, self.spans)
            )
        except Exception:
            log.exception("no tracing")
            return
        if self._settings.tracing == settings:
            self._tracing = made
        else:
            await made.stop(STOP_S)

    def _background(self, work: Coroutine[None, None, None]) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
