"""What a model server can do at once, and what became of the work: slots, times, counters.

The model is the usual one of a server with S equal slots and one first-come queue. A request
holds its slot until its last byte, as a generation in a real server does. Nothing here knows
of sockets; times are monotonic seconds handed in by the caller.
"""

import math
import random
from collections import deque
from dataclasses import asdict, dataclass
from typing import Protocol


@dataclass
class Counters:
    """Totals since the start (or the last reset), plus what is going on now.

    ``cancelled``: the client left, the work was dropped at once. ``wasted``: the client left,
    the work was done to the end for nobody. ``wasted_seconds`` is slot time spent on either.
    """

    served: int = 0
    cancelled: int = 0
    wasted: int = 0
    refused: int = 0
    tokens: int = 0
    busy_seconds: float = 0.0
    wasted_seconds: float = 0.0
    in_service: int = 0
    in_service_peak: int = 0
    queued: int = 0
    queued_peak: int = 0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def reset(self) -> None:
        """Zeroes the totals; what is in service or queued stays counted."""
        fresh = Counters(
            in_service=self.in_service,
            in_service_peak=self.in_service,
            queued=self.queued,
            queued_peak=self.queued,
        )
        self.__dict__.update(fresh.__dict__)


class ServiceTimes:
    """Lognormal service times with a given mean: the long right tail of generation lengths.

    ``sigma`` is the standard deviation of the logarithm; 0 makes every time equal the mean.
    mu = ln(mean) - sigma^2 / 2 makes the mean of the draws the mean that was asked for.
    """

    def __init__(self, mean: float, sigma: float, seed: int) -> None:
        self._mean = mean
        self._sigma = sigma
        self._mu = math.log(mean) - sigma * sigma / 2 if mean > 0 else 0.0
        self._rng = random.Random(seed)

    def draw(self) -> float:
        if self._mean <= 0 or self._sigma <= 0:
            return self._mean
        return self._rng.lognormvariate(self._mu, self._sigma)


class Work(Protocol):
    """A request as the slots see it."""

    def begin(self, now: float) -> None:
        """A slot is this work's own; called at once or when its turn in the queue comes."""


class Slots:
    """``size`` slots with a first-come queue of at most ``queue``; 0 means no bound for either."""

    def __init__(self, size: int, queue: int, counters: Counters) -> None:
        self._size = size or math.inf
        self._bound = queue or math.inf
        self._counters = counters
        self._waiting: deque[Work] = deque()
        self._since: dict[Work, float] = {}

    def enter(self, work: Work, now: float) -> bool:
        """Begins or queues ``work``. False: the queue is full, the work is refused."""
        counters = self._counters
        if len(self._since) < self._size:
            self._begin(work, now)
            return True
        if len(self._waiting) >= self._bound:
            counters.refused += 1
            return False
        self._waiting.append(work)
        counters.queued += 1
        counters.queued_peak = max(counters.queued_peak, counters.queued)
        return True

    def finish(self, work: Work, now: float, *, wanted: bool = True) -> None:
        """``work`` is done to its last byte; not ``wanted``: its client had gone."""
        spent = self._leave(work, now)
        if wanted:
            self._counters.served += 1
        else:
            self._counters.wasted += 1
            self._counters.wasted_seconds += spent
        self._next(now)

    def cancel(self, work: Work, now: float) -> None:
        """The client of ``work`` left: out of the queue, or out of its slot. O(queue)."""
        self._counters.cancelled += 1
        if work in self._since:
            self._counters.wasted_seconds += self._leave(work, now)
            self._next(now)
        else:
            self._waiting.remove(work)
            self._counters.queued -= 1

    def _begin(self, work: Work, now: float) -> None:
        counters = self._counters
        self._since[work] = now
        counters.in_service += 1
        counters.in_service_peak = max(counters.in_service_peak, counters.in_service)
        work.begin(now)

    def _leave(self, work: Work, now: float) -> float:
        spent = now - self._since.pop(work)
        self._counters.in_service -= 1
        self._counters.busy_seconds += spent
        return spent

    def _next(self, now: float) -> None:
        while self._waiting and len(self._since) < self._size:
            self._counters.queued -= 1
            self._begin(self._waiting.popleft(), now)
