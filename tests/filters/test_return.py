"""How an ejected endpoint comes back; whom nobody ejects; and the operator's own word."""

from __future__ import annotations

import pytest

from filters.api import Kind
from filters.outlier import BY_HAND, LONE, Act, Config
from filters.standing import LEAST, RAMP, Cause, Phase, Standing
from tests.filters.fleet import Fleet


def phase(s: Standing) -> Phase:
    """For the type checker, which does not see that it changes."""
    return s.phase


class TestReturn:
    def ejected(self, n: int = 3, config: Config = Config()) -> Fleet:  # noqa: B008
        fleet = Fleet(n, config)
        fleet.fail(fleet.all[0], 5)
        assert fleet.out == ["e0"]
        return fleet

    def test_the_time_doubles_up_to_its_bound(self) -> None:
        fleet = self.ejected()
        bad = fleet.all[0]
        for seconds in (5, 10, 12, 12):
            assert bad.until - fleet.now == seconds
            fleet.wait(seconds - 0.01)
            assert phase(bad) is Phase.EJECTED
            fleet.wait(0.01)
            assert phase(bad) is Phase.PROBING
            fleet.fail(bad)
            assert phase(bad) is Phase.EJECTED
            assert bad.why == "its probe failed: status 503"

    def test_a_good_probe_brings_it_back_by_a_ramp(self) -> None:
        fleet = self.ejected()
        bad = fleet.all[0]
        fleet.wait(5)
        fleet.serve(bad)
        assert phase(bad) is Phase.HEALTHY
        fleet.look()
        assert bad.share == LEAST
        shares = []
        for _ in range(10):
            fleet.wait(RAMP / 10)
            shares.append(bad.share)
        assert shares == sorted(shares)
        assert shares[-1] == 1
        assert all(s.share == 1 for s in fleet.all[1:])

    def test_its_past_is_forgotten(self) -> None:
        fleet = self.ejected()
        fleet.wait(5)
        fleet.serve(fleet.all[0])
        fleet.fail(fleet.all[0], 4)
        fleet.look()
        assert fleet.out == []

    def test_staying_good_makes_the_next_time_shorter(self) -> None:
        fleet = self.ejected()
        bad = fleet.all[0]
        for _ in range(3):
            fleet.wait(15)
            fleet.fail(bad)
        fleet.wait(15)
        fleet.serve(bad)
        assert bad.repeats == 4
        fleet.wait(31)
        fleet.fail(bad, 5)
        assert bad.repeats == 3
        assert bad.until - fleet.now == 12
        fleet.wait(15)
        fleet.serve(bad)
        fleet.wait(600)
        fleet.fail(bad, 5)
        assert bad.until - fleet.now == 5

    def test_a_probe_that_hangs_is_a_failed_one(self) -> None:
        fleet = self.ejected()
        bad = fleet.all[0]
        fleet.wait(5)
        probe = fleet.start(bad)
        assert bad.probe is probe
        fleet.wait(11.9)
        assert phase(bad) is Phase.PROBING
        fleet.wait(0.2)
        assert phase(bad) is Phase.EJECTED
        assert bad.why == "its probe failed: no answer in 12.1 s"
        fleet.good(bad, probe, 12.0)  # and counts when it is answered after all
        assert phase(bad) is Phase.HEALTHY

    def test_a_probe_without_a_verdict_leaves_it_to_the_next(self) -> None:
        fleet = self.ejected()
        bad = fleet.all[0]
        fleet.wait(5)
        fleet.dropped(bad, fleet.start(bad))
        assert (bad.phase, bad.probe) == (Phase.PROBING, None)
        for _ in range(2):  # these are: nothing came for long
            assert phase(bad) is Phase.PROBING
            probe = fleet.start(bad)
            fleet.now += 2
            fleet.dropped(bad, probe)
        assert phase(bad) is Phase.EJECTED

    def test_a_slow_one_must_be_fast_again(self) -> None:
        fleet = Fleet(3)
        fleet.busy(2)
        fleet.busy(1, (fleet.all[0], 0.2))
        slow = fleet.all[0]
        fleet.busy(5.1)
        assert phase(slow) is Phase.PROBING
        fleet.serve(slow, 0.2, times=2)
        assert phase(slow) is Phase.EJECTED
        assert slow.why == "its probe failed: time to first byte 200 ms, allowed are 70 ms"
        fleet.busy(10.1)
        first = fleet.start(slow)
        fleet.wait(0.1)  # nobody waits for its end
        assert (phase(slow), slow.probe) == (Phase.PROBING, None)
        fleet.start(slow)
        fleet.wait(0.1)
        assert phase(slow) is Phase.EJECTED
        fleet.good(slow, first, 0.03)
        assert phase(slow) is Phase.EJECTED
        fleet.busy(15.1)
        fleet.serve(slow, 0.03)
        assert phase(slow) is Phase.HEALTHY

    @pytest.mark.parametrize("seconds", [0.071, 30.0])
    def test_late_once_may_be_chance(self, seconds: float) -> None:
        fleet = Fleet(3)
        fleet.busy(2)
        slow = fleet.all[0]
        fleet.busy(1, (slow, 0.2))
        for _ in range(2):  # in each spell anew
            fleet.busy(slow.until - fleet.now + 0.1)
            fleet.serve(slow, seconds)
            assert (phase(slow), slow.probe) == (Phase.PROBING, None)
            fleet.serve(slow, seconds)
            assert phase(slow) is Phase.EJECTED
        fleet.busy(slow.until - fleet.now + 0.1)
        fleet.serve(slow, seconds)
        fleet.serve(slow, 0.02)
        assert phase(slow) is Phase.HEALTHY

    def test_a_failure_is_no_chance(self) -> None:
        fleet = Fleet(3)
        fleet.busy(2)
        slow = fleet.all[0]
        fleet.busy(1, (slow, 0.2))
        fleet.busy(5.1)
        fleet.fail(slow)
        assert slow.why == "its probe failed: status 503"

    def test_push_back_shows_that_it_works(self) -> None:
        fleet = self.ejected()
        bad = fleet.all[0]
        fleet.wait(5)
        fleet.start(bad)
        bad.push_back(3.0, fleet.now)
        fleet.effects += fleet.policy.probed(bad, Kind.PUSHED_BACK, fleet.now, ended=True)
        assert phase(bad) is Phase.HEALTHY

    def test_who_broke_answers_off_must_finish_one(self) -> None:
        fleet = Fleet(2)
        bad = fleet.all[0]
        for _ in range(5):
            sample = fleet.start(bad)
            bad.failures.length = 0
            fleet.bad(bad, sample, late=True)
        fleet.wait(5)
        probe = fleet.start(bad)
        probe.verdict, probe.seconds = 1, 0.02  # its first byte
        assert fleet.policy.probed(bad, Kind.OK, fleet.now, ended=False) == []
        fleet.look()
        assert phase(bad) is Phase.PROBING
        fleet.bad(bad, probe, late=True)
        assert phase(bad) is Phase.EJECTED


