"""Pure: what became of each attempt of an exchange, which is known only when the exchange ends.

For the spans of the attempts (``tracing.py``): who won a race between two of them, who lost it, and
whose answer was thrown away for a retry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from filters.api import FAILED, IGNORED, PUSHED_BACK, Reason

if TYPE_CHECKING:
    from filters.api import Attempt, Exchange, Outcome

_NOT_THE_UPSTREAM = frozenset((Reason.CLIENT_GONE, Reason.CLIENT_STALLED, Reason.DEADLINE))


class Try:
    """One attempt and its span. ``outcome`` is None while it is under way, and for ever if it was
    cancelled; ``began`` and ``ended`` in nanoseconds of the wall clock, ``ended`` 0 while its
    answer may still be used. ``endpoint`` is its own: that of the attempt becomes the winner's."""

    __slots__ = ("attempt", "began", "ended", "endpoint", "hedge", "outcome", "raced", "span")

    def __init__(self, attempt: Attempt, span: Any, began: int) -> None:
        self.attempt = attempt
        self.span = span
        self.began = began
        self.outcome: Outcome | None = None
        self.ended = 0
        self.endpoint = ""
        self.raced = self.hedge = False

    @property
    def open(self) -> bool:
        """Under way, or answered and not thrown away."""
        if self.ended:
            return False
        return self.outcome is None or self.outcome.answer is not None


def verdict(made: Try, exchange: Exchange, *, won: bool, lost: bool) -> tuple[str, str | None]:
    """What became of an attempt, and its error if it is one: ``ok``, ``failed``, ``pushed_back``,
    ``lost`` (the race, which is no error) or ``cancelled``.

    ``won``: its answer is the exchange's. ``lost``: it raced against the attempt that won."""
    outcome = made.outcome
    kind = IGNORED if outcome is None else outcome.kind
    reason = None if outcome is None or outcome.reason is None else outcome.reason.value
    if kind is FAILED:
        return "failed", reason
    if kind is PUSHED_BACK:
        return "pushed_back", reason
    if lost:
        return "lost", None
    if kind is IGNORED:
        return "cancelled", "cancelled"
    if not won:  # its head came, and nothing behind it
        return "failed", Reason.UPSTREAM_RESET.value
    if exchange.reason is None:
        return "ok", None
    told = "cancelled" if exchange.reason in _NOT_THE_UPSTREAM else "failed"
    return told, exchange.reason.value
