"""Who is ejected, and for what."""

from __future__ import annotations

from filters.outlier import Config
from filters.standing import LEAST, Cause, Phase
from tests.filters.fleet import Fleet


class TestFailuresInARow:
    def test_five_eject_at_once_and_say_why(self) -> None:
        fleet = Fleet(3)
        bad = fleet.all[1]
        fleet.fail(bad, 4)
        assert fleet.out == []
        fleet.fail(bad)
        assert fleet.out == ["e1"]
        assert bad.why == "5 failures in a row, last: status 503"
        assert bad.cause is Cause.CONSECUTIVE
        assert fleet.policy.ejections[Cause.CONSECUTIVE] == 1

    def test_one_good_answer_starts_again(self) -> None:
        fleet = Fleet(2)
        for _ in range(10):
            fleet.fail(fleet.all[0], 4)
            fleet.serve(fleet.all[0])
        assert fleet.out == []

    def test_a_good_head_does_not_make_good_what_was_broken_off(self) -> None:
        fleet = Fleet(2)
        bad = fleet.all[0]
        for _ in range(5):
            sample = fleet.start(bad)
            bad.failures.length = 0  # its head came
            fleet.bad(bad, sample, late=True)
        assert fleet.out == ["e0"]
        assert bad.why == "5 broken answers in a row, last: status 503"

    def test_what_started_before_the_return_does_not_count(self) -> None:
        fleet = Fleet(2)
        bad = fleet.all[0]
        old = [fleet.start(bad) for _ in range(9)]
        fleet.fail(bad, 5)
        fleet.wait(5.0)
        fleet.serve(bad)
        assert fleet.out == []
        for sample in old:
            fleet.bad(bad, sample)
        assert fleet.out == []

    def test_who_fails_while_all_fail_is_not_charged(self) -> None:
        fleet = Fleet(3)
        for _ in range(20):
            for s in fleet.all:
                fleet.fail(s)
            fleet.now += 0.01
        assert fleet.out == []
        assert fleet.policy.doubted

    def test_half_of_all_endpoints_die_together(self) -> None:
        fleet = Fleet(10)
        for _ in range(30):
            for s in fleet.all[:5]:
                fleet.fail(s, refused=True)
            for s in fleet.all[5:]:
                fleet.serve(s)
            fleet.wait(0.02)
        assert fleet.out == ["e0", "e1", "e2", "e3", "e4"]

    def test_most_of_them_do(self) -> None:
        """The cap keeps some of the dead in, with little; the living carry on."""
        fleet = Fleet(10)
        for _ in range(30):
            for s in fleet.all[:7]:
                if s.phase is Phase.HEALTHY:
                    fleet.fail(s, refused=True)
            for s in fleet.all[7:]:
                fleet.serve(s)
            fleet.wait(0.02)
        assert len(fleet.out) == 5
        dead = [s.share for s in fleet.all[:7] if s.phase is Phase.HEALTHY]
        assert dead == [LEAST, LEAST]
        assert [s.share for s in fleet.all[7:]] == [1, 1, 1]

    def test_half_of_all_answers_fail_everywhere(self) -> None:
        """The rows that chance makes are no endpoint's fault."""
        fleet = Fleet(4)
        for turn in range(400):
            fleet.now += 0.01
            for n, s in enumerate(fleet.all):
                if (turn * 7 + n * 3) // 6 % 2:
                    fleet.fail(s)
                else:
                    fleet.serve(s)
            fleet.look()
        assert fleet.out == []


class TestShare:
    def mixed(self, fleet: Fleet, turns: int, period: int) -> None:
        """The first endpoint fails ``period - 1`` of ``period`` in a pattern without rows of 5."""
        for turn in range(turns):
            fleet.now += 0.01
            if turn % period:
                fleet.fail(fleet.all[0])
            else:
                fleet.serve(fleet.all[0])
            for s in fleet.all[1:]:
                fleet.serve(s)
        fleet.look()

    def test_half_against_none_is_enough(self) -> None:
        fleet = Fleet(3)
        self.mixed(fleet, 30, 2)
        assert fleet.out == ["e0"]
        assert fleet.all[0].why == "50% of the last 20 attempts failed, last: status 503"

    def test_not_before_there_is_some_volume(self) -> None:
        fleet = Fleet(3)
        self.mixed(fleet, 18, 2)
        assert fleet.out == []

    def test_off(self) -> None:
        fleet = Fleet(3, Config(failure_percent=None))
        self.mixed(fleet, 300, 2)
        assert fleet.out == []

    def test_it_is_over_when_the_newest_are_good(self) -> None:
        fleet = Fleet(3, Config(failure_percent=0.4))
        self.mixed(fleet, 18, 2)
        fleet.serve(fleet.all[0], times=8)
        fleet.look()
        assert fleet.out == []

    def test_what_is_long_ago_does_not_count(self) -> None:
        fleet = Fleet(3)
        self.mixed(fleet, 18, 2)
        fleet.now += 11
        self.mixed(fleet, 4, 2)
        assert fleet.out == []


