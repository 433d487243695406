"""What refusals of the upstream do to a limit, and for how long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.limits import AdaptiveLimit
from filters.push_back import LONGEST_PAUSE, PushBack


def lowered(value: int = 512, others: int = 1) -> tuple[PushBack, int, float]:
    """A limit that refusals among good answers have lowered as far as they can, and when."""
    push, now = PushBack(), 0.0
    while value > others:
        now += 0.01
        push.good = True
        value = push.refused(now, value, others, 1) or value
    return push, value, now


def test_a_server_that_refuses_everything_is_not_full() -> None:
    push = PushBack()
    assert push.refused(1.0, 512, 100, 1) == 256
    for n in range(1000):
        assert push.refused(1.0 + n / 100, 256, 100, 1) is None


def test_a_step_that_is_refused_is_taken_back_and_the_next_comes_later() -> None:
    push, value, now = lowered(others=16)
    pauses = []
    for _ in range(6):
        since = now
        while (grown := push.grow(now, value)) is None:
            now += 0.01
        pauses.append(now - since)
        assert grown == 17
        push.good = True
        assert push.refused(now, grown, 16, 1) == 16
    assert [round(each) for each in pauses] == [1, 2, 4, 8, 8, 8]


def test_a_spell_of_refusals_ends_and_one_more_is_no_reason_to_return_to_before() -> None:
    push, value, now = lowered(others=16)
    for _ in range(200):
        assert push.answered(now, value) is None
    assert not push.active
    grown = push.grow(now + 1, value)
    assert grown == 17
    push.good = True
    assert push.refused(now + 1, grown, 16, 1) == 16
    for _ in range(200):
        assert not push.active or push.answered(now, 16) is None


def test_a_limit_that_stands_for_other_reasons_does_not_grow() -> None:
    push, value, now = lowered()
    push.settled()
    assert push.grow(now + 1000, value) is None


@given(
    st.integers(1, 600),
    st.integers(1, 600),
    st.lists(st.tuples(st.sampled_from("rgw"), st.floats(0, 10), st.integers(0, 600)), max_size=80),
)
def test_whatever_comes_it_stays_within_bounds_and_comes_back(
    value: int, least: int, events: list[tuple[str, float, int]]
) -> None:
    """``events``: a refusal, a good answer or a waiter, so many seconds later, with so many others
    in flight."""
    most = value = max(value, least)
    push, now = PushBack(), 0.0
    for kind, seconds, others in events:
        now += seconds
        if kind == "r":
            moved = push.refused(now, value, others, least)
        elif kind == "g":
            push.good = True
            moved = push.answered(now, value) if push.active else None
        else:
            moved = push.grow(now, value)
        value = moved or value
        assert least <= value <= most
    for _ in range(20):  # while somebody waits and nothing is refused, it is back in seconds
        now += LONGEST_PAUSE
        value = push.grow(now, value) or value
    assert value == most or not push.ceiling


# -- and to the adaptive limit ---------------------------------------------------------------------


@pytest.mark.parametrize("value", [512, 10, 2])
def test_push_back_lowers_it_at_once(value: int) -> None:
    limit = AdaptiveLimit(value)
    limit.pushed_back(1.0, 5)
    assert limit.value == limit.level == min(value, max(5, value // 2))
    for _ in range(8):  # by half at the most, so that one in a quiet moment does no harm
        limit.pushed_back(1.0, 5)
    assert limit.value == min(value, max(5, value // 2))  # it has answered nothing meanwhile
    for _ in range(8):
        limit.ended(1.0, 0.02, 5, 0, 5, False)
        limit.pushed_back(1.0, 5)
    assert limit.value == limit.level == min(value, 5)


def test_push_back_with_nothing_else_in_flight_says_nothing_about_concurrency() -> None:
    limit = AdaptiveLimit(512, 3)
    for _ in range(100):
        limit.pushed_back(1.0, 0)
    assert limit.value == limit.level == 512


def test_after_push_back_it_grows_by_time_alone_while_somebody_waits() -> None:
    limit = AdaptiveLimit(512)
    for _ in range(9):
        limit.ended(1.0, 0.02, 2, 0, 1, False)
        limit.pushed_back(1.0, 1)
    assert limit.value == 1
    limit.waits(1.5)
    assert limit.value == 1
    now = 1.0
    while limit.value < 512:
        now += 0.5
        limit.waits(now)
        assert now < 12
    limit.waits(now + 100)
    assert limit.value == 512
