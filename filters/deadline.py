"""deadline: one absolute deadline per exchange, from its arrival to its last byte.

Absolute, so that time spent in queues, in backoff and on earlier attempts counts by itself; what
is left of it goes upstream in the same header. The four clocks of an exchange (connect, first
byte, stall, total) are deliberately different things: only the last of them lives here, the
others belong to the attempt, which knows its connection.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError, Task, current_task, get_running_loop
from typing import TYPE_CHECKING, cast

from filters.api import Exchange, Outcome, Reason, Reject
from filters.units import Duration, Struct

if TYPE_CHECKING:
    from filters.api import Clock, Service

HEADER = b"x-request-timeout-ms"
DIGITS = 12
"""A longer number is no deadline but a mistake; twelve digits of milliseconds are 31 years."""


class Config(Struct, frozen=True):
    """``default`` applies to an exchange that names no deadline; ``max`` bounds every exchange.
    ``first_byte`` is of the body: a generation that is not streamed has its first byte at its end.
    ``stall`` is the longest silence between two bytes of a body."""

    default: Duration | None = None
    max: Duration = 3600.0
    first_byte: Duration = 600.0
    stall: Duration = 120.0


def bound(config: Config, arrived: float, asked_ms: bytes | None, trusted: bool = True) -> float:
    """The absolute deadline, in the seconds of ``arrived``. O(1).

    The smallest of ``max``, what the client asked for and, where it asked for nothing,
    ``default``. Asking is a plain decimal number of milliseconds; anything else (signs,
    fractions, NaN, words, too many digits) is as if nothing had been asked, because a deadline
    guessed from a mistake would fail requests that would have been answered. A client that is
    not ``trusted`` can only shorten ``default``.
    """
    if asked_ms is not None and asked_ms.isdigit() and len(asked_ms) <= DIGITS:
        most = config.max
        if config.default is not None and not trusted:
            most = min(most, config.default)
        return arrived + min(most, int(asked_ms) / 1000)
    if config.default is not None:
        return arrived + min(config.max, config.default)
    return arrived + config.max


class Deadline:
    """Sets ``exchange.deadline``, refuses what is already past it, ends what runs into it.

    This is ``asyncio.timeout`` without its context object and on our clock: one timer set and
    called off per exchange. ``expired`` is read by the metrics.
    """

    __slots__ = ("_clock", "_config", "_loop", "expired")

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._loop: AbstractEventLoop | None = None
        self.expired = 0

    async def __call__(self, exchange: Exchange, next: Service[Exchange, Outcome]) -> Outcome:  # noqa: A002
        asked = exchange.request.index.get(HEADER)
        deadline = bound(self._config, exchange.arrived, asked, exchange.trusted)
        exchange.deadline = deadline
        # Only a deadline that somebody named is worth telling the upstream.
        exchange.asked = asked is not None or self._config.default is not None
        if self._clock.now() >= deadline:
            raise self._expired(exchange)
        loop = self._loop
        if loop is None:
            # Kept, because asking for the running loop costs a system call each time.
            loop = self._loop = get_running_loop()
        expiry = _Expiry(cast("Task[object]", current_task(loop)), exchange)
        timer = self._clock.call_at(deadline, expiry.fire)
        try:
            return await next(exchange)
        except CancelledError:
            if expiry.alone():
                raise self._expired(exchange) from None
            raise
        finally:
            timer.cancel()
            if expiry.fired:
                expiry.task.uncancel()

    def _expired(self, exchange: Exchange) -> Reject:
        self.expired += 1
        exchange.reason = Reason.DEADLINE
        return Reject(Reason.DEADLINE)


class _Expiry:
    """Tells our cancellation of a task from anybody else's, by counting as asyncio.timeout does.

    A client that leaves in the same moment cancels too; that must stay a cancellation.
    """

    __slots__ = ("before", "exchange", "fired", "task")

    def __init__(self, task: Task[object], exchange: Exchange) -> None:
        self.exchange = exchange
        self.task = task
        self.before = task.cancelling()
        self.fired = False

    def fire(self) -> None:
        if self.exchange.upgrade and self.exchange.downstream.committed:
            return  # A tunnel has no end of its own; silence ends it, not age.
        self.fired = True
        self.task.cancel()

    def alone(self) -> bool:
        return self.fired and self.task.cancelling() - 1 <= self.before
