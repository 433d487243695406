"""Tenants: the number that stands for one, and how fast each of them lately sent."""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from filters.api import Exchange

MOST = 4096
"""Tenants in one generation of ``Rates``. A tenant that is forgotten counts as one that sends
little until its second request, so forgetting costs little; 8192 of them take about 2 MB."""


def header_of(fair_by: str) -> bytes:
    """The header's name in ``header:NAME``."""
    return fair_by.removeprefix("header:").lower().encode()


def tenant_of(exchange: Exchange, header: bytes | None) -> int:
    """A hash, never 0, of the value of ``header``, or of the client's address without it. Kept in
    ``exchange.tenant``, so that it is computed once for all who ask. About 0.3 us, then 0.05 us.

    No security boundary, so a checksum will do: whoever wants the hash of another tenant can more
    simply send its header. The same in every run, so that simulations repeat. Tenants with the
    same hash share what one gets; among 4096 of them there is such a pair once in 500 gateways.
    """
    tenant = exchange.tenant
    if not tenant:
        value = exchange.request.index.get(header) if header is not None else None
        tenant = crc32(exchange.client.encode() if value is None else value) or 1
        exchange.tenant = tenant
    return tenant


class Rates:
    """Requests per second of each tenant, averaged over about ``window`` seconds.

    The estimator of CSFQ (Stoica, Shenker, Zhang, "Core-Stateless Fair Queueing", 1998), whose
    weights come from the gaps between arrivals, so it needs no timer. Two generations of at most
    ``MOST`` tenants: when the young one is full, it becomes the old one, and what the old one
    held is forgotten, unless it was seen since. O(1), about 0.4 us.
    """

    __slots__ = ("_old", "_window", "_young")

    def __init__(self, window: float) -> None:
        self._window = window
        self._young: dict[int, list[float]] = {}  # tenant -> [rate, when it last sent]
        self._old: dict[int, list[float]] = {}

    def sent(self, tenant: int, now: float) -> float:
        """Count a request; returns the tenant's rate, this request included. Above 0."""
        seen = self._young.get(tenant)
        if seen is None:
            if len(self._young) >= MOST:
                self._old, self._young = self._young, {}
            seen = self._old.pop(tenant, None)
            if seen is None:
                rate = 1 / self._window
                self._young[tenant] = [rate, now]
                return rate
            self._young[tenant] = seen
        gap = now - seen[1]
        if gap > 1e-6:
            kept = exp(-gap / self._window)
            seen[0] = rate = seen[0] * kept + (1 - kept) / gap
            seen[1] = now
        else:
            seen[0] = rate = seen[0] + 1 / self._window  # what the above tends to
        return rate

    def of(self, tenant: int) -> float:
        """What ``sent`` last returned for it, and about 0 for one that is not known."""
        seen = self._young.get(tenant) or self._old.get(tenant)
        return 1 / self._window if seen is None else seen[0]

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