class TestLatency:
    def test_ten_times_slower_among_four(self) -> None:
        fleet = Fleet(4)
        fleet.busy(2)
        fleet.busy(1, (fleet.all[2], 0.2))
        assert fleet.out == ["e2"]
        assert fleet.all[2].why == "time to first byte 200 ms against 20 ms of the others"

    def test_of_two(self) -> None:
        fleet = Fleet(2)
        fleet.busy(2)
        fleet.busy(1, (fleet.all[1], 0.2))
        assert fleet.out == ["e1"]

    def test_within_the_floor(self) -> None:
        fleet = Fleet(2)
        fleet.busy(5, (fleet.all[1], 0.069))
        assert fleet.out == []

    def test_within_the_factor(self) -> None:
        fleet = Fleet(2)
        for _ in range(300):
            fleet.serve(fleet.all[0], 1.0)
            fleet.serve(fleet.all[1], 2.9)
            fleet.wait(0.1)
        assert fleet.out == []

    def test_what_hangs_is_found_while_it_hangs(self) -> None:
        fleet = Fleet(3)
        fleet.busy(2)
        for _ in range(5):
            fleet.start(fleet.all[0])
        for _ in range(10):
            fleet.serve(fleet.all[1])
            fleet.wait(0.03)
        assert fleet.out == ["e0"]

    def test_one_that_waits_long_is_no_proof(self) -> None:
        fleet = Fleet(3)
        fleet.busy(2)
        for _ in range(3):
            fleet.start(fleet.all[0])
        for _ in range(20):
            fleet.wait(1.0)
        assert fleet.out == []

    def test_servers_of_several_makes_are_not_outliers(self) -> None:
        fleet = Fleet(5)
        fleet.busy(3, *zip(fleet.all, (0.02, 0.04, 0.06, 0.1, 0.185), strict=True))
        assert fleet.out == []
        fleet.busy(3, *zip(fleet.all, (0.02, 0.04, 0.06, 0.1, 0.2), strict=True))
        assert fleet.out == ["e4"]

    def test_a_surge_that_one_shows_first(self) -> None:
        fleet = Fleet(3)
        fleet.busy(2)
        waiting = [fleet.start(s) for s in fleet.all for _ in range(12)]
        fleet.wait(1.0)
        assert fleet.out == []
        for sample in waiting[:12]:
            fleet.good(fleet.all[0], sample, 1.0)
        fleet.wait(0.3)
        assert fleet.out == []

    def test_not_where_attempts_are_of_different_kinds(self) -> None:
        fleet = Fleet(3, latency=False)
        fleet.busy(5, (fleet.all[0], 1.0))
        assert fleet.out == []

    def test_off(self) -> None:
        fleet = Fleet(3, Config(latency_factor=None))
        fleet.busy(5, (fleet.all[0], 1.0))
        assert fleet.out == []

    def test_clients_errors_say_nothing_about_speed(self) -> None:
        fleet = Fleet(2)
        for _ in range(100):
            fleet.good(fleet.all[0], fleet.start(fleet.all[0]), 0.001, timed=False)
            fleet.serve(fleet.all[1], 0.2)
            fleet.wait(0.05)
        assert fleet.out == []

    def test_clients_that_leave_in_vain_do(self) -> None:
        fleet = Fleet(2)
        fleet.busy(2)
        for _ in range(20):
            left = [fleet.start(fleet.all[0]) for _ in range(4)]
            fleet.now += 0.3
            for sample in left:
                fleet.dropped(fleet.all[0], sample)
            fleet.serve(fleet.all[1], 0.02)
            fleet.look()
        assert fleet.out == ["e0"]

    def test_it_is_needed_once_the_others_are_as_slow(self) -> None:
        fleet = Fleet(2)
        fleet.busy(2)
        fleet.busy(1, (fleet.all[1], 0.2))
        assert fleet.out == ["e1"]
        fleet.busy(2, (fleet.all[0], 0.25), (fleet.all[1], 0.2))
        assert fleet.out == []
        assert fleet.effects[-1].why == "the others have become as slow"
        fleet.busy(5, (fleet.all[1], 0.2))  # and it is left in peace for a while
        assert fleet.out == []
