"""flight: one batch under way. Its inference, and what becomes of its members when that fails.

What was said to a batch of several is never told to one of its members, for it may speak of
another one: they get a refusal with a reason. Only who was alone gets what the server said.

What fails inside the gateway, in a codec or a runner, is treated like a 500: one request may have
tripped it, and then it costs that one only.

Parts of a failed batch go one after another in the batch's slot, so however much fails, no more
inferences are under way than without failures.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from gpu_batcher.api import (
    BadAnswerError,
    Call,
    Clock,
    FailedError,
    Job,
    NoAnswerError,
    Reply,
    Runner,
    TooLargeError,
)
from gpu_batcher.contain import Bisection, Containment, Part, Verdict, blames_request

if TYPE_CHECKING:
    from gpu_batcher.plan import Batch
    from gpu_batcher.quarantine import Quarantine

log = logging.getLogger("tailrace")


class Why(Enum):
    """Why a caller gets no answer."""

    QUEUE_FULL = "queue_full"
    EXPIRED = "expired"
    QUARANTINED = "quarantined"
    """Its body has done harm before."""
    BUDGET = "budget"
    """Its batch failed, and too much was divided of late."""
    SERVER = "server"
    """The server fails, whatever it gets."""
    ANSWER = "answer"
    """The answer to its batch cannot be divided."""
    CLOSED = "closed"


class RefusedError(Exception):
    """``status``: what the server answered the whole batch with, 0 where it did not.
    ``retry_after`` is its own word for when to come again, as it stood in its head; ``cause`` is
    that of ``NoAnswerError``."""

    def __init__(
        self,
        why: Why,
        *,
        status: int = 0,
        retry_after: bytes | None = None,
        cause: Exception | None = None,
    ) -> None:
        super().__init__(why.value)
        self.why = why
        self.status = status
        self.retry_after = retry_after
        self.cause = cause

    def again(self) -> RefusedError:
        """One for each caller, as each is raised with a traceback of its own."""
        return RefusedError(
            self.why, status=self.status, retry_after=self.retry_after, cause=self.cause
        )


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a call is submitted. ``join``: calls share a batch only where this is equal too
    (credentials, say). ``mark``: makes the keyed hash by which quarantine knows the body.
    ``origin``: the edge's own word for the caller. ``taken`` is told when its wait in the plan is
    over, in the clock's seconds. The others as in ``Waiting``."""

    origin: Any
    mark: Callable[[], bytes]
    join: Hashable = None
    priority: int = 1
    tenant: int = 0
    deadline: float | None = None
    taken: Callable[[float], object] | None = None


@dataclass(slots=True, eq=False)
class Member:
    """A caller who waits: in the plan, or in ``flight``."""

    call: Call
    terms: Terms
    future: asyncio.Future[Reply]
    arrived: float
    flight: Flight | None = None
    _mark: bytes = b""

    def mark(self) -> bytes:
        if not self._mark:
            self._mark = self.terms.mark()
        return self._mark

    @property
    def waits(self) -> bool:
        """It has no answer yet, and has not left."""
        return not self.future.done()

    def answer(self, reply: Reply) -> None:
        if not self.future.done():
            self.future.set_result(reply)
            self._settled()

    def refuse(self, error: RefusedError) -> None:
        if not self.future.done():
            self.future.set_exception(error.again())
            self._settled()

    def leave(self) -> None:
        """Its client is gone, or its deadline has passed."""
        if self.future.cancelled():
            self._settled()
        elif self.future.done():
            self.future.exception()  # else asyncio complains that nobody has looked at it
        if self.flight is not None:
            self.flight.left(self)

    def _settled(self) -> None:
        if self.flight is not None:
            self.flight.live -= 1


@dataclass(slots=True)
class Counts:
    """Since the start. ``inferences`` are batches and ``parts`` together; ``culprits`` failed alone
    after a batch with them had failed; ``cancelled``: batches that everybody had left."""

    calls: int = 0
    batches: int = 0
    inferences: int = 0
    rows: int = 0
    bisections: int = 0
    parts: int = 0
    culprits: int = 0
    cancelled: int = 0
    quarantined: int = 0
    refused: dict[Why, int] = field(default_factory=lambda: dict.fromkeys(Why, 0))


