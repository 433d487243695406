"""What happened in one second, from counters that exist anyway, and ten minutes of that.

The hot path pays nothing for it: once a second somebody reads the counters of ``metrics.py`` and
keeps what is more than it was. A route on which nothing ended costs one comparison.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import msgspec

from filters.api import Priority, Reason

if TYPE_CHECKING:
    from gateway.metrics import Histogram, Metrics, RouteCounters

SECONDS = 600
"""Samples that are kept, one a second."""
SMOOTHED = 5
"""Seconds from which one point of a percentile is taken: one second often has too few."""
RECENT = 10
"""Seconds that ``now`` means wherever the page says it in words."""
QUANTILES = (0.5, 0.95, 0.99)
CLASSES = tuple(each.name.lower() for each in Priority)

_ALL = tuple(Reason)
CLIENT = frozenset((*_ALL[: _ALL.index(Reason.NO_ROUTE)], Reason.CLIENT_STALLED))
"""The client's message or manners: nothing here is wrong."""
REFUSED = frozenset(_ALL[_ALL.index(Reason.NO_ROUTE) : _ALL.index(Reason.CONNECT_FAILED)]) - CLIENT
"""Refused here. What is in neither set failed at the upstream, or here."""


class Sample(msgspec.Struct, omit_defaults=True):
    """One second. ``at`` in seconds of the calendar; ``seconds`` how long it really was. ``good``
    and so on are exchanges that ended; ``classes``: by priority how many ended and how many of them
    were refused; ``first`` and ``total`` are ``QUANTILES`` in milliseconds, of the last
    ``SMOOTHED`` samples, None without any; ``hedges``: won, and not won."""

    at: float
    seconds: float = 1.0
    good: int = 0
    client: int = 0
    refused: int = 0
    failed: int = 0
    reasons: dict[str, int] = {}
    classes: dict[str, list[int]] = {}
    first: list[float] | None = None
    total: list[float] | None = None
    in_flight: int = 0
    waiting: int = 0
    retries: int = 0
    hedges: tuple[int, int] = (0, 0)

    @property
    def ended(self) -> int:
        return self.good + self.client + self.refused + self.failed


def kind_of(reason: Reason | None, code: int) -> str:
    """Which of a sample's counts an exchange belongs to; ``code`` is 2 for 2xx. O(1)."""
    if reason is None:
        return "good" if code < 4 else "client" if code == 4 else "failed"
    if reason in REFUSED:
        return "refused"
    return "client" if reason in CLIENT else "failed"


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Seconds below which ``share`` of what a histogram counted lies, even inside a bucket; the
    last bound for what is above it. None if it counted nothing. As Prometheus estimates it."""
    sums = list(accumulate(counts))
    if not sums or not sums[-1]:
        return None
    rank = share * sums[-1]
    place = bisect_left(sums, rank)
    if place >= len(bounds):
        return bounds[-1]
    low = bounds[place - 1] if place else 0.0
    before = sums[place - 1] if place else 0
    return low + (bounds[place] - low) * (rank - before) / max(1, counts[place])


class _Series:
    """What a histogram gained, second by second. Of all routes together."""

    __slots__ = ("_bounds", "_lately", "_new")

    def __init__(self) -> None:
        self._bounds: tuple[float, ...] = ()
        self._new: list[int] = []
        self._lately: deque[list[int]] = deque(maxlen=SMOOTHED)

    def begin(self, bounds: tuple[float, ...]) -> None:
        if bounds != self._bounds:
            self._bounds = bounds
            self._lately.clear()
        self._new = [0] * (len(bounds) + 1)

    def add(self, found: Histogram, before: list[int]) -> list[int]:
        """Count what came since ``before``; what is now. O(buckets)."""
        counts = list(found.counts)
        if found.bounds == self._bounds:
            if len(before) != len(counts) or any(map(int.__gt__, before, counts)):
                before = [0] * len(counts)  # a reload began them again
            self._new = [n + c - b for n, c, b in zip(self._new, counts, before, strict=True)]
        return counts

    def end(self) -> list[float] | None:
        """The percentiles of the latest samples, in milliseconds."""
        self._lately.append(self._new)
        counts = [sum(column) for column in zip(*self._lately, strict=True)]
        found = [quantile(self._bounds, counts, share) for share in QUANTILES]
        return [round(each * 1000, 2) for each in found if each is not None] or None


class _Seen:
    """A route's counters as they were at the last look."""

    __slots__ = ("first", "recent", "requests", "sum", "total")

    def __init__(self) -> None:
        self.sum = 0.0
        self.requests: dict[Any, int] = {}
        self.total: list[int] = []
        self.first: list[int] = []
        self.recent: deque[tuple[int, int, int]] = deque([(0, 0, 0)] * RECENT, maxlen=RECENT)


