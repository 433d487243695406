"""A batch on its way to a model server: an exchange of ours, through the route's attempt chain.

So retry, hedge, balancing and ejection work for batches as for any request. The head that is sent
has what the members agree on (target, credentials, the headers that the route names) and nothing
that is one member's own: request id, trace and client are the batch's.

A batch that kills its server is suspected here: its request had left whole, the connection broke
without an answer, and the next attempt to connect there was refused (by the pool at once, where the
connection was a kept one).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from filters.api import (
    FAILED,
    IGNORED,
    OK,
    Attempt,
    Clock,
    Exchange,
    Headers,
    Outcome,
    Priority,
    Reason,
    Reject,
    Request,
    Service,
)
from gateway.body import ReplayStore, RequestBody
from gateway.fields import Field, field
from gateway.proxy import verdict
from gpu_batcher.api import Job, Message, NoAnswerError, TooLargeError

if TYPE_CHECKING:
    from filters.api import Permit
    from filters.seams import Flow
    from gateway.telemetry import Telemetry

SUSPECTED = 30.0
"""Seconds after a reset in which a refused connection counts: a supervisor's restart takes less."""
MOST_SUSPECTS = 64
SAID = 200
"""Bytes of a server's error that the log gets."""
_UNBOUNDED = 1 << 62
_CUT_OFF = Outcome(IGNORED)


class Caller(Protocol):
    """A member of a batch, as this module sees it. ``fields``: what is sent of its head; ``target``
    as it is sent, since a reload may change how it is rewritten while it waits."""

    exchange: Exchange
    fields: list[Field]
    target: bytes

    def mark(self) -> bytes: ...


class BatchExchange(Exchange):
    """``marks``: makes those of its members, by which quarantine knows them."""

    __slots__ = ("marks",)
    marks: Callable[[], Sequence[bytes]]


