"""A whole simulated world: real wiring over simulated servers and clients, and what must hold.

Everything between the Downstream and the Upstream seam is what production runs: clock, chains,
filters, cluster, balancer, endpoints. All randomness comes from the seed. After every run the
invariants are checked that no scenario may break, whatever it is about.
"""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any, cast

from filters.api import Exchange, Outcome, Reason, Service
from gateway import config
from gateway.balancer import balancer
from gateway.body import ReplayStore
from gateway.clock import LoopClock
from gateway.cluster import Cluster
from gateway.sim.audit import AuditedBudget, abridged, faulty, over_cap, overspent
from gateway.sim.crowds import Crowd, Traffic
from gateway.sim.loop import Deadlock, VirtualLoop, run
from gateway.sim.models import Condition, Model
from gateway.sim.records import Gauge, Record, Sample
from gateway.sim.servers import ModelServer
from gateway.sim.upstreams import simulated_endpoint
from gateway.wiring import Seams, Wiring

if TYPE_CHECKING:
    from gateway.endpoint import Endpoint
    from gateway.telemetry import Telemetry

DRAIN = 7200.0
"""Virtual seconds after the last arrival in which everything must have ended: above every clock."""
EVERY = 0.1
"""Virtual seconds between two samples."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run, as data. ``models`` are the servers behind the configured endpoints, in their order;
    one model stands for all. ``events``: (seconds, number of the server, what it becomes)."""

    config: config.Config
    models: tuple[Model, ...]
    traffic: tuple[Traffic, ...]
    events: tuple[tuple[float, int, Condition], ...] = ()

    @property
    def seconds(self) -> float:
        return max(sum(seconds for seconds, _ in each.phases) for each in self.traffic)


@dataclass(frozen=True, slots=True)
class Report:
    """What came out. ``broken`` are invariants; ``digest`` is the same for the same run."""

    records: tuple[Record, ...]
    samples: tuple[Sample, ...]
    servers: tuple[ModelServer, ...]
    broken: tuple[str, ...]
    digest: str

    def of(self, traffic: str) -> list[Record]:
        return [each for each in self.records if each.traffic == traffic]

    def arrived(self, since: float, until: float) -> list[Record]:
        """Those that arrived in these seconds of the run."""
        return [each for each in self.records if since <= each.arrived < until]

    def sampled(self, since: float, until: float) -> list[Sample]:
        """How things stood in these seconds of the run."""
        return [each for each in self.samples if since <= each.at < until]


def simulate(plan: Plan, seed: int) -> Report:
    """Run ``plan`` to its end. Never raises for what the simulated code does wrong: a deadlock or
    an exception that nobody caught is a broken invariant. About 0.1 ms per exchange."""
    loop = VirtualLoop(limit=plan.seconds + DRAIN)
    world = _World(plan, seed, loop)
    with _seldom_collecting():
        try:
            run(world.drive(), loop)
        except Deadlock as deadlock:
            world.unexpected.append(str(deadlock))
        return world.report()


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    """In overload tens of thousands of exchanges are alive, and with the usual thresholds looking
    through them for garbage takes more than half of the time."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


async def _unwatched(exchange: Exchange, next: Service[Exchange, Outcome]) -> Outcome:  # noqa: A002
    """In the place of telemetry: the clients' records say more than metrics would."""
    return await next(exchange)


