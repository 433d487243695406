"""allowance: how many inferences may be spent on dividing batches, and by whom. Pure.

A share of one for each request, over all of a route, so that all inferences together stay a small
part of the requests whatever fails. Divided among the keys by which calls are joined, since clients
choose those: who spoils batches of its own key spends what that key brings, and at most half of
what nobody has brought.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from math import inf

SHARE = 0.15
BURST = 64.0
"""Inferences that can be spent at once: a batch with two culprits takes up to 24. At one culprit in
100 calls, wherever they fall, batches of 64 spend 9.5 of the 15 in 100 on average; a burst of 64 is
then exhausted about once in 5,000 batches."""
KEYS = 256
"""Purses that are remembered."""


class Allowance:
    """The budget for parts: ``share`` of one for each request, and ``burst`` at first and at most.
    So of any ``n`` requests in a row the extra inferences are at most ``share * n + burst``."""

    __slots__ = ("_burst", "_share", "balance", "spent")

    def __init__(self, share: float = SHARE, burst: float = BURST) -> None:
        self._share = share
        self._burst = self.balance = burst
        self.spent = 0

    def deposit(self, requests: int = 1) -> None:
        """Requests came; each counts once, whatever becomes of it."""
        self.balance = min(self._burst, self.balance + self._share * requests)

    def withdraw(self) -> bool:
        """Take one inference, if there is one."""
        if self.balance < 1.0:
            return False
        self.balance -= 1.0
        self.spent += 1
        return True


class Purse:
    """What one key may spend of an allowance: first ``own``, what its own requests brought and it
    did not need; nobody else can spend that. Then of the rest, and so that what it ``drew`` of late
    is no more than it leaves to others, if there are any. All amounts are parts of the allowance's
    balance: purses divide it, and add nothing. ``until``: seconds, see ``Containment``."""

    __slots__ = ("_purses", "drew", "own", "until")

    def __init__(self, purses: Purses) -> None:
        self._purses = purses
        self.own = self.drew = 0.0
        self.until = -inf

    @property
    def left(self) -> float:
        """How much it could spend now."""
        purses = self._purses
        rest = purses.allowance.balance - purses.owned
        if len(purses.known) > 1:
            rest = (rest - self.drew) / 2
        return self.own + max(0.0, rest)

    def withdraw(self) -> bool:
        """Take one inference, if there is one."""
        purses = self._purses
        if self.left < 1.0 or not purses.allowance.withdraw():
            return False
        own = min(1.0, self.own)
        self.own -= own
        purses.owned -= own
        self.drew += 1.0 - own
        return True


class Purses:
    """The allowance of a route among its keys. Of keys only hashes are kept, and of the ``KEYS``
    that came last: clients may invent them. With one key, all is as if there were no purses."""

    __slots__ = ("_most", "_share", "allowance", "known", "owned")

    def __init__(self, share: float, burst: float) -> None:
        self.allowance = Allowance(share, burst)
        self.known: OrderedDict[int, Purse] = OrderedDict()
        self.owned = 0.0
        self._share = share
        self._most = burst / 2

    def of(self, key: Hashable) -> Purse:
        """Two keys with one hash share a purse, which does no harm."""
        name = hash(key)
        purse = self.known.get(name)
        if purse is None:
            purse = self.known[name] = Purse(self)
            if len(self.known) > KEYS:
                _, gone = self.known.popitem(last=False)
                self.owned -= gone.own
                gone.own = 0.0
        else:
            self.known.move_to_end(name)
        return purse

    def deposit(self, key: Hashable, requests: int) -> None:
        """Its requests came. Where nothing is free, what it brings is taken from the richest: else
        keys that came once would keep what they had brought for ever. O(1), and O(keys) then."""
        purse = self.of(key)
        self.allowance.deposit(requests)
        brought = self._share * requests
        free = self.allowance.balance - self.owned
        wanted = min(brought, self._most - purse.own)
        if wanted > free:
            richest = max(self.known.values(), key=_own)
            taken = max(0.0, min(wanted - free, richest.own - purse.own))
            richest.own -= taken
            self.owned -= taken
            free += taken
        own = max(0.0, min(wanted, free))
        purse.own += own
        self.owned += own
        purse.drew = max(0.0, purse.drew - brought)


def _own(purse: Purse) -> float:
    return purse.own
