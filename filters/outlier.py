"""outlier: take an endpoint out that is worse than the others, and let it back in carefully.

Three charges: failures in a row, a share of failures, a slow first byte. None of them holds but
against the others in the same time, because what all endpoints show is no endpoint's fault: an
outage behind them, a broken client, a surge. So when everything looks bad, nobody is ejected, and
who was comes back.

An ejection lasts ``base_ejection``, doubled with each repeat; then one real request decides (two if
the first is late), and after a good one the endpoint's share grows over ``RAMP`` seconds. Every
state ends by itself: an ejection by the time, a probe by its answer or by being late, a charge by
newer attempts.

Differs from Envoy: no statistics over a fixed interval (10 s of damage), no minimum of five hosts,
a probe instead of a return at full share, and latency, which Envoy has been asked for since 2016.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec

from filters import charges
from filters.api import Kind
from filters.charges import Charge, spelled
from filters.standing import ANSWERED, FAILED, TIMED, Cause, Finding, Phase, Sample, Standing
from filters.units import Count, Duration, Share, Struct

LONE = 1.0
"""Seconds for which a cluster's only endpoint is ejected: asking costs one refused connection."""
BY_HAND = 3600.0
"""Seconds for which an operator's ejection lasts, for those that are forgotten."""
TRIED = 16
"""Charges that are looked into at once: in large clusters where much fails, each takes time."""


class Config(Struct, frozen=True):
    """``consecutive_failures`` in a row, or ``failure_percent`` of a window against the others, or
    a time to first byte ``latency_factor`` times the others' median (None: off) eject an endpoint
    for ``base_ejection``, doubling up to ``max_ejection``; at most ``max_ejected`` of a cluster,
    but always one of several."""

    consecutive_failures: Count = 5
    failure_percent: Share | None = 0.5
    latency_factor: Annotated[float, msgspec.Meta(gt=1, le=100)] | None = 3.0
    base_ejection: Duration = 5.0
    max_ejection: Duration = 12.0
    max_ejected: Share = 0.5
    dry_run: bool = False


class Act(StrEnum):
    EJECTED = "ejected"
    WOULD_EJECT = "would_eject"
    RESTORED = "restored"
    DOUBTED = "doubted"
    """Everything looks bad, so the judge is suspect: nobody is ejected."""
    TRUSTED = "trusted"
    """Somebody is well again."""


class Effect(NamedTuple):
    """What was decided: for the log, and a reason to work out again who may be chosen."""

    act: Act
    standing: Standing | None
    why: str


def cap(members: int, share: float) -> int:
    """How many of several endpoints may be out: at least one, never all."""
    return min(members - 1, max(1, int(members * share)))


