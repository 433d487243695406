"""Metrics in the text format of Prometheus, made only when somebody scrapes.

In two halves. ``collect.py`` runs on the event loop and copies numbers into families, so that all
of them are of one moment. ``render`` may run on a thread: it loads aioprometheus at the first
scrape and builds the text, which for many routes takes longer than a token may wait.
"""

from __future__ import annotations

import importlib.metadata
import os
import resource
import time
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from gateway.metrics import Histogram

PREFIX = "tailrace_"
Labels: TypeAlias = tuple[tuple[str, str], ...]


class Buckets(NamedTuple):
    """A histogram of one moment; ``counts`` as in ``metrics.Histogram``, not cumulative."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


class Family:
    """One metric with all its series. Equal labels add up, which is how ``other`` comes about."""

    def __init__(
        self,
        kind: Literal["counter", "gauge", "histogram"],
        name: str,
        doc: str,
        labels: str = "",
    ) -> None:
        """``labels``: names, spaces between; told in ``docs/metrics.md``, and tested."""
        self.kind = kind
        self.name = name
        self.doc = doc
        self.labels = tuple(labels.split())
        self.numbers: dict[Labels, float] = {}
        self.buckets: dict[Labels, Buckets] = {}

    def add(self, value: float, **labels: str) -> None:
        key = tuple(labels.items())
        self.numbers[key] = self.numbers.get(key, 0) + value

    def add_histogram(self, found: Histogram, **labels: str) -> None:
        self.buckets[tuple(labels.items())] = Buckets(found.bounds, tuple(found.counts), found.sum)


class Families:
    """The families of one scrape, by name, in the order in which they were first named."""

    def __init__(self) -> None:
        self.all: list[Family] = []

    def counter(self, name: str, doc: str, labels: str = "") -> Family:
        return self._new(Family("counter", PREFIX + name, doc, labels))

    def gauge(self, name: str, doc: str, labels: str = "") -> Family:
        return self._new(Family("gauge", PREFIX + name, doc, labels))

    def histogram(self, name: str, doc: str, labels: str = "") -> Family:
        return self._new(Family("histogram", PREFIX + name, doc, labels))

    def _new(self, family: Family) -> Family:
        self.all.append(family)
        return family


def render(families: list[Family]) -> bytes:
    """The text format 0.0.4. Adds what is known about the process. Safe on any thread."""
    from aioprometheus import collectors
    from aioprometheus.formats.text import TextFormatter
    from aioprometheus.histogram import Histogram as Observed

    registry = collectors.Registry()
    for family in [*families, *machine()]:
        if family.kind == "histogram":
            collector = collectors.Histogram(family.name, family.doc, registry=registry)
            for labels, found in family.buckets.items():
                observed = Observed(*found.bounds)
                sums = accumulate(found.counts)
                observed.buckets.update(zip(list(observed.buckets), sums, strict=True))
                observed.observations = sum(found.counts)
                observed.sum = found.sum
                collector.set_value(_escaped(labels), observed)
        else:
            kind = collectors.Counter if family.kind == "counter" else collectors.Gauge
            plain = kind(family.name, family.doc, registry=registry)
            for labels, number in family.numbers.items():
                # bool is a number to us, but prints as a word.
                plain.set_value(_escaped(labels), number + 0)
    text: bytes = TextFormatter().marshall(registry)
    return text


def _escaped(labels: Labels) -> dict[str, str]:
    """aioprometheus writes label values as they are; the format wants three characters escaped."""
    return {
        name: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        for name, value in labels
    }


def machine() -> list[Family]:
    """What every process tells about itself, under the names that every dashboard knows."""
    info = Family("gauge", PREFIX + "build_info", "1, with the version that runs.", "version")
    info.add(1, version=version())
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = Family("counter", "process_cpu_seconds_total", "CPU time used, user and system.")
    cpu.add(usage.ru_utime + usage.ru_stime)
    found = [info, cpu]
    own = Path("/proc/self")
    try:
        pages = int((own / "statm").read_text().split()[1])
        ticks = int((own / "stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        files = len(os.listdir(own / "fd"))  # noqa: PTH208  names only, there may be many
    except (OSError, ValueError, IndexError):
        return found  # not Linux
    memory = Family("gauge", "process_resident_memory_bytes", "Resident memory.")
    memory.add(pages * resource.getpagesize())
    started = Family("gauge", "process_start_time_seconds", "When the process was started.")
    started.add(round(time.time() - up + ticks / os.sysconf("SC_CLK_TCK"), 2))
    opened = Family("gauge", "process_open_fds", "Open file descriptors.")
    opened.add(files)
    most = Family("gauge", "process_max_fds", "File descriptors that may be open.")
    most.add(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return [*found, memory, started, opened, most]


def version() -> str:
    """Of the installed distribution; ``unknown`` when run from a bare source tree."""
    try:
        return importlib.metadata.version("tailrace")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
