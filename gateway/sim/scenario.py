"""What a scenario is: a plan, the claims about its outcome, and the way to its negative control."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from gateway import config
from gateway.sim.world import Plan, Report

TICK = 0.002
"""Seconds by which a clock may be late: alarms share loop timers that are a millisecond apart."""

Claim = tuple[bool, str]
"""Whether it holds, and the sentence with its number."""


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


def world(servers: int, filters: config.Filters) -> config.Config:
    """One route to one cluster of simulated servers, which need no more of a configuration."""
    endpoints = tuple(config.Endpoint(url=f"http://server-{n}:8000") for n in range(servers))
    return config.Config(
        clusters={"llm": config.Cluster(endpoints=endpoints)},
        routes=(config.Route(cluster="llm", name="all", filters=filters),),
    )


def refiltered(plan: Plan, filters: config.Filters) -> Plan:
    """The same plan with other filters on its route."""
    routes = tuple(
        config.Route(cluster=r.cluster, name=r.name, filters=filters) for r in plan.config.routes
    )
    changed = config.Config(clusters=plan.config.clusters, routes=routes)
    return replace(plan, config=changed)
