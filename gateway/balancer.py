"""Which endpoint takes the next attempt. Pure: endpoints in, one of them out.

The caller hands in the candidates (healthy, not ejected, not tried yet) and never an empty
sequence. All randomness comes from ``rng``, all time from ``now``.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import exp, log
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from random import Random

    from gateway.config import Balance

DECAY = 10.0
"""Seconds in which an estimate loses 1 - 1/e of its weight; Finagle's and linkerd's value."""
STEP = 1 / 8
"""What one outcome moves the share of failures: per outcome and not per second, because a burst of
failures within milliseconds must count in full."""
AVERSION = 4
"""The cost grows with (1 - failing)^-4: one stray failure weighs like two thirds more load, five
in a row like 14 times, ten like 200 times. Retries and ejection do the rest."""
HOPE = 0.05
"""The success share is never taken for less, which keeps the cost finite and comparable."""


class Load:
    """One endpoint as balancing sees it: what is in flight, how slow it is, how often it fails.

    The latency estimate is Finagle's peak EWMA: it jumps up to a slower sample at once and comes
    down with time. Two things differ from Finagle and linkerd, both for endpoints whose answers
    take long. The estimate decays by mere waiting only while nothing is in flight: otherwise an
    endpoint that hangs would look faster the longer it hangs. And failures never improve the
    estimate but raise a factor of their own, because an endpoint that fails fast looks like the
    fastest of all. ``latency`` 0 means not known yet; such an endpoint is compared by load alone.
    All O(1).
    """

    __slots__ = ("_failing", "_latency", "_stamp", "active", "credit", "name", "seed", "weight")

    def __init__(self, name: str, weight: float = 1.0) -> None:
        self.name = name
        self.weight = weight
        self.active = 0
        self.credit = 0.0
        self.seed = _hash(name.encode())
        self._latency = 0.0
        self._failing = 0.0
        self._stamp = 0.0

    def start(self, now: float) -> None:
        """An attempt leaves for this endpoint. ``now`` is for symmetry: a start teaches nothing."""
        self.active += 1

    def finish(self, now: float, seconds: float | None, failed: bool) -> None:
        """An attempt is over. ``seconds`` to its answer's head, None when it says nothing.

        Not to its last byte: how long a generation takes is the prompt's doing.
        """
        assert self.active > 0
        self.active -= 1
        if seconds is None:
            return
        old = exp((self._stamp - now) / DECAY)
        self._stamp = now
        if failed:
            self._failing += (1 - self._failing) * STEP
            if 0 < self._latency < seconds:
                self._latency = seconds
            return
        self._failing *= old * (1 - STEP)
        if seconds < self._latency:
            seconds += (self._latency - seconds) * old
        self._latency = seconds

    def push_back(self, now: float) -> None:
        """An attempt was turned away. Nothing in flight then does not mean that time heals: what
        was estimated is held until it is asked for less."""
        self._latency = self.latency(now)
        self._failing = self.failing(now)
        self._stamp = now

    def pardon(self) -> None:
        """Forget latency and failures: they are of a time that is over."""
        self._latency = self._failing = 0.0

    def latency(self, now: float) -> float:
        """Estimated seconds to an answer's head; 0 when not known. Reading changes nothing."""
        return self._latency * self._freshness(now)

    def failing(self, now: float) -> float:
        """Recent share of failures, from 0 to 1. Forgotten with time while nothing is sent."""
        return self._failing * self._freshness(now)

    def pressure(self, now: float) -> float:
        """Attempts in flight with one more, per weight, made worse by failures."""
        pressure = (self.active + 1) / self.weight
        if self._failing:
            pressure /= max(HOPE, 1 - self.failing(now)) ** AVERSION
        return pressure

    def _freshness(self, now: float) -> float:
        return 1.0 if self.active else exp((self._stamp - now) / DECAY)


class Balancer(Protocol):
    def choose(self, loads: Sequence[Load], now: float, rng: Random, key: bytes | None) -> Load: ...


