"""Simulated clients behind the Downstream seam: open-loop arrivals, patience, deadlines, records.

Open loop: a client comes when its time has come, however the others fare, because that is what
makes overload overload. A client that leaves cancels its exchange's task, as the connection edge
does; what the chains then still write goes nowhere.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, cast

from filters.api import Body, Downstream, Exchange, Flow, Headers, Reason, Request
from gateway.body import ReplayStore, RequestBody
from gateway.fields import field
from gateway.router import BoundRoute


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of client. ``phases``: (seconds, arrivals per second), one after the other; Poisson.

    ``patience``: seconds after which a client leaves, uniform between the two. ``timeout_ms`` is
    the deadline it names. ``body`` None: each request has its own. ``vanishes``: it leaves in a
    way that the gateway cannot notice.
    """

    name: str
    phases: tuple[tuple[float, float], ...]
    patience: tuple[float, float] = (5.0, 5.0)
    timeout_ms: int | None = None
    method: bytes = b"POST"
    target: bytes = b"/v1/chat/completions"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes | None = None
    vanishes: bool = False


class Record(NamedTuple):
    """One exchange as its client saw it. Times in seconds; ``arrived`` since the start of the run,
    ``latency``, ``first_byte`` and the times of ``attempts`` since the arrival.

    ``end`` is finished, aborted, left or, if the chain returned without an end, none.
    ``attempts``: the endpoints they went to, and when. ``faults`` broke the rules of the seam.
    """

    traffic: str
    arrived: float
    end: str
    status: int
    reason: str
    latency: float
    first_byte: float
    attempts: tuple[tuple[str, float], ...]
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Answered in full, and not with a failure."""
        return self.end == "finished" and self.status < 400


class _Source:
    """The connection that a body comes from: it has all of it at once, so nothing is to be done."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def body_wanted(self) -> None: ...


_SOURCE = _Source()


class Client:
    """One client and its one request. Implements ``filters.api.Downstream``.

    It reads as fast as the answer comes, so flow control has nothing to do.
    """

    __slots__ = (
        "_loop", "_task", "_timer", "_vanishes", "attempts", "committed", "end", "ended_at",
        "exchange", "faults", "first_byte", "number", "status",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, number: int, vanishes: bool) -> None:
        self._loop = loop
        self.number = number
        self._vanishes = vanishes
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.exchange: Exchange
        self.committed = False
        self.status = 0
        self.end = ""
        self.ended_at = 0.0
        self.first_byte: float | None = None
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

    def write(self, data: bytes) -> None:
        if self.end == "left":
            return
        if not self.committed or self.end:
            self.faults.append("a piece outside of the answer")
        if self.first_byte is None:
            self.first_byte = self._loop.time()

    def finish(self, data: bytes, trailers: Headers) -> None:
        if self.end != "left":
            if not self.committed:
                self.faults.append("an end without a head")
            if self.first_byte is None:
                self.first_byte = self._loop.time()
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
        self.ended_at = self._loop.time()
        if self._timer is not None:
            self._timer.cancel()

    # -- the client -----------------------------------------------------------------------------

    def send(self, exchange: Exchange, patience: float, over: "Callable[[Client], None]") -> None:
        """Begin the exchange; ``over`` is called once its task has ended."""
        self.exchange = exchange
        self._timer = self._loop.call_later(patience, self._leave)
        self._task = self._loop.create_task(self._run(exchange, over))

    async def _run(self, exchange: Exchange, over: "Callable[[Client], None]") -> None:
        try:
            await exchange.route.service(exchange)
        except asyncio.CancelledError:
            if self.end != "left":
                self.faults.append("cancelled by nobody")
        finally:
            if not self.end:
                self.ended_at = self._loop.time()
                self.faults.append("the chain returned without an end")
            cast("RequestBody", exchange.body).release()
            if self._timer is not None:
                self._timer.cancel()
            over(self)

    def _leave(self) -> None:
        if self.end:
            return
        self.end = "left"
        self.ended_at = self._loop.time()
        if not self._vanishes and self._task is not None:
            if self.exchange.reason is None:
                self.exchange.reason = Reason.CLIENT_GONE
            self._task.cancel()

    def record(self, traffic: str, start: float) -> Record:
        arrived = self.exchange.arrived
        reason = self.exchange.reason
        return Record(
            traffic,
            arrived - start,
            self.end or "none",
            self.status,
            "" if reason is None else reason.value,
            self.ended_at - arrived,
            0.0 if self.first_byte is None else self.first_byte - arrived,
            tuple((name, at - arrived) for name, at in self.attempts),
            tuple(self.faults),
        )


class Crowd:
    """The clients of one ``Traffic``. ``open`` are those whose exchange has not ended."""

    def __init__(
        self,
        traffic: Traffic,
        route: Callable[[Request], BoundRoute],
        store: ReplayStore,
        loop: asyncio.AbstractEventLoop,
        rng: Random,
    ) -> None:
        self._traffic = traffic
        self._route = route
        self._store = store
        self._loop = loop
        self._rng = rng
        self._start = loop.time()
        self._phase = 0
        self._phase_end = self._start + traffic.phases[0][0]
        self._index = dict(traffic.headers)
        self._fields = [field(*each) for each in traffic.headers]
        if traffic.timeout_ms is not None:
            self._index[b"x-request-timeout-ms"] = b"%d" % traffic.timeout_ms
        self._ended: dict[int, Record] = {}
        self._arrivals = 0
        self.open = 0
        self.done = False
        self._schedule(self._start)

    def records(self) -> list[Record]:
        """Of the exchanges that have ended, in the order of their arrival."""
        return [self._ended[number] for number in sorted(self._ended)]

    def _schedule(self, now: float) -> None:
        """Set the timer of the next arrival: an exponential gap, spent at each phase's rate."""
        phases = self._traffic.phases
        gap = self._rng.expovariate(1.0)
        while True:
            rate = phases[self._phase][1]
            left = (self._phase_end - now) * rate
            if gap < left:
                self._loop.call_at(now + gap / rate, self._arrive)
                return
            gap -= left
            now = self._phase_end
            self._phase += 1
            if self._phase == len(phases):
                self._loop.call_at(now, self._finished)
                return
            self._phase_end += phases[self._phase][0]

    def _finished(self) -> None:
        self.done = True

    def _arrive(self) -> None:
        traffic, loop = self._traffic, self._loop
        number = self._arrivals
        self._arrivals += 1
        now = loop.time()
        data = b'{"prompt": "%s %d"}' % (traffic.name.encode(), number)
        if traffic.body is not None:
            data = traffic.body
        request = Request(
            traffic.method, traffic.target, 1, self._fields, self._index, b"model",
            len(data),
        )  # fmt: skip
        body = RequestBody(len(data), self._store, _SOURCE)
        body.feed(data)
        body.end([])
        client = Client(loop, number, traffic.vanishes)
        exchange = Exchange(
            request,
            cast("Body", body),
            cast("Downstream", client),
            client="127.0.0.1",
            trusted=True,
            secure=False,
            arrived=now,
        )
        exchange.route = self._route(request)
        exchange.request_id = b"%s-%d" % (traffic.name.encode(), number)
        self.open += 1
        client.send(exchange, self._rng.uniform(*traffic.patience), self._over)
        self._schedule(now)

    def _over(self, client: Client) -> None:
        self.open -= 1
        self._ended[client.number] = client.record(self._traffic.name, self._start)
