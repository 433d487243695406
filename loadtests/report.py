"""From samples to what people read: one table, the targets, JSON and markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from loadtests.bench import DIRECT, REFERENCE, Result

SUBJECT = "tailrace"
Results = Mapping[str, Result]


@dataclass(frozen=True)
class Figure:
    """One row: which figure of which test, how it is named and printed; ``ratio``: to Envoy."""

    test: str
    key: str
    title: str
    digits: int = 1
    ratio: bool = False


FIGURES = (
    Figure("requests", "cpu_us", "CPU per request, us"),
    Figure("requests", "cpu_us", "CPU per request, ratio to Envoy", 2, ratio=True),
    Figure("requests", "per_second", "requests/s, 32 connections", 0),
    Figure("requests", "p50_ms", "latency p50, saturated, ms", 2),
    Figure("requests", "p99_ms", "latency p99, saturated, ms", 2),
    Figure("requests", "resident_mb", "resident after this load, MB"),
    Figure("requests", "others_share", "share of its core that others took", 2),
    Figure("chunks", "cpu_us", "CPU per SSE chunk, us"),
    Figure("chunks", "cpu_us", "CPU per SSE chunk, ratio to Envoy", 2, ratio=True),
    Figure("chunks", "p50_ms", "delay per chunk p50, ms", 2),
    Figure("chunks", "p99_ms", "delay per chunk p99, ms", 2),
    Figure("chunks", "others_share", "share of its core that others took", 2),
    Figure("memory", "idle_mb", "resident idle, MB"),
    Figure("memory", "per_connection_kb", "resident per idle connection, KB"),
    Figure("memory", "after_requests_mb", "resident after many requests, MB"),
    Figure("memory", "growth_mb", "growth over the last 3/4 of them, MB", 2),
    Figure("start", "start_ms", "start until it accepts, ms", 0),
    Figure("streams", "added_p50_ms", "1,000 streams: added delay per token p50, ms", 2),
    Figure("streams", "added_p99_ms", "1,000 streams: added delay per token p99, ms", 2),
    Figure("streams", "cpu_us", "1,000 streams: CPU per token, us"),
    Figure("streams", "cpu_us", "1,000 streams: CPU per token, ratio to Envoy", 2, ratio=True),
    Figure("streams", "core_share", "1,000 streams: share of the core", 2),
    Figure("streams", "others_share", "1,000 streams: share of its core that others took", 2),
    Figure("streams", "load_share", "1,000 streams: share of the load's core", 2),
    Figure("streams", "delivered", "1,000 streams: tokens delivered / due", 3),
    Figure("streams", "resident_mb", "1,000 streams: resident, MB"),
)


@dataclass(frozen=True)
class Target:
    """A figure of tailrace and the most it may be."""

    title: str
    test: str
    key: str
    most: float
    ratio: bool = False
    subject: str = SUBJECT


TARGETS = (
    Target("CPU per request / Envoy", "requests", "cpu_us", 0.75, ratio=True),
    Target(
        "CPU per request / Envoy, every filter on",
        "requests",
        "cpu_us",
        0.75,
        ratio=True,
        subject="tailrace-all",
    ),
    Target("CPU per SSE chunk / Envoy", "chunks", "cpu_us", 0.8, ratio=True),
    Target("resident idle, MB", "memory", "idle_mb", 60),
    Target("resident per idle connection, KB", "memory", "per_connection_kb", 6),
    Target("growth over the last 3/4 of the requests, MB", "memory", "growth_mb", 1),
    Target("start, ms", "start", "start_ms", 500),
    Target("added delay per token p99, ms", "streams", "added_p99_ms", 20),
)


def value(results: Results, name: str, test: str, key: str, *, ratio: bool) -> float | None:
    if test not in results:
        return None
    return results[test].ratio(name, key) if ratio else results[test].median(name, key)


def table(results: Results, order: Sequence[str]) -> list[list[str]]:
    """Heading and rows as text. A figure nobody has is left out; one that somebody lacks is -."""
    measured = {name for result in results.values() for name in result.samples}
    names = [name for name in (DIRECT, *order) if name in measured]
    rows = [["", *names]]
    for figure in FIGURES:
        if figure.ratio and REFERENCE not in measured:
            continue
        values = [value(results, n, figure.test, figure.key, ratio=figure.ratio) for n in names]
        if any(v is not None for v in values):
            cells = ["-" if v is None else f"{v:,.{figure.digits}f}" for v in values]
            rows.append([figure.title, *cells])
    return rows


def targets(results: Results) -> list[dict[str, object]]:
    """Each target with what was measured; ``reached`` is None where nothing was."""
    judged: list[dict[str, object]] = []
    for target in TARGETS:
        got = value(results, target.subject, target.test, target.key, ratio=target.ratio)
        reached = None if got is None else got <= target.most
        judged.append({**asdict(target), "measured": got, "reached": reached})
    return judged


def print_table(results: Results, order: Sequence[str]) -> None:
    rows = table(results, order)
    shown = Table(*rows[0])
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in rows[1:]:
        shown.add_row(*row)
    console = Console()
    console.print(shown)
    for target in targets(results):
        if target["reached"] is not None:
            verdict = "reached" if target["reached"] else "MISSED"
            got = target["measured"]
            console.print(f"{verdict}: {target['title']}: {got:.3g} (at most {target['most']:g})")


def markdown(
    results: Results,
    order: Sequence[str],
    machine: Mapping[str, str],
    versions: Mapping[str, str],
    *,
    quick: bool,
) -> str:
    """The table, the targets and what it was measured on, for pasting into a README."""
    rows = table(results, order)
    lines = ["| " + " | ".join(rows[0]) + " |"]
    lines.append("| --- |" + " ---: |" * (len(rows[0]) - 1))
    lines += ["| " + " | ".join(row) + " |" for row in rows[1:]]
    judged = [target for target in targets(results) if target["reached"] is not None]
    if judged:
        lines += [
            "",
            "| target for tailrace | at most | measured | |",
            "| --- | ---: | ---: | --- |",
        ]
    for target in judged:
        verdict = "reached" if target["reached"] else "**missed**"
        title, got, most = target["title"], target["measured"], target["most"]
        lines.append(f"| {title} | {most:g} | {got:.3g} | {verdict} |")
    peers = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines.append(
        f"\nMeasured {machine['date']} on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['kernel']}, Python {machine['python']}; {peers}. "
        f"`python -m loadtests.compare{' --quick' if quick else ''}`."
    )
    return "\n".join(lines)