class Policy:
    """Who is out, of one cluster. Pure: standings and ``now`` in, effects out.

    ``failed`` is O(1) and is called for failures only; a good attempt costs nothing here.
    ``evaluate`` is O(endpoints), some 10 us each; the caller runs it every ``interval``, and when
    ``failed`` says so, which is once per row of failures.
    """

    def __init__(self, config: Config | None, *, latency: bool = True) -> None:
        """``config`` None: only by hand. ``latency`` False: slow endpoints are not charged, because
        the attempts at each are of different kinds (consistent hashing)."""
        self.config = config or Config()
        self._on = config is not None
        self._acts = self._on and not self.config.dry_run
        self._factor = self.config.latency_factor if self._on and latency else None
        self._typical = 0.0
        self._limit = 0.0
        self.doubted = False
        self.ejections = dict.fromkeys(Cause, 0)
        self.would_eject = dict.fromkeys(Cause, 0)
        self.restored = self.probes = self.doubts = 0

    def take_over(self, before: "Policy") -> None:
        """Adopt the counts of the policy that a reload replaces; what it knows is in standings."""
        self.doubted = before.doubted
        self.ejections, self.would_eject = before.ejections, before.would_eject
        self.restored, self.probes = before.restored, before.probes
        self.doubts = before.doubts

    def describe(self, now: float) -> dict[str, object]:
        """``limit_ms``: the time to first byte above which an endpoint is an outlier now."""
        return {
            "on": self._on,
            "dry_run": self.config.dry_run,
            "doubted": self.doubted,
            "limit_ms": round(self._limit * 1000, 1) or None,
            "ejections": {each.value: n for each, n in self.ejections.items()},
            "would_eject": {each.value: n for each, n in self.would_eject.items()},
            "restored": self.restored,
            "probes": self.probes,
            "doubts": self.doubts,
        }

    @staticmethod
    def interval(members: int) -> float:
        """Seconds between two evaluations: they take about 0.3 % of a CPU."""
        return 0.25 + 0.0025 * members

    # -- what attempts say ----------------------------------------------------------------------

    def failed(
        self, s: Standing, sample: Sample, what: str, now: float, *, refused: bool, late: bool
    ) -> bool:
        """Count a failure. ``refused``: the connection was; ``late``: after a good head. True when
        it is time to evaluate."""
        sample.verdict = FAILED
        sample.seconds = now - sample.started
        if sample.started < s.since:  # of the time before its last ejection or return
            return False
        s.failed_at = now
        s.last = what
        s.refusals = s.refusals + 1 if refused else 0
        row = s.breaks if late else s.failures
        row.add(sample.started)
        limit = self.config.consecutive_failures
        s.accused |= row.length >= limit
        return limit in (row.length, s.refusals)

    def probed(self, s: Standing, kind: Kind, now: float, *, ended: bool) -> list[Effect]:
        """How the probe of ``s`` fared. While it has not ``ended``, its first byte may still be to
        come, or its last, where that is what decides."""
        probe = s.probe
        if probe is None or s.phase is Phase.HEALTHY:
            s.probe = None
            return []
        if kind is Kind.FAILED:
            return self._probe_failed(s, s.last, now)
        if kind is Kind.PUSHED_BACK:
            return [self._restore(s, "its probe was pushed back, so it works", now)]
        verdict = probe.resolve()
        late = now - probe.started > self.config.max_ejection
        if s.whole and not ended and not late:
            return []
        if verdict in (TIMED, ANSWERED):
            limit = self._limit or s.limit
            if s.cause is Cause.LATENCY and probe.seconds > limit:
                why = f"time to first byte {spelled(probe.seconds)}, allowed are {spelled(limit)}"
                return self._probe_late(s, why, now)
            return [self._restore(s, f"its probe was answered in {spelled(probe.seconds)}", now)]
        if kind is Kind.IGNORED:
            # Its caller left, or a hedge was faster. Without a verdict, the next request decides.
            waited = now - probe.started
            if waited > (self._typical or LONE):
                return self._probe_late(s, f"nothing came in {spelled(waited)}", now)
            s.probe = None
        return []

    # -- by hand --------------------------------------------------------------------------------

    def eject(self, s: Standing, everyone: Sequence[Standing], why: str, now: float) -> str:
        """Eject for ``BY_HAND`` seconds, anew from now if it was by hand. "", or why it must not
        be."""
        out = sum(each.phase is not Phase.HEALTHY for each in everyone if each is not s)
        if len(everyone) < 2:
            return "it is the cluster's only endpoint"
        allowed = cap(len(everyone), self.config.max_ejected)
        if out >= allowed:
            return f"{out} of {len(everyone)} endpoints are out already, {allowed} may be"
        if not any(e.phase is Phase.HEALTHY and e.checked for e in everyone if e is not s):
            return "no other endpoint is healthy"
        if s.cause is Cause.MANUAL and s.phase_at(now) is Phase.EJECTED:
            s.why, s.until = why, now + BY_HAND
        else:
            self._out(s, Cause.MANUAL, why, now, BY_HAND)
        return ""

    def restore(self, s: Standing, now: float) -> list[Effect]:
        """Back at once, by way of the ramp. Nothing if it is not out."""
        if s.phase is Phase.HEALTHY:
            return []
        s.repeats = 0
        return [self._restore(s, "restored by hand", now)]

    # -- the look at all of them ----------------------------------------------------------------

    def evaluate(self, everyone: Sequence[Standing], now: float) -> list[Effect]:
        """Decide with what is known now. Sets each ``share``. The order of ``everyone`` decides
        nothing but ties."""
        effects: list[Effect] = []
        for s in everyone:
            s.held = ""
            if s.phase is not Phase.HEALTHY:
                effects += self._advance(s, now)
        effects += self._within_cap(everyone, now)
        if not self._acts:
            effects += self._pardon(everyone, "ejection is off", now)
        if self._on:
            if len(everyone) == 1:
                effects += self._judge_alone(everyone[0], now)
            elif everyone:
                effects += self._judge(everyone, now)
        for s in everyone:
            s.accused = False
            s.weigh(now)
        return effects

    def _advance(self, s: Standing, now: float) -> list[Effect]:
        """What time does to an ejected endpoint."""
        if s.phase is Phase.EJECTED:
            if now >= s.until:
                s.phase = Phase.PROBING
                s.probe = None
            return []
        probe = s.probe
        if probe is None:
            return []
        if probe.resolve() == TIMED:
            return self.probed(s, Kind.OK, now, ended=False)
        limit = self._limit or s.limit
        slow = s.cause is Cause.LATENCY
        if not slow:
            limit = max(limit, self.config.max_ejection)
        waited = now - probe.started
        if waited <= limit:
            return []
        why = f"no answer in {spelled(waited)}"
        if slow:
            return self._probe_late(s, why, now)
        return self._probe_failed(s, why, now, hangs=True)

    def _within_cap(self, everyone: Sequence[Standing], now: float) -> list[Effect]:
        """The cluster may have shrunk, or the cap."""
        out = [each for each in everyone if each.phase is not Phase.HEALTHY]
        if not out or len(everyone) == 1:
            lone = [s for s in out if s.cause is not Cause.REFUSED]
            return [self._restore(s, "it is the only one left", now) for s in lone]
        spare = len(out) - cap(len(everyone), self.config.max_ejected)
        if spare <= 0:
            return []
        out.sort(key=lambda s: (s.cause is Cause.MANUAL, s.until))
        return [self._restore(s, "too many are out", now) for s in out[:spare]]

    def _judge_alone(self, s: Standing, now: float) -> list[Effect]:
        """The only endpoint: refused connections are certain, and cost nothing to find out again.
        Anything else it does is the best that there is."""
        row = self.config.consecutive_failures
        if s.phase is not Phase.HEALTHY or s.refusals < row or not s.accused:
            return []
        why = f"{s.refusals} refused connections in a row"
        return self._convict(Charge(s, Cause.REFUSED, why, 1, Finding(now, row, 1)), now)

    def _judge(self, everyone: Sequence[Standing], now: float) -> list[Effect]:
        inside = [s for s in everyone if s.phase is Phase.HEALTHY and s.checked]
        row, share = self.config.consecutive_failures, self.config.failure_percent
        found = [charges.failing(s, row, share, now) for s in inside]
        charged = [each for each in found if each is not None]
        if inside and len(charged) == len(inside):
            return self._doubt(everyone, now)
        if self.doubted:
            return self._trust(inside)
        effects: list[Effect] = []
        if self._factor is not None:
            names = {each.standing.name for each in charged}
            slow, self._typical = charges.slow(inside, self._factor, now)
            self._limit = charges.over(self._typical, self._factor) if self._typical else 0.0
            charged += [each for each in slow if each.standing.name not in names]
            effects += self._relieve(everyone, now)
        charged.sort(key=lambda each: each.weight, reverse=True)
        out = sum(s.phase is not Phase.HEALTHY for s in everyone)
        allowed = min(cap(len(everyone), self.config.max_ejected) - out, len(inside) - 1)
        names = {each.standing.name for each in charged}
        others = [s for s in inside if s.name not in names]
        for charge in charged[:TRIED]:
            s = charge.standing
            if now < s.muted_until or not charges.confirmed(charge, others, now):
                continue
            if allowed > 0:
                allowed -= 1
                effects += self._convict(charge, now)
            elif self._acts:
                s.held = charge.why
        return effects

    def _relieve(self, everyone: Sequence[Standing], now: float) -> list[Effect]:
        """Without a slow endpoint the others have become as slow: they need what it can do."""
        typical = self._typical
        slow = [s for s in everyone if s.phase is not Phase.HEALTHY and s.cause is Cause.LATENCY]
        needed = [s for s in slow if typical >= s.measured]
        for s in needed:
            s.spared_until = now + self.config.max_ejection
        return [self._restore(s, "the others have become as slow", now) for s in needed]

    def _doubt(self, everyone: Sequence[Standing], now: float) -> list[Effect]:
        """All that are left look bad: the fault is behind them, and who is out is no worse."""
        effects = self._pardon(everyone, "everything looks bad", now)
        if not self.doubted:
            self.doubted = True
            self.doubts += 1
            if self._acts:
                why = "every endpoint fails, so none is ejected"
                effects.append(Effect(Act.DOUBTED, None, why))
        return effects

    def _pardon(self, everyone: Sequence[Standing], why: str, now: float) -> list[Effect]:
        """Back at full share for all but those that an operator took out."""
        out = [s for s in everyone if s.phase is not Phase.HEALTHY and s.cause is not Cause.MANUAL]
        return [self._restore(s, why, now, ramp=False) for s in out]

    def _trust(self, inside: Sequence[Standing]) -> list[Effect]:
        if not any(s.fine() for s in inside):
            return []
        self.doubted = False
        if not self._acts:
            return []
        for s in inside:  # what they show from now on counts, not who recovered first
            s.forget()
        return [Effect(Act.TRUSTED, None, "not every endpoint fails any more")]

    # -- changes --------------------------------------------------------------------------------

    def _convict(self, charge: Charge, now: float) -> list[Effect]:
        s = charge.standing
        if self.config.dry_run:
            self.would_eject[charge.cause] += 1
            s.muted_until = now + self.config.base_ejection
            return [Effect(Act.WOULD_EJECT, s, charge.why)]
        s.repeats = max(0, s.repeats - self._quiet(s, now))
        s.limit, s.measured = charge.limit or self._limit, charge.found.value
        s.whole = s.breaks.length > s.failures.length
        self._out(s, charge.cause, charge.why, now, self._length(s, charge.cause))
        return [Effect(Act.EJECTED, s, charge.why)]

    def _quiet(self, s: Standing, now: float) -> int:
        """Repeats that a healthy time has made good: one for each ``max_ejection``."""
        longest = self.config.max_ejection
        return int((now - s.since) / longest) if longest else s.repeats

    def _length(self, s: Standing, cause: Cause) -> float:
        if cause is Cause.REFUSED:
            s.repeats += s.repeats < 2  # a repeat is told from the first, and a long outage is one
            return LONE
        longest = max(self.config.base_ejection, self.config.max_ejection)
        seconds = float(min(longest, self.config.base_ejection * 2 ** min(s.repeats, 60)))
        s.repeats += 1
        return seconds

    def _out(self, s: Standing, cause: Cause, why: str, now: float, seconds: float) -> None:
        s.eject(cause, why, now, seconds)
        self.ejections[cause] += 1

    def _probe_late(self, s: Standing, what: str, now: float) -> list[Effect]:
        """One late answer may be chance, as times to first byte are spread; two in a row hardly
        are. So the next request is a probe, too, before the endpoint is out again."""
        if s.late:
            return self._probe_failed(s, what, now)
        s.late = True
        s.probe = None
        return []

    def _probe_failed(
        self, s: Standing, what: str, now: float, *, hangs: bool = False
    ) -> list[Effect]:
        """Out again, for longer. A probe that only hangs may still be answered, and then counts."""
        probe = s.probe
        if s.phase is Phase.EJECTED:  # it is out again already, for being late
            s.probe = None
            return []
        cause = s.cause or Cause.CONSECUTIVE
        if cause is Cause.MANUAL:
            cause = Cause.CONSECUTIVE
        why = f"its probe failed: {what}"
        self._out(s, cause, why, now, self._length(s, cause))
        s.probe = probe if hangs else None
        return [Effect(Act.EJECTED, s, why)]

    def _restore(self, s: Standing, why: str, now: float, *, ramp: bool = True) -> Effect:
        s.restore(why, now, ramp=ramp)
        self.restored += 1
        return Effect(Act.RESTORED, s, why)
