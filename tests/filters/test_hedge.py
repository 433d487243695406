"""Hedging: when a second attempt starts, who wins, and that nothing of the loser is left."""

from __future__ import annotations

import asyncio
from random import Random
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.api import Attempt, Exchange, Kind, Reason
from filters.hedge import CLASSES, ENOUGH, Config, Hedge, Policy, Refusal, Spawn, size_class
from filters.race import End
from tests.filters.doubles import HandClock
from tests.filters.races import BAD, DELAY, Script, Stage

LATE = 1.0
"""Seconds: far later than the delay."""


def play(*scripts: Script, **told: object) -> Stage:
    stage = Stage(scripts, **told).play()  # type: ignore[arg-type]
    stage.check()
    return stage


# -- who wins


def test_an_attempt_in_time_stays_alone() -> None:
    stage = play(Script("good", 0.05, 0.05))
    assert (stage.winner, stage.hedge.started) == ("e1", 0)
    assert stage.learned == [pytest.approx(0.1)]
    assert stage.hedge.refused == dict.fromkeys(Refusal, 0)


def test_a_head_without_a_body_is_no_answer_yet_and_is_overtaken() -> None:
    stage = play(Script("good", 0.01, LATE), Script("good", 0.1))
    assert (stage.winner, stage.hedge.ends[End.WON]) == ("e2", 1)
    assert stage.seconds == pytest.approx(DELAY + 0.1)
    assert stage.verdict(1) is Kind.IGNORED
    assert stage.attempt.tried == ("e1",)
    assert stage.upstream.attempts[1].tried == ("e1",)
    assert stage.upstream.attempts[1].number == 2


def test_an_attempt_without_a_head_is_overtaken_too() -> None:
    stage = play(Script("good", LATE), Script("good", 0.05, 0.05))
    assert (stage.winner, stage.hedge.ends[End.WON], stage.verdict(1)) == ("e2", 1, Kind.IGNORED)


def test_the_first_wins_when_it_comes_before_the_second() -> None:
    stage = play(Script("good", DELAY, 0.1), Script("good", 0.2))
    assert (stage.winner, stage.hedge.ends[End.LOST], stage.verdict(2)) == ("e1", 1, Kind.IGNORED)
    assert stage.learned == [pytest.approx(DELAY + 0.1)]
    assert stage.attempt.tried == ("e2",)


def test_what_is_learned_of_an_overtaken_attempt_is_how_long_it_ran() -> None:
    stage = play(Script("good", LATE), Script("good", 0.1))
    assert stage.learned == [pytest.approx(DELAY + 0.1)]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_second_never_wins_over_a_first_still_running(kind: str) -> None:
    stage = play(Script("good", LATE), Script(kind, 0.1))
    assert (stage.winner, stage.hedge.ends[End.FAILED]) == ("e1", 1)
    assert stage.seconds == pytest.approx(LATE)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_first_waits_for_the_second(kind: str) -> None:
    stage = play(Script(kind, DELAY + 0.01, 0.01), Script("good", 0.5))
    assert (stage.winner, stage.hedge.ends[End.WON]) == ("e2", 1)
    assert stage.seconds == pytest.approx(DELAY + 0.5)
    assert stage.learned == []


@pytest.mark.parametrize("first", BAD)
@pytest.mark.parametrize("second", BAD)
@pytest.mark.parametrize("pause", [0.05, 0.5])
def test_of_two_bad_ones_an_answer_is_better_than_none(
    first: str, second: str, pause: float
) -> None:
    stage = play(Script(first, DELAY + 0.1), Script(second, pause))
    assert stage.outcome is not None
    assert stage.hedge.ends[End.FAILED] == 1
    silent = ("refused", "breaks")
    answered = first not in silent or (second not in silent and pause > 0.1)
    assert (stage.outcome.answer is not None) == answered
    assert stage.learned == []
    assert set(stage.attempt.tried) | {stage.attempt.endpoint} == {"e1", "e2"}


def test_of_two_answers_the_less_bad_is_returned() -> None:
    assert play(Script("503", DELAY + 0.1), Script("404", 0.5)).winner == "e2"
    assert play(Script("503", DELAY + 0.1), Script("empty", 0.5)).winner == "e2"
    assert play(Script("404", DELAY + 0.1), Script("503", 0.5)).winner == "e1"
    assert play(Script("429", DELAY + 0.1), Script("503", 0.5)).winner == "e1"


