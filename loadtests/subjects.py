"""What stands between load and servers: nothing, Envoy, or tailrace configured for a row."""

import contextlib
import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.processes import LOOPBACK, Child, Cores, free_port
from loadtests.proxies import PROXIES, REPOSITORY

SUBJECTS = ("none", "envoy", "tailrace")
_TEMPLATE = Path(__file__).resolve().parent / "peers" / "envoy_scenarios.yaml"
_REASON = re.compile(rb'"reason":"(\w+)"')


@dataclass(frozen=True)
class Subject:
    """``ports``: where the load goes; ``admin``: where tailrace tells of itself."""

    name: str
    ports: tuple[int, ...]
    child: Child | None = None
    admin: int | None = None

    def cpu_seconds(self) -> float:
        return self.child.cpu_seconds() if self.child is not None else 0.0

    def logged(self) -> Counter[str]:
        """How often each reason stands in tailrace's access log, which is its standard output."""
        if self.child is None or self.admin is None:
            return Counter()
        text = self.child.log.read_bytes()
        return Counter(reason.decode() for reason in _REASON.findall(text))


def missing(name: str) -> bool:
    """Whether ``name`` is not installed here."""
    return name != "none" and PROXIES[name].find() is None


@contextlib.contextmanager
def running(
    name: str,
    upstreams: Sequence[int],
    scratch: Path,
    cores: Cores,
    *,
    filters: Mapping[str, object],
    cluster: Mapping[str, object],
) -> Iterator[Subject]:
    """The subject, accepting. ``filters`` and ``cluster`` are tailrace's alone."""
    if name == "none":
        yield Subject(name, tuple(upstreams))
        return
    program = PROXIES[name].find()
    if program is None:
        raise FileNotFoundError(f"{name} is not installed")
    port = free_port()
    admin = free_port() if name == "tailrace" else None
    if admin is not None:
        file = scratch / f"tailrace-{port}.yaml"
        file.write_text(json.dumps(configuration(port, admin, upstreams, filters, cluster)))
        command = [program, "-m", "gateway", "run", str(file)]
    else:
        file = scratch / f"envoy-{port}.yaml"
        file.write_text(_envoy(port, upstreams, scratch))
        command = [program, "-c", str(file), "--disable-hot-restart", "--concurrency", "1"]
        command += ["--log-level", "error"]
    log = scratch / f"{name}-{port}.log"
    with Child.start(name, command, log, cores=cores.proxy, port=port, cwd=REPOSITORY) as child:
        child.wait_listening()
        yield Subject(name, (port,), child, admin)


def configuration(
    port: int,
    admin: int,
    upstreams: Sequence[int],
    filters: Mapping[str, object],
    cluster: Mapping[str, object],
) -> dict[str, object]:
    """tailrace's file (JSON is YAML): every default as it is, and what the row asks for."""
    endpoints = [f"http://{LOOPBACK}:{upstream}" for upstream in upstreams]
    return {
        "listen": f"{LOOPBACK}:{port}",
        "admin": {"listen": f"{LOOPBACK}:{admin}"},
        "drain": {"grace": 0, "timeout": "1s"},
        "clusters": {"models": {"endpoints": endpoints, **cluster}},
        "routes": [{"name": "all", "cluster": "models", "filters": dict(filters)}],
    }


def _envoy(port: int, upstreams: Sequence[int], scratch: Path) -> str:
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": LOOPBACK, "port_value": each}}}}
        for each in upstreams
    ]
    template = string.Template(_TEMPLATE.read_text())
    return template.substitute(port=port, dir=scratch, endpoints=json.dumps(endpoints))
