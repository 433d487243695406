"""trials: what the adaptive limit compares, and how it judges. Pure; see ``limits.py`` for when.

A ``Trial`` holds two levels of concurrency against each other.
"""

from __future__ import annotations

from math import log, sqrt

LONG_ENOUGH = 4.0
"""Seconds after which a trial at a server with few answers ends with what it has."""


class Trial:
    """Blocks of answers at two levels, ``lo`` and ``hi``: was the higher one only delay?

    The blocks come in threes, base, probe, base, and each probe is held against the two around it:
    so a drift of the server's speed cancels, a jump only makes the verdict uncertain, and a third
    of the time is spent off the limit.
    """

    __slots__ = ("_blocks", "_enough", "_fine", "_got", "_least", "_order", "_probe", "_size",
                 "_step", "arm", "hi", "lo", "serial", "started")  # fmt: skip

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
        # Probes for a verdict, if it is plain and if not. Coarse steps are seen in a few, and a
        # wrong one is mended by the next trial.
        self._least, self._enough = (2, 3) if ratio >= 1.5 else (4, max(8, 128 // self._size))

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
        if probes < self._least:
            return None
        stretch, error = self._stretch(low, high)
        # Little's law: one more in flight costs 1/throughput = time / in flight, if it only waits.
        wait = (self.hi - self.lo) * mean([mean for _, mean in high]) / self.hi
        queue = 0.3 * log(1 + wait / mean([quick for quick, _ in low]))
        certainty = (stretch - max(0.8 * self._step, queue)) / error
        sure = 3.5 if probes < 4 else 2.6  # Student's t: few probes know their error badly
        if certainty > sure + self._fine or certainty < -sure:
            return self.lo if certainty > 0 else self.hi
        if probes < self._enough and (probes < 4 or now - self.started < LONG_ENOUGH):
            return None
        stay = self.lo if self._probe else self.hi
        if certainty > 1.5:
            return self.lo
        return self.hi if certainty < -0.5 else stay

    def _stretch(self, low: list[_Block], high: list[_Block]) -> tuple[float, float]:
        """How much longer the quick answers take at the higher level (a difference of logarithms),
        and its standard error: a randomised block design (Fisher 1935), three blocks each."""
        base, probe = (low, high) if self._probe else (high, low)
        count = len(probe)
        stretch = spread = 0.0
        for n, (quick, _) in enumerate(probe):
            x, before, after = log(quick), log(base[2 * n][0]), log(base[2 * n + 1][0])
            stretch += (x - (before + after) / 2) / count
            centre = (x + before + after) / 3
            spread += (x - centre) ** 2 + (before - centre) ** 2 + (after - centre) ** 2
        spread -= count * stretch * stretch * 2 / 3  # what the difference itself explains
        error = sqrt(max(0.0, spread) / (2 * count - 1) * 1.5 / count) + 1e-3
        return (stretch if self._probe else -stretch), error


_Block = tuple[float, float]
"""Mean seconds of the quick third, and of all."""


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