class TestTheJudgeIsSuspect:
    def test_the_one_that_is_left_fails_too(self) -> None:
        fleet = Fleet(2)
        fleet.fail(fleet.all[0], 5)
        assert fleet.out == ["e0"]
        fleet.fail(fleet.all[1], 5)
        assert fleet.out == []
        assert fleet.policy.doubted
        assert [s.share for s in fleet.all] == [1, 1]
        assert fleet.effects[-1].act is Act.DOUBTED

    def test_and_trusted_again_when_somebody_is_well(self) -> None:
        fleet = Fleet(2)
        for s in fleet.all:
            fleet.fail(s, 5)
        fleet.serve(fleet.all[1], times=8)
        fleet.wait(0.3)
        assert not fleet.policy.doubted
        fleet.serve(fleet.all[1], times=3)
        fleet.fail(fleet.all[0], 5)
        assert fleet.out == ["e0"]

    def test_who_recovers_last_is_not_blamed_for_it(self) -> None:
        fleet = Fleet(3)
        for _ in range(30):
            for s in fleet.all:
                fleet.fail(s)
            fleet.wait(0.02)
        for _ in range(20):  # the others are avoided by now, and have nothing new to show
            fleet.serve(fleet.all[0], times=4)
            fleet.wait(0.02)
        assert fleet.out == []
        assert not fleet.policy.doubted

    def test_what_the_cap_keeps_in_gets_little(self) -> None:
        fleet = Fleet(3)
        for s in fleet.all[:2]:
            fleet.serve(fleet.all[2], times=5)
            fleet.fail(s, 5)
        assert fleet.out == ["e0"]
        assert fleet.all[1].share == LEAST
        assert fleet.all[1].held == "5 failures in a row, last: status 503"
        fleet.serve(fleet.all[1])
        fleet.look()
        assert fleet.all[1].share == 1

    def test_unhealthy_by_check_is_out_already(self) -> None:
        fleet = Fleet(3)
        fleet.all[1].checked = fleet.all[2].checked = False
        fleet.fail(fleet.all[0], 20)
        fleet.wait(1)
        assert fleet.out == []


