"""The line in which first attempts stand until they are late, with one alarm for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.hedge import Line
from tests.filters.doubles import HandClock

if TYPE_CHECKING:
    from filters.race import Race


class Stand:
    """A line of numbers in the place of races, and when each of them was late."""

    def __init__(self) -> None:
        self.clock = HandClock(0.0)
        self.late: dict[int, float] = {}
        self.line = Line(self.clock, lambda race, now: self.rang(cast("int", race), now))
        self.bad: int | None = None

    def rang(self, number: int, now: float) -> None:
        assert number not in self.late
        self.late[number] = now
        if number == self.bad:
            raise ValueError("a mistake")

    def add(self, number: int, due: float) -> None:
        self.line.add(cast("Race", number), due)

    def remove(self, number: int) -> None:
        self.line.remove(cast("Race", number))

    @property
    def alarms(self) -> int:
        return sum(each.when > self.clock.now() for each in self.clock.timers)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(0, 12)), min_size=1, max_size=20
    )
)
def test_each_is_late_once_never_early_and_never_after_it_left(
    comes: list[tuple[int, int, int]],
) -> None:
    """Each comes so many seconds after the one before, is due after so many, and then leaves."""
    stand, now = Stand(), 0
    arrivals = [now := now + gap for gap, _, _ in comes]
    for second in range(now + 30):
        for number, (_, delay, stay) in enumerate(comes):
            if second == arrivals[number]:
                stand.add(number, second + delay)
            if second == arrivals[number] + stay:
                stand.remove(number)
        assert stand.alarms <= 1
        stand.clock.advance(1.0)
    latest = 0
    for number, (_, delay, stay) in enumerate(comes):
        latest = max(latest, arrivals[number] + delay)
        assert (number in stand.late) == (latest <= arrivals[number] + stay)
        assert stand.late.get(number, latest) == latest
    assert stand.alarms == 0


def test_a_mistake_with_one_keeps_nobody_else_waiting() -> None:
    stand = Stand()
    stand.bad = 1
    for number, due in enumerate((1.0, 2.0, 2.0, 3.0)):
        stand.add(number, due)
    stand.clock.advance(1.0)
    with pytest.raises(ValueError, match="a mistake"):
        stand.clock.advance(1.0)
    stand.clock.advance(0.5)
    stand.clock.advance(0.5)
    assert list(stand.late) == [0, 1, 2, 3]
