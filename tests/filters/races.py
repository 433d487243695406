"""A stage for hedging: two scripted attempts in virtual time, and what must hold after any race."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from filters.api import Attempt, Clock, Exchange, Kind, Outcome, Reason
from filters.budget import Budget
from filters.budget import Config as BudgetConfig
from filters.hedge import Config, Hedge, Policy, Spawn
from gateway.clock import LoopClock
from gateway.sim.loop import VirtualLoop, run
from tests.filters.doubles import WholeBody, exchange

if TYPE_CHECKING:
    from filters.seams import Answer

DELAY = 0.2
"""Seconds after which the filters made here start a second attempt."""
BAD = ("empty", "404", "429", "503", "refused", "breaks")
"""Ends that never win over an attempt still running."""
STATUS = {"404": 404, "429": 429, "503": 503, "good": 200, "empty": 200, "breaks": 200, "303": 303}
KINDS = {429: Kind.PUSHED_BACK, 503: Kind.FAILED}


@dataclass(frozen=True)
class Script:
    """One attempt. ``head``: seconds to its head, or to its end without one; ``body``: from there
    to the first byte; ``dying``: how long it takes to go when it is cancelled."""

    kind: str
    head: float
    body: float = 0.0
    dying: float = 0.0

    @property
    def ends(self) -> float:
        if self.kind in ("404", "429", "503", "refused", "raises"):
            return self.head
        return self.head + self.body


class Permit:
    def __init__(self) -> None:
        self.released: list[Outcome] = []

    def release(self, outcome: Outcome) -> None:
        self.released.append(outcome)


class ScriptedAnswer:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.status = STATUS[script.kind]
        self.headers: list[tuple[bytes, bytes]] = []
        self.empty = script.kind == "empty"
        self.body_here = False
        self.discarded = 0

    async def body_begun(self) -> Outcome | None:
        await pause(self.script.body, self.script.dying)
        if self.script.kind == "breaks":
            return Outcome(Kind.FAILED, self.status, Reason.UPSTREAM_RESET)
        return None

    def discard(self) -> None:
        self.discarded += 1


async def pause(seconds: float, dying: float) -> None:
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        if dying:
            await asyncio.sleep(dying)
        raise


class Upstream:
    """In the place of ``Cluster.attempt``: the scripts in their order, each at an own endpoint."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.attempts: list[Attempt] = []
        self.permits: list[Permit] = []
        self.answers: list[ScriptedAnswer] = []

    async def attempt(self, attempt: Attempt) -> Outcome:
        script = self.scripts[len(self.attempts)]
        self.attempts.append(attempt)
        attempt.endpoint = attempt.exchange.endpoint = f"e{len(self.attempts)}"
        permit = Permit()
        self.permits.append(permit)
        try:
            await pause(script.head, script.dying)
            if script.kind == "raises":
                raise ValueError("a mistake")
        except BaseException:
            permit.release(Outcome(Kind.IGNORED))
            raise
        if script.kind == "refused":
            failed = Outcome(Kind.FAILED, 0, Reason.CONNECT_FAILED, sent=False, complete=False)
            permit.release(failed)
            return failed
        answer = ScriptedAnswer(script)
        self.answers.append(answer)
        kind = KINDS.get(answer.status, Kind.OK)
        return Outcome(kind, answer.status, None, answer=cast("Answer", answer), permit=permit)


class Route:
    def __init__(self, safe: bool = True) -> None:
        self.safe = safe

    def replayable(self, exchange: Exchange) -> bool:
        return self.safe


