"""What all listeners share: one bound on connections, who is idle, and the configuration in force.

At the bound the connection that has been idle longest is closed to make room; only when every
one is busy is a new one refused. So idle keep-alive connections never lock anybody out.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from random import Random

from filters.api import Exchange, Reject
from gateway import half_close
from gateway.body import ReplayStore
from gateway.clock import LoopClock
from gateway.downstream import Downstream
from gateway.fields import lines_of
from gateway.listeners import connection_limit
from gateway.replies import render
from gateway.telemetry import Telemetry
from gateway.wire import status_line
from gateway.wiring import Wiring

_ID_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.:/+=")
_ID_LONGEST = 128


class Acceptor:
    """Hands every request to the ``wiring`` in force when its head was whole."""

    def __init__(
        self,
        wiring: Wiring,
        telemetry: Telemetry,
        clock: LoopClock,
        rng: Random,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.clock = clock
        self.loop = loop
        self.telemetry = telemetry
        self.draining = False
        self.connections: set[Downstream] = set()
        self.emptied = asyncio.Event()
        self.emptied.set()
        self.evicted = 0
        self.accepted = 0
        self.idle: dict[Downstream, None] = {}
        # Ids are this prefix and a count: unique among gateways, and cheap.
        self._id_prefix = b"%016x-" % rng.getrandbits(64)
        self._id_count = 0
        limits = wiring.config.limits
        self.replay = ReplayStore(limits.replay_bytes, limits.replay_total)
        self.use(wiring)

    def use(self, wiring: Wiring) -> None:
        """Put a configuration in force for every request head that is read from now on."""
        self.wiring = wiring
        settings = wiring.config
        self.limits = settings.limits
        self._most = connection_limit(settings.limits.connections)
        self.timeouts = settings.timeouts
        self.replay.body_bytes = settings.limits.replay_bytes
        self.replay.total_bytes = settings.limits.replay_total
        self._trusts = _trust(settings.trust)

    # -- connections ---------------------------------------------------------------------------

    def admit(self, connection: Downstream) -> bool:
        """Take a new connection in. False when there is no room even without the idle ones."""
        self.accepted += 1
        transport = connection.transport
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            connection.client = str(peer[0])
            connection.trusted = self._trusts(connection.client)
        else:
            # No address also means a TCP client that is gone already, and that is nobody.
            sock = transport.get_extra_info("socket")
            connection.trusted = sock is not None and sock.family == socket.AF_UNIX
        connection.secure = transport.get_extra_info("sslcontext") is not None
        self.connections.add(connection)
        self.emptied.clear()
        if len(self.connections) <= self._most:
            self.idle[connection] = None
            return True
        oldest = self._oldest_idle()
        if oldest is None:
            return False
        self.evicted += 1
        self.forget(oldest)
        oldest.transport.abort()
        self.idle[connection] = None
        return True

    @property
    def fullness(self) -> float:
        """Open connections, of those that there may be; above 1 after a reload to fewer."""
        return len(self.connections) / self._most

    def _oldest_idle(self) -> Downstream | None:
        """To make room: rather not one whose last answer is still being sent."""
        first = list(islice(self.idle, 8))
        done = (each for each in first if not each.transport.get_write_buffer_size())
        return next(done, first[0] if first else None)

    def forget(self, connection: Downstream) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self.emptied.set()
        self.idle.pop(connection, None)

    def watch_half_closed(self, connection: Downstream) -> None:
        half_close.watch(connection, self.clock)

    # -- exchanges -----------------------------------------------------------------------------

    def name(self, exchange: Exchange) -> None:
        """Give an exchange its route and its id, the client's own if it is harmless in a log."""
        exchange.route = self.wiring.route(exchange.request)
        given = exchange.request.index.get(b"x-request-id")
        if given and len(given) <= _ID_LONGEST and _ID_BYTES.issuperset(given):
            exchange.request_id = given
        else:
            self._id_count = count = self._id_count + 1
            exchange.request_id = self._id_prefix + b"%x" % count

    def next_id(self) -> bytes:
        self._id_count += 1
        return self._id_prefix + b"%x" % self._id_count

    def refusal(
        self, reject: Reject, connection: Downstream, exchange: Exchange | None = None
    ) -> bytes:
        """The whole answer to what did not become an exchange, or to one whose body broke."""
        request_id = self.next_id() if exchange is None else exchange.request_id
        path = b"" if exchange is None else exchange.request.path
        status, headers, body = render(reject, request_id, path)
        if exchange is None:  # an exchange is counted and logged at its end
            self.telemetry.refused(reject, status, connection.client, request_id)
        headers.append((b"content-length", b"%d" % len(body)))
        headers.append((b"connection", b"close"))
        lines = lines_of(headers) + (b"" if exchange is None else exchange.lines)
        return status_line(status) + lines + b"\r\n" + body

    def exchanges(self) -> Iterator[Exchange]:
        """Those under way."""
        for connection in self.connections:
            if connection.exchange is not None:
                yield connection.exchange

    def close_idle(self) -> None:
        """End of a drain's grace: what is idle now was so all through it, or is brand-new."""
        for connection in list(self.connections):
            if connection.is_idle():
                connection.transport.close()


def _trust(networks: tuple[str, ...]) -> Callable[[str], bool]:
    parsed = [ipaddress.ip_network(each, strict=False) for each in networks]

    @lru_cache(maxsize=1024)
    def trusts(client: str) -> bool:
        try:
            address = ipaddress.ip_address(client.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in parsed)

    return trusts
