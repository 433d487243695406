"""The gateway's own health, measured: event-loop lag, the cgroup's memory, open files, CPU.

One measurement for all routes; what it means for a route is decided by its ``Strain``. The loop
is looked at ten times a second, by a coroutine that compares when it woke with when it meant to.
Memory and files are read once a second in a thread: the kernel may take milliseconds to add up
``memory.stat``. What cannot be read or has no limit is None, and strains nobody.

Memory is the cgroup's working set (usage without ``inactive_file``), as the kubelet counts it:
page cache that the kernel can drop at once is no reason to refuse anybody. cgroup v1 and v2; what
counts is the nearest limit, for the ones above it are filled by others, whom refusing cannot move.
"""

import asyncio
import resource
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from filters.api import Clock
from filters.load_shed import Config
from filters.strain import Strain

LOOK_S = 0.1
READ_S = 1.0
CPU_S = 5.0
"""What CPU is averaged over: longer than a collection of garbage, shorter than an autoscaler's own
period."""
_UNLIMITED = 2**60
"""cgroup v1 writes "no limit" as the largest multiple of a page."""
_GUESS_OFF_BY = 8
"""Descriptors by which two counts made one after the other may differ."""


class Group(NamedTuple):
    """The files of one cgroup; ``inactive`` is the line of ``stat`` that is not working set."""

    limit: Path
    usage: Path
    stat: Path
    inactive: bytes


class Vitals:
    """Measures, and feeds every ``Strain`` that is in use.

    ``loop_lag`` in seconds, at the last look; ``memory`` and ``files`` as shares of their limits,
    or None. ``cpu``: the share of one core that the process had over the last ``CPU_S`` seconds, at
    most 1, for one event loop can use no more; 0 before the second measurement. ``cgroups`` and
    ``proc`` are where the kernel shows them, ``spent`` tells the process's CPU time in seconds.
    """

    def __init__(
        self,
        clock: Clock,
        cgroups: Path = Path("/sys/fs/cgroup"),
        proc: Path = Path("/proc/self"),
        spent: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock = clock
        self._groups = memory_groups(cgroups, proc)
        self._open_files = open_files(proc / "fd")
        # Those of a configuration that a reload has replaced vanish by themselves.
        self._strains: WeakValueDictionary[tuple[float | None, ...], Strain] = WeakValueDictionary()
        self.loop_lag = 0.0
        self.memory: float | None = None
        self.files: float | None = None
        self.cpu = 0.0
        self._spent = spent
        self._spendings: deque[tuple[float, float]] = deque()

    def strain(self, config: Config) -> Strain:
        """The one that goes with these thresholds; routes with the same ones share it."""
        thresholds = (config.loop_lag, config.memory, config.files)
        strain = self._strains.get(thresholds)
        if strain is None:
            strain = self._strains[thresholds] = Strain(*thresholds)
        return strain

    async def watch_loop(self) -> None:
        """Run for as long as the server does."""
        now = self._clock.now
        while True:
            due = now() + LOOK_S
            await asyncio.sleep(LOOK_S)
            self.looked(now() - due)

    def looked(self, lag: float) -> None:
        """A look at the loop came ``lag`` seconds late; early is not late."""
        self.loop_lag = lag = max(0.0, lag)
        now = self._clock.now()
        for strain in self._strains.values():
            strain.looked(lag, now)

    async def watch_use(self) -> None:
        """Run for as long as the server does."""
        while True:
            self.measured(*await asyncio.to_thread(self.read))
            await asyncio.sleep(READ_S)

    def read(self) -> tuple[float | None, float | None]:
        """Memory and files, as shares of their limits. About 0.1 ms, and in a thread."""
        shares = (working_set(group) for group in self._groups)
        memory = next((share for share in shares if share is not None), None)
        return memory, self._files()

    def measured(self, memory: float | None, files: float | None) -> None:
        self.memory, self.files = memory, files
        now = self._clock.now()
        self._spend(now)
        for strain in self._strains.values():
            strain.measured(memory, files, now)

    def _spend(self, now: float) -> None:
        """Note the CPU time of this moment. What is compared with it is the youngest note that is
        ``CPU_S`` old, so a thread that came late to read stretches the average and falsifies
        nothing."""
        spendings = self._spendings
        spendings.append((now, self._spent()))
        while len(spendings) > 2 and now - spendings[1][0] >= CPU_S:
            spendings.popleft()
        (since, before), (_, spent) = spendings[0], spendings[-1]
        if now > since:
            self.cpu = min(1.0, (spent - before) / (now - since))

    def saturation(self, connections: float) -> float:
        """How full the gateway itself is, 1 being full: the highest of its CPU, memory and files,
        and of ``connections``, open ones as a share of those that there may be."""
        return max(self.cpu, connections, self.memory or 0.0, self.files or 0.0)

    def _files(self) -> float | None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit in (0, resource.RLIM_INFINITY):
            return None
        try:
            return self._open_files() / limit
        except OSError:
            return None

    def describe(self) -> dict[str, object]:
        return {
            "loop_lag": self.loop_lag,
            "memory": self.memory,
            "files": self.files,
            "cpu": self.cpu,
        }


def memory_groups(cgroups: Path, proc: Path) -> list[Group]:
    """The cgroups of this process, its own first, then upwards; none without a memory controller.

    Seen from inside a container its own path may be missing and its cgroup be the root of the
    mount, which is an ancestor, so looking upwards finds it in both cases.
    """
    try:
        lines = (proc / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found: dict[str, str] = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            found[name] = path
    if "memory" in found:
        root, path = cgroups / "memory", found["memory"]
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", b"total_inactive_file")
    elif "" in found:
        root, path = cgroups, found[""]
        names = ("memory.max", "memory.current", b"inactive_file")
    else:
        return []
    limit, usage, inactive = names
    own = root.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
    upwards = [own, *(each for each in own.parents if each.is_relative_to(root))]
    return [
        Group(each / limit, each / usage, each / "memory.stat", inactive)
        for each in upwards
        if (each / limit).is_file()
    ]


def working_set(group: Group) -> float | None:
    """Its share of the limit; None without a limit, or where it cannot be read. The limit is read
    anew each time, because a pod can be resized while it runs."""
    try:
        text = group.limit.read_bytes().strip()
        if text == b"max":
            return None
        limit = int(text)
        if not 0 < limit < _UNLIMITED:
            return None
        usage = int(group.usage.read_bytes())
        inactive = 0
        for line in group.stat.read_bytes().splitlines():
            if line.startswith(group.inactive + b" "):
                inactive = int(line.split()[1])
                break
    except (OSError, ValueError, IndexError):
        return None
    return max(0, usage - inactive) / limit


def open_files(directory: Path) -> Callable[[], int]:
    """A way to count open descriptors: the size of ``/proc/self/fd`` where the kernel keeps it
    there (Linux 6.2 and later), a listing of it elsewhere (some milliseconds with ten thousand).
    """

    def by_size() -> int:
        return directory.stat().st_size

    def by_listing() -> int:
        return sum(1 for _ in directory.iterdir())

    try:
        return by_size if abs(by_size() - by_listing()) <= _GUESS_OFF_BY else by_listing
    except OSError:
        return by_listing
