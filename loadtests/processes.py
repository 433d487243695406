"""Child processes of a measurement: started, pinned, observed and always ended.

CPU time comes from the kernel's per-process CPU clock (``clock_gettime`` with the clock id
that POSIX ``clock_getcpuclockid`` computes), which is user plus system time in nanoseconds.
``/proc/PID/stat`` counts the same time in ticks of 10 ms, too coarse for a second of SSE
chunks. Resident memory is ``VmRSS``. Both are summed over the whole process tree, so a
master process and its workers count together. Linux only.
"""

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_PR_SET_PDEATHSIG = 1
_CPUCLOCK_SCHED = 2
_LIBC = ctypes.CDLL(None, use_errno=True)
LOOPBACK = "127.0.0.1"


class StartError(RuntimeError):
    """A process did not begin to listen; the text says which and what it printed last."""


@dataclass(frozen=True)
class Cores:
    """Who runs where: the proxy alone on one core, load and stand-in on the others."""

    proxy: frozenset[int]
    load: frozenset[int]

    @classmethod
    def split(cls) -> Self:
        """Gives the proxy the last core this process may use; on one core all share it."""
        usable = sorted(os.sched_getaffinity(0))
        last = frozenset(usable[-1:])
        return cls(proxy=last, load=frozenset(usable[:-1]) or last)


@dataclass
class Child:
    """One started process (and whatever it starts), ended by ``stop`` or by leaving ``with``."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0
    started: float = 0.0  # monotonic seconds, just before the fork
    ready: float = 0.0  # seconds from there until the port accepted

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        cores: Iterable[int] | None = None,
        port: int = 0,
        stdout_pipe: bool = False,
        cwd: Path | None = None,
    ) -> Self:
        """Runs ``command`` in its own session, output in ``log`` (stdout in a pipe if asked)."""
        with log.open("ab") as out:
            started = time.monotonic()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if stdout_pipe else out,
                stderr=out,
                cwd=cwd,
                start_new_session=True,
                preexec_fn=_set_up(cores),
            )
        return cls(name, process, log, port, started)

    def wait_listening(self, seconds: float = 15.0, poll: float = 0.001) -> None:
        """Returns when the port accepts, with ``ready`` set; StartError when it never does."""
        while True:
            elapsed = time.monotonic() - self.started
            if ended := self.gone():
                raise StartError(ended)
            try:
                socket.create_connection((LOOPBACK, self.port), timeout=1).close()
            except OSError:
                if elapsed > seconds:
                    raise StartError(f"{self.name} not listening: {self.tail()}") from None
                time.sleep(poll)
            else:
                self.ready = time.monotonic() - self.started
                return

    def cpu_seconds(self) -> float:
        """User plus system CPU of the whole tree so far. Sample twice and subtract."""
        return sum(_cpu_clock(pid) for pid in tree(self.process.pid))

    def resident_bytes(self) -> int:
        """VmRSS of the whole tree; pages shared by two of its processes count twice."""
        return sum(_resident(pid) for pid in tree(self.process.pid))

    def gone(self) -> str | None:
        """How it ended, if it has; None while it runs."""
        code = self.process.poll()
        return None if code is None else f"{self.name} exited with {code}: {self.tail()}"

    def tail(self, size: int = 300) -> str:
        """The last line it printed: where a process that gives up says why."""
        text = self.log.read_text(errors="replace").strip() if self.log.exists() else ""
        return text.rpartition("\n")[2][-size:] or "(no output)"

    def stop(self, seconds: float = 3.0) -> None:
        """SIGTERM to the group, SIGKILL to what is left after ``seconds``."""
        group = self.process.pid
        _signal_group(group, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        _signal_group(group, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def free_port() -> int:
    """A loopback port that was free a moment ago; a rare loser of the race fails to start."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def raise_open_files() -> int:
    """Raises the soft limit on open files to the hard one; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def busy_seconds(cores: Iterable[int]) -> float:
    """Time these cores have spent on anything so far, stolen time included; steps of 10 ms."""
    names = {f"cpu{core}" for core in cores}
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        fields = line.split()
        if fields and fields[0] in names:
            # user nice system idle iowait irq softirq steal: all but idle and iowait.
            ticks += sum(int(fields[i]) for i in (1, 2, 3, 6, 7, 8))
    return ticks / os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """``root`` and all its living descendants. One pass over /proc, about 2 ms."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text()
            except OSError:
                continue
            # The command name in parentheses may itself hold spaces and parentheses.
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def _set_up(cores: Iterable[int] | None) -> Callable[[], None]:
    wanted = set(cores) if cores is not None else None

    def in_child() -> None:
        # The child goes when the measuring process is killed without a chance to clean up.
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if wanted:
            os.sched_setaffinity(0, wanted)

    return in_child


def _cpu_clock(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return 0.0


def _resident(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
