"""The request body between the client's connection and the upstream's.

Pieces are handed on by callback as they come. Up to ``replay_bytes`` of them are also kept, all
bodies together within ``replay_total``, so that another attempt can send them again; a body that
outgrows either streams through and is counted, because a retry that silently does not happen is
what users of other proxies find out the hard way.
"""

import asyncio
import hashlib
from typing import Protocol

from filters.api import Headers
from filters.seams import Flow


class BodySink(Protocol):
    """Where a request body goes: one attempt at an upstream."""

    def body_data(self, data: bytes) -> None: ...
    def body_end(self, trailers: Headers) -> None: ...
    def body_abort(self) -> None: ...


class Source(Flow, Protocol):
    """Where it comes from: the client's connection."""

    def body_wanted(self) -> None:
        """An attempt is ready for the body: time for ``100 Continue``."""
        ...


class ReplayStore:
    """How many bytes all kept bodies hold, and how many bodies were too large to keep."""

    __slots__ = ("bodies_streamed", "body_bytes", "held", "total_bytes")

    def __init__(self, body_bytes: int, total_bytes: int) -> None:
        self.body_bytes = body_bytes
        self.total_bytes = total_bytes
        self.held = 0
        self.bodies_streamed = 0


class RequestBody:
    """One body. ``length`` as declared: bytes, None when chunked. O(1) per piece."""

    __slots__ = (
        "_held",
        "_kept_bytes",
        "_pieces",
        "_sink",
        "_source",
        "_store",
        "_waiter",
        "aborted",
        "complete",
        "length",
        "received",
        "replayable",
        "trailers",
    )

    def __init__(
        self, length: int | None, store: ReplayStore, source: Source, whole: bytes | None = None
    ) -> None:
        """``whole`` is the body where all of it came with the head."""
        self.length = length
        self.received = 0
        self.complete = length == 0
        self.aborted = False
        self.replayable = True
        self.trailers: Headers = []
        self._pieces: list[bytes] = []
        self._kept_bytes = 0
        self._held = False
        self._store = store
        self._source = source
        self._sink: BodySink | None = None
        self._waiter: asyncio.Future[None] | None = None
        if whole:
            self.complete = True
            self.received = self._kept_bytes = size = len(whole)
            self._pieces.append(whole)
            store.held += size

    # -- the client's side

    def feed(self, data: bytes) -> None:
        self.received += len(data)
        sink = self._sink
        if sink is not None:
            sink.body_data(data)
            if not self.replayable:
                return
        self._pieces.append(data)
        self._kept_bytes += len(data)
        self._store.held += len(data)
        if self._too_large():
            if sink is not None:
                self._stop_keeping()
            elif not self.complete:
                # Not a byte has left yet, so nothing is given up; but no more is taken either.
                self._source.pause()
                self._wake()

    def end(self, trailers: Headers) -> None:
        self.complete = True
        self.trailers = trailers
        if self._sink is not None:
            self._sink.body_end(trailers)
        elif self._waiter is not None:
            self._wake()

    def abort(self) -> None:
        """The client broke off: what is under way upstream must not look like a whole message."""
        if not self.complete:
            self.aborted = True
            self.replayable = False
            if self._sink is not None:
                self._sink.body_abort()
            self._wake()

    # -- the upstream's side

    def attach(self, sink: BodySink) -> list[bytes]:
        """Make ``sink`` the one that is fed; returns the pieces so far, for it to send first."""
        self._sink = sink
        pieces = self._pieces
        if self._too_large():
            self._stop_keeping()
        if not self.complete:
            self._source.body_wanted()
            self._source.resume()
        return pieces

    def detach(self, sink: BodySink) -> None:
        """``sink`` takes no more. Reading pauses while there is nobody to take what comes."""
        if self._sink is sink:
            self._sink = None

    def pause(self) -> None:
        if not self.complete:
            self._source.pause()

    def resume(self) -> None:
        if not self.complete:
            self._source.resume()

    def peek(self) -> bytes | None:
        """The whole body when it is here and kept, else None."""
        return b"".join(self._pieces) if self.complete and self.replayable else None

    async def whole(self) -> bytes | None:
        """Wait until all of it is here, before any attempt. None when it is not: it outgrew what
        may be kept, or its client broke off. Nothing is lost by asking, an attempt can follow."""
        if not self.complete and not self.aborted and not self._too_large():
            self._source.body_wanted()
            self._source.resume()  # it paused if all bodies together were too large for a while
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.peek()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def hold(self) -> bool:
        """Keep the whole body to the end of the exchange, whatever all bodies together hold: an
        attempt that still waits for its connection must find it. False when it is not here."""
        self._held = self._held or (self.complete and self.replayable)
        return self._held

    def fingerprint(self) -> bytes | None:
        whole = self.peek()
        return None if whole is None else hashlib.blake2b(whole, digest_size=16).digest()

    def release(self) -> None:
        """The exchange is over: give the kept bytes back."""
        self._sink = None
        if self._kept_bytes:
            self._forget()

    def _too_large(self) -> bool:
        store = self._store
        too_large = self._kept_bytes > store.body_bytes or store.held > store.total_bytes
        return too_large and not self._held

    def _stop_keeping(self) -> None:
        """From here on the body streams through, and only this attempt can have it."""
        if self.replayable:
            self.replayable = False
            self._store.bodies_streamed += 1
        self._forget()

    def _forget(self) -> None:
        self._store.held -= self._kept_bytes
        self._kept_bytes = 0
        self._pieces = []
