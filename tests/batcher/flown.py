"""A model server in virtual time behind the ``Runner`` seam; callers know their own rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.sim.loop import VirtualLoop
from gpu_batcher.api import (
    BadAnswerError,
    Call,
    FailedError,
    Handle,
    Job,
    Message,
    NoAnswerError,
    Reply,
    TooLargeError,
)
from gpu_batcher.coalescer import Coalescer
from gpu_batcher.flight import Terms
from gpu_batcher.pacing import Bounds


class LoopClock:
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def call_at(self, when: float, callback: Callable[[], object]) -> Handle:
        return asyncio.get_running_loop().call_at(when, callback)


@dataclass
class Server:
    """2 ms for each inference and 20 us for each row. A call whose notes are in ``poison`` fails
    every inference that it is in, those in ``bugs`` trip a bug of ours; ``moods`` are taken one
    for each inference, "" for none."""

    poison: set[int] = field(default_factory=set)
    moods: list[str] = field(default_factory=list)
    bugs: set[int] = field(default_factory=set)
    per_call: float = 0.002
    per_row: float = 20e-6
    most: int = 1 << 30
    name: str = "simulated"
    inferences: list[list[int]] = field(default_factory=list)
    running: int = 0
    peak: int = 0
    closed: bool = False
    useful: list[bool] = field(default_factory=list)

    async def run(self, job: Job) -> list[Reply]:
        marks = [_mark(call) for call in job.calls]
        self.inferences.append(marks)
        mood = self.moods.pop(0) if self.moods else ""
        self.running += 1
        self.peak = max(self.peak, self.running)
        job.settle = self.useful.append
        try:
            rows = sum(call.rows for call in job.calls)
            if rows > self.most:
                raise TooLargeError
            await asyncio.sleep(self.per_call + self.per_row * rows)
        finally:
            self.running -= 1
        self._fail(mood, marks)
        replies = [_reply(mark) for mark in marks]
        return replies[:-1] if mood == "short" else replies

    def _fail(self, mood: str, marks: Sequence[int]) -> None:
        if mood.isdigit():
            raise FailedError(Message([b"of %d" % marks[0]], {b"retry-after": b"7"}, int(mood)))
        if mood == "broken":
            raise NoAnswerError(ConnectionError("reset"))
        if mood == "bad":
            raise BadAnswerError("two rows are missing")
        if mood == "bug" or not self.bugs.isdisjoint(marks):
            raise ZeroDivisionError
        if not self.poison.isdisjoint(marks):
            culprit = next(mark for mark in marks if mark in self.poison)
            raise FailedError(Message([b"row %d is poison" % culprit], {}, 500))

    async def close(self) -> None:
        self.closed = True


def _mark(call: Call) -> int:
    assert isinstance(call.notes, int)
    return call.notes


def _reply(mark: int) -> Reply:
    return Reply(200, {}, b"rows of %d" % mark)


def own(mark: int) -> bytes:
    return _reply(mark).body


def call(mark: int, rows: int = 1, key: str = "m") -> Call:
    return Call(key, rows, 100 * rows, notes=mark)


def terms(mark: int, **more: Any) -> Terms:
    return Terms(mark, lambda: b"%d" % mark, **more)


def coalescer(server: Server, bounds: Bounds | None = None, **more: Any) -> Coalescer:
    return Coalescer(server, bounds or Bounds(), LoopClock(), **more)


def fly(work: Coroutine[Any, Any, Any], limit: float = 3600.0) -> Any:
    """Run in virtual time; a deadlock, or an exception that nobody saw, fails."""
    loop = VirtualLoop(limit)
    unseen: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unseen.append(context))
    try:
        result = loop.run_until_complete(work)
    finally:
        loop.close()
    assert not unseen
    return result
