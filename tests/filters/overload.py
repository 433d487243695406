"""A route in virtual time, as small as it can be: open-loop arrivals, a ``Shedder``, the fair
queue, a fixed limit, a server with as many slots. Events are numbers in a heap, nothing awaits.

It stands for what admission does with its queue, so that the tests of the shedder need neither
the gateway nor a limit that still learns.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import log
from random import Random
from typing import Any

from filters.queueing import FairQueue, Waiter
from filters.shedder import Shedder

Phases = tuple[tuple[float, float], ...]
"""(seconds, arrivals per second), one after the other."""


def lognormal(mean: float = 0.02, sigma: float = 0.5) -> Callable[[Random], float]:
    mu = log(mean) - sigma * sigma / 2
    return lambda rng: rng.lognormvariate(mu, sigma)


@dataclass(frozen=True)
class Traffic:
    phases: Phases
    priority: int = 1
    tenants: tuple[int, ...] = (1,)
    service: Callable[[Random], float] = field(default_factory=lognormal)
    retries: int = 0


@dataclass(slots=True, eq=False)
class Call:
    """``end``: ok, shed, pushed, full, timeout, left."""

    at: float
    priority: int
    tenant: int
    service: float
    retries: int
    end: str = ""
    ended: float = 0.0

    @property
    def took(self) -> float:
        return self.ended - self.at


class Route:
    """``finish``: when a call that is begun at the first is over that takes the second."""

    def __init__(
        self,
        seed: int,
        *,
        slots: int = 8,
        size: int = 1024,
        timeout: float = 10.0,
        patience: float = 5.0,
        shed: bool = True,
        finish: Callable[[float, float], float] = lambda now, service: now + service,
    ) -> None:
        self.rng = Random(seed)
        self.shedder = Shedder(Random(seed + 1))
        self.shedder.limit = slots
        self.queue: FairQueue[Call] = FairQueue(size)
        self.free = slots
        self.calls: list[Call] = []
        self.spans: list[tuple[float, float]] = []  # overloads that have ended
        self._began: float | None = None
        self._events: list[tuple[float, int, Any]] = []
        self._serial = 0
        self._size, self._timeout, self._patience = size, timeout, patience
        self._shed = shed
        self._finish = finish

    def run(self, *traffic: Traffic) -> Route:
        for each in traffic:
            self._next(self._arrivals(each))
        while self._events:
            now, _, event = heapq.heappop(self._events)
            self._drop(self.queue.expire(now), now, "timeout")
            if isinstance(event, Call):
                if event.end == "served":
                    self._end(event, now, "ok")
                    self.free += 1
                    self._pump(now)
                else:
                    self._arrive(event, now)
            else:
                self._arrive(event[0], now)
                self._next(event[1])
            self._watch(now)
        return self

    def _arrivals(self, traffic: Traffic) -> Iterator[Call]:
        begin, rng = 0.0, self.rng
        for seconds, rate in traffic.phases:
            now = begin
            begin += seconds
            while rate and (now := now + rng.expovariate(rate)) < begin:
                tenant = rng.choice(traffic.tenants)
                service = traffic.service(rng)
                yield Call(now, traffic.priority, tenant, service, traffic.retries)

    def _at(self, when: float, event: object) -> None:
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, event))

    def _next(self, arrivals: Iterator[Call]) -> None:
        call = next(arrivals, None)
        if call is not None:
            self._at(call.at, (call, arrivals))

    def _arrive(self, call: Call, now: float) -> None:
        self.calls.append(call)
        shedder, queue = self.shedder, self.queue
        refused = shedder.arrived(call.priority, call.tenant, now)
        if refused and self._shed:
            shedder.refused[call.priority] += 1
            self._end(call, now, "shed")
        elif self.free and not len(queue):
            shedder.served(now)
            self._serve(call, now)
        else:
            keep = shedder.keep(now) if self._shed else None
            waiter = Waiter(call, call.priority, call.tenant, 1.0, now, now + self._timeout)
            loser = queue.push(waiter, now, newest=keep is not None)
            if loser is not None:
                if keep is None:
                    shedder.full(now)
                else:
                    shedder.pushed_out(now, 1)
                self._end(loser.item, now, "full" if keep is None else "pushed")
            shedder.queue(now, len(queue))
            self._shorten(now)
            self._pump(now)

    def _shorten(self, now: float) -> None:
        keep = self.shedder.keep(now) if self._shed else None
        if keep is not None and len(self.queue) > keep:
            gone = self.queue.trim(keep, now, self.shedder.certain)
            self.shedder.pushed_out(now, len(gone))
            self._drop(gone, now, "pushed")

    def _pump(self, now: float) -> None:
        while self.free and len(self.queue):
            newest = self._shed and self.shedder.overloaded
            waiter = self.queue.pop(now, 1.0, newest)
            if waiter is None:
                break
            if now - waiter.item.at > self._patience:
                self._end(waiter.item, now, "left")
            else:
                self.shedder.served(now)
                self._serve(waiter.item, now)
            self.shedder.queue(now, len(self.queue))

    def _serve(self, call: Call, now: float) -> None:
        self.free -= 1
        call.end = "served"
        self._at(self._finish(now, call.service), call)

    def _drop(self, waiters: list[Waiter[Call]], now: float, why: str) -> None:
        if waiters:
            self.shedder.queue(now, len(self.queue))
        for waiter in waiters:
            self._end(waiter.item, now, why)

    def _end(self, call: Call, now: float, why: str) -> None:
        call.end, call.ended = why, now
        if why != "ok" and call.retries:
            again = now + self.rng.uniform(0.05, 0.5)
            self._at(again, Call(again, call.priority, call.tenant, call.service, call.retries - 1))

    def _watch(self, now: float) -> None:
        if self.shedder.overloaded:
            if self._began is None:
                self._began = now
        elif self._began is not None:
            self.spans.append((self._began, now))
            self._began = None

    # -- what came of it ------------------------------------------------------------------------

    def between(self, begin: float, end: float) -> list[Call]:
        return [each for each in self.calls if begin <= each.at < end]

    def refusals(self) -> list[Call]:
        return [each for each in self.calls if each.end != "ok"]

    def useful(self, begin: float, end: float, within: float | None = None) -> float:
        """Answers per second within ``within`` seconds, or ten times what the call itself takes."""
        good = sum(
            each.end == "ok" and each.took <= (within or 10 * each.service)
            for each in self.between(begin, end)
        )
        return good / (end - begin)


def within(calls: list[Call], seconds: float) -> float:
    """The share of them that ended in time."""
    return sum(each.took <= seconds for each in calls) / len(calls)
