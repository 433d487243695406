"""buffers: a fixed number of buffers, made at start, lent out and taken back.

No batch allocates: who finds no free buffer waits, in order of arrival, and the plan forms larger
batches meanwhile. A ``Lease`` is returned exactly once. One that is lost (garbage, and never
returned) is reported, and its buffer is neither lent again nor freed: whoever lost it, or a model
server that has it open, may still be reading, and a buffer with two users would mix up callers'
rows.

Everything here belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

log = logging.getLogger("tailrace")


class Buffer(Protocol):
    """``size``: bytes for packed inputs and outputs. ``staging``: bytes of its staging buffer, 0
    if it has none."""

    size: int
    staging: int

    def close(self) -> None: ...


B = TypeVar("B", bound=Buffer)


class LeaseError(RuntimeError):
    """A lease was used against the rules: returned twice, or read after it was returned."""


class PoolClosedError(RuntimeError):
    """No buffer will come: the pool is closed, or all of its buffers are lost."""


class Lease(Generic[B]):
    """The right to one buffer. ``release`` it exactly once, or use it in a ``with``; in either
    case only when nothing reads or writes the buffer any more."""

    __slots__ = ("_buffer", "_pool")

    def __init__(self, pool: Pool[B], buffer: B) -> None:
        self._pool = pool
        self._buffer: B | None = buffer

    @property
    def buffer(self) -> B:
        if self._buffer is None:
            raise LeaseError("the buffer was returned, and may be another batch's by now")
        return self._buffer

    def release(self) -> None:
        """Return the buffer; whoever has waited longest gets it. Raises LeaseError the second
        time."""
        buffer, self._buffer = self.buffer, None
        self._pool._take_back(buffer)  # noqa: SLF001

    def __enter__(self) -> B:
        return self.buffer

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        if self._buffer is not None:
            self._pool._lose(self._buffer)  # noqa: SLF001


class Pool(Generic[B]):
    """The buffers and who waits for them.

    ``bytes``: of all buffers, staging included. ``in_use``, ``high_water`` (the most ever in use)
    and ``waiting`` are for metrics, as is ``lost``. ``on_lost`` is called when a lease is lost,
    possibly from another thread and in the middle of anything, so it does next to nothing.
    """

    def __init__(self, buffers: Iterable[B], on_lost: Callable[[], object] = lambda: None) -> None:
        self._free: deque[B] = deque(buffers)
        if not self._free:
            raise ValueError("a pool needs at least one buffer")
        self._waiters: deque[asyncio.Future[Lease[B]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_lost = on_lost
        self._lost: list[B] = []
        self._closed = False
        self.total = len(self._free)
        self.bytes = sum(buffer.size + buffer.staging for buffer in self._free)
        self._lent = 0
        self.high_water = 0

    @property
    def in_use(self) -> int:
        return self._lent - self.lost

    @property
    def lost(self) -> int:
        return len(self._lost)

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def try_lease(self) -> Lease[B] | None:
        """A buffer at once, or None. Raises PoolClosedError. O(1)."""
        if self._closed or self.lost == self.total:
            raise PoolClosedError("the pool is closed" if self._closed else "every buffer is lost")
        # A free buffer means that nobody waits: what is returned goes to the first that does.
        return self._lend(self._free.popleft()) if self._free else None

    async def lease(self) -> Lease[B]:
        """A buffer, as soon as there is one. Cancelling it leaves nothing behind: a lease that is
        granted in the same moment goes on to the next. Raises PoolClosedError."""
        lease = self.try_lease()
        if lease is not None:
            return lease
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Lease[B]] = self._loop.create_future()
        self._waiters.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            future.cancel()
            if future.cancelled():
                with contextlib.suppress(ValueError):  # _take_back may have passed over it.
                    self._waiters.remove(future)
            elif future.exception() is None:
                future.result().release()
            raise

    def close(self) -> None:
        """Lend no more: waiters get PoolClosedError, free buffers are closed now and the others
        when they come back. A second time does nothing."""
        self._closed = True
        self._refuse("the pool is closed")
        while self._free:
            _close(self._free.popleft())

    def _lend(self, buffer: B) -> Lease[B]:
        self._lent += 1
        self.high_water = max(self.high_water, self.in_use)
        return Lease(self, buffer)

    def _take_back(self, buffer: B) -> None:
        self._lent -= 1
        if self._closed:
            _close(buffer)
            return
        while self._waiters:
            future = self._waiters.popleft()
            if not future.done():
                future.set_result(self._lend(buffer))
                return
        self._free.append(buffer)

    def _refuse(self, why: str) -> None:
        while self._waiters:
            future = self._waiters.popleft()
            if not future.done():
                future.set_exception(PoolClosedError(why))

    def _lose(self, buffer: B) -> None:
        """From ``Lease.__del__``: whatever thread the garbage collector ran in, and between any
        two steps of another method."""
        self._lost.append(buffer)
        log.error("a batch buffer was never returned; %d of %d are lost", self.lost, self.total)
        self._on_lost()
        if self.lost == self.total and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._refuse, "every buffer is lost")


def _close(buffer: Buffer) -> None:
    """A GPU that has failed says so at every call; the other buffers are closed all the same."""
    try:
        buffer.close()
    except RuntimeError:
        log.exception("a batch buffer could not be closed")
