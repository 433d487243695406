"""The connections to one endpoint: kept alive, last in first out, bounded, never reused in doubt.

Last in first out, because the most recently used connection is the least likely to have been
closed by the other side, and the rest can age out. Connections that are closed are never counted
on: the first byte of an answer is the only proof that a reused one was alive, so a request that
got none on a reused connection is sent once more on a fresh one if sending it twice is safe.
"""

import asyncio
import contextlib
import ssl
from collections import deque
from typing import Protocol

from filters.api import OK, Attempt, Clock, Handle, Kind, Outcome, Reason
from gateway.call import Call
from gateway.config import Connections
from gateway.head_memo import KnownHead, revised_answer
from gateway.headers import request_head
from gateway.upstream import UpstreamConnection


class Unreachable(Exception):
    """No connection came about. ``reason`` is one of the connect reasons."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Target(Protocol):
    """Where to connect to: looked at for every new connection, because names move."""

    @property
    def authority(self) -> bytes: ...
    @property
    def port(self) -> int: ...
    @property
    def socket_path(self) -> str | None: ...
    @property
    def tls(self) -> ssl.SSLContext | None: ...
    @property
    def server_name(self) -> str | None: ...

    async def addresses(self) -> tuple[str, ...]: ...


class Pool:
    """At most ``limits.max`` connections to ``target``. Taking an idle one is O(1).

    ``head_bytes`` and ``headers`` bound the head of an answer.
    """

    def __init__(
        self,
        target: Target,
        limits: Connections,
        connect_timeout: float,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._target = target
        self._limits = limits
        self._connect_timeout = connect_timeout
        self.clock = clock
        self._loop = loop
        self._idle: list[UpstreamConnection] = []
        self._waiting: deque[asyncio.Future[UpstreamConnection | None]] = deque()
        self._expiry: Handle | None = None
        self._retired = False
        self.answers = KnownHead(revised_answer)
        self.head_bytes = 64 * 1024
        self.headers = 100
        self.open = 0
        self.connects = 0
        self.replays = 0

    @property
    def idle(self) -> int:
        return len(self._idle)

    async def send(self, attempt: Attempt) -> Outcome:
        """One attempt at this endpoint; returns at a usable head or with what went wrong."""
        exchange = attempt.exchange
        route = exchange.route
        replayed = False
        if exchange.body.aborted:  # its client is gone, or sent nonsense, before this began
            raise asyncio.CancelledError
        while True:
            now = attempt.started
            connection = None if replayed else self._take(now)
            if connection is None:
                try:
                    connection = await self._connect()
                except Unreachable as error:
                    return Outcome(
                        Kind.FAILED,
                        0,
                        error.reason,
                        sent=replayed,
                        complete=replayed and exchange.body.complete,
                        detail=error.detail,
                    )
                now = self.clock.now()
            reused, connection.reused = connection.reused, True
            call = Call(connection, exchange, self.clock, self._loop.create_future(), now)
            call.send(request_head(exchange, route, self._target.authority, now))
            try:
                failure = await call.failure
            except asyncio.CancelledError:
                call.discard()
                raise
            if failure is None:
                return Outcome(OK, call.status, None, answer=call)
            reason, detail = failure
            stale = reused and reason is Reason.UPSTREAM_RESET and not call.answered
            if stale and exchange.body.replayable and route.replayable(exchange):
                self.replays += 1
                replayed = True
                continue
            return Outcome(
                Kind.FAILED, call.status, reason, complete=call.request_sent, detail=detail
            )

    # -- keeping -------------------------------------------------------------------------------

    def _take(self, now: float) -> UpstreamConnection | None:
        idle = self._idle
        oldest = now - self._limits.idle
        while idle:
            connection = idle.pop()
            if connection.idle_since >= oldest and not connection.transport.is_closing():
                return connection
            connection.close()
        return None

    def put(self, connection: UpstreamConnection, now: float) -> None:
        """Take a connection back whose answer ended cleanly."""
        if self._retired:
            connection.close()
            return
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        connection.idle_since = now
        self._idle.append(connection)
        if self._expiry is None:
            self._expiry = self.clock.call_at(
                connection.idle_since + self._limits.idle, self._expire
            )

    def gone(self, connection: UpstreamConnection) -> None:
        """A connection closed, whoever closed it."""
        if connection.counted:
            connection.counted = False
            self._give_place_back()
            if connection in self._idle:
                self._idle.remove(connection)

    def _expire(self) -> None:
        """Close what has been idle for too long; the oldest stand first."""
        self._expiry = None
        idle = self._idle
        oldest = self.clock.now() - self._limits.idle
        while idle and idle[0].idle_since <= oldest:
            idle.pop(0).close()
        if idle:
            self._expiry = self.clock.call_at(idle[0].idle_since + self._limits.idle, self._expire)

    def retire(self) -> None:
        """The endpoint is gone from the configuration: what runs finishes, what is idle closes."""
        self._retired = True
        if self._expiry is not None:
            self._expiry.cancel()
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    # -- connecting ----------------------------------------------------------------------------

    async def _connect(self) -> UpstreamConnection:
        """A connection of our own, or one that somebody gave back while we waited for a place."""
        try:
            async with asyncio.timeout(self._connect_timeout):
                while self.open >= self._limits.max:
                    connection = await self._wait()
                    if connection is None:
                        return await self._dial()  # the place came with it
                    if not connection.closed and not connection.transport.is_closing():
                        return connection
                self.open += 1
                return await self._dial()
        except TimeoutError:
            full = self.open >= self._limits.max
            reason = Reason.POOL_EXHAUSTED if full else Reason.CONNECT_TIMEOUT
            raise Unreachable(reason, f"no connection in {self._connect_timeout:g} s") from None

    async def _wait(self) -> UpstreamConnection | None:
        """Wait in line, for a connection or (None) for a place. One that comes too late goes to
        the next in line."""
        waiter: asyncio.Future[UpstreamConnection | None] = self._loop.create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.done() or waiter.cancelled():
                with contextlib.suppress(ValueError):
                    self._waiting.remove(waiter)
            elif (connection := waiter.result()) is None:
                self._give_place_back()
            elif not connection.closed:
                self.put(connection, self.clock.now())
            raise

    def _give_place_back(self) -> None:
        self.open -= 1
        while self._waiting and self.open < self._limits.max:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self.open += 1  # reserved for the waiter, so that no newcomer can take it
                waiter.set_result(None)
                return

    async def _dial(self) -> UpstreamConnection:
        """Connect to the first address that answers. The place was counted by the caller."""
        target = self._target
        made: UpstreamConnection | None = None
        error: Exception | None = None
        self.connects += 1
        try:
            try:
                addresses = await target.addresses()
            except OSError as unknown:
                raise Unreachable(Reason.CONNECT_FAILED, f"name lookup: {unknown}") from None
            for address in addresses:
                try:
                    # A share of the time for each, or one black hole would take it all.
                    async with asyncio.timeout(self._connect_timeout / len(addresses)):
                        made = await self._dial_one(address)
                except (OSError, ssl.SSLError, asyncio.IncompleteReadError) as failed:
                    error = failed
                    continue
                made.counted = True
                return made
        finally:
            if made is None:
                self._give_place_back()
        if isinstance(error, TimeoutError):
            raise error
        raise Unreachable(Reason.CONNECT_FAILED, str(error or "the name has no address"))

    async def _dial_one(self, address: str) -> UpstreamConnection:
        target = self._target
        tls = target.tls
        server_name = target.server_name if tls is not None else None
        if target.socket_path is not None:
            _, connection = await self._loop.create_unix_connection(
                lambda: UpstreamConnection(self),
                target.socket_path,
                ssl=tls,
                server_hostname=server_name,
            )
        else:
            _, connection = await self._loop.create_connection(
                lambda: UpstreamConnection(self),
                address,
                target.port,
                ssl=tls,
                server_hostname=server_name,
            )
        if connection.closed:
            raise ConnectionResetError("closed as soon as it was made")
        return connection
