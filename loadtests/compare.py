"""nginx, HAProxy, Envoy, a minimal aiohttp proxy and tailrace, side by side on this machine.

    python -m loadtests.compare [--quick] [--only NAME,...] [--json FILE] [--markdown]

Names are proxies, tests or both: ``--only envoy,tailrace,chunks``. Progress goes to stderr,
the table to stdout. The exit code says whether something was measured, not whether it was
good: figures from a machine that others use too are no test.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from loadtests import (
    machine,
    measure_memory,
    measure_requests,
    measure_start,
    measure_tokens,
    report,
)
from loadtests.bench import Bench, Result
from loadtests.processes import Cores, raise_open_files
from loadtests.proxies import PROXIES, which

TESTS: dict[str, Callable[[Bench], Result]] = {
    "requests": measure_requests.measure,
    "chunks": measure_tokens.measure_chunks,
    "memory": measure_memory.measure,
    "start": measure_start.measure,
    "streams": measure_tokens.measure_streams,
}
_NEEDS = {"requests": ("wrk", "nginx"), "memory": ("wrk", "nginx")}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer, shorter rounds: a look, not a figure")
    add("--rounds", type=int, help="rounds of each interleaved test (default 5, quick 1)")
    add("--only", default="", metavar="NAME,...", help="these proxies and tests only")
    add("--json", type=Path, metavar="FILE", help="everything measured, each round of it")
    add("--markdown", action="store_true", help="print the table as markdown")
    options = parser.parse_args()
    names = {name.strip() for name in options.only.split(",") if name.strip()}
    if unknown := names - PROXIES.keys() - TESTS.keys():
        known = ", ".join([*PROXIES, *TESTS])
        parser.error(f"--only: not known: {', '.join(sorted(unknown))}; known: {known}")
    options.proxies = [name for name in PROXIES if name in names] or list(PROXIES)
    options.tests = [name for name in TESTS if name in names] or list(TESTS)
    return options


def main() -> int:
    options = arguments()
    # SIGTERM unwinds like Ctrl-C, so that every child process is ended and no folder stays.
    signal.signal(signal.SIGTERM, _unwind)
    raise_open_files()
    before = machine.describe()
    with tempfile.TemporaryDirectory(prefix="tailrace-compare-") as scratch:
        bench = Bench(
            Path(scratch),
            Cores.split(),
            {name: PROXIES[name] for name in options.proxies},
            quick=options.quick,
            rounds=options.rounds or (1 if options.quick else 5),
        )
        results: dict[str, Result] = {}
        for name in options.tests:
            if missing := [program for program in _NEEDS.get(name, ()) if which(program) is None]:
                bench.problem(f"{name}: not measured, {' and '.join(missing)} not installed")
                continue
            bench.say(f"{name}: {(TESTS[name].__doc__ or '').splitlines()[0]}")
            results[name] = TESTS[name](bench)
    versions = machine.versions(bench.proxies.values())
    _write(options, bench, results, before, versions)
    for name, why in bench.skipped.items():
        print(f"skipped: {name}: {why}")
    for problem in bench.problems:
        print(f"problem: {problem}")
    return 0 if any(result.samples for result in results.values()) else 1


def _write(
    options: argparse.Namespace,
    bench: Bench,
    results: dict[str, Result],
    before: dict[str, str],
    versions: dict[str, str],
) -> None:
    if options.markdown:
        print(report.markdown(results, options.proxies, before, versions, quick=bench.quick))
    else:
        report.print_table(results, options.proxies)
    if options.json is None:
        return
    document = {
        "machine": before,
        "versions": versions,
        "settings": {
            "quick": bench.quick,
            "rounds": bench.rounds,
            "proxy_cores": sorted(bench.cores.proxy),
            "load_cores": sorted(bench.cores.load),
        },
        "skipped": bench.skipped,
        "problems": bench.problems,
        "tests": {name: result.as_dict() for name, result in results.items()},
        "targets": report.targets(results),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=2) + "\n")


def _unwind(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
