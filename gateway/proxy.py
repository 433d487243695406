"""One exchange from arrival to its last byte: the innermost service of the exchange chain."""

from filters.api import (
    FAILED,
    IGNORED,
    OK,
    Attempt,
    Exchange,
    Outcome,
    Reason,
    Reject,
    Service,
)

_CUT_OFF = Outcome(IGNORED)
"""Of an answer whose relaying was cancelled. One for all: a permit only reads it."""


class Forward:
    """Send the exchange on through the attempt chain and relay the answer.

    Returns after the last byte. Raises Reject when no attempt brought a usable answer; the
    answer of an upstream that refuses (503, 429, ...) is usable, and is the client's to see.
    """

    __slots__ = ("_attempts",)

    def __init__(self, attempts: Service[Attempt, Outcome]) -> None:
        self._attempts = attempts

    async def __call__(self, exchange: Exchange) -> Outcome:
        outcome = await self._attempts(Attempt(exchange, 1, ()))
        answer, permit = outcome.answer, outcome.permit
        if answer is None:
            reason = outcome.reason or Reason.INTERNAL
            raise Reject(reason, outcome.detail, retry_after=outcome.retry_after)
        ended = _CUT_OFF
        try:
            # The commit point is inside: relay sends the head, and from there on there is no
            # other attempt.
            ended = await answer.relay(exchange)
        finally:
            if permit is not None:
                permit.release(verdict(outcome, ended))
        if ended.kind is FAILED:
            exchange.reason = ended.reason
            if not exchange.downstream.committed:
                raise Reject(ended.reason or Reason.INTERNAL)
        elif ended.kind is OK and outcome.kind is not OK:
            # Relayed well, but a failure or push-back: the exchange chain hears it too.
            ended.kind, ended.retry_after = outcome.kind, outcome.retry_after
        return ended


def verdict(outcome: Outcome, ended: Outcome) -> Outcome:
    """What the endpoint answers for: a failing status or push-back however well it was relayed, but
    not a client that stopped reading."""
    if ended.kind is OK:
        return ended if outcome.kind is OK else outcome
    if ended.reason is Reason.CLIENT_STALLED:
        return Outcome(IGNORED, ended.status, ended.reason)
    return ended
