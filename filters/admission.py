"""admission: how much of a route may be in flight at its cluster, and who waits in front of it.

A permit stands for work that is really sent on, from the moment it is sent to the last byte of
its answer; so the limit bounds what the model server holds, and what is above it waits here, where
it can be put in order, given up and refused. Three parts, each in its own file, decide: the limit
(``limits.py``), the queue (``queueing.py``), and what must not even wait (``shedder.py``). This one
keeps the count and wakes whoever is next.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError, Future, get_running_loop
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import msgspec

from filters.api import OK, PUSHED_BACK, Exchange, Outcome, Priority, Reason, Reject
from filters.limits import AdaptiveLimit, FixedLimit
from filters.queueing import AGE, LEVELS, FairQueue, Waiter
from filters.shedder import Shedder
from filters.tenants import header_of, tenant_of
from filters.units import Count, Duration, HashKey, Struct

if TYPE_CHECKING:
    from random import Random

    from filters.api import Clock, Handle, Service


class Queue(Struct, frozen=True):
    """``size`` in requests, 0 for no waiting at all; ``timeout``: the longest wait of one of them.

    1024 take a burst of a few hundred milliseconds at thousands of requests per second; 10 s is
    about as long as somebody waits who has heard nothing yet.
    """

    size: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 1024
    timeout: Duration = 10.0


class Config(Struct, frozen=True):
    """``limit``: ``adaptive``, or a fixed number in flight. ``initial``, ``min`` and ``max`` bound
    the adaptive limit: it begins generous, since a server that batches 256 streams must not be
    refused work by a limit that is still learning. ``fair_by``: who shares a class of the queue
    evenly, ``header:NAME``; without the header, the client's address."""

    limit: Literal["adaptive"] | Count = "adaptive"
    initial: Count = 512
    min: Count = 1
    max: Count = 4096
    queue: Queue = Queue()
    fair_by: HashKey = "header:authorization"
    dry_run: bool = False


Check: TypeAlias = Callable[[Exchange, float], None]
"""What is asked before anything is taken; raises Reject."""
Limit: TypeAlias = AdaptiveLimit | FixedLimit


class _Place:
    """What a waiter waits for, and what it gets: its mark and count in flight."""

    __slots__ = ("due", "future", "granted", "in_flight", "mark")

    def __init__(self, future: Future[Reject | None], due: Reason) -> None:
        self.future = future
        self.due = due
        self.granted = -1.0
        self.in_flight = 0.0
        self.mark = 0


