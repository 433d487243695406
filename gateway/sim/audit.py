"""What must hold in every run, whatever it is about: the parts that need books of their own."""

from collections.abc import Iterable, Sequence
from typing import Literal

from filters import budget
from gateway.sim.records import Record

SHOWN = 5
"""Broken rules of one kind that a report spells out."""

Journal = list[tuple[int, str]]
"""(second, what): request, retry or hedge, in order."""


class AuditedBudget(budget.Budget):
    """A budget that keeps a journal for the audit."""

    __slots__ = ("journal",)

    def __init__(self, settings: budget.Config) -> None:
        super().__init__(settings)
        self.journal: Journal = []

    def deposit(self, now: float, n: int = 1) -> None:
        super().deposit(now, n)
        self.journal += [(int(now), "request")] * n

    def withdraw(self, now: float, kind: Literal["retry", "hedge"]) -> bool:
        granted = super().withdraw(now, kind)
        if granted:
            self.journal.append((int(now), kind))
        return granted


def overspent(journal: Journal, settings: budget.Config) -> list[str]:
    """Withdrawals that the rule of ``filters/budget.py`` forbids, by counting from scratch: all of
    them against ``ratio``, and hedges against their part of it."""
    part = min(1.0, settings.hedges / settings.ratio) if settings.ratio else 0.0
    reserve = settings.min_per_second * budget.WINDOW
    rules = (
        ("budget", ("retry", "hedge"), settings.ratio, reserve),
        ("hedges", ("hedge",), settings.hedges, reserve * part),
    )
    broken = []
    for name, kinds, ratio, kept in rules:
        requests: dict[int, int] = {}
        spent: dict[int, int] = {}
        for second, kind in journal:
            if kind == "request":
                requests[second] = requests.get(second, 0) + 1
                continue
            if kind not in kinds:
                continue
            spent[second] = spent.get(second, 0) + 1
            window = range(second - budget.WINDOW + 1, second + 1)
            allowed = ratio * sum(requests.get(each, 0) for each in window) + kept
            taken = sum(spent.get(each, 0) for each in window)
            if taken > allowed + 1e-6:
                broken.append(f"{name} overspent in second {second}: {taken} of {allowed:.1f}")
    return broken


def cap(members: int, max_ejected: float) -> int:
    """How many endpoints of a cluster may be ejected: never all, unless there is but one."""
    if members == 1:
        return 1
    return min(members - 1, max(1, int(max_ejected * members)))


def over_cap(states: Sequence[str], max_ejected: float, where: str) -> list[str]:
    """Whether too many of a cluster's endpoints are out."""
    out = sum(each == "ejected" for each in states)
    allowed = cap(len(states), max_ejected)
    return [f"{out} of {len(states)} ejected {where}, {allowed} may be"] if out > allowed else []


def faulty(records: Iterable[Record], internal: str) -> list[str]:
    """What went wrong at the seam, and exchanges that ended with an exception inside."""
    said = [
        f"{record.traffic} at {record.arrived:.3f} s: {fault}"
        for record in records
        for fault in (
            *record.faults,
            *(("an exception inside",) if record.reason == internal else ()),
        )
    ]
    return abridged(said, "faults")


def abridged(said: list[str], what: str) -> list[str]:
    """The first few of many sentences, and their number."""
    more = [f"{len(said)} {what} in all"] if len(said) > SHOWN else []
    return said[:SHOWN] + more
