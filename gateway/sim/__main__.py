"""``python -m gateway.sim``: run the scenarios and print a table; exit 1 if anything is broken."""

import logging
import sys
from contextlib import nullcontext

import click

from gateway.sim.scenario import Scenario
from gateway.sim.scenarios import BRIEF, FULL
from gateway.sim.stats import attempts_per_request, failures, quantile
from gateway.sim.timeline import timeline
from gateway.sim.world import Report, simulate

COLUMNS = ("scenario", "seed", "requests", "ok", "attempts", "p50 ms", "p99 ms", "digest", "failed")
ROW = "{:<24}{:>6}{:>10}{:>9}{:>10}{:>9}{:>9}  {:<18}{}"


@click.command()
@click.option("--seed", default=1, show_default=True, help="Seed of the first run.")
@click.option("--runs", default=1, show_default=True, help="Runs of each scenario; seeds count up.")
@click.option("--scenario", type=click.Choice(list(FULL)), help="Only this one.")
@click.option("--without", is_flag=True, help="Take away the mechanism that the scenario is about.")
@click.option("--brief", is_flag=True, help="Shorter events, as the tests have them.")
@click.option("--verbose", is_flag=True, help="Print every claim with its number.")
@click.option("--timeline", "seconds", is_flag=True, help="Print each run second by second.")
def main(
    seed: int,
    runs: int,
    scenario: str | None,
    without: bool,
    brief: bool,
    verbose: bool,
    seconds: bool,
) -> None:
    """Simulate the gateway in virtual time. ok: answered in full and without a failing status."""
    logging.disable()  # what the gateway says about itself is not what is looked at here
    known = BRIEF if brief else FULL
    if scenario is not None and scenario not in known:
        raise click.UsageError(f"{scenario} has no brief form")
    chosen = [known[scenario]] if scenario is not None else list(known.values())
    flags = (" --brief" if brief else "") + (" --without" if without else "")
    bad = 0
    click.echo(ROW.format(*COLUMNS))
    for each in chosen:
        for number in range(seed, seed + runs):
            with each.mechanism_off() if without else nullcontext(each.plan) as plan:
                report = simulate(plan, number)
            click.echo(_row(each, number, report))
            for line in timeline(report) if seconds else ():
                click.echo(line)
            for holds, said in each.claims(report):
                if verbose or not holds:
                    click.echo(f"    {'holds' if holds else 'broken'}: {said}")
            for said in report.broken:
                click.echo(f"    broken: {said}")
            if each.broken(report):
                bad += 1
                again = f"--scenario {each.name} --seed {number}{flags}"
                click.echo(f"    again: python -m gateway.sim {again}")
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
