"""priority: the class of an exchange, which queueing and shedding need to know.

The class is a claim. From a client outside ``trust`` it may only lower: an exchange that says of
itself that it matters less than the default is believed, one that says it matters more is not,
and what it claims does not travel on either, because the next gateway trusts this one.
"""

from __future__ import annotations

from typing import Literal

from filters.api import Exchange, Priority, Request
from filters.units import HeaderName, Struct


class Config(Struct, frozen=True):
    """``header`` names the class; ``default`` is that of a request without it, or with something
    else in it. A client outside ``trust`` can only lower its class below ``default``. Without this
    filter every exchange is ``critical``, and the header passes as it came."""

    header: HeaderName = "x-request-priority"
    default: Literal["critical_plus", "critical", "sheddable_plus", "sheddable"] = "critical"


CLASSES = {each.name.lower().encode(): each for each in Priority}
"""As they are written in the header, in any case."""


def classify(value: bytes, trusted: bool, default: Priority) -> Priority:
    """The class that a header's value claims, as far as it is believed. O(1).

    What is no class (two of them included, which arrive joined by a comma) is as if nothing had
    been said: whoever cannot spell it did not mean to be shed.
    """
    claimed = CLASSES.get(value)
    if claimed is None:
        claimed = CLASSES.get(value.lower(), default)
    return claimed if trusted or claimed > default else default


class Priorities:
    """An arrival check: sets ``exchange.priority``. About 0.1 us without the header, 0.2 us with
    it. ``disbelieved`` counts claims that were not believed or not understood."""

    __slots__ = ("_default", "_header", "_name", "disbelieved")

    def __init__(self, config: Config) -> None:
        self._header = config.header.encode()
        self._name = config.default.encode()
        self._default = CLASSES[self._name]
        self.disbelieved = 0

    def arrive(self, exchange: Exchange, now: float) -> None:
        value = exchange.request.index.get(self._header)
        if value is None:
            exchange.priority = self._default
            return
        priority = exchange.priority = classify(value, exchange.trusted, self._default)
        if priority is self._default and value.lower() != self._name:
            self.disbelieved += 1
            if not exchange.trusted:
                self._correct(exchange)

    def take_over(self, before: Priorities) -> None:
        """Go on with the counts of the check that a reload replaces."""
        self.disbelieved = before.disbelieved

    def describe(self, now: float) -> dict[str, object]:
        return {"default": self._name.decode(), "disbelieved": self.disbelieved}

    def _correct(self, exchange: Exchange) -> None:
        """Put the class that counts here in the place of the claim, for every attempt, log and
        filter from here on. O(headers), and only for claims that are not true."""
        request, header, name = exchange.request, self._header, self._name
        line = (header, name, header, b"%b: %b\r\n" % (header, name))
        # A request of its own, because other exchanges may have the same one.
        exchange.request = Request(
            request.method,
            request.target,
            request.minor,
            [*(each for each in request.fields if each[0] != header), line],
            {**request.index, header: name},
            request.host,
            request.length,
        )
