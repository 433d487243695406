"""Names to addresses, refreshed in the background, never blocking and never going back to none.

The system's resolver is asked (hosts files, search domains and Kubernetes' DNS behave as
everywhere else on the machine), in a thread. It tells nothing of a record's time to live, so
names are asked again at a fixed interval with jitter. A failed or empty answer changes nothing:
the last good addresses stay, because endpoints outlive many a DNS outage, and health checks and
ejection know better than DNS whether one is alive.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from random import Random

log = logging.getLogger(__name__)

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""The seam: host and port to addresses in the order of preference; raises ``OSError``."""
OnChange = Callable[[str, tuple[str, ...]], object]
"""Called with a host and its new addresses."""


async def system_lookup(host: str, port: int) -> Sequence[str]:
    """getaddrinfo in the loop's executor: both families, in the system's order."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class Resolver:
    """One name, once, within a time limit.

    A thread in getaddrinfo cannot be stopped. Whoever asks again while one still hangs joins it
    instead of tying up another, so there is never more than one thread per name.
    """

    def __init__(self, limit: float, lookup: Lookup = system_lookup) -> None:
        """``limit`` is in seconds."""
        self._limit = limit
        self._lookup = lookup
        self._running: dict[tuple[str, int], asyncio.Task[Sequence[str]]] = {}

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        """Distinct addresses, at least one; an address stands for itself and costs no lookup.

        Raises ``OSError``: ``socket.gaierror`` for an unknown name, ``TimeoutError`` past the
        limit, ``OSError`` for a name without addresses or one that cannot be a name.
        """
        if is_address(host):
            return (host,)
        key = (host, port)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.ensure_future(self._ask(host, port))
            task.add_done_callback(lambda done: self._finished(key, done))
        try:
            async with asyncio.timeout(self._limit):
                addresses = tuple(dict.fromkeys(await asyncio.shield(task)))
        except TimeoutError:
            raise TimeoutError(f"no answer for {host} within {self._limit:g} s") from None
        if not addresses:
            raise OSError(f"{host} has no addresses")
        return addresses

    async def _ask(self, host: str, port: int) -> Sequence[str]:
        try:
            return await self._lookup(host, port)
        except UnicodeError as error:
            raise OSError(f"{host} is not a host name: {error}") from error

    def _finished(self, key: tuple[str, int], task: asyncio.Task[Sequence[str]]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # Marks it as seen: whoever asked may have stopped waiting.


class Names:
    """The names of one cluster and their last good addresses, kept fresh while started.

    ``on_change`` is called when a name's *set* of addresses changes, its first answer included;
    another order alone is no change (DNS rotates answers). ``errors`` holds, per host, why its
    latest lookup failed, until one succeeds.
    """

    def __init__(
        self,
        resolver: Resolver,
        interval: float,
        on_change: OnChange,
        rng: Random,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """``interval`` in seconds is jittered by a tenth either way."""
        self._resolver = resolver
        self._interval = interval
        self._on_change = on_change
        self._rng = rng
        self._sleep = sleep
        self._ports: dict[str, int] = {}
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._task: asyncio.Task[None] | None = None
        self.errors: dict[str, str] = {}

    def add(self, host: str, port: int) -> None:
        """Keep this name fresh from the next round on. An address is known at once."""
        self._ports[host] = port
        if is_address(host):
            self._addresses[host] = (host,)

    def seed(self, host: str, addresses: tuple[str, ...]) -> None:
        """Take over what another object knew, so that a reload does not ask DNS first."""
        if addresses:
            self._addresses[host] = addresses

    def addresses(self, host: str) -> tuple[str, ...]:
        """The last good answer, () before the first. O(1)."""
        return self._addresses.get(host, ())

    async def get(self, host: str) -> tuple[str, ...]:
        """The last good answer, or for the first one a lookup. Raises ``OSError`` as that does."""
        if is_address(host):
            return (host,)
        return self._addresses.get(host) or await self._refresh(host)

    def start(self) -> None:
        """Refresh now and then at the interval. Returns at once: no start waits for DNS."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def refresh(self) -> None:
        """Ask for all names at the same time. Failures are kept in ``errors``; never raises."""
        hosts = [host for host in self._ports if not is_address(host)]
        results = await asyncio.gather(*map(self._refresh, hosts), return_exceptions=True)
        for host, result in zip(hosts, results, strict=True):
            if isinstance(result, Exception) and not isinstance(result, OSError):
                log.error("the change of %s could not be applied", host, exc_info=result)

    async def _run(self) -> None:
        while True:
            await self.refresh()
            await self._sleep(self._interval * self._rng.uniform(0.9, 1.1))

    async def _refresh(self, host: str) -> tuple[str, ...]:
        try:
            addresses = await self._resolver.resolve(host, self._ports[host])
        except OSError as error:
            self.errors[host] = str(error)
            raise
        self.errors.pop(host, None)
        old = self._addresses.get(host, ())
        self._addresses[host] = addresses
        if set(old) != set(addresses):
            self._on_change(host, addresses)
        return addresses


def expand(url: str, addresses: Sequence[str]) -> tuple[str, ...]:
    """One URL per address, sorted, with the port and path of ``url``: the endpoints of a ``dns``.

    Sorted so that the same set always gives the same endpoints, whatever order DNS chose.
    """
    parts = urlsplit(url)
    port = "" if parts.port is None else f":{parts.port}"
    hosts = sorted(f"[{each}]" if ":" in each else each for each in addresses)
    return tuple(parts._replace(netloc=host + port).geturl() for host in hosts)


def is_address(host: str) -> bool:
    """Whether ``host`` is an IPv4 or IPv6 address (without brackets, a zone allowed)."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
