"""Configuration -> running objects. THE place where the order of the filters is written.

A ``Wiring`` is one configuration in force. Exchanges hold on to the route they began with, so a
reload is the exchange of one reference; clusters and endpoints that stay are handed over.
"""

import asyncio
from dataclasses import dataclass
from random import Random

from filters import budget, deadline, retry
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
from gateway.cluster import Cluster
from gateway.config import Config, Filters, Route
from gateway.proxy import Forward
from gateway.replies import replies
from gateway.router import BoundRoute, Router
from gateway.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Seams:
    """Where nondeterminism comes in, real or simulated; and who watches."""

    clock: Clock
    rng: Random
    loop: asyncio.AbstractEventLoop
    telemetry: Telemetry


class Wiring:
    """One configuration in force: routes bound to their chains. ``retries`` is for the metrics."""

    def __init__(
        self, config: Config, clusters: dict[str, Cluster], seams: Seams, previous: "Wiring | None"
    ) -> None:
        self.config = config
        self.clusters = clusters
        self.retries: dict[str, retry.Retry] = {}
        self.budgets: dict[str, budget.Budget] = {}
        self._seams = seams
        self._previous = previous
        routes = [(route, self._bind(route, n)) for n, route in enumerate(config.routes)]
        self._previous = None
        self.router: Router[BoundRoute] = Router(routes)
        self.routes = [bound for _, bound in routes]
        self._unrouted = self._bind_unrouted()

    def route(self, request: Request) -> BoundRoute:
        return self.router.match(request) or self._unrouted

    def _bind(self, route: Route, number: int) -> BoundRoute:
        name = route.name or f"{number}:{route.path}"
        filters = route.filters
        policy = self._policy(name, filters.retry or retry.Config(attempts=1))
        clocks = filters.deadline or deadline.Config()
        bound = BoundRoute(
            name, route.cluster, (clocks.first_byte, clocks.stall), policy.replayable, route
        )
        bound.debug = self.config.telemetry.debug_headers
        attempts = self._attempt_chain(name, filters, policy, self.clusters[route.cluster].attempt)
        bound.service = chain(self._exchange_chain(filters), Forward(attempts))
        return bound

    def _exchange_chain(self, filters: Filters) -> list[ExchangeFilter]:
        """Outside in, and why there."""
        order: list[ExchangeFilter] = [
            self._seams.telemetry,  # counts refusals too
            replies,  # turns a Reject of anything below into a response
        ]
        if filters.deadline is not None:  # the cheapest question first
            order.append(deadline.Deadline(filters.deadline, self._seams.clock))
        return order

    def _attempt_chain(
        self,
        name: str,
        filters: Filters,
        policy: retry.Policy,
        service: Service[Attempt, Outcome],
    ) -> Service[Attempt, Outcome]:
        """Retry sees the final outcome of what is below it; below is the balancer's choice, so
        that another attempt goes elsewhere; then the attempt's own clocks, in the upstream."""
        if self.config.telemetry.tracing is not None:  # innermost: a span for each attempt
            service = chain([self._seams.telemetry.attempt], service)
        if filters.retry is None:
            return service
        kept = self._previous.budgets.get(name) if self._previous is not None else None
        spend = kept if kept is not None and kept.config == filters.budget else None
        spend = spend or budget.Budget(filters.budget)
        self.budgets[name] = spend
        again = retry.Retry(policy, spend, self._seams.clock, self._seams.rng)
        if self._previous is not None and name in self._previous.retries:
            again.count_on(self._previous.retries[name])
        self.retries[name] = again
        order: list[AttemptFilter] = [again]
        return chain(order, service)

    def _policy(self, name: str, config: retry.Config) -> retry.Policy:
        """That of before, with the bodies it suspects, if its configuration is the same."""
        before = self._previous.retries.get(name) if self._previous is not None else None
        if before is not None and before.policy.config == config:
            return before.policy
        return retry.Policy(config)

    def _bind_unrouted(self) -> BoundRoute:
        never = retry.Policy(retry.Config(attempts=1, idempotent="never"))
        bound = BoundRoute("-", "-", (1.0, 1.0), never.replayable)
        bound.service = chain([self._seams.telemetry, replies], _no_route)
        return bound


async def _no_route(exchange: Exchange) -> Outcome:
    raise Reject(Reason.NO_ROUTE)
