"""A simulated model server with continuous batching: no slots, and tokens slower the more run.

All running streams advance together, so there is one clock that counts tokens per stream: its
speed depends on how many run, and a stream ends when the clock has advanced by its tokens. One
timer, set to whoever reaches its next piece first, follows every change of that speed.
"""

import asyncio
from heapq import heappop, heappush
from random import Random

from gateway.sim.models import Batching, Condition, Model
from gateway.sim.servers import Job, ModelServer, Stage


class BatchingServer(ModelServer):
    """``Model.batching`` at work. Cost: O(log streams) per piece."""

    def __init__(
        self,
        name: str,
        model: Model,
        batching: Batching,
        loop: asyncio.AbstractEventLoop,
        rng: Random,
    ) -> None:
        super().__init__(name, model, loop, rng)
        self._batching = batching
        self._lengths = Random(rng.random())
        self._tokens = 0.0  # what a stream has made that ran from the start
        self._tokens_at = loop.time()
        self._gap = batching.pace  # seconds per token since then
        self._next: list[tuple[float, int, Job]] = []
        self._goals: dict[Job, float] = {}
        self._serial = 0
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def slots(self) -> int:
        """Streams that run at once."""
        return self._batching.streams

    def become(self, condition: Condition) -> None:
        self._advance_tokens()
        super().become(condition)
        self._set()

    def _work(self, job: Job) -> None:
        now = self._advance_tokens()
        self._goals[job] = now + self._lengths.randint(*self._batching.tokens)
        self._await(job, now + 1)
        self._set()

    def _leave(self, job: Job) -> None:
        self._advance_tokens()
        self._goals.pop(job, None)
        super()._leave(job)
        self._set()

    def _await(self, job: Job, tokens: float) -> None:
        self._serial += 1
        heappush(self._next, (min(tokens, self._goals[job]), self._serial, job))

    def _advance_tokens(self) -> float:
        """Bring the clock of tokens up to the present."""
        now = self._loop.time()
        self._tokens += (now - self._tokens_at) / self._gap
        self._tokens_at = now
        return self._tokens

    def _set(self) -> None:
        """The present number of streams decides how fast it goes on, and so when to wake."""
        batching, waiting = self._batching, self._next
        crowding = (batching.slowdown - 1) * self.busy / batching.streams
        self._gap = batching.pace * (1 + crowding) * self.condition.slow
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while waiting and waiting[0][2].stage is Stage.OVER:
            heappop(waiting)
        if waiting:
            ahead = max(0.0, waiting[0][0] - self._tokens)
            self._alarm = self._loop.call_later(ahead * self._gap, self._piece)

    def _piece(self) -> None:
        """Somebody's next piece is ready, or its last."""
        self._alarm = None
        self._advance_tokens()
        tokens, _, job = heappop(self._next)
        self._tokens = max(self._tokens, tokens)  # a rounding error must not come back to wait
        self._begin(job)
        if tokens >= self._goals[job]:
            self._complete(job)
            return
        self._await(job, tokens + self._batching.piece)
        if job.waiter is not None:
            job.waiter.piece(b"data: {}\n\n")
        self._set()
