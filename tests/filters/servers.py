"""A limit in front of a model server, in virtual time: slots, a FIFO queue behind the limit, jobs
that may slow each other down as in a continuous batch. No event loop: 60 s take about a second.

The queue in front of the limit is short and drops whoever comes when it is full, as admission's is
once the shedder has seen that it stands; so the limit knows only whether somebody waits.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from math import inf, log
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filters.limits import AdaptiveLimit, FixedLimit

Work = Callable[[Random], float]


def lognormal(mean: float = 0.02, sigma: float = 0.5) -> Work:
    mu = log(mean) - sigma * sigma / 2
    return lambda rng: rng.lognormvariate(mu, sigma)


def alone(running: int) -> float:
    """Slots of which none notices the others."""
    return 1.0


def batch(most: int = 256, stretch: float = 3.0) -> Callable[[int], float]:
    """Continuous batching: with ``most`` running, each takes ``stretch`` times as long as alone."""
    return lambda running: 1 + (stretch - 1) * (min(running, most) - 1) / (most - 1)


class Job:
    """``n``: how many were in flight with it when its permit was given."""

    __slots__ = ("begun", "mark", "n", "work")

    def __init__(self, work: float) -> None:
        self.work = work
        self.begun = 0.0
        self.n = self.mark = 0


class Server:
    """Work is measured in seconds alone at full speed. All that run progress at the same speed, so
    a job ends when the work done for each of them has grown by its own."""

    def __init__(self, slots: int, stretch: Callable[[int], float] = alone) -> None:
        self.slots = slots
        self.slowness = 1.0
        self._stretch = stretch
        self._now = self._done = 0.0
        self._serial = 0
        self._running: list[tuple[float, int, Job]] = []
        self._waiting: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._running) + len(self._waiting)

    def become(self, now: float, *, slots: int | None = None, slowness: float = 1.0) -> None:
        self._progress(now)
        self.slots = self.slots if slots is None else slots
        self.slowness = slowness
        self._begin()

    def accept(self, job: Job, now: float) -> None:
        self._progress(now)
        self._waiting.append(job)
        self._begin()

    def next_end(self) -> float:
        if not self._running:
            return inf
        return self._now + max(0.0, self._running[0][0] - self._done) * self._pace()

    def end(self, now: float) -> Job:
        """The one whose end is due."""
        self._progress(now)
        job = heapq.heappop(self._running)[2]
        self._begin()
        return job

    def _pace(self) -> float:
        return self.slowness * self._stretch(len(self._running))

    def _progress(self, now: float) -> None:
        if self._running:
            self._done += (now - self._now) / self._pace()
        self._now = now

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self.slots:
            job = self._waiting.popleft()
            self._serial += 1
            heapq.heappush(self._running, (self._done + job.work, self._serial, job))


class Route:
    """Open-loop arrivals, a queue, a limit, a server. ``history``: (when, limit) at each change.

    ``refuses`` says of an arriving job, given what is in flight with it, whether the server pushes
    it back, which takes no time; then it is as if its client had gone.
    """

    def __init__(
        self, limit: AdaptiveLimit | FixedLimit, server: Server, seed: int = 0, size: int = 32
    ) -> None:
        self.limit = limit
        self.server = server
        self.rng = Random(seed)
        self.now = 0.0
        self.served = self.dropped = self.pushed_back = 0
        self.most = 0
        self.refuses: Callable[[int], bool] = lambda in_flight: False
        self.history: list[tuple[float, int]] = [(0.0, limit.value)]
        self._size = size
        self._queue: deque[Job] = deque()

    def run(self, seconds: float, rate: float, work: Work) -> Route:
        """``rate`` arrivals per second, Poisson, for so long. 0: what is there comes to its end."""
        until = self.now + seconds
        rng = self.rng
        arrival = self.now + rng.expovariate(rate) if rate else inf
        while True:
            ends = self.server.next_end()
            if min(arrival, ends) > until:
                break
            if ends <= arrival:
                self.now = ends
                self._end()
            else:
                self.now = arrival
                self._arrive(Job(work(rng)))
                arrival += rng.expovariate(rate)
        self.now = until
        return self

    def drain(self) -> None:
        while self.server:
            self.now = self.server.next_end()
            self._end()

    def at_once(self, count: int, work: Work) -> None:
        for _ in range(count):
            self._arrive(Job(work(self.rng)))

    def values(self, since: float, until: float = inf) -> list[int]:
        """All the limit was in that time."""
        before = [value for when, value in self.history if when <= since]
        return before[-1:] + [value for when, value in self.history if since < when <= until]

    def first(self, good: Callable[[int], bool], since: float = 0.0) -> float:
        """Seconds after ``since`` when the limit first was as said; inf if it never was."""
        if good(self.values(since, since)[-1]):
            return 0.0
        return next((when - since for when, v in self.history if when > since and good(v)), inf)

    @property
    def in_flight(self) -> int:
        return len(self.server)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def _arrive(self, job: Job) -> None:
        if self.in_flight < self.limit.level and not self._queue:
            self._send(job)
        elif len(self._queue) < self._size:
            self._queue.append(job)
        else:
            self.dropped += 1

    def _send(self, job: Job) -> None:
        job.n = self.in_flight + 1
        job.mark = self.limit.begun(job.n)
        if self.refuses(job.n):
            self.pushed_back += 1
            self.limit.pushed_back(self.now, job.n - 1)
            self._note()
            return
        job.begun = self.now
        self.server.accept(job, self.now)
        self.most = max(self.most, job.n)

    def _end(self) -> None:
        job = self.server.end(self.now)
        self.served += 1
        self.limit.ended(
            self.now, self.now - job.begun, job.n, job.mark, self.in_flight, bool(self._queue)
        )
        self._note()
        while self._queue and self.in_flight < self.limit.level:
            self._send(self._queue.popleft())

    def _note(self) -> None:
        if self.limit.value != self.history[-1][1]:
            self.history.append((self.now, self.limit.value))
