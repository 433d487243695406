"""``python -m gateway.sim``: run the scenarios and print a table; exit 1 if anything is broken."""

import sys
from contextlib import nullcontext

import click

from gateway.sim.scenario import Scenario
from gateway.sim.scenarios import SCENARIOS
from gateway.sim.stats import attempts_per_request, failures, quantile
from gateway.sim.world import Report, simulate

COLUMNS = ("scenario", "seed", "requests", "ok", "attempts", "p50 ms", "p99 ms", "digest", "failed")
ROW = "{:<24}{:>6}{:>10}{:>9}{:>10}{:>9}{:>9}  {:<18}{}"


@click.command()
@click.option("--seed", default=1, show_default=True, help="Seed of the first run.")
@click.option("--runs", default=1, show_default=True, help="Runs of each scenario; seeds count up.")
@click.option("--scenario", type=click.Choice(list(SCENARIOS)), help="Only this one.")
@click.option("--without", is_flag=True, help="Take away the mechanism that the scenario is about.")
def main(seed: int, runs: int, scenario: str | None, without: bool) -> None:
    """Simulate the gateway in virtual time. ok: answered in full and without a failing status."""
    chosen = [SCENARIOS[scenario]] if scenario is not None else list(SCENARIOS.values())
    bad = 0
    click.echo(ROW.format(*COLUMNS))
    for each in chosen:
        for number in range(seed, seed + runs):
            with each.mechanism_off() if without else nullcontext(each.plan) as plan:
                report = simulate(plan, number)
            click.echo(_row(each, number, report))
            broken = each.broken(report)
            for sentence in broken:
                click.echo(f"    broken: {sentence}")
            if broken:
                bad += 1
                off = " --without" if without else ""
                click.echo(
                    f"    again: python -m gateway.sim --scenario {each.name} --seed {number}{off}"
                )
    sys.exit(1 if bad else 0)


def _row(scenario: Scenario, seed: int, report: Report) -> str:
    records = report.records
    latencies = [each.latency for each in records]
    return ROW.format(
        scenario.name,
        seed,
        len(records),
        sum(each.ok for each in records),
        f"{attempts_per_request(records):.3f}",
        f"{quantile(latencies, 0.5) * 1000:.1f}",
        f"{quantile(latencies, 0.99) * 1000:.1f}",
        report.digest,
        ", ".join(f"{reason} {count}" for reason, count in failures(records).items()) or "-",
    ).rstrip()


if __name__ == "__main__":
    main()
