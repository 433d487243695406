"""queueing: who waits for a permit, who is next, and who has to go when there is no room.

A bounded queue in three questions, each with one answer:

- *Which class?* The best one that waits. A class of which somebody has waited for ``level`` times
  ``AGE`` is overdue, and one turn in ``TURNS`` goes to an overdue class, so that none starves.
  (The usual rule, order by arrival plus a delay per class, fails both ways: oldest first, a
  standing queue of a low class delays whatever is fresh in the best one for as long as it
  stands; newest first, whoever is next is fresh in every class, and the low ones starve.)
- *Which tenant of it?* Start-time fair queueing (Goyal, Vin, Cheng 1996) with the cost as length:
  each tenant has a virtual start, the lowest is served and moves on by the cost served. Over any
  time in which two tenants wait, what they get differs by at most their two largest costs. A
  tenant with nobody waiting is remembered until virtual time has passed it, because forgetting
  it at once would let one that comes back after each answer be first every time.
- *Which of the tenant's?* The oldest; the newest when the caller says so (adaptive LIFO: in a
  queue that stands rather than drains, the oldest has nearly timed out anyway; Maurer, "Fail at
  Scale", 2015).

Who has to go is the mirror image: the lowest class, in it the tenant with the largest backlog.
So a tenant that floods takes places from nobody who holds fewer than it does, and a class none
from a better one.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, Generic, TypeVar

from filters.flows import SLACK, Flow, Level

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

LEVELS = 4
AGE = 2.5
"""Seconds per level after which a class is overdue: a quarter of the default queue timeout, so
that the lowest class is overdue at 7.5 s, while its waiters still have a quarter of their time."""
TURNS = 8
"""Every how many turns an overdue class has one: an eighth of the service bounds what ageing can
take from the best class, also where service is so slow that whoever is served is overdue."""


class Waiter(Generic[T]):
    """Somebody's place in the queue. The queue never looks into ``item``.

    ``level`` is the class, 0 (best) to 3; ``tenant`` whoever fairness is between; ``cost`` what a
    permit for it takes, above 0; ``arrived`` and ``expires`` are the clock's seconds. A waiter is
    pushed once. The other fields are the queue's own.
    """

    __slots__ = (
        "after", "arrived", "before", "cost", "expires", "flow", "item", "level", "tenant",
    )  # fmt: skip

    def __init__(
        self, item: T, level: int, tenant: int, cost: float, arrived: float, expires: float
    ) -> None:
        self.item = item
        self.level = level
        self.tenant = tenant
        self.cost = cost
        self.arrived = arrived
        self.expires = expires
        self.flow: Flow[T] | None = None  # where it waits; None before and after
        self.before: Waiter[T] | None = None
        self.after: Waiter[T] | None = None


class FairQueue(Generic[T]):
    """The queue in front of a limit. ``size`` bounds who waits, 0 means nobody may; it may be
    changed at any time: shrinking sends nobody away at once, but lets nobody else in.

    ``age`` is ``AGE``, or a quarter of another queue timeout, in seconds.

    Each call is O(log n) amortised in waiters and tenants unless it says otherwise; memory is
    O(n) in those who wait now. CPU of ``push`` and ``pop`` together, with 1,000 waiting: 1.6 us
    if they are of one tenant, 2.5 us if of a thousand; a refused ``push`` 0.7 us
    (``python -m loadtests.policy_cost``).
    """

    __slots__ = ("_cost", "_count", "_deadlines", "_lapsed", "_levels", "_serial", "_turn",
                 "age", "size")  # fmt: skip

    def __init__(self, size: int, age: float = AGE) -> None:
        self.size = size
        self.age = age
        self._levels: tuple[Level[T], ...] = tuple(Level(rank) for rank in range(LEVELS))
        self._deadlines: list[tuple[float, int, Waiter[T]]] = []  # the gone are swept out later
        self._lapsed: list[Waiter[T]] = []
        self._serial = self._turn = self._count = 0
        self._cost = 0.0

    def push(self, waiter: Waiter[T], now: float, newest: bool = False) -> Waiter[T] | None:
        """Take a place. Returns who has to go for it: None while there is room, else somebody
        displaced, who is out of the queue already, or ``waiter`` itself, which then is not in.

        Of the tenant that has to give a place, the newest goes, which in FIFO order is served
        last. With ``newest`` (pass what ``pop`` gets) it is the oldest."""
        displaced = None
        if self._count >= self.size:
            self._lapse(now)
            if self._count >= self.size:
                displaced = self._worst(waiter, newest)
                if displaced is waiter:
                    return waiter
                self._detach(displaced)
        level = self._levels[waiter.level]
        self._serial = serial = self._serial + 1
        flow = level.flows.get(waiter.tenant)
        if flow is None:
            flow = level.flows[waiter.tenant] = Flow(level, waiter.tenant)
            heappush(level.schedule, (flow.start, serial, flow))
        last = flow.last
        if last is None:
            flow.first = waiter
            level.busy += 1
        else:
            last.after = waiter
            waiter.before = last
        flow.last = waiter
        waiter.flow = flow
        flow.backlog += waiter.cost
        if flow.backlog > flow.noted:
            level.note(flow)
        level.order[waiter] = None
        self._count += 1
        self._cost += waiter.cost
        heappush(self._deadlines, (waiter.expires, serial, waiter))
        return displaced

    def pop(self, now: float, room: float, newest: bool) -> Waiter[T] | None:
        """Who is served next, removed. None if nobody waits, or if the next one costs more than
        ``room``: nobody passes it, or the expensive would starve. So a cost above what the room
        can ever be blocks the queue until it expires; the caller bounds costs by the limit.

        Never hands out a waiter that has expired: ``expire`` reports it."""
        if self._deadlines and self._deadlines[0][0] <= now:
            self._lapse(now)
        if not self._count:
            return None
        for level in self._levels:
            if level.order:
                break
        turn = self._turn + 1
        if turn >= TURNS and len(level.order) < self._count:
            overdue = self._overdue(level, now)
            if overdue is not None:
                level, turn = overdue, 0
        flow = level.next_flow()
        waiter = flow.last if newest else flow.first
        assert waiter is not None
        if waiter.cost > room:
            return None
        self._turn = turn
        self._serial = level.served = serial = self._serial + 1
        flow.start = start = flow.start + waiter.cost
        heapreplace(level.schedule, (start, serial, flow))
        self._detach(waiter)
        return waiter

    def remove(self, waiter: Waiter[T]) -> bool:
        """Give a place up: its client left. False if it is not in the queue (any more). O(1)."""
        if waiter.flow is not None:
            self._detach(waiter)
            return True
        if waiter in self._lapsed:  # nearly always empty
            self._lapsed.remove(waiter)
            return True
        return False

    def expire(self, now: float) -> list[Waiter[T]]:
        """Remove and return those with ``expires`` at or before ``now``, also those that ``push``,
        ``pop`` or ``trim`` came across before: they held no place and counted no more."""
        self._lapse(now)
        gone, self._lapsed = self._lapsed, []
        return gone

    def next_expiry(self) -> float | None:
        """When ``expire`` has something to report, in the clock's seconds; None without waiters."""
        if self._lapsed:
            return self._lapsed[0].expires
        deadlines = self._deadlines
        while deadlines and deadlines[0][2].flow is None:
            heappop(deadlines)
        return deadlines[0][0] if deadlines else None

    def trim(
        self, keep: int, now: float, spare: Callable[[int, int], bool] | None = None
    ) -> list[Waiter[T]]:
        """Push out, worst first, until at most ``keep`` wait: of the lowest class, of its tenant
        with the largest backlog, the oldest. It ends early when that class and tenant are to be
        spared. For a standing queue, served newest first: the
        oldest are those of least use. O(log n) for each that goes."""
        self._lapse(now)
        gone: list[Waiter[T]] = []
        while self._count > max(keep, 0):
            waiter = self._lowest().heaviest().first
            assert waiter is not None
            if spare is not None and spare(waiter.level, waiter.tenant):
                break
            self._detach(waiter)
            gone.append(waiter)
        return gone

    def __len__(self) -> int:
        return self._count

    def cost(self) -> float:
        """Of all who wait."""
        return self._cost

    def by_level(self) -> tuple[int, int, int, int]:
        """How many wait in each class, the best first."""
        a, b, c, d = self._levels
        return len(a.order), len(b.order), len(c.order), len(d.order)

    def oldest(self) -> float | None:
        """When who waits longest arrived, or None. O(1)."""
        return min((level.oldest() for level in self._levels if level.order), default=None)

    def tenants(self) -> int:
        """How many tenants wait, one in two classes counted twice. O(1)."""
        return sum(level.busy for level in self._levels)

    def _overdue(self, best: Level[T], now: float) -> Level[T] | None:
        """Of the overdue classes below ``best``, the one not served for longest."""
        found = None
        for level in self._levels[best.rank + 1 :]:
            if not level.order or level.oldest() + level.rank * self.age > now:
                continue
            if found is None or level.served < found.served:
                found = level
        return found

    def _lowest(self) -> Level[T]:
        return next(level for level in reversed(self._levels) if level.order)

    def _worst(self, newcomer: Waiter[T], newest: bool) -> Waiter[T]:
        """Who of all, ``newcomer`` included, has to go. A tie is the newcomer's loss."""
        if not self._count:
            return newcomer
        level = self._lowest()
        if newcomer.level > level.rank:
            return newcomer
        flow = level.heaviest()
        if newcomer.level == level.rank:
            own = level.flows.get(newcomer.tenant)
            held = own.backlog if own is not None else 0.0
            if held + newcomer.cost >= flow.backlog:
                return own.first if newest and own is not None and own.first else newcomer
        worst = flow.first if newest else flow.last
        assert worst is not None
        return worst

    def _lapse(self, now: float) -> None:
        """Take out whoever has expired."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            waiter = heappop(deadlines)[2]
            if waiter.flow is not None:
                self._detach(waiter)
                self._lapsed.append(waiter)

    def _detach(self, waiter: Waiter[T]) -> None:
        """The one way out. Its entry in ``_deadlines`` stays until it is swept out."""
        flow = waiter.flow
        assert flow is not None
        before, after = waiter.before, waiter.after
        if before is None:
            flow.first = after
        else:
            before.after = after
        if after is None:
            flow.last = before
        else:
            after.before = before
        waiter.flow = waiter.before = waiter.after = None
        del flow.level.order[waiter]
        self._count -= 1
        self._cost -= waiter.cost
        if flow.first is not None:
            flow.backlog -= waiter.cost
        else:
            flow.level.left(flow)
        deadlines = self._deadlines
        if not self._count:
            deadlines.clear()
            self._cost = 0.0  # so no rounding error lasts
        elif len(deadlines) > 2 * self._count + SLACK:
            deadlines[:] = [each for each in deadlines if each[2].flow is not None]
            heapify(deadlines)
