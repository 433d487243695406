"""What is counted over the records of a run."""

from collections import Counter
from collections.abc import Iterable, Sequence

from gateway.sim.clients import Record


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
