"""The scenarios of overload and failure on real processes, with no proxy, Envoy and tailrace.

    python -m loadtests.scenarios [--row N ...] [--quick] [--only SUBJECT,...]
                                  [--timeline] [--json FILE] [--markdown] [--list]

Progress goes to stderr, the table to stdout. Each figure stands beside what is demanded of it,
with the verdict for tailrace; the exit code says whether something was measured, not whether it
was good: figures from a machine that others use too are no test. A run in which the load
generator fell behind its own plan is marked invalid.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

from loadtests import machine, rows_failure, rows_overload, scenario_report
from loadtests.bench import LoadError
from loadtests.processes import Cores, StartError, raise_open_files
from loadtests.proxies import PROXIES
from loadtests.scenario import Run
from loadtests.scenario_report import Result
from loadtests.stage import Stage
from loadtests.subjects import SUBJECTS, missing

EVENT = 60.0
QUICK = 15.0


def all_runs(event: float) -> list[Run]:
    """Every run of every row, in the order of the rows."""
    runs = [*rows_overload.runs(event), *rows_failure.runs(event)]
    return sorted(runs, key=lambda run: run.row)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.scenarios",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--row", type=int, nargs="*", default=[], metavar="N", help="these rows only")
    add("--run", default="", metavar="TEXT", help="runs with this in their name only")
    add("--quick", action="store_true", help=f"events of {QUICK:g} s: a look, not a figure")
    add("--only", default="", metavar="NAME,...", help=f"of {', '.join(SUBJECTS)}")
    add("--seed", type=int, default=1, help="of the arrivals")
    add("--json", type=Path, metavar="FILE", help="everything measured")
    add("--markdown", action="store_true", help="print the table as markdown")
    add("--timeline", action="store_true", help="print every run second by second, on stderr")
    add("--list", action="store_true", help="what there is, and end")
    options = parser.parse_args()
    names = {name.strip() for name in options.only.split(",") if name.strip()}
    if unknown := names.difference(SUBJECTS):
        parser.error(f"--only: not known: {', '.join(sorted(unknown))}")
    options.subjects = [name for name in SUBJECTS if name in names] or list(SUBJECTS)
    options.runs = [
        run
        for run in all_runs(QUICK if options.quick else EVENT)
        if (not options.row or run.row in options.row) and options.run in run.name
    ]
    if not options.runs:
        parser.error("no such run; --list shows what there is")
    return options


def main() -> int:
    options = arguments()
    if options.list:
        for run in options.runs:
            seconds = f"{run.seconds:3.0f} s"
            print(f"{run.row:2}  {seconds}  {run.name}  ({', '.join(run.subjects)})")
        return 0
    # SIGTERM unwinds like Ctrl-C, so that every child process is ended and no folder stays.
    signal.signal(signal.SIGTERM, _unwind)
    raise_open_files()
    before = machine.describe()
    results: list[Result] = []
    problems: list[str] = []
    for run in options.runs:
        for name in options.subjects:
            if name in run.subjects:
                _play(run, name, options, results, problems)
    _write(options, before, results, problems)
    return 0 if results else 1


def _play(
    run: Run, name: str, options: argparse.Namespace, results: list[Result], problems: list[str]
) -> None:
    """One run, in a folder of its own; what goes wrong is a problem and no end."""
    title = f"row {run.row}, {run.name}, {name}"
    if missing(name):
        _note(problems, f"skipped: {name} is not installed")
        return
    with tempfile.TemporaryDirectory(prefix="tailrace-scenario-") as scratch:
        try:
            seen = Stage(Path(scratch), Cores.split()).play(run, name, options.seed)
            result = Result.of(run, seen)
        except (LoadError, StartError) as error:
            _note(problems, f"{title}: {error}")
            return
    results.append(result)
    _say(f"{title}: {result.verdict}")
    _say("".join(f"    {_mark(claim.holds)}{claim}\n" for claim in result.claims).rstrip())
    _say(f"    {json.dumps(result.figures)}")
    if options.timeline:
        _say("\n".join(scenario_report.timeline(seen, run.seconds)))


def _mark(holds: bool | None) -> str:
    return "MISSED " if holds is False else ""


def _write(
    options: argparse.Namespace,
    before: dict[str, str],
    results: list[Result],
    problems: Iterable[str],
) -> None:
    versions = machine.versions(PROXIES[name] for name in options.subjects if name in PROXIES)
    command = f"python -m loadtests.scenarios{' --quick' if options.quick else ''}"
    if options.markdown:
        print(scenario_report.markdown(results, before, versions, command))
    else:
        scenario_report.print_table(results)
    for problem in problems:
        print(f"problem: {problem}")
    if options.json is None:
        return
    document = {
        "machine": before,
        "versions": versions,
        "settings": {"quick": options.quick, "seed": options.seed},
        "problems": problems,
        "runs": [result.as_dict() for result in results],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=2) + "\n")


def _note(problems: list[str], text: str) -> None:
    if text not in problems:
        _say(f"  PROBLEM {text}")
        problems.append(text)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _unwind(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
