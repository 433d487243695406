"""EDGE 2: a connection to an upstream, and one request on it at a time.

It parses what comes and tells its ``Call`` (``gateway/call.py``), which is one attempt on this
connection. Body bytes go from this protocol's callback straight into the client's transport; no
task wakes per chunk. ``gateway/pool.py`` keeps the connections.
"""

import asyncio
from typing import TYPE_CHECKING, cast

from filters.api import Headers, Reason, Reject
from gateway import wire
from gateway.chunked import Decoder
from gateway.clock import NEVER, Timer
from gateway.head_memo import meet_answer

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.pool import Pool
    from gateway.tunnel import Tunnel

INTERIM = 16
"""1xx responses that one answer may begin with."""


class UpstreamConnection(asyncio.Protocol):
    """One connection. ``call`` is whose answer comes next; without one, any byte is an intruder."""

    __slots__ = (
        "_decoder",
        "_interim",
        "_left",
        "_pending",
        "call",
        "closed",
        "counted",
        "eof",
        "head",
        "idle_since",
        "pool",
        "reused",
        "timer",
        "transport",
        "tunnel",
    )

    def __init__(self, pool: "Pool") -> None:
        self.pool = pool
        self.transport = cast("asyncio.Transport", None)
        self.call: Call | None = None
        self.tunnel: Tunnel | None = None
        self.closed = False
        self.counted = self.eof = False
        self.reused = False
        self.idle_since = 0.0
        self.head: wire.ResponseHead | None = None
        self._pending: bytearray | None = None
        self._decoder: Decoder | None = None
        self._left = 0
        self._interim = 0
        self.timer = Timer(pool.clock, self._out_of_time)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.timer.stop()
        self.pool.gone(self)
        if self.tunnel is not None:
            self.tunnel.lost()
        call = self.call
        if call is not None:
            self.call = None
            self._ended(call, exc)

    def _out_of_time(self) -> None:
        if self.call is not None:
            self.call.out_of_time()

    def eof_received(self) -> bool:
        self.eof = True
        if self.tunnel is not None:
            return self.tunnel.half_closed(by_downstream=False)
        return False

    def _ended(self, call: "Call", exc: Exception | None) -> None:
        """The upstream closed while an answer was due. Only a clean close ends a body."""
        head = self.head
        if head is not None and head.length == -1 and exc is None and self.eof:
            call.ended(b"", [], self.pool.clock.now())
        elif head is None:
            call.failed(Reason.UPSTREAM_RESET, "closed before the answer")
        else:
            call.failed(Reason.UPSTREAM_TRUNCATED, "closed within the answer")

    def pause_writing(self) -> None:
        if self.tunnel is not None:
            self.tunnel.downstream.pause()
        elif self.call is not None:
            self.call.body.pause()

    def resume_writing(self) -> None:
        if self.tunnel is not None:
            self.tunnel.downstream.resume()
        elif self.call is not None:
            self.call.body.resume()

    def pause(self) -> None:
        if not self.closed:
            self.transport.pause_reading()

    def resume(self) -> None:
        if not self.closed:
            self.transport.resume_reading()

    # -- reading -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        call = self.call
        if call is None:
            if self.tunnel is not None:
                self.tunnel.from_upstream(data)
            else:
                self.close()
            return
        try:
            head = self.head
            if head is None:
                self._head_data(call, data)
            elif head.length is None:
                self._chunked_data(call, data)
            elif head.length >= 0:
                self._length_data(call, data)
            else:
                call.piece(data)
        except Reject as reject:
            self.close()
            call.failed(reject.reason, reject.detail)

    def _head_data(self, call: "Call", data: bytes) -> None:
        call.answered = True
        pending = self._pending
        pool = self.pool
        if pending is None:
            end = pool.answers.match(data, pool.headers)
            if 0 < end <= pool.head_bytes and call.method != b"HEAD":
                self._begin(call, pool.answers.read, data[end:])
                return
            end = data.find(b"\r\n\r\n")
        else:
            seen = len(pending)
            pending += data
            end = pending.find(b"\r\n\r\n", max(0, seen - 3))
        if end < 0:
            if pending is None:
                pending = self._pending = bytearray(data)
            if len(pending) > pool.head_bytes:
                wire.broken("head too large")
            wire.check_partial_response(pending, len(pending) - len(data))
            return
        if end > pool.head_bytes:
            wire.broken("head too large")
        if pending is not None:
            data = bytes(pending)
            self._pending = None
        raw = data[: end + 4]
        head = wire.parse_response(raw, method=call.method, headers=pool.headers)
        meet_answer(pool.answers, raw, call.method, head, pool.headers)
        self._begin(call, head, data[end + 4 :])

    def _begin(self, call: "Call", head: wire.ResponseHead, rest: bytes) -> None:
        if head.status < 200:
            self._interim_head(call, head, rest)
            return
        self.head = head
        length = head.length
        if length == 0:
            call.begun(head)
            self._done(call, b"", [], rest)
            return
        if length is None:
            self._decoder = Decoder(Reason.UPSTREAM_PROTOCOL)
        elif length == len(rest):  # all of it in one read, as most answers come
            call.begun(head)
            self._done(call, rest, [], b"")
            return
        else:
            self._left = length
        call.begun(head)
        if rest:
            self.data_received(rest)

    def _interim_head(self, call: "Call", head: wire.ResponseHead, rest: bytes) -> None:
        if head.status == 101:
            if not call.upgrade or head.index.get(b"upgrade", b"").lower() != b"websocket":
                wire.broken("switched protocols unasked")
            self.head = head
            self.call = None
            call.switched(head, rest)
            return
        self._interim += 1
        if self._interim > INTERIM:
            wire.broken(f"more than {INTERIM} interim responses")
        if head.status != 100:
            call.interim(head)
        if rest:
            self.data_received(rest)

    def _length_data(self, call: "Call", data: bytes) -> None:
        left = self._left - len(data)
        if left > 0:
            self._left = left
            call.piece(data)
        elif left == 0:
            self._done(call, data, [], b"")
        else:
            self._done(call, data[:left], [], data[left:])

    def _chunked_data(self, call: "Call", data: bytes) -> None:
        decoder = self._decoder
        assert decoder is not None
        piece = decoder.feed(data)
        if decoder.done:
            self._done(call, piece, decoder.trailers, decoder.rest)
        elif piece:
            call.piece(piece)

    def _done(self, call: "Call", data: bytes, trailers: Headers, rest: bytes) -> None:
        """The answer is whole. Anything behind it is nobody's: the connection goes too."""
        head = self.head
        assert head is not None
        if call.paused:
            call.resume()
        self.timer.due = NEVER
        self.call = None
        self.head = None
        self._decoder = None
        self._interim = 0
        now = self.pool.clock.now()
        # The connection goes back before the exchange ends, so that what the client sends next
        # finds it there.
        # With bytes of the request unsent it would begin the next one write-paused, or late.
        usable = head.keep and not rest and call.request_sent and not self.closed
        if usable and not self.transport.get_write_buffer_size():
            self.pool.put(self, now)
        else:
            self.close()
        call.ended(data, trailers, now)

    def close(self) -> None:
        """Close now. What was written and not sent is lost, which is the point."""
        if not self.closed:
            self.closed = True
            self.transport.abort()
