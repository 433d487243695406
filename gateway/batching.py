"""Ends a route in ``gpu_batcher``: an exchange filter in front of admission.

What a codec understands whole goes into the coalescer, and its permit is its place in the plan,
whose queue is as bounded as admission's. Anything else goes on alone, as if there were no batching.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

from filters.api import FAILED, OK, Clock, Exchange, Outcome, Reason, Reject, Service
from filters.tenants import tenant_of
from gateway.batch_stats import BatchStats
from gateway.fields import Field, lines_of
from gateway.headers import debug_lines
from gateway.retry_after import retry_after
from gateway.wire import connection_options
from gpu_batcher.api import BadRequestError
from gpu_batcher.flight import RefusedError, Terms, Why

if TYPE_CHECKING:
    from gateway.config_batching import Batching as Config
    from gateway.telemetry import Telemetry
    from gpu_batcher.api import Call, Codec, Reply
    from gpu_batcher.coalescer import Coalescer
    from gpu_batcher.flight import Flight
    from gpu_batcher.packing import Packing

log = logging.getLogger("tailrace")

CREDENTIALS = (b"authorization", b"x-api-key", b"api-key", b"cookie")
"""Who is asking: calls that differ in one of these are never joined, whatever the route says."""
_PLAIN = frozenset((b"keep-alive", b"close", b"Keep-Alive", b"Close"))
_OURS = frozenset((b"x-request-id", b"content-length"))
"""Of an answer's head: written here, whatever the upstream says."""


QUIET = 10.0
"""Seconds between two complaints of one route."""
_FAULTS = (Why.SERVER, Why.BUDGET, Why.ANSWER)


class Caller:
    """A member of a batch: its exchange, and what is sent of its head."""

    __slots__ = ("_body", "_key", "exchange", "fields", "target")

    def __init__(
        self, exchange: Exchange, fields: list[Field], target: bytes, body: bytes, key: bytes
    ) -> None:
        self.exchange = exchange
        self.fields = fields
        self.target = target
        self._body = body
        self._key = key

    def mark(self) -> bytes:
        """A keyed hash of all that decides what the server makes of it: else somebody could bring
        another one's body into quarantine, by sending it with a head that makes it fail."""
        digest = blake2b(key=self._key, digest_size=16)
        request = self.exchange.request
        lengths = request.index.get(b"inference-header-content-length", b"")
        lines = [each[3] for each in self.fields]
        for part in (request.host, self.target, lengths, *lines, b"", self._body):
            digest.update(b"%d:" % len(part))
            digest.update(part)
        return digest.digest()


