"""The gateway's own health as a verdict: whom to refuse so that the gateway itself gets through.

Pure: ``gateway/vitals.py`` measures and feeds, the arrival check in ``filters/load_shed.py`` asks.

All that strains adds up to one number, ``pressure``, from 0 to 3: how many classes are refused,
the lowest first; a fraction is the share that is refused of the next one. The best class is never
refused for it.

- *Event loop.* Lag at every look for ``SUSTAINED`` seconds begins it; from then on each late look
  raises the pressure by ``UP`` and each timely one lowers it by ``DOWN``. All or nothing would
  flap: with the load gone the lag is gone too, and comes back with the load.
- *Memory and open files.* From the threshold on both sheddable classes, half way from there to
  the limit all but the best. Refusing lowers them only if load in flight is what takes them;
  the memory of a process hardly ever shrinks, and in a shared cgroup it may be another's. So
  refusing ends ``HELPS`` seconds after the last new high, and a higher high begins it anew: a
  level that nothing lowers must not refuse for ever. What is in use at the first measurement is
  no new high: a gateway that has just begun cannot be who fills it.

A verdict holds for ``STALE`` seconds without a new measurement: what nobody measures any more
refuses nobody.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from filters.api import Priority

if TYPE_CHECKING:
    from random import Random

SUSTAINED = 1.0
"""Seconds: longer than a collection of garbage or a reload, which no refusal would shorten."""
UP = 0.25
"""Per late look: with one each 0.2 s, 1.6 s after its begin it is the default class's turn."""
DOWN = 0.05
"""Per timely look, ten a second: what was refused comes back over 2 s a class."""
HELPS = 10.0
"""Seconds in which refusing shows in memory or files, if it can: most exchanges end in less."""
RISE = 0.005
"""What is a new high, as a share of the limit; less is noise."""
STALE = 3.0
SHEDDABLE, ALL_BUT_BEST = 2.0, 3.0


class _Mark:
    """A threshold on the share in use of something that has a limit."""

    __slots__ = ("_high", "_since", "share", "threshold")

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.share: float | None = None
        self._high: float | None = None
        self._since = -inf

    def judge(self, share: float | None, now: float) -> float:
        """The pressure that ``share`` means; None: there is no limit."""
        self.share = share
        if share is None or share < self.threshold:
            self._high = 0.0
            return 0.0
        if self._high is None:
            self._high = share
        elif share > self._high + RISE:
            self._high = share
            self._since = now
        if now - self._since >= HELPS:
            return 0.0
        return ALL_BUT_BEST if share >= (1 + self.threshold) / 2 else SHEDDABLE


class Strain:
    """One set of thresholds and what has been measured against it; shared by the routes that have
    the same. ``loop_lag`` in seconds, ``memory`` and ``files`` as shares of their limits; None:
    not looked at.

    ``pressure`` is 0 nearly always, and an arrival check needs to look no further then.
    """

    __slots__ = ("__weakref__", "_files", "_lag", "_late_since", "_loop_lag", "_memory", "_until",
                 "_use", "_use_until", "_use_why", "lag", "pressure", "why")  # fmt: skip

    def __init__(
        self, loop_lag: float | None = None, memory: float | None = None, files: float | None = None
    ) -> None:
        self._loop_lag = loop_lag
        self._memory = _Mark(memory) if memory is not None else None
        self._files = _Mark(files) if files is not None else None
        self.pressure = 0.0
        self.why = ""
        self.lag = 0.0  # at the last look
        self._lag = 0.0  # the pressure from lag
        self._late_since: float | None = None
        self._use = 0.0  # the pressure from memory and files
        self._use_why = ""
        self._use_until = 0.0
        self._until = 0.0

    def looked(self, lag: float, now: float) -> None:
        """The event loop was looked at and came ``lag`` seconds late. About 0.3 us."""
        self.lag = lag
        threshold = self._loop_lag
        if threshold is None or lag < threshold:
            self._late_since = None
            self._lag = max(0.0, self._lag - DOWN)
        else:
            if self._late_since is None:
                self._late_since = now
            if self._lag or now - self._late_since >= SUSTAINED:
                self._lag = min(ALL_BUT_BEST, self._lag + UP)
        self._add_up(now)

    def measured(self, memory: float | None, files: float | None, now: float) -> None:
        """The shares of their limits that are in use; None where there is no limit."""
        use, why = 0.0, ""
        if self._memory is not None:
            use = self._memory.judge(memory, now)
            why = f"memory at {memory:.1%} of the cgroup's limit" if use else ""
        if self._files is not None:
            most = self._files.judge(files, now)
            if most > use:
                use, why = most, f"open files at {files:.1%} of their limit"
        self._use, self._use_why, self._use_until = use, why, now + STALE
        self._add_up(now)

    def _add_up(self, now: float) -> None:
        self._until = now + STALE
        use = self._use if now <= self._use_until else 0.0
        self.pressure = max(self._lag, use)
        if use and use >= self._lag:
            self.why = self._use_why
        else:
            self.why = f"the event loop is {self.lag * 1000:.0f} ms late" if self._lag else ""

    def refuses(self, priority: int, now: float, rng: Random) -> bool:
        """Whether an exchange of this class is refused. O(1), about 0.3 us; ask it only while
        there is ``pressure``."""
        if now > self._until:
            self.pressure = 0.0
            self.why = ""
            return False
        excess = self.pressure - (Priority.SHEDDABLE - priority)
        return excess > 0 and (excess >= 1 or rng.random() < excess)

    def describe(self, now: float) -> dict[str, object]:
        """``refused`` names the classes that are refused, the last one perhaps in part."""
        pressure = self.pressure if now <= self._until else 0.0
        return {
            "pressure": round(pressure, 2),
            "why": self.why if pressure else "",
            "refused": [
                each.name.lower() for each in Priority if pressure > Priority.SHEDDABLE - each
            ],
            "loop_lag": self.lag,
            "memory": self._memory.share if self._memory is not None else None,
            "files": self._files.share if self._files is not None else None,
        }
