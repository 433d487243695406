"""One address of a cluster: its load, its health, its connections.

States are healthy, ejected and probing; a failed active check makes an endpoint unhealthy. ``why``
is the sentence an operator reads in ``/clusters``.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from filters.api import FAILED, OK, PUSHED_BACK, Clock, Kind
from filters.standing import Phase, Standing
from gateway import config
from gateway.balancer import Load
from gateway.health import Target
from gateway.pool import Pool
from gateway.tls import UpstreamTls

Lookup = Callable[[str], Awaitable[tuple[str, ...]]]


class Location(NamedTuple):
    """Where an endpoint is: parsed once from an ``http:``, ``https:`` or ``unix:`` URL."""

    host: str
    port: int
    secure: bool
    socket_path: str | None
    server_name: str

    @property
    def name(self) -> str:
        if self.socket_path is not None:
            return f"unix:{self.socket_path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def locate(url: str) -> Location:
    """Parse an endpoint's URL. Raises ValueError."""
    if url.startswith("unix:"):
        return Location("localhost", 0, False, url.removeprefix("unix:"), "localhost")
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"not the URL of an endpoint: {url}")
    host = parts.hostname
    return Location(host, parts.port or (443 if secure else 80), secure, None, host)


class Endpoint(Load):
    """An endpoint is a load with an address. Implements ``pool.Target``.

    ``rated`` is the configured weight; ``weight`` is what is left of it while the endpoint comes
    back, pushes back or is under suspicion.
    """

    __slots__ = (
        "_checked_since",
        "_clock",
        "_found",
        "_lookup",
        "_tls",
        "authority",
        "failed",
        "location",
        "pool",
        "rated",
        "served",
        "server_name",
        "standing",
    )

    def __init__(
        self,
        location: Location,
        weight: float,
        settings: config.Cluster,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(location.name, weight)
        self.location = location
        self.authority = b"localhost" if location.socket_path else location.name.encode()
        wanted = settings.tls.server_name if settings.tls is not None else None
        self.server_name = (wanted or location.server_name) if location.secure else None
        self._clock = clock
        self._found = "not checked"
        self._checked_since = clock.now()
        self.rated = weight
        self.standing = Standing(location.name, clock.now())
        self.served = 0
        self.failed = 0
        self.pool = Pool(self, settings.connections, settings.connect_timeout, clock, loop)

    def found_by(self, lookup: Lookup, tls: UpstreamTls | None, limits: config.Limits) -> None:
        """How to find its addresses, to secure its connections and to bound its answers; a
        reload may change all three."""
        self._lookup = lookup
        self._tls = tls
        self.pool.head_bytes, self.pool.headers = limits.head_bytes, limits.headers

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The context for a new connection: certificate files may have changed since the last."""
        return self._tls.context if self._tls is not None and self.location.secure else None

    @property
    def port(self) -> int:
        return self.location.port

    @property
    def socket_path(self) -> str | None:
        return self.location.socket_path

    async def addresses(self) -> tuple[str, ...]:
        if self.location.socket_path is not None:
            return ("",)
        return await self._lookup(self.location.host)

    def settle(self, now: float, seconds: float, kind: Kind) -> None:
        """An attempt here is over: ``seconds`` to the first byte of its answer, or to its failure.
        What was pushed back or is ignored says nothing about how fast the endpoint is."""
        if kind is OK:
            self.served += 1
            self.finish(now, seconds, False)
        elif kind is FAILED:
            self.served += 1
            self.failed += 1
            self.finish(now, seconds, True)
        else:
            self.served += kind is PUSHED_BACK
            self.finish(now, None, False)

    def weigh(self) -> None:
        """Put the share that it gets in force."""
        self.weight = self.rated * self.standing.share

    def target(self) -> Target:
        """Where an active check of this endpoint goes."""
        location = self.location
        scheme = "https" if location.secure else "http"
        if location.socket_path is not None:
            return Target(self.name, "http://localhost", unix=location.socket_path)
        host = None if location.server_name == location.host else location.server_name
        return Target(self.name, f"{scheme}://{self.name}", host, self.server_name)

    def mark(self, healthy: bool, why: str, now: float) -> None:
        """What an active check found."""
        if healthy != self.healthy:
            self._checked_since = now
        self.standing.checked = healthy
        self._found = why

    @property
    def healthy(self) -> bool:
        """Whether its active check passes, or there is none."""
        return self.standing.checked

    @property
    def state(self) -> str:
        """What it is now, whether or not traffic has come that would have moved it on."""
        phase = self.standing.phase_at(self._clock.now())
        if phase is Phase.HEALTHY and not self.healthy:
            return "unhealthy"
        return phase.value

    @property
    def share(self) -> float:
        """The part of its weight that it gets, whether or not traffic has come that would have
        put it in force."""
        standing = self.standing
        return standing.share_at(self._clock.now()) if standing.phase is Phase.HEALTHY else 0.0

    @property
    def why(self) -> str:
        """The sentence that explains ``state``."""
        standing = self.standing
        now = self._clock.now()
        if standing.phase is not Phase.HEALTHY:
            if now < standing.until:
                return f"{standing.why}; for {standing.until - now:.1f} s more"
            return f"{standing.why}; the next request decides"
        if not self.healthy:
            return self._found
        if standing.held:
            return f"only the cap on ejection keeps it in: {standing.held}"
        if now < standing.avoided_until:
            return f"pushes back, {standing.avoided_until - now:.1f} s more"
        share = standing.share_at(now)
        if share < 1:
            return f"back at {share:.0%} of its share: {standing.why}"
        return self._found

    @property
    def since(self) -> float:
        """When ``state`` began, in the clock's seconds."""
        standing = self.standing
        if standing.phase is Phase.HEALTHY:
            return max(self._checked_since, standing.since)
        return standing.until if self._clock.now() >= standing.until else standing.since

    def __repr__(self) -> str:
        return f"{self.name} {self.state} ({self.why}), {self.active} in flight"
