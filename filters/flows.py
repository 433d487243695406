"""The waiters of one class: whose turn it is among its tenants, and who holds most of it.

The queue (``filters/queueing.py``) asks; each answer is O(log tenants) amortised.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from filters.queueing import Waiter

T = TypeVar("T")

SLACK = 64
"""Entries of waiters or tenants that are gone, beyond as many as there are live ones, before
they are swept out: sweeping then costs O(1) for each entry."""


class Flow(Generic[T]):
    """The waiters of one tenant in one class, oldest first, as a linked list: both ends and the
    middle can go in O(1). ``start`` is its virtual start, ``backlog`` the cost that waits,
    ``noted`` an upper bound of it: the one that stands in ``Level.heavy``, -1 for none."""

    __slots__ = ("backlog", "first", "last", "level", "noted", "start", "tenant")

    def __init__(self, level: Level[T], tenant: int) -> None:
        self.level = level
        self.tenant = tenant
        self.start = level.virtual
        self.backlog = 0.0
        self.noted = -1.0
        self.first: Waiter[T] | None = None
        self.last: Waiter[T] | None = None


class Level(Generic[T]):
    """One class. ``order`` has its waiters by arrival; ``flows`` its tenants, each with one entry
    in ``schedule``; for ``busy`` of them somebody waits, the others are absent. ``heavy`` is a
    max-heap of backlogs in which too high an entry is corrected when it comes to the top.
    ``served`` numbers the last turn of this class, ``virtual`` is its virtual time."""

    __slots__ = ("busy", "flows", "heavy", "notes", "order", "rank", "schedule", "served",
                 "virtual")  # fmt: skip

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.served = self.busy = self.notes = 0
        self.virtual = 0.0
        self.order: OrderedDict[Waiter[T], None] = OrderedDict()
        self.flows: dict[int, Flow[T]] = {}
        self.schedule: list[tuple[float, int, Flow[T]]] = []
        self.heavy: list[tuple[float, int, Flow[T]]] = []

    def oldest(self) -> float:
        """When who waits longest arrived; somebody must wait here."""
        return next(iter(self.order)).arrived

    def next_flow(self) -> Flow[T]:
        """The tenant whose turn it is; somebody must wait here. Virtual time is its start from
        now on; absent tenants that it has passed are forgotten."""
        schedule = self.schedule
        start, _, flow = schedule[0]
        while flow.first is None:
            heappop(schedule)
            del self.flows[flow.tenant]
            start, _, flow = schedule[0]
        if start > self.virtual:
            self.virtual = start
        return flow

    def heaviest(self) -> Flow[T]:
        """The tenant with the largest backlog; somebody must wait here."""
        heavy = self.heavy
        while True:
            negative, serial, flow = heavy[0]
            if flow.noted != -negative:
                heappop(heavy)
            elif flow.backlog < flow.noted:
                flow.noted = flow.backlog
                heapreplace(heavy, (-flow.backlog, serial, flow))
            else:
                return flow

    def note(self, flow: Flow[T]) -> None:
        """Keep ``heavy`` right after a backlog has grown above what it was noted with."""
        flow.noted = flow.backlog
        self.notes += 1
        heappush(self.heavy, (-flow.backlog, self.notes, flow))
        if len(self.heavy) > 2 * self.busy + SLACK:
            self._sweep_heavy()

    def left(self, flow: Flow[T]) -> None:
        """A tenant has nobody waiting any more."""
        flow.backlog = 0.0  # so no rounding error lasts
        flow.noted = -1.0
        self.busy -= 1
        if not self.order:
            self.flows.clear()
            self.schedule.clear()
            self.heavy.clear()
            self.virtual = 0.0
            return
        if len(self.heavy) > 2 * self.busy + SLACK:
            self._sweep_heavy()
        if len(self.flows) > 2 * self.busy + SLACK:
            self._forget()

    def _sweep_heavy(self) -> None:
        waiting = [flow for flow in self.flows.values() if flow.first is not None]
        for flow in waiting:
            flow.noted = flow.backlog
        self.heavy = [(-flow.backlog, number, flow) for number, flow in enumerate(waiting)]
        heapify(self.heavy)

    def _forget(self) -> None:
        """Too many absent tenants are remembered: virtual time moves past all of them. So none
        of them gains, and newcomers join at the end of the round for once."""
        absent = [flow for flow in self.flows.values() if flow.first is None]
        self.virtual = max(self.virtual, max(flow.start for flow in absent))
        for flow in absent:
            del self.flows[flow.tenant]
        self.schedule = [each for each in self.schedule if each[2].first is not None]
        heapify(self.schedule)
