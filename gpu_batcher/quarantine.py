"""quarantine: bodies that have done harm before go alone, or not at all for a while. Pure.

A body is known by its ``mark``, a keyed hash that the caller makes (keyed, so that nobody can make
two bodies with one mark). It comes into quarantine when it

- has *failed alone twice*: its error is its own, and each batch with it costs a bisection; or
- was in *two batches that killed their server*: nothing else is known of such a batch, for it is
  never divided, and each further try costs another server.

The second rule meets bystanders: in two killed batches there may be 126 of them, mostly the same,
since those who were refused together come again together. They are *suspects* only. A suspect goes
alone, never refused in either mode, and one success clears it; so they are out of it at their next
request, and the next kill is by the culprit alone, with nothing else in flight at its endpoint,
which makes it *certain*. Only what is certain
is ever refused. A success in company clears as well: who harms does not pass.

A failing server is no reason either. What fails alone is not counted before something else passes,
and when more than ``MOST_PENDING`` bodies have failed alone with nothing passing in between, none
of them is counted: then it is the server. And as each body counts once until something passes,
an outage is at most one strike against it, however often it is tried again.

Time: ``FIRST`` seconds, doubled up to ``LONGEST`` with each further offence, counted from it. What
is refused cannot offend, so it is on probation for as long again: it goes alone, and its next
offence doubles the time. Then it is forgotten. So is a first strike or kill, after ``FIRST``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from enum import Enum
from math import inf

FIRST = 60.0
LONGEST = 600.0
SIZE = 4096
"""Bodies that are remembered: at about 300 bytes, 1.2 MB."""
MOST_PENDING = 2
SWEEP = 1.0
"""Seconds between two searches for what can be forgotten, each O(size)."""


class Standing(Enum):
    """How a request with this body is to be treated."""

    FREE = "free"
    ALONE = "alone"
    """With a key of its own, so that it shares no batch, and at the lowest priority."""
    REFUSED = "refused"


class _Entry:
    """``time``: of the last quarantine in seconds, 0 before the first one; ``until``: when that
    ends; ``forget``: when the entry does."""

    __slots__ = ("certain", "forget", "kills", "strikes", "time", "until")

    def __init__(self) -> None:
        self.strikes = self.kills = 0
        self.certain = False
        self.time = self.until = self.forget = 0.0


class Quarantine:
    """``refuse``: what is certain is refused rather than run alone. ``now`` is in the clock's
    seconds. Marks need to be made only while ``active``. Calls are O(1) for each mark, but for the
    search once in ``SWEEP`` seconds; of more than ``size`` bodies, the one goes that neither
    offended nor was asked for longest."""

    __slots__ = ("_entries", "_next_sweep", "_pending", "_refuse", "_size")

    def __init__(self, refuse: bool = False, size: int = SIZE) -> None:
        self._refuse = refuse
        self._size = size
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._pending: list[bytes] | None = []  # failed alone since something passed; None: many
        self._next_sweep = -inf

    def __len__(self) -> int:
        return len(self._entries)

    def quarantined(self, now: float) -> int:
        """How many go alone or are refused now. O(size)."""
        return sum(1 for each in self._entries.values() if each.time and each.forget > now)

    def active(self, now: float) -> bool:
        """Is anything remembered? If not, ``look`` and ``passed`` need no marks."""
        if now >= self._next_sweep and self._entries:
            self._next_sweep = now + SWEEP
            for mark in [mark for mark, each in self._entries.items() if each.forget <= now]:
                del self._entries[mark]
        return bool(self._entries or self._pending)

    def look(self, mark: bytes, now: float) -> Standing:
        """A request came: how is it to be treated?"""
        entry = self._find(mark, now)
        if entry is None or not entry.time:
            return Standing.FREE
        self._entries.move_to_end(mark)
        if self._refuse and entry.certain and now < entry.until:
            return Standing.REFUSED
        return Standing.ALONE

    def failed_alone(self, mark: bytes) -> None:
        """It was run alone and failed with a status that blames a request (``Verdict.OWN``, or a
        batch of its own). It counts once something else passes."""
        if self._pending is not None and mark not in self._pending:
            self._pending.append(mark)
            if len(self._pending) > MOST_PENDING:
                self._pending = None

    def killed(self, marks: Sequence[bytes], now: float) -> None:
        """A batch of these killed its server (``contain.killed_server``). Of several that were in
        flight there it is not known which one did: they are one kill, of all their members. An
        empty mark stands for others that have none: who was beside them is not certain either."""
        marks = list(dict.fromkeys(marks))
        for mark in filter(None, marks):
            entry = self._find(mark, now) or self._new(mark)
            entry.kills += 1
            certain = entry.certain or len(marks) == 1
            if entry.time or entry.kills >= 2:
                self._offend(mark, entry, now, certain)
            else:
                entry.certain = certain
                entry.forget = now + FIRST

    def passed(self, marks: Iterable[bytes], now: float) -> None:
        """A batch or a part of one was answered, with these in it (none where no marks were made;
        call it all the same). They are cleared; and as the server works, what failed alone before
        counts."""
        pending, self._pending = self._pending, []
        for mark in marks:
            self._entries.pop(mark, None)
            if pending and mark in pending:
                pending.remove(mark)
        for mark in pending or ():
            entry = self._find(mark, now) or self._new(mark)
            entry.strikes += 1
            if entry.time or entry.strikes >= 2:
                self._offend(mark, entry, now, certain=True)
            else:
                entry.forget = max(entry.forget, now + FIRST)

    def _find(self, mark: bytes, now: float) -> _Entry | None:
        entry = self._entries.get(mark)
        if entry is not None and entry.forget <= now:
            del self._entries[mark]
            return None
        return entry

    def _new(self, mark: bytes) -> _Entry:
        entry = self._entries[mark] = _Entry()
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
        return entry

    def _offend(self, mark: bytes, entry: _Entry, now: float, certain: bool) -> None:
        entry.time = min(LONGEST, 2 * entry.time) if entry.time else FIRST
        entry.certain = entry.certain or certain
        entry.until = now + entry.time
        entry.forget = entry.until + (entry.time if self._refuse and entry.certain else 0.0)
        if mark in self._entries:
            self._entries.move_to_end(mark)
