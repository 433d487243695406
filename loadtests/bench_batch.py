"""Batching in front of a real Triton and a real MLServer, side by side with asking them directly.

    python -m loadtests.bench_batch [--quick] [--only PART,...] [--json FILE] [--markdown]
    python -m loadtests.bench_batch --profile SECONDS

Parts: cost, answers, many, wide, one, free, poison, mlserver. Progress goes to stderr, the tables
to stdout. The exit code says whether something was measured, not whether it was good: figures from
a machine that others use too are no test. ``--profile`` runs nothing but the coalescer within this
process, under cProfile; ``py-spy record -- python -m loadtests.batch_cost`` is the other way.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType

import uvloop

from loadtests import batch_answers, batch_cost, batch_report, batch_stage, machine
from loadtests.batch_load import Fire, Shot, binary_body, json_body, wrk
from loadtests.batch_report import BATCHED, DIRECT
from loadtests.batch_stage import ALONE, HTTP, SHARED, WIDE, Backend, Gateway
from loadtests.bench import LoadError, Result, Sample
from loadtests.oip.install import MissingError
from loadtests.processes import LOOPBACK, StartError, raise_open_files
from loadtests.proxies import REPOSITORY

CLIENTS = 64
LONG = ("wide", "free")
"""Parts that a quick look does without."""
PARTS = tuple(batch_report.TITLES)
OF_TRITON = ("answers", "many", "wide", "one", "free", "poison")
METHOD = (
    f"The model costs {batch_stage.PER_CALL * 1e3:g} ms a call and {batch_stage.PER_ROW * 1e6:g} us"
    " a row, slept. wrk keeps one request of each client on the way; rounds are interleaved,"
    " medians over them are shown, and what is compared is compared within a round. One gateway"
    " process, one Triton (one instance of the model); nobody is pinned to a core. Without batching"
    " the gateway sheds no load, because so many clients are an overload to the model then."
)


@dataclass(frozen=True)
class Settings:
    """Seconds of one shot by part, and how often."""

    rounds: int = 3
    many: float = 5.0
    wide: float = 3.0
    mlserver: float = 2.0
    one: float = 1.0
    warm: float = 1.0
    poison: int = 6400
    answers: int = 20
    cost: float = 2.0
    runner: float = 10.0
    """How long the runner of shared memory may take to be found."""


QUICK = Settings(1, many=1, wide=1, mlserver=1, warm=0, poison=1600, answers=5, cost=0.2)


@dataclass(frozen=True)
class Way:
    """``route``: of the gateway; none: directly."""

    name: str
    model: str
    route: str = ""


@dataclass
class Run:
    """One run, and what it has found so far."""

    scratch: Path
    settings: Settings
    parts: Sequence[str]
    fire: Fire
    began: float = field(default_factory=time.monotonic)
    results: dict[str, Result] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def begin(self, part: str) -> None:
        self.say(f"{time.monotonic() - self.began:.0f} s: {batch_report.TITLES[part]}")

    def problem(self, text: str) -> None:
        if text not in self.problems:
            self.say(f"  PROBLEM {text}")
            self.problems.append(text)

    def add(self, part: str, name: str, number: int, sample: Sample) -> None:
        self.results.setdefault(part, Result()).add(name, number, sample)
        shown = ", ".join(f"{key} {value:.5g}" for key, value in sample.items())
        self.say(f"  {part}, {name}, round {number + 1}: {shown}")

    # -- within this process -----------------------------------------------------------------------

    def cost(self) -> None:
        """Each form in a process of its own, which has nothing else in it."""
        for form in batch_cost.FORMS:
            command = [sys.executable, "-m", "loadtests.batch_cost", "--json", "--form", form]
            command += ["--seconds", str(self.settings.cost)]
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=False
            )
            if done.returncode:
                self.problem(f"cost, {form}: {done.stderr[-300:]}")
                continue
            told = json.loads(done.stdout)
            keys = {"least": "least_us", "median": "median_us", "rows_per_batch": "rows_per_batch"}
            self.add("cost", form, 0, {name: told[key] for key, name in keys.items()})

    # -- with servers ------------------------------------------------------------------------------

    def triton(self, backend: Backend) -> None:
        """All parts of it, with one gateway."""
        parts = [part for part in OF_TRITON if part in self.parts]
        with batch_stage.gateway(backend, self.scratch, (ALONE, HTTP, SHARED)) as gateway:
            routes = [ALONE, HTTP]
            try:
                gateway.wait_for_runner(SHARED, self.settings.runner)
                routes.append(SHARED)
            except LoadError as error:
                self.problem(str(error))
            for part in parts:
                self.begin(part)
                if part == "answers":
                    self.answers(gateway, routes)
                elif part == "poison":
                    self.poison(backend, gateway, routes)
                else:
                    self.shots(part, backend, gateway, _ways(part, routes))

    def mlserver(self, backend: Backend) -> None:
        self.begin("mlserver")
        with batch_stage.gateway(backend, self.scratch, (ALONE, HTTP)) as gateway:
            self.shots("mlserver", backend, gateway, _ways("mlserver", (ALONE, HTTP)))

    def shots(self, part: str, backend: Backend, gateway: Gateway, ways: Sequence[Way]) -> None:
        """Every way once in each round."""
        alone = part in ("one", "free")
        seconds = self.settings.one if alone else getattr(self.settings, part)
        columns = WIDE if part == "wide" else 16
        make = binary_body if backend.binary else json_body
        body = make(tuple(n / 7 for n in range(columns)))

        def shot(way: Way, seconds: float) -> Shot:
            port, path = (gateway.port, f"/{way.route}") if way.route else (backend.port, "")
            url = f"http://{LOOPBACK}:{port}{path}/v2/models/{way.model}/infer"
            return Shot(url, body, 1 if alone else CLIENTS, seconds)

        if self.settings.warm and not alone:
            for way in ways:
                with contextlib.suppress(LoadError):  # the first round will say so
                    self.fire(shot(way, self.settings.warm))
        for number in range(self.settings.rounds):
            for way in ways:
                try:
                    sample = self.watched(way, shot(way, seconds), backend, gateway)
                except LoadError as error:
                    self.problem(f"{part}, {way.name}: {gateway.child.gone() or error}")
                    continue
                self.add(part, way.name, number, sample)
                if sample["refused"] or sample["broken"]:
                    counts = f"{sample['refused']:.0f} refused, {sample['broken']:.0f} broken"
                    self.problem(f"{part}, {way.name}: {counts}")

    def watched(self, way: Way, shot: Shot, backend: Backend, gateway: Gateway) -> Sample:
        """One shot, and the CPU and inferences that it took."""

        def read() -> tuple[float, float, float, tuple[int, int]]:
            spent, starved = gateway.child.cpu_seconds(), gateway.starved_seconds()
            return spent, starved, backend.cpu_seconds(), backend.counted(way.model) or (0, 0)

        before = read()
        sample = self.fire(shot)
        after = read()
        answered = sample["answered"]
        if way.route:
            sample["gateway_us"] = (after[0] - before[0]) / answered * 1e6
            sample["starved_share"] = (after[1] - before[1]) / sample["seconds"]
        sample["server_us"] = (after[2] - before[2]) / answered * 1e6
        rows, calls = (b - a for a, b in zip(before[3], after[3], strict=True))
        if calls:
            sample["rows_per_call"] = rows / calls
        return sample

    def answers(self, gateway: Gateway, routes: Sequence[str]) -> None:
        for route in routes:
            each = self.settings.answers if route != ALONE else max(1, self.settings.answers // 5)
            try:
                seen = batch_answers.by_tritonclient(gateway.port, route, "wide", WIDE, each)
            except ImportError as error:
                self.problem(f"answers: not checked: {error}")
                return
            except LoadError as error:
                self.problem(f"answers, {route}: {error}")
                continue
            self.add("answers", route, 0, _answered(seen))
            self.blame(f"answers, {route}", seen)

    def poison(self, backend: Backend, gateway: Gateway, routes: Sequence[str]) -> None:
        for route in routes:
            if route == ALONE:
                continue
            path = f"/{route}/v2/models/poison/infer"
            before, began = backend.counted("poison"), time.monotonic()
            try:
                seen = batch_answers.among_poison(gateway.port, path, self.settings.poison, CLIENTS)
            except LoadError as error:
                self.problem(f"poison, {route}: {error}")
                continue
            sample = {"per_second": seen.sent / (time.monotonic() - began), **_answered(seen)}
            after = backend.counted("poison")
            if before is not None and after is not None:
                sample["inferences"] = after[1] - before[1]
                sample["inference_share"] = sample["inferences"] / seen.sent
            self.add("poison", route, 0, sample)
            self.blame(f"poison, {route}", seen)

    def blame(self, what: str, seen: batch_answers.Seen) -> None:
        if seen.refused:
            self.problem(f"{what}: refused: {seen.refused}")
        if seen.wrong or seen.spread:
            self.problem(f"{what}: {seen.wrong} wrong, {seen.spread} poisoned ones answered")


def _answered(seen: batch_answers.Seen) -> Sample:
    counts = {"sent": seen.sent, "right": seen.right, "wrong": seen.wrong}
    counts["refused"] = sum(seen.refused.values())
    if seen.poison:
        counts |= {"poisoned": seen.poison, "spread": seen.spread}
    return {**counts, "right_share": seen.right / max(1, seen.fine)}


def _ways(part: str, routes: Sequence[str]) -> list[Way]:
    """Through tailrace it is always the model that does not batch by itself."""
    model = {"wide": "wide", "free": "free"}.get(part, "elementwise")
    ways = [Way(DIRECT, model)]
    if part not in ("one", "free"):
        ways.append(Way(BATCHED, batch_stage.named(model, True)))
    return [*ways, *(Way(route, model, route) for route in routes)]


def measure(run: Run) -> None:
    """All parts that were asked for."""
    if "cost" in run.parts:
        run.begin("cost")
        run.cost()
    servers: list[tuple[bool, Callable[[], contextlib.AbstractContextManager[Backend]], Step]] = [
        (any(part in OF_TRITON for part in run.parts), batch_stage.triton, run.triton),
        ("mlserver" in run.parts, batch_stage.ml_server, run.mlserver),
    ]
    for wanted, start, step in servers:
        if not wanted:
            continue
        try:
            with start() as backend:
                step(backend)
        except (MissingError, StartError) as error:
            run.problem(f"not measured: {error}")


Step = Callable[[Backend], None]


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench_batch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="one short round of each: a look, not a figure")
    add("--rounds", type=int, help="rounds of the interleaved parts (default 3, quick 1)")
    add("--only", default="", metavar="PART,...", help="these parts only")
    add("--json", type=Path, metavar="FILE", help="everything measured, each round of it")
    add("--markdown", action="store_true", help="print the tables as markdown")
    add("--profile", type=float, metavar="SECONDS", help="the coalescer under cProfile, no more")
    options = parser.parse_args(given)
    names = {name.strip() for name in options.only.split(",") if name.strip()}
    if unknown := names - set(PARTS):
        parser.error(f"--only: not known: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    usual = [part for part in PARTS if not (options.quick and part in LONG)]
    options.parts = [part for part in PARTS if part in names] or usual
    return options


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    if options.profile:
        uvloop.run(batch_cost.measure("binary", options.profile, profile=True))
        return 0
    # SIGTERM unwinds like Ctrl-C, so that every child process is ended and no folder stays.
    signal.signal(signal.SIGTERM, _unwind)
    raise_open_files()
    before = {**machine.describe(), **machine.versions(())}
    settings = QUICK if options.quick else Settings()
    if options.rounds:
        settings = replace(settings, rounds=options.rounds)
    with tempfile.TemporaryDirectory(prefix="tailrace-batch-") as scratch:
        place = Path(scratch)
        run = Run(place, settings, options.parts, partial(wrk, scratch=place))
        measure(run)
    write(options, run, before)
    return 0 if run.results else 1


def write(options: argparse.Namespace, run: Run, before: dict[str, str]) -> None:
    if options.markdown:
        print(batch_report.markdown(run.results, before, METHOD))
    else:
        batch_report.show(run.results, before, METHOD)
    for problem in run.problems:
        print(f"problem: {problem}")
    if options.json is None:
        return
    told = {
        "machine": before,
        "method": METHOD,
        "settings": asdict(run.settings),
        "problems": run.problems,
        **batch_report.document(run.results),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(told, indent=2) + "\n")


def _unwind(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