@pytest.mark.parametrize(
    ("kind", "verdict"), [("503", Kind.FAILED), ("refused", Kind.FAILED), ("429", Kind.PUSHED_BACK)]
)
def test_a_loser_that_failed_by_itself_is_told_so_at_once(kind: str, verdict: Kind) -> None:
    stage = play(Script("good", LATE), Script(kind, 0.1), leaves=(DELAY + 0.2,))
    assert stage.verdict(2) is verdict


def test_an_empty_answer_is_good_where_nothing_else_is_to_come() -> None:
    assert play(Script("good", LATE), Script("303", 0.1)).winner == "e2"
    assert play(Script("good", LATE), Script("empty", 0.1), method=b"HEAD").winner == "e2"


def test_an_attempt_that_breaks_before_its_body_can_be_retried() -> None:
    stage = play(Script("breaks", 0.01, 0.05))
    assert stage.outcome is not None
    assert (stage.outcome.kind, stage.outcome.answer) == (Kind.FAILED, None)
    assert stage.outcome.reason is Reason.UPSTREAM_RESET
    assert stage.verdict(1) is Kind.FAILED


def test_a_mistake_in_the_second_attempt_is_reported_and_changes_nothing() -> None:
    stage = play(Script("good", LATE), Script("raises", 0.1))
    assert (stage.winner, stage.hedge.ends[End.FAILED]) == ("e1", 1)
    assert [type(each["exception"]) for each in stage.uncaught] == [ValueError]


def test_a_mistake_in_the_first_attempt_ends_both() -> None:
    stage = play(Script("raises", LATE), Script("good", 2 * LATE))
    assert isinstance(stage.raised, ValueError)
    assert (stage.verdict(2), stage.hedge.ends[End.ABANDONED]) == (Kind.IGNORED, 1)


def test_the_loser_is_awaited() -> None:
    stage = play(Script("good", DELAY + 0.1), Script("good", LATE, dying=3.0))
    assert stage.seconds == pytest.approx(DELAY + 3.1)
    stage = play(Script("good", LATE, dying=3.0), Script("good", 0.1))
    assert stage.winner == "e2"
    assert stage.seconds == pytest.approx(DELAY + 3.1)


@pytest.mark.parametrize(
    ("first", "second", "leaves"),
    [
        (Script("good", LATE), Script("good", LATE), 0.1),  # before the second
        (Script("good", LATE), Script("good", LATE), DELAY),  # as it starts
        (Script("good", 0.01, LATE), Script("good", 0.01, LATE), DELAY + 0.1),  # both have a head
        (Script("good", LATE), Script("good", 0.1), DELAY + 0.1),  # as the second wins
        (Script("good", LATE, dying=1.0), Script("good", 0.1), DELAY + 0.2),  # the first is dying
        (Script("good", DELAY + 0.1), Script("good", LATE, dying=1.0), DELAY + 0.2),  # the second
        (Script("503", DELAY + 0.1), Script("good", LATE), DELAY + 0.2),  # a bad one is held
        (Script("503", DELAY + 0.1), Script("good", LATE, dying=1.0), DELAY + 0.2),
    ],
)
def test_a_client_that_leaves_takes_both_along(
    first: Script, second: Script, leaves: float
) -> None:
    for again in ((), (leaves + 0.05,)):
        stage = play(first, second, leaves=(leaves, *again))
        assert isinstance(stage.raised, asyncio.CancelledError)
        assert stage.hedge.ends[End.WON] == stage.hedge.ends[End.LOST] == 0
        for number, script in enumerate(stage.scripts[: len(stage.upstream.permits)], 1):
            blamed = script.kind == "503"
            assert stage.verdict(number) is (Kind.FAILED if blamed else Kind.IGNORED)


# -- when there is no second attempt


