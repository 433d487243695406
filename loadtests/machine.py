"""What the figures were measured on: a figure without its machine says nothing."""

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from loadtests.proxies import Proxy
from loadtests.python_speed import nanoseconds

_VERSION = re.compile(r"\d+\.\d+\.\d+")


def describe() -> dict[str, str]:
    """Processor, cores, memory, kernel, Python, load average before the run, and the date."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_version()}, {nanoseconds()} ns per small object",
        "load_before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def versions(proxies: Iterable[Proxy]) -> dict[str, str]:
    """The version that each installed proxy (and wrk) states about itself."""
    stated = {"wrk": _ask(["wrk", "-v"])}
    for proxy in proxies:
        program = proxy.find()
        if program is not None and proxy.version is not None:
            stated[proxy.name] = _ask(proxy.version(program))
    return stated


def _ask(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = _VERSION.search(done.stdout + done.stderr)
    return found.group() if found else "unknown"


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"
