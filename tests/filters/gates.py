"""A gate on a clock held by the test, and exchanges whose journey ends when the test says so."""

from __future__ import annotations

import asyncio
from random import Random

import msgspec

from filters.admission import Admission, Config, Gate, Queue, one
from filters.api import Exchange, Kind, Outcome, Priority, Reject
from tests.filters.doubles import HandClock, exchange

OK = Outcome(Kind.OK, 200)


async def settle() -> None:
    """Let every task run that can."""
    for _ in range(6):
        await asyncio.sleep(0)


class Journey:
    """One exchange through admission; ``end`` is how the rest of the journey ends."""

    def __init__(self, bench: Bench, subject: Exchange) -> None:
        self.subject = subject
        self.end: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.begun = False
        self.task = asyncio.create_task(bench.admission(subject, self._rest))
        # A refusal that the test does not ask for is no error that nobody saw.
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _rest(self, subject: Exchange) -> Outcome:
        self.begun = True
        return await self.end

    def refusal(self) -> Reject:
        error = self.task.exception()
        assert isinstance(error, Reject)
        return error

    @property
    def waiting(self) -> bool:
        return not self.begun and not self.task.done()


class Bench:
    """A gate with a clock held by the test."""

    def __init__(self, limit: int = 1, *, queue: Queue = Queue(), dry_run: bool = False) -> None:  # noqa: B008
        self.clock = HandClock()
        self.config = Config(limit=limit, queue=queue, dry_run=dry_run)
        self.gate = Gate(self.config, self.clock, Random(1))
        self.costs: dict[Exchange, float] = {}
        self.journeys: list[Journey] = []  # the event loop does not keep them alive
        self.admission = Admission(
            self.gate, self.clock, cost=lambda subject: self.costs.get(subject, one(subject))
        )

    def use(self, **changed: object) -> None:
        self.config = msgspec.structs.replace(self.config, **changed)
        self.gate.use(self.config)

    def post(
        self,
        priority: Priority = Priority.CRITICAL,
        *,
        tenant: bytes = b"a",
        cost: float = 1.0,
        within: float | None = None,
    ) -> Journey:
        """An exchange sets out, but no task has run yet. ``within``: seconds to its deadline."""
        now = self.clock.now()
        subject = exchange(headers={b"authorization": tenant}, arrived=now)
        subject.priority = priority
        subject.deadline = None if within is None else now + within
        self.costs[subject] = cost
        journey = Journey(self, subject)
        self.journeys.append(journey)
        return journey

    async def arrive(
        self,
        priority: Priority = Priority.CRITICAL,
        *,
        tenant: bytes = b"a",
        cost: float = 1.0,
        within: float | None = None,
    ) -> Journey:
        journey = self.post(priority, tenant=tenant, cost=cost, within=within)
        await settle()
        return journey

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await settle()
