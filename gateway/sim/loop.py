"""An asyncio event loop in virtual time: when nothing is ready, the clock jumps to the next timer.

A minute of a control loop passes in as long as its callbacks take, and the same program with the
same seeds takes the same steps on every machine. It is asyncio's own loop with another selector,
so tasks, timers and cancellation are the production ones. There are no sockets, threads or
signals: whoever asks for one gets an error instead of a run that depends on the machine.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

START = 1000.0
"""Virtual seconds at the start: not 0, which code could take for "never"."""
SHOWN = 8
"""Tasks that the message of a deadlock names."""


class Deadlock(RuntimeError):
    """Nothing is ready, no timer is set, and the main coroutine is not done; or it never ends."""


class VirtualLoop(asyncio.BaseEventLoop):
    """``time()`` is virtual. ``limit``: virtual seconds after which a run counts as endless.

    Timers fire in the order of their times, and exactly at them. Cost: that of asyncio's loop
    without the system call.
    """

    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, limit: float = math.inf) -> None:
        super().__init__()
        self._now = START
        self._end = START + limit
        self._selector = self
        self._clock_resolution = math.ulp(START)

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> tuple[()]:
        """What asyncio's loop calls to wait: nothing ever arrives from outside, so time passes."""
        if timeout is None:
            raise Deadlock(f"nothing is ready and no timer is set, but {self._waiting()}")
        if timeout > 0:
            # The timer's own time, not now + timeout, which may be a rounding error earlier.
            self._now = self._scheduled[0].when()
            self._clock_resolution = math.ulp(self._now)
            if self._now > self._end:
                raise Deadlock(f"still not done after the limit, {self._waiting()}")
        return ()

    def _waiting(self) -> str:
        waiting = sorted(_describe(task) for task in asyncio.all_tasks(self))
        more = f" and {len(waiting) - SHOWN} more" if len(waiting) > SHOWN else ""
        seconds = self._now - START
        return f"at {seconds:.6f} s these wait: {', '.join(waiting[:SHOWN])}{more}"

    def _process_events(self, events: tuple[()]) -> None:
        """Part of asyncio's contract with its loops; there are no events."""

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
