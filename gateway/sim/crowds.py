"""Simulated crowds: open-loop arrivals of one kind of client each, and their second tries.

Open loop: a client comes when its time has come, however the others fare, because that is what
makes overload overload. One that tries again is a new exchange with a record of its own.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, cast

from filters.api import Clock, Exchange, Request
from gateway.body import ReplayStore, RequestBody
from gateway.fields import field
from gateway.router import BoundRoute
from gateway.sim.clients import Client
from gateway.sim.records import Record

if TYPE_CHECKING:
    from filters.seams import Body, Downstream


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of client. ``phases``: (seconds, arrivals per second), one after the other; Poisson.
    ``at_once``: seconds of the run at which so many of them come in the same moment.

    ``patience``: seconds after which a client leaves, uniform between the two. ``timeout_ms`` is
    the deadline it names. ``client`` is its address. ``body`` None: each request has its own.
    ``vanishes``: it leaves in a way that the gateway cannot notice. ``tries``: how often it asks
    in all, ``backoff`` seconds (uniform between the two) after whatever was no good answer, also
    after it left; it does not care for Retry-After.
    """

    name: str
    phases: tuple[tuple[float, float], ...]
    at_once: tuple[tuple[float, int], ...] = ()
    patience: tuple[float, float] = (5.0, 5.0)
    timeout_ms: int | None = None
    method: bytes = b"POST"
    target: bytes = b"/v1/chat/completions"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    client: str = "127.0.0.1"
    body: bytes | None = None
    vanishes: bool = False
    tries: int = 1
    backoff: tuple[float, float] = (0.1, 0.2)


class _Source:
    """The connection that a body comes from: it has all of it at once, so nothing is to be done."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def body_wanted(self) -> None: ...


_SOURCE = _Source()


class Crowd:
    """The clients of one ``Traffic``. ``open`` are those that still want something."""

    def __init__(
        self,
        traffic: Traffic,
        route: Callable[[Request], BoundRoute],
        store: ReplayStore,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        rng: Random,
    ) -> None:
        self._traffic = traffic
        self._route = route
        self._store = store
        self._clock = clock
        self._loop = loop
        self._rng = rng
        self._start = loop.time()
        self._phase = 0
        self._phase_end = self._start + traffic.phases[0][0]
        self._index = dict(traffic.headers)
        self._fields = [field(*each) for each in traffic.headers]
        if traffic.timeout_ms is not None:
            self._index[b"x-request-timeout-ms"] = b"%d" % traffic.timeout_ms
        self._name = traffic.name.encode()
        self._ended: dict[int, Record] = {}
        self._calls = self._exchanges = 0
        self.open = 0
        self.done = False
        for at, number in traffic.at_once:
            loop.call_at(self._start + at, self._arrive_together, number)
        self._schedule(self._start)

    def records(self) -> list[Record]:
        """Of the exchanges that have ended, in the order of their arrivals."""
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
        self._ask()
        self._schedule(self._loop.time())

    def _arrive_together(self, number: int) -> None:
        for _ in range(number):
            self._ask()

    def _ask(self) -> None:
        self.open += 1
        self._calls += 1
        self._try(self._calls, 0)

    def _try(self, call: int, tries: int) -> None:
        traffic = self._traffic
        data = traffic.body or b'{"prompt": "%s %d"}' % (self._name, call)
        request = Request(
            traffic.method, traffic.target, 1, self._fields, self._index, b"model", len(data)
        )
        client = Client(self._clock, self._exchanges, call, tries, traffic.vanishes)
        self._exchanges += 1
        exchange = Exchange(
            request,
            cast("Body", RequestBody(len(data), self._store, _SOURCE, data)),
            cast("Downstream", client),
            client=traffic.client,
            trusted=True,
            secure=False,
            arrived=self._clock.now(),
        )
        exchange.route = self._route(request)
        exchange.request_id = b"%s-%d" % (self._name, client.number)
        client.send(exchange, self._rng.uniform(*traffic.patience), self._over, self._loop)

    def _over(self, client: Client) -> None:
        record = self._ended[client.number] = client.record(self._traffic.name, self._start)
        tries = client.tries + 1
        if record.ok or tries >= self._traffic.tries:
            self.open -= 1
            return
        wait = self._rng.uniform(*self._traffic.backoff)
        self._loop.call_later(wait, self._try, client.call, tries)
