"""The words every filter speaks: Exchange, Attempt, Outcome, Reject, Permit, and ``chain``.

    Service[S, R] = async (subject: S) -> R
    Filter[S, R]  = async (subject: S, next: Service[S, R]) -> R

There are two chains. The *exchange chain* runs once per client request and returns after the
last byte has been relayed, so a filter's ``try/finally`` spans the whole streamed answer. The
*attempt chain* runs once per try and returns at a usable response; until the commit point (the
head goes downstream, in ``gateway/proxy.py``) an attempt can be retried or thrown away.

The shape is Finagle's (Eriksen, "Your Server as a Function", 2013). Nondeterminism enters only
through seams: Clock, ``random.Random``, and those to the two sides (``filters/seams.py``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, IntEnum, StrEnum
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from random import Random

    from filters.seams import Answer, Body, Downstream

S = TypeVar("S")
R = TypeVar("R")

Service: TypeAlias = Callable[[S], Awaitable[R]]
Filter: TypeAlias = Callable[[S, Service[S, R]], Awaitable[R]]
Headers: TypeAlias = list[tuple[bytes, bytes]]


def chain(filters: Sequence[Filter[S, R]], service: Service[S, R]) -> Service[S, R]:
    """Compose: the first filter is the outermost. Bound once per route, not once per request."""
    for each in reversed(filters):
        service = _bind(each, service)
    return service


def _bind(each: Filter[S, R], following: Service[S, R]) -> Service[S, R]:
    # An object's __call__ is looked up here, once, and not again with every call.
    call = (
        each if isinstance(each, FunctionType | MethodType) else type(each).__call__.__get__(each)
    )

    def bound(subject: S) -> Awaitable[R]:
        return call(subject, following)  # type: ignore[no-any-return]

    return bound


class Reason(StrEnum):
    """The one closed list of reason codes: headers, log, metric labels and admin alike."""

    # The client's message or manners.
    MALFORMED = "malformed"
    VERSION = "http_version"
    METHOD = "method_not_allowed"
    NOT_IMPLEMENTED = "not_implemented"
    EXPECTATION = "expectation"
    TARGET_TOO_LONG = "target_too_long"
    HEAD_TOO_LARGE = "head_too_large"
    BODY_TOO_LARGE = "body_too_large"
    HEAD_TIMEOUT = "head_timeout"
    BODY_TIMEOUT = "body_timeout"
    CLIENT_GONE = "client_gone"
    # Refused here.
    NO_ROUTE = "no_route"
    DEADLINE = "deadline"
    DEADLINE_UNREACHABLE = "deadline_unreachable"
    RATE_LIMITED = "rate_limited"
    SHED = "shed"
    STRAINED = "strained"
    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    NO_ENDPOINT = "no_endpoint"
    QUARANTINED = "quarantined"
    CONNECTIONS = "connections"
    CLIENT_STALLED = "client_stalled"
    # The upstream's side.
    CONNECT_FAILED = "connect_failed"
    CONNECT_TIMEOUT = "connect_timeout"
    POOL_EXHAUSTED = "pool_exhausted"
    UPSTREAM_RESET = "upstream_reset"
    UPSTREAM_PROTOCOL = "upstream_protocol"
    UPSTREAM_TRUNCATED = "upstream_truncated"
    UPSTREAM_STATUS = "upstream_status"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    STALL = "stall"
    POISON = "poison"
    # Batches.
    BISECTION_BUDGET = "bisection_budget"
    BATCH_FAILED = "batch_failed"
    BATCH_ANSWER = "batch_answer"
    # Ours.
    INTERNAL = "internal"


class Priority(IntEnum):
    """The class of an exchange, best first: Google's criticalities (SRE book, "Handling
    Overload"). A number, because queues and shedding index and compare by it."""

    CRITICAL_PLUS = 0
    CRITICAL = 1
    SHEDDABLE_PLUS = 2
    SHEDDABLE = 3