class Gate:
    """The permits of one route at one cluster, and the queue for them.

    It outlives a reload: exchanges under way give back to the same gate that they took from.
    ``in_flight`` is the cost in flight. Invariant: what was taken comes back exactly once, whatever
    happens in between; nobody waits while there is room. ``sheds``: whether the queue is kept short
    during overload, which goes with load_shed.

    ``admitted``, ``waited``, ``full``, ``timed_out``, ``pushed_out`` and ``would_wait`` (in a dry
    run: there was no room, so it would have waited, or been refused if the queue was full) are
    counts of exchanges.
    """

    __slots__ = (
        "_alarm", "_alarm_at", "_clock", "_loop", "admitted", "config", "fair_by", "full",
        "in_flight", "limit", "pushed_out", "queue", "shedder", "sheds",
        "timed_out", "turned_away", "waited", "would_wait",
    )  # fmt: skip

    def __init__(self, config: Config, clock: Clock, rng: Random) -> None:
        self._clock = clock
        self._loop: AbstractEventLoop | None = None
        self._alarm: Handle | None = None
        self._alarm_at = 0.0
        self.in_flight = 0.0
        self.admitted = self.waited = self.full = self.timed_out = self.pushed_out = 0
        self.would_wait = 0
        self.sheds = True
        self.turned_away = False  # for want of a place, since the last answer
        self.shedder = Shedder(rng)
        self.queue: FairQueue[_Place] = FairQueue(config.queue.size)
        self.limit: Limit = _limit(config)
        self.use(config)

    def use(self, config: Config, sheds: bool = True) -> None:
        """Put another configuration in force; what was learned stays as far as it applies."""
        self.sheds = sheds
        limit = self.limit
        if config.limit != "adaptive":
            self.limit = FixedLimit(config.limit)
        elif isinstance(limit, AdaptiveLimit):
            limit.bound(config.min, config.max)
        else:
            self.limit = _limit(config)
        self.config = config
        self.queue.size = config.queue.size
        self.queue.age = min(AGE, config.queue.timeout / LEVELS)
        self.fair_by = header_of(config.fair_by)
        self.grant(self._clock.now())

    # -- taking ---------------------------------------------------------------------------------

    async def wait(self, exchange: Exchange, cost: float, now: float) -> _Place:
        """Stand in the queue; returns with a permit counted. Raises Reject."""
        expires, due = now + self.config.queue.timeout, Reason.QUEUE_TIMEOUT
        if exchange.deadline is not None and exchange.deadline < expires:
            expires, due = exchange.deadline, Reason.DEADLINE
        loop = self._loop
        if loop is None:  # kept, because asking for it costs a system call each time
            loop = self._loop = get_running_loop()
        place = _Place(loop.create_future(), due)
        tenant = tenant_of(exchange, self.fair_by)
        waiter = Waiter(place, exchange.priority, tenant, cost, now, expires)
        self._enqueue(waiter, now)
        self.waited += 1
        try:
            refusal = await place.future
        except CancelledError:
            exchange.queued = self._clock.now() - now  # its deadline may have ended it
            if place.granted >= 0:  # granted in the very moment that the client left
                self.give_back(cost, self._clock.now())
            elif self.queue.remove(waiter):
                self._left(self._clock.now())
            raise
        if refusal is not None:
            exchange.queued = self._clock.now() - now
            raise refusal
        exchange.queued = place.granted - now
        exchange.granted = True
        return place

    def _enqueue(self, waiter: Waiter[_Place], now: float) -> None:
        shedder = self.shedder
        worst = self.queue.push(waiter, now, shedder.overloaded)
        if worst is not None:
            shedder.full(now)
            self.full += 1
            self.turned_away = True
            refusal = Reject(Reason.QUEUE_FULL, retry_after=shedder.retry_after(now))
            if worst is waiter:
                raise refusal
            _refuse(worst, refusal)
        self.limit.waits(now)
        self._tell(now)
        self.grant(now)  # whoever is next may be another now, and dearer or cheaper than before
        self._set_alarm()

    def _left(self, now: float) -> None:
        """Somebody left the queue without a permit; behind a dear one there may be cheaper ones."""
        self.shedder.queue(now, len(self.queue))
        self.grant(now)

    def _tell(self, now: float) -> None:
        """Let the shedder know how long the queue is, and shorten it if it says so."""
        shedder, queue = self.shedder, self.queue
        shedder.limit = self.limit.level
        shedder.queue(now, len(queue))
        keep = shedder.keep(now) if self.sheds else None
        if keep is None or len(queue) <= keep:
            return
        out = queue.trim(keep, now, shedder.certain)
        self.pushed_out += len(out)
        shedder.pushed_out(now, len(out))
        for waiter in out:
            _refuse(waiter, Reject(Reason.SHED, retry_after=shedder.retry_after(now)))
        shedder.queue(now, len(queue))

    # -- giving back ------------------------------------------------------------------------------

    def give_back(self, cost: float, now: float) -> None:
        """One permit came back; whoever is next gets the room. O(log waiting)."""
        self.in_flight -= cost
        if self.queue:
            if self.in_flight >= self.limit.level:
                self.shedder.hold(now, True)
            else:
                self.grant(now)

    def grant(self, now: float) -> None:
        """Hand out what there is room for."""
        queue, limit, shedder = self.queue, self.limit, self.shedder
        granted = False
        while queue:
            # Alone, even the dearest passes: it would wait for ever otherwise.
            room = limit.level - self.in_flight
            if self.in_flight <= 0 or self.config.dry_run:
                room = float("inf")
            waiter = queue.pop(now, room, shedder.overloaded)
            if waiter is None:
                break
            place = waiter.item
            self.in_flight += waiter.cost
            place.in_flight = self.in_flight
            place.mark = limit.begun(self.in_flight)
            place.granted = now
            granted = True
            shedder.served(now)
            if not place.future.done():
                place.future.set_result(None)
        if granted:
            shedder.hold(now, False)
            self._tell(now)

    # -- waiting no longer ----------------------------------------------------------------------

    def _set_alarm(self) -> None:
        at = self.queue.next_expiry()
        if at is None or (self._alarm is not None and self._alarm_at <= at):
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = at
        self._alarm = self._clock.call_at(at, self._expire)

    def _expire(self) -> None:
        """Refuse whom waiting has become pointless for."""
        self._alarm = None
        now = self._clock.now()
        for waiter in self.queue.expire(now):
            self.timed_out += 1
            _refuse(waiter, Reject(waiter.item.due, retry_after=self.shedder.retry_after(now)))
        self._tell(now)
        self.grant(now)
        self._set_alarm()

    def describe(self, now: float) -> dict[str, object]:
        oldest = self.queue.oldest()
        waiting = self.queue.by_level()
        return {
            "limit": self.limit.describe(now),
            "in_flight": self.in_flight,
            "queue": {
                "waiting": len(self.queue),
                "by_class": {each.name.lower(): waiting[each] for each in Priority},
                "tenants": self.queue.tenants(),
                "oldest_s": None if oldest is None else round(now - oldest, 3),
                "size": self.config.queue.size,
                "newest_first": self.shedder.overloaded,
            },
            "admitted": self.admitted,
            "waited": self.waited,
            "refused": {
                "queue_full": self.full,
                "queue_timeout": self.timed_out,
                "pushed_out": self.pushed_out,
            },
            "dry_run": self.config.dry_run,
            "would_wait": self.would_wait,
        }


