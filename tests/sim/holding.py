"""What the tests of scenarios share: run one, and say how to see it again.

Every scenario runs briefly here, with a fixed seed, with a fresh one, and with the fixed seed
without its mechanism; ``python -m gateway.sim`` runs them at full length. They are spread over
several files because tests are spread over processes by file.
"""

import secrets
from collections.abc import Iterable

from gateway.sim.scenario import Scenario
from gateway.sim.world import simulate

FIXED = 2
FRESH = secrets.randbelow(10**6) + 1000
"""Another one every time the tests are run; a failure prints it."""


def name(scenario: Scenario) -> str:
    """For the ids of tests."""
    return scenario.name


def controls(scenarios: Iterable[Scenario]) -> list[Scenario]:
    """One scenario for each negative control: some differ only in what the control takes away."""
    found: list[tuple[object, Scenario]] = []
    for each in scenarios:
        control = (each.without(each.plan), each.patches)
        if all(control != other for other, _ in found):
            found.append((control, each))
    return [each for _, each in found]


def holds(scenario: Scenario, seed: int) -> None:
    """With the mechanism every claim and every invariant holds."""
    broken = scenario.broken(simulate(scenario.plan, seed))
    again = f"python -m gateway.sim --brief --scenario {scenario.name} --seed {seed}"
    assert not broken, "\n".join([again, *broken])


def stays_sound(scenario: Scenario, seed: int) -> None:
    """The invariants hold, whatever the seed. For scenarios whose claims are about what is learned
    from chance: the figures of one run in many lie beyond any bound worth stating."""
    broken = simulate(scenario.plan, seed).broken
    again = f"python -m gateway.sim --brief --scenario {scenario.name} --seed {seed}"
    assert not broken, "\n".join([again, *broken])


def breaks_without_its_mechanism(scenario: Scenario) -> None:
    """Else the scenario would show nothing. Invariants depend on no mechanism."""
    with scenario.mechanism_off() as plan:
        report = simulate(plan, FIXED)
        broken = [said for holds, said in scenario.claims(report) if not holds]
    assert broken, f"{scenario.name} holds without what it is about"
    assert not report.broken
