"""The simulated side of the Upstream seam: what stands in the place of an endpoint's pool.

``SimulatedPool.send`` is what ``Cluster.attempt`` awaits, and its answers are what ``Forward``
relays; everything above runs as in production. Connections are not modelled: making one takes
``CONNECT`` seconds or fails, and closing one is heard at the other end at once. The two
clocks of an attempt follow the rule of ``gateway/call.py``: to the first byte of the body, then
between bytes.
"""

import asyncio
from random import Random
from typing import TYPE_CHECKING, cast

from filters.api import Attempt, Clock, Exchange, Headers, Kind, Outcome, Reason
from gateway import config
from gateway.clock import Timer
from gateway.endpoint import Endpoint, locate
from gateway.fields import lines_of
from gateway.sim.batching import BatchingServer
from gateway.sim.models import Model
from gateway.sim.servers import ModelServer

if TYPE_CHECKING:
    from gateway.pool import Pool
    from gateway.sim.clients import Client

CONNECT = 0.0005
"""Seconds until a dead endpoint's refusal is heard."""


class SimulatedAnswer:
    """One attempt at a simulated server. Implements ``filters.seams.Answer`` and ``Waiter``.

    ``head`` resolves to None when a usable head is there, else to the reason of the failure.
    """

    __slots__ = (
        "_begun", "_clock", "_ended", "_job", "_pieces", "_result", "_server", "_sink", "_stall_s",
        "_timer",
        "first_byte", "head", "headers", "status",
    )  # fmt: skip

    def __init__(
        self, server: ModelServer, exchange: Exchange, clock: Clock, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._server = server
        self._clock = clock
        clocks: tuple[float, float] = exchange.route.clocks
        first_byte_s, self._stall_s = clocks
        self._pieces: list[bytes] = []
        self._ended = False
        self._sink: Client | None = None
        self._result: asyncio.Future[Outcome] = loop.create_future()
        self._begun: asyncio.Future[None] = loop.create_future()
        self.first_byte: float | None = None
        self.head: asyncio.Future[Reason | None] = loop.create_future()
        self.status = 0
        self.headers: Headers = []
        self._timer = Timer(clock, self._out_of_time)
        self._timer.set(clock.now() + first_byte_s)
        self._job = server.accept(self, exchange.body.peek())

    # -- as the server answers ------------------------------------------------------------------

    def began(self, status: int, retry_after: int | None) -> None:
        self.status = status
        self.headers = [(b"content-type", b"application/json")]
        if retry_after is not None:
            self.headers.append((b"retry-after", b"%d" % retry_after))
        if not self.head.done():
            self.head.set_result(None)

    def piece(self, data: bytes) -> None:
        now = self._clock.now()
        if self.first_byte is None:
            self.first_byte = now
            self._wake()
            self._timer.set(now + self._stall_s)
        else:
            self._timer.due = now + self._stall_s
        if self._sink is None:
            self._pieces.append(data)
        else:
            self._sink.write(data)

    def ended(self, data: bytes) -> None:
        self._timer.stop()
        if self.first_byte is None:
            self.first_byte = self._clock.now()
            self._wake()
        self._ended = True
        if self._sink is None:
            self._pieces.append(data)
        else:
            self._sink.service = self._job.service
            self._sink.finish(data, [])
            self._settle(Kind.OK, None)

    def reset(self) -> None:
        self._failed(Reason.UPSTREAM_TRUNCATED if self.status else Reason.UPSTREAM_RESET)

    def _failed(self, reason: Reason) -> None:
        self._timer.stop()
        if not self.head.done():
            self.head.set_result(reason)
        else:
            self._settle(Kind.FAILED, reason)

    def _settle(self, kind: Kind, reason: Reason | None) -> None:
        if not self._result.done():
            self._result.set_result(Outcome(kind, self.status, reason))
            self._wake()

    def _wake(self) -> None:
        if not self._begun.done():
            self._begun.set_result(None)

    def _out_of_time(self) -> None:
        self._server.abandon(self._job)
        self._failed(Reason.FIRST_BYTE_TIMEOUT if self.first_byte is None else Reason.STALL)

    # -- Answer ---------------------------------------------------------------------------------

    @property
    def empty(self) -> bool:
        return self._ended and not any(self._pieces)

    @property
    def body_here(self) -> bool:
        return self._begun.done() and not self._result.done()

    async def body_begun(self) -> Outcome | None:
        await self._begun
        if not self._result.done():
            return None
        broken = self._result.result()
        if broken.reason is Reason.UPSTREAM_TRUNCATED:  # as in ``gateway/call.py``
            broken.reason = Reason.UPSTREAM_RESET
        return broken

    async def relay(self, exchange: Exchange) -> Outcome:
        if self._result.done():  # it broke between the head and now
            return self._result.result()
        downstream = cast("Client", exchange.downstream)
        exchange.first_byte = self.first_byte
        downstream.start(self.status, lines_of(self.headers), None)
        if self._ended:
            downstream.service = self._job.service
            downstream.finish(b"".join(self._pieces), [])
            return Outcome(Kind.OK, self.status)
        self._sink = downstream
        for piece in self._pieces:
            downstream.write(piece)
        self._pieces.clear()
        try:
            outcome = await self._result
        except asyncio.CancelledError:
            self.discard()
            raise
        finally:
            exchange.first_byte = self.first_byte
        if outcome.kind is Kind.FAILED:
            downstream.abort()
        return outcome

    def discard(self) -> None:
        """The answer is not wanted: the server hears of it at once."""
        self._timer.stop()
        self._sink = None
        self._server.abandon(self._job)


class SimulatedPool:
    """In the place of ``gateway.pool.Pool``: the way to one simulated server."""

    idle = 0
    replays = 0

    def __init__(
        self,
        server: ModelServer,
        settings: config.Cluster,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.server = server
        self._connect_timeout = settings.connect_timeout
        self._clock = clock
        self._loop = loop
        self.connects = 0

    @property
    def open(self) -> int:
        return self.server.in_flight

    async def send(self, attempt: Attempt) -> Outcome:
        """One attempt; returns at a usable head or with what went wrong."""
        exchange, server = attempt.exchange, self.server
        client = cast("Client", exchange.downstream)
        client.attempts.append((server.name, self._clock.now()))
        self.connects += 1
        if server.refuses or server.condition.drops:
            drops = not server.refuses
            await asyncio.sleep(self._connect_timeout if drops else CONNECT)
            reason = Reason.CONNECT_TIMEOUT if drops else Reason.CONNECT_FAILED
            return Outcome(Kind.FAILED, 0, reason, sent=False, complete=False)
        answer = SimulatedAnswer(server, exchange, self._clock, self._loop)
        try:
            reason_or_head = await answer.head
        except asyncio.CancelledError:
            answer.discard()
            raise
        if reason_or_head is None:
            return Outcome(Kind.OK, answer.status, None, answer=answer)
        return Outcome(Kind.FAILED, answer.status, reason_or_head)

    def retire(self) -> None:
        """Nothing is kept that could be closed."""


def simulated_endpoint(
    url: str,
    weight: float,
    model: Model,
    settings: config.Cluster,
    clock: Clock,
    loop: asyncio.AbstractEventLoop,
    rng: Random,
) -> tuple[Endpoint, ModelServer]:
    """A real endpoint (load, health, statistics) in front of a simulated server."""
    endpoint = Endpoint(locate(url), weight, settings, clock, loop)
    server = (
        ModelServer(endpoint.name, model, loop, rng)
        if model.batching is None
        else BatchingServer(endpoint.name, model, model.batching, loop, rng)
    )
    endpoint.pool = cast("Pool", SimulatedPool(server, settings, clock, loop))
    return endpoint, server
