"""A race between two attempts of one exchange: who wins, and that nothing of the loser is left.

The first attempt runs in the caller's task, so that an exchange without a hedge needs no task of
its own. A second attempt that wins therefore cancels the caller, and takes that cancellation back,
counted as ``asyncio.timeout`` counts. Cancellations by others are never swallowed.
"""

from __future__ import annotations

from asyncio import CancelledError, Task
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING

from filters.api import Attempt, Kind, Outcome, Reason

if TYPE_CHECKING:
    from filters.api import Service

BODYLESS = (204, 205)
"""Good statuses that come without a body."""


def rank(outcome: Outcome, method: bytes) -> int:
    """How good it is to answer with this: 0 wins at once, anything else only over what is worse.

    1: complete and empty, where the status promises a body. 2: the client's error, which may be
    one server's opinion. 3: the server's error, or 429. 4: no answer.
    """
    answer = outcome.answer
    if answer is None:
        return 4
    status = outcome.status
    if status >= 400:
        return 3 if status >= 500 or status == 429 else 2
    owes_body = status < 300 and status not in BODYLESS and method != b"HEAD"
    return 1 if owes_body and answer.empty else 0


async def withheld(attempt: Attempt, next: Service[Attempt, Outcome]) -> Outcome:  # noqa: A002
    """One attempt up to the first byte of its body, or the end of its answer.

    If it breaks before, the outcome is a failure without an answer, which retry may repeat. An
    error's head is returned at once: it is not going to get any better.
    """
    outcome = await next(attempt)
    return await _begun(outcome) if _waits(outcome) else outcome


def _waits(outcome: Outcome) -> bool:
    """Whether a good head has come and nothing of the body yet."""
    answer = outcome.answer
    return answer is not None and outcome.status < 400 and not answer.body_here


async def _begun(outcome: Outcome) -> Outcome:
    """Wait for the body of a good head. Cancelled meanwhile, nothing of the outcome is left."""
    answer = outcome.answer
    assert answer is not None
    try:
        broken = await answer.body_begun()
    except BaseException:
        outcome.kind = Kind.IGNORED
        outcome.discard()
        raise
    if broken is None:
        return outcome
    permit, outcome.permit = outcome.permit, None
    outcome.discard()
    if permit is not None:
        permit.release(broken)
    return broken


def _drop(outcome: Outcome, method: bytes) -> None:
    """Throw a loser away. What failed by itself is blamed for it; else the endpoint is ignored."""
    if rank(outcome, method) == 0:
        outcome.kind = Kind.IGNORED
    outcome.discard()


class End(StrEnum):
    """What became of a second attempt."""

    WON = "won"
    LOST = "lost"
    """The first came after all."""
    FAILED = "failed"
    """It failed, or was empty."""
    ABANDONED = "abandoned"
    """The exchange ended before either."""


_ABANDONED = End.ABANDONED
"""For the hot path: see ``filters.api.OK``."""


