"""What ``bench_batch`` found, for people: a table for each part, and the targets."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from loadtests.batch_stage import ALONE, HTTP, MAX_DELAY, SHARED
from loadtests.bench import Result

DIRECT, BATCHED = "direct", "direct, batched"
Results = Mapping[str, Result]

TITLES = {
    "cost": "Inside the process: 64 callers, 1 KB tensors, CPU without the HTTP edges",
    "answers": "Answers, checked by tritonclient: 64 threads, each with its own rows",
    "many": "Triton, 64 clients, rows of 64 B (16 FP32)",
    "wide": "Triton, 64 clients, rows of 1 KB (256 FP32)",
    "one": "Triton, a single client",
    "free": "Triton, a single client, a model without a price",
    "poison": "Triton, 64 clients, one request in 100 is poison",
    "mlserver": "MLServer (JSON), 64 clients, rows of 16 FP32",
}

FIGURES = (
    ("per_second", "requests/s", 0),
    ("p50_ms", "latency p50, ms", 2),
    ("p99_ms", "latency p99, ms", 2),
    ("rows_per_call", "rows per inference", 1),
    ("gateway_us", "gateway's CPU per request, us", 0),
    ("starved_share", "gateway without a core, share", 2),
    ("server_us", "model server's CPU per request, us", 0),
    ("load_share", "load generator, share of a core", 2),
    ("broken", "broken connections", 0),
    ("least_us", "CPU per request, us, least", 1),
    ("median_us", "CPU per request, us, median", 1),
    ("rows_per_batch", "rows per batch", 1),
    ("sent", "requests", 0),
    ("poisoned", "of these poison", 0),
    ("right", "right answers", 0),
    ("wrong", "wrong answers", 0),
    ("refused", "refused", 0),
    ("spread", "poison answered", 0),
    ("inferences", "inferences", 0),
    ("inference_share", "inferences per request", 3),
)


@dataclass(frozen=True)
class Target:
    """``bound`` is the most that ``measured`` may be, or the least if ``least``. ``reached`` is
    None where nothing was measured."""

    title: str
    bound: float
    least: bool
    measured: float | None

    @property
    def reached(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.bound if self.least else self.measured <= self.bound


def targets(results: Results) -> list[Target]:
    return [*_load(results), *_single(results), *_others(results)]


def _load(results: Results) -> Iterator[Target]:
    for part, size in (("many", "64 B"), ("wide", "1 KB")):
        for way in (HTTP, SHARED):
            name = f"{way}, {size}"

            def both(key: str, base: str, how: Pair, part: str = part, way: str = way) -> Found:
                return within(results, part, way, base, key, how)

            ratio = operator.truediv
            yield Target(
                f"{name}: requests/s to {DIRECT}", 5, True, both("per_second", DIRECT, ratio)
            )
            yield Target(
                f"{name}: requests/s to {BATCHED}", 0.9, True, both("per_second", BATCHED, ratio)
            )
            later = both("p50_ms", BATCHED, operator.sub)
            yield Target(f"{name}: p50 after {BATCHED}, ms", MAX_DELAY * 1e3, False, later)


def _single(results: Results) -> Iterator[Target]:
    for part, model in (("one", ""), ("free", ", model without a price")):
        for way in (HTTP, SHARED):
            loss = within(results, part, way, ALONE, "p50_ms", operator.sub)
            yield Target(f"{way}: p50 lost to batching alone, ms{model}", 0.3, False, loss)


def _others(results: Results) -> Iterator[Target]:
    def median(part: str, name: str, key: str) -> Found:
        return results[part].median(name, key) if part in results else None

    yield Target("CPU per request, binary, us", 40, False, median("cost", "binary", "least_us"))
    for way in (HTTP, SHARED):
        share = median("poison", way, "inference_share")
        yield Target(f"{way}: inferences per request, with poison", 0.2, False, share)
    for part in ("poison", "answers"):
        for way in (HTTP, SHARED, ALONE):
            if part in results and way in results[part].samples:
                right = median(part, way, "right_share")
                yield Target(f"{way}: right answers, {part}", 1, True, right)


Found = float | None
Pair = Callable[[float, float], float]


def within(results: Results, part: str, name: str, base: str, key: str, how: Pair) -> Found:
    """Median over the rounds of ``how`` of a figure and the base's in the same round."""
    if part not in results:
        return None
    samples = results[part].samples
    bases = samples.get(base, {})
    found = [
        how(sample[key], bases[number][key])
        for number, sample in samples.get(name, {}).items()
        if key in sample and key in bases.get(number, {})
    ]
    return statistics.median(found) if found else None


def tables(results: Results) -> dict[str, list[list[str]]]:
    """By part: heading and rows as text. Figures that nobody has are left out."""
    found = {}
    for part, result in results.items():
        names = list(result.samples)
        rows = [["", *names]]
        for key, title, digits in FIGURES:
            values = [result.median(name, key) for name in names]
            if any(value is not None for value in values):
                cells = ["-" if v is None else f"{v:,.{digits}f}" for v in values]
                rows.append([title, *cells])
        found[part] = rows
    return found


def show(results: Results, machine: Mapping[str, str], method: str) -> None:
    """To stdout, as text."""
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), highlight=False)
    console.print(method, highlight=False)
    for part, rows in tables(results).items():
        shown = Table(*rows[0], title=TITLES[part], title_justify="left")
        for column in shown.columns[1:]:
            column.justify = "right"
        for row in rows[1:]:
            shown.add_row(*row)
        console.print(shown)
    for target in targets(results):
        if target.measured is not None:
            verdict = "reached" if target.reached else "MISSED "
            bound = f"at {'least' if target.least else 'most'} {target.bound:g}"
            console.print(f"{verdict}: {target.title}: {target.measured:.3g} ({bound})")


def markdown(results: Results, machine: Mapping[str, str], method: str) -> str:
    """The same, for pasting."""
    lines = []
    for part, rows in tables(results).items():
        lines += [f"**{TITLES[part]}**", "", "| " + " | ".join(rows[0]) + " |"]
        lines.append("| --- |" + " ---: |" * (len(rows[0]) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in rows[1:]] + [""]
    lines += ["| target | wanted | measured | |", "| --- | ---: | ---: | --- |"]
    for target in targets(results):
        if target.measured is not None:
            verdict = "reached" if target.reached else "**missed**"
            bound = f"{'>=' if target.least else '<='} {target.bound:g}"
            lines.append(f"| {target.title} | {bound} | {target.measured:.3g} | {verdict} |")
    about = ", ".join(f"{name} {value}" for name, value in machine.items())
    return "\n".join([*lines, "", f"{about}. {method}"])


def document(results: Results) -> dict[str, object]:
    """For JSON: every sample of every round, and the targets."""
    judged = [{**asdict(target), "reached": target.reached} for target in targets(results)]
    return {
        "tests": {part: result.as_dict() for part, result in results.items()},
        "targets": judged,
    }