def _limit(config: Config) -> Limit:
    if config.limit == "adaptive":
        return AdaptiveLimit(config.initial, config.min, config.max)
    return FixedLimit(config.limit)


def _refuse(waiter: Waiter[_Place], refusal: Reject) -> None:
    if not waiter.item.future.done():
        waiter.item.future.set_result(refusal)


def one(exchange: Exchange) -> float:
    """The cost of every exchange until tokens can be counted."""
    return 1.0


class Admission:
    """The innermost exchange filter: the arrival checks, then a permit, then the journey.

    The checks run here and not as filters of their own because none of them waits for anything:
    each would cost a coroutine. ``saturated``: whether every endpoint is pushing back; one that
    does while others have room is the balancer's business, not the limit's. About 1.5 us where
    nobody waits.
    """

    __slots__ = ("_checks", "_clock", "_cost", "_saturated", "gate")

    def __init__(
        self,
        gate: Gate,
        clock: Clock,
        checks: Sequence[Check] = (),
        cost: Callable[[Exchange], float] = one,
        saturated: Callable[[float], bool] = lambda now: True,
    ) -> None:
        self.gate = gate
        self._saturated = saturated
        self._clock = clock
        self._checks = tuple(checks)
        self._cost = cost

    async def __call__(self, exchange: Exchange, next: Service[Exchange, Outcome]) -> Outcome:  # noqa: A002
        now = self._clock.now()
        for check in self._checks:
            check(exchange, now)
        gate = self.gate
        limit = gate.limit
        cost = self._cost(exchange)
        in_flight = gate.in_flight + cost
        if (in_flight <= limit.level and not gate.queue) or gate.config.dry_run:
            if in_flight > limit.level:
                gate.would_wait += 1
                exchange.shadow("queue")
            gate.in_flight = in_flight
            mark = limit.begun(in_flight)
            gate.shedder.served(now)
        else:
            place = await gate.wait(exchange, cost, now)
            now, in_flight, mark = place.granted, place.in_flight, place.mark
        gate.admitted += 1
        try:
            outcome = await next(exchange)
        except BaseException:
            gate.give_back(cost, self._clock.now())
            raise
        ended = self._clock.now()
        kind, left = outcome.kind, gate.in_flight - cost
        try:
            if kind is OK:
                # A client's error costs the server nothing, and a tunnel has no time of its own.
                if outcome.status < 400 and not exchange.upgrade:
                    waiting = bool(gate.queue) or gate.turned_away
                    gate.turned_away = False
                    gate.limit.ended(ended, ended - now, in_flight, mark, left, waiting)
            elif kind is PUSHED_BACK and self._saturated(ended):
                gate.limit.pushed_back(ended, left)
        finally:
            gate.give_back(cost, ended)
        return outcome