class Batching:
    """One route's. It outlives reloads that leave its configuration as it is. ``sole``: nothing can
    go alone, as there is no cluster."""

    def __init__(
        self,
        config: Config,
        codec: Codec,
        packing: Packing,
        coalescer: Coalescer,
        clock: Clock,
        key: bytes,
        seen: Telemetry,
        *,
        sole: bool = False,
    ) -> None:
        self.config = config
        self.sole = sole
        self.coalescer = coalescer
        self.stats = BatchStats()
        self.alone = 0
        self.malformed = 0
        self.rewrite: Callable[[bytes], bytes] | None = None
        self.fair_by: bytes | None = None
        self._codec = codec
        self._packing = packing
        self._clock = clock
        self._key = key
        self._seen = seen
        named = tuple(name.encode() for name in config.headers)
        self._joined_by = tuple(dict.fromkeys((*CREDENTIALS, *named)))
        self._inside = 0
        self._untold = 0
        self._quiet_until = 0.0
        self.name = ""
        self.failure: Callable[[], str] = lambda: "the log has why"
        self._retired = False
        self._closing: asyncio.Task[None] | None = None
        coalescer.watch = self._watch

    async def __call__(self, exchange: Exchange, next: Service[Exchange, Outcome]) -> Outcome:  # noqa: A002
        request = exchange.request
        if request.method == b"POST" and not exchange.upgrade and self._small(request.length or 1):
            self._inside += 1
            try:
                member = await self._read(exchange)
                if member is not None:
                    return self._answer(exchange, await self.coalescer.submit(*member))
            except RefusedError as error:
                raise refusal(error) from None
            finally:
                self._inside -= 1
                if self._retired:
                    self._left()
        if self.sole and not self._small(request.length or 1):
            raise Reject(Reason.BODY_TOO_LARGE, _bounds(self.config))
        self.alone += 1
        return await next(exchange)

    def _small(self, size: int) -> bool:
        return 0 < size <= self.config.max_request

    async def _read(self, exchange: Exchange) -> tuple[Call, Terms] | None:
        """What it asks for, once all of it is here. None: it goes alone. Raises Reject."""
        request = exchange.request
        body = await exchange.body.whole()
        if exchange.body.aborted:  # its client is gone, and this is about to be cancelled
            raise asyncio.CancelledError
        if body is None or not self._small(len(body)):
            if self.sole and body != b"":
                raise Reject(Reason.BODY_TOO_LARGE, _bounds(self.config))
            return None
        target = request.target if self.rewrite is None else self.rewrite(request.target)
        try:
            call = self._codec.read(target, request.index, memoryview(body))
            if call is not None and not self.sole and self._makes(call):
                call = None  # a model that takes the mask of its caller gets it
            if call is not None:
                self._packing.check(call)
        except BadRequestError as error:
            self.malformed += 1
            raise Reject(Reason.MALFORMED, str(error)) from None
        config = self.config
        if call is not None and self._nominates(request.index.get(b"connection")):
            call = None
        if call is None or call.rows > config.max_rows or call.size > config.max_bytes:
            if self.sole and call is not None:
                raise Reject(Reason.BODY_TOO_LARGE, _bounds(config))
            return None
        joined_by = self._joined_by
        # By its lines, for a name that comes twice is not the same as one with both values.
        fields = [each for each in request.fields if each[0] in joined_by]
        fields.sort(key=_name)
        values = tuple([each[:2] for each in fields])
        caller = Caller(exchange, fields, target, body, self._key)
        return call, Terms(
            caller,
            caller.mark,
            (request.host, exchange.secure, values),
            exchange.priority,
            tenant_of(exchange, self.fair_by),
            exchange.deadline,
            partial(_taken, exchange, self._clock.now()),
        )

    def _makes(self, call: Call) -> bool:
        """Whether it brings an input that is made here for batches."""
        made = self._packing.made
        return bool(made) and any(each.name in made for each in call.inputs)

    def _nominates(self, connection: bytes | None) -> bool:
        """Whether a client wants a field dropped on the way that callers are told apart by."""
        if connection is None or connection in _PLAIN:
            return False
        return not connection_options(connection).isdisjoint(self._joined_by)

    def _answer(self, exchange: Exchange, reply: Reply) -> Outcome:
        """Commit its own part of the answer. There is no way back from here."""
        ours = _OURS
        if exchange.lines:  # two answers to one question help nobody
            ours = ours | {line.partition(b":")[0] for line in exchange.lines.split(b"\r\n")}
        lines = lines_of([each for each in reply.head.items() if each[0] not in ours])
        lines += b"x-request-id: %b\r\n%b" % (exchange.request_id, exchange.lines)
        if exchange.route.debug:
            lines += debug_lines(exchange)
        exchange.first_byte = self._clock.now()
        exchange.downstream.start(reply.status, lines, len(reply.body))
        exchange.downstream.finish(reply.body, [])
        return Outcome(OK if reply.status < 500 else FAILED, reply.status)

    def _watch(self, flight: Flight, now: float) -> None:
        self.stats.ended(flight, now)
        if flight.why in _FAULTS:
            self._complain(flight, now)
        if self.config.runner == "python":  # else each inference has had a span of its own
            members = [member.terms.origin.exchange for member in flight.members]
            told: dict[str, int | str] = {
                "tailrace.batch.calls": len(members),
                "tailrace.batch.rows": flight.batch.rows,
                "tailrace.batch.parts": flight.parts,
            }
            if flight.why is not None:
                told["tailrace.batch.why"] = flight.why.value
            self._seen.batch_here(members, now - flight.started, told)

    def _complain(self, flight: Flight, now: float) -> None:
        """Tell the operator, who sees refusals only, what the server said; now and then."""
        self._untold += 1
        if now < self._quiet_until:
            return
        text = "%d batches of %s have failed of late, the last of %d calls; %s"
        log.warning(text, self._untold, self.name, len(flight.members), self.failure())
        self._untold = 0
        self._quiet_until = now + QUIET

    # -- life ----------------------------------------------------------------------------------

    def retire(self) -> None:
        """A reload has put another one in its place: close when the last exchange has left. One
        that began just before takes its first step in the next turn of the event loop."""
        self._retired = True
        asyncio.get_running_loop().call_soon(self._left)

    def _left(self) -> None:
        if not self._inside:
            self._close()

    def _close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self.coalescer.close())

    @property
    def closed(self) -> bool:
        """Everything was given back."""
        return self._closing is not None and self._closing.done()

    async def close(self) -> None:
        """Give up what is under way, and give everything back."""
        self._close()
        assert self._closing is not None
        await self._closing

    def buffers(self) -> dict[str, int]:
        """How many buffers are in which state; none where the format has no tensors."""
        pool = getattr(self.coalescer.runner, "pool", None)
        if pool is None:
            return {}
        used, lost = pool.in_use, pool.lost
        return {"in_use": used, "lost": lost, "free": pool.total - used - lost}

    def describe(self, now: float) -> dict[str, object]:
        return {
            "format": self.config.format,
            **self.coalescer.describe(now),
            "alone": self.alone,
            "malformed": self.malformed,
        }


def _name(each: Field) -> bytes:
    return each[0]


def _taken(exchange: Exchange, submitted: float, now: float) -> None:
    """Its wait is over: a place in the plan is what a permit is elsewhere."""
    exchange.queued = now - submitted
    exchange.granted = True


def _bounds(config: Config) -> str:
    return f"at most {config.max_rows} rows of {config.max_bytes} bytes in all go at once"


def refusal(error: RefusedError) -> Reject:
    """What the caller is told. What a server said to several is told by its status only: its
    words may be about another caller."""
    cause, status = error.cause, error.status
    if isinstance(cause, Reject):
        return Reject(
            cause.reason, cause.detail, retry_after=cause.retry_after, status=cause.status
        )
    match error.why:
        case Why.QUEUE_FULL:
            return Reject(Reason.QUEUE_FULL)
        case Why.EXPIRED:
            return Reject(Reason.DEADLINE)
        case Why.QUARANTINED:
            return Reject(Reason.QUARANTINED)
        case Why.BUDGET:
            return Reject(Reason.BISECTION_BUDGET)
        case Why.ANSWER:
            return Reject(Reason.BATCH_ANSWER)
        case _:
            pass
    if status < 400 or status == 500:
        return Reject(Reason.BATCH_FAILED)
    wait = None
    if error.retry_after is not None:
        wait = retry_after([(b"retry-after", error.retry_after)])
    detail = f"it answered the batch with {status}"
    return Reject(Reason.UPSTREAM_STATUS, detail, retry_after=wait, status=status)
