"""An asyncio event loop in virtual time: when nothing is ready, the clock jumps to the next timer.

A minute of a control loop passes in as long as its callbacks take, and the same program with the
same seeds takes the same steps on every machine. It is asyncio's own loop without a selector, so
tasks, timers and cancellation are the production ones. There are no sockets, threads or
signals: whoever asks for one gets an error instead of a run that depends on the machine.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from heapq import heapify, heappop, heappush
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START = 1000.0
"""Virtual seconds at the start: not 0, which code could take for "never"."""
SHOWN = 8
"""Tasks that the message of a deadlock names."""
COMPACT_FROM = 1000
"""Cancelled timers that are let be."""


class Deadlock(RuntimeError):
    """Nothing is ready, no timer is set, and the main coroutine is not done; or it never ends."""


class VirtualLoop(asyncio.BaseEventLoop):
    """``time()`` is virtual. ``limit``: virtual seconds after which a run counts as endless.

    Timers fire in the order of their times, and of their making among equals, exactly at their
    times. They wait in a heap of our own: asyncio's compares handles in Python, which took a fifth
    of a run. Cost: about 2 us per callback, O(log timers) per timer.
    """

    _ready: deque[asyncio.Handle]
    _stopping: bool

    def __init__(self, limit: float = math.inf) -> None:
        super().__init__()
        self._now = START
        self._end = START + limit
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._serial = 0
        self._dead = 0

    def time(self) -> float:
        return self._now

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._serial += 1
        heappush(self._timers, (when, self._serial, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Called by every handle that is cancelled, one that has fired already included."""
        self._dead += 1
        timers = self._timers
        if self._dead > COMPACT_FROM and self._dead * 2 > len(timers):
            timers[:] = [each for each in timers if not each[2].cancelled()]
            heapify(timers)
            self._dead = 0

    def _run_once(self) -> None:
        """One round, as asyncio's loop makes it: what is ready now, and not what becomes so."""
        ready, timers = self._ready, self._timers
        if not ready and not self._stopping:
            self._jump()
        now = self._now
        while timers and timers[0][0] <= now:
            ready.append(heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()  # noqa: SLF001

    def _jump(self) -> None:
        """Nothing is ready, and nothing ever arrives from outside: so time passes."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heappop(timers)
        if not timers:
            raise Deadlock(f"nothing is ready and no timer is set, but {self._waiting()}")
        self._now = max(self._now, timers[0][0])
        if self._now > self._end:
            raise Deadlock(f"still not done after the limit, {self._waiting()}")

    def _waiting(self) -> str:
        waiting = sorted(_describe(task) for task in asyncio.all_tasks(self))
        more = f" and {len(waiting) - SHOWN} more" if len(waiting) > SHOWN else ""
        seconds = self._now - START
        return f"at {seconds:.6f} s these wait: {', '.join(waiting[:SHOWN])}{more}"

    def _write_to_self(self) -> NoReturn:
        raise RuntimeError("there are no threads in virtual time")

    def run_in_executor(self, executor: object, func: Callable[..., T], *args: object) -> NoReturn:
        raise RuntimeError("there are no threads in virtual time")


def run(main: Coroutine[Any, Any, T], loop: VirtualLoop) -> T:
    """Run ``main`` to its end and close the loop. Raises Deadlock, or what ``main`` raises."""
    try:
        return loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=1))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _describe(task: "asyncio.Task[Any]") -> str:
    frames = task.get_stack(limit=1)
    where = f" at {frames[0].f_code.co_name}:{frames[0].f_lineno}" if frames else ""
    return f"{getattr(task.get_coro(), '__qualname__', 'task')}{where}"
