"""A cluster: its endpoints, who of them may be chosen, and one attempt at the chosen one."""

import logging
from collections.abc import Iterable
from random import Random
from typing import cast

from filters import outlier
from filters.api import OK, Attempt, Clock, Exchange, Headers, Kind, Outcome, Reason
from filters.outlier import Act, Effect
from filters.standing import (
    ANSWERED,
    FAILED,
    HEALTHY,
    IGNORED,
    PENDING,
    TIMED,
    Cause,
    Phase,
    Sample,
    Standing,
)
from gateway import config
from gateway.balancer import Balancer
from gateway.endpoint import Endpoint
from gateway.health import usable
from gateway.retry_after import retry_after

log = logging.getLogger("tailrace")

_IGNORED = Outcome(Kind.IGNORED)
LONGEST_NOTE = 200
LOAD_STATUSES = (429, 503)
UNSURE = 1.0
"""Seconds of Retry-After while a probe is under way."""
PATIENCE = 2.0
"""Seconds for which a probe waits for a request that may be sent again if it fails."""


class Permit(Sample):
    """The right to be in flight at one endpoint; released once, at the last byte. As a ``Sample``
    it is what ejection knows of the attempt."""

    __slots__ = ("_cluster", "_endpoint")

    def __init__(
        self, endpoint: Endpoint, cluster: "Cluster", exchange: Exchange, now: float
    ) -> None:
        self.started = now
        self.verdict = PENDING
        self.answer = None
        self._cluster = cluster
        self._endpoint: Endpoint | None = endpoint
        endpoint.start(now)
        if exchange.body.complete:  # else it is the client who is waited for
            endpoint.standing.keep(self, endpoint.active)

    def release(self, outcome: Outcome) -> None:
        """``outcome`` says whether the endpoint is to be thought less of."""
        endpoint, self._endpoint = self._endpoint, None
        assert endpoint is not None, "a permit is released once"
        cluster, standing = self._cluster, endpoint.standing
        now = cluster.clock.now()
        kind = outcome.kind
        verdict = self.verdict or self.resolve()
        seconds = self.seconds if verdict else now - self.started
        if kind is OK:
            if standing.breaks.length:
                standing.breaks.length = 0
            if not verdict:  # an answer without a body
                self.verdict = ANSWERED
                self.seconds = seconds
        elif kind is Kind.FAILED:
            if verdict != FAILED:
                cluster.broke(standing, self, outcome, now)
        elif not verdict:
            self.verdict = IGNORED
            self.seconds = seconds
        self.answer = None
        endpoint.settle(now, seconds, kind)
        if standing.probe is self:
            cluster.probed(endpoint, kind, now, ended=True)