class Reject(Exception):
    """A typed refusal, raised anywhere in a chain and answered by ``gateway/replies.py``.

    ``retry_after`` is in seconds, for refusals where coming back later can help.
    ``status`` overrides the status that the table of replies gives to ``reason``.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str = "",
        *,
        retry_after: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.retry_after = retry_after
        self.status = status


class Kind(Enum):
    """How an attempt or an exchange ended, as far as its endpoint is concerned."""

    OK = "ok"
    FAILED = "failed"
    PUSHED_BACK = "pushed_back"
    """Load, not failure: 429, or 503 with Retry-After. Its endpoint works, and has enough to do."""
    IGNORED = "ignored"
    """Says nothing about the endpoint: the client left, a deadline passed, a loser was dropped."""


# For the hot path: Python 3.11 takes 0.15 us to find a member by its class, ten times an exchange.
OK = Kind.OK
FAILED = Kind.FAILED
PUSHED_BACK = Kind.PUSHED_BACK
IGNORED = Kind.IGNORED
_CRITICAL = Priority.CRITICAL


class Outcome:
    """What became of an attempt; of an exchange, once its last byte is relayed.

    ``status`` is the HTTP status or 0 if none came. ``sent`` says whether any byte of the
    request left for the upstream; ``complete`` whether all of it did; a request none of whose
    bytes were sent is always safe to send again. ``retry_after`` is the upstream's, in seconds.
    ``answer`` is there when a response head came, and then holds the attempt's ``permit``.
    """

    __slots__ = (
        "answer",
        "complete",
        "detail",
        "kind",
        "permit",
        "reason",
        "retry_after",
        "sent",
        "status",
    )

    def __init__(
        self,
        kind: Kind,
        status: int = 0,
        reason: Reason | None = None,
        *,
        retry_after: float | None = None,
        sent: bool = True,
        complete: bool = True,
        answer: Answer | None = None,
        permit: Permit | None = None,
        detail: str = "",
    ) -> None:
        self.detail = detail
        self.kind = kind
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        self.sent = sent
        self.complete = complete
        self.answer = answer
        self.permit = permit

    def discard(self) -> None:
        """Throw a usable answer away: its connection is closed, its permit given back."""
        answer, permit = self.answer, self.permit
        self.answer = self.permit = None
        if answer is not None:
            answer.discard()
        if permit is not None:
            permit.release(self)

    def __repr__(self) -> str:
        return f"Outcome({self.kind.value}, status={self.status}, reason={self.reason})"


class Permit(Protocol):
    """The right to be in flight. Taking returns it; it is released exactly once, at the end."""

    def release(self, outcome: Outcome) -> None: ...


class Handle(Protocol):
    """A timer that can be called off."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Monotonic seconds, and the only way to be called later."""

    def now(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], object]) -> Handle: ...


class Request:
    """A request head that passed the strict layer of ``gateway/wire.py``.

    ``fields`` are as received, in order, each (lower-case name, value, name, line); ``index`` maps
    lower-case names to values (of lines with the same name, joined by commas). ``target`` is
    origin-form or ``*``; ``path`` is ``target`` without the query. ``minor`` is the HTTP/1 minor
    version.
    ``length`` is the declared body length, ``None`` for a chunked body, 0 without a body.

    It is not to be changed: where a client repeats itself, one object serves all its exchanges
    (``gateway/head_memo.py``, which keeps in ``told`` what else is the same for all of them).
    """

    __slots__ = ("fields", "host", "index", "length", "method", "minor", "path", "target", "told")

    def __init__(
        self,
        method: bytes,
        target: bytes,
        minor: int,
        fields: Sequence[tuple[bytes, bytes, bytes, bytes]],
        index: dict[bytes, bytes],
        host: bytes,
        length: int | None,
    ) -> None:
        self.method = method
        self.target = target
        self.minor = minor
        self.fields = fields
        self.index = index
        self.host = host
        self.length = length
        self.path = target.partition(b"?")[0]
        self.told: Any = None


