"""lanes: those who wait, in the order in which they leave. Pure.

A *lane* has the calls that may share a batch: one key, one bucket of lengths, and where calls are
padded, one class of *width* (bytes of a row): all rows become as wide as the widest, and a batch
with one long row among many short ones would be nearly all padding. So what is padded is at most
``RATIO`` times what was there, or ``ROOM`` for a full batch. In it, a *shelf*
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

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from math import inf
from sys import getsizeof
from typing import Generic, TypeVar

from gpu_batcher.pacing import UNBOUNDED, Bounds, Pace

T = TypeVar("T")

SLACK = 64
"""Numbers of the gone, beyond as many as of the living, before they are swept out: sweeping then
costs O(1) for each."""
ROOM = 1 << 20
"""Bytes of a full batch up to which nobody is kept apart for the width of its rows: packing and
sending them takes less time than another inference does."""
RATIO = 4
"""Between the widest and the narrowest rows of a class."""
IDLE = 60.0
"""Seconds that a lane without calls is remembered, for what it has learned of its pace."""
MOST_IDLE = 1024
"""And how many such lanes: keys come from clients, who may invent them."""
IDLE_BYTES = 2 << 20
"""And for how many bytes of their keys, the lanes themselves (1 KB or so) not counted."""
LARGE = 16 << 10
"""Bytes of a key that is forgotten with its lane's last call, so that a few of them cannot drive
all others out."""


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """Somebody's place in the plan, which never looks into ``item``. To be added once.

    ``rows`` at least 1; ``size`` in bytes; ``length`` of its longest row, what padding goes by;
    ``priority`` 0 (best) to 3; ``tenant``: whoever fairness is between; ``deadline`` and
    ``arrived`` in the clock's seconds. The other fields are the plan's own; ``width``: bytes of
    each of its rows, with their mask.
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
    width: int = field(default=0, init=False)
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
    """A key: its ``turn`` among keys, one further with each batch, how many lanes it has, and about
    how many bytes (``weight``)."""

    __slots__ = ("key", "lanes", "turn", "weight")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.lanes = self.turn = 0
        self.weight = weight(key)


class Lane(Generic[T]):
    """The calls of one key and bucket. ``due``: when it should leave, infinite while it is empty;
    ``timer`` and ``entered``: where the plan has it on its lists; ``running``: batches of it in
    flight, with ``out`` calls in them; ``longest`` and ``width``: at least the longest length and
    the widest rows that wait."""

    __slots__ = ("_alive", "_latest", "bucket", "count", "due", "entered", "line", "longest",
                 "out", "pace", "rows", "running", "shelves", "size", "timer", "width")  # fmt: skip

    def __init__(self, line: Line, bucket: int, pace: Pace, alive: dict[int, Waiting[T]]) -> None:
        self.line = line
        self.bucket = bucket
        self.pace = pace
        self.shelves: dict[int, Shelf[T]] = {}
        self.count = self.rows = self.size = self.longest = self.running = self.out = 0
        self.entered = self.width = 0
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
        self.width = max(self.width, waiting.width)

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
            self.longest = self.width = 0
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


class Lanes(Generic[T]):
    """All lanes of a plan: those with calls, and for a while the others, in bounded memory whatever
    keys clients make up. ``find`` hashes the key; of a new one it also adds up the bytes."""

    __slots__ = ("_alive", "_bounds", "_buckets", "_idle", "_idle_bytes", "_lanes", "_lines",
                 "_padded")  # fmt: skip

    def __init__(self, bounds: Bounds, alive: dict[int, Waiting[T]]) -> None:
        self._bounds = bounds
        self._buckets = sorted(bounds.buckets)
        self._padded = bounds.max_padded_bytes < UNBOUNDED
        self._alive = alive
        self._lines: dict[Hashable, Line] = {}
        self._lanes: dict[tuple[Hashable, int], Lane[T]] = {}
        self._idle: OrderedDict[Lane[T], float] = OrderedDict()
        self._idle_bytes = 0

    def __len__(self) -> int:
        return len(self._lanes)

    def __iter__(self) -> Iterator[Lane[T]]:
        return iter(self._lanes.values())

    @property
    def idle(self) -> int:
        """Lanes without calls."""
        return len(self._idle)

    def find(self, waiting: Waiting[T]) -> Lane[T]:
        """Its lane, which is not idle any more."""
        bucket = bisect_left(self._buckets, waiting.length)
        if self._padded:
            masks = self._bounds.mask_bytes * waiting.length
            waiting.width = masks - (-waiting.size // waiting.rows)
            bucket += (len(self._buckets) + 1) * self._class(waiting.width)
        lane = self._lanes.get((waiting.key, bucket))
        if lane is None:
            line = self._lines.get(waiting.key)
            if line is None:
                line = self._lines[waiting.key] = Line(waiting.key)
            line.lanes += 1
            lane = Lane(line, bucket, Pace(self._bounds), self._alive)
            self._lanes[line.key, bucket] = lane
        elif self._idle.pop(lane, None) is not None:
            self._idle_bytes -= lane.line.weight
        return lane

    def _class(self, width: int) -> int:
        """0 up to where a full batch is ``ROOM``, then one more for each factor of ``RATIO``."""
        full = width * max(1, self._bounds.max_rows) // ROOM
        return (full.bit_length() + 1) // (RATIO.bit_length() - 1)

    def rest(self, lane: Lane[T], now: float) -> None:
        """It has no calls any more, neither waiting nor in flight."""
        if self._idle.pop(lane, None) is None:
            self._idle_bytes += lane.line.weight
        self._idle[lane] = now
        if lane.line.weight > LARGE:
            self._drop(lane)
        while len(self._idle) > MOST_IDLE or self._idle_bytes > IDLE_BYTES:
            self._drop(next(iter(self._idle)))

    def forget(self, now: float) -> None:
        """Lanes that were idle for long."""
        while self._idle:
            lane, since = next(iter(self._idle.items()))
            if now - since < IDLE:
                return
            self._drop(lane)

    def _drop(self, lane: Lane[T]) -> None:
        line = lane.line
        del self._idle[lane]
        self._idle_bytes -= line.weight
        del self._lanes[line.key, lane.bucket]
        line.lanes -= 1
        if not line.lanes:
            del self._lines[line.key]
            line.key = None  # the agenda may have the lane on a list for a while yet


def weight(key: object) -> int:
    """About how many bytes a key holds. O(its parts), not its bytes."""
    total, parts = 0, [key]
    while parts:
        part = parts.pop()
        if isinstance(part, tuple | frozenset):
            total += 56 + 8 * len(part)
            parts.extend(part)
        else:
            total += getsizeof(part)
    return total


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
