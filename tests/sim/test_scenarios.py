"""All scenarios together: named, repeatable, and runnable from the command line."""

import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from gateway.sim.scenarios import BRIEF, FULL
from gateway.sim.world import simulate

ROWS = 15
"""Situations that the filters were made for; each scenario about one of them names its number."""


def test_every_row_has_a_scenario() -> None:
    named = [re.match(r"row (\d+)", each.about) for each in FULL.values()]
    assert {int(each[1]) for each in named if each} == set(range(1, ROWS + 1))


def test_brief_scenarios_are_full_ones_made_shorter() -> None:
    for name, brief in BRIEF.items():
        assert brief.plan.seconds <= FULL[name].plan.seconds
        assert brief.plan.models == FULL[name].plan.models
    rows = [{each.about.split(":")[0] for each in all_.values()} for all_ in (BRIEF, FULL)]
    assert rows[0] == rows[1]


def test_the_same_seed_is_the_same_run_to_the_last_digit() -> None:
    scenario = BRIEF["head-then-nothing-hedged"]
    one, two = simulate(scenario.plan, 5), simulate(scenario.plan, 5)
    assert one.records == two.records
    assert one.samples == two.samples
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


def test_the_command_shows_every_claim_and_every_second() -> None:
    done = _command("--scenario", "clients-leave", "--brief", "--verbose", "--timeline")
    assert done.returncode == 0, done.stdout + done.stderr
    claims = re.findall(r"^    holds: (.*)$", done.stdout, re.MULTILINE)
    assert len(claims) == 5
    seconds = re.findall(r"^ +(\d+) +\d+ +\d+ +\d+ +\d+ ", done.stdout, re.MULTILINE)
    assert [int(each) for each in seconds] == list(range(15))


def test_a_scenario_puts_back_what_it_took_away(
    patched_values: "Callable[[], list[object]]",
) -> None:
    before = patched_values()
    for scenario in FULL.values():
        with scenario.mechanism_off():
            pass
    assert patched_values() == before


@pytest.fixture
def patched_values() -> "Callable[[], list[object]]":
    patches = [patch for scenario in FULL.values() for patch in scenario.patches]
    assert patches
    return lambda: [getattr(patch.module, patch.name) for patch in patches]
