"""retry: another try, elsewhere, before the commit point and within the budget.

Three questions, asked in this order because the first answers nearly every exchange at the price
of a comparison: is the outcome one of the conditions ``on``; may this request be sent twice; is
there still time. What a retry may cost in sum is not decided here but by ``filters/budget.py``.

An attempt that one of our own clocks ended is not retried unless ``timeout`` is written: the
server is probably still generating, and a second generation would make it slower yet.
"""

from __future__ import annotations

from asyncio import sleep
from collections import OrderedDict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from filters.api import Attempt, Exchange, Kind, Outcome, Reason
from filters.units import Struct

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from filters.api import Clock, Service
    from filters.budget import Budget

BASE = 0.025
CAP = 0.25
"""Seconds of the first and of the longest backoff; Envoy's values."""
PATIENCE = 1.0
"""The longest push-back, in seconds, that is waited out here; a longer one is the client's to wait,
which can do so without holding a connection and a place in our memory."""
DEADLY = 2
"""Resets after a complete send that make a body suspect: one can be the server's own trouble."""
QUARANTINE = 60.0
"""Seconds for which a suspect body is not replayed: about the restart time of a small server."""
SUSPECTS = 1024
PEEK = 1024 * 1024
"""Bytes of an inference body that are read for a sequence id; larger ones are not replayed."""


Status = Annotated[int, msgspec.Meta(ge=100, le=599)]


class Config(Struct, frozen=True):
    """``attempts`` counts the first. ``on`` lists conditions (connect, reset, timeout), statuses.

    ``connect``: no connection came about. ``reset``: the connection broke before an answer.
    ``timeout``: our clocks for the first byte and for a stall. ``idempotent`` says which requests
    may be sent twice: ``auto`` is the closed list of ``Policy.replayable``.
    """

    attempts: Annotated[int, msgspec.Meta(ge=1, le=10)] = 2
    on: tuple[Literal["connect", "reset", "timeout"] | Status, ...] = ("connect", "reset", 502, 503)
    idempotent: Literal["auto", "always", "never"] = "auto"


CONDITIONS = {
    Reason.CONNECT_FAILED: "connect",
    Reason.CONNECT_TIMEOUT: "connect",
    Reason.POOL_EXHAUSTED: "connect",
    Reason.UPSTREAM_RESET: "reset",
    Reason.FIRST_BYTE_TIMEOUT: "timeout",
    Reason.STALL: "timeout",
}
METHODS = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))
TAILS = frozenset(
    b"completions embeddings rerank classify score generate generate_stream embed predict".split()
)
MODEL_TAILS = frozenset((b"infer", b"generate", b"generate_stream"))


class Stop(StrEnum):
    """Why there is no further attempt."""

    FINAL = "final"
    """The outcome is not one of the conditions: an answer, or a failure nobody asked to retry."""
    COMMITTED = "committed"
    ATTEMPTS = "attempts"
    BODY = "body"
    """The body was too large to be kept."""
    UNSAFE = "unsafe"
    POISON = "poison"
    RETRY_AFTER = "retry_after"
    DEADLINE = "deadline"


class Policy:
    """Which requests may be sent again, and when. Bounded state: the table of suspect bodies."""

    __slots__ = ("_attempts", "_conditions", "_idempotent", "_resets", "_statuses", "config")

    def __init__(self, config: Config) -> None:
        self.config = config
        self._attempts = config.attempts
        self._conditions = frozenset(each for each in config.on if isinstance(each, str))
        self._statuses = frozenset(each for each in config.on if isinstance(each, int))
        self._idempotent = config.idempotent
        self._resets: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def decide(
        self,
        exchange: Exchange,
        outcome: Outcome,
        number: int,
        now: float,
        rng: Random,
        earliest: float | None = None,
    ) -> float | Stop:
        """Seconds to wait before attempt ``number + 1``, or why there is none.

        ``earliest`` is when an endpoint takes a retry: what one of them told another exchange to
        wait holds here too, and what this one was told does not hold elsewhere. None: unknown, so
        the Retry-After of ``outcome`` is waited. A request none of whose bytes were sent is
        replayable whatever it is. The backoff is full jitter, uniform in
        [0, min(CAP, BASE * 2^(number-1))), so that the clients of one broken server do not come
        back together; push-back is waited out before it.
        O(1) for an outcome that is final; a failure may hash and read the kept body once.
        """
        if not self.matches(outcome):
            return Stop.FINAL
        if outcome.reason is Reason.UPSTREAM_RESET and outcome.sent and outcome.complete:
            self._suspect(exchange, now)
        if exchange.downstream.committed:
            return Stop.COMMITTED
        if number >= self._attempts:
            return Stop.ATTEMPTS
        if not exchange.body.replayable:
            return Stop.BODY
        if outcome.sent:
            if not self.replayable(exchange):
                return Stop.UNSAFE
            if self._poisonous(exchange, now):
                return Stop.POISON
        wait = outcome.retry_after or 0.0 if earliest is None else earliest - now
        if not wait <= PATIENCE:
            return Stop.RETRY_AFTER
        delay = max(0.0, wait) + rng.random() * min(CAP, BASE * (1 << (number - 1)))
        if exchange.deadline is not None and now + delay >= exchange.deadline:
            return Stop.DEADLINE
        return delay

    def replayable(self, exchange: Exchange) -> bool:
        """Whether sending this request twice does no more than sending it once.

        ``auto`` is a closed list: what HTTP calls idempotent, what the client marked with
        Idempotency-Key, and POST to stateless inference, known by the last segments of the path
        because gateways in front add prefixes. Anything else (files, batches, fine-tuning,
        responses, model repositories, administration) creates or changes something.
        """
        if self._idempotent != "auto":
            return self._idempotent == "always"
        request = exchange.request
        if request.method in METHODS or b"idempotency-key" in request.index:
            return True
        if request.method != b"POST":
            return False
        segments = request.path.split(b"/")
        if _names_a_model(segments):
            return not _has_sequence(exchange)
        tail = segments[-1]
        return tail in TAILS or (tail.endswith(b":predict") and tail != b":predict")

    def matches(self, outcome: Outcome) -> bool:
        """Whether this is one of the outcomes that are retried at all. O(1)."""
        if outcome.reason is None or outcome.reason is Reason.UPSTREAM_STATUS:
            return outcome.status in self._statuses
        return CONDITIONS.get(outcome.reason) in self._conditions

    def _suspect(self, exchange: Exchange, now: float) -> None:
        """Count a reset against this body. Requests without one do not carry a query of death."""
        body = exchange.body.fingerprint() if exchange.body.peek() else None
        if body is None:
            return
        resets, until = self._resets.pop(body, (0, 0.0))
        self._resets[body] = (resets + 1 if now < until else 1, now + QUARANTINE)
        if len(self._resets) > SUSPECTS:
            self._resets.popitem(last=False)

    def _poisonous(self, exchange: Exchange, now: float) -> bool:
        if not self._resets:
            return False
        body = exchange.body.fingerprint()
        resets, until = self._resets.get(body, (0, 0.0)) if body is not None else (0, 0.0)
        return resets >= DEADLY and now < until


