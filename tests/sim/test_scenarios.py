"""Every scenario holds with its mechanism and breaks without it; the same seed is the same run."""

import os
import secrets
import subprocess
import sys
from collections.abc import Callable

import pytest

from gateway.sim.scenario import Scenario
from gateway.sim.scenarios import SCENARIOS
from gateway.sim.world import simulate

FIXED = (1, 2)
FRESH = secrets.randbelow(10**6) + 1000
"""Another one every time the tests are run; a failure prints it."""

each_scenario = pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)


def _holds(scenario: Scenario, seed: int) -> None:
    broken = scenario.broken(simulate(scenario.plan, seed))
    again = f"python -m gateway.sim --scenario {scenario.name} --seed {seed}"
    assert not broken, "\n".join([again, *broken])


@each_scenario
@pytest.mark.parametrize("seed", FIXED)
def test_holds_with_a_fixed_seed(scenario: Scenario, seed: int) -> None:
    _holds(scenario, seed)


@each_scenario
def test_holds_with_a_fresh_seed(scenario: Scenario) -> None:
    _holds(scenario, FRESH)


@each_scenario
def test_breaks_without_its_mechanism(scenario: Scenario) -> None:
    with scenario.mechanism_off() as plan:
        report = simulate(plan, FIXED[0])
    claims = [said for holds, said in scenario.claims(report) if not holds]
    assert claims, f"{scenario.name} holds without what it is about"
    assert not report.broken, "the invariants do not depend on any mechanism"


def test_the_same_seed_is_the_same_run_to_the_last_digit() -> None:
    scenario = SCENARIOS["stall-in-mid-stream"]
    one, two = simulate(scenario.plan, 5), simulate(scenario.plan, 5)
    assert one.records == two.records
    assert one.digest == two.digest
    assert simulate(scenario.plan, 6).digest != one.digest


def _command(*arguments: str, hash_seed: str = "0") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gateway.sim", *arguments],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_prints_the_same_table_in_every_process() -> None:
    arguments = ("--scenario", "retry-after", "--seed", "3", "--runs", "2")
    one, two = (_command(*arguments, hash_seed=each) for each in ("1", "2"))
    assert one.returncode == 0, one.stdout + one.stderr
    assert one.stdout == two.stdout
    assert one.stdout.count("retry-after") == 2


def test_the_command_fails_and_says_how_to_see_it_again() -> None:
    done = _command("--scenario", "retry-after", "--seed", "3", "--without")
    assert done.returncode == 1
    assert "broken: none before the second that was asked for" in done.stdout
    assert "python -m gateway.sim --scenario retry-after --seed 3" in done.stdout


def test_a_scenario_puts_back_what_it_took_away(
    patched_values: "Callable[[], list[object]]",
) -> None:
    before = patched_values()
    for scenario in SCENARIOS.values():
        with scenario.mechanism_off():
            pass
    assert patched_values() == before


@pytest.fixture
def patched_values() -> "Callable[[], list[object]]":
    patches = [patch for scenario in SCENARIOS.values() for patch in scenario.patches]
    assert patches
    return lambda: [getattr(patch.module, patch.name) for patch in patches]
