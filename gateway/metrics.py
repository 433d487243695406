"""The numbers that the hot path counts: plain ints and floats, one object per route.

Nothing here knows of Prometheus. ``collect.py`` turns these numbers into metrics when somebody
scrapes, so an exchange pays for two bisections and a handful of additions, and a gateway that
nobody scrapes never loads a metrics library.
"""

from __future__ import annotations

from bisect import bisect_left
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filters.api import Priority, Reason

SERIES = 1000
"""Routes, and endpoints, that get a label of their own; what comes later is ``other``. Both come
from the configuration, but names resolve to whatever DNS says and reloads add up."""
OTHER = "other"


class Histogram:
    """Counts per bucket, not cumulative; the last one is for whatever is above all ``bounds``."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.use(bounds)

    def use(self, bounds: tuple[float, ...]) -> None:
        """Begin again with other buckets; a scraper sees a counter that was reset."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """O(log buckets). A bucket's bound belongs to the bucket, as Prometheus has it."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds


class RouteCounters:
    """What is counted for one route. ``requests`` by cluster, status class (2 for 2xx), reason and
    priority; ``queue_waits`` only of those that waited and got their permit; ``slow``: seconds
    above which an exchange is worth remembering (``recorder.py``)."""

    __slots__ = ("durations", "first_bytes", "in_flight", "name", "queue_waits", "requests", "slow")

    def __init__(self, name: str, bounds: tuple[float, ...]) -> None:
        self.name = name
        self.in_flight = 0
        self.slow = inf
        self.requests: dict[tuple[str, int, Reason | None, Priority], int] = {}
        self.durations = Histogram(bounds)
        self.first_bytes = Histogram(bounds)
        self.queue_waits = Histogram(bounds)


class Metrics:
    """Every counter of the exchange chain. ``refused`` counts what never became an exchange."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.routes: dict[str, RouteCounters] = {}
        self.refused: dict[Reason, int] = {}

    def route(self, name: str) -> RouteCounters:
        """The counters of a route, made at its first exchange. O(1)."""
        counters = self.routes.get(name)
        if counters is None:
            if len(self.routes) >= SERIES:
                name = OTHER
            counters = self.routes.setdefault(name, RouteCounters(name, self.bounds))
        return counters

    def refuse(self, reason: Reason) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def use(self, bounds: tuple[float, ...]) -> None:
        """Other histogram buckets from now on. Everything else is counted on."""
        if bounds == self.bounds:
            return
        self.bounds = bounds
        for counters in self.routes.values():
            counters.durations.use(bounds)
            counters.first_bytes.use(bounds)
            counters.queue_waits.use(bounds)
