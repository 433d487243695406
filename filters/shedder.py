"""The standing queue: whether a route is overloaded, and whom to refuse at arrival if so.

*When.* A queue that drains is doing its work; one that stands makes everybody late for nothing
(CoDel: Nichols, Jacobson, "Controlling Queue Delay", 2012). It is judged to stand when the server
has been seen to serve (``FEW`` permits since the queue was last empty: a rate that nobody has
measured is no basis for a verdict) and

- the queue has been long (``LONG`` seconds of work, ``FEW`` waiters and a quarter of the limit)
  for ``STANDS`` windows and now is as long as at any time in the last one to two; or
- it has been long for ``NEVER_DRAINS`` windows, whichever way it goes; or
- it is full.

A window is a second, or the time of ``FEW`` permits where that is longer: in front of streams that
run for minutes, a queue that stands for some seconds is nothing out of the ordinary.

*Whom.* The share of arrivals beyond ``SLACK`` times the drain rate, by rank, the lowest first:
class, then u * rate of the tenant, with u uniform in 0..1. The threshold is the quantile of the
latest ranks at the share that may pass (Uber's Cinnamon, 2023; WeChat's DAGOR, 2018, has a
histogram for it). As P(u * rate < f) = min(1, f / rate), that threshold is at the same time the
max-min fair share of the tenants in the class on the margin (CSFQ, 1998): a tenant below it loses
nothing, those above it are cut down to it. The queue behind is kept short (``keep``) and served
newest first.

*Until when.* Whoever finds the queue empty is let in, whatever its rank, so no error of any
estimate keeps a server idle. It is over when for ``CALM`` windows no more has arrived than drains,
or the queue has hardly been used; both are seen by the next call, whenever it comes.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from math import exp, inf
from typing import TYPE_CHECKING

from filters.api import Priority
from filters.tenants import Rates

if TYPE_CHECKING:
    from random import Random

TARGET = 0.015
"""Seconds of work that may wait during overload. Whoever is pushed out has been there two to
three times as long, and is to hear of it within 50 ms; shorter would leave permits unused."""
SURE = 0.9
"""Of what is served, the share that is taken for sure: the rest is the error of the rates."""
SLACK = 1.5
"""Arrivals let in per permit: more than 1, so that newest-first has a choice, a wrong estimate
corrects itself, and pushing out, not guessing, decides on the margin; the more, the more take a
place only to be pushed out."""
STANDS = 2.0
"""Windows: twice the longest burst that the queue is there to take."""
NEVER_DRAINS = 10.0
"""Windows: as seconds, the default queue timeout. A backlog that drains so slowly makes everybody
late who comes while it lasts."""
LONG = 0.1
"""Seconds of work, CoDel's interval. At 90 % load chance alone seldom makes a queue so long."""
OF_LIMIT = 0.25
"""Of the limit: a shorter queue adds to a service time less than a quarter of it."""
FEW = 20
"""Permits, or waiters, below which a number is chance: it is then known to a fifth."""
CALM = 1.5
"""Windows without excess that end an overload: hysteresis against ending it by chance."""
IDLE = 0.1
"""Share of the time with anybody waiting, below which the server keeps up."""
WINDOW = 1.0
"""Seconds over which rates are averaged, at least."""
WINDOW_MOST = 10.0
TICK = 0.1
"""Seconds between two looks at rates and threshold."""
RANKS = 1000
"""Arrivals that the threshold is taken from, fewer where fewer came in a ``WINDOW``."""
RETRY_GROWS = 25.0
"""Seconds of overload after which callers are told to stay away twice as long."""


