"""Named scenarios: what happens, what must hold, and how to take away the mechanism it is about.

Each scenario states its numbers in its own ``claims``, nowhere else. ``without`` is the same
world with the mechanism off; there at least one claim must break, or the scenario shows nothing.
Unless a scenario says otherwise: 8 slots per server, service times lognormal with mean 20 ms and
sigma 0.5, three servers at half of their capacity, clients that leave after 5 s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from filters import budget, deadline, retry
from gateway import cluster, config
from gateway.sim.clients import Traffic
from gateway.sim.scenario import TICK, Claim, Patch, Scenario, refiltered, world
from gateway.sim.servers import DEAD, HEALTHY, Condition, Model
from gateway.sim.stats import attempts_per_request, quantile
from gateway.sim.world import Plan

if TYPE_CHECKING:
    from gateway.sim.clients import Record
    from gateway.sim.world import Report


def _without_retry(plan: Plan) -> Plan:
    return refiltered(plan, config.Filters(retry=None))


def _failed(records: list[Record]) -> int:
    return sum(not record.ok for record in records)


HALF = 600.0
"""Arrivals per second that are half of what three servers can do."""

# -- one endpoint dies, and comes back -------------------------------------------------------------


def _dead_claims(report: Report) -> list[Claim]:
    failed, extra = _failed(list(report.records)), attempts_per_request(report.records)
    slow = quantile([each.latency for each in report.records], 0.99)
    tried = [r for r in report.records if any("server-1" in name for name, _ in r.attempts)]
    back = sum(r.arrived >= 12 for r in tried)
    return [
        (failed == 0, f"no caller sees a failure: {failed} did"),
        (extra <= 1.05, f"at most 1.05 attempts per request: {extra:.3f}"),
        (slow <= 0.15, f"p99 at most 150 ms: {slow * 1000:.0f} ms"),
        (back >= 300, f"the server is used again once it is back: {back} requests in 3 s"),
    ]


DEAD_ENDPOINT = Scenario(
    "dead-endpoint",
    "one of three servers is killed at 3 s and comes back at 6 s",
    Plan(
        world(3, config.Filters()),
        (Model(),),
        (Traffic("chat", ((15.0, HALF),)),),
        ((3.0, 1, DEAD), (6.0, 1, HEALTHY)),
    ),
    _dead_claims,
    _without_retry,
)

# -- one endpoint flaps ----------------------------------------------------------------------------


def _flapping_claims(report: Report) -> list[Claim]:
    failed, extra = _failed(list(report.records)), attempts_per_request(report.records)
    return [
        (failed == 0, f"no caller sees a failure: {failed} did"),
        (extra <= 1.11, f"at most 1.11 attempts per request: {extra:.3f}"),
    ]


def _flaps(
    server: int, since: float, until: float, period: float
) -> Iterator[tuple[float, int, Condition]]:
    """Down for the first half of each period, up for the second."""
    at = since
    while at < until:
        yield at, server, DEAD
        yield at + period / 2, server, HEALTHY
        at += period


FLAPPING_ENDPOINT = Scenario(
    "flapping-endpoint",
    "one of three servers is down for one second of every two, from 2 s to 12 s",
    Plan(
        world(3, config.Filters()),
        (Model(),),
        (Traffic("chat", ((13.0, HALF),)),),
        tuple(_flaps(1, 2.0, 12.0, 2.0)),
    ),
    _flapping_claims,
    _without_retry,
)

# -- every endpoint fails --------------------------------------------------------------------------


def _failing_claims(report: Report) -> list[Claim]:
    during, after = report.arrived(5.0, 20.0), report.arrived(20.0 + TICK, 25.0)
    extra = attempts_per_request(during)
    failed = _failed(after)
    told = sum(r.status == 503 for r in during if not r.ok) / max(1, _failed(during))
    return [
        (extra <= 1.2, f"at most 1.2 attempts upstream per request in the outage: {extra:.3f}"),
        (failed == 0, f"full service at once after the recovery: {failed} failures"),
        (told == 1, f"every failure is the servers' own 503: {told:.3f} are"),
    ]


EVERY_ENDPOINT_FAILING = Scenario(
    "every-endpoint-failing",
    "all three servers answer 503 within a millisecond from 5 s to 20 s",
    Plan(
        world(3, config.Filters()),
        (Model(),),
        (Traffic("chat", ((25.0, 300.0),)),),
        (
            *((5.0, n, Condition(status=503)) for n in range(3)),
            *((20.0, n, HEALTHY) for n in range(3)),
        ),
    ),
    _failing_claims,
    lambda plan: refiltered(
        plan, config.Filters(budget=budget.Config(ratio=1.0, min_per_second=1000.0))
    ),
)

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
        (_failed(after) == 0, f"full service after the recovery: {_failed(after)} failures"),
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
    lambda plan: refiltered(plan, config.Filters(deadline=None)),
)

# -- a query of death ------------------------------------------------------------------------------

POISON = b'{"prompt": "the one that kills"}'


def _poison_claims(report: Report) -> list[Claim]:
    poison, chat = report.of("poison"), report.of("chat")
    crashes = sum(server.crashes for server in report.servers)
    return [
        (len(poison) >= 1, f"it comes: {len(poison)} times"),
        (crashes <= len(poison) + 1, f"replayed once in all: {crashes} crashes"),
        (_failed(poison) == len(poison), "the one who sends it gets a failure"),
        (_failed(chat) <= 120, f"at most 120 of the others suffer: {_failed(chat)}"),
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
        (_failed(brief) == 0, f"so none of them fails: {_failed(brief)} do"),
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

# -- clients that leave ----------------------------------------------------------------------------


def _leaving_claims(report: Report) -> list[Claim]:
    hasty, steady = report.of("hasty"), report.of("steady")
    left = sum(r.end == "left" for r in hasty)
    delivered = sum(r.ok for r in report.records)
    served = sum(server.served for server in report.servers)
    cancelled = sum(server.cancelled for server in report.servers)
    slow = quantile([r.latency for r in steady], 0.99)
    return [
        (left >= 1700, f"enough of them leave: {left}"),
        (served == delivered, f"no answer is made for nobody: {served} made, {delivered} taken"),
        (cancelled == left, f"each is cancelled upstream: {cancelled} of {left}"),
        (_failed(steady) == 0, f"the others lose nothing: {_failed(steady)} failures"),
        (slow <= 0.3, f"and wait at most 300 ms at p99: {slow * 1000:.0f} ms"),
    ]


def _vanishing(plan: Plan) -> Plan:
    return replace(plan, traffic=tuple(replace(each, vanishes=True) for each in plan.traffic))


CLIENTS_LEAVE = Scenario(
    "clients-leave",
    "streams of 10 tokens at 110 % of capacity, most clients leaving within 100 ms of asking",
    Plan(
        world(2, config.Filters()),
        (Model(tokens=10, pace=0.005, head_first=True),),
        (
            Traffic("hasty", ((15.0, 200.0),), patience=(0.0, 0.1)),
            Traffic("steady", ((15.0, 70.0),)),
        ),
    ),
    _leaving_claims,
    _vanishing,
)

# -- a stall in mid-stream -------------------------------------------------------------------------

STALL = 1.0
"""Seconds of silence that the route allows within an answer."""


def _stall_claims(report: Report) -> list[Claim]:
    ended = [r for r in report.records if r.end == "aborted"]
    wrong = sum(r.reason != "stall" for r in ended)
    silent = [r.latency - r.first_byte for r in ended] or [0.0]
    shortest, longest = min(silent), max(silent)
    others = [r for r in report.records if not r.ok and r.end != "aborted"]
    again = sum(len(r.attempts) > 1 for r in ended)
    after = report.arrived(10.0, 15.0)
    return [
        (len(ended) >= 2, f"the stalled streams are broken off visibly: {len(ended)}"),
        (wrong == 0, f"with the reason: {wrong} without"),
        (shortest >= STALL, f"not before their clock has run out: {shortest:.3f} s"),
        (longest <= STALL + 0.1 + TICK, f"nor, their tokens apart, after it: {longest:.3f} s"),
        (again == 0, f"never tried again after the head: {again} were"),
        (not others, f"all others finish: {len(others)} do not"),
        (_failed(after) == 0, f"full service after the recovery: {_failed(after)} failures"),
    ]


STALL_IN_MID_STREAM = Scenario(
    "stall-in-mid-stream",
    "the streams of one of two servers stop after 3 of 20 tokens from 5 s to 8 s",
    Plan(
        world(2, config.Filters(deadline=deadline.Config(stall=STALL))),
        (Model(tokens=20, pace=0.005),),
        (Traffic("chat", ((15.0, 40.0),), patience=(60.0, 60.0)),),
        ((5.0, 1, Condition(stalls_after=3)), (8.0, 1, HEALTHY)),
    ),
    _stall_claims,
    lambda plan: refiltered(plan, config.Filters()),
)

SCENARIOS = {
    each.name: each
    for each in (
        DEAD_ENDPOINT,
        FLAPPING_ENDPOINT,
        EVERY_ENDPOINT_FAILING,
        SLOW_WITH_DEADLINES,
        QUERY_OF_DEATH,
        RETRY_AFTER,
        CLIENTS_LEAVE,
        STALL_IN_MID_STREAM,
    )
}
