"""What endpoints ask for holds for every exchange's retries, and for nobody's first attempt."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters import budget
from filters.api import Attempt, Kind, Outcome, Reason
from filters.retry import BASE, PATIENCE, Config, Policy, Retry, Stop
from tests.filters.doubles import HandClock, exchange

NOW = 1000.0
RESET = Outcome(Kind.FAILED, 0, Reason.UPSTREAM_RESET)


def pushed(status: int = 503, retry_after: float | None = 30.0) -> Outcome:
    reason = Reason.UPSTREAM_STATUS
    return Outcome(Kind.PUSHED_BACK, status, reason, retry_after=retry_after)


def decide(outcome: Outcome, earliest: float | None, config: Config = Config()) -> float | Stop:  # noqa: B008
    return Policy(config).decide(exchange(), outcome, 1, NOW, Random(1), earliest)


def test_another_endpoint_is_asked_at_once() -> None:
    delay = decide(pushed(), NOW)
    assert isinstance(delay, float)
    assert delay <= BASE


def test_without_one_the_first_of_them_is_waited_for() -> None:
    delay = decide(pushed(), NOW + 0.4)
    assert isinstance(delay, float)
    assert 0.4 <= delay <= 0.4 + BASE


def test_what_another_exchange_was_told_holds_for_a_failure_too() -> None:
    delay = decide(RESET, NOW + 0.4)
    assert isinstance(delay, float)
    assert delay >= 0.4
    assert decide(RESET, NOW + PATIENCE + 0.1) is Stop.RETRY_AFTER


def test_a_long_time_is_the_clients_to_wait() -> None:
    assert decide(pushed(), NOW + 30) is Stop.RETRY_AFTER
    assert decide(pushed(), None) is Stop.RETRY_AFTER


def test_429_is_the_clients_unless_it_is_asked_for() -> None:
    assert decide(pushed(429), NOW) is Stop.FINAL
    assert isinstance(decide(pushed(429), NOW, Config(on=(429,))), float)


@given(st.floats(-10, 10), st.one_of(st.none(), st.floats(0, 100)))
def test_never_before_the_time(wait: float, told: float | None) -> None:
    verdict = decide(pushed(retry_after=told), NOW + wait)
    if isinstance(verdict, Stop):
        assert wait > PATIENCE
    else:
        assert wait - 1e-9 <= verdict <= max(0.0, wait) + BASE
        assert verdict >= 0


class TestFilter:
    def make(self, at: float) -> tuple[Retry, list[float]]:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        purse = budget.Budget(budget.Config())
        made = Retry(
            Policy(Config()), purse, HandClock(NOW), Random(1), sleep, retry_at=lambda now: now + at
        )
        return made, slept

    @pytest.mark.parametrize("at", [0.0, 0.5])
    async def test_it_asks_the_cluster_when(self, at: float) -> None:
        filter_, slept = self.make(at)
        outcomes = [pushed(), Outcome(Kind.OK, 200)]

        async def upstream(attempt: Attempt) -> Outcome:
            return outcomes.pop(0)

        assert (await filter_(Attempt(exchange(), 1, ()), upstream)).status == 200
        assert len(slept) == 1
        assert at <= slept[0] <= at + BASE

    async def test_it_says_why_it_did_not(self) -> None:
        filter_, slept = self.make(30.0)

        async def upstream(attempt: Attempt) -> Outcome:
            return pushed()

        assert (await filter_(Attempt(exchange(), 1, ()), upstream)).retry_after == 30
        assert slept == []
        assert filter_.describe(NOW)["stopped"] == {"retry_after": 1}
        after, _ = self.make(0.0)
        after.take_over(filter_)
        assert after.stopped[Stop.RETRY_AFTER] == 1