class Shedder:
    """Whether a route is overloaded, and whom to refuse if so. One per admission, which tells it
    of every permit and of every change of its queue; the arrival check tells it of arrivals.

    ``length`` is the queue's; ``arrivals`` and ``refused`` count by class; ``inflow`` and
    ``drain`` are requests per second, ``drain`` only over the time in which somebody waited, so
    that it is what the server can do and not what it was asked to. ``limit`` is admission's, to be
    kept up to date by it, or 0. All calls are O(1); about 0.1 us while nobody waits, 0.3 us while
    somebody does, 1.5 us for an arrival then. During overload, one call in a ``TICK`` takes
    O(RANKS), 0.2 ms.
    """

    __slots__ = (
        "_arrived", "_average", "_before", "_begun", "_calm_since", "_came", "_certain",
        "_counted", "_due", "_folded", "_handed", "_handing", "_held", "_latest", "_long",
        "_long_since", "_peak", "_permits", "_places", "_ranks", "_rates", "_rng", "_standing",
        "_stood", "_ticked", "_turned", "_window", "arrivals", "drain", "episodes", "inflow",
        "length", "limit", "overloaded", "pushed", "refused", "since", "threshold",
    )  # fmt: skip

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.limit = 0.0
        self.length = 0
        self.overloaded = False
        self.since = 0.0  # of the overload, or of the last one
        self.episodes = 0
        self.arrivals = [0] * len(Priority)
        self.refused = [0] * len(Priority)
        self.pushed = 0
        self.inflow = self.drain = 0.0
        self.threshold = inf  # a rank: the class, and u * rate mapped to 0..1 behind the point
        self._rates = Rates(WINDOW)
        self._ranks: deque[float] = deque(maxlen=RANKS)
        self._average = self._latest = 0.0  # arrivals per second, over a window and a quarter of it
        self._certain = 0.0  # whose rank is below this even if u is 1 is served for sure
        self._held = False
        self._places = 1
        self._calm_since = 0.0
        # What the next tick folds into the rates.
        self._due = self._ticked = 0.0
        self._arrived = 0
        self._permits = self._folded = 0  # handed out while somebody waited
        self._stood = 0.0  # seconds in which somebody waited, up to _counted
        self._counted = 0.0
        self._window = WINDOW
        self._handing = 0.0  # permits per second handed out while somebody waited
        self._standing = 0.0  # share of the time in which somebody did
        # The queue since it was last empty, and since it has been long.
        self._begun = 0.0
        self._handed = self._came = 0
        self._long = float(FEW)
        self._long_since: float | None = None
        self._turned = 0.0
        self._peak = self._before = 0

    # -- what it is told ------------------------------------------------------------------------

    def arrived(self, priority: int, tenant: int, now: float) -> bool:
        """An exchange arrives; True: refuse it, and count it in ``refused`` if that is done. While
        ``length`` is 0 and not ``overloaded`` the caller may instead count it in ``arrivals``
        itself, and so spare the tenant's hash."""
        self.arrivals[priority] += 1
        if not self.length and not self.overloaded:
            return False
        if now >= self._due:
            self._tick(now)
        rate = self._rates.sent(tenant, now)
        part = self._rng.random() * rate
        rank = priority + part / (1 + part)
        self._ranks.append(rank)
        return rank >= self.threshold and self.length > 0

    def served(self, now: float) -> None:
        """A permit is handed out. When to a waiter, call it before ``queue`` tells of the pop."""
        if self.length:
            self._permits += 1

    def queue(self, now: float, length: int) -> None:
        """The queue's length has changed, whatever made it."""
        before, self.length = self.length, length
        if not before:
            self._counted = self._begun = now
            self._handed = self._permits
            self._came = sum(self.arrivals)
        elif not length:
            if not self._held:
                self._stood += now - self._counted
            self._held = False
        if now >= self._due:
            self._tick(now)
        if length < self._long or length < self.limit * OF_LIMIT:
            self._long_since = None
        elif length > before and not self.overloaded:
            self._judge(now, length)

    def hold(self, now: float, held: bool) -> None:
        """No permits are handed out now, because the limit fell below what is in flight; that time
        says nothing about what the server can do, and nobody who waits is to go for it."""
        if held is not self._held:
            if self.length:
                if held:
                    self._stood += now - self._counted
                self._counted = now
            self._held = held

    def full(self, now: float) -> None:
        """Somebody found no place."""
        if not self.overloaded:
            self._enter(now)

    def pushed_out(self, now: float, n: int) -> None:
        """``n`` waiters were sent away to keep the queue as short as ``keep`` says."""
        self.pushed += n

    # -- what it says ---------------------------------------------------------------------------

    def keep(self, now: float) -> int | None:
        """How many may wait: None, as many as the queue is for, unless overloaded. At least 1."""
        if self.overloaded and now >= self._due:
            self._tick(now)
        return self._places if self.overloaded and not self._held else None

    def certain(self, priority: int, tenant: int) -> bool:
        """Whether whoever sends so little in so good a class is served for sure: waiters of theirs
        are not pushed out. O(1)."""
        rate = self._rates.of(tenant)
        return priority + rate / (1 + rate) < self._certain

    def stands(self, now: float) -> bool:
        """Whether the route is overloaded, for who only looks: also when nobody comes any more."""
        if self.overloaded and not self.length and now >= self._due:
            self._tick(now)
        return self.overloaded

    def retry_after(self, now: float) -> float:
        """Seconds, 1 to 10: at random, so that callers do not come back together, and the more
        the longer the overload has lasted."""
        lasted = now - self.since if self.overloaded else 0.0
        return (1 + 2 * self._rng.random()) * min(1 + lasted / RETRY_GROWS, 10 / 3)

    def describe(self, now: float) -> dict[str, object]:
        """``margin``: the class that is refused in part; better ones pass, worse ones do not."""
        self.stands(now)
        shedding = self.overloaded and self.threshold < inf
        return {
            "overloaded": self.overloaded,
            "overloaded_for": now - self.since if self.overloaded else 0.0,
            "episodes": self.episodes,
            "inflow": self.inflow,
            "drain": self.drain,
            "allowed": SLACK * self.drain if self.overloaded else None,
            "keep": self._places if self.overloaded else None,
            "margin": Priority(int(self.threshold)).name.lower() if shedding else None,
            "arrivals": _by_class(self.arrivals),
            "refused": _by_class(self.refused),
            "refused_share": self._shares(),
            "pushed_out": self.pushed,
        }

    def _shares(self) -> dict[str, float]:
        """By class, the share of the latest arrivals that the threshold of now refuses. O(RANKS)"""
        came, over = [0] * len(Priority), [0] * len(Priority)
        for rank in self._ranks if self.overloaded else ():
            came[int(rank)] += 1
            over[int(rank)] += rank >= self.threshold
        return {each.name.lower(): over[each] / max(1, came[each]) for each in Priority}

    # -- how it knows ---------------------------------------------------------------------------

    def _judge(self, now: float, length: int) -> None:
        """The queue is long and has grown: does it stand?"""
        if self._long_since is None:
            self._long_since = self._turned = now
            self._peak, self._before = length, 0
            return
        window = self._window
        if now - self._turned >= window:
            self._turned = now
            self._before, self._peak = self._peak, 0
        if length > self._peak:
            self._peak = length
        been = (now - self._long_since) / window
        if been >= NEVER_DRAINS or (been >= STANDS and length >= max(self._peak, self._before)):
            self._enter(now)

    def _enter(self, now: float) -> None:
        permits, seconds = self._permits - self._handed, now - self._begun
        # In the first moments they come unevenly, and whom to refuse goes by their rate.
        if not self.length or permits < (FEW if seconds >= WINDOW else 3 * FEW):
            return
        self.overloaded = True
        self.episodes += 1
        self.since = self._calm_since = now
        self._tick(now)
        if now > self._begun:  # a burst may be too young for the average
            since_begun = (self._arrived - self._came) / (now - self._begun)
            self._average = self._latest = self.inflow = max(self.inflow, since_begun)
            self._set_threshold()

    def _tick(self, now: float) -> None:
        """Fold what was counted into the rates, then see what follows. O(RANKS)."""
        gone = now - self._ticked
        self._due = now + TICK
        if self.length:
            if not self._held:
                self._stood += now - self._counted
            self._counted = now
        if gone > 0:
            self._ticked = now
            new = 1 - exp(-gone / self._window)
            arrived = sum(self.arrivals)
            rate = (arrived - self._arrived) / gone
            self._arrived = arrived
            self._average += (rate - self._average) * new
            # What ended is to be noticed sooner: else those who stay would be refused for it.
            self._latest += (rate - self._latest) * (1 - exp(-4 * gone / self._window))
            self.inflow = min(self._average, 1.2 * self._latest)
            handed = (self._permits - self._folded) / gone
            self._folded = self._permits
            self._handing += (handed - self._handing) * new
            self._standing += (self._stood / gone - self._standing) * new
            self._stood = 0.0
            if self._standing > 1e-6:  # else the last known rate stays
                self.drain = drain = self._handing / self._standing
                self._window = min(max(WINDOW, FEW / max(drain, 1e-9)), WINDOW_MOST)
                self._long = max(FEW, LONG * drain)
        if self.overloaded:
            if self._held or (self.inflow > self.drain and self._standing > IDLE):
                self._calm_since = now
            if now - self._calm_since >= CALM * self._window:
                self._leave()
            else:
                self._set_threshold()

    def _leave(self) -> None:
        self.overloaded = False
        self.threshold = inf
        self._certain = 0.0
        self._long_since = None
        self._ranks.clear()

    def _set_threshold(self) -> None:
        """From the latest ranks: who passes, and how many may wait."""
        inflow, drain = self.inflow, self.drain
        self.threshold = inf
        self._places = max(1, round(drain * TARGET))
        n = min(len(self._ranks), max(64, int(inflow * self._window)))
        if not n or inflow <= drain or drain <= 0:
            self._certain = inf
            return
        ranks = sorted(islice(reversed(self._ranks), n))
        if SLACK * drain < inflow:
            self.threshold = ranks[int(SLACK * drain / inflow * n)]
        # Those who would pass whatever u is, if no more passed than is served: they are all served,
        # so no waiter of theirs goes to keep the queue short. Averaged over half a second, since a
        # thousand ranks may hold only a few of theirs; downward over two, since in the first second
        # the drain looks smaller than it is, and who was certain has been told to wait.
        certain = ranks[int(SURE * drain / inflow * n)]
        before = self._certain if 0 < self._certain < inf else certain
        self._certain = before + (certain - before) * (0.2 if certain > before else 0.05)


def _by_class(counts: list[int]) -> dict[str, int]:
    return {each.name.lower(): counts[each] for each in Priority}
