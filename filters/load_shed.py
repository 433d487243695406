"""load_shed: refuse at arrival, in O(1), what could only wait in vain.

Two reasons to refuse: the route's queue stands (``filters/shedder.py``; reason ``shed``), or the
gateway itself is at its limits (``filters/strain.py``; reason ``strained``). Both come before a
place in the queue is taken, so that a refusal costs next to nothing and is heard at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from filters.api import Exchange, Reason, Reject
from filters.tenants import tenant_of
from filters.units import Duration, Share, Struct

if TYPE_CHECKING:
    from random import Random

    from filters.shedder import Shedder
    from filters.strain import Strain


class Config(Struct, frozen=True):
    """``loop_lag``: of the event loop, at every look for a second; ``memory``: the working set, as
    a share of the cgroup's limit; ``files``: open ones, as a share of the limit on them. ``off``:
    not looked at. 100 ms is far beyond what a healthy loop does, and still less than callers
    mind; 90 % leaves room to end what is in flight."""

    loop_lag: Duration | None = 0.1
    memory: Share | None = 0.9
    files: Share | None = 0.9
    dry_run: bool = False


class LoadShed:
    """An arrival check: the gateway's health first, then the route's overload.

    ``shedder`` is that of the route's admission, None where nothing is admitted; ``strain`` None
    where the health is not looked at; ``fair_by`` the name of the header that names the tenant.
    Without a ``config`` it only counts, because queueing needs to know what arrives. About 0.3 us
    while nobody waits.
    """

    __slots__ = ("_fair_by", "_rng", "_shedder", "_strain", "_watches", "dry_run", "shed",
                 "strained", "would_shed", "would_strain")  # fmt: skip

    def __init__(
        self,
        config: Config | None,
        shedder: Shedder | None,
        strain: Strain | None,
        fair_by: bytes | None,
        rng: Random,
    ) -> None:
        self._watches = config is None
        self.dry_run = config is not None and config.dry_run
        self._shedder = shedder
        self._strain = strain if config is not None else None
        self._fair_by = fair_by
        self._rng = rng
        self.shed = self.strained = self.would_shed = self.would_strain = 0

    def arrive(self, exchange: Exchange, now: float) -> None:
        strain = self._strain
        if (
            strain is not None
            and strain.pressure
            and strain.refuses(exchange.priority, now, self._rng)
        ):
            self._strained(exchange, strain.why)
            return
        shedder = self._shedder
        if shedder is None:
            return
        if not shedder.length and not shedder.overloaded:
            shedder.arrivals[exchange.priority] += 1
        elif shedder.arrived(exchange.priority, tenant_of(exchange, self._fair_by), now):
            self._shed(exchange, shedder, now)

    def _strained(self, exchange: Exchange, why: str) -> None:
        if self.dry_run:
            self.would_strain += 1
            exchange.shadow(Reason.STRAINED)
            return
        self.strained += 1
        raise Reject(Reason.STRAINED, why, retry_after=1 + 2 * self._rng.random())

    def _shed(self, exchange: Exchange, shedder: Shedder, now: float) -> None:
        if self._watches:
            return
        if self.dry_run:
            self.would_shed += 1
            exchange.shadow(Reason.SHED)
            return
        self.shed += 1
        shedder.refused[exchange.priority] += 1
        why = f"the queue stands: {shedder.inflow:.0f}/s come, {shedder.drain:.0f}/s are served"
        raise Reject(Reason.SHED, why, retry_after=shedder.retry_after(now))

    def take_over(self, before: LoadShed) -> None:
        """Go on with the counts of the check that a reload replaces. What was learned is the
        shedder's, which outlives a reload with its gate, and the strain's."""
        self.shed, self.strained = before.shed, before.strained
        self.would_shed, self.would_strain = before.would_shed, before.would_strain

    def describe(self, now: float) -> dict[str, object]:
        shedder, strain = self._shedder, self._strain
        return {
            "shed": self.shed,
            "strained": self.strained,
            "would_shed": self.would_shed,
            "would_strain": self.would_strain,
            "on": not self._watches,
            "dry_run": self.dry_run,
            "route": shedder.describe(now) if shedder is not None else None,
            "gateway": strain.describe(now) if strain is not None else None,
        }
