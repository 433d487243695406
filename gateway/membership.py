"""Who belongs to a cluster: endpoints from the configuration, from DNS, and across reloads.

An endpoint that stays through a reload is the same object before and after, so that it keeps its
connections, its load and what health checks found, and exchanges under way finish on it.
"""

import asyncio
from random import Random

from filters.api import Clock
from gateway import config
from gateway.balancer import balancer
from gateway.cluster import Cluster
from gateway.discovery import Names, Resolver, expand
from gateway.endpoint import Endpoint, Location, locate
from gateway.health import HealthChecks, Result, Target, Thresholds, check
from gateway.tls import UpstreamTls

LOOKUP_S = 5.0
"""Longest that one name lookup may take before it counts as failed."""


class Membership:
    """One cluster and what keeps it up to date. ``start`` it after the listeners are open."""

    def __init__(
        self,
        name: str,
        settings: config.Cluster,
        limits: config.Limits,
        clock: Clock,
        rng: Random,
        loop: asyncio.AbstractEventLoop,
        previous: "Membership | None" = None,
    ) -> None:
        self.settings = settings
        self._limits = limits
        self._clock = clock
        self._loop = loop
        self.tls = UpstreamTls(settings.tls) if settings.tls is not None else None
        if self.tls is None and any(
            (e.url or e.dns or "").startswith("https:") for e in settings.endpoints
        ):
            self.tls = UpstreamTls(config.UpstreamTls())
        self.names = Names(Resolver(LOOKUP_S), settings.resolve, self._resolved, rng)
        self.cluster = Cluster(name, settings, balancer(settings.balance), clock, rng)
        if previous is not None:
            self.cluster.take_over(previous.cluster)
        self.health: HealthChecks | None = None
        if settings.health is not None:
            self.health = HealthChecks(settings.health, self._check, self._checked, rng)
            if previous is not None and previous.health is not None:
                self.health.states.update(previous.health.states)
        self._started = False
        self._kept: dict[tuple[Location, float], Endpoint] = {}
        if previous is not None and previous.compatible(settings):
            self._kept = {(e.location, e.rated): e for e in previous.cluster.endpoints.values()}
        if previous is not None:
            for endpoint in settings.endpoints:
                location = locate(endpoint.url or endpoint.dns or "")
                self.names.seed(location.host, previous.names.addresses(location.host))
        for endpoint in settings.endpoints:
            location = locate(endpoint.url or endpoint.dns or "")
            if location.socket_path is None:
                self.names.add(location.host, location.port)
        self._build()

    def compatible(self, settings: config.Cluster) -> bool:
        """Whether an endpoint made with our settings can be kept under the new ones."""
        mine = self.settings
        return (mine.connections, mine.connect_timeout, mine.tls, mine.health) == (
            settings.connections,
            settings.connect_timeout,
            settings.tls,
            settings.health,
        )

    def endpoints(self) -> list[Endpoint]:
        return list(self.cluster.endpoints.values())

    def start(self) -> None:
        self._started = True
        self.names.start()
        self._watch()

    async def stop(self) -> None:
        """End what runs in the background; connections are the endpoints' own."""
        await self.names.stop()
        if self.health is not None:
            await self.health.stop()

    def claim(self) -> None:
        """Take the endpoints back from a successor that did not come into force."""
        for endpoint in self.endpoints():
            endpoint.found_by(self.names.get, self.tls, self._limits)

    def retire(self, successor: "Membership | None") -> None:
        """Let go of the endpoints that the successor did not take over."""
        kept = set(successor.endpoints()) if successor is not None else set()
        for endpoint in self.endpoints():
            if endpoint not in kept:
                endpoint.pool.retire()

    def _resolved(self, host: str, addresses: tuple[str, ...]) -> None:
        if any(e.dns is not None and locate(e.dns).host == host for e in self.settings.endpoints):
            self._kept = {(e.location, e.rated): e for e in self.endpoints()}
            self._build()

    async def _check(self, target: Target) -> Result:
        assert self.settings.health is not None
        tls = self.tls.context if self.tls is not None else None
        return await check(target, self.settings.health, tls)

    def _checked(self, name: str, healthy: bool) -> None:
        endpoint = self.cluster.endpoints.get(name)
        if endpoint is not None and self.health is not None:
            self._mark(endpoint, self.health.states[name])
            self.cluster.refresh()

    def _mark(self, endpoint: Endpoint, state: Thresholds) -> None:
        if state.known:
            why = "passes its check" if state.healthy else f"fails its check: {state.detail}"
            endpoint.mark(state.healthy, why, self._clock.now())

    def _watch(self) -> None:
        """Check who belongs now. Not before the start: checks are tasks."""
        if self.health is not None and self._started:
            self.health.update(each.target() for each in self.endpoints())

    def _build(self) -> None:
        members: dict[str, Endpoint] = {}
        for written in self.settings.endpoints:
            for location in self._locations(written):
                endpoint = self._kept.get((location, written.weight))
                if endpoint is None:
                    endpoint = Endpoint(
                        location, written.weight, self.settings, self._clock, self._loop
                    )
                endpoint.found_by(self.names.get, self.tls, self._limits)
                if self.health is not None and endpoint.name in self.health.states:
                    self._mark(endpoint, self.health.states[endpoint.name])
                members[endpoint.name] = endpoint
        self._kept = {}
        self.cluster.members(members)
        self._watch()

    def _locations(self, written: config.Endpoint) -> list[Location]:
        if written.url is not None:
            return [locate(written.url)]
        named = locate(written.dns or "")
        urls = expand(written.dns or "", self.names.addresses(named.host))
        # The certificate is the name's, whichever address answers.
        return [locate(url)._replace(server_name=named.host) for url in urls]