class _World:
    def __init__(self, plan: Plan, seed: int, loop: VirtualLoop) -> None:
        self._plan = plan
        self._seed = seed
        self._loop = loop
        self._clock = LoopClock(loop)
        self._rng = Random(f"{seed}/gateway")
        self._store = ReplayStore(plan.config.limits.replay_bytes, plan.config.limits.replay_total)
        self._servers: list[ModelServer] = []
        self._endpoints: list[Endpoint] = []
        self._crowds: list[Crowd] = []
        self._budgets: dict[str, AuditedBudget] = {}
        self._wiring: Wiring
        self._samples: list[Sample] = []
        self._tasks_left = 0
        self._over_cap: list[str] = []
        self.unexpected: list[str] = []
        loop.set_exception_handler(self._uncaught)

    async def drive(self) -> None:
        """From the first arrival until nothing is under way any more."""
        loop, plan = self._loop, self._plan
        wiring = self._wiring = self._wire()
        for at, number, condition in plan.events:
            loop.call_later(at, self._servers[number].become, condition)
        for number, traffic in enumerate(plan.traffic):
            rng = Random(f"{self._seed}/traffic/{number}")
            self._crowds.append(Crowd(traffic, wiring.route, self._store, self._clock, loop, rng))
        start = loop.time()
        sampling = loop.create_task(self._sample_for_ever(start))
        await asyncio.sleep(max([plan.seconds, *(at for at, _, _ in plan.events)]))
        while not self._quiet():  # noqa: ASYNC110  Looking costs nothing in virtual time.
            await asyncio.sleep(EVERY)
        sampling.cancel()
        self._sample(loop.time() - start)
        await asyncio.sleep(0)
        self._tasks_left = len(asyncio.all_tasks(loop)) - 1
        self._clock.close()

    def _wire(self) -> Wiring:
        plan, loop = self._plan, self._loop
        clusters = {}
        for name, settings in plan.config.clusters.items():
            cluster = Cluster(name, settings, balancer(settings.balance), self._clock, self._rng)
            members = {}
            for written in settings.endpoints:
                number = len(self._servers)
                endpoint, server = simulated_endpoint(
                    written.url or "",
                    written.weight,
                    plan.models[number % len(plan.models)],
                    settings,
                    self._clock,
                    loop,
                    Random(f"{self._seed}/server/{number}"),
                )
                self._servers.append(server)
                self._endpoints.append(endpoint)
                members[endpoint.name] = endpoint
            cluster.members(members)
            clusters[name] = cluster
        seams = Seams(self._clock, self._rng, loop, cast("Telemetry", cast("Any", _unwatched)))
        # Audited budgets come in on the way that budgets take through a reload.
        first = Wiring(plan.config, clusters, seams, None)
        for name, each in first.budgets.items():
            self._budgets[name] = first.filters[name].budget = AuditedBudget(each.config)
        wiring = Wiring(plan.config, clusters, seams, first)
        wiring.activate()
        return wiring

    async def _sample_for_ever(self, start: float) -> None:
        while True:
            self._sample(self._loop.time() - start)
            await asyncio.sleep(EVERY)

    def _sample(self, at: float) -> None:
        routes = tuple(
            Gauge(each.limit.value, each.in_flight, len(each.queue), each.shedder.overloaded)
            for each in self._wiring.admissions.values()
        )
        states = tuple([each.state for each in self._endpoints])
        servers = tuple([(each.attempts, each.refused) for each in self._servers])
        self._samples.append(Sample(at, routes, states, servers))
        for name, cluster in self._wiring.clusters.items():
            outlier = cluster.settings.outlier
            if outlier is not None:
                members = [each.state for each in cluster.endpoints.values()]
                where = f"in {name} at {at:.1f} s"
                self._over_cap += over_cap(members, outlier.max_ejected, where)

    def _quiet(self) -> bool:
        clients = all(crowd.done and crowd.open == 0 for crowd in self._crowds)
        return clients and all(each.in_flight == 0 for each in self._servers)

    def _uncaught(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.unexpected.append(f"{context.get('message')}: {error!r}")

    # -- what must hold -------------------------------------------------------------------------

    def report(self) -> Report:
        records = [record for crowd in self._crowds for record in crowd.records()]
        servers = tuple(self._servers)
        told = [
            (s.name, s.attempts, s.served, s.wasted, s.cancelled, s.refused, s.crashes)
            for s in servers
        ]
        digest = blake2b(digest_size=8)
        for each in (*records, *self._samples, *told):
            digest.update(repr(each).encode())
        broken = self._broken(records)
        return Report(
            tuple(records), tuple(self._samples), servers, tuple(broken), digest.hexdigest()
        )

    def _broken(self, records: list[Record]) -> list[str]:
        broken = list(self.unexpected)
        broken += faulty(records, Reason.INTERNAL.value)
        for crowd in self._crowds:
            if crowd.open:
                broken.append(f"{crowd.open} exchanges without an end")
        for name, admission in self._wiring.admissions.items():
            if admission.in_flight or len(admission.queue):
                held, queued = admission.in_flight, len(admission.queue)
                broken.append(f"{held} permits of {name} not given back, {queued} in its queue")
        for name, cluster in self._wiring.clusters.items():
            if cluster.faults:
                broken.append(f"ejection of {name} failed {cluster.faults} times")
        for endpoint in self._endpoints:
            if endpoint.active:
                broken.append(f"{endpoint.active} permits of {endpoint.name} not given back")
        for server in self._servers:
            if server.in_flight or server.busy:
                broken.append(f"{server.in_flight} in flight at {server.name}, {server.busy} slots")
        if self._store.held:
            broken.append(f"{self._store.held} bytes of bodies still kept for replay")
        if self._tasks_left:
            broken.append(f"{self._tasks_left} tasks left")
        for audited in self._budgets.values():
            broken += abridged(overspent(audited.journal, audited.config), "withdrawals")
        broken += abridged(self._over_cap, "samples over the cap")
        return broken
