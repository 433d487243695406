"""What a scenario is: a plan, the claims about its outcome, and the way to its negative control."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from gateway import config
from gateway.sim.world import Plan, Report

TICK = 0.002
"""Seconds by which a clock may be late: alarms share loop timers that are a millisecond apart."""
SLOTS = 8
MEAN = 0.020
CAPACITY = SLOTS / MEAN
"""Answers per second of one server, unless a scenario says otherwise."""
USEFUL = 10 * MEAN
"""Seconds in which an answer is worth having."""
BEFORE = 10.0
"""Seconds of half the capacity before an event."""
AFTER = 20.0
"""Seconds after it."""

ROUND_ROBIN = config.Balance(policy="round_robin")
"""The balancer that hides no fault from the mechanism that a scenario is about."""

Claim = tuple[bool, str]
"""Whether it holds, and the sentence with its number."""


def note(said: str) -> Claim:
    """A figure worth seeing, of which nothing is demanded."""
    return True, said


@dataclass(frozen=True, slots=True)
class Patch:
    """A mechanism without a switch in the configuration, taken away by replacing a name."""

    module: object
    name: str
    value: object


@dataclass(frozen=True, slots=True)
class Scenario:
    """``without`` changes the plan, ``patches`` the code, so that the mechanism is off."""

    name: str
    about: str
    plan: Plan
    claims: Callable[[Report], list[Claim]]
    without: Callable[[Plan], Plan] = lambda plan: plan
    patches: tuple[Patch, ...] = ()

    def broken(self, report: Report) -> list[str]:
        """Invariants and claims that do not hold, as sentences."""
        return [*report.broken, *(said for holds, said in self.claims(report) if not holds)]

    @contextmanager
    def mechanism_off(self) -> Iterator[Plan]:
        """The plan of the negative control, with the patches in force."""
        before = [(each, getattr(each.module, each.name)) for each in self.patches]
        try:
            for each in self.patches:
                setattr(each.module, each.name, each.value)
            yield self.without(self.plan)
        finally:
            for each, value in before:
                setattr(each.module, each.name, value)


def world(
    servers: int, filters: config.Filters, balance: config.Balance | None = None
) -> config.Config:
    """One route to one cluster of simulated servers, which need no more of a configuration."""
    endpoints = tuple(config.Endpoint(url=f"http://server-{n}:8000") for n in range(servers))
    return config.Config(
        clusters={"llm": config.Cluster(endpoints=endpoints, balance=balance or config.Balance())},
        routes=(config.Route(cluster="llm", name="all", filters=filters),),
    )


def around(seconds: float, rate: float, servers: int = 1) -> tuple[tuple[float, float], ...]:
    """Phases of an event that lasts ``seconds``: half of the capacity before and after it."""
    half = CAPACITY * servers / 2
    return (BEFORE, half), (seconds, rate), (AFTER, half)


def refiltered(filters: config.Filters) -> Callable[[Plan], Plan]:
    """``without``: the same plan with other filters on its route."""

    def other(plan: Plan) -> Plan:
        before = plan.config
        routes = tuple(
            config.Route(cluster=r.cluster, name=r.name, filters=filters) for r in before.routes
        )
        return replace(plan, config=config.Config(clusters=before.clusters, routes=routes))

    return other


def blind(plan: Plan) -> Plan:
    """``without``: neither outlier ejection nor a balancer that looks at its endpoints, which is
    half of the mechanism wherever an endpoint is worse than the others."""
    before = plan.config
    clusters = {
        name: config.Cluster(endpoints=each.endpoints, balance=ROUND_ROBIN, outlier=None)
        for name, each in before.clusters.items()
    }
    return replace(plan, config=config.Config(clusters=clusters, routes=before.routes))


def vanishing(plan: Plan) -> Plan:
    """``without``: the gateway cannot notice that clients leave."""
    return replace(plan, traffic=tuple(replace(each, vanishes=True) for each in plan.traffic))


def first_out(report: Report, server: int, since: float, until: float) -> float:
    """Seconds from ``since`` until ``server`` is seen not to be healthy; infinite if it is not."""
    out = [s.at for s in report.sampled(since, until) if s.states[server] != "healthy"]
    return out[0] - since if out else math.inf


def last_out(report: Report, server: int, since: float) -> float:
    """Seconds from ``since`` until ``server`` is healthy for good."""
    out = [s.at for s in report.samples if s.at >= since and s.states[server] != "healthy"]
    return out[-1] - since if out else 0.0
