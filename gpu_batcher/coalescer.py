"""coalescer: the asyncio edge. A call is submitted, waits in the plan, goes with others as one
inference, and its caller gets its own rows, or an error that is its own.

Who decides what: ``plan`` when and with whom, ``contain`` what becomes of a batch that failed,
``quarantine`` who goes alone; a ``Runner`` does the inference. Here are only the future that each
caller waits on, one task for each batch (``flight``), and one timer.

A batch holds its slot of the plan from ``take`` to the end of its task. A caller who leaves is out
of the plan at once, or is skipped by whatever follows.

Everything here belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from gpu_batcher.contain import Containment
from gpu_batcher.flight import Counts, Flight, Means, Member, RefusedError, Terms, Why
from gpu_batcher.lanes import Waiting
from gpu_batcher.plan import Batch, Plan
from gpu_batcher.quarantine import Quarantine, Standing

if TYPE_CHECKING:
    from gpu_batcher.api import Call, Clock, Handle, Reply, Runner
    from gpu_batcher.pacing import Bounds

log = logging.getLogger("tailrace")

LOWEST = 3
"""The class of whoever is quarantined."""


class Coalescer:
    """One route's. ``watch`` is told of every batch that has ended, with the clock's seconds.

    About 15 us for each call besides codec and runner, O(log n) in the calls that wait.
    """

    def __init__(
        self,
        runner: Runner,
        bounds: Bounds,
        clock: Clock,
        *,
        containment: Containment[Member] | None = None,
        quarantine: Quarantine | None = None,
        watch: Callable[[Flight, float], object] | None = None,
    ) -> None:
        self.runner = runner
        self.counts = Counts()
        self.quarantine = Quarantine() if quarantine is None else quarantine
        self.watch = watch
        self._clock = clock
        self._plan: Plan[Member] = Plan(bounds)
        self._means = Means(
            runner,
            clock,
            Containment() if containment is None else containment,
            self.quarantine,
            self.counts,
            self._plan.overfilled,
            self._plan.overspent,
        )
        self._flights: set[Flight] = set()
        self._timer: Handle | None = None
        self._due = inf
        self._asked = False  # the pump is about to run
        self._closed = False
        self._serial = 0

    # -- callers -------------------------------------------------------------------------------

    async def submit(self, call: Call, terms: Terms) -> Reply:
        """A call's own answer. Raises RefusedError. Cancelling it leaves nothing behind."""
        now = self._clock.now()
        loop = asyncio.get_running_loop()
        member = Member(call, terms, loop.create_future(), now)
        self.counts.calls += 1
        try:
            waiting = self._add(member, now)
        except RefusedError as error:
            self.counts.refused[error.why] += 1
            raise
        self._ask(loop)
        try:
            return await member.future
        except asyncio.CancelledError:
            self._plan.remove(waiting)
            member.leave()
            raise
        except RefusedError as error:
            self.counts.refused[error.why] += 1
            raise

    def _add(self, member: Member, now: float) -> Waiting[Member]:
        """Raises RefusedError."""
        if self._closed:
            raise RefusedError(Why.CLOSED)
        call, terms = member.call, member.terms
        key: Hashable = (call.key, terms.join)
        priority = terms.priority
        self._means.containment.requested(key)
        if self.quarantine.active(now):
            standing = self.quarantine.look(member.mark(), now)
            if standing is not Standing.FREE:
                self.counts.quarantined += 1
                if standing is Standing.REFUSED:
                    raise RefusedError(Why.QUARANTINED)
                self._serial += 1
                key, priority = ("alone", self._serial), LOWEST
        deadline = inf if terms.deadline is None else terms.deadline
        waiting = Waiting(
            member, key, call.rows, call.size, call.length, priority, terms.tenant, deadline, now
        )
        displaced = self._plan.add(waiting, now)
        if displaced is not None:
            if displaced.item is member:
                raise RefusedError(Why.QUEUE_FULL)
            displaced.item.refuse(RefusedError(Why.QUEUE_FULL))
        return waiting

    # -- batches -------------------------------------------------------------------------------

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at the plan soon: not at once, so that what came in the same turn of the event loop
        is there together."""
        if not self._asked:
            self._asked = True
            loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._asked = False
        now = self._clock.now()
        plan = self._plan
        while (batch := plan.take(now)) is not None:
            self._launch(batch, now)
        for waiting in plan.expire(now):
            waiting.item.refuse(RefusedError(Why.EXPIRED))
        due = plan.next_due(now)
        if due is not None and due < self._due:  # one that rings early does no harm, so it stays
            if self._timer is not None:
                self._timer.cancel()
            self._due = due
            self._timer = self._clock.call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._due = inf
        self._ask(asyncio.get_running_loop())

    def _launch(self, batch: Batch[Member], now: float) -> None:
        flight = Flight(batch, [waiting.item for waiting in batch.members], now, self._means)
        self._plan.started(batch, now)
        self._flights.add(flight)
        flight.task = asyncio.get_running_loop().create_task(flight.fly())
        # Not a finally in the task: one that is cancelled before it begins runs none of it.
        flight.task.add_done_callback(partial(self._landed, flight))

    def _landed(self, flight: Flight, task: asyncio.Task[None]) -> None:
        now = self._clock.now()
        self._flights.discard(flight)
        self._plan.ended(flight.batch, now, flight.answered)
        self.counts.batches += 1
        self.counts.rows += flight.batch.rows
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a batch failed inside the gateway", exc_info=error)
        if flight.live:  # nobody is left waiting, whatever went wrong
            refusal = RefusedError(Why.CLOSED if self._closed else Why.SERVER)
            for member in flight.members:
                member.refuse(refusal)
        if self.watch is not None:
            self.watch(flight, now)
        # No cycle is left behind: batches would have the garbage collector stop the loop for
        # milliseconds, every few hundred of them.
        flight.task = flight.bisection = None
        for member in flight.members:
            member.flight = None
        self._ask(asyncio.get_running_loop())

    # -- life ----------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Calls in the plan."""
        return len(self._plan)

    @property
    def in_flight(self) -> int:
        """Batches under way."""
        return len(self._flights)

    @property
    def idle(self) -> bool:
        """Nobody waits, and nothing is under way."""
        return not self._flights and not len(self._plan)

    async def close(self) -> None:
        """Refuse what comes and who waits, give up what is under way, and close the runner."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiting in self._plan.clear():
            waiting.item.refuse(RefusedError(Why.CLOSED))
        tasks = [flight.task for flight in self._flights if flight.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.runner.close()

    def describe(self, now: float) -> dict[str, object]:
        """For the admin page."""
        counts = self.counts
        return {
            **self._plan.describe(),
            "runner": self.runner.name,
            "batches": counts.batches,
            "rows_per_batch": round(counts.rows / counts.batches, 1) if counts.batches else None,
            "bisections": counts.bisections,
            "culprits": counts.culprits,
            "quarantined": self.quarantine.quarantined(now),
            "refused": {why.value: n for why, n in counts.refused.items() if n},
        }
