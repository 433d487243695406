"""The plan and the containment against a modelled server, in virtual time.

A server runs ``instances`` inferences at a time, each for ``per_call + per_row * rows`` seconds,
and fails those with a poisonous member, or everything while it is ill. Nothing here knows asyncio;
the order of events is that of their times, so every run can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush, heapreplace
from math import inf
from random import Random
from typing import TYPE_CHECKING

from gpu_batcher.contain import Bisection, Containment, Part, Verdict
from gpu_batcher.lanes import Waiting
from gpu_batcher.plan import Batch, Plan

if TYPE_CHECKING:
    from gpu_batcher.pacing import Bounds


@dataclass
class Server:
    per_call: float = 0.002
    per_row: float = 20e-6
    instances: int = 1
    ill: tuple[float, float] = (inf, inf)
    most_rows: float = inf
    free: list[float] = field(default_factory=list)

    def run(self, now: float, rows: int) -> float:
        """When an inference that comes now is done."""
        if not self.free:
            self.free = [0.0] * self.instances
        end = max(now, self.free[0]) + self.per_call + self.per_row * rows
        heapreplace(self.free, end)
        return end


@dataclass(eq=False)
class Ask:
    """A request, and what became of it: ok, own, budget, server, rejected or expired."""

    arrived: float
    tenant: int = 0
    poison: bool = False
    then: Callable[[], None] | None = None
    outcome: str = ""
    taken: float = inf
    ended: float = inf


class World:
    """One plan, one server, and whoever asks."""

    def __init__(self, bounds: Bounds, server: Server, containment: bool = True) -> None:
        self.bounds = bounds
        self.server = server
        self.plan: Plan[Ask] = Plan(bounds)
        self.containment: Containment[Waiting[Ask]] | None = Containment() if containment else None
        self.now = 0.0
        self.asks: list[Ask] = []
        self.batches: list[Batch[Ask]] = []
        self.took: list[float] = []
        self.inferences = 0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0
        self._wake = inf

    # -- whoever asks --------------------------------------------------------------------------

    def ask(
        self,
        *,
        key: Hashable = "model",
        rows: int = 1,
        length: int = 1,
        priority: int = 1,
        tenant: int = 0,
        lasts: float = inf,
        poison: bool = False,
        then: Callable[[], None] | None = None,
    ) -> Ask:
        ask = Ask(self.now, tenant, poison, then)
        self.asks.append(ask)
        waiting = Waiting(
            ask, key, rows, rows * 1024, length, priority, tenant, self.now + lasts, self.now
        )
        if self.containment is not None:
            self.containment.requested()
        gone = self.plan.add(waiting, self.now)
        if gone is not None:
            self._finish(gone.item, "rejected")
        self._pump()
        return ask

    def open(self, rate: float, seconds: float, rng: Random, poison: float = 0.0) -> None:
        """Requests at random, as many as come."""
        when = self.now
        while (when := when + rng.expovariate(rate)) < self.now + seconds:
            bad = rng.random() < poison
            self.at(when, partial(self.ask, poison=bad))

    def closed(
        self,
        clients: int,
        each: int,
        rng: Random,
        pause: float = 0.0005,
        poison: Callable[[], bool] = lambda: False,
        tenant: int = 0,
    ) -> None:
        """Clients that ask again up to ``pause`` seconds after each answer."""

        def client(left: int) -> None:
            def again() -> None:
                self.at(self.now + rng.uniform(0.0, pause), lambda: client(left - 1))

            if left:
                self.ask(poison=poison(), then=again, tenant=tenant)

        for _ in range(clients):
            self.at(self.now + rng.uniform(0.0, pause), lambda: client(each))

    # -- time ----------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], object]) -> None:
        self._count += 1
        heappush(self._events, (when, self._count, what))

    def run(self, until: float = inf) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heappop(self._events)
            what()

    # -- what a coalescer does -----------------------------------------------------------------

    def _pump(self) -> None:
        for gone in self.plan.expire(self.now):
            self._finish(gone.item, "expired")
        while (batch := self.plan.take(self.now)) is not None:
            self.plan.started(batch, self.now)
            self.batches.append(batch)
            for each in batch.members:
                each.item.taken = self.now
            self._infer(batch.members, partial(self._ended, batch))
        due = self.plan.next_due(self.now)
        assert due is None or due > self.now, "asked again at once, for nothing"
        if due is not None and due < self._wake:
            self._wake = due
            self.at(due, self._woken)

    def _woken(self) -> None:
        self._wake = inf
        self._pump()

    def _infer(self, members: Sequence[Waiting[Ask]], then: Callable[[bool], None]) -> None:
        self.inferences += 1
        rows = sum(each.rows for each in members)
        server = self.server
        bad = any(each.item.poison for each in members) or rows > server.most_rows
        bad = bad or server.ill[0] <= self.now < server.ill[1]
        self.at(server.run(self.now, rows), lambda: then(bad))

    def _ended(self, batch: Batch[Ask], bad: bool) -> None:
        assert batch.started is not None
        self.took.append(self.now - batch.started)
        if not bad:
            if self.containment is not None:
                self.containment.passed()
            self._free(batch, True, batch.members, "ok")
        elif len(batch.members) == 1:
            self._free(batch, False, batch.members, "own")
        elif self.containment is None:
            self._free(batch, False, batch.members, "server")
        else:
            begun = self.containment.begin(batch.members, self.now)
            if isinstance(begun, Verdict):
                if begun is Verdict.BUDGET:
                    self.plan.overspent(batch)
                self._free(batch, False, batch.members, begun.value)
            else:
                self._bisect(batch, begun)

    def _bisect(self, batch: Batch[Ask], bisection: Bisection[Waiting[Ask]]) -> None:
        """One part at a time, in the batch's slot."""
        part = bisection.next()
        for member, verdict in bisection.settled():
            self._finish(member.item, verdict.value)
        if part is not None:
            self._infer(part.members, lambda bad: self._parted(batch, bisection, part, bad))
            return
        assert bisection.done
        assert self.containment is not None
        self.containment.ended(bisection, self.now)
        if bisection.blameless:
            self.plan.overfilled(batch)
        elif bisection.stopped is Verdict.BUDGET:
            self.plan.overspent(batch)
        self._free(batch, False, (), "")

    def _parted(
        self,
        batch: Batch[Ask],
        bisection: Bisection[Waiting[Ask]],
        part: Part[Waiting[Ask]],
        bad: bool,
    ) -> None:
        assert self.containment is not None
        if bad:
            bisection.failed(part)
        else:
            bisection.passed(part)
            self.containment.passed()
            for each in part.members:
                self._finish(each.item, "ok")
        self._bisect(batch, bisection)

    def _free(
        self, batch: Batch[Ask], ok: bool, members: Sequence[Waiting[Ask]], outcome: str
    ) -> None:
        self.plan.ended(batch, self.now, ok)
        for each in members:
            self._finish(each.item, outcome)
        self._pump()

    def _finish(self, ask: Ask, outcome: str) -> None:
        assert not ask.outcome, "whoever asks gets one answer"
        ask.outcome = outcome
        ask.ended = self.now
        if ask.then is not None:
            ask.then()


def quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]
