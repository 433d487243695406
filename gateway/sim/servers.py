"""Simulated model servers: slots, a FIFO queue, service times, token streams, faults.

What a server does to one request is a ``Job``; who waits for it hears of it by callback. Slots,
queue and counts are the whole truth about the work done upstream, whatever the gateway believes.
"""

import asyncio
import math
from collections import deque
from enum import Enum
from random import Random
from typing import Protocol

from gateway.sim.models import FULL, HEALTHY, Condition, Model


class Waiter(Protocol):
    """Who waits for an answer. Called back; after ``reset`` or ``ended`` never again."""

    def began(self, status: int, retry_after: int | None) -> None: ...
    def piece(self, data: bytes) -> None: ...
    def ended(self, data: bytes) -> None: ...
    def reset(self) -> None: ...


class Stage(Enum):
    QUEUED = 0
    RUNNING = 1
    HELD = 2
    """Taken without a slot: a quick refusal, a reset to come, or nothing ever."""
    OVER = 3


class Job:
    """One request at a server. ``waiter`` is None when nobody waits any more. ``started`` is when
    work on it began, and ``service`` how long that took in the end, both in seconds."""

    __slots__ = ("begun", "seconds", "sent", "service", "stage", "started", "timer", "waiter")

    def __init__(self, waiter: Waiter, seconds: float) -> None:
        self.waiter: Waiter | None = waiter
        self.seconds = seconds
        self.started = self.service = 0.0
        self.stage = Stage.HELD
        self.timer: asyncio.TimerHandle | None = None
        self.begun = False
        self.sent = 0


class ModelServer:
    """One server. ``served`` were answered in full to somebody, ``wasted`` to nobody;
    ``cancelled`` were dropped because their client left; ``refused`` got a failing status."""

    def __init__(
        self, name: str, model: Model, loop: asyncio.AbstractEventLoop, rng: Random
    ) -> None:
        self.name = name
        self.model = model
        self.condition = HEALTHY
        self._loop = loop
        self._rng = rng
        self._queue: deque[Job] = deque()
        self._jobs: dict[Job, None] = {}
        self._down_until = -math.inf
        self.busy = 0
        self.attempts = self.served = self.wasted = self.cancelled = self.refused = self.crashes = 0

    @property
    def refuses(self) -> bool:
        return self.condition.refuses or self._loop.time() < self._down_until

    @property
    def in_flight(self) -> int:
        """Requests here, wherever they stand."""
        return len(self._jobs)

    @property
    def slots(self) -> int:
        return self.model.slots if self.condition.slots is None else self.condition.slots

    def become(self, condition: Condition) -> None:
        """A fault begins or ends."""
        self.condition = condition
        if condition.refuses:
            self._break_all()
        self._advance()

    def accept(self, waiter: Waiter, body: bytes | None) -> Job:
        """A whole request arrived. The answer comes through ``waiter``, never within this call."""
        self.attempts += 1
        condition, model = self.condition, self.model
        job = Job(waiter, model.seconds(self._rng))
        self._jobs[job] = None
        struck = condition.share >= 1 or self._rng.random() < condition.share
        if condition.hangs:
            if condition.heads:
                self._loop.call_soon(self._begin, job)
            return job
        if model.limit is not None and len(self._jobs) > model.limit:
            job.timer = self._loop.call_later(FULL.after, self._refuse, job, FULL)
            return job
        if struck and condition.status:
            job.timer = self._loop.call_later(condition.after, self._refuse, job, condition)
        elif struck and condition.resets:
            job.timer = self._loop.call_later(condition.after, self._break, job)
        elif body is not None and body == model.poison:
            job.timer = self._loop.call_later(model.fuse, self._crash)
        else:
            job.stage = Stage.QUEUED
            self._queue.append(job)
            if model.head_first:
                self._loop.call_soon(self._begin, job)
            self._advance()
        return job

    def abandon(self, job: Job) -> None:
        """The connection of ``job`` was closed by the client's side. Harmless after its end."""
        if job.stage is Stage.OVER:
            return
        job.waiter = None
        if job.stage is not Stage.RUNNING or self.model.aborts:
            self.cancelled += 1
            self._leave(job)

    # -- work ---------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Fill free slots from the head of the queue."""
        queue = self._queue
        while queue and self.busy < self.slots:
            job = queue.popleft()
            if job.stage is Stage.QUEUED:
                job.stage = Stage.RUNNING
                job.started = self._loop.time()
                self.busy += 1
                self._work(job)

    def _work(self, job: Job) -> None:
        """Begin with a job that has got its slot."""
        seconds = job.seconds * self.condition.slow
        job.timer = self._loop.call_later(seconds, self._worked, job)

    def _worked(self, job: Job) -> None:
        """A plain answer is ready, or the next token of a stream."""
        self._begin(job)
        job.sent += 1
        if job.sent >= self.model.tokens:
            self._complete(job)
            return
        if job.waiter is not None:
            job.waiter.piece(b"data: {}\n\n")
        if job.stage is not Stage.RUNNING:  # hearing of it made the waiter leave
            return
        stalls_after = self.condition.stalls_after
        if stalls_after is not None and job.sent >= stalls_after:
            return
        job.timer = self._loop.call_later(self.model.pace * self.condition.slow, self._worked, job)

    def _begin(self, job: Job) -> None:
        if not job.begun and job.stage is not Stage.OVER:
            job.begun = True
            if job.waiter is not None:
                job.waiter.began(200, None)

    def _complete(self, job: Job) -> None:
        if job.stage is Stage.OVER:
            return
        waiter = job.waiter
        job.service = self._loop.time() - job.started
        self._leave(job)
        if waiter is None:
            self.wasted += 1
            return
        self.served += 1
        waiter.ended(b"{}")

    def _leave(self, job: Job) -> None:
        """Out of here, whatever it held."""
        running = job.stage is Stage.RUNNING
        job.stage = Stage.OVER
        del self._jobs[job]
        if job.timer is not None:
            job.timer.cancel()
        if running:
            self.busy -= 1
            self._advance()

    # -- faults -------------------------------------------------------------------------------

    def _refuse(self, job: Job, condition: Condition) -> None:
        self.refused += 1
        waiter = job.waiter
        self._leave(job)
        if waiter is not None:
            waiter.began(condition.status, condition.retry_after)
            waiter.ended(b"{}")

    def _break(self, job: Job) -> None:
        waiter = job.waiter
        self._leave(job)
        if waiter is not None:
            waiter.reset()

    def _break_all(self) -> None:
        self._queue.clear()
        for job in list(self._jobs):
            if job.stage is not Stage.OVER:
                self._break(job)

    def _crash(self) -> None:
        self.crashes += 1
        self._down_until = self._loop.time() + self.model.restart
        self._break_all()
