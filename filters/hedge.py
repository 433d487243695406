"""hedge: a second attempt elsewhere when the first is later than nearly all before it.

What counts is the first byte of the *body*: model servers send the head of an event stream long
before the first token, so a head proves nothing. On a route with this filter the head is therefore
withheld until a byte of the body is here or the answer is complete, and an attempt that breaks in
between can still be retried.

"The Tail at Scale" (Dean, Barroso, 2013) with what others found missing: the delay is measured and
not guessed, the extra load is paid from the one budget, nothing that failed or is empty ever wins,
and the loser is cancelled and awaited.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Task, current_task, get_running_loop
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from enum import StrEnum
from math import ceil
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from filters.api import Attempt, Outcome
from filters.meters import Quantiles
from filters.race import End, Race, rank, withheld
from filters.units import Duration, Quantile, Struct

if TYPE_CHECKING:
    from filters.api import Clock, Service
    from filters.budget import Budget

HALF_LIFE = 60.0
"""Seconds in which a sample loses half its weight. Long on purpose: when a few endpoints turn slow,
the delay must stay that of the healthy ones until ejection has acted. A general slowdown moves a
high quantile within seconds anyhow; becoming faster takes minutes, which only means fewer hedges.
"""
ENOUGH = 50
"""Samples (at their present weight) below which a size class has no delay, hence no hedges. For
high quantiles more: at least two of them must lie above."""
REFRESH = 1.0
"""Seconds for which a delay is remembered: working one out takes about 10 us."""
CLASSES = ("<1KiB", "<4KiB", "<16KiB", "<64KiB", "<256KiB", "<1MiB", ">=1MiB", "chunked")
"""Size classes of request bodies, by declared length: the time to the first token grows with the
prompt, and the delay of short prompts would hedge every long one."""


class Config(Struct, frozen=True):
    """``after``: the quantile of the route's own time to first byte, ``p50`` to ``p99.9``, after
    which a second attempt starts; never before ``min``. With ``dry_run`` none starts, but heads
    are withheld all the same, because that is how the time is measured."""

    after: Quantile = 0.95
    min: Duration = 0.01
    dry_run: bool = False


class Refusal(StrEnum):
    """Why an attempt that was late got no second one beside it."""

    SAMPLES = "samples"
    """Too few of its size class were seen; counted once per attempt, late or not."""
    HEDGED = "hedged"
    """A retry of an exchange that has had its hedge."""
    BODY = "body"
    """The request's body is not here whole, or was too large to be kept."""
    UNSAFE = "unsafe"
    NOT_CALM = "not_calm"
    """The cluster is saturated or pushing back."""
    ALONE = "alone"
    """There is no other healthy endpoint."""
    BUDGET = "budget"


class _Learned:
    """What one size class has taught. ``delay`` in seconds, None while too little is known."""

    __slots__ = ("delay", "fresh_until", "seconds")

    def __init__(self) -> None:
        self.seconds = Quantiles(HALF_LIFE)
        self.delay: float | None = None
        self.fresh_until = 0.0