class Note(NamedTuple):
    """What happened to an exchange that is not ordinary: an attempt that failed or was not alone, a
    retry or hedge that was or was not made. ``at``: seconds from its arrival; ``seconds``: how long
    it took, if it took any."""

    at: float
    what: str
    endpoint: str
    seconds: float | None
    result: str


NOTES = 32
"""Notes of one exchange; what comes later is not kept."""


class Exchange:
    """One client request and everything sent back, to the last byte.

    Data only; what does I/O hangs off ``body`` and ``downstream``. ``arrived`` and ``deadline``
    are the clock's seconds. ``trusted`` says whether the client's control headers are believed;
    ``asked`` whether client or route named a deadline, which then is told to the upstream too.
    ``tenant`` is a hash of whoever fairness is between; ``queued`` the seconds spent waiting for a
    permit, and ``granted`` whether that wait ended with one; ``hedged`` whether a second attempt
    raced the first; ``notes`` what was not ordinary (``note``); ``shadowed`` what a filter with
    ``dry_run`` would have done (``shadow``);
    ``lines`` are header lines, each with its line end, that filters add to its answer, whoever
    gives it; all are named ``x-ratelimit-...``.
    """

    __slots__ = (
        "arrived",
        "asked",
        "attempts",
        "body",
        "client",
        "deadline",
        "downstream",
        "endpoint",
        "first_byte",
        "granted",
        "hedged",
        "lines",
        "notes",
        "priority",
        "queued",
        "reason",
        "request",
        "request_id",
        "route",
        "secure",
        "shadowed",
        "span",
        "tenant",
        "trusted",
        "upgrade",
    )

    def __init__(
        self,
        request: Request,
        body: Body,
        downstream: Downstream,
        client: str,
        trusted: bool,
        secure: bool,
        arrived: float,
        upgrade: bool = False,
    ) -> None:
        self.request = request
        self.body = body
        self.downstream = downstream
        self.client = client
        self.trusted = trusted
        self.secure = secure
        self.arrived = arrived
        self.upgrade = upgrade
        self.deadline: float | None = None
        self.asked = False
        self.route: Any = None
        self.request_id = b""
        self.attempts = 0
        self.endpoint = ""
        self.reason: Reason | None = None
        self.first_byte: float | None = None
        self.span: Any = None
        self.priority = _CRITICAL
        self.tenant = 0
        self.queued = 0.0
        self.granted = False
        self.hedged = False
        self.shadowed: str | None = None
        self.lines = b""
        self.notes: list[Note] | None = None

    def note(self, now: float, what: str, endpoint: str, began: float | None, result: str) -> None:
        """Remember what became of an attempt, a retry or a hedge, for whoever asks why. Never
        called for an exchange that goes well at once."""
        notes = self.notes
        if notes is None:
            notes = self.notes = []
        if len(notes) < NOTES:
            at = now if began is None else began
            seconds = None if began is None else now - began
            notes.append(Note(at - self.arrived, what, endpoint, seconds, result))

    def shadow(self, would: str) -> None:
        """A filter with ``dry_run`` would have done this: a reason code, ``queue`` or ``hedge``.
        Of several the first one counts: what it refuses, those behind it would never have seen."""
        if self.shadowed is None:
            self.shadowed = would


class Attempt:
    """One try of an exchange at one endpoint. ``tried`` are endpoints that earlier tries used.

    ``started`` is when it was sent on to its endpoint, in the clock's seconds."""

    __slots__ = ("endpoint", "exchange", "number", "started", "tried")

    def __init__(self, exchange: Exchange, number: int, tried: tuple[str, ...]) -> None:
        self.started = 0.0
        self.exchange = exchange
        self.number = number
        self.tried = tried
        self.endpoint = ""


Rng: TypeAlias = "Random"
ExchangeFilter: TypeAlias = "Filter[Exchange, Outcome]"
AttemptFilter: TypeAlias = "Filter[Attempt, Outcome]"
