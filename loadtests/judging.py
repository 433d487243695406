"""The figures that rows have in common, from what a run has shown. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from loadtests.records import Record, due, ended, quantile, settled, share, useful
from loadtests.scenario import CAPACITY, USEFUL, Claim, Sample, Seen

PROMPT = 0.050
"""Seconds in which a refusal should be told."""


def goodput(seen: Seen, since: float, until: float, capacity: float, within: float) -> float:
    """Useful answers per second that came in [since, until), as a share of ``capacity``."""
    answers = useful(ended(seen.records, since, until), within)
    return sum(1 for _ in answers) / (until - since) / capacity


def goodput_claims(
    seen: Seen,
    since: float,
    until: float,
    least: float,
    *,
    settle: float = 10.0,
    capacity: float = CAPACITY,
    within: float = USEFUL,
    text: str = "useful answers, of capacity",
) -> list[Claim]:
    """At least ``least`` of ``capacity`` from ``settle`` seconds on, and since when in fact."""
    done = goodput(seen, since + settle, until, capacity, within)
    reached = settled(useful(seen.records, within), since, until, least * capacity)
    return [
        Claim(text, done, ">=", least, "%"),
        Claim("so from this time on", reached, unit="s"),
    ]


def refusal_claims(records: Sequence[Record]) -> list[Claim]:
    """Told soon, and told when to come back."""
    told = [each for each in records if each.refused]
    if not told:
        return [Claim("refusals", 0.0)]
    soon = quantile((each.latency for each in told), 0.95)
    with_time = share((each for each in told if each.retry_after), told)
    return [
        Claim("95 % of the refusals within", soon, "<=", PROMPT, "ms"),
        Claim("refusals with Retry-After", with_time, ">=", 1.0, "%"),
        Claim("refused, of all", len(told) / len(records), unit="%"),
    ]


def first_refusals(records: Sequence[Record]) -> list[Claim]:
    """How soon they are told while the overload is new."""
    told = [each.latency for each in records if each.refused]
    return [Claim("in the first 10 s, 95 % within", quantile(told, 0.95), unit="ms")]


def refused(records: Iterable[Record]) -> int:
    return sum(each.refused for each in records)


def failed(records: Iterable[Record]) -> int:
    return sum(not each.ok for each in records)


def first_tries(records: Iterable[Record], since: float, until: float) -> list[Record]:
    return [each for each in due(records, since, until) if each.number == 0]


def between(samples: Iterable[Sample], since: float, until: float) -> list[Sample]:
    """The samples of [since, until)."""
    return [each for each in samples if since <= each.at < until]


# -- what the servers say --------------------------------------------------------------------------


def counted(samples: Sequence[Sample], key: str, since: float, until: float) -> float:
    """By how much ``key`` of all servers grew between the samples nearest to the two times."""
    inside = [each for each in samples if since <= each.at <= until and _whole(each)]
    if len(inside) < 2:
        return 0.0
    return _sum(inside[-1], key) - _sum(inside[0], key)


def wasted(samples: Sequence[Sample], since: float, until: float) -> float | None:
    """The share of the servers' busy time that nobody had anything of."""
    busy = counted(samples, "busy_seconds", since, until)
    return counted(samples, "wasted_seconds", since, until) / busy if busy else None


def arrival_rates(
    samples: Sequence[Sample], server: int, span: float = 1.0
) -> Iterator[tuple[float, float]]:
    """(seconds, requests per second of one server in the ``span`` before), for each sample."""
    known = [(each.at, own["arrived"]) for each in samples if (own := each.servers[server])]
    first = 0
    for at, arrived in known:
        while known[first + 1][0] < at - span:
            first += 1
        before, then = known[first]
        if at - before >= span / 2:
            yield at, (arrived - then) / (at - before)


def _whole(sample: Sample) -> bool:
    return all(server is not None for server in sample.servers)


def _sum(sample: Sample, key: str) -> float:
    return sum(server[key] for server in sample.servers if server is not None)


# -- what tailrace says of itself ------------------------------------------------------------------


def limits(samples: Iterable[Sample], since: float, until: float) -> list[float]:
    """Every admission limit that was shown in these seconds."""
    shown = [
        each["value"] if isinstance(each, dict) else each
        for sample in samples
        if since <= sample.at <= until
        for each in find(sample.filters, "limit")
        if not isinstance(each, dict) or "value" in each
    ]
    return [float(each) for each in shown if isinstance(each, int | float)]


def limit_claims(
    samples: Sequence[Sample], since: float, until: float, least: float, most: float
) -> list[Claim]:
    seen = limits(samples, since, until)
    when = f"limit between {since:g} and {until:g} s"
    return [
        Claim(f"{when}, lowest", min(seen, default=None), ">=", least),
        Claim(f"{when}, highest", max(seen, default=None), "<=", most),
    ]


def states(sample: Sample) -> list[str]:
    """The state of each endpoint; nothing where nobody tells."""
    return [str(state) for state in find(sample.clusters, "state")]


def endpoints(sample: Sample) -> list[Mapping[str, Any]]:
    """What ``/clusters`` says of each endpoint, in the order of the configuration."""
    return [each for group in find(sample.clusters, "endpoints") for each in group]


def in_flight(sample: Sample) -> float | None:
    """What tailrace believes to be under way or waiting; None where nobody tells."""
    if sample.clusters is None:
        return None
    counts = [each["in_flight"] for each in endpoints(sample)]
    for key in ("in_flight", "queued", "waiting"):
        counts += [each for each in find(sample.filters, key) if isinstance(each, int | float)]
    return float(sum(counts))


def find(tree: Any, key: str) -> Iterator[Any]:
    """Every value of ``key``, wherever in ``tree`` it is. Depth first."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            else:
                yield from find(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from find(value, key)
