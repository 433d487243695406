"""Configuration -> running objects. THE place where the order of the filters is written.

A ``Wiring`` is one configuration in force. Exchanges hold on to the route they began with, so a
reload is the exchange of one reference; clusters and endpoints that stay are handed over, and what
filters have counted and learned goes on in those that replace them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from filters import budget, deadline, hedge, retry
from filters.admission import Admission, Check, Gate
from filters.api import (
    Attempt,
    AttemptFilter,
    Clock,
    Exchange,
    ExchangeFilter,
    Outcome,
    Reason,
    Reject,
    Request,
    Service,
    chain,
)
from filters.load_shed import LoadShed
from filters.priority import Priorities
from filters.rate_limit import RateLimit
from filters.tenants import header_of
from gateway.proxy import Forward
from gateway.replies import replies
from gateway.router import BoundRoute, Router, names

if TYPE_CHECKING:
    from gateway.batch_wiring import BatchLine
    from gateway.cluster import Cluster
    from gateway.config import Config, Filters, Route
    from gateway.config_batching import Batching
    from gateway.telemetry import Telemetry
    from gateway.vitals import Vitals


@dataclass(frozen=True, slots=True)
class Seams:
    """Where nondeterminism comes in, real or simulated; and who watches. ``vitals`` None: the
    gateway's own health is not looked at."""

    clock: Clock
    rng: Random
    loop: asyncio.AbstractEventLoop
    telemetry: Telemetry
    vitals: Vitals | None = None


@dataclass(slots=True)
class RouteFilters:
    """The filters of one route that keep counts or learn, for metrics, admin and reload. None:
    off. ``gate`` and ``budget`` outlive a reload, and ``batches`` one that leaves its configuration
    as it is; all others take over from those of before."""

    cluster: str
    deadline: deadline.Deadline | None = None
    priority: Priorities | None = None
    rate_limit: RateLimit | None = None
    load_shed: LoadShed | None = None
    gate: Gate | None = None
    retry: retry.Retry | None = None
    hedge: hedge.Hedge | None = None
    budget: budget.Budget | None = None
    batches: BatchLine | None = None


