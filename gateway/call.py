"""One attempt on one upstream connection: what is sent, the answer, and the clocks that bound it.

Of the four clocks, connect is the pool's and total is the deadline filter's; first byte and stall
are here, both on one timer.
"""

import asyncio
from typing import TYPE_CHECKING

from filters.api import FAILED, OK, Clock, Exchange, Headers, Kind, Outcome, Reason
from gateway import wire
from gateway.chunked import encode, encode_end
from gateway.fields import pairs
from gateway.headers import answer_lines, debug_lines, upgrade_lines
from gateway.tunnel import Tunnel

if TYPE_CHECKING:
    from gateway.body import RequestBody
    from gateway.responder import Responder
    from gateway.upstream import UpstreamConnection

READ_AHEAD = 64 * 1024
"""Body bytes taken before the head is committed downstream."""


class Call:
    """One attempt on one connection. Implements Answer, Flow and BodySink.

    ``failure`` resolves to None when a usable head is there, else to (reason, detail).
    """

    __slots__ = (
        "_begun",
        "_chunked",
        "_clock",
        "_connection",
        "_ended",
        "_exchange",
        "_first_byte_s",
        "_pieces",
        "_pieces_bytes",
        "_result",
        "_sink",
        "_stall_s",
        "_stuck_bytes",
        "_timer",
        "answered",
        "body",
        "failure",
        "first_byte",
        "head",
        "method",
        "paused",
        "request_sent",
        "upgrade",
    )

    def __init__(
        self,
        connection: "UpstreamConnection",
        exchange: Exchange,
        clock: Clock,
        failure: "asyncio.Future[tuple[Reason, str] | None]",
        now: float,
    ) -> None:
        self._connection: UpstreamConnection | None = connection
        self._exchange = exchange
        self._clock = clock
        clocks: tuple[float, float] = exchange.route.clocks
        self._first_byte_s, self._stall_s = clocks
        self.paused = False
        self._stuck_bytes = -1
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._ended: Headers | None = None
        self._sink: Responder | None = None
        self._result: asyncio.Future[Outcome] | None = None
        self._begun: asyncio.Future[None] | None = None
        self._chunked = exchange.request.length is None
        self.method = exchange.request.method
        self.upgrade = exchange.upgrade
        self.body: RequestBody = exchange.body  # type: ignore[assignment]
        self.failure = failure
        self.first_byte: float | None = None
        self.answered = False
        self.head: wire.ResponseHead | None = None
        self.request_sent = False
        # The connection's own: exchange after exchange only moves it later, which costs nothing.
        self._timer = connection.timer
        self._timer.set(now + self._first_byte_s)

    # -- the request --------------------------------------------------------------------------

    def send(self, head: bytes) -> None:
        """Write the head and what there is of the body; the rest follows by callback."""
        connection = self._connection
        assert connection is not None
        connection.call = self
        body = self.body
        pieces = body.attach(self)
        if body.complete and not self._chunked:
            self.request_sent = True
            connection.transport.write(head + b"".join(pieces))
            return
        connection.transport.write(head)
        for piece in pieces:
            self.body_data(piece)
        if body.complete:
            self.body_end(body.trailers)
        elif body.aborted:
            self.body_abort()

    def body_data(self, data: bytes) -> None:
        connection = self._connection
        if connection is not None and not connection.closed:
            connection.transport.write(encode(data) if self._chunked else data)

    def body_end(self, trailers: Headers) -> None:
        connection = self._connection
        self.request_sent = True
        if self.first_byte is None:
            self._timer.due = self._clock.now() + self._first_byte_s
        if self._chunked and connection is not None and not connection.closed:
            connection.transport.write(encode_end(trailers))

    def body_abort(self) -> None:
        """No end is sent, so the upstream cannot take the part for the whole."""
        if self._connection is not None:
            self._connection.close()

    # -- the answer, as the connection reads it -----------------------------------------------

    def begun(self, head: wire.ResponseHead) -> None:
        self.head = head
        if not self.failure.done():
            self.failure.set_result(None)

    def interim(self, head: wire.ResponseHead) -> None:
        self._exchange.downstream.inform(head.status, answer_lines(head, b""))

    def piece(self, data: bytes) -> None:
        now = self._clock.now()
        if self.first_byte is None:
            self.first_byte = now
            if self._begun is not None:
                self._wake()
            self._timer.set(now + self._stall_s)
        else:
            self._timer.due = now + self._stall_s
        sink = self._sink
        if sink is not None:
            sink.write(data)
            return
        self._pieces.append(data)
        self._pieces_bytes += len(data)
        if self._pieces_bytes > READ_AHEAD:
            self.pause()

    def ended(self, data: bytes, trailers: Headers, now: float) -> None:
        self._connection = None
        self.body.detach(self)
        if self.first_byte is None:
            self.first_byte = now
            if self._begun is not None:
                self._wake()
        sink = self._sink
        if sink is None:
            if data:
                self._pieces.append(data)
            self._ended = trailers
            return
        sink.finish(data, trailers)
        self._settle(OK, None)

    def failed(self, reason: Reason, detail: str) -> None:
        self._timer.clear()
        self._connection = None
        self.body.detach(self)
        if self.head is None or self._sink is None:
            if not self.failure.done():
                self.failure.set_result((reason, detail))
            else:
                self._pieces.clear()
                self._settle(Kind.FAILED, reason, detail)
                self._wake()
            return
        self._settle(Kind.FAILED, reason)

    def switched(self, head: wire.ResponseHead, early: bytes) -> None:
        self.head = head
        self._timer.clear()
        if early:
            self._pieces.append(early)
        if not self.failure.done():
            self.failure.set_result(None)

    def _wake(self) -> None:
        """Whoever waits for the body may look again."""
        if self._begun is not None and not self._begun.done():
            self._begun.set_result(None)

    def _settle(self, kind: Kind, reason: Reason | None, detail: str = "") -> None:
        result = self._result
        outcome = Outcome(kind, self.status, reason, detail=detail)
        if result is None:
            result = self._result = asyncio.get_running_loop().create_future()
        if not result.done():
            result.set_result(outcome)

    # -- Answer -------------------------------------------------------------------------------

    @property
    def status(self) -> int:
        return 0 if self.head is None else self.head.status

    @property
    def headers(self) -> Headers:
        return [] if self.head is None else pairs(self.head.fields)

    @property
    def empty(self) -> bool:
        return self._ended is not None and not self._pieces

    @property
    def body_here(self) -> bool:
        return self.first_byte is not None and self._result is None

    async def body_begun(self) -> Outcome | None:
        if self.first_byte is None and self._result is None:
            self._begun = asyncio.get_running_loop().create_future()
            try:
                await self._begun
            finally:
                self._begun = None
        if self._result is None:
            return None
        broken = self._result.result()
        broken.complete = self.request_sent
        if broken.reason is Reason.UPSTREAM_TRUNCATED:
            # Nothing of it was passed on, so for whoever decides on a retry it never began.
            broken.reason = Reason.UPSTREAM_RESET
        return broken

    async def relay(self, exchange: Exchange) -> Outcome:
        head = self.head
        assert head is not None
        downstream: Responder = exchange.downstream  # type: ignore[assignment]
        if head.status == 101:
            return await self._tunnel(downstream)
        if self._result is not None:  # it broke between the head and now
            return self._result.result()
        length = head.length
        if length is not None and length <= 0:  # without a body, or up to the close
            declared = head.index.get(b"content-length")
            length = None if declared is None else int(declared)
        exchange.first_byte = self.first_byte
        # THE COMMIT POINT: from here on the client has seen an answer, and no other can begin.
        lines = answer_lines(head, exchange.request_id, exchange.lines)
        if exchange.route.debug:
            lines += debug_lines(exchange)
        downstream.start(head.status, lines, length)
        if self._ended is not None:
            pieces = self._pieces
            downstream.finish(pieces[0] if len(pieces) == 1 else b"".join(pieces), self._ended)
            return Outcome(OK, head.status)
        if self._pieces:
            downstream.write(b"".join(self._pieces))
            self._pieces.clear()
        else:
            downstream.flush()
        self._sink = downstream
        self._result = asyncio.get_running_loop().create_future()
        self.resume()
        downstream.flow(self)
        try:
            outcome = await self._result
        except asyncio.CancelledError:
            self.discard()
            raise
        finally:
            downstream.flow(None)
            exchange.first_byte = self.first_byte
        if outcome.kind is FAILED:
            downstream.abort()
        return outcome

    async def _tunnel(self, downstream: "Responder") -> Outcome:
        upstream, head = self._connection, self.head
        assert upstream is not None
        assert head is not None
        if upstream.closed:
            return Outcome(Kind.FAILED, 0, Reason.UPSTREAM_RESET)
        lines = upgrade_lines(head, self._exchange.request_id, self._exchange.lines)
        client = downstream.switch(head.status, lines)
        if client is None:
            self.discard()
            return Outcome(Kind.IGNORED, head.status)
        tunnel = Tunnel(client, upstream, self._clock, self._stall_s)
        upstream.tunnel = tunnel
        for piece in self._pieces:
            tunnel.from_upstream(piece)
        early = client.enter_tunnel(tunnel)
        if early:
            tunnel.from_downstream(early)
        return await tunnel.run(head.status)

    def discard(self) -> None:
        """The answer is not wanted: closing tells the model server to stop generating."""
        self.body.detach(self)
        connection, self._connection = self._connection, None
        self._sink = None
        if connection is not None:  # else it is another exchange's already, its timer included
            self._timer.clear()
            connection.call = None
            connection.close()

    # -- Flow and clocks ----------------------------------------------------------------------

    def pause(self) -> None:
        connection = self._connection
        if not self.paused and connection is not None:
            self.paused = True
            self._stuck_bytes = -1
            connection.pause()

    def resume(self) -> None:
        connection = self._connection
        if self.paused:
            self.paused = False
            if connection is not None:
                if self.first_byte is not None:
                    self._timer.due = self._clock.now() + self._stall_s
                connection.resume()

    def out_of_time(self) -> None:
        reason = Reason.FIRST_BYTE_TIMEOUT if self.first_byte is None else Reason.STALL
        if self.paused:
            reason = Reason.CLIENT_STALLED
        if (self.paused or not self.request_sent) and self._moved():
            self._timer.set(self._clock.now() + self._stall_s)
            return
        connection = self._connection
        if connection is not None:
            connection.call = None
            connection.close()
        self.failed(reason, "its own clock ended this attempt")

    def _moved(self) -> bool:
        """Whether the side that is waited for has taken bytes since the last look.

        An upload that waits for the client has an empty buffer here: the client's own clock,
        ``timeouts.body_idle``, bounds that.
        """
        sink, connection = self._sink, self._connection
        if self.paused:
            waiting = -2 if sink is None else sink.buffered()
        else:
            waiting = 0 if connection is None else connection.transport.get_write_buffer_size()
        moved = waiting in (0, -2) or waiting != self._stuck_bytes
        self._stuck_bytes = waiting
        return moved
