"""EDGE 1: a client's connection -> exchanges, one at a time and in order.

What a client pipelines stays unparsed bytes until its turn, and reading stops when enough of it
waits; so memory per connection is bounded and no answer can overtake another. The answer side is
a ``Responder`` that is made for one exchange and cut off at its end: a late byte of one exchange
has no way into the next one's answer.
"""

import asyncio
from typing import TYPE_CHECKING, cast

from filters.api import Exchange, Headers, Reason, Reject, Request
from gateway.body import RequestBody
from gateway.chunked import Decoder
from gateway.clock import NEVER, Timer
from gateway.farewell import Farewell
from gateway.head_reader import HeadReader
from gateway.responder import Responder, reset_on_close

if TYPE_CHECKING:
    from filters.seams import Flow
    from gateway.acceptor import Acceptor
    from gateway.tunnel import Tunnel

# What the next bytes from the client are.
HEAD, LENGTH, CHUNKED, HELD, DISCARD, TUNNEL = range(6)

HELD_BYTES = 64 * 1024
"""Pipelined bytes that may wait, besides the count of ``limits.pipeline``."""


class Downstream(asyncio.Protocol):
    """One accepted connection. Every transition of ``_mode`` is in this file."""

    __slots__ = (
        "_decoder", "_expects", "_farewell", "_half_closed", "_heads", "_held", "_left", "_mode",
        "_paused", "_responder", "_served", "_task", "_timer", "acceptor", "body", "choked",
        "client", "closing", "ended", "exchange", "secure", "sender", "transport", "trusted",
        "tunnel", "until_close",
    )  # fmt: skip

    def __init__(self, acceptor: "Acceptor") -> None:
        self.acceptor = acceptor
        self.transport = cast("asyncio.Transport", None)
        self.client = ""
        self.secure = self.trusted = False
        self.choked = self.closing = self.ended = self.until_close = False
        self.tunnel: Tunnel | None = None
        self._mode = HEAD
        self._farewell: Farewell | None = None
        self._heads = HeadReader()
        self._held = b""  # what was pipelined behind the exchange under way
        self._left = 0
        self._decoder: Decoder | None = None
        self.body: RequestBody | None = None
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
            self.allow(self.acceptor.timeouts.head)
        else:
            self._refuse(Reject(Reason.CONNECTIONS, "too many connections", retry_after=1))

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self._timer.stop()
        self.acceptor.forget(self)
        if self._responder is not None:
            self._responder.cut_off()
        self._leave()
        if self.tunnel is not None:
            self.tunnel.lost()

    def eof_received(self) -> bool:
        """A half-close after a whole request still gets its answer; anything else is the end."""
        if self.tunnel is not None:
            return self.tunnel.half_closed(by_downstream=True)
        if self.exchange is None:
            return False
        if self.body is not None and not self.body.complete:
            self._leave()
            return False
        self._half_closed = True
        self.acceptor.watch_half_closed(self)
        return not self.secure

    def _leave(self) -> None:
        """The client is gone: end what was under way for it, upstream included, at once."""
        if self.body is not None:
            self.body.abort()
        task = self._task
        if task is not None and self.exchange is not None and not task.done():
            self.exchange.reason = self.exchange.reason or Reason.CLIENT_GONE
            # Soon: a task that is cancelled before its first step never runs its clean-up.
            self.acceptor.loop.call_soon(task.cancel)

    def pause_writing(self) -> None:
        self.choked = True
        if self.sender is not None:
            self.sender.pause()

    def resume_writing(self) -> None:
        self.choked = False
        if self.sender is not None:
            self.sender.resume()
        elif self.exchange is None and self._mode == HELD:
            self._next()

    # -- reading -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        mode = self._mode
        if mode == HEAD:
            self._head_data(data)
        elif mode == LENGTH:
            self._length_data(data)
        elif mode == CHUNKED:
            self._chunked_data(data)
        elif self.tunnel is not None:
            self.tunnel.from_downstream(data)
        elif mode == HELD:
            self._hold(data)
        elif self._farewell is not None:
            self._farewell.received(len(data))

    def _head_data(self, data: bytes) -> None:
        heads, acceptor = self._heads, self.acceptor
        drips = heads.partial is not None
        try:
            begun = heads.read(data, acceptor.limits, first=not self._served)
        except Reject as reject:
            self._refuse(reject)
            return
        if begun is None:
            if not drips:
                self.allow(acceptor.timeouts.head)
            return
        request, rest, keep, expects, upgrade = begun
        self.closing = not keep
        length = request.length
        if length is not None and length <= len(rest):  # the body is here already, or there is none
            self._expects = False
            self._mode = HELD
            self._serve(request, keep, upgrade, rest[:length] if length else b"")
            if len(rest) > length:
                self._hold(rest[length:])
            return
        self._expects = expects
        self._serve(request, keep, upgrade, None)
        self._receive_body(length, rest)

    def _receive_body(self, length: int | None, rest: bytes) -> None:
        if length is None:
            self._mode = CHUNKED
            self._decoder = Decoder(most=self.acceptor.limits.body_bytes)
        else:
            self._mode = LENGTH
            self._left = length
        self.allow(self.acceptor.timeouts.body_idle)
        if rest:
            self._expects = False
            self.data_received(rest)

    def _length_data(self, data: bytes) -> None:
        body = self.body
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
        body, decoder = self.body, self._decoder
        assert body is not None
        assert decoder is not None
        self._timer.due = self.acceptor.clock.now() + self.acceptor.timeouts.body_idle
        try:
            piece = decoder.feed(data)
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
        if self.body is not None:
            self.body.end(trailers)
        if rest:
            self._hold(rest)

    def _hold(self, data: bytes) -> None:
        """Bytes after a whole request: the next ones, kept until it is their turn."""
        self._held = held = self._held + data
        # Bounded by HELD_BYTES and one read, so that adding to bytes costs little.
        if len(held) > HELD_BYTES or held.count(b"\r\n\r\n") >= self.acceptor.limits.pipeline:
            self.pause()

    def _break_off(self, reject: Reject) -> None:
        """The body turned out bad while its exchange was under way."""
        exchange, task, responder, body = self.exchange, self._task, self._responder, self.body
        if exchange is None or task is None or responder is None or body is None:
            return
        self.closing = True
        exchange.reason = reject.reason
        body.abort()
        if responder.committed:
            responder.abort()
            return
        self._cut_off()
        self.acceptor.loop.call_soon(task.cancel)
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
                self.allow(self.acceptor.timeouts.body_idle)

    def body_wanted(self) -> None:
        if self._expects and self._responder is not None and not self._responder.committed:
            self._expects = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.allow(self.acceptor.timeouts.body_idle)

    # -- one exchange --------------------------------------------------------------------------

    def _serve(self, request: Request, keep: bool, upgrade: bool, whole: bytes | None) -> None:
        """Begin an exchange; ``whole`` is its body where that is here already."""
        acceptor = self.acceptor
        self._timer.due = NEVER
        acceptor.idle.pop(self, None)
        self.body = body = RequestBody(request.length, acceptor.replay, self, whole)
        self._responder = responder = Responder(self, request.method, request.minor, keep, upgrade)
        now = acceptor.clock.now()
        self.exchange = exchange = Exchange(
            request, body, responder, self.client, self.trusted, self.secure, now, upgrade
        )
        acceptor.name(exchange)
        # Not by the loop's create_task, which makes up a name before it sets this one: 0.5 us.
        self._task = asyncio.Task(self._run(exchange), loop=acceptor.loop, name="exchange")

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
        responder, body = self._responder, self.body
        if responder is None or body is None:
            return
        tunnelled = self._mode == TUNNEL
        self._cut_off()
        if self.ended:
            return
        if tunnelled:
            self.transport.close()
        elif not responder.finished:
            self.abort()
        elif not body.complete or self.closing or self.acceptor.draining:
            self._linger()
        else:
            self._next()

    def _next(self) -> None:
        """Go on to the next request; not while answers are piling up that nobody reads."""
        acceptor = self.acceptor
        self._timer.set(acceptor.clock.now() + acceptor.timeouts.idle)
        if self.choked:
            self._mode = HELD
            self.pause()
            return
        self._served = True
        self._mode = HEAD
        acceptor.idle[self] = None
        if self._paused:
            self.resume()
        if self._held:
            data, self._held = self._held, b""
            self._head_data(data)
        if self._half_closed:
            if self.exchange is None:
                self.transport.close()
            else:
                self.acceptor.watch_half_closed(self)

    def _cut_off(self) -> None:
        """Nothing of the exchange can reach this connection any more."""
        if self._responder is not None:
            self._responder.cut_off()
        if self.body is not None:
            self.body.release()
        self._responder = self.body = self.exchange = self._task = self.sender = None
        self._decoder = None

    def enter_tunnel(self, tunnel: "Tunnel") -> bytes:
        """From here on the client's bytes are the tunnel's. Returns those that came early."""
        self._mode = TUNNEL
        self.tunnel = tunnel
        self.sender = tunnel.upstream
        if self.choked:
            tunnel.upstream.pause()
        self._timer.clear()
        early, self._held = self._held, b""
        if self._paused:
            self.resume()
        return early

    # -- refusing and closing ------------------------------------------------------------------

    def _refuse(self, reject: Reject, exchange: Exchange | None = None) -> None:
        """Answer a request that did not become an exchange, and close."""
        self._heads.partial = None
        self.transport.write(self.acceptor.refusal(reject, self, exchange))
        self._linger()

    def _linger(self) -> None:
        if self.ended:
            return
        self._mode = DISCARD
        self._held = b""
        self.closing = True
        if self._paused:
            self.resume()
        self._farewell = Farewell(self)

    def abort(self) -> None:
        """Close at once; by a reset where a clean close would look like the end of an answer."""
        if self.until_close:
            reset_on_close(self.transport)
        self.transport.abort()

    def is_idle(self) -> bool:
        return self.exchange is None and self._mode == HEAD and self._heads.partial is None

    # -- the clocks of this side ---------------------------------------------------------------

    def allow(self, seconds: float) -> None:
        self._timer.set(self.acceptor.clock.now() + seconds)

    def _out_of_time(self) -> None:
        if self._farewell is not None:
            self._farewell.out_of_time()
        elif self._mode == HEAD:
            if self._heads.partial or not self._served:
                self._refuse(Reject(Reason.HEAD_TIMEOUT, "the request head did not come in time"))
            else:
                self.transport.close()
        elif self._mode == HELD:
            self.abort()  # the client has not read its last answers for as long as it may idle
        elif self._mode in (LENGTH, CHUNKED) and not self._paused:
            self._break_off(Reject(Reason.BODY_TIMEOUT, "the request body stopped coming"))
