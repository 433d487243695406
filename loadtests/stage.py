"""One run on real processes: servers, a subject, the load; events on time, looks in between."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadtests import records
from loadtests.bench import LoadError
from loadtests.fleet import Fleet, ask, fleet
from loadtests.load_plan import Load
from loadtests.processes import Child, Cores
from loadtests.proxies import REPOSITORY
from loadtests.scenario import Event, Run, Sample, Seen
from loadtests.subjects import Subject, running

_REST = 1.5
"""Seconds after the last request's end in which everything behind it must have ended too."""


@dataclass
class Stage:
    """Where runs take place: a folder of their own and the cores they share."""

    scratch: Path
    cores: Cores

    def play(self, run: Run, name: str, seed: int = 1) -> Seen:
        """One run against one subject. LoadError, StartError when it cannot take place."""
        options = ("--slots", str(run.slots), *run.server)
        # Without a proxy its core is free, and the servers have to bear the whole load themselves.
        cores = self.cores.load if name != "none" else self.cores.proxy
        with (
            fleet(run.endpoints, options, self.scratch, cores) as servers,
            running(
                name,
                servers.ports,
                self.scratch,
                self.cores,
                filters=run.filters,
                cluster=run.cluster,
            ) as subject,
        ):
            load = Load(targets=subject.ports, flows=run.flows, seed=seed, warm=run.warm)
            return self._watch(run, load, servers, subject)

    def _watch(self, run: Run, load: Load, servers: Fleet, subject: Subject) -> Seen:
        plan, out = self.scratch / "load.json", self.scratch / "records.bin"
        plan.write_bytes(msgspec.json.encode(load))
        command = [sys.executable, "-m", "loadtests.open_loop", "--load", str(plan)]
        command += ["--out", str(out)]
        log = self.scratch / "open_loop.log"
        with Child.start(
            "open_loop", command, log, cores=self.cores.load, stdout_pipe=True, cwd=REPOSITORY
        ) as generator:
            limit = threading.Timer(load.longest + 60, generator.process.kill)
            limit.start()
            try:
                start = _begin(generator)
                proxy_cpu, servers_cpu = subject.cpu_seconds(), servers.cpu_seconds()
                samples = _look_on(run, start, generator, servers, subject)
            finally:
                limit.cancel()
            if generator.process.returncode:
                raise LoadError(f"{generator.gone()}")
        proxy_cpu = subject.cpu_seconds() - proxy_cpu
        servers_cpu = servers.cpu_seconds() - servers_cpu
        tape, taken = records.load(out)
        out.unlink()
        if gone := subject.child and subject.child.gone():
            raise LoadError(gone)
        time.sleep(_REST)
        rest = _sample(time.monotonic() - start, servers, subject)
        cpu = {"generator": tape.cpu_seconds, "proxy": proxy_cpu, "servers": servers_cpu}
        return Seen(subject.name, tape, taken, samples, rest, cpu, subject.logged())


def _begin(generator: Child) -> float:
    """The monotonic clock at the load's time 0."""
    assert generator.process.stdout is not None
    line = generator.process.stdout.readline().split()
    if len(line) != 2 or line[0] != b"begin":
        raise LoadError(f"the load did not begin: {generator.tail()}")
    return int(line[1]) / 1e9


def _look_on(
    run: Run, start: float, generator: Child, servers: Fleet, subject: Subject
) -> list[Sample]:
    """Events on time, a sample every so often, until the generator has ended."""
    events: list[Event] = sorted(run.events, key=lambda each: each.at)
    samples: list[Sample] = []
    following = 0.0
    while generator.process.poll() is None:
        at = time.monotonic() - start
        while events and events[0].at <= at:
            event = events.pop(0)
            servers.apply(event.endpoint, event.what)
        if at >= following:
            samples.append(_sample(at, servers, subject))
            following = max(following + run.every, at)
        upcoming = min([following, *(each.at for each in events[:1])])
        # No later than that, and sooner if the load ends before.
        _wait(generator.process, start + upcoming - time.monotonic())
    return samples


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    if seconds <= 0:
        return
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _sample(at: float, servers: Fleet, subject: Subject) -> Sample:
    counted = tuple(servers.stats(number) for number in range(len(servers.ports)))
    if subject.admin is None:
        return Sample(at, counted)
    return Sample(at, counted, ask(subject.admin, "/clusters"), ask(subject.admin, "/filters"))
