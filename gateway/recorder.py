"""The last exchanges about which somebody may ask why: refused, failed, retried, hedged, slow.

An ordinary exchange costs one branch at its end, in ``telemetry.py``. One that is kept costs some
3 us: what is known is copied, and put into words only when somebody asks. Each kind has a ring of
its own, so that a flood of refusals does not push out the one slow exchange; and so many a second,
so that a flood costs nothing. Bodies, header values and queries are never kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from time import time
from typing import TYPE_CHECKING, Any

from gateway.dashboard_sample import CLIENT, REFUSED, quantile
from gateway.explain import Situation, decisions

if TYPE_CHECKING:
    from filters.api import Exchange, Note, Reject
    from gateway.metrics import Metrics, RouteCounters
    from gateway.wiring import RouteFilters

SIZES = {"refused": 256, "failed": 256, "client": 64, "retried": 128, "hedged": 128, "slow": 128}
"""How many of each kind are kept."""
A_SECOND = 32
"""How many of each kind are kept of one second; the others are counted in ``skipped``."""
LONGEST = 256
"""Bytes of a path, characters of a detail."""
SLOW = 0.99
SLOWEST_PART = 60.0
"""Seconds of traffic from which a route's slowness is learned, at least; and twice that at most."""
ENOUGH = 100


@dataclass(slots=True)
class Kept:
    """One exchange as it ended. ``at`` is its end in seconds of the calendar; ``seconds`` counts
    from its arrival, and so does ``first``, its first byte."""

    id: int
    kind: str
    at: float
    request_id: bytes
    situation: Situation
    client: str
    status: int
    detail: str
    method: bytes = b""
    path: bytes = b""
    route: str = ""
    cluster: str = ""
    seconds: float = 0.0
    first: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    notes: list[Note] | None = None


