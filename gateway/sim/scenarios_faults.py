"""Scenarios of endpoints that are slow, fail, die or flap while the others are well."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from filters import budget, hedge
from gateway import config
from gateway.sim.crowds import Traffic
from gateway.sim.models import DEAD, HEALTHY, Condition, Model
from gateway.sim.scenario import (
    AFTER,
    BEFORE,
    CAPACITY,
    MEAN,
    ROUND_ROBIN,
    TICK,
    Claim,
    Scenario,
    around,
    blind,
    first_out,
    last_out,
    note,
    refiltered,
    world,
)
from gateway.sim.stats import attempts_per_request, failed, failures, quantile
from gateway.sim.world import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.sim.world import Report

Event = tuple[float, int, Condition]
FAILING = Condition(status=503)
"""503 without Retry-After, within a millisecond: failure, not push-back."""
HALF = Condition(status=503, share=0.5, after=MEAN)
WITHOUT_RETRY = refiltered(config.Filters(retry=None))

# -- row 7 -----------------------------------------------------------------------------------------

SLOW = 20.0
"""Seconds for which it is slow."""


def _slow(
    suffix: str, hedged: bool, rest: float, balance: config.Balance | None = None
) -> Scenario:
    """One of four endpoints is 10 times slower for a while; ``rest`` seconds before and after."""
    end = rest + SLOW
    times = 1.5 if hedged else 3.0
    how = "with hedging" if hedged else "without hedging"
    filters = config.Filters(hedge=hedge.Config(after=0.95) if hedged else None)

    def claims(report: Report) -> list[Claim]:
        healthy = quantile([r.latency for r in report.arrived(0, rest)], 0.99)
        whole = quantile([r.latency for r in report.records], 0.99)
        extra = attempts_per_request(report.records) - 1
        out = first_out(report, 1, rest, end)
        back = last_out(report, 1, end)
        lost = failed(report.records)
        others = {n for s in report.samples for n in (0, 2, 3) if s.states[n] != "healthy"}
        base = f"the healthy {healthy * 1000:.1f} ms"
        return [
            (whole <= times * healthy, f"p99 within {times} times {base}: {whole / healthy:.2f}"),
            (extra <= 0.06, f"extra load within 6 %: {extra:.2%}"),
            (out <= 5, f"ejected within 5 s: after {out:.1f} s"),
            (back <= 15, f"back within 15 s of its recovery: after {back:.1f} s"),
            note(f"others that were ejected: {sorted(others)}; callers that failed: {lost}"),
        ]

    return Scenario(
        f"slow-endpoint{suffix}",
        f"row 7: one of four endpoints is 10 times slower for 20 s, {how}",
        Plan(
            world(4, filters, balance),
            (Model(),),
            (Traffic("chat", ((end + rest, 2 * CAPACITY),)),),
            ((rest, 1, Condition(slow=10.0)), (end, 1, HEALTHY)),
        ),
        claims,
        blind,
    )


# -- row 8 -----------------------------------------------------------------------------------------


def _one_of_three(
    name: str,
    about: str,
    ill: Condition,
    seconds: float,
    balance: config.Balance | None = None,
    most: float = 0.002,
) -> Scenario:
    """``most``: the share of callers that may see a failure."""
    end = BEFORE + seconds

    def claims(report: Report) -> list[Claim]:
        lost = failed(report.records)
        part, why = lost / len(report.records), failures(report.records)
        extra = attempts_per_request(report.records) - 1
        out = first_out(report, 1, BEFORE, end)
        late = report.arrived(end + 15, end + AFTER)
        back = sum(any("server-1" in name for name, _ in r.attempts) for r in late) / len(late)
        return [
            (part <= most, f"callers see at most {most:.1%} failures: {part:.3%}, {why or 'none'}"),
            (back >= 1 / 6, f"from 15 s after its recovery it serves again: {back:.2f} of all"),
            note(f"ejected after {out:.1f} s; extra load {extra:.2%}"),
        ]

    return Scenario(
        name,
        f"row 8: one of three endpoints {about} for {seconds:.0f} s",
        Plan(
            world(3, config.Filters(), balance),
            (Model(),),
            (Traffic("chat", around(seconds, 1.5 * CAPACITY, 3)),),
            ((BEFORE, 1, ill), (end, 1, HEALTHY)),
        ),
        claims,
        blind,
    )


def _failing(name: str, about: str, ill: Condition, seconds: float) -> tuple[Scenario, Scenario]:
    """With the usual balancer, and with one that does not help."""
    return (
        _one_of_three(name, about, ill, seconds),
        _one_of_three(f"{name}-round-robin", about, ill, seconds, ROUND_ROBIN),
    )


def killed(seconds: float) -> Scenario:
    scenario = _one_of_three("killed", "is dead", DEAD, seconds, most=0.0)
    return replace(scenario, without=WITHOUT_RETRY)


# -- one endpoint flaps ----------------------------------------------------------------------------


def flapping() -> Scenario:
    """Down for the first half of each period, up for the second."""

    def claims(report: Report) -> list[Claim]:
        lost, extra = failed(report.records), attempts_per_request(report.records)
        return [
            (lost == 0, f"no caller sees a failure: {lost} did"),
            (extra <= 1.11, f"at most 1.11 attempts per request: {extra:.3f}"),
        ]

    def flaps() -> Iterator[Event]:
        for at in (2.0, 4.0, 6.0, 8.0, 10.0):
            yield at, 1, DEAD
            yield at + 1, 1, HEALTHY

    return Scenario(
        "flapping",
        "one of three endpoints is down for one second of every two, from 2 s to 12 s",
        Plan(
            world(3, config.Filters()),
            (Model(),),
            (Traffic("chat", ((13.0, 1.5 * CAPACITY),)),),
            tuple(flaps()),
        ),
        claims,
        WITHOUT_RETRY,
    )


# -- row 9 -----------------------------------------------------------------------------------------


def all_failing() -> Scenario:
    seconds = 15.0
    end = BEFORE + seconds

    def claims(report: Report) -> list[Claim]:
        during = report.arrived(BEFORE, end)
        extra = attempts_per_request(during)
        lost = failed(report.arrived(end + 5, end + AFTER))
        soon = failed(report.arrived(end + TICK, end + 5))
        told = sum(r.status == 503 for r in during if not r.ok) / max(1, failed(during))
        return [
            (extra <= 1.2, f"at most 1.2 attempts upstream per request: {extra:.3f}"),
            (lost == 0, f"full service from 5 s after the recovery on: {lost} failures"),
            (told == 1, f"every failure is a 503: {told:.3f} are"),
            note(f"failures in the 5 s before that: {soon}"),
        ]

    return Scenario(
        "all-failing",
        "row 9: all three endpoints answer 503 within a millisecond for 15 s",
        Plan(
            world(3, config.Filters()),
            (Model(),),
            (Traffic("chat", around(seconds, 1.5 * CAPACITY, 3)),),
            (
                *((BEFORE, n, FAILING) for n in range(3)),
                *((end, n, HEALTHY) for n in range(3)),
            ),
        ),
        claims,
        refiltered(config.Filters(budget=budget.Config(ratio=1.0, min_per_second=1000.0))),
    )


# -- row 10 ----------------------------------------------------------------------------------------


def two_flapping() -> Scenario:
    """One of two fails, then the other, then both, then by turns with no rest between. At 40 %
    load, so that one of them can do the work of both."""
    turns = (
        *((at, 0, FAILING) for at in (10.0, 50.0)),
        *((at, 1, FAILING) for at in (30.0, 50.0)),
        *((at, 0, HEALTHY) for at in (20.0, 60.0)),
        *((at, 1, HEALTHY) for at in (40.0, 60.0)),
    )
    swaps = [
        (80.0 + 3 * n, server, ill)
        for n in range(6)
        for server, ill in ((n % 2, FAILING), ((n + 1) % 2, HEALTHY))
    ]

    def claims(report: Report) -> list[Claim]:
        both = sum(all(state == "ejected" for state in s.states) for s in report.samples)
        alone = [*report.arrived(10, 20), *report.arrived(30, 40)]
        lost = failed(alone) / len(alone)
        again = failed([*report.arrived(65, 80), *report.arrived(103, 115)])
        swapping = report.arrived(80, 98)
        bad = failed(swapping) / len(swapping)
        outs = [first_out(report, n, at, at + 10) for n, at in ((0, 10.0), (1, 30.0))]
        return [
            (both == 0, f"never both ejected: {both} samples"),
            (lost <= 0.002, f"with one of them well, at most 0.2 % failures: {lost * 100:.3f} %"),
            (again == 0, f"full service from 5 s after the recovery on: {again} failures"),
            note(f"out after {outs[0]:.1f} and {outs[1]:.1f} s; failures by turns: {bad:.2%}"),
        ]

    return Scenario(
        "two-flapping",
        "row 10: two endpoints fail, one after the other, together, and by turns every 3 s",
        Plan(
            world(2, config.Filters()),
            (Model(),),
            (Traffic("chat", ((115.0, 0.8 * CAPACITY),)),),
            tuple(sorted([*turns, *swaps, (98.0, 0, HEALTHY), (98.0, 1, HEALTHY)], key=_when)),
        ),
        claims,
        blind,
    )


def _when(event: Event) -> float:
    return event[0]


def scenarios(brief: bool) -> tuple[Scenario, ...]:
    seconds = 15.0 if brief else 60.0
    rest = 16.0 if brief else 20.0
    pairs = (  # each with the usual balancer, and with one that does not help
        (_slow("", False, rest), _slow("-round-robin", False, rest, ROUND_ROBIN)),
        (_slow("-hedged", True, rest), _slow("-hedged-round-robin", True, rest, ROUND_ROBIN)),
        _failing("half-failing", "fails half its answers with 503", HALF, seconds),
        _failing("fast-failing", "refuses everything in 1 ms", FAILING, seconds),
    )
    chosen = [pair[n % 2 :: 2] if brief else pair for n, pair in enumerate(pairs)]
    return (
        *(each for pair in chosen for each in pair),
        killed(seconds),
        flapping(),
        all_failing(),
        two_flapping(),
    )
