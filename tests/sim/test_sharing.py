"""Overload shared between clients: every scenario holds, and breaks without its mechanism."""

import pytest

from gateway.sim.scenario import Scenario
from gateway.sim.scenarios_sharing import scenarios
from tests.sim import holding

ALL = scenarios(brief=True)
each_scenario = pytest.mark.parametrize("scenario", ALL, ids=holding.name)
each_control = pytest.mark.parametrize("scenario", holding.controls(ALL), ids=holding.name)


@each_scenario
def test_holds_with_a_fixed_seed(scenario: Scenario) -> None:
    holding.holds(scenario, holding.FIXED)


@each_scenario
def test_stays_sound_with_a_fresh_seed(scenario: Scenario) -> None:
    holding.stays_sound(scenario, holding.FRESH)


@each_control
def test_breaks_without_its_mechanism(scenario: Scenario) -> None:
    holding.breaks_without_its_mechanism(scenario)
