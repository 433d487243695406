"""What every measurement shares: the proxies that run, interleaved rounds, medians, wrk.

A machine is never as quiet as one would like, so no figure stands alone: each round measures
every proxy once, one after another, and a ratio is taken between two figures of the same
round before the median over the rounds is taken.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.processes import LOOPBACK, Child, Cores, StartError, busy_seconds, free_port
from loadtests.proxies import REPOSITORY, Proxy

Sample = dict[str, float]
DIRECT = "direct"
REFERENCE = "envoy"
_POST = Path(__file__).resolve().parent / "peers" / "post.lua"


class LoadError(RuntimeError):
    """The load itself went wrong: refused or failed requests, no tokens, no output."""


class CpuWindow:
    """CPU of one proxy from here to ``close``, and who else had its core meanwhile."""

    def __init__(self, proxy: Child, cores: Cores) -> None:
        self._proxy = proxy
        self._cores = cores
        self._before = self._after = self._read()

    def close(self) -> None:
        self._after = self._read()

    def sample(self, units: float) -> Sample:
        """``cpu_us`` per unit of work. ``others_share`` only where the core is the proxy's own."""
        seconds, spent, busy = (b - a for a, b in zip(self._before, self._after, strict=True))
        sample = {"cpu_us": spent * 1e6 / units, "core_share": spent / seconds}
        if not self._cores.proxy & self._cores.load:
            sample["others_share"] = max(0.0, (busy - spent) / seconds)
        sample["resident_mb"] = self._proxy.resident_bytes() / 1e6
        return sample

    def _read(self) -> tuple[float, float, float]:
        return time.monotonic(), self._proxy.cpu_seconds(), busy_seconds(self._cores.proxy)


@dataclass
class Result:
    """All samples of one test: proxy name -> one sample for each round it got through."""

    samples: dict[str, dict[int, Sample]] = field(default_factory=dict)

    def add(self, name: str, number: int, sample: Sample) -> None:
        self.samples.setdefault(name, {})[number] = sample

    def median(self, name: str, figure: str) -> float | None:
        values = [s[figure] for s in self.samples.get(name, {}).values() if figure in s]
        return statistics.median(values) if values else None

    def ratio(self, name: str, figure: str) -> float | None:
        """Median over the rounds of this proxy's figure divided by Envoy's in that round."""
        reference = self.samples.get(REFERENCE, {})
        ratios = [
            sample[figure] / reference[number][figure]
            for number, sample in self.samples.get(name, {}).items()
            if figure in sample and reference.get(number, {}).get(figure)
        ]
        return statistics.median(ratios) if ratios else None

    def as_dict(self) -> dict[str, object]:
        described: dict[str, object] = {}
        for name, rounds in self.samples.items():
            figures = {figure: None for sample in rounds.values() for figure in sample}
            described[name] = {
                "median": {figure: self.median(name, figure) for figure in figures},
                "rounds": list(rounds.values()),
            }
        return described


@dataclass
class Bench:
    """One run of the comparison. ``skipped``: who is not here; ``problems``: what went wrong."""

    scratch: Path
    cores: Cores
    proxies: Mapping[str, Proxy]
    quick: bool = False
    rounds: int = 5
    skipped: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def present(self, variants: bool = False) -> list[Proxy]:
        """The proxies that can be found; the others are named in ``skipped``."""
        found = []
        for proxy in self.proxies.values():
            if proxy.variant and not variants:
                continue
            if proxy.find() is None:
                self.skipped[proxy.name] = "not installed"
            else:
                found.append(proxy)
        return found

    def problem(self, text: str) -> None:
        if text not in self.problems:
            self.say(f"  PROBLEM {text}")
            self.problems.append(text)

    @contextlib.contextmanager
    def running(self, upstream: int, variants: bool = False) -> Iterator[dict[str, Child]]:
        """Every proxy that starts, in front of ``upstream``, all idle but the one measured."""
        with contextlib.ExitStack() as stack:
            children = {}
            for proxy in self.present(variants):
                try:
                    child = proxy.start(upstream, self.scratch, self.cores)
                except StartError as error:
                    self.problem(f"did not start: {error}")
                else:
                    children[proxy.name] = stack.enter_context(child)
            yield children

    @contextlib.contextmanager
    def stand_in(self, *options: str) -> Iterator[Child]:
        """The model server stand-in, on the load's cores."""
        port = free_port()
        command = [sys.executable, "-m", "loadtests.stand_in", "--port", str(port), *options]
        log = self.scratch / f"stand_in-{port}.log"
        load = self.cores.load
        with Child.start("stand_in", command, log, cores=load, port=port, cwd=REPOSITORY) as child:
            child.wait_listening()
            yield child

    def interleaved(
        self, children: Mapping[str, Child], measure: Callable[[str, Child | None], Sample]
    ) -> Result:
        """A B C A B C ...: the direct path and each proxy once in each round."""
        result = Result()
        for number in range(self.rounds):
            for name in (DIRECT, *children):
                child = children.get(name)
                try:
                    sample = measure(name, child)
                except LoadError as error:
                    ended = child.gone() if child is not None else None
                    self.problem(ended or f"{name}, round {number + 1}: {error}")
                    continue
                result.add(name, number, sample)
                shown = ", ".join(f"{key} {value:.5g}" for key, value in sample.items())
                self.say(f"  round {number + 1} {name}: {shown}")
        return result


def wrk(port: int, seconds: float, cores: Cores, connections: int = 32) -> Sample:
    """POSTs of 0.5 KB from ``connections`` keep-alive connections, as fast as answers come."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    command += ["-s", str(_POST), f"http://{LOOPBACK}:{port}/v1/chat/completions"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds + 20,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, cores.load),
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            sample: Sample = json.loads(line.removeprefix("RESULT "))
            if sample["errors"] or not sample["requests"]:
                raise LoadError(f"{sample['errors']:.0f} errors in {sample['requests']:.0f}")
            return sample
    raise LoadError(f"wrk gave no result: {(done.stdout + done.stderr)[-300:]}")
