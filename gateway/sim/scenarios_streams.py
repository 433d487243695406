"""Scenarios of streamed answers: clients that leave them, servers that stop, very many at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filters import admission, deadline, hedge
from gateway import config
from gateway.sim.crowds import Traffic
from gateway.sim.models import HEALTHY, Batching, Condition, Model
from gateway.sim.scenario import (
    TICK,
    Claim,
    Scenario,
    first_out,
    last_out,
    note,
    refiltered,
    vanishing,
    world,
)
from gateway.sim.stats import failed, failures, quantile
from gateway.sim.world import Plan

if TYPE_CHECKING:
    from gateway.sim.world import Report

STREAMS = Model(tokens=10, pace=0.005, head_first=True)
EACH = 120.0
"""Such streams per second that one server can do: a slot is held for 65 ms."""
HEDGED = config.Filters(hedge=hedge.Config(after=0.95))
QUEUED = config.Filters(hedge=HEDGED.hedge, admission=admission.Config(limit=2 * 8))
"""A limit that is known makes the queue certain; what is learned is not what this is about."""

# -- row 12 ----------------------------------------------------------------------------------------


def hang_ups() -> Scenario:
    """Half the load, three times the capacity, half the load, one of two servers slow, and rest."""
    calm, storm = EACH, 6 * EACH
    load = ((10.0, calm), (15.0, storm), (40.0, calm))
    hasty = tuple((seconds, rate * 2 / 3) for seconds, rate in load)
    steady = tuple((seconds, rate / 3) for seconds, rate in load)

    def claims(report: Report) -> list[Claim]:
        left = [r for r in report.records if r.end == "left"]
        queued = sum(not r.attempts for r in left)
        answered = sum(r.first_byte > 0 for r in left)
        hedged = sum(r.hedged for r in left)
        made = sum(server.served for server in report.servers)
        taken = sum(r.ok for r in report.records)
        wasted = sum(server.wasted for server in report.servers)
        open_ = sum(s.attempts - s.served - s.cancelled - s.refused for s in report.servers)
        lost = failed(r for r in report.of("steady") if r.arrived < 10 or r.arrived > 30)
        return [
            (queued >= 100, f"clients leave the queue: {queued}"),
            (answered >= 100, f"and their answers: {answered}"),
            (hedged >= 10, f"and hedges: {hedged}"),
            (wasted == 0, f"nothing is made for nobody: {wasted} answers"),
            (made == taken, f"{made} made, {taken} taken"),
            (open_ == 0, f"every other attempt is cancelled upstream: {open_} are not"),
            (lost == 0, f"in calm, who has patience loses nothing: {lost}"),
        ]

    return Scenario(
        "hang-ups",
        "row 12: clients hang up in the queue, during the answer and in a hedge",
        Plan(
            world(2, QUEUED),
            (STREAMS,),
            (Traffic("hasty", hasty, patience=(0.0, 0.15)), Traffic("steady", steady)),
            ((40.0, 1, Condition(slow=10.0)), (50.0, 1, HEALTHY)),
        ),
        claims,
        vanishing,
    )


def leaving() -> Scenario:
    def claims(report: Report) -> list[Claim]:
        hasty, steady = report.of("hasty"), report.of("steady")
        left = sum(r.end == "left" for r in hasty)
        sent = sum(r.end == "left" and len(r.attempts) > 0 for r in hasty)
        delivered = sum(r.ok for r in report.records)
        served = sum(server.served for server in report.servers)
        cancelled = sum(server.cancelled for server in report.servers)
        slow = quantile([r.latency for r in steady], 0.99)
        return [
            (left >= 1700, f"enough of them leave: {left}"),
            (served == delivered, f"no answer for nobody: {served} made, {delivered} taken"),
            (cancelled == sent, f"each is cancelled upstream: {cancelled} of {sent}"),
            (failed(steady) == 0, f"the others lose nothing: {failed(steady)} failures"),
            (slow <= 0.3, f"and wait at most 300 ms at p99: {slow * 1000:.0f} ms"),
        ]

    return Scenario(
        "clients-leave",
        "streams of 10 tokens at 110 % of capacity, most clients leaving within 100 ms of asking",
        Plan(
            world(2, config.Filters()),
            (STREAMS,),
            (
                Traffic("hasty", ((15.0, 200.0),), patience=(0.0, 0.1)),
                Traffic("steady", ((15.0, 70.0),)),
            ),
        ),
        claims,
        vanishing,
    )


# -- row 13 ----------------------------------------------------------------------------------------

SILENCE = 1.0
"""Seconds until the first byte, and between two, that the route allows."""
CLOCKS = deadline.Config(first_byte=SILENCE, stall=SILENCE)
BLANK = Condition(hangs=True, heads=True)
ILL = 15.0
"""Seconds for which one of three servers is ill, from 10 s on."""


def _one_ill(filters: config.Filters, ill: Condition) -> Plan:
    return Plan(
        world(3, filters),
        (STREAMS,),
        (Traffic("chat", ((45.0, 1.5 * EACH),), patience=(60.0, 60.0)),),
        ((10.0, 1, ill), (10.0 + ILL, 1, HEALTHY)),
    )


def _marked(report: Report) -> list[Claim]:
    """The endpoint is taken out, and comes back."""
    out, back = first_out(report, 1, 10.0, 10.0 + ILL), last_out(report, 1, 10.0 + ILL)
    late = failed(report.arrived(10.0 + ILL + 15, 45.0))
    return [
        (out <= 5, f"the endpoint is marked within 5 s: after {out:.1f} s"),
        (back <= 15, f"and back within 15 s of its recovery: after {back:.1f} s"),
        (late == 0, f"then nobody loses anything: {late}"),
    ]


def _ended_by_clock(report: Report, reason: str) -> list[Claim]:
    """Those that are not answered are broken off by the clock of ``reason``, and say so."""
    ended = [r for r in report.records if not r.ok]
    wrong = failures(r for r in ended if r.end != "aborted" or r.reason != reason)
    silent = [r.latency - r.first_byte for r in ended] or [0.0]
    again = sum(len(r.attempts) > 1 for r in ended)
    return [
        (len(ended) >= 2, f"streams are broken off visibly: {len(ended)}"),
        (not wrong, f"each with the reason: {wrong or 'no others'}"),
        (
            min(silent) >= SILENCE and max(silent) <= SILENCE + 0.05 + TICK,
            f"after a second of silence: {min(silent):.3f} to {max(silent):.3f} s",
        ),
        (again == 0, f"none is tried again after the head: {again}"),
    ]


def head_then_nothing() -> Scenario:
    return Scenario(
        "head-then-nothing",
        "row 13: one of three servers sends heads at once and then nothing for 15 s",
        _one_ill(config.Filters(deadline=CLOCKS), BLANK),
        lambda report: [*_ended_by_clock(report, "first_byte_timeout"), *_marked(report)],
        refiltered(config.Filters()),
    )


def head_then_nothing_hedged() -> Scenario:
    filters = config.Filters(deadline=CLOCKS, hedge=HEDGED.hedge)

    def claims(report: Report) -> list[Claim]:
        lost = failures(report.records)
        saved = sum(r.hedged and r.ok for r in report.arrived(10.0, 10.0 + ILL))
        others = {reason: n for reason, n in lost.items() if reason != "first_byte_timeout"}
        part = failed(report.records) / len(report.records)
        return [
            (saved >= 10, f"who waits for it is hedged: {saved} are answered"),
            (not others, f"who is not ends by the clock: {others or 'nobody in another way'}"),
            (part <= 0.01, f"at most 1 % of all: {part * 100:.2f} %"),
            *_marked(report),
        ]

    return Scenario(
        "head-then-nothing-hedged",
        "row 13: the same with hedging, which withholds the head until the first byte of the body",
        _one_ill(filters, BLANK),
        claims,
        refiltered(config.Filters(deadline=CLOCKS)),
    )


def stall() -> Scenario:
    return Scenario(
        "stall",
        "row 13: the streams of one of three servers stop after 3 of 10 tokens for 15 s",
        _one_ill(config.Filters(deadline=CLOCKS), Condition(stalls_after=3)),
        lambda report: [*_ended_by_clock(report, "stall"), *_marked(report)],
        refiltered(config.Filters()),
    )


# -- row 15 ----------------------------------------------------------------------------------------

MANY = 200


def many_streams() -> Scenario:
    """200 at once, three times; then a steady stream of them that keeps about 200 running."""

    def claims(report: Report) -> list[Claim]:
        lost = failures(report.records)
        limits = [gauge.limit for sample in report.samples for gauge in sample.routes]
        low = min(limits, default=0.0)
        running = max(gauge.in_flight for s in report.samples for gauge in s.routes)
        seconds = [r.latency for r in report.records] or [0.0]
        waited = max((r.queued for r in report.records), default=0.0)
        return [
            (not lost, f"nobody is refused: {lost or 'all are answered'}"),
            (low >= MANY, f"the limit does not fall below 200: {low:.1f}"),
            (waited == 0, f"nobody waits for a permit: {waited:.3f} s"),
            note(f"{running:.0f} at once; {min(seconds):.0f} to {max(seconds):.0f} s each"),
        ]

    return Scenario(
        "many-streams",
        "row 15: from cold 200 streams at once, 10 to 60 s each, on a continuous-batching server",
        Plan(
            world(1, config.Filters()),
            (Model(batching=Batching()),),
            (
                Traffic(
                    "chat",
                    ((210.0, 0.0), (150.0, 4.8)),
                    at_once=((0.0, MANY), (70.0, MANY), (140.0, MANY)),
                    patience=(3600.0, 3600.0),
                ),
            ),
        ),
        claims,
        refiltered(config.Filters(admission=admission.Config(initial=64))),
    )


def scenarios() -> tuple[Scenario, ...]:
    return (
        hang_ups(),
        leaving(),
        head_then_nothing(),
        head_then_nothing_hedged(),
        stall(),
        many_streams(),
    )
