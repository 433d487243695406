"""One simulated client behind the Downstream seam: it asks, has patience, and remembers.

A client that leaves cancels its exchange's task, as the connection edge does; what the chains then
still write goes nowhere.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from filters.api import Clock, Exchange, Handle, Headers, Reason
from filters.seams import Flow
from gateway.sim.records import Record

if TYPE_CHECKING:
    from gateway.body import RequestBody


class Client:
    """One client and its one request. Implements ``filters.seams.Downstream``.

    It reads as fast as the answer comes, so flow control has nothing to do.
    """

    __slots__ = (
        "_clock", "_task", "_timer", "_vanishes", "attempts", "call", "committed", "end",
        "ended_at", "exchange", "faults", "first_byte", "number", "retry_after", "service",
        "status", "tries",
    )  # fmt: skip

    def __init__(
        self,
        clock: Clock,
        number: int,
        call: int,
        tries: int,
        vanishes: bool,
    ) -> None:
        self._clock = clock
        self.number = number
        self.call = call
        self.tries = tries
        self._vanishes = vanishes
        self._task: asyncio.Task[None] | None = None
        self._timer: Handle | None = None
        self.exchange: Exchange
        self.committed = False
        self.status = 0
        self.end = ""
        self.ended_at = 0.0
        self.first_byte: float | None = None
        self.service = 0.0
        self.retry_after = False
        self.attempts: list[tuple[str, float]] = []
        self.faults: list[str] = []

    # -- Downstream -----------------------------------------------------------------------------

    def inform(self, status: int, lines: bytes) -> None:
        if self.committed:
            self.faults.append("interim response after the head")

    def start(self, status: int, lines: bytes, length: int | None) -> None:
        if self.end == "left":
            return
        if self.committed or self.end:
            self.faults.append("a second head")
        self.committed = True
        self.status = status
        if status >= 400:
            self.retry_after = b"retry-after:" in lines.lower()

    def write(self, data: bytes) -> None:
        if self.end == "left":
            return
        if not self.committed or self.end:
            self.faults.append("a piece outside of the answer")
        if self.first_byte is None:
            self.first_byte = self._clock.now()

    def finish(self, data: bytes, trailers: Headers) -> None:
        if self.end != "left":
            if not self.committed:
                self.faults.append("an end without a head")
            if self.first_byte is None:
                self.first_byte = self._clock.now()
            self._over("finished")

    def abort(self) -> None:
        if self.end != "left":
            self._over("aborted")

    def flow(self, source: Flow | None) -> None:
        """This client never reads too slowly."""

    def _over(self, end: str) -> None:
        if self.end:
            self.faults.append(f"{end} after {self.end}")
            return
        self.end = end
        self.ended_at = self._clock.now()
        if self._timer is not None:
            self._timer.cancel()

    # -- the client -----------------------------------------------------------------------------

    def send(
        self,
        exchange: Exchange,
        patience: float,
        over: Callable[["Client"], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Begin the exchange; ``over`` is called once its task has ended."""
        self.exchange = exchange
        self._timer = self._clock.call_at(exchange.arrived + patience, self._leave)
        self._task = loop.create_task(self._run(exchange, over))

    async def _run(self, exchange: Exchange, over: Callable[["Client"], None]) -> None:
        try:
            await exchange.route.service(exchange)
        except asyncio.CancelledError:
            if self.end != "left":
                self.faults.append("cancelled by nobody")
        finally:
            if not self.end:
                self.ended_at = self._clock.now()
                self.faults.append("the chain returned without an end")
            cast("RequestBody", exchange.body).release()
            if self._timer is not None:
                self._timer.cancel()
            over(self)
            # It knows its exchange, which knows it: no work for the garbage collector.
            self._task = None
            del self.exchange

    def _leave(self) -> None:
        if self.end:
            return
        self.end = "left"
        self.ended_at = self._clock.now()
        if not self._vanishes and self._task is not None:
            if self.exchange.reason is None:
                self.exchange.reason = Reason.CLIENT_GONE
            self._task.cancel()

    def record(self, traffic: str, start: float) -> Record:
        """``start`` of the run, in the clock's seconds."""
        exchange = self.exchange
        arrived, reason = exchange.arrived, exchange.reason
        return Record(
            traffic,
            self.call,
            self.tries,
            arrived - start,
            self.end or "none",
            self.status,
            "" if reason is None else reason.value,
            self.ended_at - arrived,
            0.0 if self.first_byte is None else self.first_byte - arrived,
            self.service,
            exchange.queued,
            exchange.hedged,
            self.retry_after,
            tuple((name, at - arrived) for name, at in self.attempts),
            tuple(self.faults),
        )
