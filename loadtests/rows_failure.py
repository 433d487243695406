"""Rows 7 to 10, 12 and 13: endpoints that are slow, failing, dead or silent; clients that leave.

``event`` is the length of what happens, in seconds, where the row does not fix it itself.
"""

from collections.abc import Iterator, Mapping, Sequence

from loadtests.faults import HEALTHY, Condition
from loadtests.judging import (
    arrival_rates,
    counted,
    endpoints,
    failed,
    in_flight,
    refused,
    states,
)
from loadtests.load_plan import Flow
from loadtests.records import End, due, failures, quantile, share
from loadtests.scenario import CAPACITY, MEAN, SLOTS, Claim, Event, Run, Sample, Seen

BEFORE = 5.0
HEDGED: Mapping[str, object] = {"hedge": {"after": "p95", "min": "10ms"}}


def _p99(seen: Seen, since: float, until: float) -> float:
    return quantile((each.latency for each in due(seen.records, since, until)), 0.99)


def _out(samples: Sequence[Sample], server: int, fair: float, since: float) -> Iterator[float]:
    """Times from ``since`` on at which ``server`` gets less than a tenth of its share."""
    rates = arrival_rates(samples, server)
    return (at for at, rate in rates if at >= since and rate < 0.1 * fair)


# -- row 7 -----------------------------------------------------------------------------------------


def slow_endpoint(filters: Mapping[str, object], most: float, event: float) -> Run:
    """``most``: times the healthy p99 that the p99 of the whole run may be."""
    count, length = 4, 20.0
    before = event / 3
    end, last = before + length, before + length + 20.0
    fair = CAPACITY / 2

    def judge(seen: Seen) -> list[Claim]:
        out = next(_out(seen.samples, 1, fair, before), None)
        back = next(
            (at for at, rate in arrival_rates(seen.samples, 1) if at >= end and rate > fair / 2),
            None,
        )
        if out is None:  # who never left cannot come back
            back = None
        ejected = [each.at for each in seen.samples if "ejected" in states(each)]
        extra = counted(seen.samples, "arrived", 0, last + 5) / len(seen.records) - 1
        healthy, whole = _p99(seen, 2, before), _p99(seen, 0, last)
        return [
            Claim("p99 of the whole run, times the healthy p99", whole / healthy, "<=", most),
            Claim("healthy p99", healthy, unit="ms"),
            Claim("p99 while one is slow", _p99(seen, before, end), unit="ms"),
            Claim("extra load", extra, "<=", 0.06, "%"),
            Claim("out of the way after", out and out - before, "<=", 5.0, "s"),
            Claim("said to be ejected after", ejected[0] - before if ejected else None, unit="s"),
            Claim("back after its recovery", back and back - end, "<=", 15.0, "s"),
            Claim("not answered", failed(seen.records), unit=""),
        ]

    return Run(
        7,
        "one of four 10x slower, hedging" if filters else "one of four 10x slower",
        (Flow("all", ((last, count * fair),)),),
        judge,
        endpoints=count,
        events=(Event(before, 1, Condition(slow=10.0)), Event(end, 1, HEALTHY)),
        filters=filters,
        subjects=("tailrace",) if filters else ("none", "envoy", "tailrace"),
    )


# -- rows 8, 9, 10 ---------------------------------------------------------------------------------


def broken_endpoint(name: str, events: tuple[Event, ...], most: float, event: float) -> Run:
    """One of three. ``most``: the share of the callers who may see a failure."""
    last = BEFORE + event + 10.0

    def judge(seen: Seen) -> list[Claim]:
        shown = due(seen.records, BEFORE, last)
        return [
            Claim("callers that see a failure", failed(shown) / len(shown), "<=", most, "%"),
            Claim("these are", failed(shown)),
            Claim("p99", _p99(seen, BEFORE, last), unit="ms"),
        ]

    flow = Flow("all", ((last, 3 * CAPACITY / 2),))
    return Run(8, name, (flow,), judge, endpoints=3, events=events)


def outage(event: float) -> Run:
    """``event`` is not the length of the outage, which the row says is 15 s."""
    count, end = 3, BEFORE + 15.0
    last = end + 15.0

    def judge(seen: Seen) -> list[Claim]:
        asked = len(due(seen.records, BEFORE + 0.5, end - 0.5))
        sent = counted(seen.samples, "arrived", BEFORE + 0.5, end - 0.5)
        lost = [each.at - end for each in due(seen.records, end, last) if not each.ok]
        return [
            Claim("attempts upstream per request", sent / asked, "<=", 1.2),
            Claim("last failure after the recovery", max(lost, default=0.0), "<=", 5.0, "s"),
            Claim("failures after the recovery", len(lost)),
        ]

    ill = Condition(status=503)
    return Run(
        9,
        "all answer 503",
        (Flow("all", ((last, count * CAPACITY / 2),)),),
        judge,
        endpoints=count,
        events=(
            *(Event(BEFORE, n, ill) for n in range(count)),
            *(Event(end, n) for n in range(count)),
        ),
        subjects=("envoy", "tailrace"),
    )


