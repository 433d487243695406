"""push_back: what the upstream's refusals (429, 503 with Retry-After) say about the limit. Pure.

They lower it at once, but they are not believed blindly, and never for long:

- A refusal with nothing else in flight says nothing about concurrency, so it lowers nothing.
- Each lowering needs a good answer since the one before: a server that refuses everything is not
  full but unwell, or still loading.
- If less in flight does not make refusals rarer (they may be about one tenant's quota), the limit
  of before comes back, and push-back is not believed for a while.
- While somebody waits and no refusal comes, the limit grows again by steps that double, as TCP's
  slow start (Jacobson 1988), and by time alone: where answers take a minute, or an idle moment's
  refusals left a limit of 1, answers would teach it too late. A step that is refused again is taken
  back and the next one comes later, so a server with a limit of its own is left in peace.
"""

from __future__ import annotations

LOOK = 32
"""Answers, refused or not, between two looks at the share of refusals."""
PAUSE, LONGEST_PAUSE = 1.0, 8.0
"""Seconds between two steps upward, and before the first, which is doubled whenever a step is
refused."""
IMMUNITY, LONGEST_IMMUNITY = 30.0, 300.0
"""Seconds for which push-back is not believed once lowering the limit has not helped, doubled each
time."""


class PushBack:
    """All calls O(1), under 0.5 us.

    ``good``: to be set with each good answer. ``active``: refusals are being counted, so
    ``answered`` is to be called with each good answer as well.
    ``ceiling``: the limit before it was lowered, to grow back to; 0: not lowered.
    """

    __slots__ = (
        "_before", "_first", "_grow_at", "_grown", "_immune", "_immunity", "_pause", "_pushed",
        "_seen", "_stride", "active", "ceiling", "good",
    )  # fmt: skip

    def __init__(self) -> None:
        self.active = False
        self.good = True
        self.ceiling = 0
        self._before = 0
        self._first: tuple[float, int] | None = None  # share of refusals, and at what limit
        self._seen = self._pushed = 0
        self._immune = 0.0
        self._immunity = IMMUNITY
        # Growing back.
        self._grow_at = 0.0
        self._grown = False  # the last change was a step upward
        self._stride = 1
        self._pause = PAUSE

    def refused(self, now: float, value: int, others: float, least: int) -> int | None:
        """Refused with ``others`` in flight besides. Returns the limit from now on; None: as is."""
        if now < self._immune or others < 1:
            return None
        if self._grown:  # as was to be expected some time: no news, only that step is taken back
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)
            self._grown = False
        elif not self.active:
            self.active = True
            self._before, self._first = value, None
            self._seen = self._pushed = 0
        if self.active:
            back = self._count(now, value, True)
            if back is not None:
                return back
        self._grow_at = now + self._pause
        if not self.good:
            return None
        self.good = False
        # By half at the most: one refusal in a quiet moment does not say how many are too many, and
        # in an overload the next ones come within milliseconds.
        lower = max(least, min(value, int(others)), value // 2)
        self.ceiling = max(self.ceiling, value)
        self._stride = max(1, lower // 10)
        return lower if lower < value else None

    def answered(self, now: float, value: int) -> int | None:
        """A good answer came. Returns the limit from now on; None: as it is."""
        return self._count(now, value, False)

    def grow(self, now: float, value: int) -> int | None:
        """Somebody waits. Returns the limit from now on; None: as it is."""
        if now < self._grow_at or not self.ceiling:
            return None
        if self._grown:  # the step before was not refused
            self._stride *= 2
            self._pause = PAUSE
        self._grown = True
        self._grow_at = now + self._pause
        value += self._stride
        if value < self.ceiling:
            return value
        value = self.ceiling
        self.settled()
        return value

    def settled(self) -> None:
        """The limit stands for reasons of its own: do not grow back."""
        self.ceiling = 0
        self._grown = False

    def _count(self, now: float, value: int, pushed: bool) -> int | None:
        self._seen += 1
        self._pushed += pushed
        if self._seen < LOOK:
            return None
        share = self._pushed / self._seen
        self._seen = self._pushed = 0
        if share <= 1 / 20:
            self.active = False
            self._immunity = IMMUNITY
            if self._first is not None or value >= self._before:
                return None
            self.settled()  # so few from the beginning that there is nothing to make rarer
            return self._before
        if self._first is None:
            self._first = share, value
            return None
        share_then, value_then = self._first
        if value * 2 > value_then and value > 1:
            return None
        if share <= 0.75 * share_then:
            self._first = share, value
            return None
        self.active = False
        self.settled()
        self._immune = now + self._immunity
        self._immunity = min(LONGEST_IMMUNITY, 2 * self._immunity)
        return self._before