class Race:
    """Two attempts of one exchange. The first runs in ``run``, that is, in ``task``, which is the
    caller's; the second joins later, with a task of its own, or never.

    ``timed``: whether the time until the end says something about the first attempt: it is its
    time to the first byte or, where it was overtaken, a lower bound of that.
    """

    __slots__ = ("_before", "_fired", "_method", "_next", "_rival", "_running", "_task", "end",
                 "first", "second", "timed")  # fmt: skip

    def __init__(
        self,
        first: Attempt,
        next: Service[Attempt, Outcome],  # noqa: A002
        task: Task[object],
    ) -> None:
        self._next = next
        self._method = first.exchange.request.method
        self._task = task
        self._before = task.cancelling()
        self._running = True
        self._fired = False
        self._rival: Task[Outcome] | None = None
        self.first = first
        self.second: Attempt | None = None
        self.end = _ABANDONED
        self.timed = False

    async def guarded(self, second: Attempt) -> Outcome:
        """The second attempt. A mistake inside it must not take the first one along."""
        try:
            return await withheld(second, self._next)
        except Exception as error:  # noqa: BLE001
            told = {"message": "a hedge failed", "exception": error}
            self._task.get_loop().call_exception_handler(told)
            return Outcome(Kind.FAILED, 0, Reason.INTERNAL)

    def join(self, second: Attempt, rival: Task[Outcome]) -> None:
        """``second`` runs in ``rival``, from now on."""
        self.second, self._rival = second, rival
        rival.add_done_callback(self._rival_done)

    def _rival_done(self, rival: Task[Outcome]) -> None:
        if not self._running or rival.cancelled():
            return
        outcome = rival.result()
        if rank(outcome, self._method) == 0:
            self._fired = True
            self._task.cancel()
        else:
            outcome.discard()  # at once: its endpoint must hear of it, however long the first takes

    async def run(self) -> Outcome:
        """The better outcome. Nothing of the other attempt is left when this returns or raises.

        The first attempt runs in this very frame, because most exchanges have no other.
        """
        outcome: Outcome | None = None  # None: the second has overtaken the first
        try:
            try:
                outcome = await self._next(self.first)
                if _waits(outcome):
                    head, outcome = outcome, None  # whose it is until its body begins
                    outcome = await _begun(head)
            except CancelledError:
                if not self._fired:
                    raise  # the client left, or the deadline passed; if both, ``_settled`` sees it
            finally:
                self._running = False
                if self._fired:
                    self._task.uncancel()
            good = outcome is not None and rank(outcome, self._method) == 0
            self.timed = good or outcome is None
            rival = self._rival
            if rival is None:
                assert outcome is not None
                return outcome
            if good:
                assert outcome is not None
                return await self._first_wins(outcome, rival)
            return self._choose(outcome, await self._settled(rival))
        except BaseException:
            if self._rival is not None:
                await self._put_down(self._rival)
            self.end = _ABANDONED
            if outcome is not None:
                _drop(outcome, self._method)
            raise

    async def _first_wins(self, outcome: Outcome, rival: Task[Outcome]) -> Outcome:
        failed = rival.done() and (rival.cancelled() or rank(rival.result(), self._method) > 0)
        await self._put_down(rival)
        if self._task.cancelling() > self._before:
            raise CancelledError
        self.end = End.FAILED if failed else End.LOST
        self._name(second_won=False)
        return outcome

    def _choose(self, first: Outcome | None, second: Outcome | None) -> Outcome:
        """The first one won nothing: it was overtaken (None), or is bad and has ended."""
        method = self._method
        won = second is not None and rank(second, method) == 0
        self.end = End.WON if won else End.FAILED
        if first is None or (second is not None and rank(second, method) < rank(first, method)):
            assert second is not None
            self._name(second_won=True)
            if first is not None:
                first.discard()
            return second
        self._name(second_won=False)
        if second is not None:
            second.discard()
        return first

    def _name(self, *, second_won: bool) -> None:
        """Let the exchange name the winner, and a retry know both endpoints."""
        first, second = self.first, self.second
        assert second is not None
        winner, loser = (second, first) if second_won else (first, second)
        if loser.endpoint:
            first.tried = (*first.tried, loser.endpoint)
        first.exchange.endpoint = first.endpoint = winner.endpoint

    async def _settled(self, rival: Task[Outcome]) -> Outcome | None:
        """The end of the second attempt; None when it ended without an outcome. Cancelled
        meanwhile, it takes the second attempt along."""
        try:
            outcome = await rival
        except CancelledError:
            outcome = None
        if self._task.cancelling() > self._before:
            raise CancelledError
        return outcome

    async def _put_down(self, rival: Task[Outcome]) -> None:
        """Cancel the second attempt and stay until it has gone, whoever cancels us meanwhile."""
        rival.cancel()
        while not rival.done():
            with suppress(CancelledError):
                await rival
        if not rival.cancelled():
            _drop(rival.result(), self._method)