@dataclass(frozen=True, slots=True)
class Means:
    """What the flights of a route share. ``overfilled`` and ``overspent`` tell the plan that a
    batch was too much as a whole, and that the budget did not reach to divide it."""

    runner: Runner
    clock: Clock
    containment: Containment[Member]
    quarantine: Quarantine
    counts: Counts
    overfilled: Callable[[Batch[Member]], object]
    overspent: Callable[[Batch[Member]], object]


@dataclass(slots=True, eq=False)
class Flight:
    """``members`` as they were taken; ``live``: how many still wait. ``answered``: as a whole, at
    once. ``started`` in the clock's seconds. For whoever watches: ``padding`` (a share), ``parts``
    (inferences that dividing it took), ``culprits``, and of a failure ``why`` and ``status``."""

    batch: Batch[Member]
    members: list[Member]
    started: float
    means: Means
    live: int = field(init=False)
    task: asyncio.Task[None] | None = None
    bisection: Bisection[Member] | None = None
    answered: bool = False
    padding: float = 0.0
    parts: int = 0
    culprits: int = 0
    why: Why | None = None
    status: int = 0
    overfilled: bool = False
    told: bool = False  # of a fault of ours

    def __post_init__(self) -> None:
        self.live = len(self.members)
        for member in self.members:
            member.flight = self
            if member.terms.taken is not None:
                member.terms.taken(self.started)

    def left(self, member: Member) -> None:
        """Once all have left, it is given up."""
        if self.bisection is not None:
            self.bisection.leave(member)
        if not self.live and self.task is not None and not self.task.done():
            self.means.counts.cancelled += 1
            self.task.cancel()

    async def fly(self) -> None:
        """Answer or refuse every member. Raises nothing that comes from runners."""
        self.answered = await self._whole(self.members)

    async def _whole(self, members: Sequence[Member]) -> bool:
        """Answer or refuse these, who are not known to be bad. True if all were, at once."""
        try:
            replies = await self._infer(members)
        except FailedError as error:
            await self._failed(members, error)
        except (NoAnswerError, BadAnswerError) as error:
            self._refuse(members, self._refusal(members, error))
        except TooLargeError:
            await self._halve(members)
        except Exception as error:  # noqa: BLE001
            await self._fault(members, error)
        else:
            self._deliver(members, replies)
            return True
        return False

    async def _infer(self, members: Sequence[Member]) -> list[Reply]:
        """One inference with these. Raises what runners raise."""
        self.means.counts.inferences += 1
        deadlines = [member.terms.deadline for member in members]
        latest = None if None in deadlines else max(each for each in deadlines if each is not None)
        calls = [member.call for member in members]
        job = Job(calls, [member.terms.origin for member in members], latest)
        useful = True
        try:
            replies = await self.means.runner.run(job)
            if len(replies) != len(members):
                raise BadAnswerError(f"{len(replies)} replies for {len(members)} calls")
        except BadAnswerError:
            useful = False
            raise
        finally:
            if job.settle is not None:
                job.settle(useful)
        self.padding = max(self.padding, job.padding)
        return replies

    def _deliver(self, members: Sequence[Member], replies: Sequence[Reply]) -> None:
        for member, reply in zip(members, replies, strict=True):
            member.answer(reply)
        means = self.means
        now = means.clock.now()
        means.containment.passed(self.batch.key)
        marks = [each.mark() for each in members] if means.quarantine.active(now) else []
        means.quarantine.passed(marks, now)

    # -- failures ------------------------------------------------------------------------------

    async def _failed(self, members: Sequence[Member], error: FailedError) -> None:
        """The server answered all of these with an error."""
        self.status = error.answer.status
        if len(members) == 1:
            self._own(members[0], error)
        elif not blames_request(self.status):
            self._refuse(members, self._refusal(members, error))
        else:
            await self._divide(members)

    async def _fault(self, members: Sequence[Member], error: Exception) -> None:
        """It is ours, but one of them may have tripped it."""
        self._tell(error)
        if len(members) == 1:
            self._own_fault(members[0])
        else:
            await self._divide(members)

    def _tell(self, error: Exception) -> None:
        """Once for a batch, whatever else of it fails."""
        if not self.told:
            self.told = True
            log.error("a batch failed inside the gateway", exc_info=error)

    def _own_fault(self, member: Member) -> None:
        self._refuse((member,), RefusedError(Why.SERVER))
        self.means.quarantine.failed_alone(member.mark())

    def _own(self, member: Member, error: FailedError) -> None:
        """It failed alone: what the server said is about it, and it gets all of it."""
        answer = error.answer
        member.answer(Reply(answer.status, answer.head, bytes(answer.joined())))
        if blames_request(answer.status):
            self.means.quarantine.failed_alone(member.mark())

    async def _divide(self, members: Sequence[Member]) -> None:
        means, key = self.means, self.batch.key
        begun = means.containment.begin(members, means.clock.now(), key)
        if isinstance(begun, Verdict):
            if begun is Verdict.BUDGET:
                means.overspent(self.batch)
            self._refuse(members, RefusedError(_why(begun), status=self.status))
            return
        self.bisection = bisection = begun
        means.counts.bisections += 1
        for member in members:
            if not member.waits:
                bisection.leave(member)
        while (part := bisection.next()) is not None:
            self.parts += 1
            means.counts.parts += 1
            await self._part(bisection, part)
            self._verdicts(bisection)
        self._verdicts(bisection)
        self.culprits += bisection.culprits
        means.counts.culprits += bisection.culprits
        means.containment.ended(bisection, means.clock.now(), key)
        if bisection.blameless:
            self._overfilled()
        elif bisection.stopped is Verdict.BUDGET:
            means.overspent(self.batch)

    async def _part(self, bisection: Bisection[Member], part: Part[Member]) -> None:
        members = part.members
        try:
            replies = await self._infer(members)
        except FailedError as error:
            if not blames_request(error.answer.status):
                self._refuse(members, self._refusal(members, error))
                bisection.broke(part)
                return
            if len(members) == 1:
                self._own(members[0], error)
            bisection.failed(part)
        except (NoAnswerError, BadAnswerError) as error:
            self._refuse(members, self._refusal(members, error))
            bisection.broke(part)
        except TooLargeError:  # The whole was not, so a part cannot be; but nothing may hang.
            bisection.broke(part)
        except Exception as error:  # noqa: BLE001
            self._tell(error)
            if len(members) == 1:
                self._own_fault(members[0])
            bisection.failed(part)
        else:
            self._deliver(members, replies)
            bisection.passed(part)

    def _verdicts(self, bisection: Bisection[Member]) -> None:
        for member, verdict in bisection.settled():
            if verdict is not Verdict.OWN:
                self._refuse((member,), RefusedError(_why(verdict)))

    async def _halve(self, members: Sequence[Member]) -> None:
        """It does not fit the runner's buffers, which bounds that are right rule out."""
        if len(members) == 1:
            self._refuse(members, RefusedError(Why.SERVER, status=413))
            return
        if not self.overfilled:
            log.warning("a batch of %d calls does not fit its buffer, and is halved", len(members))
        self._overfilled()
        middle = len(members) // 2
        for half in (members[:middle], members[middle:]):
            there = [member for member in half if member.waits]
            if there:
                await self._whole(there)

    def _overfilled(self) -> None:
        """The plan is told once for a batch, however often it is halved."""
        if not self.overfilled:
            self.overfilled = True
            self.means.overfilled(self.batch)

    def _refusal(self, members: Sequence[Member], error: Exception) -> RefusedError:
        """What each of several gets for an error that nobody is to blame for."""
        if isinstance(error, NoAnswerError):
            return RefusedError(Why.SERVER, cause=error.cause)
        if isinstance(error, BadAnswerError):
            log.error("the answer to a batch of %d cannot be divided: %s", len(members), error)
            return RefusedError(Why.ANSWER)
        assert isinstance(error, FailedError)
        answer = error.answer
        self.status = answer.status
        retry_after = answer.head.get(b"retry-after")
        return RefusedError(Why.SERVER, status=answer.status, retry_after=retry_after)

    def _refuse(self, members: Sequence[Member], error: RefusedError) -> None:
        self.why = error.why
        for member in members:
            member.refuse(error)


def _why(verdict: Verdict) -> Why:
    return Why.BUDGET if verdict is Verdict.BUDGET else Why.SERVER
