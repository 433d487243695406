"""Goodput against offered load: one model server, with no proxy, Envoy and tailrace before it.

    python -m loadtests.goodput [--quick] [--only SUBJECT,...] [--rounds N]
                                [--json FILE] [--svg FILE] [--draw FILE]

Goodput is what overload destroys: the answers per second that came in full while they were of
use (within ten times the mean service time), as a share of what the server can do at its best.
Each point is a run of its own from cold: open-loop Poisson arrivals, clients that leave after
5 s, some seconds to settle, then the window that counts. ``--draw`` draws a picture again from
the JSON of an earlier run.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from loadtests import machine, svg
from loadtests.bench import LoadError
from loadtests.judging import goodput
from loadtests.load_plan import Flow
from loadtests.processes import Cores, StartError, raise_open_files
from loadtests.proxies import PROXIES
from loadtests.records import due, failures, quantile, useful
from loadtests.scenario import CAPACITY, MEAN, SLOTS, USEFUL, Run, Seen
from loadtests.stage import Stage
from loadtests.subjects import SUBJECTS, missing

LOADS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
QUICK_LOADS = (0.25, 0.75, 1.0, 2.0, 5.0)
NAMES = {"none": "no proxy", "envoy": "Envoy", "tailrace": "tailrace"}
_COLOURS = {"tailrace": 0, "envoy": 1, "none": 2}
_AMISS = 0.01
"""Of capacity: by so much may the generator's own lag change a point before it is no figure."""


@dataclass(frozen=True)
class Timing:
    """Seconds before the window, and of it."""

    settle: float
    window: float


FULL, QUICK = Timing(10.0, 20.0), Timing(3.0, 4.0)


def measure(stage: Stage, name: str, load: float, timing: Timing, seed: int) -> dict[str, Any]:
    """One point. LoadError, StartError when it cannot be measured."""
    seconds = timing.settle + timing.window
    flow = Flow("all", ((seconds, load * CAPACITY),))
    run = Run(0, f"{load}x", (flow,), lambda seen: [], every=1.0)
    return point(stage.play(run, name, seed), load, timing)


def point(seen: Seen, load: float, timing: Timing) -> dict[str, Any]:
    """The figures of one run. ``valid``: counted from when they were sent, not from when they
    were due, the answers would come to about the same, so the generator's lag decided nothing."""
    since, until = timing.settle, timing.settle + timing.window
    reached = goodput(seen, since, until, CAPACITY, USEFUL)
    from_sending = sum(
        1
        for each in seen.records
        if each.ok and since <= each.done < until and each.latency - each.lag <= USEFUL
    )
    amiss = from_sending / timing.window / CAPACITY - reached
    shown = due(seen.records, since, until)
    good = [each.latency for each in useful(shown, USEFUL)]
    return {
        "load": load,
        "goodput": reached,
        "offered": len(shown) / timing.window / CAPACITY,
        "refused": sum(each.refused for each in shown) / max(1, len(shown)),
        "useful_p50_ms": quantile(good, 0.5) * 1000,
        "useful_p99_ms": quantile(good, 0.99) * 1000,
        "lag_p99_ms": seen.lag() * 1000,
        "unsent": seen.tape.unsent,
        "failures": failures(shown),
        "valid": amiss <= _AMISS,
    }


