"""Scenarios of overload in which it matters who is served: classes, tenants, clients that insist,
and a server that defends itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filters import admission
from filters.push_back import PushBack
from gateway import config
from gateway.sim.crowds import Traffic
from gateway.sim.models import HEALTHY, Condition, Model
from gateway.sim.records import calls
from gateway.sim.scenario import (
    AFTER,
    BEFORE,
    CAPACITY,
    SLOTS,
    USEFUL,
    Claim,
    Patch,
    Scenario,
    around,
    note,
    refiltered,
    world,
)
from gateway.sim.stats import failed, failures, goodput, refused_upstream, share, within
from gateway.sim.world import Plan

if TYPE_CHECKING:
    from gateway.sim.world import Report

# -- row 5 -----------------------------------------------------------------------------------------


def _of_class(name: str) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"x-request-priority", name.encode()),)


def classes(seconds: float) -> Scenario:
    """Five times the capacity, of which a 25th is what matters most."""
    end = BEFORE + seconds
    best = 0.2 * CAPACITY
    rest = ((BEFORE, 0.3 * CAPACITY), (seconds, 5 * CAPACITY - best), (AFTER, 0.3 * CAPACITY))

    def claims(report: Report) -> list[Claim]:
        important = [each for each in report.of("important") if each.arrived >= BEFORE]
        first = share([r for r in important if r.arrived < BEFORE + 10], within(USEFUL))
        later = share([r for r in important if BEFORE + 10 <= r.arrived < end], within(USEFUL))
        done = goodput(report.arrived(BEFORE + 10, end), seconds - 10, SLOTS, within(USEFUL))
        return [
            (first >= 0.95, f"critical_plus at least 95 % useful in the first 10 s: {first:.4f}"),
            (later >= 0.999, f"at least 99.9 % from then on: {later:.4f}"),
            note(f"useful answers of all, as a share of capacity: {done:.3f}"),
        ]

    return Scenario(
        "classes",
        f"row 5: 5 times the capacity for {seconds:.0f} s, critical_plus at 20 % of capacity",
        Plan(
            world(1, config.Filters()),
            (Model(),),
            (
                Traffic("important", ((end + AFTER, best),), headers=_of_class("critical_plus")),
                Traffic("batch", rest, headers=_of_class("sheddable")),
            ),
        ),
        claims,
        refiltered(config.Filters(priority=None)),
    )


# -- row 6 -----------------------------------------------------------------------------------------

MODEST = 9
"""Tenants that stay below their fair share."""


def _tenant(number: int) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"authorization", b"Bearer tenant-%d" % number),)


def noisy_tenant(seconds: float) -> Scenario:
    """One tenant sends ten times what the server can do; nine others together 60 %."""
    end = BEFORE + seconds
    each_rate = 0.6 * CAPACITY / MODEST

    def claims(report: Report) -> list[Claim]:
        modest = [each for each in report.records if each.traffic != "noisy"]
        lost = failed(modest)
        timely = share(modest, within(USEFUL))
        early = share([r for r in modest if BEFORE <= r.arrived < BEFORE + 10], within(USEFUL))
        done = goodput(report.arrived(BEFORE + 10, end), seconds - 10, SLOTS, within(USEFUL))
        return [
            (lost == 0, f"the nine lose nothing: {lost} of {len(modest)}, {failures(modest)}"),
            note(f"of theirs within 200 ms: {timely:.4f}, in the first 10 s {early:.4f}"),
            note(f"useful answers of all, as a share of capacity: {done:.3f}"),
        ]

    noisy = ((BEFORE, 0.06 * CAPACITY), (seconds, 10 * CAPACITY), (AFTER, 0.06 * CAPACITY))
    return Scenario(
        "noisy-tenant",
        f"row 6: one tenant sends 10 times the capacity for {seconds:.0f} s, nine others 60 %",
        Plan(
            world(1, config.Filters()),
            (Model(),),
            (
                Traffic("noisy", noisy, headers=_tenant(0)),
                *(
                    Traffic(f"modest-{n}", ((end + AFTER, each_rate),), headers=_tenant(n))
                    for n in range(1, MODEST + 1)
                ),
            ),
        ),
        claims,
        refiltered(
            config.Filters(admission=admission.Config(fair_by="header:x-nobody-sends-this"))
        ),
    )


# -- row 11 ----------------------------------------------------------------------------------------


def retry_storm(seconds: float) -> Scenario:
    """Three times the capacity, and whoever gets no good answer asks three times more."""
    end = BEFORE + seconds
    phases = ((BEFORE, 0.5 * CAPACITY), (seconds, 3 * CAPACITY), (30.0, 0.6 * CAPACITY))

    def claims(report: Report) -> list[Claim]:
        normal = [r for r in report.records if not r.tries and r.arrived >= end + 3]
        useful = share(normal, within(USEFUL))
        later = [each for each in calls(report.records) if each.arrived >= end + 3]
        lost = sum(not each.ok for each in later)
        storm = report.arrived(BEFORE, end)
        more = len(storm) / max(1, sum(not r.tries for r in storm))
        return [
            (useful >= 0.999, f"from 3 s after it, first tries are useful: {useful:.4f}"),
            (lost == 0, f"and nobody gives up: {lost} of {len(later)}"),
            note(f"exchanges per call in the storm: {more:.2f}"),
        ]

    return Scenario(
        "retry-storm",
        f"row 11: {seconds:.0f} s of 3 times the capacity, clients retry three times; then 60 %",
        Plan(
            world(1, config.Filters()),
            (Model(),),
            (Traffic("chat", phases, tries=4),),
        ),
        claims,
        refiltered(config.Filters(admission=None)),
    )


# -- row 14 ----------------------------------------------------------------------------------------


def limited_upstream(seconds: float) -> Scenario:
    """The server itself turns away what it does not want to queue."""
    end = BEFORE + seconds

    def claims(report: Report) -> list[Claim]:
        sent, refused = refused_upstream(report.sampled(BEFORE + 5, end))
        first, early = refused_upstream(report.sampled(BEFORE, BEFORE + 5))
        done = goodput(report.arrived(BEFORE + 10, end), seconds - 10, SLOTS, within(USEFUL))
        part, soon = refused / max(1, sent), early / max(1, first)
        return [
            (part <= 0.1, f"from 5 s on it refuses at most 10 % of what is sent: {part:.3f}"),
            note(f"in the first 5 s: {soon:.3f}"),
            note(f"useful answers as a share of capacity: {done:.3f}"),
        ]

    return Scenario(
        "limited-upstream",
        f"row 14: twice the capacity for {seconds:.0f} s, the server takes 16 and answers 429",
        Plan(
            world(1, config.Filters()),
            (Model(limit=2 * SLOTS),),
            (Traffic("chat", around(seconds, 2 * CAPACITY)),),
        ),
        claims,
        refiltered(config.Filters(admission=None)),
    )


def weak_moment() -> Scenario:
    """Refusals in a weak moment do not bind a server for good, even where answers are slow."""
    well = 5.0
    last = well + 30
    weak = Condition(status=503, share=0.5, after=0.2, retry_after=1)

    def claims(report: Report) -> list[Claim]:
        early, late = report.arrived(well, well + 10), report.arrived(well + 10, last)
        served = share(late, lambda record: record.ok)
        return [
            (served >= 0.95, f"from 10 s after it at least 95 % are served: {served:.3f}"),
            note(f"in the 10 s before: {share(early, lambda record: record.ok):.3f}"),
        ]

    return Scenario(
        "weak-moment",
        "row 14: a server of 256 slots and 3 s refuses half with Retry-After for 5 s",
        Plan(
            world(1, config.Filters()),
            (Model(slots=256, mean=3.0, sigma=0.2),),
            (Traffic("chat", ((last, 20.0),), patience=(30.0, 30.0)),),
            ((0.0, 0, weak), (well, 0, HEALTHY)),
        ),
        claims,
        patches=(Patch(PushBack, "grow", lambda push, now, value: None),),
    )


def scenarios(brief: bool) -> tuple[Scenario, ...]:
    return (
        classes(16.0 if brief else 60.0),
        noisy_tenant(14.0 if brief else 60.0),
        retry_storm(12.0 if brief else 60.0),
        limited_upstream(15.0 if brief else 60.0),
        weak_moment(),
    )
