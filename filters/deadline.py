"""deadline: one absolute deadline per exchange, from its arrival to its last byte.

Absolute, so that time spent in queues, in backoff and on earlier attempts counts by itself; what
is left of it goes upstream in the same header. The four clocks of an exchange (connect, first
byte, stall, total) are deliberately different things: only the last of them lives here, the
others belong to the attempt, which knows its connection.

What cannot be done in the time left is refused at arrival, before it takes a place and a slot of
the model server for an answer that nobody will wait for.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError, Task, current_task, get_running_loop
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any

from filters.api import OK, Exchange, Outcome, Reason, Reject
from filters.units import Duration, Struct

if TYPE_CHECKING:
    from filters.api import Clock, Handle, Service

HEADER = b"x-request-timeout-ms"
DIGITS = 12
"""A longer number is no deadline but a mistake; twelve digits of milliseconds are 31 years."""
WINDOW = 15.0
"""Seconds of one of the two windows of the best case: about as long as a server that has become
slow, or fast again, may be judged by what it was."""
SAMPLES = 20
"""Answers in both windows together, below which there is no best case: with fewer, the least of
them says more of chance than of the server."""
PROBE = 20
"""One in so many of those that would be refused is let through: 5 % of work for nothing at the
most, and proof within seconds when a smaller kind of request than any before turns up."""
LEARN = 60.0
"""Seconds after an exchange with a deadline of its own for which the route goes on learning."""


class Config(Struct, frozen=True):
    """``default`` applies to an exchange that names no deadline; ``max`` bounds every exchange.
    ``first_byte`` is of the body: a generation that is not streamed has its first byte at its end.
    ``stall`` is the longest silence between two bytes of a body. ``unreachable``: refuse at arrival
    an exchange with less time left than the route's recent best case took, if client or route
    named its deadline; ``dry_run`` is of that refusal alone, a deadline that passes always acts."""

    default: Duration | None = None
    max: Duration = 3600.0
    first_byte: Duration = 600.0
    stall: Duration = 120.0
    unreachable: bool = True
    dry_run: bool = False


def asked_seconds(value: bytes) -> float | None:
    """What a client asks for: a plain decimal number of milliseconds. Anything else (signs,
    fractions, NaN, words, too many digits) is as if nothing had been asked, because a deadline
    guessed from a mistake would fail requests that would have been answered."""
    return int(value) / 1000 if value.isdigit() and len(value) <= DIGITS else None


def bound(config: Config, arrived: float, asked: float | None, trusted: bool = True) -> float:
    """The absolute deadline, in the seconds of ``arrived``; ``asked`` is in seconds too. O(1).

    The smallest of ``max``, what the client asked for and, where it asked for nothing,
    ``default``. A client that is not ``trusted`` can only shorten ``default``.
    """
    most = config.max
    if config.default is not None and (asked is None or not trusted) and config.default < most:
        most = config.default
    return arrived + (asked if asked is not None and asked < most else most)


class BestCase:
    """The least of what was seen in the last 15 to 30 seconds: two windows that take turns.

    A minimum, not an average: it errs towards letting through, whatever the mix of requests. What
    it is based on expires with its window, so it cannot refuse on old evidence. About 0.15 us a
    call.
    """

    __slots__ = ("_before", "_before_count", "_count", "_least", "_until")

    def __init__(self) -> None:
        self._least = self._before = float("inf")
        self._count = self._before_count = 0
        self._until = 0.0

    def add(self, seconds: float, now: float) -> None:
        if now >= self._until:
            self._turn(now)
        self._count += 1
        if seconds < self._least:
            self._least = seconds

    def seconds(self, now: float) -> float:
        """The best case, or 0 while there are too few samples to say."""
        if now >= self._until:
            self._turn(now)
        if self._count + self._before_count < SAMPLES:
            return 0.0
        return min(self._least, self._before)

    def _turn(self, now: float) -> None:
        if now >= self._until + WINDOW:
            self._before, self._before_count = float("inf"), 0
            self._until = now + WINDOW
        else:
            self._before, self._before_count = self._least, self._count
            self._until += WINDOW
        self._least, self._count = float("inf"), 0


class Deadline:
    """Sets ``exchange.deadline``, refuses what is past it or cannot meet it, ends what runs into
    it. About 0.6 us an exchange, 1.7 us one that names a deadline.

    This is ``asyncio.timeout`` without its context object and on our clock. Exchanges that name
    no deadline all have the same time, so they stand in one line, in the order of their arrival,
    and share one alarm, which is set for the first of them; only a deadline of its own costs an
    alarm of its own.

    ``expired`` (past its deadline), ``unreachable`` (refused at arrival), ``probes`` (let through
    all the same) and ``would_refuse`` (in a dry run) are counts.
    """

    __slots__ = (
        "_armed",
        "_best",
        "_clock",
        "_cut",
        "_learn_until",
        "_line",
        "_loop",
        "_named",
        "_span",
        "config",
        "expired",
        "probes",
        "unreachable",
        "would_refuse",
    )

    def __init__(self, config: Config, clock: Clock) -> None:
        self.config = config
        self._clock = clock
        self._loop: AbstractEventLoop | None = None
        self._span = bound(config, 0.0, None)
        self._named = config.default is not None
        # An OrderedDict, because a dict finds its first key by walking over what was deleted.
        self._line: OrderedDict[Exchange, Task[Any]] = OrderedDict()
        self._armed = False
        self._cut: set[Exchange] = set()
        self._best = BestCase()
        self._learn_until = 0.0
        self.expired = self.unreachable = self.probes = self.would_refuse = 0

    async def __call__(self, exchange: Exchange, next: Service[Exchange, Outcome]) -> Outcome:  # noqa: A002
        arrived = exchange.arrived
        asked_ms = exchange.request.index.get(HEADER)
        asked = None if asked_ms is None else asked_seconds(asked_ms)
        if asked is None:
            named, deadline = self._named, arrived + self._span
        else:
            named, deadline = True, bound(self.config, arrived, asked, exchange.trusted)
        exchange.deadline = deadline
        exchange.asked = named  # only such a deadline is worth telling the upstream
        now = self._clock.now()
        if now >= deadline:
            raise self._expired(exchange)
        if named:
            self._learn_until = now + LEARN
            if deadline - now < self._best.seconds(now) and self.config.unreachable:
                self._doubt(exchange)
        loop = self._loop
        if loop is None:
            # Kept, because asking for the running loop costs a system call each time.
            loop = self._loop = get_running_loop()
        task: Any = current_task(loop)
        before = task.cancelling()
        alarm: Handle | None = None
        if asked is None:
            self._line[exchange] = task
            if not self._armed:
                self._arm(deadline)
        else:
            alarm = self._clock.call_at(deadline, partial(self._cut_off, exchange, task))
        try:
            outcome = await next(exchange)
        except CancelledError:
            # Ours only if nobody else cancelled: a client that leaves in the same moment does so
            # too, and that must stay a cancellation. Counted as asyncio.timeout does.
            if exchange in self._cut and task.cancelling() - 1 <= before:
                raise self._expired(exchange) from None
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
            else:
                self._line.pop(exchange, None)
            if self._cut and exchange in self._cut:
                self._cut.remove(exchange)
                task.uncancel()
        if now < self._learn_until and outcome.kind is OK and 200 <= outcome.status < 400:
            end = self._clock.now()
            self._best.add(end - arrived - exchange.queued, end)
        return outcome

    def take_over(self, before: Deadline) -> None:
        """Go on with the counts and the best case of the filter that a reload replaces."""
        self._best, self._learn_until = before._best, before._learn_until
        self.expired, self.unreachable = before.expired, before.unreachable
        self.probes, self.would_refuse = before.probes, before.would_refuse

    def describe(self, now: float) -> dict[str, object]:
        """For the admin page: ``best_case_ms`` is None while there is none."""
        best = self._best.seconds(now)
        return {
            "best_case_ms": round(best * 1000, 3) if best else None,
            "expired": self.expired,
            "unreachable": self.unreachable,
            "probes": self.probes,
            "would_refuse": self.would_refuse,
        }

    def _doubt(self, exchange: Exchange) -> None:
        """Refuse what has less time left than the best case took, all but one in ``PROBE``: the
        first goes through, so that a single odd request is never refused. Raises Reject."""
        if (self.probes + self.unreachable + self.would_refuse) % PROBE == 0:
            self.probes += 1
        elif self.config.dry_run:
            self.would_refuse += 1
            exchange.shadow(Reason.DEADLINE_UNREACHABLE)
        else:
            self.unreachable += 1
            raise Reject(Reason.DEADLINE_UNREACHABLE)

    def _arm(self, when: float) -> None:
        self._armed = True
        self._clock.call_at(when, self._ring)

    def _ring(self) -> None:
        """The first in line may be due; whoever it was set for may have left long since."""
        self._armed = False
        line, now = self._line, self._clock.now()
        while line:
            exchange = next(iter(line))
            due = exchange.arrived + self._span
            if due > now:
                self._arm(due)
                return
            self._cut_off(exchange, line.pop(exchange))

    def _cut_off(self, exchange: Exchange, task: Task[Any]) -> None:
        if exchange.upgrade and exchange.downstream.committed:
            return  # A tunnel has no end of its own; silence ends it, not age.
        self._cut.add(exchange)
        task.cancel()

    def _expired(self, exchange: Exchange) -> Reject:
        self.expired += 1
        exchange.reason = Reason.DEADLINE
        return Reject(Reason.DEADLINE)