class Wiring:
    """One configuration in force: routes bound to their chains. ``filters``, and what is derived
    from them, are by the name of the route."""

    def __init__(
        self, config: Config, clusters: dict[str, Cluster], seams: Seams, previous: Wiring | None
    ) -> None:
        self.config = config
        self.clusters = clusters
        self.filters: dict[str, RouteFilters] = {}
        self._seams = seams
        self._previous = previous
        self._pending: list[Callable[[], None]] = []
        self._made: list[BatchLine] = []
        self.retired: list[BatchLine] = []
        named = zip(config.routes, names(config.routes), strict=True)
        try:
            routes = [(route, self._bind(route, name)) for route, name in named]
        except BaseException:
            self.abandon()
            raise
        self._retire_batches(previous)
        self._previous = None
        self.router: Router[BoundRoute] = Router(routes)
        self.routes = [bound for _, bound in routes]
        self._unrouted = self._bind_unrouted()

    def activate(self) -> None:
        """Put in force what is shared with the wiring of before. Called with the swap, because
        until then the reload may still fail."""
        for apply in self._pending:
            apply()
        self._pending.clear()

    def abandon(self) -> None:
        """It is not to be in force: give back what was made for it."""
        for line in self._made:
            line.batching.retire()

    async def close(self) -> None:
        """Give up the batches that are under way, and give back what they were made with."""
        lines = [each.batches for each in self.filters.values() if each.batches is not None]
        for line in (*lines, *self.retired):
            await line.batching.close()

    @property
    def retries(self) -> dict[str, retry.Retry]:
        return {name: each.retry for name, each in self.filters.items() if each.retry is not None}

    @property
    def budgets(self) -> dict[str, budget.Budget]:
        return {name: each.budget for name, each in self.filters.items() if each.budget is not None}

    @property
    def admissions(self) -> dict[str, Gate]:
        return {name: each.gate for name, each in self.filters.items() if each.gate is not None}

    def route(self, request: Request) -> BoundRoute:
        return self.router.match(request) or self._unrouted

    def _bind(self, route: Route, name: str) -> BoundRoute:
        filters = route.filters
        before = self._previous.filters.get(name) if self._previous is not None else None
        cluster = route.cluster or ""
        if before is None or before.cluster != cluster:
            before = RouteFilters(cluster)  # nothing to go on from
        parts = self.filters[name] = RouteFilters(cluster)
        policy = _policy(filters.retry or retry.Config(attempts=1), before)
        clocks = filters.deadline or deadline.Config()
        bound = BoundRoute(
            name, cluster, (clocks.first_byte, clocks.stall), policy.replayable, route
        )
        bound.debug = self.config.telemetry.debug_headers
        if route.batching is not None:
            line = parts.batches = self._batches(route.batching, before)
            fair_by = None if filters.admission is None else header_of(filters.admission.fair_by)
            self._use(line, partial(line.serve, bound, fair_by))
        if not cluster:  # the model lives in this process
            order = self._exchange_chain(filters, parts, before)
            bound.service = chain(order, _only_batches)
            return bound
        self._make_gate(filters, parts, before)
        once = self._one_attempt(parts)
        attempts = self._attempt_chain(filters, policy, parts, before, once)
        order = self._exchange_chain(filters, parts, before)
        if parts.batches is not None:
            upstream = self.clusters[cluster]
            headers = {n: secret.value for n, secret in route.request_headers.set.items()}
            use = partial(
                parts.batches.use, bound, attempts, once, lambda: upstream.endpoints, headers
            )
            self._use(parts.batches, use)
        bound.service = chain(order, Forward(attempts))
        return bound

    def _batches(self, config: Batching, before: RouteFilters) -> BatchLine:
        """Those of before, with their buffers and all who wait, if nothing about them changes."""
        kept = before.batches
        if kept is not None and kept.config == config and not kept.failed:
            return kept
        from gateway.batch_wiring import BatchLine  # most gateways never batch

        seams, sole = self._seams, not before.cluster
        made = BatchLine(config, seams.clock, seams.rng, seams.telemetry, sole=sole)
        self._made.append(made)
        return made

    def _use(self, line: BatchLine, use: Callable[[], None]) -> None:
        """At once where nobody is in it yet."""
        if line in self._made:
            use()
        else:
            self._pending.append(use)

    def _retire_batches(self, previous: Wiring | None) -> None:
        """Those of before that are not taken over end with the exchanges that are in them."""
        if previous is None:
            return
        kept = [each.batches for each in self.filters.values()]
        for each in previous.filters.values():
            if each.batches is not None and each.batches not in kept:
                self._pending.append(each.batches.batching.retire)
                self.retired.append(each.batches)
        self.retired += [line for line in previous.retired if not line.batching.closed]

    def _exchange_chain(
        self, filters: Filters, parts: RouteFilters, before: RouteFilters
    ) -> list[ExchangeFilter]:
        """Outside in, and why there."""
        seams = self._seams
        order: list[ExchangeFilter] = [
            seams.telemetry,  # counts refusals too
            replies,  # turns a Reject of anything below into a response
        ]
        if filters.deadline is not None:  # the cheapest question first
            parts.deadline = deadline.Deadline(filters.deadline, seams.clock)
            if before.deadline is not None:
                parts.deadline.take_over(before.deadline)
            order.append(parts.deadline)
        checks = self._arrival_checks(filters, parts, before)
        if parts.batches is not None:  # what is joined has its place in the plan for a permit
            order += [_Arrivals(seams.clock, checks), parts.batches.batching]
            checks = []
        if parts.gate is not None:  # innermost: a permit stands only for work really sent on
            saturated = self.clusters[parts.cluster].saturated
            order.append(Admission(parts.gate, seams.clock, checks, saturated=saturated))
        elif checks:
            order.append(_Arrivals(seams.clock, checks))
        return order

    def _arrival_checks(
        self, filters: Filters, parts: RouteFilters, before: RouteFilters
    ) -> list[Check]:
        """What is asked before a place in the queue is taken, in this order."""
        checks: list[Check] = []
        if filters.priority is not None:  # the next ones need the class
            parts.priority = Priorities(filters.priority)
            if before.priority is not None:
                parts.priority.take_over(before.priority)
            checks.append(parts.priority.arrive)
        if filters.rate_limit is not None:  # what is over a quota is no reason to shed others
            parts.rate_limit = RateLimit(filters.rate_limit)
            if before.rate_limit is not None:
                parts.rate_limit.take_over(before.rate_limit)
            checks.append(parts.rate_limit.arrive)
        if filters.load_shed is not None or parts.gate is not None:
            vitals, gate, strain = self._seams.vitals, parts.gate, None
            if vitals is not None and filters.load_shed is not None:
                strain = vitals.strain(filters.load_shed)
            parts.load_shed = LoadShed(
                filters.load_shed,
                None if gate is None else gate.shedder,
                strain,
                None if filters.admission is None else header_of(filters.admission.fair_by),
                self._seams.rng,
            )
            if before.load_shed is not None:
                parts.load_shed.take_over(before.load_shed)
            checks.append(parts.load_shed.arrive)
        return checks

    def _make_gate(self, filters: Filters, parts: RouteFilters, before: RouteFilters) -> None:
        config = filters.admission
        if config is None:
            return
        sheds = filters.load_shed is not None and not filters.load_shed.dry_run
        gate = before.gate
        if gate is None:
            gate = Gate(config, self._seams.clock, self._seams.rng)
            gate.sheds = sheds
        else:
            self._pending.append(partial(gate.use, config, sheds))
        parts.gate = gate

    def _one_attempt(self, parts: RouteFilters) -> Service[Attempt, Outcome]:
        """The innermost: one attempt at one endpoint, and who watches each of them."""
        order: list[AttemptFilter] = []
        if self.config.telemetry.tracing is not None:  # a span for each attempt
            order.append(self._seams.telemetry.attempt)
        if parts.batches is not None:
            order.append(parts.batches.deaths)
        return chain(order, self.clusters[parts.cluster].attempt)

    def _attempt_chain(
        self,
        filters: Filters,
        policy: retry.Policy,
        parts: RouteFilters,
        before: RouteFilters,
        service: Service[Attempt, Outcome],
    ) -> Service[Attempt, Outcome]:
        """Retry sees the final outcome of a hedged group; both draw on the one budget; below is
        the balancer's choice, so that another attempt goes elsewhere; then what each endpoint is
        held responsible for; then the attempt's own clocks, in the upstream."""
        seams = self._seams
        cluster = self.clusters[parts.cluster]
        order: list[AttemptFilter] = []
        if filters.retry is None and filters.hedge is None:
            return service
        kept = before.budget
        if kept is None or kept.config != filters.budget:
            kept = budget.Budget(filters.budget)
        spend = parts.budget = kept
        if filters.retry is not None:
            parts.retry = retry.Retry(
                policy, spend, seams.clock, seams.rng, retry_at=cluster.retry_at
            )
            if before.retry is not None:
                parts.retry.take_over(before.retry)
            order.append(parts.retry)
        else:
            order.append(_Deposits(spend, seams.clock))
        if filters.hedge is not None:
            parts.hedge = hedge.Hedge(
                hedge.Policy(filters.hedge),
                spend,
                seams.clock,
                seams.loop.create_task,
                _calm(cluster, parts.gate),
                cluster.has_other,
            )
            if before.hedge is not None:
                parts.hedge.take_over(before.hedge)
            order.append(parts.hedge)
        return chain(order, service)

    def _bind_unrouted(self) -> BoundRoute:
        never = retry.Policy(retry.Config(attempts=1, idempotent="never"))
        bound = BoundRoute("-", "-", (1.0, 1.0), never.replayable)
        bound.service = chain([self._seams.telemetry, replies], _no_route)
        return bound


