"""What is counted over the records of a run."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from gateway.sim.records import Record, Sample

Judge = Callable[[Record], bool]
"""Whether an answer was worth having."""


def attempts_per_request(records: Sequence[Record]) -> float:
    """Attempts sent upstream, over exchanges."""
    return sum(len(each.attempts) for each in records) / max(1, len(records))


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed; 0 of none. O(n log n)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def failures(records: Iterable[Record]) -> dict[str, int]:
    """Why exchanges were not answered well, most frequent first: the reason, else status or end."""
    counts = Counter(
        each.reason or (f"status {each.status}" if each.end == "finished" else each.end)
        for each in records
        if not each.ok
    )
    return dict(counts.most_common())


def failed(records: Iterable[Record]) -> int:
    """How many were not answered well."""
    return sum(not each.ok for each in records)


def within(seconds: float) -> Judge:
    """Answered in full in so many seconds."""
    return lambda record: record.ok and record.latency <= seconds


def within_own(factor: float) -> Judge:
    """Answered in full within ``factor`` times its own service time."""
    return lambda record: record.ok and record.latency <= factor * record.service


def share(records: Sequence[Record], useful: Judge) -> float:
    """Of the records, that which was worth having; 1 of none."""
    return sum(map(useful, records)) / len(records) if records else 1.0


def goodput(records: Sequence[Record], seconds: float, slots: int, useful: Judge) -> float:
    """Useful answers to those that arrived in these ``seconds``, over the capacity of ``slots``.

    Capacity is slots over the mean of the service times that were in fact drawn, so that a lucky
    draw counts for nobody and short windows can be compared.
    """
    drawn = [each.service for each in records if each.service]
    if not drawn:
        return 0.0
    return sum(map(useful, records)) / seconds * sum(drawn) / len(drawn) / slots


def turning_point(values: Sequence[float], least: float) -> int:
    """The index from which on all values are at least ``least``; their number if none is."""
    below = [n for n, value in enumerate(values) if value < least]
    return below[-1] + 1 if below else 0


def refused_upstream(samples: Sequence[Sample]) -> tuple[int, int]:
    """Attempts between the first and the last of the samples, and how many servers refused."""
    if not samples:
        return 0, 0
    first, last = samples[0].servers, samples[-1].servers
    return (
        sum(b[0] - a[0] for a, b in zip(first, last, strict=True)),
        sum(b[1] - a[1] for a, b in zip(first, last, strict=True)),
    )