class Policy:
    """When a second attempt is due. Bounded state: a sketch for each size class that occurs, of
    3 KB.

    One sample is taken per exchange, of its first attempt. When a second attempt has overtaken it,
    its time up to then is taken: a lower bound, but above the delay, which is all that a quantile
    asks. To learn from winners alone would pull the delay down with every hedge: a p95 would
    settle near p78, and hedge a fifth of all exchanges.
    """

    __slots__ = ("_enough", "_learned", "config")

    def __init__(self, config: Config) -> None:
        self.config = config
        self._enough = max(ENOUGH, ceil(2 / (1 - config.after)))
        self._learned: list[_Learned | None] = [None] * len(CLASSES)

    def delay(self, length: int | None, now: float) -> float | None:
        """Seconds until an attempt with a body of ``length`` bytes is late; None when too little
        is known. The share of attempts later than it is at most that which ``after`` leaves.
        About 0.3 us, and 10 us once in ``REFRESH`` seconds."""
        learned = self._learned[size_class(length)]
        return None if learned is None else self._delay(learned, now)

    def _delay(self, learned: _Learned, now: float) -> float | None:
        if now >= learned.fresh_until:
            learned.delay = None
            if learned.seconds.count(now) >= self._enough:
                learned.fresh_until = now + REFRESH
                learned.delay = max(learned.seconds.quantile(self.config.after), self.config.min)
        return learned.delay

    def learn(self, length: int | None, seconds: float, now: float) -> None:
        """The first byte came after ``seconds``. About 0.7 us."""
        place = size_class(length)
        learned = self._learned[place]
        if learned is None:
            learned = self._learned[place] = _Learned()
        learned.seconds.add(seconds, now)

    def take_over(self, before: Policy) -> None:
        """Go on from what ``before`` has learned; the quantile may be another."""
        self._learned = before._learned
        for each in self._learned:
            if each is not None:
                each.fresh_until = 0.0

    def describe(self, now: float) -> dict[str, object]:
        """By size class: the samples, and the delay in seconds."""
        return {
            name: {"samples": round(each.seconds.count(now), 1), "delay": self._delay(each, now)}
            for name, each in zip(CLASSES, self._learned, strict=True)
            if each is not None
        }


