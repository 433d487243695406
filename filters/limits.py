"""limits: how much may be in flight: a fixed number, or the server's best concurrency, learned.

More in flight helps a model server up to some number (its slots, its largest batch) and beyond it
only makes everybody wait. ``AdaptiveLimit`` finds that number from what it sees. It never asks
how fast the server is, only whether *more in flight made answers later without making more of
them*, always comparing moments that lie close together. So a server that becomes three times
slower keeps its limit, a stream that takes a minute is nothing unusual, and no measurement needs
the limit to be pinned low (as Envoy's minRTT windows do, at the price of refusals).

Two observations move it, and a third is the server's own word:

- **Trial**, while requests are waiting for the limit. For a few answers at a time the level in
  force is a little lower or higher than the limit, alternating with the limit itself. A pure queue
  adds to everyone's time what it adds to the concurrency; free capacity adds nothing. The quick
  third of the answers shows this best, because there a wait is not lost in the length of the work;
  whole blocks of answers are compared (batch means), because the waits inside one are correlated.
- **Onset**, while nobody waits because the limit is still far above: in flight grows past all that
  was usual, and the time of an answer grows in proportion (the slope of log time over log in
  flight). Then the limit becomes what Little's law says was useful.
- **Push-back** (429, or 503 with Retry-After): no more than what is in flight besides, by half at
  a time, until refusals have ceased for a while (``push_back.py``).

The idea of moving in steps and looking whether it paid is hill climbing, as in power tracking of
solar cells; judging by throughput against concurrency is Little's law (1961) and Kleinrock's
operating point (1979). Nothing is learned while the limit is not in use, so it cannot drift.
"""

from __future__ import annotations

from collections import deque
from math import log, sqrt

from filters.push_back import PushBack
from filters.trials import LONG_ENOUGH, Trial, mean

RECENT = 128
"""Answers that the onset looks at: a third of a second at 400 a second."""
RISE = 1.5
"""In flight is out of the usual from this factor (and 4) on."""
LOOK = 4
"""Answers between two looks for the onset: at five times the load, 16 more in flight each time."""
SLOPE = 0.25
"""The onset needs a slope of more than this, two standard errors below the estimate. A batching
server whose tokens take 3 times longer at 256 streams than alone shows log 3 / log 256 = 0.2. Not
higher, because where slots were free, times begin to grow late, and the slope with them."""
LITTLE = 0.55
"""And what is in flight now must, by Little's law, take longer by more than this power of it. The
same batching server shows 0.48 between 67 and 200 streams, more than over its whole range."""
SETTLED = 2.5
"""And in flight must have been high for so many usual times: what more of it brings shows only
once it has been answered, and at 200 streams the same server takes 2.6 times as long."""
HEADROOM = 1.25
"""Above Little's estimate at the onset: too high costs a few milliseconds, too low throughput."""
WORTH = 0.005
"""Seconds: quicker answers than this are not worth a limit, for waiting here costs as much."""
PATIENCE = 2.5
"""Longest rest between trials in seconds: what changed is to be followed within ten."""
PAUSE, PAUSE_WAITING = 2.0, 60.0
"""Seconds without anybody waiting after which a trial is dropped; seen while nobody waits, and when
somebody does again, where answers may simply be rare. At least the time of two answers."""
LONGEST_REST = 10.0
"""Seconds between two trials at a server so slow that a trial takes longer than ``PATIENCE``."""
CHANGED = 0.6
"""A rate of answers that falls or rises by this factor begins the search anew."""


class FixedLimit:
    """A limit that the operator chose. All calls O(1)."""

    __slots__ = ("level", "value")

    def __init__(self, value: int) -> None:
        self.value = self.level = value

    def begun(self, in_use: float) -> int:
        return 0

    def ended(
        self, now: float, seconds: float, n: float, mark: int, in_use: float, waiting: bool
    ) -> None:
        pass

    def pushed_back(self, now: float, others: float) -> None:
        pass

    def waits(self, now: float) -> None:
        pass

    def describe(self, now: float) -> dict[str, object]:
        return {"kind": "fixed", "value": self.value}


