"""plan: who goes together, and when. Pure.

The coalescer (an asyncio edge) adds each call as it comes, asks ``take`` for batches until there is
none, and again at ``next_due`` and after each ``ended``. The questions, each with one answer:

- *Who may go together?* The calls of one lane: equal keys, one bucket of lengths, and where they
  are padded, rows of about one size (``lanes.py``).
- *Is a lane due?* When a batch of it is full, when waiting for more is not worth it, and at the
  latest ``max_delay`` after its oldest call came (``pacing.py``). Only if a slot is free; while
  none is, calls gather.
- *Which of the lanes that are due?* One with a call of the best class that waits; of these, keys
  take turns (``agenda.py``).
- *Who of the lane?* Best class first, in it fairly between tenants, of a tenant the earliest
  deadline, until the batch is full. A call that does not fit ends its class's part: it is the first
  of the next batch, so the large are not passed for ever. Where some numbers of rows are preferred,
  the largest that can be filled, unless somebody left out would then be late.
- *What of the lower classes?* A class of which somebody has waited for ``age`` seconds times its
  rank is overdue, and every ``TURNS``-th batch begins with an overdue class. As in the queue of
  admission: ageing by arrival would let a standing queue of a low class delay whatever is fresh in
  the best one.
- *Who has to go when the queue is full?* Of the lowest class, of the tenant with most rows in it,
  the newest; the newcomer in a tie.

Whoever is to go alone (quarantined, say) is added with a key that nobody else has.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Generic, TypeVar

from gpu_batcher.agenda import CLASSES, Agenda
from gpu_batcher.lanes import SLACK, Crowd, Lane, Lanes, Waiting, sweep

if TYPE_CHECKING:
    from gpu_batcher.pacing import Bounds

T = TypeVar("T")

TURNS = 8
"""Every how many batches one begins with an overdue class: an eighth of the service bounds what
ageing can take from the best class, also where everybody waits for long."""


@dataclass(slots=True, eq=False)
class Batch(Generic[T]):
    """Calls that go as one inference. Within all bounds, unless it has a single member.

    It holds its slot from ``take`` until ``ended``, which is to be called once, whatever becomes
    of it. ``length`` is the longest of its members, ``width`` the most bytes of a row; ``taken``
    and ``started`` are in the clock's seconds. ``full``: with a larger limit of rows it might have
    been larger.
    """

    key: Hashable
    members: list[Waiting[T]]
    rows: int
    size: int
    length: int
    taken: float
    full: bool
    lane: Lane[T] = field(repr=False)
    width: int = 0
    started: float | None = None
    running: bool = True


class Plan(Generic[T]):
    """The plan of one route. Each call is O(log n) amortised in those who wait and their lanes,
    ``take`` for each member; memory is O(n), besides the lanes that are remembered (``Lanes``)."""

    __slots__ = ("_agenda", "_alive", "_crowds", "_deadlines", "_lanes", "_lapsed", "_now",
                 "_preferred", "_running", "_serial", "_turn", "bounds")  # fmt: skip

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._preferred = sorted(bounds.preferred)
        self._alive: dict[int, Waiting[T]] = {}
        self._crowds: tuple[Crowd[T], ...] = tuple(Crowd() for _ in range(CLASSES))
        self._lanes: Lanes[T] = Lanes(bounds, self._alive)
        self._agenda: Agenda[T] = Agenda()
        self._deadlines: list[tuple[float, int]] = []  # the gone are swept out later
        self._lapsed: list[Waiting[T]] = []
        self._serial = self._turn = self._running = 0
        self._now = -inf

    # -- who waits -----------------------------------------------------------------------------

    def add(self, waiting: Waiting[T], now: float) -> Waiting[T] | None:
        """A call came. Returns who has to go for it: None while there is room, else somebody who
        is out of the plan already, or ``waiting`` itself, which then is not in."""
        self._now = now
        displaced = None
        if len(self._alive) >= self.bounds.max_waiting:
            self._lapse(now)
            if len(self._alive) >= self.bounds.max_waiting:
                displaced = self._worst(waiting)
                if displaced is waiting:
                    return waiting
                self._detach(displaced)
        self._serial += 1
        waiting.serial = self._serial
        waiting.lane = lane = self._lanes.find(waiting)
        lane.pace.arrived(now, lane.count + 1, lane.out)
        self._alive[waiting.serial] = waiting
        lane.put(waiting, lane.pace.latest(waiting.arrived, waiting.deadline))
        self._crowds[waiting.priority].put(waiting)
        if waiting.deadline < inf:
            heappush(self._deadlines, (waiting.deadline, waiting.serial))
        self._reckon(lane, now)
        self._lanes.forget(now)
        return displaced

    def remove(self, waiting: Waiting[T]) -> bool:
        """Its client left. False if it is not in the plan (any more), but in a batch, say."""
        if waiting.lane is not None:
            self._detach(waiting)
            return True
        if waiting in self._lapsed:  # nearly always empty
            self._lapsed.remove(waiting)
            return True
        return False

    def expire(self, now: float) -> list[Waiting[T]]:
        """Remove and return those with a deadline at or before ``now``, also those that ``add`` or
        ``take`` came across before: no batch has had them since."""
        self._lapse(now)
        gone, self._lapsed = self._lapsed, []
        return gone

    def clear(self) -> list[Waiting[T]]:
        """Remove and return all who wait."""
        gone = [*self._lapsed, *self._alive.values()]
        for waiting in list(self._alive.values()):
            self._detach(waiting)
        self._lapsed = []
        return gone

    def __len__(self) -> int:
        return len(self._alive)

    @property
    def in_flight(self) -> int:
        """Slots taken."""
        return self._running

    # -- when, and with whom -------------------------------------------------------------------

    def next_due(self, now: float) -> float | None:
        """When to ask ``expire`` and ``take`` again, in the clock's seconds, if nothing is called
        before: ``now`` if there is something to do at once, None if there will not be."""
        if self._lapsed:
            return now
        deadlines = self._deadlines
        while deadlines and deadlines[0][1] not in self._alive:
            heappop(deadlines)
        soonest = deadlines[0][0] if deadlines else inf
        if self._running < self.bounds.max_in_flight:
            self._agenda.wake(now)
            if self._agenda.first(now) is not None:
                return now
            soonest = min(soonest, self._agenda.soonest())
        return max(soonest, now) if soonest < inf else None

    def take(self, now: float) -> Batch[T] | None:
        """The next batch that is due, if a slot is free. Never has a member that has expired."""
        self._now = now
        if self._running >= self.bounds.max_in_flight:
            return None
        self._lapse(now)
        self._agenda.wake(now)
        first = self._agenda.first(now)
        if first is None:
            return None
        lane, lead = self._overdue(*first, now)
        self._serial += 1
        self._crowds[lead].served = self._serial
        self._agenda.served(lane)
        self._running += 1
        lane.running += 1
        batch = self._fill(lane, lead, now)
        lane.out += len(batch.members)
        lane.pace.taken(lane.count + lane.out)
        if lane.count:
            lane.due = inf
            self._reckon(lane, now)
        return batch

    def started(self, batch: Batch[T], now: float) -> None:
        """It was packed and sent."""
        batch.started = now

    def ended(self, batch: Batch[T], now: float, ok: bool) -> None:
        """Its slot is free again. ``ok``: it was answered as a whole, so its time says something
        about batches of its size."""
        assert batch.running, "a batch ends once"
        batch.running = False
        self._now = now
        lane = batch.lane
        self._running -= 1
        lane.running -= 1
        lane.pace.freed(now, lane.count, lane.out)
        lane.out -= len(batch.members)
        if ok and batch.started is not None:
            joined = len(batch.members) > 1
            lane.pace.ended(batch.rows, joined, batch.full, batch.started, now)
        if lane.count:  # while no slot was free it could not leave, and its callers may come again
            lane.due = inf
            self._reckon(lane, now)
        self._rest(lane)
        self._lanes.forget(now)

    def overfilled(self, batch: Batch[T]) -> None:
        """It failed, and all of its members passed in parts (``Bisection.blameless``)."""
        if len(batch.members) > 1:
            batch.lane.pace.overfilled(batch.rows)

    def overspent(self, batch: Batch[T]) -> None:
        """It failed, and for want of budget was not divided to the end (``Verdict.BUDGET``)."""
        if len(batch.members) > 1:
            batch.lane.pace.overspent(batch.rows)

    def describe(self) -> dict[str, object]:
        """For the admin page. O(lanes)."""
        lanes = self._lanes
        return {
            "waiting": len(self._alive),
            "by_class": [len(crowd) for crowd in self._crowds],
            "rows": sum(lane.rows for lane in lanes),
            "lanes": len(lanes) - lanes.idle,
            "in_flight": self._running,
            "smallest_limit": min((lane.pace.rows() for lane in lanes), default=None),
        }

    # -- a lane, and a batch of it -------------------------------------------------------------

    def _reckon(self, lane: Lane[T], now: float) -> None:
        """When is it due? What is due stays so, whoever comes later, until a batch of its leaves or
        ends."""
        bounds = self.bounds
        if lane.due > now:
            if (
                lane.rows >= lane.pace.rows()
                or lane.count >= bounds.max_items
                or lane.size >= bounds.max_bytes
                or lane.rows * lane.longest >= bounds.max_padded
                or lane.rows * lane.width >= bounds.max_padded_bytes
            ):
                lane.due = now
            else:
                lane.due = lane.pace.due(now, lane.count, lane.out, lane.earliest())
        self._agenda.note(lane, now)

    def _overdue(self, lane: Lane[T], best: int, now: float) -> tuple[Lane[T], int]:
        """Instead of the lane whose turn it is and its class, every now and then another one: of
        the overdue classes below, the one not served for longest."""
        self._turn += 1
        if self._turn < TURNS:
            return lane, best
        found = None
        for rank in range(best + 1, CLASSES):
            crowd = self._crowds[rank]
            if not crowd or crowd.oldest().arrived + rank * self.bounds.age > now:
                continue
            if found is None or crowd.served < self._crowds[found].served:
                found = rank
        if found is None:
            return lane, best
        self._turn = 0
        oldest = self._crowds[found].oldest().lane
        assert oldest is not None
        return oldest, found

    def _fill(self, lane: Lane[T], lead: int, now: float) -> Batch[T]:
        most = lane.pace.rows()
        goal = self._goal(min(lane.rows, most))
        batch: Batch[T] = Batch(lane.line.key, [], 0, 0, 0, now, lane.rows >= most, lane)
        for rank in sorted(lane.shelves, key=lambda rank: (rank != lead, rank)):
            shelf = lane.shelves[rank]
            while shelf.count:
                waiting = shelf.head()
                if not self._fits(batch, waiting, goal):
                    if goal == most or lane.earliest() > now:
                        break
                    goal = most  # somebody left out would be late
                    continue
                shelf.serve(waiting)
                self._detach(waiting)
                batch.members.append(waiting)
                batch.rows += waiting.rows
                batch.size += waiting.size
                batch.length = max(batch.length, waiting.length)
                batch.width = max(batch.width, waiting.width)
        return batch

    def _goal(self, rows: int) -> int:
        """The largest preferred number up to ``rows``, or ``rows`` if none is so small."""
        place = bisect_right(self._preferred, rows)
        return self._preferred[place - 1] if place else rows

    def _fits(self, batch: Batch[T], waiting: Waiting[T], most: int) -> bool:
        """The first one always does: it goes alone if it is too large."""
        bounds, rows = self.bounds, batch.rows + waiting.rows
        return not batch.members or (
            rows <= most
            and len(batch.members) < bounds.max_items
            and batch.size + waiting.size <= bounds.max_bytes
            and rows * max(batch.length, waiting.length) <= bounds.max_padded
            and rows * max(batch.width, waiting.width) <= bounds.max_padded_bytes
        )

    # -- ways out ------------------------------------------------------------------------------

    def _worst(self, newcomer: Waiting[T]) -> Waiting[T]:
        """Who of all, ``newcomer`` included, has to go. A tie is the newcomer's loss."""
        if not self._alive:
            return newcomer
        rank = next(rank for rank in reversed(range(CLASSES)) if self._crowds[rank])
        if newcomer.priority > rank:
            return newcomer
        holder = self._crowds[rank].heaviest()
        if newcomer.priority == rank:
            own = self._crowds[rank].holders.get(newcomer.tenant)
            if (own.rows if own is not None else 0) + newcomer.rows >= holder.rows:
                return newcomer
        return next(reversed(holder.waiting.values()))

    def _lapse(self, now: float) -> None:
        """Take out whoever has expired."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            waiting = self._alive.get(heappop(deadlines)[1])
            if waiting is not None:
                self._detach(waiting)
                self._lapsed.append(waiting)

    def _detach(self, waiting: Waiting[T]) -> None:
        """The one way out."""
        lane = waiting.lane
        assert lane is not None
        del self._alive[waiting.serial]
        lane.drop(waiting)
        self._crowds[waiting.priority].drop(waiting)
        waiting.lane = None
        self._rest(lane)
        if not self._alive:
            self._deadlines.clear()
            self._agenda.clear()
        elif len(self._deadlines) > 2 * len(self._alive) + SLACK:
            sweep(self._deadlines, self._alive)

    def _rest(self, lane: Lane[T]) -> None:
        """Remember a lane for a while after its last call."""
        if not lane.count and not lane.running:
            self._lanes.rest(lane, self._now)
            self._agenda.tidy()
