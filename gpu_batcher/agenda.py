"""agenda: the lanes that are due, in the order of their turns, and when the others will be. Pure.

Of the lanes that are due with the same best class, the one is next whose key has had the fewest
turns: start-time fair queueing with every batch as 1. A key that comes anew joins at the turn of
the last one served. So a key with a thousand calls gives way after one batch, and a key in many
buckets has no more turns than one in a single bucket.

Nothing is looked for: entries that became wrong are put right when they come to the top. Each call
is O(log n) amortised in the lanes.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from math import inf
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from gpu_batcher.lanes import Lane

T = TypeVar("T")

CLASSES = 4
SLACK = 256
"""Entries, beyond twice as many as were right when it was last tidied."""


class Agenda(Generic[T]):
    """``Lane.timer`` is when the one timer rings that is valid for it, at ``Lane.due`` or before;
    ``Lane.entered`` has a bit for each class among whose lanes it has an entry."""

    __slots__ = ("_most", "_ready", "_serial", "_timers", "_virtual")

    def __init__(self) -> None:
        self._ready: tuple[list[tuple[int, int, Lane[T]]], ...] = tuple([] for _ in range(CLASSES))
        self._timers: list[tuple[float, int, Lane[T]]] = []
        self._serial = self._virtual = 0
        self._most = SLACK

    def note(self, lane: Lane[T], now: float) -> None:
        """A lane with somebody in it is due at another time, or has another best class. A timer
        that is too early stays: it is moved when it rings, and costs nothing until then."""
        if lane.due <= now:
            self._enter(lane)
        elif lane.due < lane.timer:
            self._time(lane)

    def wake(self, now: float) -> None:
        """See to the lanes that have become due. To be called before ``first`` and ``soonest``."""
        timers = self._timers
        while timers:
            when, _, lane = timers[0]
            if lane.timer == when == lane.due and when > now:
                return
            heappop(timers)
            if lane.timer != when:
                continue  # an earlier one took its place
            lane.timer = inf
            if lane.due <= now:
                self._enter(lane)
            elif lane.due < inf:
                self._time(lane)

    def first(self, now: float) -> tuple[Lane[T], int] | None:
        """The lane whose turn it is, and its best class."""
        for rank, ready in enumerate(self._ready):
            while ready:
                turn, serial, lane = ready[0]
                if lane.due > now or lane.best() != rank:
                    heappop(ready)
                    lane.entered &= ~(1 << rank)
                    if lane.due <= now:
                        self._enter(lane)
                elif turn < lane.line.turn:
                    heapreplace(ready, (lane.line.turn, serial, lane))
                else:
                    return lane, rank
        return None

    def soonest(self) -> float:
        """When the next lane becomes due; infinite if none waits for its time."""
        return self._timers[0][0] if self._timers else inf

    def served(self, lane: Lane[T]) -> None:
        """Its key had a turn."""
        self._virtual = max(self._virtual, lane.line.turn)
        lane.line.turn = self._virtual + 1

    def clear(self) -> None:
        """Nobody waits: nothing that is listed is right."""
        for _, _, lane in self._timers:
            lane.timer = inf
        self._timers.clear()
        for ready in self._ready:
            for _, _, lane in ready:
                lane.entered = 0
            ready.clear()

    def tidy(self) -> None:
        """Take out lanes without calls, if many may be. They are put right when they come to the
        top; but while better classes are always busy, or no slot is free, that is not soon, and
        what clients invent and leave again would gather here. O(1) amortised."""
        if len(self) <= self._most:
            return
        for _, _, lane in self._timers:
            if not lane.count:
                lane.timer = inf
        self._timers = [each for each in self._timers if each[0] == each[2].timer]
        heapify(self._timers)
        for rank, ready in enumerate(self._ready):
            for _, _, lane in ready:
                if not lane.count:
                    lane.entered &= ~(1 << rank)
            ready[:] = [each for each in ready if each[2].count]
            heapify(ready)
        self._most = 2 * len(self) + SLACK

    def __len__(self) -> int:
        """Entries, right or wrong."""
        return len(self._timers) + sum(len(ready) for ready in self._ready)

    def _time(self, lane: Lane[T]) -> None:
        lane.timer = lane.due
        self._serial += 1
        heappush(self._timers, (lane.due, self._serial, lane))

    def _enter(self, lane: Lane[T]) -> None:
        rank = lane.best()
        if not lane.entered >> rank & 1:
            lane.entered |= 1 << rank
            lane.line.turn = max(lane.line.turn, self._virtual)
            self._serial += 1
            heappush(self._ready[rank], (lane.line.turn, self._serial, lane))
