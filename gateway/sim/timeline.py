"""A run second by second: what came, what became of it, and what admission thought meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.sim.stats import failures, quantile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.sim.records import Record
    from gateway.sim.world import Report

COLUMNS = ("second", "came", "ok", "p50 ms", "p95 ms", "refused", "in ms", "limit", "waiting")
ROW = "    {:>6}{:>7}{:>6}{:>8}{:>8}{:>9}{:>7}{:>11}{:>11}  {:<10}{}"


def timeline(report: Report) -> Iterator[str]:
    """Lines of a table. ``p50`` and ``p95`` are of the latency of good answers, ``in ms`` is the
    95th percentile of refusals, by the second of their arrival; limit and waiting show the range
    of the samples, and the letters the endpoints' states."""
    yield ROW.format(*COLUMNS, "endpoints", "failed")
    by_second: dict[int, list[Record]] = {}
    for each in report.records:
        by_second.setdefault(int(each.arrived), []).append(each)
    for second in range(max(by_second, default=0) + 1):
        came = by_second.get(second, [])
        good = [each.latency for each in came if each.ok]
        told = [each.latency for each in came if each.refused]
        samples = report.sampled(second, second + 1)
        gauges = [gauge for sample in samples for gauge in sample.routes]
        yield ROW.format(
            second,
            len(came),
            len(good),
            _ms(good, 0.5),
            _ms(good, 0.95),
            len(told),
            _ms(told, 0.95),
            _range([gauge.limit for gauge in gauges]),
            _range([gauge.queued for gauge in gauges]),
            "".join(state[0] for state in samples[-1].states) if samples else "",
            ", ".join(f"{reason} {count}" for reason, count in failures(came).items()),
        ).rstrip()


def _ms(seconds: list[float], share: float) -> str:
    return f"{quantile(seconds, share) * 1000:.0f}" if seconds else "-"


def _range(values: list[float]) -> str:
    return f"{min(values):.0f}-{max(values):.0f}" if values else "-"
