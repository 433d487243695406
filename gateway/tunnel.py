"""Upgraded connections (WebSocket), byte for byte in both directions.

Nothing is parsed. A side that closes is passed on as a half-close and the other gets ``GRACE_S``
to finish; silence in both directions for longer than the route's ``stall`` ends it. Back-pressure
is the connections' own: each pauses the other's reading while its writes do not drain.
"""

import asyncio
from typing import TYPE_CHECKING

from filters.api import Clock, Handle, Kind, Outcome, Reason

if TYPE_CHECKING:
    from gateway.downstream import Downstream
    from gateway.upstream import UpstreamConnection

GRACE_S = 5.0


class Tunnel:
    """One upgraded exchange. ``closed`` resolves when either side is gone for good."""

    def __init__(
        self,
        downstream: "Downstream",
        upstream: "UpstreamConnection",
        clock: Clock,
        idle: float,
    ) -> None:
        self.downstream = downstream
        self.upstream = upstream
        self._clock = clock
        self._idle = idle
        self._last = clock.now()
        self._half_closed = False
        self._alarm: Handle = clock.call_at(self._last + idle, self._look)
        self._reason: Reason | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, status: int) -> Outcome:
        try:
            await self.closed
        finally:
            self._alarm.cancel()
            self.downstream.tunnel = self.upstream.tunnel = None
            # Both still deliver what was written to them, within the grace: a side that does not
            # read would otherwise keep its place for ever.
            for side in (self.upstream.transport, self.downstream.transport):
                side.close()
                self._clock.call_at(self._clock.now() + GRACE_S, side.abort)
        return Outcome(Kind.OK, status, self._reason)

    def from_downstream(self, data: bytes) -> None:
        self._last = self._clock.now()
        if not self.closed.done():
            self.upstream.transport.write(data)

    def from_upstream(self, data: bytes) -> None:
        self._last = self._clock.now()
        if not self.closed.done():
            self.downstream.transport.write(data)

    def half_closed(self, by_downstream: bool) -> bool:
        """One side will send no more. Returns whether its transport should stay open."""
        other = self.upstream if by_downstream else self.downstream
        if self.closed.done() or self._half_closed or not other.transport.can_write_eof():
            self.lost()
            return False
        self._half_closed = True
        other.transport.write_eof()
        self._alarm.cancel()
        self._alarm = self._clock.call_at(self._clock.now() + GRACE_S, self.lost)
        return True

    def lost(self) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def _look(self) -> None:
        due = self._last + self._idle
        if due > self._clock.now():
            self._alarm = self._clock.call_at(due, self._look)
        else:
            self._reason = Reason.STALL
            self.lost()