@dataclass
class Stage:
    """What the filter is told, and after ``play``, what came of it."""

    scripts: tuple[Script, ...]
    config: Config = Config(min=DELAY)  # noqa: RUF009  frozen
    samples: int = 1000
    calm: bool = True
    others: bool = True
    safe: bool = True
    kept: bool = True
    requests: int = 1000
    method: bytes = b"POST"
    leaves: tuple[float, ...] = ()
    """When somebody cancels the exchange, in seconds from its start."""
    prepare: Callable[[Exchange], None] = lambda exchange: None

    outcome: Outcome | None = None
    raised: BaseException | None = None
    seconds: float = 0.0
    learned: list[float] = field(default_factory=list)
    uncaught: list[dict[str, Any]] = field(default_factory=list)
    tasks_left: int = 0
    counted: int = 0
    """Cancellations that the task still knows of."""

    def play(self) -> Stage:
        loop = VirtualLoop(limit=1000)
        loop.set_exception_handler(lambda loop, context: self.uncaught.append(context))
        run(self._play(loop), loop)
        return self

    def made(self, clock: Clock, spawn: Spawn) -> Hedge:
        """A filter that has seen ``samples`` answers of 10 ms."""
        policy = Policy(self.config)
        for _ in range(self.samples):
            policy.learn(2, 0.01, clock.now())
        budget = Budget(BudgetConfig(min_per_second=0))
        budget.deposit(clock.now(), self.requests)
        return Hedge(
            policy,
            budget,
            clock,
            spawn,
            lambda now: self.calm,
            lambda tried: self.others,
        )

    async def _play(self, loop: asyncio.AbstractEventLoop) -> None:
        clock = LoopClock(loop)
        self.hedge = self.made(clock, loop.create_task)
        self.upstream = Upstream(*self.scripts)
        body = WholeBody(replayable=self.kept)
        self.exchange = exchange(self.method, body=body, arrived=clock.now())
        self.exchange.route = Route(self.safe)
        self.prepare(self.exchange)
        self.attempt = Attempt(self.exchange, 1, ())
        teach = self.hedge.policy.learn

        def learn(length: int | None, seconds: float, now: float) -> None:
            self.learned.append(seconds)
            teach(length, seconds, now)

        self.hedge.policy = cast("Policy", _Overheard(self.hedge.policy, learn))
        start = clock.now()
        task = loop.create_task(self._run())
        for when in self.leaves:
            loop.call_at(start + when, task.cancel)
        await asyncio.wait([task])
        self.seconds = clock.now() - start
        await asyncio.sleep(10)  # a timer that was forgotten would ring by now
        if task.cancelled():
            self.raised = asyncio.CancelledError()
        else:
            self.raised = task.exception()
        self.tasks_left = len(asyncio.all_tasks(loop)) - 1

    async def _run(self) -> None:
        try:
            self.outcome = await self.hedge(self.attempt, self.upstream.attempt)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self.counted = task.cancelling()

    # -- what must hold -------------------------------------------------------------------------

    @property
    def winner(self) -> str:
        """The endpoint whose answer was returned."""
        assert self.outcome is not None
        assert self.outcome.answer is not None
        return f"e{self.upstream.permits.index(cast('Permit', self.outcome.permit)) + 1}"

    def check(self) -> None:
        """No permit, answer or task is left; what is returned is whole; the counts add up."""
        assert self.tasks_left == 0
        kept = None if self.outcome is None else self.outcome.permit
        for permit in self.upstream.permits:
            assert len(permit.released) == (permit is not kept)
        answer = None if self.outcome is None else self.outcome.answer
        for each in self.upstream.answers:
            assert each.discarded == (cast("Answer", each) is not answer)
        assert (kept is None) == (answer is None)
        assert len(self.upstream.attempts) <= 2
        hedge = self.hedge
        assert hedge.started == sum(hedge.ends.values())
        assert self.exchange.hedged == (hedge.started == 1)
        if answer is not None:
            assert self.exchange.endpoint == self.winner == self.attempt.endpoint
        assert self.counted <= len(self.leaves)

    def verdict(self, number: int) -> Kind:
        """What the endpoint of attempt ``number`` was told."""
        (outcome,) = self.upstream.permits[number - 1].released
        return outcome.kind


class _Overheard:
    """A policy whose lessons are noted."""

    def __init__(self, policy: Policy, learn: Callable[[int | None, float, float], None]) -> None:
        self.config = policy.config
        self.delay = policy.delay
        self.learn = learn
