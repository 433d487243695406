"""contain: when a batch fails, its members are not failed: who is to blame, found out in few steps.

Pure. A failed batch is divided and its parts run again, until whoever fails does so alone: that one
gets its own error, the others their answers. Every part that is run is an inference, so the order
matters. With one culprit among 64, counted after the failed batch itself:

- *Plain binary splitting* (run both halves of whatever failed): 12.
- *Generalised binary splitting* (Hwang 1972) leaves a part alone once its sister has failed: it is
  as unknown as before the test. In group testing it goes back to the pool. Here its members want
  answers, so the pool is run in the end, as one: 7.5 on average. But half of the innocent wait
  until the culprit is found.
- *Here*: of what is known to be bad the first half is run. If it passes, the other half is bad,
  without a test, and is divided at once. If it fails, the other half is run as a whole, for it is
  probably good. 10 on average, and half of the innocent are answered in the first step.

- *Where the budget is low*, generalised binary splitting after all: with one culprit among 32 it
  takes 6 instead of 8, and who waits a little longer is not refused.

But for that, the two halves of the batch itself are both run in any case. If both pass, nobody is
to blame (a moment's failure, or the batch was too large), and all are answered after two
inferences. And nobody is ever condemned by deduction: who is left over is run alone as well, for
the error should be its own.

At one culprit in 100 calls and batches of 64, batches and parts together are about 11 inferences
per 100 calls; with plain splitting about 13.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Generic, TypeVar

from gpu_batcher.allowance import BURST, SHARE, Allowance, Purse, Purses

T = TypeVar("T")

BLAMED = frozenset((400, 413, 415, 422, 500))
RARE = 0.02
"""The share of culprits that is taken as usual, where it has to be told from a failing server."""
BELIEF = 1e-3
"""It is the server once what has been seen would be less likely than this with one that works."""
STREAK = 12
"""And so many failures in a row are the server, also after something has passed."""
LOW = 0.5
"""Of the burst: with less than that at hand, a batch is divided thriftily."""
HOLD = 1.0
"""Seconds for which no failed batch is divided after the server was found to be failing, unless
something passes before. Not for ever, because with many culprits every whole batch fails."""


def blames_request(status: int) -> bool:
    """Can one request of a batch have caused this status, for all of them?

    Not 404 (the model is the same for all of a batch), 408, 429, 502, 503, 504 or 501, which speak
    of the server or of load; nor, as there is no status then, a timeout or a broken connection.
    413 may also be due to the batch as a whole; dividing helps then, too.
    """
    return status in BLAMED


def killed_server(*, sent: bool, reset: bool, refused_after: bool) -> bool:
    """May a batch have killed its server? ``sent``: all of it was sent, ``reset``: then the
    connection broke without an answer, ``refused_after``: and the next attempt to connect to the
    same endpoint was refused. A reset alone is also what an idle connection that was closed, a
    proxy in between or a restart in good order looks like."""
    return sent and reset and refused_after


class Verdict(Enum):
    """Why a member of a failed batch gets no answer."""

    OWN = "own"
    """It failed alone: it gets what the server said to it alone."""
    BUDGET = "budget"
    """Too much was divided of late: a retryable 503."""
    SERVER = "server"
    """It is the server: a retryable 503."""


@dataclass(slots=True, eq=False)
class Part(Generic[T]):
    """Members to be run as one inference: those from ``start`` to ``stop`` that have not left.

    ``rest``: up to where the bad part extends of which this is the first piece, or 0. ``chance``:
    how likely it is to fail if the server works.
    """

    members: tuple[T, ...]
    start: int
    stop: int
    rest: int = 0
    chance: float = 1.0


class Bisection(Generic[T]):
    """A failed batch, divided until all of its members are answered or have a verdict.

    Run what ``next`` yields, several at once if you like, and report each part exactly once:
    ``passed`` (its members are answered), ``failed`` (with a status that blames a request) or
    ``broke`` (with any other failure). ``settled`` returns the verdicts, ``done`` says whether
    that is all. One culprit among n takes at most 2 ceil(log2(n)) parts, while the server is not in
    doubt; no more than 2n - 2 are ever needed. CPU: O(members) for each part.

    A server that fails whatever it gets is told from culprits by how likely they would be (Wald's
    sequential test, 1945, with a server that fails always as the other hypothesis). As large parts
    may well have several culprits, their failures say little; so once both halves have failed,
    single members are run, whatever says most comes first, and it ends after five parts (a batch of
    up to five or so has them all run alone before). Something that passes settles the question in
    the server's favour.

    A culprit may not be found because it left; then its neighbours are run in smaller parts than
    necessary.
    """

    __slots__ = ("_allowance", "_later", "_left", "_members", "_odds", "_open", "_passed",
                 "_places", "_ready", "_stopped", "_streak", "_thrifty", "_verdicts", "culprits",
                 "spent")  # fmt: skip

    def __init__(
        self, members: Sequence[T], allowance: Allowance | Purse, *, thrifty: bool = False
    ) -> None:
        """``members``: of the failed batch, at least two; hashable, and each one once. ``thrifty``:
        leave what may be good to the end and run it as one."""
        assert len(members) > 1, "who failed alone has its own error already"
        self._members = list(members)
        self._thrifty = thrifty
        self._later: list[tuple[int, int]] = []  # to be run in the end, as one
        self._allowance = allowance
        self._places = {member: place for place, member in enumerate(members)}  # of the unsettled
        self._left: set[int] = set()
        self._open: set[int] = set()  # places of members that are being run
        self._ready: deque[Part[T]] = deque()
        self._stopped: Verdict | None = None
        self._verdicts: list[tuple[T, Verdict]] = []
        self._passed = False
        self._streak = self.culprits = self.spent = 0
        half = len(members) // 2
        self._odds = 1.0
        if thrifty:
            self._add(0, half, rest=len(members), chance=0.5)
            return
        self._add(0, half, chance=unlikely(half))
        self._add(half, len(members), chance=unlikely(len(members) - half))
        self._odds /= unlikely(half)  # that one half fails was certain

    @property
    def done(self) -> bool:
        """Every member is answered, has left, or has a verdict that ``settled`` returns."""
        return not self._places and not self._open

    @property
    def stopped(self) -> Verdict | None:
        """Why it ended before all was found out."""
        return self._stopped

    @property
    def blameless(self) -> bool:
        """All passed in parts: the batch as a whole was too much, or it failed for a moment."""
        return self.done and not (self._left or self.culprits or self._stopped)

    def next(self) -> Part[T] | None:
        """A part that can be run now. None while others have to be awaited, at the end, and when
        the budget is spent, which is the end for whoever is not being run."""
        while self._ready or self._gather():
            part = self._foremost()
            places = [place for place in range(part.start, part.stop) if place not in self._left]
            part.members = tuple(self._members[place] for place in places)
            if not places:
                self._after(part)
                continue
            if not self._allowance.withdraw():
                self._stop(Verdict.BUDGET)
                break
            self.spent += 1
            self._open.update(places)
            return part
        return None

    def leave(self, member: T) -> None:
        """Its client left: it is run no more, and no answer or verdict is needed. O(1)."""
        place = self._places.pop(member, None)
        if place is not None:
            self._left.add(place)

    def passed(self, part: Part[T]) -> None:
        """It was answered."""
        self._passed = True
        self._streak = 0
        self._odds = 1.0
        self._close(part)
        for member in part.members:
            self._places.pop(member, None)
        self._after(part)

    def failed(self, part: Part[T]) -> None:
        """It failed with a status that a request can cause."""
        self._close(part)
        self._streak += 1
        if not self._passed:
            self._odds *= part.chance
        alone = len(part.members) == 1
        if alone:
            self.culprits += 1
            self._settle(part.members[0], Verdict.OWN)
        if self._stopped is not None:
            self._give_up(part.members)
        elif self._odds < BELIEF or self._streak >= STREAK:
            self._stop(Verdict.SERVER)
        else:
            if part.rest and self._thrifty:
                self._later.append((part.stop, part.rest))
            elif part.rest:
                self._add(part.stop, part.rest, chance=unlikely(part.rest - part.stop))
            if not alone:
                self._divide(part.start, part.stop)

    def broke(self, part: Part[T]) -> None:
        """It failed for a reason of the server's (429, 503, a timeout, a broken connection, an
        answer that cannot be divided): to go on would add load, and say nothing about requests."""
        self._close(part)
        self._give_up(part.members, Verdict.SERVER)
        self._stop(Verdict.SERVER)

    def settled(self) -> list[tuple[T, Verdict]]:
        """The verdicts since the last call; each member gets one at most."""
        verdicts, self._verdicts = self._verdicts, []
        return verdicts

    def _after(self, part: Part[T]) -> None:
        """A first piece passed (or nobody of it is left): the rest of what failed is bad."""
        if not part.rest or self._stopped is not None:
            return
        gone = any(place in self._left for place in range(part.start, part.rest))
        if gone or part.rest - part.stop == 1:
            self._add(part.stop, part.rest)  # its error is to be its own, or it may be good
        else:
            self._divide(part.stop, part.rest)

    def _gather(self) -> bool:
        """What was left for later becomes one part, if nothing else is to be done before. Its
        members move to the end, so that they have places next to each other."""
        if not self._later or self._open:
            return False
        start = len(self._members)
        for first, stop in self._later:
            for member in self._members[first:stop]:
                if member in self._places:
                    self._places[member] = len(self._members)
                    self._members.append(member)
        self._later.clear()
        size = len(self._members) - start
        if size:
            self._add(start, start + size, chance=unlikely(size))
        return bool(size)

    def _foremost(self) -> Part[T]:
        """In order; but while the server is in doubt, the part whose failure would say most."""
        if self._doubtful:
            part = min(self._ready, key=lambda each: each.chance)
            self._ready.remove(part)
            return part
        return self._ready.popleft()

    @property
    def _doubtful(self) -> bool:
        """Nothing has passed, not even one of both halves."""
        return not self._passed and self._streak >= 2

    def _divide(self, start: int, stop: int) -> None:
        """What is from ``start`` to ``stop`` is bad, and more than one. While the server is in
        doubt, a single member comes first: that it fails says most."""
        if self._doubtful:
            self._add(start, start + 1, rest=stop, chance=1 / (stop - start))
        else:
            self._add(start, (start + stop) // 2, rest=stop, chance=0.5)

    def _add(self, start: int, stop: int, rest: int = 0, chance: float = 1.0) -> None:
        self._ready.append(Part((), start, stop, rest, chance))

    def _close(self, part: Part[T]) -> None:
        self._open.difference_update(range(part.start, part.stop))

    def _settle(self, member: T, verdict: Verdict) -> None:
        if self._places.pop(member, None) is not None:
            self._verdicts.append((member, verdict))

    def _give_up(self, members: Sequence[T], verdict: Verdict | None = None) -> None:
        verdict = verdict or self._stopped
        assert verdict is not None
        for member in members:
            self._settle(member, verdict)

    def _stop(self, verdict: Verdict) -> None:
        """The end, but for the parts that are being run."""
        if self._stopped is None:
            self._stopped = verdict
        self._ready.clear()
        self._later.clear()
        waiting = [member for member, place in self._places.items() if place not in self._open]
        self._give_up(waiting)


def unlikely(size: int) -> float:
    """How likely a part of which nothing is known is to fail, if the server works."""
    return min(1.0, RARE * size)


class Containment(Generic[T]):
    """One route's: shall a failed batch be divided? All calls O(1), besides the bisection's own.

    ``key``: of the batch. Clients choose it, so what one key costs is not to be others' loss: the
    allowance is divided (``Purse``), and that the server fails is held against the key for which it
    was found; against all only if it was found for two, and nothing passed in between."""

    __slots__ = ("_found", "_low", "_purses", "_until")

    def __init__(self, share: float = SHARE, burst: float = BURST) -> None:
        self._purses = Purses(share, burst)
        self._low = LOW * burst
        self._until = -inf
        self._found: tuple[Purse | None, float] = (None, -inf)

    @property
    def allowance(self) -> Allowance:
        """Of all keys together."""
        return self._purses.allowance

    def requested(self, key: Hashable = None, requests: int = 1) -> None:
        """Requests came."""
        self._purses.deposit(key, requests)

    def begin(
        self, members: Sequence[T], now: float, key: Hashable = None
    ) -> Bisection[T] | Verdict:
        """A batch of at least two failed with a status that blames a request: a bisection, or
        what all of its members get instead."""
        purse = self._purses.of(key)
        if now < self._until or now < purse.until:
            return Verdict.SERVER
        if purse.left < 2.0:
            return Verdict.BUDGET
        return Bisection(members, purse, thrifty=purse.left < self._low)

    def passed(self, key: Hashable = None) -> None:
        """A batch or a part was answered: the server works, for this key at least."""
        self._until = -inf
        self._found = (None, -inf)
        self._purses.of(key).until = -inf

    def ended(self, bisection: Bisection[T], now: float, key: Hashable = None) -> None:
        """A bisection is done."""
        if bisection.stopped is not Verdict.SERVER:
            return
        purse = self._purses.of(key)
        before, when = self._found
        if before is not None and before is not purse and now < when + HOLD:
            self._until = now + HOLD
        self._found = (purse, now)
        purse.until = now + HOLD