class RoundRobin:
    """Smooth weighted round robin, as nginx does it: heavy endpoints come often, not in a row.

    O(n). Exact shares whatever the load, hence blind to a slow or failing endpoint.
    """

    def choose(self, loads: Sequence[Load], now: float, rng: Random, key: bytes | None) -> Load:
        best = loads[0]
        total = 0.0
        for load in loads:
            total += load.weight
            load.credit += load.weight
            if load.credit > best.credit:
                best = load
        best.credit -= total
        return best


class LeastRequest:
    """The less loaded of two random endpoints (Mitzenmacher, 2001), always two different ones.

    O(1). Two choices rather than the minimum of all: several gateways that all see the same
    minimum would all send there. The weight is capacity: in flight per weight is compared.
    """

    def choose(self, loads: Sequence[Load], now: float, rng: Random, key: bytes | None) -> Load:
        if len(loads) == 1:
            return loads[0]
        one, two = _pair(loads, rng)
        return two if two.pressure(now) < one.pressure(now) else one


class PeakEwma:
    """The cheaper of two random endpoints; cost is estimated latency times load. O(1)."""

    def choose(self, loads: Sequence[Load], now: float, rng: Random, key: bytes | None) -> Load:
        if len(loads) == 1:
            return loads[0]
        one, two = _pair(loads, rng)
        cost_one, cost_two = one.pressure(now), two.pressure(now)
        slow_one, slow_two = one.latency(now), two.latency(now)
        if slow_one and slow_two:
            cost_one *= slow_one
            cost_two *= slow_two
        return two if cost_two < cost_one else one


class ConsistentHash:
    """The same key to the same endpoint, unless that one has more than its share in flight.

    Weighted rendezvous hashing (Thaler and Ravishankar, 1998; weights after Schindelhauer and
    Schomaker, 2005): each endpoint draws a score from key and name, the highest wins. When an
    endpoint comes or goes, only its own keys move, and they spread over all others by weight; no
    ring is kept, so any subset of endpoints can be handed in. An endpoint is full at ``bound``
    times its weighted share of what is in flight, the new attempt included (Mirrokni, Thorup and
    Zadimoghaddam, 2016); its overflow goes to the key's next best, the same one every time.

    O(n) with about 1 us per endpoint. A ring would look up in O(log n), but the bound needs the
    sum over all candidates anyway. Without a key: least request.
    """

    def __init__(self, bound: float) -> None:
        self._bound = bound
        self._keyless = LeastRequest()

    def choose(self, loads: Sequence[Load], now: float, rng: Random, key: bytes | None) -> Load:
        if key is None:
            return self._keyless.choose(loads, now, rng, key)
        weights = 0.0
        active = 1
        for load in loads:
            weights += load.weight
            active += load.active
        share = self._bound * active / weights
        hashed = _hash(key)
        best, highest = loads[0], -1.0
        for load in loads:
            if load.active < share * load.weight:
                score = _score(hashed, load)
                if score > highest:
                    best, highest = load, score
        return best


def balancer(config: Balance) -> Balancer:
    """The policy of a cluster. ``hash_by`` is the caller's: it knows where the key stands."""
    match config.policy:
        case "round_robin":
            return RoundRobin()
        case "least_request":
            return LeastRequest()
        case "peak_ewma":
            return PeakEwma()
        case "consistent_hash":
            return ConsistentHash(config.bound)


def _pair(loads: Sequence[Load], rng: Random) -> tuple[Load, Load]:
    """Two different endpoints in random order, every ordered pair equally likely. O(1)."""
    count = len(loads)
    first = int(rng.random() * count)
    second = int(rng.random() * (count - 1))
    if second >= first:
        second += 1
    return loads[first], loads[second]


def _hash(data: bytes) -> int:
    """64 bits that are the same in every process and on every machine, unlike ``hash``."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def _score(hashed: int, load: Load) -> float:
    """``-weight / ln(u)`` with u uniform in (0, 1): splitmix64's finaliser over key and name."""
    x = hashed ^ load.seed
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    x ^= x >> 31
    return -load.weight / log(((x >> 11) + 0.5) / 9007199254740992)
