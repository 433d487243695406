"""lanes: those who wait, in the order in which they leave. Pure.

A *lane* has the calls that may share a batch: one key, and one bucket of lengths. In it, a *shelf*
for each class has a *flow* for each tenant:

- Of a tenant's calls the one with the earliest deadline is first, then the oldest.
- Of the tenants in a class, the one with the lowest virtual start: start-time fair queueing
  (Goyal, Vin, Cheng 1996) with rows as length. So deadlines order what one tenant wants, and
  nobody passes another tenant by claiming a short one.

A *crowd* is everybody of one class in all lanes: who came first, and which tenant holds most.

Whoever waits has a serial number, and heaps hold numbers only: what is gone leaves a number behind
for a while, never a body. Each call is O(log n) amortised.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from math import inf
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from gpu_batcher.pacing import Pace

T = TypeVar("T")

SLACK = 64
"""Numbers of the gone, beyond as many as of the living, before they are swept out: sweeping then
costs O(1) for each."""


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """Somebody's place in the plan, which never looks into ``item``. To be added once.

    ``rows`` at least 1; ``size`` in bytes; ``length`` of its longest row, what padding goes by;
    ``priority`` 0 (best) to 3; ``tenant``: whoever fairness is between; ``deadline`` and
    ``arrived`` in the clock's seconds. The other fields are the plan's own.
    """

    item: T
    key: Hashable
    rows: int
    size: int
    length: int = 1
    priority: int = 1
    tenant: int = 0
    deadline: float = inf
    arrived: float = 0.0
    serial: int = field(default=0, init=False)
    lane: Lane[T] | None = field(default=None, init=False, repr=False)


class Flow:
    """One tenant's calls in a shelf, as (deadline, serial). ``start`` is its virtual start,
    ``count`` how many of the calls are still there."""

    __slots__ = ("calls", "count", "start")

    def __init__(self, start: int) -> None:
        self.calls: list[tuple[float, int]] = []
        self.count = 0
        self.start = start


class Shelf(Generic[T]):
    """One class of a lane. A tenant with nothing waiting is forgotten, and joins at the virtual
    time when it comes back: the most that this can bring it is to be first in each batch with one
    call."""

    __slots__ = ("_alive", "_flows", "_schedule", "_turns", "_virtual", "count")

    def __init__(self, alive: dict[int, Waiting[T]]) -> None:
        self._alive = alive
        self._flows: dict[int, Flow] = {}
        self._schedule: list[tuple[int, int, Flow]] = []
        self._turns = self._virtual = self.count = 0

    def put(self, waiting: Waiting[T]) -> None:
        flow = self._flows.get(waiting.tenant)
        if flow is None:
            flow = self._flows[waiting.tenant] = Flow(self._virtual)
            self._turns += 1
            heappush(self._schedule, (flow.start, self._turns, flow))
        heappush(flow.calls, (waiting.deadline, waiting.serial))
        flow.count += 1
        self.count += 1

    def head(self) -> Waiting[T]:
        """Whose turn it is; somebody must wait here."""
        schedule = self._schedule
        while not schedule[0][2].count:
            heappop(schedule)
        calls = schedule[0][2].calls
        while calls[0][1] not in self._alive:
            heappop(calls)
        return self._alive[calls[0][1]]

    def serve(self, waiting: Waiting[T]) -> None:
        """What ``head`` has just returned takes its turn; ``drop`` follows."""
        start, _, flow = self._schedule[0]
        self._virtual = start
        flow.start = start + waiting.rows
        self._turns += 1
        heapreplace(self._schedule, (flow.start, self._turns, flow))

    def drop(self, waiting: Waiting[T]) -> None:
        """The one way out; ``alive`` has it no more."""
        flow = self._flows[waiting.tenant]
        flow.count -= 1
        self.count -= 1
        if not flow.count:
            del self._flows[waiting.tenant]
            if len(self._schedule) > 2 * len(self._flows) + SLACK:
                self._schedule = [each for each in self._schedule if each[2].count]
                heapify(self._schedule)
        elif len(flow.calls) > 2 * flow.count + SLACK:
            sweep(flow.calls, self._alive)


class Line:
    """A key: its ``turn`` among keys, one further with each batch, and how many lanes it has."""

    __slots__ = ("key", "lanes", "turn")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.lanes = self.turn = 0


class Lane(Generic[T]):
    """The calls of one key and bucket. ``due``: when it should leave, infinite while it is empty;
    ``timer`` and ``entered``: where the plan has it on its lists; ``running``: batches of it in
    flight, with ``out`` calls in them; ``longest``: at least the longest length that waits."""

    __slots__ = ("_alive", "_latest", "bucket", "count", "due", "entered", "line", "longest",
                 "out", "pace", "rows", "running", "shelves", "size", "timer")  # fmt: skip

    def __init__(self, line: Line, bucket: int, pace: Pace, alive: dict[int, Waiting[T]]) -> None:
        self.line = line
        self.bucket = bucket
        self.pace = pace
        self.shelves: dict[int, Shelf[T]] = {}
        self.count = self.rows = self.size = self.longest = self.running = self.out = 0
        self.entered = 0
        self.due = self.timer = inf
        self._alive = alive
        self._latest: list[tuple[float, int]] = []

    def put(self, waiting: Waiting[T], latest: float) -> None:
        """``latest``: when it has to leave if a slot is free, in the clock's seconds."""
        shelf = self.shelves.get(waiting.priority)
        if shelf is None:
            shelf = self.shelves[waiting.priority] = Shelf(self._alive)
        shelf.put(waiting)
        heappush(self._latest, (latest, waiting.serial))
        self.count += 1
        self.rows += waiting.rows
        self.size += waiting.size
        self.longest = max(self.longest, waiting.length)

    def drop(self, waiting: Waiting[T]) -> None:
        """The one way out; ``alive`` has it no more."""
        shelf = self.shelves[waiting.priority]
        shelf.drop(waiting)
        if not shelf.count:
            del self.shelves[waiting.priority]
        self.count -= 1
        self.rows -= waiting.rows
        self.size -= waiting.size
        if not self.count:
            self.longest = 0
            self.due = inf
            self._latest.clear()
        elif len(self._latest) > 2 * self.count + SLACK:
            sweep(self._latest, self._alive)

    def best(self) -> int:
        """The best class that waits here; somebody must."""
        return min(self.shelves)

    def earliest(self) -> float:
        """When the first of those who wait has to leave; infinite if nobody waits."""
        latest = self._latest
        while latest and latest[0][1] not in self._alive:
            heappop(latest)
        return latest[0][0] if latest else inf


