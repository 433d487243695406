"""The seams to the two sides of an exchange: Body and Downstream of the client, Answer of the
upstream.

Protocols only. Each has a real implementation in ``gateway`` and a simulated one in
``gateway/sim``; whatever decides about an exchange sees no more of either side than this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from filters.api import Exchange, Headers, Outcome


class Body(Protocol):
    """The request body on its way through. Sinks are fed by callback, never by a task per chunk."""

    @property
    def replayable(self) -> bool:
        """True while every byte so far is kept, so that another attempt can send it again."""
        ...

    @property
    def complete(self) -> bool:
        """True once all of it has come, kept or not."""
        ...

    def fingerprint(self) -> bytes | None:
        """A digest of the whole body, or None when it is not kept whole."""
        ...

    @property
    def aborted(self) -> bool:
        """True once the client broke off before all of it had come."""
        ...

    def peek(self) -> bytes | None:
        """The whole body, or None while it is still coming or when it is not kept whole."""
        ...

    async def whole(self) -> bytes | None:
        """Wait until all of it is here, before any attempt. None when it is not: it outgrew what
        may be kept, or its client broke off. An attempt can follow in either case."""
        ...

    def hold(self) -> bool:
        """Keep the whole body to the end, because two attempts are to read it at once. False when
        it is still coming or not kept whole."""
        ...


class Downstream(Protocol):
    """The client's side of an exchange, as the chains see it."""

    @property
    def committed(self) -> bool: ...
    @property
    def bytes_sent(self) -> int: ...

    def inform(self, status: int, lines: bytes) -> None:
        """Forward an interim (1xx) response."""
        ...

    def start(self, status: int, lines: bytes, length: int | None) -> None:
        """Commit to this head. ``lines`` are its fields without framing, as bytes;
        ``length`` of the body in bytes, None when it is not known yet. It leaves with the first
        ``write`` or ``finish``, or by ``flush``, which must follow when neither does at once."""
        ...

    def flush(self) -> None: ...

    def write(self, data: bytes) -> None: ...
    def finish(self, data: bytes, trailers: Headers) -> None: ...

    def abort(self) -> None:
        """End the connection so that the client sees that the answer is not whole."""
        ...

    def flow(self, source: Flow | None) -> None:
        """Name who is to be paused while the client reads more slowly than the answer comes."""
        ...


class Flow(Protocol):
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Answer(Protocol):
    """A response head from an upstream, and the body behind it."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Headers: ...

    @property
    def first_byte(self) -> float | None:
        """When the first byte of its body came, or its end; None while neither has."""
        ...

    @property
    def empty(self) -> bool:
        """Whether the answer is complete and not a byte of a body has come."""
        ...

    @property
    def body_here(self) -> bool:
        """Whether ``body_begun`` would return None at once."""
        ...

    async def body_begun(self) -> Outcome | None:
        """Wait for the first byte of the body, or the end of the answer; nothing is committed.

        None when either is there; a failed outcome when the answer broke off."""
        ...

    async def relay(self, exchange: Exchange) -> Outcome:
        """Commit the head downstream, relay to the last byte; return how it ended."""
        ...

    def discard(self) -> None: ...