def size_class(length: int | None) -> int:
    """The place in ``CLASSES`` of a body of ``length`` bytes; None for a chunked one."""
    if length is None:
        return 7
    return min(6, ((length >> 10).bit_length() + 1) // 2)


Spawn: TypeAlias = Callable[[Coroutine[Any, Any, Outcome]], "Task[Outcome]"]
"""Starts a task: ``create_task`` of the loop."""


class Line:
    """The first attempts of one size class, in the order in which they will be late. They share one
    alarm, which is set for the first of them and seldom rings: most have left by then.

    Where the delay has fallen, whoever comes next is late only after those before: by as much as it
    fell, which between two looks at a sketch is little.
    """

    __slots__ = ("_armed", "_clock", "_due", "_late", "_races")

    def __init__(self, clock: Clock, late: Callable[[Race, float], None]) -> None:
        self._clock = clock
        self._late = late
        # An OrderedDict, because a dict finds its first key by walking over what was deleted.
        self._races: OrderedDict[Race, float] = OrderedDict()
        self._due = 0.0
        self._armed = False

    def add(self, race: Race, due: float) -> None:
        if due < self._due:
            due = self._due
        self._due = self._races[race] = due
        if not self._armed:
            self._arm(due)

    def remove(self, race: Race) -> None:
        """It has ended, late or not."""
        self._races.pop(race, None)

    def _arm(self, due: float) -> None:
        self._armed = True
        self._clock.call_at(due, self._ring)

    def _ring(self) -> None:
        self._armed = False
        races, now = self._races, self._clock.now()
        try:
            while races and next(iter(races.values())) <= now:
                self._late(races.popitem(last=False)[0], now)
        finally:  # a mistake with one of them must not keep the others from a second attempt
            if races and not self._armed:
                self._arm(next(iter(races.values())))


class Hedge:
    """The attempt filter below retry. Makes at most one extra attempt per exchange.

    ``calm``: whether the cluster is neither saturated nor pushing back now. ``another``: whether
    there is a healthy endpoint that is not among these. Somebody above deposits in ``budget``.

    About 3 us per attempt that needs no hedge: two looks at the clock, a place in a line, one
    sample.

    ``started`` counts second attempts, ``ends`` how they ended, ``refused`` why there was none.
    """

    __slots__ = (
        "_another", "_budget", "_calm", "_clock", "_lines", "_loop", "_spawn", "ends", "policy",
        "refused", "started", "would_hedge",
    )  # fmt: skip

    def __init__(
        self,
        policy: Policy,
        budget: Budget,
        clock: Clock,
        spawn: Spawn,
        calm: Callable[[float], bool],
        another: Callable[[tuple[str, ...]], bool],
    ) -> None:
        self.policy = policy
        self._clock = clock
        self._budget = budget
        self._spawn = spawn
        self._calm = calm
        self._another = another
        self._lines = [Line(clock, self._late) for _ in CLASSES]
        self._loop: AbstractEventLoop | None = None
        self.started = self.would_hedge = 0
        self.ends = dict.fromkeys(End, 0)
        self.refused = dict.fromkeys(Refusal, 0)

    async def __call__(self, attempt: Attempt, next: Service[Attempt, Outcome]) -> Outcome:  # noqa: A002
        exchange = attempt.exchange
        if exchange.upgrade:
            return await next(attempt)
        started = self._clock.now()
        length = exchange.request.length
        delay = self.policy.delay(length, started)
        if delay is None or exchange.hedged:
            self.refused[Refusal.SAMPLES if delay is None else Refusal.HEDGED] += 1
            outcome = await withheld(attempt, next)
            if rank(outcome, exchange.request.method) == 0:
                now = self._clock.now()
                self.policy.learn(length, now - started, now)
            return outcome
        loop = self._loop
        if loop is None:
            # Kept, because asking for the running loop costs a system call each time.
            loop = self._loop = get_running_loop()
        race = Race(attempt, next, cast("Task[object]", current_task(loop)))
        line = self._lines[size_class(length)]
        line.add(race, started + delay)
        try:
            return await race.run()
        finally:
            line.remove(race)
            if race.timed:
                now = self._clock.now()
                self.policy.learn(length, now - started, now)
            if race.second is not None:
                self.ends[race.end] += 1
                now = self._clock.now()
                exchange.note(now, "hedge", attempt.endpoint, None, f"the second {race.end.value}")

    def _late(self, race: Race, now: float) -> None:
        """The first attempt is late: start a second one, if nothing speaks against it."""
        first = race.first
        second = Attempt(first.exchange, first.number + 1, (*first.tried, first.endpoint))
        refusal = self._refusal(second, now)
        if refusal is None and self.policy.config.dry_run:
            self.would_hedge += 1
            first.exchange.shadow("hedge")
            return
        if refusal is None and not self._budget.withdraw(now, "hedge"):
            refusal = Refusal.BUDGET
        if refusal is not None:
            self.refused[refusal] += 1
            first.exchange.note(now, "hedge", first.endpoint, None, f"late, none: {refusal.value}")
            return
        self.started += 1
        second.exchange.hedged = True
        second.exchange.note(now, "hedge", first.endpoint, None, "late: a second attempt begins")
        race.join(second, self._spawn(race.guarded(second)))

    def _refusal(self, second: Attempt, now: float) -> Refusal | None:
        """What speaks against a second attempt, the budget apart. Looking whether it is safe comes
        last: for some paths it reads the body."""
        exchange = second.exchange
        if not self._calm(now):
            return Refusal.NOT_CALM
        if not self._another(second.tried):
            return Refusal.ALONE
        if not exchange.body.hold():
            return Refusal.BODY
        return None if exchange.route.replayable(exchange) else Refusal.UNSAFE

    @property
    def won(self) -> int:
        """Second attempts that were worth it."""
        return self.ends[End.WON]

    def take_over(self, before: Hedge) -> None:
        """Adopt the counts of the filter that a reload replaces, and what it has learned."""
        self.policy.take_over(before.policy)
        self.started, self.would_hedge = before.started, before.would_hedge
        self.ends, self.refused = before.ends, before.refused

    def describe(self, now: float) -> dict[str, object]:
        return {
            "dry_run": self.policy.config.dry_run,
            "sizes": self.policy.describe(now),
            "started": self.started,
            "ends": {each.value: n for each, n in self.ends.items()},
            "would_hedge": self.would_hedge,
            "refused": {each.value: n for each, n in self.refused.items()},
        }
