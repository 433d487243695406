"""EDGE 1: a client's connection -> exchanges, one at a time and in order.

What a client pipelines stays unparsed bytes until its turn, and reading stops when enough of it
waits; so memory per connection is bounded and no answer can overtake another. The answer side is
a ``Responder`` that is made for one exchange and cut off at its end: a late byte of one exchange
has no way into the next one's answer.
"""

import asyncio
from typing import TYPE_CHECKING, cast

from filters.api import Exchange, Flow, Headers, Reason, Reject, Request
from gateway import wire
from gateway.body import RequestBody
from gateway.chunked import Decoder
from gateway.clock import NEVER, Timer
from gateway.head_buffer import HeadBuffer
from gateway.responder import Responder

if TYPE_CHECKING:
    from gateway.acceptor import Acceptor
    from gateway.tunnel import Tunnel

# What the next bytes from the client are.
HEAD, LENGTH, CHUNKED, HELD, DISCARD, TUNNEL = range(6)

HELD_BYTES = 64 * 1024
"""Pipelined bytes that may wait, besides the count of ``limits.pipeline``."""
LINGER_S = 2.0
"""How long a closing connection is read on, so that a reset does not destroy the last answer."""
LINGER_BYTES = 1024 * 1024


class Downstream(asyncio.Protocol):
    """One accepted connection. Every transition of ``_mode`` is in this file."""

    __slots__ = (
        "_body", "_decoder", "_expects", "_half_closed", "_held", "_left", "_mode", "_partial",
        "_paused", "_responder", "_served", "_task", "_timer", "acceptor", "client", "closing",
        "ended", "exchange", "secure", "sender", "transport", "trusted", "tunnel",
    )  # fmt: skip

    def __init__(self, acceptor: "Acceptor") -> None:
        self.acceptor = acceptor
        self.transport = cast("asyncio.Transport", None)
        self.client = ""
        self.secure = self.trusted = False
        self.closing = self.ended = False
        self.tunnel: Tunnel | None = None
        self._mode = HEAD
        self._partial: HeadBuffer | None = None  # of a head that did not come whole
        self._held = b""  # what was pipelined behind the exchange under way
        self._left = 0
        self._decoder: Decoder | None = None
        self._body: RequestBody | None = None
        self.exchange: Exchange | None = None
        self._responder: Responder | None = None
        self._task: asyncio.Task[None] | None = None
        self.sender: Flow | None = None
        self._expects = self._half_closed = self._paused = self._served = False
        self._timer = Timer(acceptor.clock, self._out_of_time)

    # -- the connection ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self.acceptor.admit(self):
            self._allow(self.acceptor.timeouts.head)
        else:
            self._refuse(Reject(Reason.CONNECTIONS, "too many connections", retry_after=1))

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self._timer.stop()
        self.acceptor.forget(self)
        self._leave()
        if self.tunnel is not None:
            self.tunnel.lost()

    def eof_received(self) -> bool:
        """A half-close after a whole request still gets its answer; anything else is the end."""
        if self.tunnel is not None:
            return self.tunnel.half_closed(by_downstream=True)
        if self.exchange is None:
            return False
        if self._body is not None and not self._body.complete:
            self._leave()
            return False
        self._half_closed = True
        self.acceptor.watch_half_closed(self)
        return not self.secure

    def _leave(self) -> None:
        """The client is gone: end what was under way for it, upstream included, at once."""
        if self._body is not None:
            self._body.abort()
        task = self._task
        if task is not None and self.exchange is not None and not task.done():
            if self.exchange.reason is None:
                self.exchange.reason = Reason.CLIENT_GONE
            task.cancel()

    def pause_writing(self) -> None:
        if self.sender is not None:
            self.sender.pause()

    def resume_writing(self) -> None:
        if self.sender is not None:
            self.sender.resume()

    # -- reading -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        mode = self._mode
        if mode == HEAD:
            self._head_data(data)
        elif mode == LENGTH:
            self._length_data(data)
        elif mode == CHUNKED:
            self._chunked_data(data)
        elif mode == TUNNEL:
            if self.tunnel is not None:
                self.tunnel.from_downstream(data)
        elif mode == HELD:
            self._hold(data)
        else:
            self._left -= len(data)
            if self._left < 0:
                self.transport.abort()

    def _head_data(self, data: bytes) -> None:
        limits = self.acceptor.limits
        partial = self._partial
        try:
            if partial is None:
                end = data.find(b"\r\n\r\n")
                if 0 <= end <= limits.head_bytes and data[0] != 13:
                    return self._begin(data[: end + 4], data[end + 4 :])
                partial = self._partial = HeadBuffer(
                    target_bytes=limits.target_bytes, head_bytes=limits.head_bytes
                )
                self._allow(self.acceptor.timeouts.head)
            whole = partial.add(data)
            if whole is not None:
                self._partial = None
                self._begin(*whole)
        except Reject as reject:
            self._refuse(reject)

    def _begin(self, head: bytes, rest: bytes) -> None:
        """A whole head is here. Raises Reject."""
        limits = self.acceptor.limits
        request = wire.parse_request(head, target_bytes=limits.target_bytes, headers=limits.headers)
        index = request.index
        keep = wire.is_persistent(request)
        length = request.length
        if length is not None and length > limits.body_bytes:
            raise Reject(Reason.BODY_TOO_LARGE, f"body over {limits.body_bytes} bytes")
        self._expects = b"expect" in index and wire.expects_continue(request)
        if not keep:
            self.closing = True
        upgrade = b"upgrade" in index and wire.wants_upgrade(request)
        if length is not None and length <= len(rest):  # the body is here already, or there is none
            self._expects = False
            self._mode = HELD
            self._serve(request, keep, upgrade, rest[:length] if length else b"")
            if len(rest) > length:
                self._hold(rest[length:])
            return
        self._serve(request, keep, upgrade, None)
        self._receive_body(length, rest)

    def _receive_body(self, length: int | None, rest: bytes) -> None:
        if length is None:
            self._mode = CHUNKED
            self._decoder = Decoder()
            self._left = self.acceptor.limits.body_bytes
        else:
            self._mode = LENGTH
            self._left = length
        self._allow(self.acceptor.timeouts.body_idle)
        if rest:
            self._expects = False
            self.data_received(rest)

    def _length_data(self, data: bytes) -> None:
        body = self._body
        assert body is not None
        left = self._left - len(data)
        if left > 0:
            self._left = left
            self._timer.due = self.acceptor.clock.now() + self.acceptor.timeouts.body_idle
            body.feed(data)
            return
        rest = b""
        if left < 0:
            data, rest = data[:left], data[left:]
        body.feed(data)
        self._body_complete([], rest)

    def _chunked_data(self, data: bytes) -> None:
        body, decoder = self._body, self._decoder
        assert body is not None
        assert decoder is not None
        self._timer.due = self.acceptor.clock.now() + self.acceptor.timeouts.body_idle
        try:
            piece = decoder.feed(data)
            self._left -= len(piece)
            if self._left < 0:
                limit = self.acceptor.limits.body_bytes
                raise Reject(Reason.BODY_TOO_LARGE, f"body over {limit} bytes")
        except Reject as reject:
            self._break_off(reject)
            return
        if piece:
            body.feed(piece)
        if decoder.done:
            self._decoder = None
            self._body_complete(decoder.trailers, decoder.rest)

    def _body_complete(self, trailers: Headers, rest: bytes) -> None:
        self._mode = HELD
        self._timer.clear()
        self._expects = False
        if self._paused:
            self.resume()
        if self._body is not None:
            self._body.end(trailers)
        if rest:
            self._hold(rest)

    def _hold(self, data: bytes) -> None:
        """Bytes after a whole request: the next ones, kept until it is their turn."""
        if self.exchange is None:
            self._mode = HEAD
            self._head_data(data)
            return
        self._held = held = self._held + data
        # Bounded by HELD_BYTES and one read, so that adding to bytes costs little.
        if len(held) > HELD_BYTES or held.count(b"\r\n\r\n") >= self.acceptor.limits.pipeline:
            self.pause()

    def _break_off(self, reject: Reject) -> None:
        """The body turned out bad while its exchange was under way."""
        responder, body = self._responder, self._body
        assert responder is not None
        assert body is not None
        exchange, task = self.exchange, self._task
        self.closing = True
        if exchange is not None:
            exchange.reason = reject.reason
        if responder.committed:
            body.abort()
            responder.abort()
            return
        self._cut_off()
        body.abort()
        if task is not None:
            task.cancel()
        self._refuse(reject, exchange)

    # -- flow control of the body, and what an attempt asks for --------------------------------

    def pause(self) -> None:
        if not self._paused and not self.ended:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._paused and not self.ended:
            self._paused = False
            self.transport.resume_reading()
            if self._mode in (LENGTH, CHUNKED):
                self._allow(self.acceptor.timeouts.body_idle)

    def body_wanted(self) -> None:
        if self._expects and self._responder is not None and not self._responder.committed:
            self._expects = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # -- one exchange --------------------------------------------------------------------------

    def _serve(self, request: Request, keep: bool, upgrade: bool, whole: bytes | None) -> None:
        """Begin an exchange; ``whole`` is its body where that is here already."""
        acceptor = self.acceptor
        self._timer.due = NEVER
        acceptor.idle.pop(self, None)
        self._body = body = RequestBody(request.length, acceptor.replay, self, whole)
        self._responder = responder = Responder(self, request.method, request.minor, keep, upgrade)
        peer, now = (self.client, self.trusted, self.secure), acceptor.clock.now()
        self.exchange = exchange = Exchange(request, body, responder, *peer, now, upgrade)
        acceptor.name(exchange)
        self._task = acceptor.loop.create_task(self._run(exchange))

    async def _run(self, exchange: Exchange) -> None:
        try:
            await exchange.route.service(exchange)
        except asyncio.CancelledError:
            # The client left or the body broke: a cancelled task would only be noise in the log.
            pass
        finally:
            if self.exchange is exchange:
                self._over()

    def _over(self) -> None:
        """The exchange has ended: close, or go on to what was pipelined behind it."""
        responder, body = self._responder, self._body
        assert responder is not None
        assert body is not None
        tunnelled = self._mode == TUNNEL
        self._cut_off()
        if self.ended:
            return
        if tunnelled:
            self.transport.close()
        elif not responder.finished:
            self.transport.abort()
        elif not body.complete or self.closing or self.acceptor.draining:
            self._linger()
        else:
            self._served = True
            self._mode = HEAD
            self.acceptor.idle[self] = None
            self._allow(self.acceptor.timeouts.idle)
            if self._paused:
                self.resume()
            if self._held:
                data, self._held = self._held, b""
                self._head_data(data)
            if self._half_closed and self.exchange is None:
                self.transport.close()

    def _cut_off(self) -> None:
        """Nothing of the exchange can reach this connection any more."""
        if self._responder is not None:
            self._responder.cut_off()
        if self._body is not None:
            self._body.release()
        self._responder = self._body = self.exchange = self._task = self.sender = None
        self._decoder = None

    def enter_tunnel(self, tunnel: "Tunnel") -> bytes:
        """From here on the client's bytes are the tunnel's. Returns those that came early."""
        self._mode = TUNNEL
        self.tunnel = tunnel
        self.sender = tunnel.upstream
        self._timer.clear()
        early, self._held = self._held, b""
        if self._paused:
            self.resume()
        return early

    # -- refusing and closing ------------------------------------------------------------------

    def _refuse(self, reject: Reject, exchange: Exchange | None = None) -> None:
        """Answer a request that did not become an exchange, and close."""
        self._partial = None
        self.transport.write(self.acceptor.refusal(reject, self, exchange))
        self._linger()

    def _linger(self) -> None:
        """Close the writing side, but read on for a while.

        Closing a socket with unread bytes sends a reset, which can destroy the answer before the
        client has read it (RFC 9112 section 9.6).
        """
        if self.ended:
            return
        self._mode = DISCARD
        self._left = LINGER_BYTES
        self.closing = True
        self._held = b""
        if self._paused:
            self.resume()
        if self.secure or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self._allow(LINGER_S)

    def close_if_idle(self) -> None:
        """Drain: nothing is lost by closing a connection between two exchanges."""
        if self.exchange is None and self._mode == HEAD and self._partial is None:
            self.transport.close()

    # -- the clocks of this side ---------------------------------------------------------------

    def _allow(self, seconds: float) -> None:
        self._timer.set(self.acceptor.clock.now() + seconds)

    def _out_of_time(self) -> None:
        if self._mode == HEAD:
            if self._partial or not self._served:
                self._refuse(Reject(Reason.HEAD_TIMEOUT, "the request head did not come in time"))
            else:
                self.transport.close()
        elif self._mode == DISCARD:
            self.transport.abort()
        elif self._mode in (LENGTH, CHUNKED) and not self._paused:
            self._break_off(Reject(Reason.BODY_TIMEOUT, "the request body stopped coming"))
