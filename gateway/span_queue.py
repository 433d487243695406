"""Spans on their way to the collector: a bounded queue and the one thread that empties it.

Of our own and not the SDK's batch processor, because with a collector that is gone that one logs
every span it drops, on the event loop, and counts none. Here a span that finds no room costs a
comparison and an addition. Knows nothing of OpenTelemetry: spans are objects, ``export`` sends a
batch of them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

log = logging.getLogger("tailrace")

SPANS = 2048
"""Spans that may wait. One takes about 3 KB, and 20 KB at the most (its texts are cut): 6 MB as a
rule, 40 MB if somebody means harm. A collector that hesitates for a second loses nothing at 1000
sampled exchanges per second."""
BATCH = 512
"""Spans that go out together."""
DELAY_S = 1.0
"""A span is sent at most this much after its end, if the collector keeps up."""
KINDS = 100
"""Kinds of messages that are remembered; the library has about ten."""

Export: TypeAlias = Callable[[Sequence[Any]], bool]
"""Sends a batch, on the thread, and may take its time; False when the collector did not take it."""


@dataclass(slots=True)
class SpanCounts:
    """What became of spans, for the metrics. Outlives the queues that reloads replace.

    ``dropped``: the queue was full when it ended. ``failed``: the collector did not take it.
    ``untraced`` counts exchanges: sampled, but the queue was full when they came.
    """

    exported: int = 0
    failed: int = 0
    dropped: int = 0
    untraced: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    """For the two that threads count; the others belong to the event loop."""


class Rarely(logging.Filter):
    """Passes each kind of message once in ``seconds``: a collector that is gone for a day is told
    of by its library with every batch. Kinds are the texts before their arguments are put in."""

    def __init__(self, seconds: float = 600.0) -> None:
        super().__init__()
        self._seconds = seconds
        self._told: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = str(record.msg)
        if record.created < self._told.get(kind, 0.0):
            return False
        if len(self._told) < KINDS:
            self._told[kind] = record.created + self._seconds
        return True


class SpanQueue:
    """Takes spans on the event loop, never blocks there, and holds at most ``size`` of them."""

    def __init__(
        self,
        export: Export,
        counts: SpanCounts,
        size: int = SPANS,
        batch: int = BATCH,
        delay: float = DELAY_S,
    ) -> None:
        self._export = export
        self._counts = counts
        self._size = size
        self._batch = batch
        self._delay = delay
        self._spans: deque[Any] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether a further span would be dropped. O(1)."""
        return len(self._spans) >= self._size

    def put(self, span: Any) -> None:
        """Take a span that has ended, or drop it if there is no room. O(1)."""
        if self._stopping or len(self._spans) >= self._size:
            self._counts.dropped += 1
            return
        self._spans.append(span)
        if len(self._spans) == self._batch:
            self._wake.set()

    def stop(self) -> None:
        """Take nothing more, send what is left and return then. Blocks: call it on a thread."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._delay)
            self._wake.clear()
            stopping = self._stopping
            while self._spans:
                # Out of the queue before they are sent: while the collector hesitates, there is
                # one batch more than ``size`` in memory and no more.
                count = min(self._batch, len(self._spans))
                self._send([self._spans.popleft() for _ in range(count)])
            if stopping:
                return

    def _send(self, spans: list[Any]) -> None:
        try:
            sent = self._export(spans)
        except Exception:  # a mistake in a library must not end the thread
            log.exception("spans could not be sent")
            sent = False
        counts = self._counts
        with counts.lock:
            if sent:
                counts.exported += len(spans)
            else:
                counts.failed += len(spans)
        if sent == self._failing:  # told when it begins and when it ends, not for each batch
            self._failing = not sent
            if self._failing:
                log.warning("the collector of spans does not take them")
            else:
                log.warning("the collector of spans takes them again")