class Cluster:
    """Named endpoints serving the same models. Choosing is O(1) while every endpoint is untried."""

    def __init__(
        self, name: str, settings: config.Cluster, balancer: Balancer, clock: Clock, rng: Random
    ) -> None:
        self.name = name
        self.settings = settings
        self._balancer = balancer
        self.clock = clock
        self._rng = rng
        self._hash_header = settings.balance.hash_by.removeprefix("header:").lower().encode()
        self._hashed = settings.balance.policy == "consistent_hash"
        self.outlier = outlier.Policy(settings.outlier, latency=not self._hashed)
        self.endpoints: dict[str, Endpoint] = {}
        self._candidates: list[Endpoint] = []
        self._probing: list[Endpoint] = []
        self._due = self._hurried = 0.0
        self.faults = 0
        self.pushed_until = 0.0

    # -- who belongs, and who takes part -------------------------------------------------------

    def members(self, endpoints: dict[str, Endpoint]) -> None:
        """Replace the membership; endpoints that are gone finish what they have."""
        for name, endpoint in self.endpoints.items():
            if endpoints.get(name) is not endpoint:
                endpoint.pool.retire()
        self.endpoints = endpoints
        self.refresh()

    def take_over(self, before: "Cluster") -> None:
        """Go on from the cluster that a reload replaces. Endpoints that stay bring what they know;
        endpoints that are out remain so under the new settings."""
        self.outlier.take_over(before.outlier)
        self.pushed_until = before.pushed_until

    def refresh(self) -> None:
        """An active check changed its mind, or the membership is another."""
        self._sort()
        self._due = 0.0

    def _sort(self) -> None:
        """Work out again who may be chosen. O(endpoints).

        If every active check fails, the checks are doubted. If nobody passes both judges, both are
        doubted, but not an operator; and a lone endpoint that refuses connections is believed.
        """
        everyone = list(self.endpoints.values())
        flags = usable([each.healthy for each in everyone])
        passing = [each for each, ok in zip(everyone, flags, strict=True) if ok]
        chosen = [each for each in passing if each.standing.phase is Phase.HEALTHY]
        if not chosen and len(everyone) > 1:
            chosen = [each for each in everyone if each.standing.cause is not Cause.MANUAL]
        self._candidates = chosen
        self._probing = [each for each in passing if each.standing.phase is not Phase.HEALTHY]
        for each in everyone:
            each.weigh()

    def look(self, now: float) -> None:
        """Let ejection look at all endpoints. O(endpoints), a few times a second: see
        ``outlier.Policy.interval``. Driven by traffic: without any there is nothing to decide. A
        fault of the judge is counted in ``faults``, and costs no exchange."""
        everyone = [each.standing for each in self.endpoints.values()]
        try:
            self._tell(self.outlier.evaluate(everyone, now))
        except Exception:
            if not self.faults:  # it may be one of every look
                log.exception("cluster %s: ejection failed", self.name)
            self.faults += 1
            for each in everyone:
                each.weigh(now)
        self._sort()
        ends = [s.until for s in everyone if s.phase is Phase.EJECTED]
        self._due = min([now + self.outlier.interval(len(everyone)), *ends])

    def eject(self, endpoint: Endpoint, why: str) -> str:
        """By an operator, for an hour or until restored. "", or why that must not be."""
        everyone = [each.standing for each in self.endpoints.values()]
        refusal = self.outlier.eject(endpoint.standing, everyone, why, self.clock.now())
        if not refusal:
            self._tell([Effect(Act.EJECTED, endpoint.standing, why)])
            self._sort()
        return refusal

    def restore(self, endpoint: Endpoint) -> None:
        """By an operator. Nothing happens if it is not out."""
        self._tell(self.outlier.restore(endpoint.standing, self.clock.now()))
        self._sort()

    def _tell(self, effects: Iterable[Effect]) -> None:
        for act, standing, why in effects:
            if standing is None:
                log.warning("cluster %s: %s", self.name, why)
                if act is Act.TRUSTED:
                    for each in self.endpoints.values():
                        each.pardon()
                continue
            where = f"endpoint {standing.name} of {self.name}"
            if act is Act.EJECTED:
                level = logging.INFO if standing.repeats > 1 else logging.WARNING
                log.log(level, "%s is ejected: %s", where, why)
            elif act is Act.WOULD_EJECT:
                log.warning("%s would be ejected: %s", where, why)
            else:
                log.info("%s is restored: %s", where, why)
                endpoint = self.endpoints.get(standing.name)
                if endpoint is not None:
                    endpoint.pardon()

    # -- what others ask -----------------------------------------------------------------------

    def calm(self, now: float) -> bool:
        """Whether no endpoint is pushing back. O(1)."""
        return now >= self.pushed_until

    def saturated(self, now: float) -> bool:
        """Whether all who may be chosen are pushing back. O(1) while nobody is."""
        return self.retry_at(now) > now

    def has_other(self, tried: tuple[str, ...]) -> bool:
        """Whether somebody may be chosen who is not among these. O(candidates) at most."""
        return any(each.name not in tried for each in self._candidates)

    def retry_at(self, now: float) -> float:
        """When a retry may go: now, unless every endpoint is pushing back. O(1), and O(candidates)
        while somebody is."""
        if now >= self.pushed_until:
            return now
        return max(now, min((e.standing.pushed_until for e in self._candidates), default=now))

    # -- one attempt ---------------------------------------------------------------------------

    def choose(self, attempt: Attempt, now: float) -> Endpoint | None:
        """An endpoint for this attempt: one that was not tried yet, if there is one."""
        if self._probing and not attempt.tried:
            endpoint = self._to_probe(attempt, now)
            if endpoint is not None:
                return endpoint
        candidates = self._candidates
        if attempt.tried:
            candidates = self._for_retry(attempt.tried, now)
        if not candidates:
            return None
        if len(candidates) == 1:
            return candidates[0]
        key = None
        if self._hashed:
            exchange = attempt.exchange
            key = exchange.request.index.get(self._hash_header) or exchange.client.encode()
        return cast("Endpoint", self._balancer.choose(candidates, now, self._rng, key))

    def _for_retry(self, tried: tuple[str, ...], now: float) -> list[Endpoint]:
        """Somebody untried who is not pushing back; else anybody who is not; else anybody untried.
        O(candidates)."""
        everyone = self._candidates
        untried = [each for each in everyone if each.name not in tried]
        if now >= self.pushed_until:
            return untried or everyone
        willing = [each for each in everyone if now >= each.standing.pushed_until]
        both = [each for each in willing if each.name not in tried]
        return both or willing or untried or everyone

    def _to_probe(self, attempt: Attempt, now: float) -> Endpoint | None:
        """An endpoint whose ejection is over and which nobody is probing. Best with a request that
        may be sent again, because then its caller does not suffer if the endpoint is still bad."""
        exchange = attempt.exchange
        for endpoint in self._probing:
            standing = endpoint.standing
            if standing.phase is not Phase.PROBING or standing.probe is not None:
                continue
            body = exchange.body
            safe = body.complete and body.replayable and exchange.route.replayable(exchange)
            if safe or not self._candidates or now >= standing.until + PATIENCE:
                return endpoint
        return None

    async def attempt(self, attempt: Attempt) -> Outcome:
        """The innermost service of the attempt chain: choose, send, return at a usable head."""
        now = self.clock.now()
        if now >= self._due:
            self.look(now)
        endpoint = self.choose(attempt, now)
        if endpoint is None:
            return self._nobody(now)
        exchange = attempt.exchange
        attempt.endpoint = exchange.endpoint = endpoint.name
        exchange.attempts += 1
        # Without the retry filter nobody else counts.
        attempt.started = now
        permit = Permit(endpoint, self, exchange, now)
        standing = endpoint.standing
        if standing.phase is not HEALTHY and standing.probe is None:
            standing.probe = permit
            self.outlier.probes += 1
        try:
            outcome = await endpoint.pool.send(attempt)
        except BaseException:
            if exchange.attempts > 1:
                self._note(attempt, None)
            permit.release(_IGNORED)
            raise
        answer = outcome.answer
        if answer is None:
            if outcome.reason is Reason.POOL_EXHAUSTED:  # busy with us, which is no failure
                if standing.probe is permit:  # it never got there: the next request probes
                    standing.probe = None
                outcome.kind = Kind.PUSHED_BACK
                self._pushed_back(endpoint, None, self.clock.now())
            self._note(attempt, outcome)
            permit.release(outcome)
            return outcome
        outcome.permit = permit
        status = outcome.status
        if status == 429 or status >= 500:
            self._refused(endpoint, permit, outcome, answer.headers)
            self._note(attempt, outcome)
            return outcome
        if exchange.attempts > 1:
            self._note(attempt, outcome)
        first = answer.first_byte
        if first is not None:
            permit.seconds = first - now
            permit.verdict = TIMED if status < 400 else ANSWERED
        elif status == 101:  # a tunnel owes no answer
            permit.seconds = self.clock.now() - now
            permit.verdict = ANSWERED
        else:
            permit.answer = answer
        if standing.failures.length:
            standing.failures.length = standing.refusals = 0
        if standing.pushes.length:
            standing.pushes.length = 0
        if standing.probe is permit:
            self.probed(endpoint, OK, self.clock.now(), ended=False)
        return outcome

    def _note(self, attempt: Attempt, outcome: Outcome | None) -> None:
        """For whoever asks why: not for a first attempt that goes well."""
        result = "given up"
        if outcome is not None:
            result = f"head {outcome.status}" if outcome.answer else str(outcome.reason)
            if outcome.detail:
                result += f": {outcome.detail}"
        what = f"attempt {attempt.number}"
        attempt.exchange.note(
            self.clock.now(), what, attempt.endpoint, attempt.started, result[:LONGEST_NOTE]
        )

    def _refused(
        self, endpoint: Endpoint, permit: Permit, outcome: Outcome, headers: Headers
    ) -> None:
        """An answer that is the endpoint's own trouble: failure or load."""
        now = self.clock.now()
        outcome.kind = Kind.FAILED
        outcome.reason = Reason.UPSTREAM_STATUS
        if outcome.status in LOAD_STATUSES:
            outcome.retry_after = retry_after(headers)
            if outcome.status == 429 or outcome.retry_after is not None:
                outcome.kind = Kind.PUSHED_BACK
        if outcome.kind is Kind.FAILED:
            self.broke(endpoint.standing, permit, outcome, now)
        else:
            permit.verdict = IGNORED
            permit.seconds = now - permit.started
            self._pushed_back(endpoint, outcome.retry_after, now)
        if endpoint.standing.probe is permit:
            self.probed(endpoint, outcome.kind, now, ended=True)

    def _pushed_back(self, endpoint: Endpoint, seconds: float | None, now: float) -> None:
        endpoint.standing.push_back(seconds, now)
        self.pushed_until = max(self.pushed_until, endpoint.standing.pushed_until)
        endpoint.push_back(now)
        endpoint.weigh()

    def broke(self, standing: Standing, permit: Permit, outcome: Outcome, now: float) -> None:
        """An attempt failed, before or after its head."""
        status = outcome.reason is Reason.UPSTREAM_STATUS or outcome.reason is None
        what = f"status {outcome.status}" if status else str(outcome.reason)
        late = permit.verdict != PENDING or permit.answer is not None
        refused = outcome.reason is Reason.CONNECT_FAILED
        if self.outlier.failed(standing, permit, what, now, refused=refused, late=late):
            # At once, but not once for each of many that begin to fail together.
            soon = self._hurried + self.outlier.interval(len(self.endpoints)) / 10
            if now >= soon:
                self._hurried = soon = now
            self._due = min(self._due, soon)

    def probed(self, endpoint: Endpoint, kind: Kind, now: float, *, ended: bool) -> None:
        """The probe of an ejected endpoint has come to something."""
        effects = self.outlier.probed(endpoint.standing, kind, now, ended=ended)
        if effects:
            self._tell(effects)
            self._sort()
            self._due = 0.0

    def _nobody(self, now: float) -> Outcome:
        """Everyone is out: say when the next probe is due."""
        out = [each.standing for each in self.endpoints.values()]
        waits = [s.until - now for s in out if s.phase is Phase.EJECTED]
        return Outcome(
            Kind.FAILED,
            0,
            Reason.NO_ENDPOINT,
            retry_after=max(0.0, min(waits, default=UNSURE)),
            sent=False,
            complete=False,
            detail=out[0].why if out else "",
        )
