"""What speaks against an endpoint: failures in a row, a share of failures, a slow first byte.

None of these holds but against the others in the same time: what all endpoints show is no
endpoint's fault, be it an outage behind them, a client that sends nonsense, or a surge. Pure.
"""

from bisect import bisect_left
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from filters.standing import ENOUGH, NEEDED, Cause, Finding, Standing

FLOOR = 0.05
"""Seconds by which a first byte must be later than the others' at least: what a fleet of fast
servers differs by is noise."""
SPREAD = 3 * 1.4826
"""Median absolute deviations of the others that are within the ordinary: 3 sigma of a normal
distribution. Servers of several makes are not ejected for being different."""
CLEARLY = 1 / 3
"""The others must fail, or be slow, at most this part as often as the one that is charged."""


class Charge(NamedTuple):
    """``weight``: the heavier first, where the cap leaves room for a few. ``found``: the evidence;
    ``limit``: the seconds to first byte that a slow one is above. It is for ``confirmed`` to say
    whether it holds against the others."""

    standing: Standing
    cause: Cause
    why: str
    weight: float
    found: Finding
    limit: float = 0.0


def failing(s: Standing, row: int, share: float | None, now: float) -> Charge | None:
    """``row`` failures in a row, or ``share`` of a window. O(1) for who does not fail."""
    worst = s.failures if s.failures.length >= s.breaks.length else s.breaks
    if worst.length >= row:
        what = "failures" if worst is s.failures else "broken answers"
        why = f"{worst.length} {what} in a row, last: {s.last}"
        found = Finding(worst.since, worst.length, 1.0)
        return Charge(s, Cause.CONSECUTIVE, why, 1 + worst.length, found)
    some = None if share is None else s.fails(share, row, now)
    if some is None:
        return None
    why = f"{some.value:.0%} of the last {some.n} attempts failed, last: {s.last}"
    return Charge(s, Cause.SHARE, why, some.value, some)


def slow(inside: Sequence[Standing], factor: float, now: float) -> tuple[list[Charge], float]:
    """Who is slower than the others, and the time to first byte that is typical (0: not known).

    With certainty on both sides, since times to first byte may be spread over three orders of
    magnitude: the median of the one is surely above the limit, and the limit counts from as high
    as the medians of the others may be. O(endpoints).
    """
    known = {s.name: high for s in inside if (high := _highest(s.times(now))) is not None}
    order = sorted(known.values())
    charges = []
    for s in inside:
        typical = _without(order, known.get(s.name))
        if typical is None or now < s.spared_until:
            continue
        limit = over(typical, factor)
        found = s.slower_than(limit, now)
        if found is None:
            continue
        others = [known[each.name] for each in inside if each is not s and each.name in known]
        if len(others) > 2:
            deviation = median([abs(each - typical) for each in others])
            if typical + SPREAD * deviation > limit:
                limit = typical + SPREAD * deviation
                found = s.slower_than(limit, now)
        if found is not None:
            times = spelled(found.value), spelled(typical)
            why = "time to first byte {} against {} of the others".format(*times)
            charges.append(Charge(s, Cause.LATENCY, why, -typical / found.value, found, limit))
    return charges, median(order) if order else 0.0


def confirmed(charge: Charge, others: Sequence[Standing], now: float) -> bool:
    """Whether ``others``, those without a charge, were clearly better in the same time. A surge
    slows all of them at once, and some show it first; so does an outage. Nobody is ejected for a
    row of failures that has not grown since the last look. O(endpoints), about 0.1 us each for what
    has just happened and 6 us for what has lasted."""
    found = charge.found
    bad = known = 0
    if charge.cause is Cause.LATENCY:
        for each in others:
            its_bad, its_known = each.slow_since(found.since, charge.limit, now)
            bad += its_bad
            known += its_known
        return known > 0 and bad <= CLEARLY * known
    if charge.cause is Cause.CONSECUTIVE and not charge.standing.accused:
        return False
    for each in others:
        its_bad, its_known = each.failed_since(found.since)
        bad += its_bad
        known += its_known
    return bad <= CLEARLY * found.value * known


def over(typical: float, factor: float) -> float:
    """The seconds to first byte above which an endpoint is slow."""
    return max(factor * typical, typical + FLOOR)


def spelled(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _highest(times: Sequence[float]) -> float | None:
    """As high as the median of what these are drawn from may be."""
    n = len(times)
    return times[NEEDED[n] - 1] if n >= ENOUGH else None


def _without(order: Sequence[float], one: float | None) -> float | None:
    """The (upper) median of sorted values without one of them. O(log n)."""
    n = len(order)
    if one is None:
        return order[n // 2] if n else None
    if n < 2:
        return None
    middle = (n - 1) // 2
    return order[middle] if middle < bisect_left(order, one) else order[middle + 1]