def _names_a_model(segments: list[bytes]) -> bool:
    """``models/NAME/infer`` or ``models/NAME/versions/N/infer``, and ``generate`` likewise."""
    if segments[-1] not in MODEL_TAILS:
        return False
    if segments[-3:-2] == [b"versions"]:
        segments = segments[:-2]
    return segments[-3:-2] == [b"models"] and segments[-2] != b""


class _Inference(msgspec.Struct):
    parameters: dict[str, msgspec.Raw] = {}
    sequence_id: msgspec.Raw | None = None


def _has_sequence(exchange: Exchange) -> bool:
    """Whether an inference request of the KServe v2 protocol belongs to a sequence.

    The server keeps a state per ``parameters.sequence_id`` (for ``generate`` it may stand at the
    top), so a repeated step corrupts it; 0 and "" mean none. A body that cannot be read (still
    coming, compressed, malformed, very large) may hold one.
    """
    data = exchange.body.peek()
    if data is None:
        return True
    length = exchange.request.index.get(b"inference-header-content-length")
    if length is not None:
        if not length.isdigit() or len(length) > 12 or int(length) > len(data):
            return True
        data = data[: int(length)]
    if len(data) > PEEK:
        return True
    try:
        found = msgspec.json.decode(data, type=_Inference)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return True
    written = (found.sequence_id, found.parameters.get("sequence_id"))
    return any(each is not None and bytes(each) not in (b"0", b'""', b"null") for each in written)


class Retry:
    """The outermost attempt filter: it sees a hedged group's final outcome.

    ``retry_at``: when, at the earliest, a retry may go somewhere, given the time now.
    ``retries``, ``refused`` (by the budget), ``poison`` and ``stopped`` (failures that were not
    retried, by reason) are read by the metrics.
    """

    __slots__ = ("_budget", "_clock", "_retry_at", "_rng", "_sleep", "policy", "refused",
                 "retries", "stopped")  # fmt: skip

    def __init__(
        self,
        policy: Policy,
        budget: Budget,
        clock: Clock,
        rng: Random,
        sleep: Callable[[float], Awaitable[object]] = sleep,
        *,
        retry_at: Callable[[float], float] | None = None,
    ) -> None:
        self.policy = policy
        self._budget = budget
        self._clock = clock
        self._rng = rng
        self._sleep = sleep
        self._retry_at = retry_at
        self.retries = self.refused = 0
        self.stopped = dict.fromkeys(Stop, 0)

    @property
    def poison(self) -> int:
        return self.stopped[Stop.POISON]

    def take_over(self, before: Retry) -> None:
        """Adopt the counts of the filter that a reload replaces."""
        self.retries, self.refused, self.stopped = before.retries, before.refused, before.stopped

    def describe(self, now: float) -> dict[str, object]:
        """``stopped`` counts failures that would have been retried but for this."""
        return {
            "retries": self.retries,
            "refused_by_budget": self.refused,
            "stopped": {each.value: n for each, n in self.stopped.items() if n},
        }

    async def __call__(self, attempt: Attempt, next: Service[Attempt, Outcome]) -> Outcome:  # noqa: A002
        exchange = attempt.exchange
        self._budget.deposit(self._clock.now())
        while True:
            outcome = await next(attempt)
            if not self.policy.matches(outcome):
                return outcome
            now = self._clock.now()
            try:
                at = None if self._retry_at is None else self._retry_at(now)
                verdict = self.policy.decide(exchange, outcome, attempt.number, now, self._rng, at)
            except BaseException:
                outcome.discard()  # whatever it is must not keep a permit
                raise
            if isinstance(verdict, Stop):
                self.stopped[verdict] += 1
                exchange.note(now, "retry", "", None, f"none: {verdict.value}")
                if verdict is Stop.POISON and outcome.answer is None:
                    # Say so, that the client does not retry it either.
                    return Outcome(Kind.FAILED, 0, Reason.POISON, detail=outcome.detail)
                return outcome
            if not self._budget.withdraw(now, "retry"):
                self.refused += 1
                exchange.note(now, "retry", "", None, "none: the budget is spent")
                return outcome
            self.retries += 1
            outcome.discard()
            await self._sleep(verdict)
            tried = (*attempt.tried, attempt.endpoint)
            attempt = Attempt(exchange, attempt.number + 1, tried)
