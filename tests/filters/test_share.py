"""What push-back leaves an endpoint of its share."""

from __future__ import annotations

import pytest

from filters.standing import AVOIDED, HALVINGS, LEAST, PUSHED, SPAN
from tests.filters.fleet import Fleet


class TestPushBack:
    def test_it_gets_little_for_as_long_as_it_asked(self) -> None:
        fleet = Fleet(2)
        s = fleet.all[0]
        s.push_back(3.0, fleet.now)
        assert s.share == LEAST
        fleet.wait(2.9)
        assert s.share == LEAST
        fleet.wait(0.2)
        assert s.share == 1
        assert fleet.out == []

    def test_within_reason(self) -> None:
        fleet = Fleet(2)
        fleet.all[0].push_back(1e9, fleet.now)
        assert fleet.all[0].pushed_until == fleet.now + PUSHED
        fleet.all[1].push_back(None, fleet.now)
        assert fleet.all[1].pushed_until == fleet.now + 1
        fleet.all[0].push_back(2.0, fleet.now)
        assert fleet.all[0].pushed_until == fleet.now + PUSHED

    @pytest.mark.parametrize("seconds", [0.0, -1.0, 0.1])
    def test_no_push_back_is_over_at_once(self, seconds: float) -> None:
        fleet = Fleet(2)
        fleet.all[0].push_back(seconds, fleet.now)
        assert fleet.all[0].pushed_until == fleet.now + 1
        assert fleet.all[0].share == LEAST

    def test_in_a_row_its_share_goes_on_falling(self) -> None:
        fleet = Fleet(2)
        s = fleet.all[0]
        shares = []
        for _ in range(HALVINGS + 3):
            s.push_back(0.0, fleet.now)
            shares.append(s.share)
        assert shares[:3] == [LEAST, LEAST / 2, LEAST / 4]
        assert shares[-3:] == [LEAST / 2**HALVINGS] * 3
        fleet.serve(s)
        fleet.look()
        assert s.share == LEAST
        fleet.wait(1)
        assert s.share == 1

    def test_one_that_does_nothing_else_is_avoided_for_as_long_again(self) -> None:
        fleet = Fleet(2)
        s = fleet.all[0]
        began, asked = fleet.now, 0
        while fleet.now - began < 60:  # somebody asks it as soon as its share is whole again
            s.push_back(0.0, fleet.now)
            asked += 1
            assert s.avoided_until - fleet.now <= AVOIDED
            fleet.wait(s.avoided_until - fleet.now)
            assert s.share == 1
        assert asked <= 9
        s.push_back(0.0, fleet.now)
        fleet.serve(s)  # it works: no longer than it asked
        assert s.avoided_until == fleet.now + 1

    def test_what_is_long_ago_makes_no_row(self) -> None:
        fleet = Fleet(2)
        s = fleet.all[0]
        s.push_back(0.0, fleet.now)
        fleet.wait(1 + SPAN + 0.1)
        s.push_back(0.0, fleet.now)
        assert (s.share, s.avoided_until) == (LEAST, fleet.now + 1)