class Sampler:
    """Makes a sample from the counters. O(routes), 0.3 us for an idle one, some 8 us for one on
    which something ended."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._seen: dict[str, _Seen] = {}
        self._refused: dict[Reason, int] = {}
        self._first, self._total = _Series(), _Series()
        self._seconds: deque[float] = deque(maxlen=RECENT)

    def sample(self, at: float, seconds: float) -> Sample:
        """What ended since the last call, which was ``seconds`` ago."""
        made = Sample(at=round(at, 2), seconds=round(seconds, 3))
        made.reasons, made.classes = {}, {}
        self._seconds.append(seconds)
        self._first.begin(self._metrics.bounds)
        self._total.begin(self._metrics.bounds)
        for name, counters in self._metrics.routes.items():
            seen = self._seen.get(name)
            if seen is None:
                seen = self._seen[name] = _Seen()
            made.in_flight += counters.in_flight
            if counters.durations.sum != seen.sum:
                seen.recent.append(self._route(counters, seen, made))
            else:
                seen.recent.append((0, 0, 0))
        for reason, count in self._metrics.refused.items():
            new = count - self._refused.get(reason, 0)
            if new:
                self._refused[reason] = count
                self._count(made, kind_of(reason, 4), reason, new)
        made.first, made.total = self._first.end(), self._total.end()
        return made

    def _route(self, counters: RouteCounters, seen: _Seen, made: Sample) -> tuple[int, int, int]:
        """Add what is new on one route; (ended, refused, failed)."""
        before = seen.requests
        seen.sum = counters.durations.sum
        counts = {"good": 0, "client": 0, "refused": 0, "failed": 0}
        for key, count in counters.requests.items():
            new = count - before.get(key, 0)
            if not new:
                continue
            before[key] = count
            _, code, reason, priority = key
            kind = kind_of(reason, code)
            counts[kind] += new
            self._count(made, kind, reason, new)
            of_class = made.classes.setdefault(CLASSES[priority], [0, 0])
            of_class[0] += new
            of_class[1] += new if kind == "refused" else 0
        seen.total = self._total.add(counters.durations, seen.total)
        seen.first = self._first.add(counters.first_bytes, seen.first)
        return sum(counts.values()), counts["refused"], counts["failed"]

    @staticmethod
    def _count(made: Sample, kind: str, reason: Reason | None, new: int) -> None:
        setattr(made, kind, getattr(made, kind) + new)
        if reason is not None:
            made.reasons[reason.value] = made.reasons.get(reason.value, 0) + new
        elif kind == "failed":
            made.reasons["5xx"] = made.reasons.get("5xx", 0) + new

    def recent(self, route: str) -> dict[str, float]:
        """Per second over the last ``RECENT`` seconds: ended, refused, failed. O(RECENT)."""
        seen = self._seen.get(route)
        span = sum(self._seconds)
        rows = list(seen.recent)[-len(self._seconds) :] if seen is not None and span else []
        return {
            name: round(sum(row[place] for row in rows) / span, 2) if rows else 0.0
            for place, name in enumerate(("rate", "refused", "failed"))
        }


def together(samples: Iterable[Sample]) -> Sample:
    """Several samples as one, without percentiles. O(samples)."""
    made = Sample(at=0.0, seconds=0.0)
    made.reasons, made.classes = {}, {}
    for each in samples:
        made.at = each.at
        made.seconds += each.seconds
        made.good += each.good
        made.client += each.client
        made.refused += each.refused
        made.failed += each.failed
        made.retries += each.retries
        made.hedges = (made.hedges[0] + each.hedges[0], made.hedges[1] + each.hedges[1])
        for reason, count in each.reasons.items():
            made.reasons[reason] = made.reasons.get(reason, 0) + count
        for name, (came, refused) in each.classes.items():
            found = made.classes.setdefault(name, [0, 0])
            found[0] += came
            found[1] += refused
        made.first, made.total = each.first or made.first, each.total or made.total
        made.in_flight, made.waiting = each.in_flight, each.waiting
    return made
