"""Rows 1 to 6, 11, 14 and 15: more work than there is capacity, and what must not look like it.

``event`` is the length of what happens, in seconds. Before it the load is normal for ``BEFORE``.
"""

from loadtests.faults import HEALTHY, Condition
from loadtests.judging import (
    counted,
    failed,
    first_refusals,
    first_tries,
    goodput_claims,
    limit_claims,
    limits,
    refusal_claims,
    refused,
    wasted,
)
from loadtests.load_plan import Flow
from loadtests.records import Record, due, ended, quantile, settled, share, useful
from loadtests.scenario import CAPACITY, MEAN, SETTLE, SLOTS, USEFUL, Claim, Event, Run, Seen

BEFORE = 5.0
ALONE = ("none", "tailrace")
"""Where Envoy has no answer."""


def overload(times: int, event: float) -> Run:
    end = BEFORE + event

    def judge(seen: Seen) -> list[Claim]:
        return [
            *goodput_claims(seen, BEFORE, end, 0.95),
            *refusal_claims(due(seen.records, BEFORE + SETTLE, end)),
            *first_refusals(due(seen.records, BEFORE, BEFORE + SETTLE)),
            Claim("servers' work for nobody", wasted(seen.samples, BEFORE, end), unit="%"),
        ]

    phases = ((BEFORE, CAPACITY / 2), (event, times * CAPACITY))
    return Run(1, f"overload {times}x", (Flow("all", phases),), judge)


def bursts(event: float) -> Run:
    cycles = max(1, round(event / 30))
    quiet = 29.0 if event >= 30 else 14.0
    steady, burst = (quiet, 0.75 * CAPACITY), (1.0, 2 * CAPACITY)

    def judge(seen: Seen) -> list[Claim]:
        cold, later = due(seen.records, 0, event), due(seen.records, event, 1e9)
        return [
            Claim("from cold: not answered", failed(cold), "<=", 0),
            Claim("from cold: useful", share(useful(cold, USEFUL), cold), unit="%"),
            Claim("with bursts: refused", refused(later), "<=", 0),
            Claim("with bursts: useful within 5 s", share(useful(later, 5), later), ">=", 1, "%"),
            Claim("with bursts: slowest", quantile((r.latency for r in later), 1.0), unit="s"),
        ]

    phases = ((event, 0.75 * CAPACITY), *(steady, burst) * cycles, (10.0, 0.75 * CAPACITY))
    return Run(2, "cold, then bursts", (Flow("all", phases),), judge)


def _changing(name: str, ill: Condition, event: float) -> Run:
    before, after = 10.0, SETTLE + event / 3
    end = before + event
    last = end + after
    slots = ill.slots or SLOTS
    possible = slots / (MEAN * ill.slow)

    def judge(seen: Seen) -> list[Claim]:
        back = due(seen.records, end + SETTLE, last)
        return [
            *goodput_claims(
                seen,
                before,
                end,
                0.9,
                capacity=possible,
                within=USEFUL * ill.slow,
                text="meanwhile: useful answers, of what is possible",
            ),
            Claim("afterwards: useful", share(useful(back, USEFUL), back), ">=", 0.9, "%"),
            *limit_claims(seen.samples, before + SETTLE, end, 0.9 * slots, 2 * slots),
            *limit_claims(seen.samples, end + SETTLE, last, 0.9 * SLOTS, 2 * SLOTS),
        ]

    return Run(
        3,
        name,
        (Flow("all", ((last, 0.9 * CAPACITY),)),),
        judge,
        events=(Event(before, 0, ill), Event(end, 0, HEALTHY)),
    )


def _uneven(name: str, server: tuple[str, ...], mean: float, event: float) -> Run:
    capacity = SLOTS / mean
    end = BEFORE + event

    def own(records: list[Record]) -> list[Record]:
        return [r for r in records if r.ok and r.latency <= 10 * r.service]

    def judge(seen: Seen) -> list[Claim]:
        since = BEFORE + SETTLE
        timely = own(ended(seen.records, since, end))
        answered = [r for r in ended(seen.records, since, end) if r.ok]
        drawn = sum(r.service for r in answered) / max(1, len(answered))
        rate = len(timely) / (end - since)
        return [
            Claim("useful answers (10 x their own), of capacity", rate / capacity, ">=", 0.9, "%"),
            Claim("of the capacity for what was drawn", rate * drawn / SLOTS, unit="%"),
            Claim("so from this time on", settled(own(seen.records), BEFORE, end, 0.9 * capacity),
                  unit="s"),
            Claim("of what is answered, useful", share(timely, answered), unit="%"),
        ]  # fmt: skip

    phases = ((BEFORE, capacity / 2), (event, 2 * capacity))
    return Run(4, name, (Flow("all", phases),), judge, server=server)


def classes(event: float) -> Run:
    end = BEFORE + event
    best = 0.2 * CAPACITY
    rest = ((BEFORE, 0.3 * CAPACITY), (event, 5 * CAPACITY - best))

    def judge(seen: Seen) -> list[Claim]:
        important = seen.of("critical_plus")
        first = due(important, BEFORE, BEFORE + SETTLE)
        later = due(important, BEFORE + SETTLE, end)
        return [
            Claim("critical_plus useful, first 10 s", share(useful(first, USEFUL), first),
                  ">=", 0.95, "%"),
            Claim("critical_plus useful, then", share(useful(later, USEFUL), later),
                  ">=", 0.999, "%"),
            Claim("critical_plus p99", quantile((r.latency for r in later), 0.99), unit="ms"),
            *goodput_claims(seen, BEFORE, end, 0.95)[:1],
        ]  # fmt: skip

    def flow(name: str, phases: tuple[tuple[float, float], ...]) -> Flow:
        return Flow(name, phases, headers=(("x-request-priority", name),))

    flows = (flow("critical_plus", ((end, best),)), flow("sheddable", rest))
    return Run(5, "classes at 5x", flows, judge, subjects=ALONE)