@pytest.mark.parametrize(
    ("told", "refusal"),
    [
        ({"samples": 10}, Refusal.SAMPLES),
        ({"calm": False}, Refusal.NOT_CALM),
        ({"others": False}, Refusal.ALONE),
        ({"kept": False}, Refusal.BODY),
        ({"safe": False}, Refusal.UNSAFE),
        ({"requests": 19}, Refusal.BUDGET),
        ({"prepare": lambda exchange: setattr(exchange, "hedged", True)}, Refusal.HEDGED),
    ],
)
def test_no_second_attempt(told: dict[str, object], refusal: Refusal) -> None:
    stage = Stage((Script("good", 0.01, LATE),), **told).play()  # type: ignore[arg-type]
    assert (len(stage.upstream.attempts), stage.winner) == (1, "e1")
    assert {each: n for each, n in stage.hedge.refused.items() if n} == {refusal: 1}
    assert stage.hedge.started == 0
    assert stage.learned == [pytest.approx(LATE + 0.01)]


def test_an_upgrade_passes_untouched() -> None:
    def upgrade(exchange: Exchange) -> None:
        exchange.upgrade = True

    stage = play(Script("good", LATE, LATE), prepare=upgrade)
    assert stage.seconds == pytest.approx(LATE)  # the head, not the body
    assert stage.learned == []


def test_a_dry_run_counts_and_starts_nothing() -> None:
    stage = play(Script("good", LATE), config=Config(min=DELAY, dry_run=True))
    assert (stage.hedge.would_hedge, stage.hedge.started, stage.winner) == (1, 0, "e1")
    assert not stage.exchange.hedged
    assert stage.exchange.shadowed == "hedge"


# -- whatever the timing

ticks = st.integers(0, 12).map(lambda n: n * 0.05)
scripts = st.builds(
    Script,
    st.sampled_from(["good", "good", "good", "303", *BAD, "raises"]),
    ticks,
    ticks,
    st.sampled_from([0.0, 0.0, 0.05, 0.3]),
)


@given(scripts, scripts, st.lists(ticks, max_size=3))
def test_nothing_is_left_whatever_the_timing(
    first: Script, second: Script, leaves: list[float]
) -> None:
    stage = play(first, second, leaves=tuple(leaves))
    if not leaves:
        if first.kind == "raises" and first.ends <= DELAY:
            assert isinstance(stage.raised, ValueError)
        elif stage.raised is None:
            assert stage.counted == 0
    expected = ["a hedge failed"] if second.kind == "raises" else []
    assert [each["message"] for each in stage.uncaught] in ([], expected)


@given(scripts, scripts, st.lists(ticks, min_size=1, max_size=3))
def test_a_cancellation_is_never_swallowed(
    first: Script, second: Script, leaves: list[float]
) -> None:
    stage = play(first, second, leaves=tuple(leaves))
    if min(leaves) < stage.seconds and not isinstance(stage.raised, ValueError):
        assert isinstance(stage.raised, asyncio.CancelledError)
    for number, permit in enumerate(stage.upstream.permits, 1):
        if isinstance(stage.raised, asyncio.CancelledError):
            script = stage.scripts[number - 1]
            assert permit.released[0].kind is Kind.IGNORED or script.kind in BAD


@given(scripts, scripts)
def test_the_first_good_one_wins(first: Script, second: Script) -> None:
    stage = play(first, second)
    good = ("good", "303")
    times = {"e1": first.ends, "e2": DELAY + second.ends}
    if first.kind == "raises":
        return
    if first.ends < DELAY or second.kind not in good:
        times.pop("e2")
    if first.kind not in good:
        times.pop("e1")
    if first.ends < DELAY and first.kind not in good:
        return
    if len(times) == 2 and times["e1"] == pytest.approx(times["e2"]):
        assert stage.winner in times
    elif times and first.ends != pytest.approx(DELAY):
        assert stage.winner == min(times, key=lambda name: times[name])


# -- the delay


def learned(policy: Policy, seconds: list[float], now: float = 0.0) -> float | None:
    for each in seconds:
        policy.learn(2, each, now)
    return policy.delay(2, now)


def test_there_is_no_delay_until_enough_was_seen() -> None:
    policy = Policy(Config())
    assert policy.delay(2, 0.0) is None
    assert learned(policy, [0.1] * (ENOUGH - 1)) is None
    assert learned(policy, [0.1]) == pytest.approx(0.1, rel=0.05)
    assert policy.delay(2, 5.0) is None  # and then they were too long ago


def test_a_high_quantile_needs_two_samples_above_it() -> None:
    policy = Policy(Config(after=0.999))
    assert learned(policy, [0.1] * 1999) is None
    assert learned(policy, [0.1]) is not None


