"""A whole simulated world: real wiring over simulated servers and clients, and what must hold.

Everything between the Downstream and the Upstream seam is what production runs: clock, chains,
filters, cluster, balancer, endpoints. All randomness comes from the seed. After every run the
invariants are checked that no scenario may break, whatever it is about.
"""

import asyncio
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any, Literal, cast

from filters import budget
from filters.api import Exchange, Outcome, Reason, Service
from gateway import config
from gateway.balancer import balancer
from gateway.body import ReplayStore
from gateway.clock import LoopClock
from gateway.cluster import Cluster
from gateway.sim.clients import Crowd, Record, Traffic
from gateway.sim.loop import Deadlock, VirtualLoop, run
from gateway.sim.servers import Condition, Model, ModelServer
from gateway.sim.upstreams import simulated_endpoint
from gateway.wiring import Seams, Wiring

if TYPE_CHECKING:
    from gateway.endpoint import Endpoint
    from gateway.telemetry import Telemetry

DRAIN = 7200.0
"""Virtual seconds after the last arrival in which everything must have ended: above every clock."""
SHOWN = 5
"""Broken rules of one kind that a report spells out."""


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


class AuditedBudget(budget.Budget):
    """A budget that keeps a journal: (second, kind), in order, for the audit."""

    __slots__ = ("journal",)

    def __init__(self, settings: budget.Config) -> None:
        super().__init__(settings)
        self.journal: list[tuple[int, str]] = []

    def deposit(self, now: float, n: int = 1) -> None:
        super().deposit(now, n)
        self.journal += [(int(now), "request")] * n

    def withdraw(self, now: float, kind: Literal["retry", "hedge"]) -> bool:
        granted = super().withdraw(now, kind)
        if granted:
            self.journal.append((int(now), kind))
        return granted


def overspent(journal: list[tuple[int, str]], settings: budget.Config) -> list[str]:
    """Withdrawals that the rule of ``filters/budget.py`` forbids, by counting from scratch."""
    broken = []
    requests: dict[int, int] = {}
    spent: dict[int, int] = {}
    for second, kind in journal:
        counts = requests if kind == "request" else spent
        counts[second] = counts.get(second, 0) + 1
        if kind == "request":
            continue
        window = range(second - budget.WINDOW + 1, second + 1)
        earned = settings.ratio * sum(requests.get(each, 0) for each in window)
        allowed = earned + settings.min_per_second * budget.WINDOW
        taken = sum(spent.get(each, 0) for each in window)
        if taken > allowed + 1e-6:
            broken.append(f"budget overspent in second {second}: {taken} of {allowed:.1f}")
    return broken


@dataclass(frozen=True, slots=True)
class Report:
    """What came out. ``broken`` are invariants; ``digest`` is the same for the same run."""

    records: tuple[Record, ...]
    servers: tuple[ModelServer, ...]
    broken: tuple[str, ...]
    digest: str

    def of(self, traffic: str) -> list[Record]:
        return [each for each in self.records if each.traffic == traffic]

    def arrived(self, since: float, until: float) -> list[Record]:
        """Those that arrived in these seconds of the run."""
        return [each for each in self.records if since <= each.arrived < until]


def simulate(plan: Plan, seed: int) -> Report:
    """Run ``plan`` to its end. Never raises for what the simulated code does wrong: a deadlock or
    an exception that nobody caught is a broken invariant. About 0.1 ms per exchange."""
    loop = VirtualLoop(limit=plan.seconds + DRAIN)
    world = _World(plan, seed, loop)
    try:
        run(world.drive(), loop)
    except Deadlock as deadlock:
        world.unexpected.append(str(deadlock))
    return world.report()


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
        self._tasks_left = 0
        self.unexpected: list[str] = []
        loop.set_exception_handler(self._uncaught)

    async def drive(self) -> None:
        """From the first arrival until nothing is under way any more."""
        loop, plan = self._loop, self._plan
        wiring = self._wire()
        for at, number, condition in plan.events:
            loop.call_later(at, self._servers[number].become, condition)
        for number, traffic in enumerate(plan.traffic):
            rng = Random(f"{self._seed}/traffic/{number}")
            self._crowds.append(Crowd(traffic, wiring.route, self._store, loop, rng))
        await asyncio.sleep(max([plan.seconds, *(at for at, _, _ in plan.events)]))
        while not self._quiet():  # noqa: ASYNC110  Looking costs nothing in virtual time.
            await asyncio.sleep(0.1)
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
            self._budgets[name] = first.budgets[name] = AuditedBudget(each.config)
        return Wiring(plan.config, clusters, seams, first)

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
        digest = blake2b(repr((records, told)).encode(), digest_size=8).hexdigest()
        return Report(tuple(records), servers, tuple(self._broken(records)), digest)

    def _broken(self, records: list[Record]) -> list[str]:
        broken = list(self.unexpected)
        faults = [f"{r.traffic} at {r.arrived:.3f} s: {f}" for r in records for f in r.faults]
        internal = [r for r in records if r.reason == Reason.INTERNAL.value]
        faults += [f"{r.traffic} at {r.arrived:.3f} s: an exception inside" for r in internal]
        broken += faults[:SHOWN] + ([f"{len(faults)} faults in all"] if len(faults) > SHOWN else [])
        for crowd in self._crowds:
            if crowd.open:
                broken.append(f"{crowd.open} exchanges without an end")
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
            broken += overspent(audited.journal, audited.config)[:SHOWN]
        return broken
