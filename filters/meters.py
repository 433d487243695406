"""Meters: quantiles of what was lately seen.

Pure: the time is an argument of every call that depends on it, in the seconds of one monotonic
clock, and never runs backwards. A meter has a fixed size, whatever it is fed.
"""

from array import array
from bisect import bisect_left
from itertools import accumulate
from math import ceil, exp2, log

GROWTH = 1.05
LOWEST = 1e-4
SIZE = 360
"""Buckets of a ``Quantiles``: 0.1 ms to about 70 minutes, each 5 % wider than the one before."""
_PER_BUCKET = log(GROWTH)
_EDGES = [LOWEST * GROWTH**n for n in range(SIZE)]
_RESCALE = 40.0
"""Half lives after which weights are brought back to the size of 1, far from any overflow."""


class Quantiles:
    """Quantiles of positive values (seconds), in which older samples count ever less.

    Logarithmic buckets as in DDSketch (Masson, Rim, Lee, 2019) with the exponential forward decay
    of Cormode et al. (2009): instead of shrinking what is there, each new sample weighs more, by
    a factor of 2 per ``half_life`` seconds. So nothing is rotated and no estimate jumps.

    ``add`` is O(1), about 0.4 us; ``quantile`` walks all buckets, about 10 us: remember its answer.
    """

    __slots__ = ("_half_life", "_origin", "_total", "_weights")

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._weights = array("d", bytes(8 * SIZE))
        self._total = 0.0
        self._origin = 0.0

    def add(self, value: float, now: float) -> None:
        """One sample. Values outside the range of the buckets go to the nearest one."""
        age = (now - self._origin) / self._half_life
        if age > _RESCALE:
            self._rescale(age, now)
            age = 0.0
        weight = exp2(age)
        place = ceil(log(value / LOWEST) / _PER_BUCKET) if value > LOWEST else 0
        self._weights[place if place < SIZE else SIZE - 1] += weight
        self._total += weight

    def count(self, now: float) -> float:
        """The samples there are, each at what it weighs now: 1 when it came, half that one half
        life later. At a steady rate it settles at 1.44 half lives' worth of samples."""
        return self._total * exp2(max(-1000.0, (self._origin - now) / self._half_life))

    def quantile(self, q: float) -> float:
        """The upper edge of the bucket in which the share ``q`` (0 to 1) of the weight is reached:
        at most 5 % more than the exact value and never less, so at most ``1 - q`` lies above it.
        0 when there is no sample. Needs no time: all weights fall alike."""
        if self._total == 0.0:
            return 0.0
        sums = list(accumulate(self._weights))
        return _EDGES[bisect_left(sums, q * sums[-1])]

    def _rescale(self, age: float, now: float) -> None:
        shrink = exp2(max(-1000.0, -age))
        self._weights = array("d", [each * shrink for each in self._weights])
        self._total = sum(self._weights)
        self._origin = now