class _Source:
    """The body is here: there is nobody to hold up."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def body_wanted(self) -> None: ...


_SOURCE = _Source()


class Collector:
    """Takes an answer instead of a client. Of a body larger than ``most`` bytes nothing is kept:
    ``too_large`` says so, and ``task``, which waits for it, is cancelled."""

    __slots__ = (
        "_most",
        "bytes_sent",
        "committed",
        "head",
        "pieces",
        "status",
        "task",
        "too_large",
    )

    def __init__(self, most: int) -> None:
        self._most = most
        self.bytes_sent = 0
        self.committed = False
        self.head: dict[bytes, bytes] = {}
        self.pieces: list[bytes] = []
        self.status = 0
        self.too_large = False
        self.task: asyncio.Task[Any] | None = None

    def inform(self, status: int, lines: bytes) -> None: ...

    def start(self, status: int, lines: bytes, length: int | None) -> None:
        self.committed = True
        self.status = status
        for line in lines.split(b"\r\n"):
            name, _, value = line.partition(b":")
            lower = name.lower()
            if lower and lower != b"x-request-id" and not lower.startswith(b"x-tailrace-"):
                self.head[lower] = value.strip(b" \t")

    def flush(self) -> None: ...

    def write(self, data: bytes) -> None:
        self.bytes_sent += len(data)
        if self.bytes_sent > self._most:
            self._overflow()
        else:
            self.pieces.append(data)

    def _overflow(self) -> None:
        self.pieces.clear()
        if not self.too_large:
            self.too_large = True
            asyncio.get_running_loop().call_soon(self._break_off)

    def _break_off(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def finish(self, data: bytes, trailers: Headers) -> None:
        self.task = None  # it is all here, so there is nothing to break off
        if data:
            self.write(data)

    def abort(self) -> None: ...
    def flow(self, source: Flow | None) -> None: ...

    def buffered(self) -> int:
        return 0


class Deaths:
    """The innermost attempt filter of a route with batches: sees which of them a server may have
    died of. ``killed`` is told the marks of their members, once for each death, as it cannot be
    known which of several that were in flight there did it; an empty mark stands for those that are
    no batch, or had not broken yet. O(1) while nothing breaks."""

    def __init__(self, clock: Clock, killed: Callable[[Sequence[bytes], float], object]) -> None:
        self._clock = clock
        self._killed = killed
        self._suspects: list[tuple[str, float, Sequence[bytes]]] = []
        self._flying: dict[int, Attempt] = {}
        self._beside: set[int] = set()
        """Of those in flight: at an endpoint where another one broke meanwhile."""

    async def __call__(self, attempt: Attempt, next: Service[Attempt, Outcome]) -> Outcome:  # noqa: A002
        self._flying[id(attempt)] = attempt  # its endpoint is chosen further in
        try:
            outcome = await next(attempt)
            if outcome.answer is None:
                self._broke(attempt, outcome)
            elif self._suspects:
                self._suspects = [each for each in self._suspects if each[0] != attempt.endpoint]
            return outcome
        finally:
            del self._flying[id(attempt)]
            self._beside.discard(id(attempt))

    def _broke(self, attempt: Attempt, outcome: Outcome) -> None:
        now, where = self._clock.now(), attempt.endpoint
        refused = outcome.reason is Reason.CONNECT_FAILED
        marks: list[bytes] = []
        # Refused, but all of it was sent: it had left on a kept connection, which broke, and the
        # pool tried another one.
        if outcome.reason is Reason.UPSTREAM_RESET or (refused and outcome.complete):
            marks = self._suspected(attempt, outcome.complete)
        if refused:
            for each in self._suspects:
                if each[0] == where and now - each[1] <= SUSPECTED:
                    marks += each[2]
            self._suspects = [each for each in self._suspects if each[0] != where]
            if marks:
                self._killed(marks, now)
        elif marks:
            self._suspects.append((where, now, marks))
            del self._suspects[:-MOST_SUSPECTS]

    def _suspected(self, attempt: Attempt, complete: bool) -> list[bytes]:
        """The marks of what broke, if it is a batch that had left whole. Whatever it is, it is
        company to what else is in flight there. O(in flight)."""
        where, own = attempt.endpoint, id(attempt)
        others = [name for name, each in self._flying.items() if each.endpoint == where]
        alone = len(others) == 1 and own not in self._beside
        self._beside.update(others)
        exchange = attempt.exchange
        if not complete or not isinstance(exchange, BatchExchange):
            return []
        return [*exchange.marks()] if alone else [*exchange.marks(), b""]


class BatchSend:
    """``gpu_batcher.api.Send``. ``most``: bytes of an answer; ``name``: makes a request id. To be
    given its chains by ``use`` before the first request."""

    _route: Any
    _attempts: Service[Attempt, Outcome]
    _once: Service[Attempt, Outcome]

    def __init__(self, clock: Clock, most: int, name: Callable[[], bytes], seen: Telemetry) -> None:
        self._seen = seen
        self._clock = clock
        self._most = most
        self._name = name
        self._store = ReplayStore(_UNBOUNDED, _UNBOUNDED)
        self.failure = "nothing was sent"
        """The last one, for the operator's log: no caller is told it."""

    def use(
        self, route: Any, attempts: Service[Attempt, Outcome], once: Service[Attempt, Outcome]
    ) -> None:
        """``attempts`` is the route's attempt chain, ``once`` its innermost part."""
        self._route = copy(route)
        self._route.rewrite = None  # the callers' targets are rewritten already
        self._attempts = attempts
        self._once = once

    async def __call__(self, message: Message, job: Job, *, once: bool = False) -> Message:
        if job.settle is not None:  # an earlier request for the same job
            job.settle(True)
        exchange, collector = self._exchange(message, job)
        if once:  # also the pool sends it again when a kept connection breaks
            exchange.body.replayable = False  # type: ignore[misc]
        members = [caller.exchange for caller in job.origins]
        self._seen.batch_begun(exchange, members)
        try:
            outcome = await (self._once if once else self._attempts)(Attempt(exchange, 1, ()))
            if outcome.answer is None:
                reason = outcome.reason or Reason.INTERNAL
                refusal = Reject(reason, outcome.detail, retry_after=outcome.retry_after)
                self.failure = f"{exchange.endpoint or 'no endpoint'}: {reason.value}"
                broken = reason is Reason.UPSTREAM_RESET
                raise NoAnswerError(refusal, begun=outcome.sent, broken=broken)
            return await self._answer(job, exchange, collector, outcome)
        finally:
            exchange.body.release()  # type: ignore[attr-defined]
            self._seen.batch_ended(exchange, collector.status, self._told(job))
            for theirs in members:
                theirs.endpoint, theirs.hedged = exchange.endpoint, exchange.hedged
                theirs.attempts += exchange.attempts

    async def _answer(
        self, job: Job, exchange: Exchange, collector: Collector, outcome: Outcome
    ) -> Message:
        answer, permit = outcome.answer, outcome.permit
        assert answer is not None
        ended = _CUT_OFF
        collector.task = task = asyncio.current_task()
        try:
            ended = await answer.relay(exchange)
        except asyncio.CancelledError:
            if not collector.too_large or task is None:
                raise
            task.uncancel()
            ended = Outcome(IGNORED, collector.status, Reason.BATCH_ANSWER)
        finally:
            collector.task = None
            if ended.kind is not OK and permit is not None:
                permit.release(verdict(outcome, ended))
        if ended.kind is OK and permit is not None:
            job.settle = partial(_settle, job, permit, verdict(outcome, ended))
        if collector.too_large:  # by our own bound, so its endpoint is not to blame
            if len(job.calls) > 1:
                raise TooLargeError("the answer is larger than batching.answer")
            detail = "the answer is larger than batching.answer"
            raise NoAnswerError(Reject(Reason.BATCH_ANSWER, detail))
        if ended.kind is not OK:
            raise NoAnswerError(Reject(ended.reason or Reason.INTERNAL))
        if collector.status >= 400:
            said = b"".join(collector.pieces)[:SAID].decode("utf-8", "replace")
            self.failure = f"{exchange.endpoint} answered {collector.status}: {said!r}"
        return Message(list(collector.pieces), collector.head, collector.status)

    def _told(self, job: Job) -> dict[str, int | str]:
        rows = sum([call.rows for call in job.calls])
        return {
            "tailrace.route": self._route.name,
            "tailrace.batch.calls": len(job.calls),
            "tailrace.batch.rows": rows,
        }

    def _exchange(self, message: Message, job: Job) -> tuple[Exchange, Collector]:
        first: Caller = job.origins[0]
        theirs = first.exchange
        body = b"".join(message.body)
        told = theirs.request
        fields = [each for each in first.fields if each[0] not in message.head]
        fields += [field(name, value) for name, value in message.head.items()]
        index = {lower: value for lower, value, _, _ in fields}
        request = Request(b"POST", first.target, 1, fields, index, told.host, len(body))
        collector = Collector(self._most)
        exchange = BatchExchange(
            request,
            RequestBody(len(body), self._store, _SOURCE, body),
            collector,
            "unknown",  # of several: X-Forwarded-For has this word for it (RFC 7239 6.2)
            all(caller.exchange.trusted for caller in job.origins),
            theirs.secure,
            self._clock.now(),
        )
        exchange.marks = lambda: [caller.mark() for caller in job.origins]
        exchange.route = self._route
        exchange.request_id = self._name()
        exchange.priority = Priority(min(caller.exchange.priority for caller in job.origins))
        exchange.deadline = job.deadline
        exchange.asked = all(caller.exchange.asked for caller in job.origins)
        return exchange, collector


def _settle(job: Job, permit: Permit, outcome: Outcome, useful: bool) -> None:
    """The endpoint answers for what it answered."""
    job.settle = None
    if not useful:
        detail = "its answer to a batch cannot be divided"
        outcome = Outcome(FAILED, outcome.status, Reason.BATCH_ANSWER, detail=detail)
    permit.release(outcome)