class AdaptiveLimit:
    """``value`` is the limit, ``level`` what is in force now: a trial moves it a little.

    In flight is counted in cost, 1 for a request unless the caller says otherwise. ``begun`` and
    ``ended`` cost about 0.5 us together; a look at the onset some 100 us, at most once in 4
    answers and only while in flight is unusual; the end of a trial's block some 5 us.
    """

    __slots__ = (
        "_confirmed", "_count", "_gap", "_high", "_low", "_mark", "_peak", "_peak_since", "_push",
        "_rate", "_recent", "_rest_until", "_run", "_serial", "_steady", "_steady_since", "_trial",
        "_up", "_usual", "_waited", "level", "onsets", "trials", "value", "why",
    )  # fmt: skip

    def __init__(self, initial: int = 512, low: int = 1, high: int = 4096) -> None:
        self._low, self._high = low, max(low, high)
        self.value = self.level = min(max(initial, low), self._high)
        self.why = "not learned yet"
        self.onsets = self.trials = 0
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=RECENT)
        self._usual = 0.0
        self._count = 0
        # The trial under way, and what the next one will be.
        self._trial: Trial | None = None
        self._serial = self._mark = 0
        self._up = self._run = False
        self._gap = max(1, self.value // 2)
        self._confirmed = 0
        self._rest_until = 0.0
        self._waited = 0.0  # when an answer last came while somebody waited
        # The rate of answers while the limit is in use.
        self._steady = 0
        self._steady_since = 0.0
        self._rate = 0.0
        # The best rate of late, whether or not the limit was in use.
        self._peak = self._peak_since = 0.0
        self._push = PushBack()

    def begun(self, in_use: float) -> int:
        """A permit was taken, ``in_use`` with it. Returns a mark to be handed to ``ended``."""
        return self._mark if in_use >= self.level else 0

    def ended(
        self, now: float, seconds: float, n: float, mark: int, in_use: float, waiting: bool
    ) -> None:
        """An answer was given in full, ``seconds`` after its permit, which was the ``n``th.

        ``in_use`` is what is in flight without it; ``waiting`` whether anybody waits for a permit.
        Only good answers are to be told: errors and clients that left teach nothing.
        """
        seconds = max(seconds, 1e-6)  # logarithms are taken of it
        self._recent.append((n, seconds, now))
        self._usual += (n - self._usual) / 128
        self._count += 1
        if not self._count & 255:
            self._peak = max(0.9 * self._peak, 256 / max(1e-6, now - self._peak_since))
            self._peak_since = now
        self._push.good = True
        if self._push.active:
            value = self._push.answered(now, self.value)
            if value is not None:
                self._pushed(now, value)
        trial = self._trial
        if mark and trial is not None and mark >> 1 == trial.serial:
            trial.add(mark & 1, seconds)
        if in_use > RISE * self._usual + 4 and not self._count % LOOK and self._onset(now, in_use):
            return
        if trial is not None:
            pause = PAUSE_WAITING if waiting else PAUSE
            if now - self._waited > max(pause, 2 * seconds):
                self._move(self.value)  # what it compared lies too far apart by now
        if waiting:
            self._waited = now
            self.waits(now)
            self._watch_rate(now)
            self._saturated(now)
        else:
            self._steady = 0
            self._steady_since = now

    def describe(self, now: float) -> dict[str, object]:
        trial = self._trial
        return {
            "kind": "adaptive",
            "value": self.value,
            "level": self.level,
            "why": self.why,
            "trial": None if trial is None else [trial.lo, trial.hi],
            "trials": self.trials,
            "onsets": self.onsets,
        }

    def bound(self, low: int, high: int) -> None:
        """Other bounds from now on; what was learned is kept as far as they allow."""
        self._low, self._high = low, max(low, high)
        self._move(self.value)

    # -- moving ---------------------------------------------------------------------------------

    def _move(self, value: float) -> None:
        self.value = self.level = int(max(self._low, min(self._high, value)))
        self._trial = None
        self._mark = 0

    def _onset(self, now: float, in_use: float) -> bool:
        """Whether in flight outgrew the server while the limit did not hold it; then it does now.

        Two views have to agree: the times of those answered (ordinary least squares over the
        recent answers, which must span a factor of three in flight), and Little's law for those
        who are not. The first alone is fooled by a burst at a batching server, which slows
        those with few others more than those with many; the second alone by any burst, until
        its answers come. O(RECENT).
        """
        recent = self._recent
        count = len(recent)
        if count < 32 or in_use > self.level:
            return False  # too little is known, or what is too much already runs out
        ns = sorted(n for n, _, _ in recent)
        middle = ns[count // 2]
        top = ns[-1 - count // 16]
        if in_use < max(top, 1.25 * middle) or top < 3 * ns[count // 10]:
            return False
        few = ns[count // 3]
        usual = mean([seconds for n, seconds, _ in recent if n <= few])
        begun = max(at - seconds for n, seconds, at in recent if n <= middle)
        if now - begun < SETTLED * usual:
            return False
        late = list(recent)[-25:]
        # A queue gives n / seconds even before the last 24 have all come at the full rate.
        rate = max(
            24 / max(1e-6, now - late[0][2]),
            sum(n for n, _, _ in late) / sum(seconds for _, seconds, _ in late),
        )
        # As many answers as those in flight will bring come late, but then quickly.
        fresh = max(rate, 8 / max(1e-6, now - late[-9][2]))
        if in_use / fresh < usual * (in_use / few) ** LITTLE:
            return False
        slope, error = _slope([log(n) for n, _, _ in recent], [log(s) for _, s, _ in recent])
        if slope - 2 * error < SLOPE or mean([seconds for _, seconds, _ in late[-16:]]) < WORTH:
            return False
        value = max(middle, round(HEADROOM * rate * usual))
        if value >= self.value:
            return False
        self.onsets += 1
        self.why = f"answers took longer in proportion to the {in_use:.0f} in flight"
        self._move(value)
        self._begin_anew(now)
        return True

    def _begin_anew(self, now: float) -> None:
        """Trials from here on look for a limit nearby, downward first."""
        self._up = self._run = False
        self._gap = max(1, self.value * 2 // 5)
        self._confirmed = 0
        self._rest_until = now
        self._rate = 0.0

    def _watch_rate(self, now: float) -> None:
        """Look at once, and boldly, if the rate of answers changed: something did at the server."""
        self._steady += 1
        if self._steady < max(200, 2 * self.value):
            return
        rate = self._steady / max(1e-6, now - self._steady_since)
        self._steady = 0
        self._steady_since = now
        trial = self._trial
        if trial is not None and trial.hi >= RISE * trial.lo:
            return  # so coarse a step may change the rate by itself
        before, self._rate = self._rate, rate
        if rate < CHANGED * max(before, self._peak) or (before and before < CHANGED * rate):
            self._move(self.value)
            self._begin_anew(now)
            self._rate = self._peak = rate
            self._gap = max(1, self.value // 2)

    # -- trials ---------------------------------------------------------------------------------

    def _saturated(self, now: float) -> None:
        trial = self._trial
        if trial is None:
            if now >= self._rest_until:
                self._try(now)
            return
        if not trial.block_done():
            return
        verdict = trial.verdict(now)
        if verdict is None:
            self._set_level(trial)
            return
        self.trials += 1
        self._conclude(trial, trial.hi if trial.seconds < WORTH else verdict, now)

    def _try(self, now: float) -> None:
        value = self.value
        gap = min(max(self._gap, self._least), max(1, value))
        self._up = value < self._high and (self._up or value <= self._low)
        if self._up:
            lo, hi = value, min(self._high, value + gap)
        else:
            lo, hi = max(self._low, value - min(gap, value // 2)), value
        if lo == hi:
            return
        self._serial += 1
        self._trial = Trial(self._serial, lo, hi, self._up, now)
        self._set_level(self._trial)

    @property
    def _least(self) -> int:
        """The smallest step worth trying."""
        return max(1, self.value // 10)

    @property
    def _wide(self) -> int:
        """The step to look for a change with."""
        return max(2, (self.value + 3) // 4)

    def _set_level(self, trial: Trial) -> None:
        self.level = trial.hi if trial.arm else trial.lo
        self._mark = trial.serial * 2 + trial.arm

    def _conclude(self, trial: Trial, value: int, now: float) -> None:
        """Move, or stay; and choose the next trial: bolder after a move that paid, finer after one
        that did not, and rarer the more often the limit has been confirmed."""
        moved = value != self.value
        gap = trial.hi - trial.lo
        up = self._up
        self._move(value)
        self._rest_until = now
        if moved:
            more = "brought more answers" if up else "brought no more answers, only delay"
            self.why = f"{trial.hi} in flight {more} than {trial.lo}"
            self._confirmed = 0
            if not up:
                self._push.settled()
            if self._run or gap <= self._least or trial.hi >= 1.5 * trial.lo:
                self._run = True
                self._gap = min(2 * gap, max(1, self.value))
            else:
                self._up = not up
                self._gap = gap // 2
            return
        self._run = False
        self._up = not up
        if gap // 2 >= self._least:
            self._gap = gap // 2
            return
        self._confirmed += 1
        # By turns: the wider look finds a change sooner, the finer one the exact number.
        self._up = self._confirmed & 1 == 1
        self._gap = self._wide if self._confirmed % 4 in (1, 2) else self._least
        rest = min(PATIENCE, 0.5 * 2 ** min(self._confirmed, 8))
        self._rest_until = now + max(rest, min(LONGEST_REST, 1.5 * (now - trial.started)))

    # -- push-back --------------------------------------------------------------------------------

    def pushed_back(self, now: float, others: float) -> None:
        """The upstream refused for its load, with ``others`` in flight besides."""
        value = self._push.refused(now, self.value, others, self._low)
        if value is not None:
            self._pushed(now, value)
        elif self._push.ceiling and self._trial is not None:
            self._move(self.value)  # what it compared was cut short by refusals
        self._rest_until = max(self._rest_until, now + 1.0)

    def waits(self, now: float) -> None:
        """Somebody waits for a permit: the limit may grow back after push-back."""
        trial = self._trial
        if self._push.ceiling and (trial is None or now > trial.started + LONG_ENOUGH):
            value = self._push.grow(now, self.value)
            if value is not None:
                self.why = "the upstream has not refused more for a while"
                self._move(value)

    def _pushed(self, now: float, value: int) -> None:
        more = value > self.value
        self.why = (
            "push-back is not about how much is in flight"
            if more
            else f"the upstream refused more than {value}"
        )
        self._move(value)
        self._begin_anew(now)


def _slope(x: list[float], y: list[float]) -> tuple[float, float]:
    """Of the regression line through the points, and its standard error."""
    count = len(x)
    mean_x, mean_y = mean(x), mean(y)
    xx = sum((a - mean_x) ** 2 for a in x)
    xy = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    yy = sum((b - mean_y) ** 2 for b in y)
    slope = xy / xx
    return slope, sqrt(max(0.0, yy - slope * xy) / (count - 2) / xx)