class TestTheOnlyOne:
    def test_refused_connections_eject_it_for_a_second(self) -> None:
        fleet = Fleet(1)
        lone = fleet.all[0]
        fleet.fail(lone, 5, refused=True)
        for _ in range(5):
            assert phase(lone) is Phase.EJECTED
            assert lone.until - fleet.now == LONE
            fleet.wait(LONE)
            assert phase(lone) is Phase.PROBING
            fleet.fail(lone, refused=True)
        fleet.wait(LONE)
        fleet.serve(lone)
        assert phase(lone) is Phase.HEALTHY

    def test_after_connections_that_broke_too(self) -> None:
        fleet = Fleet(1)
        fleet.fail(fleet.all[0], 8)
        fleet.fail(fleet.all[0], 5, refused=True)
        assert fleet.out == ["e0"]

    @pytest.mark.parametrize("times", [5, 50])
    def test_nothing_else_does(self, times: int) -> None:
        fleet = Fleet(1)
        fleet.fail(fleet.all[0], times)
        fleet.busy(1, (fleet.all[0], 10.0))
        fleet.fail(fleet.all[0], times)
        fleet.look()
        assert fleet.out == []


class TestByHand:
    def test_for_an_hour_or_until_restored(self) -> None:
        fleet = Fleet(2)
        s = fleet.all[0]
        assert fleet.policy.eject(s, fleet.all, "new disk", fleet.now) == ""
        fleet.wait(BY_HAND - 1)
        assert (s.phase, s.why) == (Phase.EJECTED, "new disk")
        assert [e.act for e in fleet.policy.restore(s, fleet.now)] == [Act.RESTORED]
        assert phase(s) is Phase.HEALTHY
        assert fleet.policy.restore(s, fleet.now) == []

    def test_said_twice_it_is_one_ejection(self) -> None:
        fleet = Fleet(2)
        s = fleet.all[0]
        fleet.policy.eject(s, fleet.all, "new disk", fleet.now)
        began = fleet.now
        fleet.wait(60)
        assert fleet.policy.eject(s, fleet.all, "and a fan", fleet.now) == ""
        assert (s.why, s.since, s.until) == ("and a fan", began, fleet.now + BY_HAND)
        assert (s.ejections, fleet.policy.ejections[Cause.MANUAL]) == (1, 1)
        fleet.wait(BY_HAND)
        assert phase(s) is Phase.PROBING
        fleet.policy.eject(s, fleet.all, "again", fleet.now)
        assert (s.ejections, fleet.policy.ejections[Cause.MANUAL]) == (2, 2)

    def test_then_a_probe_decides(self) -> None:
        fleet = Fleet(2)
        s = fleet.all[0]
        fleet.policy.eject(s, fleet.all, "new disk", fleet.now)
        fleet.wait(BY_HAND)
        assert phase(s) is Phase.PROBING
        fleet.fail(s)
        assert s.until - fleet.now == 5

    def test_never_the_last(self) -> None:
        fleet = Fleet(2)
        assert fleet.policy.eject(fleet.all[0], fleet.all, "", fleet.now) == ""
        refusal = fleet.policy.eject(fleet.all[1], fleet.all, "", fleet.now)
        assert refusal == "1 of 2 endpoints are out already, 1 may be"
        lone = Fleet(1)
        refusal = lone.policy.eject(lone.all[0], lone.all, "", lone.now)
        assert refusal == "it is the cluster's only endpoint"
        sick = Fleet(3)
        sick.all[0].checked = sick.all[1].checked = False
        refusal = sick.policy.eject(sick.all[2], sick.all, "", sick.now)
        assert refusal == "no other endpoint is healthy"

    def test_doubt_does_not_undo_it(self) -> None:
        fleet = Fleet(3)
        fleet.policy.eject(fleet.all[0], fleet.all, "", fleet.now)
        for s in fleet.all[1:]:
            fleet.fail(s, 9)
        fleet.look()
        assert fleet.policy.doubted
        assert fleet.out == ["e0"]

    def test_it_works_without_detectors(self) -> None:
        fleet = Fleet(3, None)
        fleet.fail(fleet.all[0], 50)
        fleet.busy(3, (fleet.all[1], 5.0))
        assert fleet.out == []
        assert fleet.policy.eject(fleet.all[0], fleet.all, "", fleet.now) == ""
        fleet.look()
        assert fleet.out == ["e0"]


