"""The real clock: one heap of alarms on one loop timer.

Every exchange and attempt sets clocks that nearly always are called off again. A loop timer
costs about 2 us to make and cancel; an entry in a heap that is deleted lazily costs a fifth of
that. The heap is compacted when more than half of it is dead, so it stays in proportion to what
is alive and the cost per alarm is O(log n) amortised. Most alarms are minutes away and never get
near: beyond the horizon they wait unsorted, which is cheaper still, and is looked through once
per horizon.
"""

import asyncio
import heapq
from collections.abc import Callable

from filters.api import Clock, Handle

NEVER = float("inf")
_COMPACT_FROM = 512
_HORIZON_S = 20.0
"""Looked through at every half of it, so that none is late."""


class Alarm:
    """A callback to be. ``when`` in the clock's seconds."""

    __slots__ = ("_clock", "callback", "far", "when")

    def __init__(self, clock: "LoopClock", when: float, callback: Callable[[], object]) -> None:
        self._clock = clock
        self.when = when
        self.callback: Callable[[], object] | None = callback
        self.far = False

    def cancel(self) -> None:
        """Call it off; a second call, or one after it rang, does nothing."""
        if self.callback is not None:
            self.callback = None
            if self.far:
                self._clock.far.pop(self, None)
            else:
                self._clock.dead += 1


class LoopClock:
    """Monotonic seconds of the event loop. An alarm is never early."""

    __slots__ = (
        "_armed_at",
        "_far_from",
        "_heap",
        "_loop",
        "_serial",
        "_timer",
        "dead",
        "far",
        "now",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, now: Callable[[], float] | None = None
    ) -> None:
        """``now`` must run with ``loop.time``; it is for loops whose own time is coarse, as
        uvloop's, which moves in milliseconds and only between two rounds of callbacks."""
        self._loop = loop
        self.now = now or loop.time
        self._heap: list[tuple[float, int, Alarm]] = []
        self._serial = 0
        self._timer: asyncio.TimerHandle | None = None
        self._armed_at = NEVER
        self._far_from = NEVER  # alarms beyond this wait in ``far``; NEVER while there are none
        self.far: dict[Alarm, None] = {}
        self.dead = 0

    def call_at(self, when: float, callback: Callable[[], object]) -> Alarm:
        alarm = Alarm(self, when, callback)
        if when > self._far_from or (self._far_from == NEVER and self._opens_far(when)):
            alarm.far = True
            self.far[alarm] = None
            return alarm
        self._push(when, alarm)
        return alarm

    def _push(self, when: float, alarm: Alarm) -> None:
        heap = self._heap
        if self.dead > _COMPACT_FROM and self.dead * 2 > len(heap):
            self._compact()
        self._serial += 1
        heapq.heappush(heap, (when, self._serial, alarm))
        if when < self._armed_at:
            self._arm(when)

    def _opens_far(self, when: float) -> bool:
        now = self.now()
        if when - now <= _HORIZON_S:
            return False
        self._far_from = now + _HORIZON_S
        self._push(now + _HORIZON_S / 2, Alarm(self, now, self._bring_near))
        return True

    def _bring_near(self) -> None:
        """Move what comes within the horizon into the heap; O(far), twice per horizon."""
        now = self.now()
        edge = now + _HORIZON_S
        for alarm in [each for each in self.far if each.when <= edge]:
            del self.far[alarm]
            alarm.far = False
            self._push(alarm.when, alarm)
        if not self.far:
            self._far_from = NEVER
            return
        self._far_from = edge
        self._push(now + _HORIZON_S / 2, Alarm(self, now, self._bring_near))

    def close(self) -> None:
        """Forget every alarm, so that nothing rings after the server has stopped."""
        self._heap.clear()
        self.far.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_at = when
        self._timer = self._loop.call_later(max(0.0, when - self.now()), self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._armed_at = float("inf")
        heap = self._heap
        now = self.now()
        while heap and (heap[0][2].callback is None or heap[0][0] <= now):
            alarm = heapq.heappop(heap)[2]
            callback = alarm.callback
            if callback is None:
                self.dead -= 1
                continue
            alarm.callback = None
            try:
                callback()
            except Exception as error:  # noqa: BLE001  one alarm must not silence the others
                self._loop.call_exception_handler({"message": "alarm failed", "exception": error})
        if heap and heap[0][0] < self._armed_at:
            # Loop timers are rounded to milliseconds: at least one, or this would spin.
            self._arm(max(heap[0][0], now + 0.001))

    def _compact(self) -> None:
        self._heap[:] = [entry for entry in self._heap if entry[2].callback is not None]
        heapq.heapify(self._heap)
        self.dead = 0


class Timer:
    """One bound that keeps moving, on an alarm that does not.

    Moving it later is one assignment to ``due``: the alarm looks at it when it rings and goes
    back to sleep. Only moving it earlier, by ``set``, touches the heap.
    """

    __slots__ = ("_alarm", "_callback", "_clock", "_when", "due")

    def __init__(self, clock: Clock, callback: Callable[[], object]) -> None:
        self._clock = clock
        self._callback = callback
        self._alarm: Handle | None = None
        self._when = NEVER
        self.due = NEVER

    def set(self, due: float) -> None:
        """Call back at ``due``, in the clock's seconds, whatever was set before."""
        self.due = due
        if due < self._when:
            if self._alarm is not None:
                self._alarm.cancel()
            self._when = due
            self._alarm = self._clock.call_at(due, self._ring)

    def clear(self) -> None:
        """No bound for now. The alarm stays, for the next ``set`` to make use of."""
        self.due = NEVER

    def stop(self) -> None:
        """No bound any more: forget the callback, which breaks the cycle to its owner."""
        self.due = self._when = NEVER
        self._callback = _nothing
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self) -> None:
        self._alarm = None
        self._when = NEVER
        due = self.due
        if due == NEVER:
            return
        if due > self._clock.now():
            self.set(due)
        else:
            self.due = NEVER
            self._callback()


def _nothing() -> None: ...
