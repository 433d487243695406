"""From judged runs to what people read: a table, markdown, JSON."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from loadtests.judging import between, limits
from loadtests.records import End, due, ended, failures, quantile, useful
from loadtests.scenario import USEFUL, Claim, Run, Seen, shown
from loadtests.subjects import SUBJECTS

SUBJECT = "tailrace"


@dataclass(frozen=True)
class Result:
    """One run against one subject, judged."""

    row: int
    name: str
    subject: str
    claims: tuple[Claim, ...]
    valid: bool
    figures: Mapping[str, object]

    @classmethod
    def of(cls, run: Run, seen: Seen) -> "Result":
        tape = seen.tape
        figures: dict[str, object] = {
            "requests": len(seen.records),
            "lag_p99_ms": round(seen.lag() * 1000, 2),
            "unsent": tape.unsent,
            "peak_connections": tape.peak_connections,
            "core_shares": {
                name: round(seconds / tape.wall_seconds, 3) for name, seconds in seen.cpu.items()
            },
            "failures": failures(seen.records),
        }
        if seen.subject != "none" and seen.records:
            figures["cpu_us_per_request"] = round(seen.cpu["proxy"] / len(seen.records) * 1e6, 1)
        claims = tuple(run.judge(seen))
        return cls(run.row, run.name, seen.subject, claims, seen.valid(), figures)

    @property
    def verdict(self) -> str:
        """Held, missed, or invalid where the generator was the limit. Empty: nothing to judge."""
        held = [claim.holds for claim in self.claims if claim.bound is not None]
        if not self.valid:
            return "invalid"
        if False in held:
            return "missed"
        return "not measured" if None in held else "held" if held else ""

    def as_dict(self) -> dict[str, object]:
        claims = [
            {
                "text": claim.text,
                "value": claim.value,
                "sign": claim.sign,
                "bound": claim.bound,
                "unit": claim.unit,
                "holds": claim.holds,
            }
            for claim in self.claims
        ]
        return {
            "row": self.row,
            "name": self.name,
            "subject": self.subject,
            "verdict": self.verdict,
            "claims": claims,
            **self.figures,
        }


def rows(results: Iterable[Result]) -> list[list[str]]:
    """Heading and lines: scenario, figure, demanded, each subject's figure, tailrace's verdict.

    A run whose generator fell behind has its figures in brackets: they say nothing.
    """
    known = list(results)
    names = [name for name in SUBJECTS if any(each.subject == name for each in known)]
    lines = [["scenario", "figure", "demanded", *names, ""]]
    for row, name in dict.fromkeys((each.row, each.name) for each in known):
        runs = {each.subject: each for each in known if (each.row, each.name) == (row, name)}
        title = f"{row} {name}"
        for claim in _claims(runs.values()):
            demanded = "" if claim.bound is None else f"{claim.sign} {_bound(claim)}"
            cells = [_cell(runs.get(each), claim.text) for each in names]
            judged = _find(runs.get(SUBJECT), claim.text)
            lines.append([title, claim.text, demanded, *cells, _verdict(judged, runs)])
            title = ""
    return lines


def _claims(runs: Iterable[Result]) -> list[Claim]:
    """Every claim that any subject's run makes, once, tailrace's own first."""
    claims: dict[str, Claim] = {}
    for result in sorted(runs, key=lambda each: each.subject != SUBJECT):
        for claim in result.claims:
            claims.setdefault(claim.text, claim)
    return list(claims.values())


def _find(result: Result | None, text: str) -> Claim | None:
    return next((c for c in result.claims if c.text == text), None) if result else None


def _cell(result: Result | None, text: str) -> str:
    claim = _find(result, text)
    if result is None or claim is None:
        return ""
    value = "-" if claim.value is None else shown(claim.value, claim.unit)
    return value if result.valid else f"({value})"


def _bound(claim: Claim) -> str:
    return shown(claim.bound, claim.unit)


def _verdict(claim: Claim | None, runs: Mapping[str, Result]) -> str:
    if claim is None or claim.bound is None:
        return ""
    if not runs[SUBJECT].valid:
        return "invalid"
    return {True: "held", False: "MISSED", None: "not measured"}[claim.holds]


def timeline(seen: Seen, seconds: float) -> list[str]:
    """The run second by second: what was due and what came, and what everybody said of himself."""
    lines = [
        "second   due    ok useful  p50 ms  p99 ms refused p95 ms  left  limit; servers: at work"
    ]
    for start in range(int(seconds)):
        end = start + 1
        came = ended(seen.records, start, end)
        good = [each.latency for each in came if each.ok]
        told = [each.latency for each in came if each.refused]
        looks = between(seen.samples, start, end)[:1]
        limit = " ".join(f"{each:g}" for each in limits(looks, start, end))
        work = " ".join("-" if s is None else f"{s['in_service']:g}+{s['queued']:g}"
                        for look in looks for s in look.servers)  # fmt: skip
        lines.append(
            f"{start:6d} {len(due(seen.records, start, end)):5d} {len(good):5d} "
            f"{sum(1 for _ in useful(came, USEFUL)):6d} {quantile(good, 0.5) * 1e3:7.0f} "
            f"{quantile(good, 0.99) * 1e3:7.0f} {len(told):7d} {quantile(told, 0.95) * 1e3:6.0f} "
            f"{sum(each.end is End.LEFT for each in came):5d}  {limit or '-'}; {work}"
        )
    return lines


def print_table(results: Sequence[Result]) -> None:
    heading, *lines = rows(results)
    table = Table(*heading)
    for column in table.columns[2:]:
        column.justify = "right"
    for line in lines:
        table.add_row(*line, end_section=False)
    Console(width=170).print(table)


def markdown(
    results: Sequence[Result],
    machine: Mapping[str, str],
    versions: Mapping[str, str],
    command: str,
) -> str:
    """The table and what it was measured on, for pasting into a page."""
    heading, *lines = rows(results)
    text = ["| " + " | ".join(heading) + " |"]
    text.append("| --- | --- |" + " ---: |" * (len(heading) - 3) + " --- |")
    text += ["| " + " | ".join(line) + " |" for line in lines]
    peers = ", ".join(f"{name} {versions[name]}" for name in SUBJECTS if name in versions)
    text.append(
        f"\nMeasured {machine['date']} on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['kernel']}, Python {machine['python']}; {peers}. Open-loop Poisson arrivals; "
        "latency from when a request was due; the proxy on one core, load and servers on the "
        f"others. `{command}`."
    )
    return "\n".join(text)
