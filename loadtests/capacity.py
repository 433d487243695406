"""What a model server can do at once, and what became of the work: slots, times, counters.

The model is the usual one of a server with S equal slots and one first-come queue. A request
holds its slot until its last byte, as a generation in a real server does. Nothing here knows
of sockets; times are monotonic seconds handed in by the caller.
"""

import math
import random
from collections import OrderedDict
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Protocol

_STRATA = 400


@dataclass
class Counters:
    """Totals since the start (or the last reset), plus what is going on now.

    ``arrived``: every request, whatever became of it. ``refused``: the queue or the server's own
    limit was full; ``failed``: answered with the status of a fault. ``cancelled``: the client
    left, the work was dropped at once. ``wasted``: the client left, the work was done to the end
    for nobody. ``wasted_seconds`` is slot time spent on either.
    """

    arrived: int = 0
    served: int = 0
    cancelled: int = 0
    wasted: int = 0
    refused: int = 0
    failed: int = 0
    tokens: int = 0
    busy_seconds: float = 0.0
    wasted_seconds: float = 0.0
    in_service: int = 0
    in_service_peak: int = 0
    queued: int = 0
    queued_peak: int = 0
    held: int = 0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def reset(self) -> None:
        """Zeroes the totals; what is in service, queued or held stays counted."""
        fresh = Counters(
            in_service=self.in_service,
            in_service_peak=self.in_service,
            queued=self.queued,
            queued_peak=self.queued,
            held=self.held,
        )
        self.__dict__.update(fresh.__dict__)


class ServiceTimes:
    """Service times with a given mean: lognormal, the long right tail of generation lengths, or
    any mixture of fixed times with equal shares.

    ``sigma`` is the standard deviation of the logarithm; 0 makes every time equal the mean.
    mu = ln(mean) - sigma^2 / 2 makes the mean of the draws the mean that was asked for. The
    lognormal is drawn in shuffled blocks, one from each of 400 equally likely strata, so that the
    work of one second at 400 requests is the same as that of the next (stratified sampling: the
    same distribution, less noise in a figure that is taken over few seconds).
    """

    def __init__(
        self, mean: float, sigma: float, seed: int, mixture: tuple[float, ...] = ()
    ) -> None:
        self._mean = mean
        self._sigma = sigma
        self._mixture = mixture
        self._mu = math.log(mean) - sigma * sigma / 2 if mean > 0 else 0.0
        self._rng = random.Random(seed)
        self._normal = NormalDist()
        self._block: list[float] = []

    def draw(self) -> float:
        """Seconds. Amortised over a block, a few microseconds."""
        if not self._mixture and (self._mean <= 0 or self._sigma <= 0):
            return self._mean
        if not self._block:
            self._block = self._draw_block()
        return self._block.pop()

    def _draw_block(self) -> list[float]:
        rng = self._rng
        if self._mixture:
            block = list(self._mixture) * max(1, _STRATA // 10 // len(self._mixture))
        else:
            # 1 - random() is never 0, and no stratum reaches 1.
            shares = ((i + 1 - rng.random()) / _STRATA for i in range(_STRATA))
            inverse, mu, sigma = self._normal.inv_cdf, self._mu, self._sigma
            block = [math.exp(mu + sigma * inverse(min(p, 1 - 1e-12))) for p in shares]
        rng.shuffle(block)
        return block


class Work(Protocol):
    """A request as the slots see it."""

    def begin(self, now: float) -> None:
        """A slot is this work's own since ``now``, which may be a moment ago."""


class Slots:
    """``size`` slots with a first-come queue of at most ``queue``; 0 means no bound for either."""

    def __init__(self, size: int, queue: int, counters: Counters) -> None:
        self._size = size or math.inf
        self._bound = queue or math.inf
        self._counters = counters
        self._waiting: OrderedDict[Work, float] = OrderedDict()
        self._since: dict[Work, float] = {}

    @property
    def inside(self) -> int:
        """Requests at work or waiting."""
        return len(self._since) + len(self._waiting)

    def resize(self, size: int, now: float) -> None:
        """Another number of slots; what is at work beyond it goes on to its end."""
        self._size = size or math.inf
        self._next(now)

    def enter(self, work: Work, now: float) -> bool:
        """Begins or queues ``work``. False: the queue is full, the work is refused."""
        counters = self._counters
        if len(self._since) < self._size:
            self._begin(work, now)
            return True
        if len(self._waiting) >= self._bound:
            counters.refused += 1
            return False
        self._waiting[work] = now
        counters.queued += 1
        counters.queued_peak = max(counters.queued_peak, counters.queued)
        return True

    def finish(self, work: Work, now: float, *, wanted: bool = True) -> None:
        """``work`` is done to its last byte; not ``wanted``: its client had gone.

        ``now`` is when it was due to be done. A timer that was late does not make the next one
        late: capacity is what the plan says, whatever the resolution of timers.
        """
        spent = self._leave(work, now)
        if wanted:
            self._counters.served += 1
        else:
            self._counters.wasted += 1
            self._counters.wasted_seconds += spent
        self._next(now)

    def cancel(self, work: Work, now: float) -> None:
        """The client of ``work`` left: out of the queue, or out of its slot. O(1)."""
        self._counters.cancelled += 1
        if work in self._since:
            self._counters.wasted_seconds += self._leave(work, now)
            self._next(now)
        else:
            del self._waiting[work]
            self._counters.queued -= 1

    def _begin(self, work: Work, now: float) -> None:
        counters = self._counters
        self._since[work] = now
        counters.in_service += 1
        counters.in_service_peak = max(counters.in_service_peak, counters.in_service)
        work.begin(now)

    def _leave(self, work: Work, now: float) -> float:
        spent = max(0.0, now - self._since.pop(work))
        self._counters.in_service -= 1
        self._counters.busy_seconds += spent
        return spent

    def _next(self, now: float) -> None:
        while self._waiting and len(self._since) < self._size:
            work, entered = self._waiting.popitem(last=False)
            self._counters.queued -= 1
            self._begin(work, max(now, entered))


class Batch:
    """Continuous batching: each stream's tokens come slower the more streams run.

    ``full`` streams are the largest batch, and there a token takes ``slowdown`` times as long as
    for a stream alone; in between it grows evenly. Throughput n / factor(n) so grows to the end.
    """

    def __init__(self, full: int, slowdown: float) -> None:
        self._full = full
        self._slowdown = slowdown

    def factor(self, streams: int) -> float:
        if not self._full:
            return 1.0
        return 1.0 + (self._slowdown - 1.0) * min(1.0, streams / self._full)