class TestChanges:
    def test_dry_run_counts_and_does_nothing(self) -> None:
        fleet = Fleet(3, Config(dry_run=True))
        fleet.fail(fleet.all[0], 5)
        assert fleet.out == []
        assert fleet.policy.would_eject[Cause.CONSECUTIVE] == 1
        for _ in range(49):
            fleet.fail(fleet.all[0])
            fleet.wait(0.1)
        assert fleet.policy.would_eject[Cause.CONSECUTIVE] == 1  # once per ejection there would be
        fleet.busy(2)
        fleet.busy(1, (fleet.all[1], 0.2))
        assert fleet.policy.would_eject[Cause.LATENCY] == 1
        assert sum(fleet.policy.ejections.values()) == 0
        assert all(s.share == 1 for s in fleet.all)

    @pytest.mark.parametrize("config", [None, Config(dry_run=True)])
    def test_switched_off_everybody_is_back(self, config: Config | None) -> None:
        fleet = Fleet(3)
        fleet.fail(fleet.all[0], 5)
        after = Fleet(3, config)
        after.policy.take_over(fleet.policy)
        after.all, after.now = fleet.all, fleet.now
        after.look()
        assert after.out == []
        assert after.policy.ejections[Cause.CONSECUTIVE] == 1

    def test_a_cluster_that_shrinks_below_the_cap(self) -> None:
        fleet = Fleet(4)
        for s in fleet.all[:2]:
            fleet.serve(fleet.all[2])
            fleet.fail(s, 5)
        assert fleet.out == ["e0", "e1"]
        del fleet.all[2:]
        fleet.look()
        assert len(fleet.out) == 1
        del fleet.all[fleet.all[0].phase is not Phase.HEALTHY]  # the one that is in
        fleet.look()
        assert fleet.out == []

    def test_what_it_says_of_itself(self) -> None:
        fleet = Fleet(3)
        fleet.busy(2)
        fleet.fail(fleet.all[0], 5)
        said = fleet.policy.describe(fleet.now)
        assert said["on"] is True
        assert said["limit_ms"] == 70
        assert said["ejections"] == {
            "consecutive_failures": 1, "failure_share": 0, "latency": 0, "refused": 0, "manual": 0,
        }  # fmt: skip
