"""pacing: how long a lane may wait for company, and how large its batches may be. Pure.

**Waiting.** While every slot in flight is taken, waiting costs nothing, and what gathers meanwhile
is the natural batch. Only while a slot is free is there something to decide: those who wait could
leave at once. Nobody waits beyond the latest moment that it may leave; before that,

1. One more arrival is worth waiting for while delaying the ``m`` who are here by the expected gap
   ``g`` until it comes costs less than it saves; one that misses its batch waits for a slot for
   about half the time that a batch takes, so the rule is ``m * g < latency / 2``. It stops by
   itself once enough have gathered, and it never starts where traffic is sparse.
2. Nobody more is expected than were there at once (waiting or in flight) since the batch before the
   last one. So a single client never waits, however its answers' times vary, and a crowd of clients
   that ask again after each answer leaves when its last one is here.
3. A sliver, with fewer calls than half an even share of the slots, waits for what is in flight:
   otherwise small batches and large ones alternate for ever, because whoever was answered in a
   small one comes again alone. A server that works at one batch at a time loses nothing by this;
   one that works at several, at most ``max_delay`` of one slot.
4. Otherwise the wait is for ``PATIENCE`` gaps, from the last arrival or from the end of the last
   batch, whose callers may come again.

While all who are around are in flight, nobody can come: such silence is no gap.

**Size.** AIMD on the time of a batch (Crankshaw et al., "Clipper", NSDI 2017): one row more after
a good batch that was full, a tenth less after a late one. In between lies a band in which nothing
changes, because without it the limit climbs until a batch is late, again and again, and near the
limit every few batches would be. A fitted line ``a + b * rows`` (BentoML's CORK) was left out: with
several batches in flight the time of one contains the rest of another, and where batches are
all of one size, their number of rows says nothing about ``b``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

UNBOUNDED = 1 << 62
WEIGHT = 0.25
"""Of the newest gap and of the newest batch time in their averages: eight arrivals into a burst, a
tenth of the average is still from before it."""
WORTH = 0.5
"""Of a batch's time: what an arrival saves that just does not miss its batch."""
PATIENCE = 2.0
"""Gaps: of arrivals at random (Poisson), seven in eight come within two mean gaps."""
LEAST = 2e-4
"""Seconds: the shortest patience. An event loop hands over what came at the same time one by one,
and their gaps are its own time for each; and a client needs that long to ask again."""
SPARSE = 4.0
"""Silence of so many times the longer of ``max_delay`` and a batch is no part of the traffic before
it; with nothing in flight, of once that time. Shorter ones are: clients that wait for the answers
of one batch are silent for as long."""
SLIVER = 0.5
"""Of an even share of the slots: a batch with fewer calls than that waits for what is in flight."""
GOOD = 0.8
"""Of the target: a batch that took no longer may have been larger. Up to the target itself nothing
changes."""
SHRINK = 0.9


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a route allows. Times in seconds, sizes in bytes, all at least 0.

    ``max_rows``, ``max_items``, ``max_bytes``, ``max_padded``: of one batch; padded tokens are its
    longest length times its rows. ``max_padded_bytes``: where rows are padded, the bytes of the
    widest one, with ``mask_bytes`` for each unit of its length, times the rows; then rows of very
    different width also share no batch (``lanes.py``). Only a call that is larger by itself exceeds
    these, alone.
    ``max_delay``: how long one waits for company while a slot is free. ``target``: what a batch may
    take. ``max_in_flight``: slots. ``max_waiting``: calls in the queue. ``preferred``: numbers of
    rows at which the server is at its best. ``buckets``: upper bounds of lengths; calls of
    different buckets share no batch; lengths beyond the last are one more bucket. ``age``: how long
    a class waits for each rank below the best before a turn is kept for it.
    """

    max_rows: int = 64
    max_items: int = UNBOUNDED
    max_bytes: int = 8 << 20
    max_padded: int = UNBOUNDED
    max_padded_bytes: int = UNBOUNDED
    mask_bytes: int = 0
    max_delay: float = 0.005
    target: float = 0.05
    max_in_flight: int = 2
    max_waiting: int = 1024
    preferred: tuple[int, ...] = ()
    buckets: tuple[int, ...] = ()
    age: float = 1.0


class Pace:
    """What one lane has learned: the ``gap`` between arrivals, the ``latency`` of a batch (both
    moving averages in seconds; no latency yet: 0), and the ``limit`` of rows (at least 1). Every
    call is O(1)."""

    __slots__ = ("_around", "_before", "_bounds", "_failed", "_freed", "_resumed", "_shrunk", "gap",
                 "last", "latency", "limit")  # fmt: skip

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._shrunk = -inf
        self._failed: float = inf  # rows of a batch that failed without a culprit
        self._around = self._before = 0  # most calls at once, since the last batch and before it
        self._freed = self._resumed = -inf
        self.gap = inf
        self.last = -inf
        self.latency = 0.0
        self.limit = float(max(1, bounds.max_rows))

    def arrived(self, now: float, waiting: int, out: int) -> None:
        """A call came; with it, ``waiting`` wait and ``out`` are in flight. Nothing is learned of
        gaps before a batch's time is known: how large one is depends on it."""
        self._around = max(self._around, waiting + out)
        since, self.last = now - max(self.last, self._resumed), now
        if not self.latency:
            return
        sparse = max(self._bounds.max_delay, self.latency)
        if since > SPARSE * sparse or (not out and since > sparse):
            self.gap = sparse
        else:
            gap = min(self.gap, sparse)
            self.gap = gap + WEIGHT * (min(since, sparse) - gap)

    def taken(self, around: int) -> None:
        """A batch leaves; with it, ``around`` calls wait or are in flight."""
        self._before, self._around = self._around, around

    def freed(self, now: float, waiting: int, out: int) -> None:
        """A batch is over, whatever became of it; with it, ``out`` were in flight. Its callers may
        come again; and if nobody else was around, the silence before says nothing of gaps."""
        self._freed = now
        if waiting + out >= self._crowd():
            self._resumed = now

    def _crowd(self) -> int:
        """How many calls there were at once of late."""
        return max(self._around, self._before)

    def due(self, now: float, waiting: int, out: int, latest: float) -> float:
        """When ``waiting`` calls should leave while ``out`` are in flight, in the clock's seconds:
        ``now``, or until when the next arrival is worth waiting for. Never after ``latest``, unless
        that has passed."""
        gap = self.gap
        if waiting * gap >= WORTH * self.latency or now + gap >= latest:
            return now
        if waiting * (self._bounds.max_in_flight - 1) < SLIVER * out:
            return latest
        if waiting + out >= self._crowd():
            return now
        since = max(self.last, self._freed)
        return max(now, min(latest, since + max(PATIENCE * gap, LEAST)))

    def latest(self, arrived: float, deadline: float) -> float:
        """Until when a call may wait for company: its delay, and what its deadline leaves."""
        return min(arrived + self._bounds.max_delay, deadline - self.latency)

    def rows(self) -> int:
        """The rows that a batch may have, from 1 to ``max_rows``."""
        return int(self.limit)

    def ended(self, rows: int, joined: bool, full: bool, started: float, now: float) -> None:
        """A batch was answered. ``joined``: of several calls, so a smaller limit would have made
        it smaller; ``full``: a larger limit would have made it larger.

        Of the batches that were in flight together only the first to be late shrinks the limit:
        the others were as large for the same reason.
        """
        took = now - started
        self.latency += (took - self.latency) * (WEIGHT if self.latency else 1.0)
        if rows >= self._failed:
            self._failed = inf
        if took > self._bounds.target:
            if joined and started >= self._shrunk:
                self.limit = max(1.0, self.limit * SHRINK)
                self._shrunk = now
        elif full and took <= GOOD * self._bounds.target:
            self.limit = min(float(max(1, self._bounds.max_rows)), self.limit + 1.0)

    def overfilled(self, rows: int) -> None:
        """A batch failed that none of its members is to blame for: they passed in parts. Once may
        be chance; but if this happens again before as large a batch has passed, it is too large for
        the server. The limit halves, because each further failure costs all its members time."""
        if rows >= self._failed:
            self.limit = max(1.0, min(self.limit, rows / 2))
            self._failed = inf
        else:
            self._failed = rows

    def overspent(self, rows: int) -> None:
        """The budget did not reach to find out who of a batch was to blame, so innocent ones were
        refused: the next ones are half as large, which costs inferences but refuses fewer."""
        self.limit = max(1.0, min(self.limit, rows / 2))
