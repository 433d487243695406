"""A cluster: its endpoints, who of them may be chosen, and one attempt at the chosen one."""

from random import Random
from typing import cast

from filters.api import Attempt, Clock, Kind, Outcome, Reason
from gateway import config
from gateway.balancer import Balancer
from gateway.endpoint import Endpoint
from gateway.health import usable

_IGNORED = Outcome(Kind.IGNORED)
LOAD_STATUSES = (429, 503)


class Permit:
    """The right to be in flight at one endpoint; released once, at the last byte."""

    __slots__ = ("_clock", "_endpoint", "_started", "answer")

    def __init__(self, endpoint: Endpoint, clock: Clock, now: float) -> None:
        self._endpoint: Endpoint | None = endpoint
        self._clock = clock
        self._started = now
        self.answer: float | None = None
        endpoint.start(now)

    def release(self, outcome: Outcome) -> None:
        """``outcome`` says whether the endpoint is to be thought less of."""
        endpoint, self._endpoint = self._endpoint, None
        assert endpoint is not None, "a permit is released once"
        now = self._clock.now()
        end = self.answer if self.answer is not None else now
        endpoint.settle(now, end - self._started, outcome)


class Cluster:
    """Named endpoints serving the same models. Choosing is O(1) while every endpoint is untried."""

    def __init__(
        self, name: str, settings: config.Cluster, balancer: Balancer, clock: Clock, rng: Random
    ) -> None:
        self.name = name
        self.settings = settings
        self._balancer = balancer
        self._clock = clock
        self._rng = rng
        self._hash_header = settings.balance.hash_by.removeprefix("header:").lower().encode()
        self._hashed = settings.balance.policy == "consistent_hash"
        self.endpoints: dict[str, Endpoint] = {}
        self._candidates: list[Endpoint] = []

    def members(self, endpoints: dict[str, Endpoint]) -> None:
        """Replace the membership; endpoints that are gone finish what they have."""
        for name, endpoint in self.endpoints.items():
            if endpoints.get(name) is not endpoint:
                endpoint.pool.retire()
        self.endpoints = endpoints
        self.refresh()

    def refresh(self) -> None:
        """Work out again who may be chosen. If every check fails, the checks are doubted."""
        everyone = list(self.endpoints.values())
        flags = usable([each.healthy for each in everyone])
        self._candidates = [each for each, ok in zip(everyone, flags, strict=True) if ok]

    def choose(self, attempt: Attempt) -> Endpoint | None:
        """An endpoint for this attempt: one that was not tried yet, if there is one."""
        candidates = self._candidates
        if attempt.tried:
            candidates = [
                each for each in candidates if each.name not in attempt.tried
            ] or candidates
        if not candidates:
            return None
        if len(candidates) == 1:
            return candidates[0]
        key = None
        if self._hashed:
            exchange = attempt.exchange
            key = exchange.request.index.get(self._hash_header) or exchange.client.encode()
        now = self._clock.now()
        return cast("Endpoint", self._balancer.choose(candidates, now, self._rng, key))

    async def attempt(self, attempt: Attempt) -> Outcome:
        """The innermost service of the attempt chain: choose, send, return at a usable head."""
        endpoint = self.choose(attempt)
        if endpoint is None:
            return Outcome(Kind.FAILED, 0, Reason.NO_ENDPOINT, sent=False, complete=False)
        attempt.endpoint = attempt.exchange.endpoint = endpoint.name
        attempt.exchange.attempts += 1
        # Without the retry filter nobody else counts.
        attempt.started = now = self._clock.now()
        permit = Permit(endpoint, self._clock, now)
        try:
            outcome = await endpoint.pool.send(attempt)
        except BaseException:
            permit.release(_IGNORED)
            raise
        answer = outcome.answer
        if answer is None:
            permit.release(outcome)
            return outcome
        outcome.permit = permit
        permit.answer = self._clock.now()
        if outcome.status >= 500:
            outcome.kind = Kind.FAILED
            outcome.reason = Reason.UPSTREAM_STATUS
        if outcome.status in LOAD_STATUSES:
            outcome.retry_after = retry_after(answer.headers)
        return outcome


def retry_after(headers: list[tuple[bytes, bytes]]) -> float | None:
    """Seconds that the upstream asks to wait; its date form is not worth a clock of its own."""
    for name, value in headers:
        if name.lower() == b"retry-after" and value.isdigit() and len(value) < 10:
            return float(value)
    return None