class Holder(Generic[T]):
    """What one tenant has waiting in one class, in order of arrival. ``noted``: an upper bound of
    ``rows``, the one that stands in ``Crowd._heavy``; -1 for none."""

    __slots__ = ("noted", "rows", "waiting")

    def __init__(self) -> None:
        self.waiting: OrderedDict[int, Waiting[T]] = OrderedDict()
        self.rows = 0
        self.noted = -1


class Crowd(Generic[T]):
    """Everybody of one class. ``_heavy`` is a max-heap of rows in which too high an entry is
    corrected when it comes to the top. ``served``: the number of its last turn."""

    __slots__ = ("_heavy", "_notes", "_order", "holders", "served")

    def __init__(self) -> None:
        self._order: OrderedDict[int, Waiting[T]] = OrderedDict()
        self.holders: dict[int, Holder[T]] = {}
        self._heavy: list[tuple[int, int, Holder[T]]] = []
        self._notes = self.served = 0

    def __len__(self) -> int:
        return len(self._order)

    def put(self, waiting: Waiting[T]) -> None:
        self._order[waiting.serial] = waiting
        holder = self.holders.get(waiting.tenant)
        if holder is None:
            holder = self.holders[waiting.tenant] = Holder()
        holder.waiting[waiting.serial] = waiting
        holder.rows += waiting.rows
        if holder.rows > holder.noted:
            self._note(holder)

    def drop(self, waiting: Waiting[T]) -> None:
        del self._order[waiting.serial]
        holder = self.holders[waiting.tenant]
        del holder.waiting[waiting.serial]
        holder.rows -= waiting.rows
        if not holder.waiting:
            holder.noted = -1
            del self.holders[waiting.tenant]
        if not self._order:
            self._heavy.clear()

    def oldest(self) -> Waiting[T]:
        """Who came first; somebody must wait."""
        return next(iter(self._order.values()))

    def heaviest(self) -> Holder[T]:
        """The tenant with the most rows; somebody must wait."""
        heavy = self._heavy
        while True:
            negative, number, holder = heavy[0]
            if holder.noted != -negative:
                heappop(heavy)
            elif holder.rows < holder.noted:
                holder.noted = holder.rows
                heapreplace(heavy, (-holder.rows, number, holder))
            else:
                return holder

    def _note(self, holder: Holder[T]) -> None:
        """Keep ``_heavy`` right after a tenant has more than it was noted with."""
        holder.noted = holder.rows
        self._notes += 1
        heappush(self._heavy, (-holder.rows, self._notes, holder))
        if len(self._heavy) > 2 * len(self.holders) + SLACK:
            for each in self.holders.values():
                each.noted = each.rows
            self._heavy = [(-each.rows, n, each) for n, each in enumerate(self.holders.values())]
            heapify(self._heavy)


def sweep(heap: list[tuple[float, int]], alive: dict[int, Waiting[T]]) -> None:
    """Take the numbers of the gone out of a heap."""
    heap[:] = [each for each in heap if each[1] in alive]
    heapify(heap)
