"""Why: what each filter of a route decided about one exchange, in words; and what it would decide.

``Situation`` is what ``recorder.py`` copies of an exchange that is over; ``decisions`` says it in
the order of the chain. ``dry_run`` is the command: how a request would be routed and filtered by a
configuration file, without sending it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from filters.api import Reason

if TYPE_CHECKING:
    from filters.api import Exchange
    from gateway.wiring import RouteFilters

DECIDED_BY = {
    Reason.NO_ROUTE: "route",
    Reason.DEADLINE: "deadline",
    Reason.DEADLINE_UNREACHABLE: "deadline",
    Reason.RATE_LIMITED: "rate_limit",
    Reason.SHED: "load_shed",
    Reason.STRAINED: "load_shed",
    Reason.QUEUE_FULL: "admission",
    Reason.QUEUE_TIMEOUT: "admission",
}
"""The filter that refuses with this reason. What is not here was decided behind the filters."""
_REMAINING = re.compile(rb"x-ratelimit-remaining: (\d+)")


class Situation:
    """What the filters knew of an exchange, and how their route stood at its end."""

    __slots__ = (
        "asked", "attempts", "endpoint", "granted", "hedged", "in_flight", "limit",
        "on", "overloaded", "priority", "queued", "reason", "remaining", "shadowed",
        "span", "waiting",
    )  # fmt: skip

    def __init__(self, reason: Reason | None) -> None:
        self.reason = reason
        self.on: tuple[str, ...] = ()
        self.priority = ""
        self.queued = 0.0
        self.granted = self.asked = self.hedged = self.overloaded = False
        self.span: float | None = None
        self.attempts = 0
        self.endpoint = ""
        self.shadowed: str | None = None
        self.remaining: int | None = None
        self.limit: float | None = None
        self.in_flight = 0.0
        self.waiting = 0

    @classmethod
    def of(cls, exchange: Exchange, parts: RouteFilters | None) -> Situation:
        """Copy it. ``parts`` None: the route is gone with a reload, or there never was one."""
        made = cls(exchange.reason)
        made.priority = exchange.priority.name.lower()
        made.queued, made.granted = exchange.queued, exchange.granted
        made.attempts, made.endpoint = exchange.attempts, exchange.endpoint
        made.hedged, made.shadowed = exchange.hedged, exchange.shadowed
        made.asked = exchange.asked
        if exchange.deadline is not None:
            made.span = exchange.deadline - exchange.arrived
        found = _REMAINING.search(exchange.lines) if exchange.lines else None
        made.remaining = None if found is None else int(found[1])
        if parts is not None:
            made.on = tuple(name for name in NAMES if getattr(parts, PARTS[name]) is not None)
            gate = parts.gate
            if gate is not None:
                made.limit, made.in_flight = gate.limit.value, gate.in_flight
                made.waiting, made.overloaded = len(gate.queue), gate.shedder.overloaded
        return made


NAMES = ("deadline", "priority", "rate_limit", "load_shed", "admission", "retry", "hedge")
"""In the order of the chains."""
PARTS = {name: "gate" if name == "admission" else name for name in NAMES}


def decisions(s: Situation, detail: str = "") -> list[dict[str, str]]:
    """Filter by filter: what it decided, and why. What lies behind a refusal was never asked."""
    decider = DECIDED_BY.get(s.reason) if s.reason is not None else None
    if s.reason is Reason.SHED and s.queued:
        decider = "admission"  # had a place in the queue, and was put out of it
    told = [] if decider != "route" else [_row("route", "refused", "no route matches")]
    if decider == "route" or not s.on:
        return told
    reached = True
    for name in s.on:
        if name == decider and not (name == "deadline" and s.attempts):
            told.append(_row(name, "refused", _refusal(s, detail)))
            reached = False
            break
        told.append(_row(name, *_passed(name, s)))
    if reached and s.reason is not None:
        told.append(_row("attempts", "failed", _behind(s, detail)))
    if s.shadowed is not None:
        told.append(_row("dry run", "noted", f"a filter with dry_run would have said {s.shadowed}"))
    return told


def _row(name: str, decided: str, why: str) -> dict[str, str]:
    return {"filter": name, "decided": decided, "why": why}


def _refusal(s: Situation, detail: str) -> str:
    assert s.reason is not None
    found = [s.reason.value]
    if detail:
        found.append(detail)
    if s.reason is Reason.RATE_LIMITED:
        found.append("nothing of its burst was left")
    if s.queued:
        found.append(f"after {_ms(s.queued)} in the queue")
    if s.limit is not None and s.reason in (
        Reason.SHED, Reason.QUEUE_FULL, Reason.QUEUE_TIMEOUT
    ):  # fmt: skip
        found.append(f"{s.in_flight:g} in flight of {s.limit:g}, {s.waiting} waiting")
    if s.span is not None and s.reason in (Reason.DEADLINE, Reason.DEADLINE_UNREACHABLE):
        found.append(f"it had {_ms(s.span)}")
    return "; ".join(found)


def _behind(s: Situation, detail: str) -> str:
    assert s.reason is not None
    where = f" at {s.endpoint}" if s.endpoint else ""
    return f"{s.reason.value}{where}" + (f": {detail}" if detail else "")


def _passed(name: str, s: Situation) -> tuple[str, str]:
    if name == "deadline":
        if s.span is None:
            return "passed", "none"
        named = "named by the client or the route" if s.asked else "the bound of every exchange"
        return "passed", f"{_ms(s.span)}, {named}"
    if name == "priority":
        return "passed", f"its class is {s.priority}"
    if name == "rate_limit":
        left = "" if s.remaining is None else f", {s.remaining} left of its burst"
        return "passed", f"within its rate{left}"
    if name == "load_shed":
        why = "the route is overloaded, but this class passes" if s.overloaded else "no overload"
        return "passed", why
    if name == "admission":
        stands = "" if s.limit is None else f"; at the end {s.in_flight:g} in flight of {s.limit:g}"
        if s.queued:
            got = "waited" if s.granted else "left the queue after"
            return "waited", f"{got} {_ms(s.queued)}{stands}"
        return "passed", f"a permit at once{stands}"
    if name == "retry":
        if s.attempts > 1 + s.hedged:
            return "retried", f"{s.attempts} attempts in all"
        return "passed", "no further attempt"
    return ("hedged", "a second attempt raced the first") if s.hedged else ("passed", "not late")


def _ms(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
