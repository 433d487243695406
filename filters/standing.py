"""What is known of one endpoint: its latest attempts, and whether it takes part in balancing.

Pure. The evidence is the last ``KEPT`` attempts in the order in which they *started*, those still
in flight among them: an endpoint that is slow or hangs shows it by what has not come back. (By
count and not by time, because an endpoint that is avoided gets few; ``skip`` thins them out where
more than ``KEPT`` are in flight.) It is always read from the newest backwards, so what is over
weighs nothing once the newest attempts say otherwise.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from math import ceil, sqrt
from typing import NamedTuple, Protocol

KEPT = 64
SPAN = 30.0
"""Seconds for which a time to first byte is evidence."""
WINDOW = 10.0
"""Seconds for which an answer is evidence of the share of failures."""
VOLUME = 20
"""Attempts without which there is no share of failures."""
ENOUGH = 8
"""Attempts without which there is no time to first byte, and good ones in a row that clear."""

RAMP = 5.0
"""Seconds in which an endpoint that is back comes to its full share: caches and compilers warm."""
LEAST = 0.05
"""The share of a weight that is left at the beginning of a ramp, under push-back, or under a charge
that the cap saved from ejection. Not 0: without traffic nothing would ever be found out."""
PUSHED = 30.0
"""The longest Retry-After that is believed, in seconds."""
PUSHED_BRIEFLY = 1.0
"""The shortest, and that of a 429 that does not say how long."""
AVOIDED = 15.0
"""The longest time in seconds for which push-back in a row makes an endpoint avoided by itself."""
HALVINGS = 8
"""How often push-back in a row halves ``LEAST``. An endpoint that turns everything away at once has
nothing in flight, so at a twentieth it would be the best choice wherever the others have 20 each;
now only where they have 5000."""
PENDING, TIMED, ANSWERED, FAILED, IGNORED = range(5)
"""Verdicts of a sample. TIMED: good, ``seconds`` to its first byte. ANSWERED: good, but a time
that says nothing. FAILED and IGNORED: ``seconds`` were waited in vain. (Numbers: read in loops.)"""

NEEDED = tuple(ceil(n / 2 + sqrt(2 * n)) if n >= ENOUGH else KEPT * 9 for n in range(2 * KEPT + 1))
"""Of n samples, how many must lie on one side of a value so that the median does: a sign test at
2.8 standard deviations, whatever the distribution. 8 of 8, 14 of 16, 24 of 32, 44 of 64."""


class HasFirstByte(Protocol):
    @property
    def first_byte(self) -> float | None: ...


class Sample:
    """One attempt. ``started`` in the clock's seconds; ``seconds`` as the verdict has it.

    ``answer`` is there while its head has come and the first byte of its body had not.
    """

    __slots__ = ("answer", "seconds", "started", "verdict")

    def __init__(self, started: float) -> None:
        self.started = started
        self.verdict = PENDING
        self.answer: HasFirstByte | None = None
        self.seconds: float

    def resolve(self) -> int:
        """The verdict, after a look whether the body has begun in the meantime."""
        if self.verdict == PENDING and self.answer is not None:
            first = self.answer.first_byte
            if first is not None:
                self.seconds = first - self.started
                self.verdict = TIMED
                self.answer = None
        return self.verdict


class Phase(StrEnum):
    HEALTHY = "healthy"
    EJECTED = "ejected"
    PROBING = "probing"


HEALTHY = Phase.HEALTHY
"""For the hot path: see ``filters.api.OK``."""


class Cause(StrEnum):
    """Why an endpoint is out."""

    CONSECUTIVE = "consecutive_failures"
    SHARE = "failure_share"
    LATENCY = "latency"
    REFUSED = "refused"
    """The only endpoint refuses connections."""
    MANUAL = "manual"


class Row:
    """Failures in a row. ``since`` is when the first of them started."""

    __slots__ = ("length", "since")

    def __init__(self) -> None:
        self.length = 0
        self.since = 0.0

    def add(self, started: float) -> None:
        if not self.length or started < self.since:
            self.since = started
        self.length += 1


class Finding(NamedTuple):
    """What the newest ``n`` samples show. ``since``: when the oldest of them started.

    ``value``: the share that failed, or the median time to first byte in seconds."""

    since: float
    n: int
    value: float


class Standing:
    """One endpoint as ejection sees it. Owned by the endpoint, so it survives reloads.

    ``checked``: whether its active check passes. ``until``: when an ejection ends. ``repeats``:
    ejections that still count for the length of the next. ``share``, 0 to 1: the part of its weight
    that it gets. ``held``: why it would be ejected but for the cap. ``pushed_until``: until when it
    has asked to be spared; ``pushes``: how often in a row, without a good answer, and since when;
    ``avoided``: until when that alone lowers its share. ``limit``: seconds to first byte that its
    probe may take; ``measured``: what it took when it was ejected for it. ``whole``: it was ejected
    for broken answers, so its probe has to be answered in full. ``late``: its last probe was, so
    another one decides. ``accused``: it failed again since the last look.
    ``ejections`` and ``push_backs`` are counts of its whole life.
    """

    __slots__ = (
        "accused", "avoided", "breaks", "cause", "checked", "ejections", "failed_at", "failures",
        "held", "last", "late", "limit", "measured", "muted_until", "name", "phase", "probe",
        "push_backs", "pushed_until", "pushes", "ramp_since", "recent", "refusals", "repeats",
        "share", "since", "skip", "spared_until", "until", "whole", "why",
    )  # fmt: skip

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.checked = True
        self.phase = Phase.HEALTHY
        self.cause: Cause | None = None
        self.why = ""
        self.since = now
        self.until = 0.0
        self.repeats = 0
        self.ejections = self.push_backs = 0
        self.share = 1.0
        self.held = ""
        self.limit = self.measured = 0.0
        self.whole = False
        self.pushes = Row()
        self.avoided = 0.0
        self.pushed_until = self.spared_until = self.muted_until = self.failed_at = 0.0
        self.ramp_since = float("-inf")
        self.probe: Sample | None = None
        self.forget()

    def forget(self) -> None:
        """Wipe the evidence: an endpoint comes back without its past, or it would be ejected again
        for what it was ejected for."""
        self.recent: deque[Sample] = deque(maxlen=KEPT)
        self.skip = 0
        self.failures = Row()
        self.breaks = Row()
        """Answers that were broken off in a row; a good head does not end it, a good end does."""
        self.refusals = 0
        self.accused = self.late = False
        self.last = ""

    def eject(self, cause: Cause, why: str, now: float, seconds: float) -> None:
        """Out for so long. Then a probe decides."""
        self.phase = Phase.EJECTED
        self.cause = cause
        self.why = why
        self.since = now
        self.until = now + seconds
        self.probe = None
        self.forget()
        self.ejections += 1

    def restore(self, why: str, now: float, *, ramp: bool) -> None:
        """In again, at full share at once or by way of a ramp."""
        self.phase = Phase.HEALTHY
        self.cause = None
        self.why = why
        self.since = now
        self.until = 0.0
        self.probe = None
        self.forget()
        self.ramp_since = now if ramp else float("-inf")
        self.weigh(now)

    def push_back(self, retry_after: float | None, now: float) -> None:
        """It asks to be spared: its share falls for that long, to half with each further time in a
        row. While it does nothing else it is avoided for as long again as that has lasted, or each
        end of a short Retry-After would lead callers to it."""
        if now > self.avoided_until + SPAN:
            self.pushes.length = 0
        self.pushes.add(now)
        self.push_backs += 1
        seconds = max(PUSHED_BRIEFLY, min(retry_after or 0.0, PUSHED))
        self.pushed_until = max(self.pushed_until, now + seconds)
        self.avoided = now + min(AVOIDED, now - self.pushes.since)
        self.weigh(now)

    @property
    def avoided_until(self) -> float:
        """Until when push-back lowers its share: as it asked, or longer if it does nothing else."""
        return max(self.pushed_until, self.avoided) if self.pushes.length else self.pushed_until

    def weigh(self, now: float) -> None:
        """Work out its share."""
        self.share = self.share_at(now)

    def share_at(self, now: float) -> float:
        """Its share, whether or not anybody has looked. For one that is not out."""
        if now < self.avoided_until:
            return LEAST * 0.5 ** min(HALVINGS, max(0, self.pushes.length - 1))
        if self.held:
            return LEAST
        ramp = (now - self.ramp_since) / RAMP
        return 1.0 if ramp >= 1 else max(LEAST, ramp)

    def keep(self, sample: Sample, active: int) -> None:
        """Take a new attempt in. ``active`` are in flight. 0.1 us."""
        if self.skip:
            self.skip -= 1
        else:
            self.recent.append(sample)
            self.skip = active // (KEPT // 2)

    def times(self, now: float) -> list[float]:
        """Known times to first byte, sorted. O(KEPT), about 6 us."""
        oldest = now - SPAN
        return sorted(
            [
                each.seconds
                for each in self.recent
                if (each.verdict or each.resolve()) == TIMED
                and each.started + each.seconds >= oldest
            ]
        )

    def slower_than(self, limit: float, now: float) -> Finding | None:
        """Whether its median time to first byte is above ``limit``, as far as the newest attempts
        can tell. One that still waits for it counts as soon as that is certain, and twice when it
        has waited twice as long: an endpoint that hangs gets only a few. O(KEPT), mostly O(8)."""
        oldest = now - SPAN
        n = slow = 0
        seen: list[float] = []
        for each in reversed(self.recent):
            verdict = each.verdict or each.resolve()
            if verdict == TIMED:
                seconds = each.seconds
                if each.started + seconds < oldest:
                    continue
                n += 1
            elif verdict == ANSWERED:
                continue
            else:
                seconds = each.seconds if verdict else now - each.started
                if seconds <= limit or (verdict and each.started + seconds < oldest):
                    continue
                n += 1
                if seconds > 2 * limit:
                    n += 1
                    slow += 1
                    seen.append(seconds)
            if seconds > limit:
                slow += 1
            seen.append(seconds)
            if slow >= NEEDED[n]:
                seen.sort()
                return Finding(each.started, len(seen), seen[len(seen) // 2])
            if n - slow >= NEEDED[n]:
                return None
        return None

    def fails(self, share: float, row: int, now: float) -> Finding | None:
        """Whether ``share`` or more of at least ``VOLUME`` newest attempts failed, and ``row`` or
        more of them. O(KEPT) if anything has failed lately."""
        oldest = now - WINDOW
        if self.failed_at < oldest:
            return None
        n = failed = 0
        for each in reversed(self.recent):
            verdict = each.verdict or each.resolve()
            if verdict in (PENDING, IGNORED) or each.started + each.seconds < oldest:
                continue
            n += 1
            failed += verdict == FAILED
            if not failed and n == ENOUGH:
                return None
            if n >= VOLUME and failed >= row and failed >= share * n:
                return Finding(each.started, n, failed / n)
        return None

    def fine(self) -> bool:
        """Whether the newest ``ENOUGH`` attempts that are over were good."""
        n = 0
        for each in reversed(self.recent):
            verdict = each.verdict or each.resolve()
            if verdict == FAILED:
                return False
            if verdict in (TIMED, ANSWERED):
                n += 1
                if n == ENOUGH:
                    return True
        return False

    def failed_since(self, since: float) -> tuple[int, int]:
        """(failed, over) of the attempts that started since then."""
        failed = over = 0
        for each in reversed(self.recent):
            if each.started < since:
                break
            verdict = each.verdict or each.resolve()
            if verdict not in (PENDING, IGNORED):
                over += 1
                failed += verdict == FAILED
        return failed, over

    def slow_since(self, since: float, limit: float, now: float) -> tuple[int, int]:
        """(slower than ``limit``, known to be either) of the attempts started since then."""
        slow = known = 0
        for each in reversed(self.recent):
            if each.started < since:
                break
            verdict = each.verdict or each.resolve()
            if verdict == ANSWERED:
                continue
            seconds = each.seconds if verdict else now - each.started
            if seconds > limit:
                slow += 1
                known += 1
            elif verdict == TIMED:
                known += 1
        return slow, known

    def phase_at(self, now: float) -> Phase:
        """The phase, whether or not anybody has looked since an ejection ended."""
        if self.phase is Phase.EJECTED and now >= self.until:
            return Phase.PROBING
        return self.phase
