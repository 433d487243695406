"""The model servers of one run: a stand-in process for each endpoint, told what ails it."""

import contextlib
import http.client
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadtests.faults import Condition
from loadtests.processes import LOOPBACK, Child, free_port
from loadtests.proxies import REPOSITORY


def ask(port: int, path: str, body: bytes | None = None, timeout: float = 2.0) -> Any:
    """GET, or POST with a body; the JSON of an answer of 200, None for anything else."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout)
    try:
        connection.request("GET" if body is None else "POST", path, body)
        answer = connection.getresponse()
        text = answer.read()
        return json.loads(text) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


class Fleet:
    """``ports`` stay the same when a server is killed and started again."""

    def __init__(
        self, count: int, options: Sequence[str], scratch: Path, cores: frozenset[int]
    ) -> None:
        self.ports = [free_port() for _ in range(count)]
        self._options = list(options)
        self._scratch = scratch
        self._cores = cores
        self._children: list[Child | None] = [None] * count
        self._before: list[dict[str, float]] = [{} for _ in range(count)]
        self._spent = 0.0

    def start(self, number: int, *, wait: bool = True) -> None:
        port = self.ports[number]
        command = [sys.executable, "-m", "loadtests.stand_in", "--port", str(port)]
        command += ["--seed", str(number + 1), *self._options]
        log = self._scratch / f"server-{number}.log"
        child = Child.start(
            f"server {number}", command, log, cores=self._cores, port=port, cwd=REPOSITORY
        )
        self._children[number] = child
        if wait:
            child.wait_listening()

    def kill(self, number: int) -> None:
        """SIGKILL, as the kernel does it to a process that has used up the memory."""
        child = self._children[number]
        if child is None:
            return
        if (stats := self.stats(number)) is not None:
            self._before[number] = stats
        self._spent += child.cpu_seconds()
        child.process.send_signal(signal.SIGKILL)
        child.process.wait()
        self._children[number] = None

    def apply(self, number: int, what: Condition | Literal["kill", "start"]) -> None:
        if what == "kill":
            self.kill(number)
        elif what == "start":
            self.start(number, wait=False)
        else:
            ask(self.ports[number], "/control", msgspec.json.encode(what))

    def stats(self, number: int) -> dict[str, float] | None:
        """Counts since the first start; None while it is dead."""
        if self._children[number] is None:
            return None
        counted: dict[str, float] | None = ask(self.ports[number], "/stats")
        if counted is None:
            return None
        before = self._before[number]
        gauges = ("in_service", "queued", "held")
        return {k: v + (0 if k in gauges else before.get(k, 0)) for k, v in counted.items()}

    def cpu_seconds(self) -> float:
        return self._spent + sum(c.cpu_seconds() for c in self._children if c is not None)

    def stop(self) -> None:
        for child in self._children:
            if child is not None:
                child.stop()


@contextlib.contextmanager
def fleet(
    count: int, options: Sequence[str], scratch: Path, cores: frozenset[int]
) -> Iterator[Fleet]:
    """Running servers, all of them listening."""
    servers = Fleet(count, options, scratch, cores)
    try:
        for number in range(count):
            servers.start(number)
        yield servers
    finally:
        servers.stop()