class Recorder:
    """``filters``: those of each route in force, by name. ``last`` is the highest id given."""

    def __init__(self) -> None:
        self.filters: Callable[[], Mapping[str, RouteFilters]] = dict
        self.last = 0
        self.skipped = 0
        self._rings: dict[str, deque[Kept]] = {k: deque(maxlen=n) for k, n in SIZES.items()}
        self._room = dict.fromkeys(SIZES, A_SECOND)
        self._second = 0
        self._now = 0.0
        self._looked = -inf
        self._histograms: dict[str, list[int]] = {}

    # -- what comes in ---------------------------------------------------------------------------

    def ended(
        self, exchange: Exchange, status: int, detail: str, seconds: float, first: float | None
    ) -> None:
        """Keep an exchange that was refused, failed, retried, hedged or slow."""
        reason = exchange.reason
        if reason is None:
            kind = "hedged" if exchange.hedged else "retried" if exchange.attempts > 1 else "slow"
            if status >= 500:
                kind = "failed"
        elif reason in REFUSED:
            kind = "refused"
        else:
            kind = "client" if reason in CLIENT else "failed"
        if not self._room_for(kind):
            return
        request, route = exchange.request, exchange.route
        body: Any = exchange.body
        downstream: Any = exchange.downstream
        self.last += 1
        kept = Kept(
            self.last,
            kind,
            self._now,
            exchange.request_id,
            Situation.of(exchange, self.filters().get(route.name)),
            exchange.client,
            status,
            detail[:LONGEST],
            request.method[:LONGEST],
            request.path[:LONGEST],
            route.name,
            route.cluster,
            seconds,
            first,
            body.received,
            downstream.bytes_sent,
            exchange.notes,
        )
        self._rings[kind].append(kept)

    def refused(self, reject: Reject, status: int, client: str, request_id: bytes) -> None:
        """Keep what was refused before it became an exchange."""
        kind = "client" if reject.reason in CLIENT else "refused"
        if not self._room_for(kind):
            return
        self.last += 1
        told = Situation(reject.reason)
        detail = reject.detail[:LONGEST]
        kept = Kept(self.last, kind, self._now, request_id, told, client, status, detail)
        self._rings[kind].append(kept)

    def _room_for(self, kind: str) -> bool:
        """Whether few of this kind were kept of this second. Reads the calendar."""
        self._now = now = time()
        if int(now) != self._second:
            self._second = int(now)
            self._room = dict.fromkeys(SIZES, A_SECOND)
        if not self._room[kind]:
            self.skipped += 1
            return False
        self._room[kind] -= 1
        return True

    # -- what is slow ----------------------------------------------------------------------------

    def look(self, metrics: Metrics, now: float) -> None:
        """Learn what is slow on each route: above its 99th percentile of the last minute or two.
        Called often; once a minute it is O(routes), some 5 us each."""
        if now < self._looked + SLOWEST_PART:
            return
        self._looked = now
        for name, counters in metrics.routes.items():
            before = self._histograms.get(name)
            counts = self._histograms[name] = list(counters.durations.counts)
            counters.slow = slow_from(counters, counts, before)

    # -- what is asked ---------------------------------------------------------------------------

    def latest(self, most: int) -> list[dict[str, Any]]:
        """Summaries of the newest, oldest first."""
        return self.after(0, most)

    def after(self, number: int, most: int) -> list[dict[str, Any]]:
        """Summaries of those with a higher id, oldest first, the newest ``most`` of them."""
        share = max(1, most // 3)  # so that one kind does not hide the others
        found = [each for ring in self._rings.values() for each in _newer(ring, number, share)]
        found.sort(key=lambda each: each.id)
        return [summary(each) for each in found[-most:]]

    def explain(self, request_id: str) -> list[dict[str, Any]]:
        """All that is known of the exchanges with this id, newest first: clients may repeat ids."""
        wanted = request_id.encode("utf-8", "surrogateescape")
        found = [k for ring in self._rings.values() for k in ring if k.request_id == wanted]
        found.sort(key=lambda each: -each.id)
        return [explained(each) for each in found]


def slow_from(counters: RouteCounters, counts: list[int], before: list[int] | None) -> float:
    """Seconds above which an exchange of the route is slow; infinite while too few are known."""
    if before is None or len(before) != len(counts) or any(map(int.__gt__, before, counts)):
        before = [0] * len(counts)
    new = [c - b for c, b in zip(counts, before, strict=True)]
    if sum(new) < ENOUGH:
        return inf
    return quantile(counters.durations.bounds, new, SLOW) or inf


def _newer(ring: deque[Kept], number: int, most: int) -> list[Kept]:
    found: list[Kept] = []
    for each in reversed(ring):
        if each.id <= number or len(found) >= most:
            break
        found.append(each)
    return found


def summary(kept: Kept) -> dict[str, Any]:
    """One line of a list."""
    reason = kept.situation.reason
    return {
        "id": kept.id,
        "at": round(kept.at, 3),
        "kind": kept.kind,
        "request_id": _text(kept.request_id),
        "route": kept.route,
        "status": kept.status,
        "reason": "" if reason is None else reason.value,
        "endpoint": kept.situation.endpoint,
        "attempts": kept.situation.attempts,
        "hedged": kept.situation.hedged,
        "ms": round(kept.seconds * 1000, 2),
    }


def explained(kept: Kept) -> dict[str, Any]:
    """Everything, with the filters' decisions in words."""
    return {
        **summary(kept),
        "method": _text(kept.method),
        "path": _text(kept.path),
        "client": kept.client,
        "cluster": kept.cluster,
        "priority": kept.situation.priority,
        "detail": kept.detail,
        "first_byte_ms": None if kept.first is None else round(kept.first * 1000, 2),
        "queued_ms": round(kept.situation.queued * 1000, 2),
        "bytes_in": kept.bytes_in,
        "bytes_out": kept.bytes_out,
        "filters": decisions(kept.situation, kept.detail),
        "attempted": [_note(each) for each in kept.notes or ()] or _only(kept),
    }


def _note(note: Note) -> dict[str, Any]:
    return {
        "at_ms": round(note.at * 1000, 2),
        "what": note.what,
        "endpoint": note.endpoint,
        "ms": None if note.seconds is None else round(note.seconds * 1000, 2),
        "result": note.result,
    }


def _only(kept: Kept) -> list[dict[str, Any]]:
    """The one attempt that went well at first is noted nowhere: that would cost all the others."""
    if not kept.situation.attempts:
        return []
    at, whole = kept.situation.queued * 1000, kept.seconds * 1000
    return [
        {
            "at_ms": round(at, 2),
            "what": "attempt 1",
            "endpoint": kept.situation.endpoint,
            "ms": round(whole - at, 2),
            "result": f"status {kept.status}",
        }
    ]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
