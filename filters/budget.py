"""The budget for extra attempts: deposits by requests, withdrawals by retries and hedges alike.

Why a budget and not a maximum number of retries: "3 attempts each" multiplies the load on a
failing server by three exactly when it can bear it least. A budget bounds the *share* of extra
load whatever the failure (Finagle's RetryBudget; gRPC A6 retry throttling).
"""

from typing import Annotated, Literal

import msgspec

from filters.units import Share, Struct

WINDOW = 10
"""Seconds after which a deposit is gone, and so the cap: Finagle's ttl. Long enough to ride out
a restart of one replica, short enough that a quiet night cannot pay for a storm at dawn."""


class Config(Struct, frozen=True):
    """``ratio``: extra attempts per request; ``hedges``: the part of it that hedges may take;
    ``min_per_second``: a reserve, so that a quiet route can retry at all."""

    ratio: Share = 0.1
    hedges: Share = 0.05
    min_per_second: Annotated[float, msgspec.Meta(ge=0)] = 1.0


class Budget:
    """Finagle's leaky token bucket: what counts is the last ``WINDOW`` seconds, and nothing else.

    At every withdrawal, those of the last ``WINDOW`` seconds (the current one included) are at
    most ``ratio`` times the requests of the same seconds plus ``min_per_second * WINDOW``. Hedges
    are held to the same rule with ``hedges`` for ``ratio`` and the same part of the reserve, so
    retries always find what hedges may not take. Requests and withdrawals are counted as whole
    numbers per second, so no rounding error ever accumulates.

    Cost: a comparison and two additions per call; O(WINDOW) at most once a second.
    """

    __slots__ = ("_hedged", "_hedges_of_reserve", "_requests", "_reserve", "_second",
                 "_spent", "_sum_hedged", "_sum_requests", "_sum_spent", "config")  # fmt: skip

    def __init__(self, config: Config) -> None:
        self.config = config
        self._reserve = config.min_per_second * WINDOW
        part = min(1.0, config.hedges / config.ratio) if config.ratio else 0.0
        self._hedges_of_reserve = self._reserve * part
        self._second = 0
        self._requests = [0] * WINDOW
        self._spent = [0] * WINDOW
        self._hedged = [0] * WINDOW
        self._sum_requests = self._sum_spent = self._sum_hedged = 0

    def deposit(self, now: float, n: int = 1) -> None:
        """Count ``n`` requests. Once per exchange, whatever becomes of it."""
        if now >= self._second + 1:
            self._roll(int(now))
        self._requests[self._second % WINDOW] += n
        self._sum_requests += n

    def withdraw(self, now: float, kind: Literal["retry", "hedge"]) -> bool:
        """Take one extra attempt if the budget bears it. False leaves the budget as it was."""
        if self.balance(now) < 1:
            return False
        if kind == "hedge":
            allowed = self.config.hedges * self._sum_requests + self._hedges_of_reserve
            if allowed - self._sum_hedged < 1:
                return False
            self._hedged[self._second % WINDOW] += 1
            self._sum_hedged += 1
        self._spent[self._second % WINDOW] += 1
        self._sum_spent += 1
        return True

    def balance(self, now: float) -> float:
        """Extra attempts that could be taken now. Below zero after old deposits have expired."""
        if now >= self._second + 1:
            self._roll(int(now))
        return self.config.ratio * self._sum_requests + self._reserve - self._sum_spent

    def describe(self, now: float) -> dict[str, object]:
        """For the admin page; all but ``balance`` are counts of the last ``WINDOW`` seconds."""
        return {
            "balance": self.balance(now),
            "requests": self._sum_requests,
            "spent": self._sum_spent,
            "hedges": self._sum_hedged,
        }

    def _roll(self, second: int) -> None:
        """Forget the seconds that left the window. The clock is monotonic: never backwards."""
        for gone in range(max(self._second + 1, second - WINDOW + 1), second + 1):
            place = gone % WINDOW
            self._sum_requests -= self._requests[place]
            self._sum_spent -= self._spent[place]
            self._sum_hedged -= self._hedged[place]
            self._requests[place] = self._spent[place] = self._hedged[place] = 0
        self._second = second