def _policy(config: retry.Config, before: RouteFilters) -> retry.Policy:
    """That of before, with the bodies it suspects, if its configuration is the same."""
    if before.retry is not None and before.retry.policy.config == config:
        return before.retry.policy
    return retry.Policy(config)


def _calm(cluster: Cluster, gate: Gate | None) -> Callable[[float], bool]:
    """Whether an extra attempt takes nothing from anybody: no endpoint pushes back, nobody waits,
    and there is room."""
    if gate is None:
        return cluster.calm

    def calm(now: float) -> bool:
        room = not gate.queue and gate.in_flight < gate.limit.level
        return (room or gate.config.dry_run) and cluster.calm(now)

    return calm


class _Arrivals:
    """The arrival checks of a route without admission."""

    __slots__ = ("_checks", "_clock")

    def __init__(self, clock: Clock, checks: list[Check]) -> None:
        self._clock = clock
        self._checks = tuple(checks)

    async def __call__(self, exchange: Exchange, next: Service[Exchange, Outcome]) -> Outcome:  # noqa: A002
        now = self._clock.now()
        for check in self._checks:
            check(exchange, now)
        return await next(exchange)


class _Deposits:
    """In the place of retry, where that is off: somebody has to count the requests."""

    __slots__ = ("_budget", "_clock")

    def __init__(self, spend: budget.Budget, clock: Clock) -> None:
        self._budget = spend
        self._clock = clock

    async def __call__(self, attempt: Attempt, next: Service[Attempt, Outcome]) -> Outcome:  # noqa: A002
        self._budget.deposit(self._clock.now())
        return await next(attempt)


async def _only_batches(exchange: Exchange) -> Outcome:
    """Of a route without a cluster: there is nowhere else to go."""
    raise Reject(Reason.NOT_IMPLEMENTED, "this route serves nothing but what can be batched")


async def _no_route(exchange: Exchange) -> Outcome:
    raise Reject(Reason.NO_ROUTE)
