"""What an operator asks about afterwards: who was ejected when, which reload failed, and so on.

Nobody tells this list anything. Once a second it looks at what runs and notices what has changed,
so no mechanism knows of it, and none can be slowed down by it. What begins and ends within one
second is seen where a counter has kept it, as ejections and reloads have.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from gateway.endpoint import Endpoint
    from gateway.server import Server
    from gateway.wiring import RouteFilters

KEPT = 200
LONGEST = 400
"""Characters of a text that comes from elsewhere, such as the error of a reload."""
COLLAPSE = 0.5
"""A limit that fell to this share of what it was ``BACK`` looks ago has collapsed."""
BACK = 10
NOT_LEARNED = "not learned yet"


class Event(msgspec.Struct, frozen=True):
    """``id`` counts up; ``at`` in seconds of the calendar; ``level`` is bad, warn, good or info."""

    id: int
    at: float
    level: str
    kind: str
    text: str


class _Endpoint:
    __slots__ = ("ejections", "since", "state")

    def __init__(self, state: str, ejections: int, since: float) -> None:
        self.state = state
        self.ejections = ejections
        self.since = since


class _Route:
    __slots__ = ("limits", "overloaded", "why")

    def __init__(self) -> None:
        self.limits: deque[float] = deque(maxlen=BACK)
        self.overloaded = False
        self.why = NOT_LEARNED


class Events:
    """The latest ``KEPT`` events, oldest first. A look is O(endpoints + routes), 1 us each."""

    def __init__(self) -> None:
        self.all: deque[Event] = deque(maxlen=KEPT)
        self.last = 0
        self._endpoints: dict[tuple[str, str], _Endpoint] = {}
        self._routes: dict[str, _Route] = {}
        self._doubted: set[str] = set()
        self._reloads = (0, 0)
        self._draining = self._drained = False
        self._first = True

    def after(self, number: int) -> list[Event]:
        """Those with a higher id than ``number``."""
        return [each for each in self.all if each.id > number]

    def add(self, at: float, level: str, kind: str, text: str) -> None:
        self.last += 1
        self.all.append(Event(self.last, round(at, 2), level, kind, text[:LONGEST]))

    def look(self, server: Server, now: float, wall: float) -> None:
        """Notice what has changed; ``now`` is the clock's, ``wall`` the calendar's."""
        if self._first:
            self.add(wall, "info", "started", "the gateway has started")
        self._process(server, wall)
        for cluster, membership in server.memberships.items():
            for each in membership.endpoints():
                self._endpoint(cluster, each, now, wall)
            self._doubt(cluster, membership.cluster.outlier.doubted, wall)
        if len(self._endpoints) > sum(
            len(m.cluster.endpoints) for m in server.memberships.values()
        ):
            self._forget(server, wall)
        for name, parts in server.wiring.filters.items():
            self._limits(name, parts, now, wall)
        if len(self._routes) > len(server.wiring.filters):
            self._routes = {k: v for k, v in self._routes.items() if k in server.wiring.filters}
        self._first = False

    def _process(self, server: Server, wall: float) -> None:
        done, failed = self._reloads
        self._reloads = (server.reloads, server.reload_failures)
        if server.reload_failures > failed:
            error = server.reload_error or "corrected meanwhile"
            self.add(wall, "bad", "reload_failed", f"reload failed, the old one stays: {error}")
        if server.reloads > done:
            self.add(server.reloaded_at, "good", "reloaded", "another configuration is in force")
        if server.acceptor.draining and not self._draining:
            self._draining = True
            self.add(wall, "warn", "draining", "draining: not ready, finishing what is under way")
        if server.drained.is_set() and not self._drained:
            self._drained = True
            self.add(wall, "warn", "drained", "drained")

    def _endpoint(self, cluster: str, one: Endpoint, now: float, wall: float) -> None:
        key = (cluster, one.name)
        seen = self._endpoints.get(key)
        standing = one.standing
        state = one.state
        if seen is None:
            self._endpoints[key] = _Endpoint("healthy", 0, standing.since)
            seen = self._endpoints[key]
            if not self._first:
                self.add(wall, "info", "joined", f"{one.name} belongs to {cluster} now")
        name = f"{one.name} of {cluster}"
        if standing.ejections > seen.ejections:
            spell = f"for {_spell(standing.until - standing.since)}: " if standing.until else ""
            text = f"{name} is ejected {spell}{standing.why}"
            self.add(wall + standing.since - now, "bad", "ejected", text)
        elif state == "unhealthy" and seen.state != state:
            self.add(wall, "bad", "unhealthy", f"{name} fails its health check: {one.why}")
        if state == "healthy" and (seen.state != state or standing.ejections > seen.ejections):
            self.add(wall + one.since - now, "good", "restored", f"{name} is back: {one.why}")
        seen.state, seen.ejections = state, standing.ejections

    def _doubt(self, cluster: str, doubted: bool, wall: float) -> None:
        if doubted == (cluster in self._doubted):
            return
        if doubted:
            self._doubted.add(cluster)
            text = f"every endpoint of {cluster} looks bad, so none is ejected"
            self.add(wall, "bad", "doubted", text)
        else:
            self._doubted.discard(cluster)
            self.add(wall, "good", "trusted", f"somebody in {cluster} is well again")

    def _forget(self, server: Server, wall: float) -> None:
        """Endpoints that a reload or a change of addresses has taken away."""
        for cluster, name in list(self._endpoints):
            membership = server.memberships.get(cluster)
            if membership is None or name not in membership.cluster.endpoints:
                del self._endpoints[cluster, name]
                self.add(wall, "info", "left", f"{name} has left {cluster}")

    def _limits(self, name: str, parts: RouteFilters, now: float, wall: float) -> None:
        gate = parts.gate
        if gate is None:
            return
        seen = self._routes.get(name)
        if seen is None:
            seen = self._routes[name] = _Route()
        value = gate.limit.value
        why = getattr(gate.limit, "why", "")
        if seen.limits and value <= COLLAPSE * max(seen.limits):
            before = max(seen.limits)
            if seen.why == NOT_LEARNED:
                self.add(wall, "info", "limit", f"route {name} has found its limit: {value}: {why}")
            else:
                text = f"the limit of {name} fell from {before:g} to {value}: {why}"
                self.add(wall, "warn", "limit", text)
            seen.limits.clear()
        seen.limits.append(value)
        seen.why = why
        stands = gate.shedder.stands(now)
        if stands != seen.overloaded:
            seen.overloaded = stands
            if stands:
                self.add(
                    wall, "warn", "overloaded", f"route {name} is overloaded: its queue stands"
                )
            else:
                self.add(wall, "good", "overload_over", f"route {name} is no longer overloaded")


def _spell(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h" if seconds >= 3600 else f"{seconds:.3g} s"
