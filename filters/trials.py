"""trials: what the adaptive limit compares, and how it judges. Pure; see ``limits.py`` for when.

A ``Trial`` holds two levels of concurrency against each other, a ``PushBack`` the share of refusals
before and after the limit was lowered.
"""

from __future__ import annotations

from math import log, sqrt

LONG_ENOUGH = 4.0
"""Seconds after which a trial at a server with few answers ends with what it has."""


class Trial:
    """Blocks of answers at two levels, ``lo`` and ``hi``: was the higher one only delay?

    The blocks come as base, probe, base, so that a drift of the server's speed cancels, and only
    a third of the time is spent off the limit.
    """

    __slots__ = ("_blocks", "_enough", "_fine", "_got", "_order", "_probe", "_size", "_step", "arm",
                 "hi", "lo", "serial", "started")  # fmt: skip

    def __init__(self, serial: int, lo: int, hi: int, up: bool, now: float) -> None:
        self.serial = serial
        self.lo, self.hi = lo, hi
        self.started = now
        self._probe = 1 if up else 0
        self.arm = 1 - self._probe
        self._order = 0
        # At least all that are in flight, so that a block sees what its own level does.
        self._size = max(8, hi)
        self._got: list[float] = []
        self._blocks: tuple[list[_Block], list[_Block]] = ([], [])
        self._step = log(hi / lo)
        ratio = hi / lo
        # One too few costs throughput, one too many a little delay: the last step down has to be
        # proven better.
        self._fine = 0.6 if not up and ratio < 1.25 else 0.0
        # Coarse steps are seen in a few blocks, and a wrong one is mended by the next trial.
        self._enough = 3 if ratio >= 1.5 else max(8, 128 // self._size)

    def add(self, arm: int, seconds: float) -> None:
        if arm == self.arm:
            self._got.append(seconds)

    def block_done(self) -> bool:
        """True when a block is full; then the other level may be due."""
        got = self._got
        if len(got) < self._size:
            return False
        got.sort()
        few = max(1, int(len(got) * 0.3))
        self._blocks[self.arm].append((sum(got[:few]) / few, sum(got) / len(got)))
        self._got = []
        self._order += 1
        self.arm = self._probe if self._order % 3 == 1 else 1 - self._probe
        return True

    @property
    def seconds(self) -> float:
        """Mean time of an answer at the higher level."""
        return mean([seconds for _, seconds in self._blocks[1]])

    def verdict(self, now: float) -> int | None:
        """``lo`` if more is only delay, ``hi`` if it is better; None: go on.

        The stretch of the quick answers' time (a difference of logarithms) is held against 0.8 of
        the step in flight, which a server that still gains does not reach, or against a third of
        what a pure queue would add to such quick answers, whichever is more.
        """
        if self._order % 3:
            return None
        low, high = self._blocks
        probes = min(len(low), len(high))
        if probes < 2:
            return None
        quick_low = [log(quick) for quick, _ in low]
        quick_high = [log(quick) for quick, _ in high]
        mean_low, mean_high = mean(quick_low), mean(quick_high)
        spread = sum((x - mean_low) ** 2 for x in quick_low)
        spread += sum((x - mean_high) ** 2 for x in quick_high)
        variance = spread / (len(low) + len(high) - 2)
        error = sqrt(variance / len(low) + variance / len(high)) + 1e-3
        # Little's law: one more in flight costs 1/throughput = time / in flight, if it only waits.
        wait = (self.hi - self.lo) * mean([mean for _, mean in high]) / self.hi
        queue = 0.3 * log(1 + wait / mean([quick for quick, _ in low]))
        certainty = (mean_high - mean_low - max(0.8 * self._step, queue)) / error
        sure = 3.5 if probes < 4 else 2.6
        if certainty > sure + self._fine or certainty < -sure:
            return self.lo if certainty > 0 else self.hi
        if probes < self._enough and (probes < 4 or now - self.started < LONG_ENOUGH):
            return None
        stay = self.lo if self._probe else self.hi
        if certainty > (2.0 if self._fine else 0.7):
            return self.lo
        return self.hi if certainty < -0.5 else stay


_Block = tuple[float, float]
"""Mean seconds of the quick third, and of all."""


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


class PushBack:
    """One spell of push-back: does less in flight make it rarer? Looked at every 32 answers."""

    __slots__ = ("_first", "_pushed", "_seen", "_shares", "before", "rare")

    def __init__(self, before: int) -> None:
        self.before = before
        self._seen = self._pushed = 0
        self.rare = False  # so few from the beginning that there is nothing to make rarer
        self._first: tuple[float, int] | None = None
        self._shares: list[float] = []

    def seen(self, pushed: bool) -> bool:
        """Count one answer; True when it is time for a verdict."""
        self._seen += 1
        self._pushed += pushed
        return self._seen >= 32

    def verdict(self, value: int) -> bool | None:
        """True: over, it helped. False: it does not help. None: go on."""
        share = self._pushed / self._seen
        self._seen = self._pushed = 0
        if share <= 0.05:
            self.rare = self._first is None
            return True
        if self._first is None:
            self._first = (share, value)
            return None
        share_then, value_then = self._first
        if value * 2 > value_then and value > 1:
            return None
        if share > 0.75 * share_then:
            return False
        self._first = (share, value)
        return None
