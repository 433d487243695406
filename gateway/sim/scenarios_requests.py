"""Scenarios about single requests: deadlines, a body that kills, and when to come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filters import budget, retry
from gateway import cluster, config
from gateway.sim.crowds import Traffic
from gateway.sim.models import HEALTHY, Condition, Model
from gateway.sim.scenario import TICK, Claim, Patch, Scenario, refiltered, world
from gateway.sim.stats import failed
from gateway.sim.world import Plan

if TYPE_CHECKING:
    from gateway.sim.world import Report

# -- a slow endpoint, and clients with deadlines ---------------------------------------------------

ASKED = 0.25
"""Seconds that the clients of the slow endpoint name as their deadline."""


def _slow_claims(report: Report) -> list[Claim]:
    expired = [r for r in report.records if r.reason == "deadline"]
    latest = max(r.latency for r in report.records)
    earliest = min((r.latency for r in expired), default=0.0)
    wrong = sum(r.status != 504 for r in expired)
    after = report.arrived(10.0 + ASKED, 15.0)
    server = report.servers[0]
    return [
        (len(expired) >= 500, f"the deadline acts: {len(expired)} times"),
        (latest <= ASKED + TICK, f"nobody waits past the deadline: {latest:.4f} s"),
        (earliest >= ASKED, f"nor is anyone ended before it: {earliest:.4f} s"),
        (wrong == 0, f"answered 504: {wrong} were not"),
        (failed(after) == 0, f"full service after the recovery: {failed(after)} failures"),
        (server.wasted == 0, f"nothing is generated for nobody: {server.wasted} answers"),
        (
            server.cancelled == len(expired),
            f"each expired exchange is cancelled upstream: {server.cancelled} of {len(expired)}",
        ),
    ]


SLOW_WITH_DEADLINES = Scenario(
    "slow-with-deadlines",
    "the only server becomes 30 times slower from 5 s to 10 s; clients ask for 250 ms",
    Plan(
        world(1, config.Filters()),
        (Model(),),
        (Traffic("chat", ((15.0, 200.0),), timeout_ms=int(ASKED * 1000)),),
        ((5.0, 0, Condition(slow=30.0)), (10.0, 0, HEALTHY)),
    ),
    _slow_claims,
    refiltered(config.Filters(deadline=None)),
)

# -- a query of death ------------------------------------------------------------------------------

POISON = b'{"prompt": "the one that kills"}'


def _poison_claims(report: Report) -> list[Claim]:
    poison, chat = report.of("poison"), report.of("chat")
    crashes = sum(server.crashes for server in report.servers)
    return [
        (len(poison) >= 1, f"it comes: {len(poison)} times"),
        (crashes <= len(poison) + 1, f"replayed once in all: {crashes} crashes"),
        (failed(poison) == len(poison), "the one who sends it gets a failure"),
        (failed(chat) <= 120, f"at most 120 of the others suffer: {failed(chat)}"),
    ]


QUERY_OF_DEATH = Scenario(
    "query-of-death",
    "one body crashes whichever of four servers takes it; it comes every other second",
    Plan(
        world(4, config.Filters()),
        (Model(poison=POISON, restart=0.3),),
        (
            Traffic("chat", ((20.0, 400.0),)),
            Traffic("poison", ((20.0, 0.5),), body=POISON),
        ),
    ),
    _poison_claims,
    patches=(Patch(retry, "DEADLY", 10**9),),
)

# -- Retry-After -----------------------------------------------------------------------------------


def _retry_after_claims(report: Report) -> list[Claim]:
    brief, long = report.arrived(0, 8.0), report.arrived(8.0, 12.0)
    gaps = [r.attempts[1][1] - r.attempts[0][1] for r in report.records if len(r.attempts) > 1]
    shortest = min(gaps, default=0.0)
    told = [r for r in long if r.status == 503]
    again = sum(len(r.attempts) > 1 for r in told)
    return [
        (len(gaps) >= 2, f"there are retries: {len(gaps)}"),
        (shortest >= 1.0, f"none before the second that was asked for: {shortest:.3f} s"),
        (failed(brief) == 0, f"so none of them fails: {failed(brief)} do"),
        (len(told) >= 4, f"a Retry-After of 30 s is the client's to wait: {len(told)} told"),
        (again == 0, f"nothing is retried against it: {again} were"),
    ]


RETRY_AFTER = Scenario(
    "retry-after",
    "the only server asks for 1 s (from 2 s, for 0.8 s), later for 30 s (from 9 s, for 1 s)",
    Plan(
        world(1, config.Filters(budget=budget.Config(min_per_second=5.0))),
        (Model(),),
        (Traffic("chat", ((12.0, 20.0),)),),
        (
            (2.0, 0, Condition(status=503, retry_after=1, share=0.6)),
            (2.8, 0, HEALTHY),
            (9.0, 0, Condition(status=503, retry_after=30)),
            (10.0, 0, HEALTHY),
        ),
    ),
    _retry_after_claims,
    patches=(Patch(cluster, "retry_after", lambda headers: None),),
)


def scenarios() -> tuple[Scenario, ...]:
    return SLOW_WITH_DEADLINES, QUERY_OF_DEATH, RETRY_AFTER