def both_in_turn(event: float) -> Run:
    length = event / 5
    ill = Condition(status=503)
    marks = [BEFORE + n * length for n in range(6)]
    events = (Event(marks[0], 0, ill), Event(marks[1], 0), Event(marks[1], 1, ill),
              Event(marks[2], 1), Event(marks[3], 0, ill), Event(marks[3], 1, ill),
              Event(marks[4], 0), Event(marks[4], 1))  # fmt: skip

    def judge(seen: Seen) -> list[Claim]:
        shown = [states(each).count("ejected") for each in seen.samples if states(each)]
        together = due(seen.records, marks[3], marks[4])
        sent = counted(seen.samples, "arrived", marks[3], marks[4])
        alone = due(seen.records, marks[0], marks[2])
        why = failures(seen.records).get("no_endpoint", 0)
        return [
            Claim("ejected at once", max(shown, default=None), "<=", 1),
            Claim("ejected at all", sum(1 for n in shown if n), unit="samples"),
            Claim("refused for want of an endpoint", why, "<=", 0),
            Claim("one fails: callers that see it", failed(alone) / len(alone), unit="%"),
            Claim("both fail: attempts per request", sent / max(1, len(together))),
        ]

    flow = Flow("all", ((marks[5], CAPACITY),))
    name = "two fail in turn and together"
    return Run(10, name, (flow,), judge, endpoints=2, events=events, subjects=("tailrace",),
               every=0.1)  # fmt: skip


# -- row 12 ----------------------------------------------------------------------------------------


def _at_rest(seen: Seen) -> list[Claim]:
    """Everything has come back, a moment after the last client has gone."""
    known = [server for server in seen.rest.servers if server is not None]
    left = [each for each in seen.records if each.end is End.LEFT]
    return [
        Claim("clients that left", len(left) / len(seen.records), unit="%"),
        Claim("still at work upstream", sum(s["in_service"] + s["held"] for s in known), "<=", 0),
        Claim("still queued upstream", sum(s["queued"] for s in known), "<=", 0),
        Claim("in flight or queued in the gateway", in_flight(seen.rest), "<=", 0),
        Claim("refused", refused(seen.records)),
    ]


def leaving(event: float) -> list[Run]:
    overload = Flow("impatient", ((event, 2 * CAPACITY),), patience=(0.03, 0.3))
    reading = Flow("readers", ((event, 30.0),), patience=(0.1, 1.5), tokens=(40, 40))
    hasty = Flow("hasty", ((event, CAPACITY),), patience=(0.02, 0.1))
    slow: tuple[str, ...] = ("--service-mean", f"{MEAN}", "--token-interval", "0.05")
    return [
        Run(12, "clients leave the queue", (overload,), _at_rest),
        Run(12, "clients leave the answer", (reading,), _at_rest, server=slow, slots=64),
        Run(12, "clients leave a hedge", (hasty,), _at_rest, endpoints=2, filters=HEDGED,
            events=(Event(1.0, 1, Condition(slow=5.0)),), subjects=("tailrace",)),
    ]  # fmt: skip


# -- row 13 ----------------------------------------------------------------------------------------

_CLOCK = 1.0
_ANSWER = 20 * 0.02 + MEAN
"""Seconds that a stream of 20 tokens takes."""
_CLOCKS: Mapping[str, object] = {"deadline": {"first_byte": f"{_CLOCK}s", "stall": f"{_CLOCK}s"}}


def silent(name: str, ill: Condition, filters: Mapping[str, object], event: float) -> Run:
    """One of three streams heads, or a few tokens, and then nothing."""
    hedged = "hedge" in filters
    last = BEFORE + event

    def judge(seen: Seen) -> list[Claim]:
        shown = due(seen.records, BEFORE, last)
        bad = [each for each in shown if not each.ok]
        named = sum(seen.logged.get(why, 0) for why in ("first_byte_timeout", "stall"))
        marks = [each["failed"] for each in endpoints(seen.rest)]
        out = [each.at for each in seen.samples if "ejected" in states(each)]
        claims = [
            Claim("longest", max(each.latency for each in shown), "<=",
                  _CLOCK + _ANSWER + 1.0, "s"),
            Claim("callers that see a failure", share(bad, shown), unit="%"),
        ]  # fmt: skip
        if hedged:
            return [*claims, Claim("not answered", len(bad), "<=", 0.01 * len(shown))]
        return [
            *claims,
            Claim("failures with their reason in the log", named, ">=", len(bad)),
            Claim("failures noted for this endpoint", marks[0] if marks else None, ">=", 1),
            Claim("and for the others", sum(marks[1:]) if marks else None, "<=", 0),
            Claim("said to be ejected after", out[0] - BEFORE if out else None, unit="s"),
        ]

    return Run(
        13,
        name,
        (Flow("readers", ((last, 60.0),), tokens=(20, 20)),),
        judge,
        endpoints=3,
        server=("--service-mean", f"{MEAN}", "--token-interval", "0.02"),
        slots=4 * SLOTS,
        events=(Event(BEFORE, 0, ill),),
        filters=filters,
        subjects=("tailrace",),
    )


def runs(event: float) -> list[Run]:
    end = BEFORE + event
    half = Condition(status=503, share=0.5, after=MEAN)
    return [
        slow_endpoint(HEDGED, 1.5, event),
        slow_endpoint({}, 3.0, event),
        broken_endpoint(
            "half of its answers are 503", (Event(BEFORE, 1, half), Event(end, 1)), 0.002, event
        ),
        broken_endpoint(
            "refuses everything in 1 ms",
            (Event(BEFORE, 1, Condition(status=503)), Event(end, 1)),
            0.002,
            event,
        ),
        broken_endpoint(
            "killed, and comes back",
            (Event(BEFORE, 1, "kill"), Event(end, 1, "start")),
            0.0,
            event,
        ),
        outage(event),
        both_in_turn(event),
        *leaving(event),
        silent(
            "head and then nothing, hedged",
            Condition(head_only=True),
            {**_CLOCKS, **HEDGED},
            event,
        ),
        silent("head and then nothing", Condition(head_only=True), _CLOCKS, event),
        silent("a stall in mid-stream", Condition(stalls_after=5), _CLOCKS, event),
    ]