def test_the_delay_is_the_quantile_and_never_below_the_minimum() -> None:
    seconds = [0.1] * 900 + [0.5] * 100
    assert learned(Policy(Config(after=0.8)), seconds) == pytest.approx(0.1, rel=0.05)
    assert learned(Policy(Config(after=0.95)), seconds) == pytest.approx(0.5, rel=0.05)
    assert learned(Policy(Config(after=0.8, min=0.3)), seconds) == 0.3


def test_size_classes_do_not_learn_from_each_other() -> None:
    policy = Policy(Config())
    for _ in range(100):
        policy.learn(100, 0.1, 0.0)
        policy.learn(100_000, 2.0, 0.0)
        policy.learn(None, 5.0, 0.0)
    assert policy.delay(1, 0.0) == pytest.approx(0.1, rel=0.05)
    assert policy.delay(70_000, 0.0) == pytest.approx(2.0, rel=0.05)
    assert policy.delay(None, 0.0) == pytest.approx(5.0, rel=0.05)
    assert policy.delay(2000, 0.0) is None
    assert list(policy.describe(0.0)) == ["<1KiB", "<256KiB", "chunked"]


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_size_classes_are_in_order(a: int, b: int) -> None:
    assert size_class(min(a, b)) <= size_class(max(a, b))


def test_size_classes_are_what_they_are_called() -> None:
    for n, name in enumerate(CLASSES[:6]):
        limit = 1024 * 4**n
        assert CLASSES[size_class(limit - 1)] == name
        assert CLASSES[size_class(limit)] != name
    assert CLASSES[size_class(2**40)] == ">=1MiB"
    assert CLASSES[size_class(None)] == "chunked"


def test_hedging_does_not_pull_its_own_delay_down() -> None:
    """Overtaken attempts are known only up to then. Learning from winners alone, the delay would
    settle where a fifth of all exchanges is hedged."""
    policy, rng = Policy(Config(min=0.0)), Random(1)
    hedged = 0
    for n in range(40_000):
        now = n * 0.01
        first, second = rng.lognormvariate(-4, 0.5), rng.lognormvariate(-4, 0.5)
        delay = policy.delay(2, now)
        late = delay is not None and first > delay
        policy.learn(2, min(first, delay + second) if delay and late else first, now)
        hedged += late and n >= 20_000
    assert 0.035 < hedged / 20_000 < 0.055


def test_a_slow_quarter_moves_the_delay_only_after_seconds() -> None:
    """What row with one slow endpoint of four needs: hedges at the old delay until ejection."""
    policy, now = Policy(Config()), 0.0
    for n in range(30_000):
        now = n * 0.01
        policy.learn(2, 0.02 + 0.0001 * (n % 100), now)
    before = policy.delay(2, now)
    assert before is not None
    for n in range(400):
        now += 0.01
        policy.learn(2, 0.2 if n % 4 == 0 else 0.025, now)
    after = policy.delay(2, now)
    assert after is not None
    assert after < before * 1.1


# -- across reloads, and seen from outside


def made(config: Config) -> Hedge:
    return Stage((), config=config).made(HandClock(50.0), cast("Spawn", None))


def test_a_reload_keeps_counts_and_what_was_learned() -> None:
    before, after = made(Config()), made(Config(after=0.99))
    before.ends[End.WON], before.started = 3, 4
    before.refused[Refusal.BUDGET] = 7
    after.take_over(before)
    assert (after.ends[End.WON], after.started, after.refused[Refusal.BUDGET]) == (3, 4, 7)
    assert after.policy.delay(2, 50.0) is not None


def test_it_says_what_it_is_doing() -> None:
    told = made(Config()).describe(50.0)
    assert told["sizes"] == {"<1KiB": {"samples": 1000.0, "delay": pytest.approx(0.01, rel=0.05)}}
    assert set(told) >= {"started", "ends", "refused", "would_hedge", "dry_run"}


def test_a_second_attempt_is_never_hedged_itself() -> None:
    stage = play(Script("good", 5 * LATE), Script("good", 4 * LATE))
    assert len(stage.upstream.attempts) == 2
    assert isinstance(stage.upstream.attempts[1], Attempt)