def tenants(event: float) -> Run:
    end = BEFORE + event
    nine = tuple(f"modest-{n}" for n in range(9))

    def judge(seen: Seen) -> list[Claim]:
        modest = due(seen.of(*nine), BEFORE, end)
        return [
            Claim("the nine: not answered", failed(modest), "<=", 0),
            Claim("the nine: useful", share(useful(modest, USEFUL), modest), unit="%"),
            Claim("the nine: p99", quantile((r.latency for r in modest), 0.99), unit="ms"),
            Claim("useful answers of all, of capacity",
                  goodput_claims(seen, BEFORE, end, 0.95)[0].value, unit="%"),
        ]  # fmt: skip

    def flow(name: str, phases: tuple[tuple[float, float], ...]) -> Flow:
        return Flow(name, phases, headers=(("authorization", f"Bearer {name}"),))

    greedy = flow("greedy", ((BEFORE, 0.06 * CAPACITY), (event, 10 * CAPACITY)))
    flows = (greedy, *(flow(name, ((end, 0.6 * CAPACITY / 9),)) for name in nine))
    return Run(6, "one greedy tenant", flows, judge, subjects=ALONE)


def retry_storm(event: float) -> Run:
    end = BEFORE + event
    last = end + 20.0

    def judge(seen: Seen) -> list[Claim]:
        normal = first_tries(seen.records, end + 3, last)
        bad = [
            r for r in first_tries(seen.records, end, last) if not (r.ok and r.latency <= USEFUL)
        ]
        more = len(due(seen.records, BEFORE, end)) / len(first_tries(seen.records, BEFORE, end))
        return [
            Claim("first tries useful from 3 s after it", share(useful(normal, USEFUL), normal),
                  ">=", 0.99, "%"),
            Claim("last one that was not", max((r.at - end for r in bad), default=0.0), unit="s"),
            Claim("requests per call in the storm", more),
        ]  # fmt: skip

    phases = ((BEFORE, 0.5 * CAPACITY), (event, 3 * CAPACITY), (last - end, 0.6 * CAPACITY))
    return Run(11, "retry storm", (Flow("all", phases, retries=3),), judge)


def limited_upstream(event: float) -> Run:
    end = BEFORE + event

    def judge(seen: Seen) -> list[Claim]:
        sent = counted(seen.samples, "arrived", BEFORE + 5, end)
        told = counted(seen.samples, "refused", BEFORE + 5, end)
        return [
            Claim("refused by the upstream, of what it is sent", told / sent if sent else None,
                  "<=", 0.1, "%"),
            *goodput_claims(seen, BEFORE, end, 0.95)[:1],
            *refusal_claims(due(seen.records, BEFORE + SETTLE, end)),
        ]  # fmt: skip

    return Run(
        14,
        "upstream with a limit",
        (Flow("all", ((BEFORE, CAPACITY / 2), (event, 2 * CAPACITY))),),
        judge,
        events=(Event(0.0, 0, Condition(limit=2 * SLOTS, retry_after=1)),),
    )


_FULL_BATCH = 256
_PACE = 0.05
_SLOWDOWN = 3.0


def streams(event: float) -> Run:
    """200 at once, which take from a sixth of the event to all of it while all of them run."""
    alone = _PACE * (1 + (_SLOWDOWN - 1) * 200 / _FULL_BATCH)
    tokens = (round(event / 6 / alone), round(event / alone))

    def judge(seen: Seen) -> list[Claim]:
        shown = limits(seen.samples, 0, event)
        return [
            Claim("refused", refused(seen.records), "<=", 0),
            Claim("not answered", failed(seen.records), "<=", 0),
            Claim("lowest limit", min(shown, default=None), ">=", 200),
            Claim("longest", quantile((r.latency for r in seen.records), 1.0), unit="s"),
        ]

    flow = Flow("streams", ((1.0, 0.0),), once=200, tokens=tokens, patience=(2 * event, 2 * event))
    server: tuple[str, ...] = ("--service-mean", "0.05", "--token-interval", f"{_PACE}")
    server += ("--batch", f"{_FULL_BATCH}", "--batch-slowdown", f"{_SLOWDOWN}")
    return Run(15, "200 streams from cold", (flow,), judge, server=server, slots=_FULL_BATCH,
               warm=200)  # fmt: skip


def runs(event: float) -> list[Run]:
    sizes = ("--mixture", "0.005", "0.5")
    heavy = ("--service-mean", f"{MEAN}", "--service-sigma", "1.5")
    return [
        *(overload(times, event) for times in (2, 5, 10)),
        bursts(event),
        _changing("three times slower", Condition(slow=3.0), event),
        _changing("a third of the slots", Condition(slots=3), event),
        _uneven("sigma 1.5", heavy, MEAN, event),
        _uneven("half 5 ms, half 500 ms", sizes, 0.2525, 2 * event),
        classes(event),
        tenants(event),
        retry_storm(event),
        limited_upstream(event),
        streams(event),
    ]
