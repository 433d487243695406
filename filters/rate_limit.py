"""rate_limit: how often a key may ask; off until a route asks for it.

The generic cell rate algorithm (ITU-T I.371, annex A; as a rate limiter: Brandur Leach,
"Rate Limiting, Cells, and GCRA", 2015) keeps one number per key: the *theoretical arrival time*,
before which a key that never used its burst would not be back. It allows exactly what a token
bucket of ``burst`` allows, without a timer that fills buckets, and knows to the microsecond when
to come back.

Keys are kept as a hash, never as what the client sent: a table of bearer tokens is nothing to have
in memory. Python's own hash of bytes is SipHash with a key made for the process, so that nobody
can aim a collision at somebody else's limit.

Answers carry ``x-ratelimit-limit`` (the burst), ``x-ratelimit-remaining`` (what may come at once
now) and ``x-ratelimit-reset`` (whole seconds until ``remaining`` is ``limit`` again), as many APIs
have them and as the drafts of RateLimit-* at the IETF define them; the window of that quota is
``burst / rate``.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from math import ceil
from typing import TYPE_CHECKING, Annotated, Protocol

import msgspec

from filters.api import Reason, Reject
from filters.units import Count, Rate, Struct

if TYPE_CHECKING:
    from filters.api import Exchange

KEYS = 100_000
"""Keys kept per route, which are about 17 MB: more than one sidecar sees in a burst's time."""
SLACK = 1e-6
"""Seconds, or a thousandth of the interval if that is less: whoever comes back exactly when told
must not be refused because of a rounding error."""
ROUTE = 0
"""The key where all of the route counts as one."""

LimitKey = Annotated[str, msgspec.Meta(extra={"unit": "limit_key"})]


class Config(Struct, frozen=True, kw_only=True):
    """``key``: who shares a limit: ``header:NAME`` (without that header, the client's address),
    ``client`` (the address of the connection; IPv6 by its /64, which is what one customer has) or
    ``route``, everybody together. ``rate`` on the long run, ``burst`` at once."""

    key: LimitKey = "header:authorization"
    rate: Rate
    burst: Count
    dry_run: bool = False


class Store(Protocol):
    """Where the theoretical arrival times are kept.

    ``take`` cannot wait: arrivals are judged before anything is awaited. A store that several
    gateways share therefore answers from what it has here: in the background it leases a part of
    each active key's allowance from the others, and for a key that it has not heard of yet it
    allows the first burst locally while it asks.
    """

    def take(self, key: int, now: float, interval: float, capacity: float) -> float:
        """How far the key's arrival time lies ahead of ``now``, in seconds, with this exchange.
        If that is at most ``capacity``, the exchange is taken, else nothing has changed."""
        ...

    def __len__(self) -> int: ...


class LocalStore:
    """The arrival times of this process, in the order of their last use. O(1), about 0.35 us.

    Those that have passed say nothing and are forgotten: each call looks at the two that were
    used longest ago, so there never is a pause to sweep. With ``most`` keys that are all active,
    the one used longest ago is forgotten, which then may burst once more: no key is ever refused
    because of the others, and memory is bounded. ``evicted`` counts these.
    """

    __slots__ = ("_most", "_times", "evicted")

    def __init__(self, most: int = KEYS) -> None:
        self._most = most
        self._times: OrderedDict[int, float] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._times)

    def take(self, key: int, now: float, interval: float, capacity: float) -> float:
        times = self._times
        ahead = times.get(key, now) - now
        if ahead <= 0:
            ahead = 0.0
        elif ahead > capacity:
            # Of a slower limit, which a reload has replaced: empty now, but no worse than that.
            ahead = capacity
            times[key] = now + capacity
        ahead += interval
        if ahead <= capacity:
            times[key] = now + ahead
        times.move_to_end(key)
        for _ in (1, 2):
            oldest = next(iter(times))
            if times[oldest] > now:
                break
            del times[oldest]
        if len(times) > self._most:
            times.popitem(last=False)
            self.evicted += 1
        return ahead


@lru_cache(maxsize=4096)
def client_key(client: str) -> int:
    """The key of an address. Of another kind than those of headers, so that no header can spend
    what belongs to an address."""
    if ":" in client:
        try:
            address = IPv6Address(client)
        except AddressValueError:
            return hash(("client", client))
        mapped = address.ipv4_mapped
        if mapped is None:
            return hash(("client", address.packed[:8]))
        client = str(mapped)
    return hash(("client", client))


class RateLimit:
    """An arrival check, about 0.9 us. Raises Reject for what is over the limit, with the exact time
    to come back. ``refused``, and ``would_refuse`` of a dry run, are counts."""

    __slots__ = (
        "_capacity",
        "_header",
        "_interval",
        "_limit_line",
        "_slack",
        "_store",
        "config",
        "refused",
        "would_refuse",
    )

    def __init__(self, config: Config, store: Store | None = None) -> None:
        self.config = config
        kind, _, name = config.key.partition(":")
        self._header = name.encode() if kind == "header" else b""
        self._interval = 1 / config.rate
        self._slack = min(SLACK, self._interval / 1000)
        self._capacity = config.burst * self._interval + self._slack
        self._limit_line = b"x-ratelimit-limit: %d\r\n" % config.burst
        self._store: Store = LocalStore() if store is None else store
        self.refused = self.would_refuse = 0

    def arrive(self, exchange: Exchange, now: float) -> None:
        interval, capacity = self._interval, self._capacity
        ahead = self._store.take(self._key(exchange), now, interval, capacity)
        left = capacity - ahead
        dry_run = self.config.dry_run
        if left >= 0:
            if not dry_run:
                self._tell(exchange, int(left / interval), ahead)
            return
        if dry_run:
            self.would_refuse += 1
            exchange.shadow(Reason.RATE_LIMITED)
            return
        self.refused += 1
        self._tell(exchange, 0, ahead - interval)
        # Half of the slack each for this number and for the clock that it is checked by.
        raise Reject(Reason.RATE_LIMITED, retry_after=self._slack / 2 - left)

    def take_over(self, before: RateLimit) -> None:
        """Go on with the counts of the check that a reload replaces, and with what its keys have
        used if they are still the same keys."""
        self.refused, self.would_refuse = before.refused, before.would_refuse
        if self.config.key == before.config.key:
            self._store = before._store

    @property
    def keys(self) -> int:
        """How many have used some of their burst lately."""
        return len(self._store)

    @property
    def evicted(self) -> int:
        """Active keys that were forgotten for want of room; 0 for a store that forgets none."""
        return getattr(self._store, "evicted", 0)

    def describe(self, now: float) -> dict[str, object]:
        """For the admin page."""
        return {
            "key": self.config.key,
            "rate": self.config.rate,
            "burst": self.config.burst,
            "keys": self.keys,
            "evicted": self.evicted,
            "refused": self.refused,
            "would_refuse": self.would_refuse,
        }

    def _key(self, exchange: Exchange) -> int:
        if self._header:
            value = exchange.request.index.get(self._header)
            if value:
                return hash(value)
        elif self.config.key == "route":
            return ROUTE
        return client_key(exchange.client)

    def _tell(self, exchange: Exchange, remaining: int, reset_s: float) -> None:
        exchange.lines += b"%bx-ratelimit-remaining: %d\r\nx-ratelimit-reset: %d\r\n" % (
            self._limit_line,
            remaining,
            ceil(reset_s - self._slack),
        )