def medians(points: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(load, median goodput of its valid rounds), in order of load."""
    by_load: dict[float, list[float]] = {}
    for each in points:
        if each["valid"]:
            by_load.setdefault(each["load"], []).append(each["goodput"])
    return sorted((load, statistics.median(values)) for load, values in by_load.items())


def picture(document: Mapping[str, Any]) -> svg.Chart:
    """The chart of a document that this command has written."""
    tops = [load for points in document["points"].values() for load, _ in medians(points)]
    top = max(tops, default=LOADS[-1])
    ticks = [load for load in (0.25, 0.5, 1.0, 2.0, 5.0, 10.0) if load <= top]
    if ticks[-1] < top:
        ticks.append(top)
    lines = [
        svg.Line(NAMES[name], measured, _COLOURS[name])
        for name, points in document["points"].items()
        if (measured := medians(points))
    ]
    return svg.Chart(
        "Goodput under overload",
        f"One model server: {SLOTS} slots, {MEAN * 1000:.0f} ms mean service time, at best "
        f"{CAPACITY:.0f} requests/s. Open-loop load.",
        svg.Axis("offered load, times capacity", [(load, f"{load:g} x") for load in ticks]),
        svg.Axis(
            f"useful answers (within {USEFUL * 1000:.0f} ms), share of capacity",
            [(share / 100, f"{share} %") for share in (0, 25, 50, 75, 100)],
        ),
        lines,
        # A straight line, but not over a logarithmic axis.
        svg.Line("", [*((n / 40, n / 40) for n in range(10, 41)), (top, 1.0)]),
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.goodput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer, shorter points: a look, not a figure")
    add("--only", default="", metavar="NAME,...", help=f"of {', '.join(SUBJECTS)}")
    add("--rounds", type=int, default=1, help="runs of each point; the median is drawn")
    add("--json", type=Path, metavar="FILE", help="everything measured")
    add("--svg", type=Path, metavar="FILE", help="the picture")
    add("--draw", type=Path, metavar="FILE", help="measure nothing, draw from this JSON")
    options = parser.parse_args()
    names = {name.strip() for name in options.only.split(",") if name.strip()}
    if unknown := names.difference(SUBJECTS):
        parser.error(f"--only: not known: {', '.join(sorted(unknown))}")
    if options.draw is not None and options.svg is None:
        parser.error("--draw needs --svg")
    options.subjects = [name for name in SUBJECTS if name in names] or list(SUBJECTS)
    return options


def main() -> int:
    options = arguments()
    if options.draw is not None:
        options.svg.write_text(svg.draw(picture(json.loads(options.draw.read_text()))))
        return 0
    # SIGTERM unwinds like Ctrl-C, so that every child process is ended and no folder stays.
    signal.signal(signal.SIGTERM, _unwind)
    raise_open_files()
    document: dict[str, Any] = {
        "machine": machine.describe(),
        "settings": {"quick": options.quick, "slots": SLOTS, "mean_s": MEAN, "useful_s": USEFUL},
        "points": {},
        "problems": [],
    }
    _measure_all(options, document)
    peers = (PROXIES[name] for name in options.subjects if name in PROXIES)
    document["versions"] = machine.versions(peers)
    for line in table(document):
        print(line)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    if options.svg is not None:
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        options.svg.write_text(svg.draw(picture(document)))
    return 0 if any(document["points"].values()) else 1


def _measure_all(options: argparse.Namespace, document: dict[str, Any]) -> None:
    """Interleaved: every subject once at each load, so that what slows the machine slows all."""
    loads, timing = (QUICK_LOADS, QUICK) if options.quick else (LOADS, FULL)
    subjects = [name for name in options.subjects if not missing(name)]
    document["problems"] += [f"{n} is not installed" for n in options.subjects if n not in subjects]
    document["points"] = {name: [] for name in subjects}
    for number in range(options.rounds):
        for load in loads:
            for name in subjects:
                with tempfile.TemporaryDirectory(prefix="tailrace-goodput-") as scratch:
                    stage = Stage(Path(scratch), Cores.split())
                    try:
                        measured = measure(stage, name, load, timing, seed=number + 1)
                    except (LoadError, StartError) as error:
                        document["problems"].append(f"{name} at {load}x: {error}")
                        print(f"  PROBLEM {name} at {load}x: {error}", file=sys.stderr)
                        continue
                document["points"][name].append(measured)
                print(f"  {name} at {load}x: {json.dumps(measured)}", file=sys.stderr, flush=True)


def table(document: Mapping[str, Any]) -> list[str]:
    """The medians as markdown: a line for each load."""
    points = {name: dict(medians(each)) for name, each in document["points"].items()}
    lines = ["| offered load | " + " | ".join(NAMES[name] for name in points) + " |"]
    lines.append("| ---: |" + " ---: |" * len(points))
    for load in sorted({load for each in points.values() for load in each}):
        cells = [f"{100 * each[load]:.1f} %" if load in each else "-" for each in points.values()]
        lines.append(f"| {load:g}x | " + " | ".join(cells) + " |")
    for name, each in document["points"].items():
        lines += [
            f"problem: {NAMES[name]} at {bad['load']:g}x: the generator fell behind"
            for bad in each
            if not bad["valid"]
        ]
    return lines + [f"problem: {each}" for each in document["problems"]]


def _unwind(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
