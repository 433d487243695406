"""The life of one gateway process: start, reload, drain, stop.

Start and readiness never wait for an upstream: a sidecar that waits for its model server
deadlocks the pod. The listeners open first; everything else (administration, names, health
checks) begins behind them.
"""

import asyncio
import contextlib
import gc
import logging
import os
import ssl
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from gateway.acceptor import Acceptor
from gateway.clock import LoopClock
from gateway.config import Config, Listener
from gateway.downstream import Downstream
from gateway.listeners import Bound, bind
from gateway.membership import Membership
from gateway.telemetry import Telemetry
from gateway.tls import CertificateFiles, Poll, ServerTls
from gateway.vitals import Vitals
from gateway.wiring import Seams, Wiring

if TYPE_CHECKING:
    from gateway.admin import Admin
    from gateway.dashboard_feed import Feed

log = logging.getLogger("tailrace")

CERTIFICATES_S = 2.0


class Server:
    """One gateway. ``addresses`` are the bound ones, ``(host, port)`` or the path of a socket."""

    def __init__(self, config: Config, path: Path | None = None) -> None:
        self.config = config
        self.path = path
        self._stamp = _stamp(path) if path is not None else None
        self.addresses: list[tuple[str, int] | str] = []
        self.ready = False
        self.reloads = 0
        self.reload_failures = 0
        self.reload_error: str | None = None
        self.reloaded_at = time.time()
        self.drained = asyncio.Event()
        self.memberships: dict[str, Membership] = {}
        self.admin: Admin | None = None
        self.feed: Feed | None = None
        self._bound: dict[str, Bound] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._reloading = asyncio.Lock()
        self._draining: asyncio.Task[bool] | None = None

    # -- start and stop ------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the listeners. Raises OSError if one cannot be bound; then nothing stays open."""
        loop = asyncio.get_running_loop()
        self.loop = loop
        self.clock = LoopClock(loop, time.monotonic)
        seed = int.from_bytes(os.urandom(8))
        self.rng = Random(seed)
        log.debug("seed %d", seed)
        self.telemetry = Telemetry(self.config.telemetry, self.clock, self.rng)
        self.vitals = Vitals(self.clock)
        self.seams = Seams(self.clock, self.rng, loop, self.telemetry, self.vitals)
        self.memberships = self._members(self.config)
        self.wiring = self._wire(self.config, None)
        self.acceptor = Acceptor(self.wiring, self.telemetry, self.clock, self.rng, loop)
        try:
            for listener in self.config.listen:
                await self._bind(listener)
        except BaseException:
            self._close_listeners()
            await self.wiring.close()
            raise
        self._list_addresses()
        self.ready = True
        for membership in self.memberships.values():
            membership.start()
        self.background(self._watch_certificates())
        self.background(self.vitals.watch_loop())
        self.background(self.vitals.watch_use())
        self.telemetry.start(loop)

    async def start_admin(self) -> None:
        """Open the admin listener; its libraries are loaded only now, behind the open listeners."""
        if self.config.admin is None:
            return
        from gateway.admin import Admin
        from gateway.dashboard_feed import Feed

        self.feed = Feed(self)
        self.background(self.feed.run())
        self.telemetry.recorder.filters = lambda: self.wiring.filters
        self.admin = Admin(self)
        await self.admin.start()

    async def stop(self) -> None:
        """Stop now: close the listeners, abort what is left, end every background task."""
        self.ready = False
        self._close_listeners()
        for connection in list(self.acceptor.connections):
            connection.transport.abort()
        # Aborted connections cancel their exchanges, which release what they hold upstream.
        await self.acceptor.emptied.wait()
        await self.wiring.close()
        for membership in self.memberships.values():
            await membership.stop()
            membership.retire(None)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.admin is not None:
            await self.admin.stop()
        await self.telemetry.stop()
        self.clock.close()
        self.drained.set()

    def drain(self) -> "asyncio.Task[bool]":
        """Begin to drain, once; the task's result is whether everything ended by itself."""
        if self._draining is None:
            self._draining = self.loop.create_task(self._drain())
        return self._draining

    async def _drain(self) -> bool:
        """Not ready, but serving on until load balancers notice; then finish what is under way.

        Answers say ``Connection: close`` from the start. So whoever is active has moved by the end
        of the grace, and closing what is idle then cannot cross a request on its way.
        """
        self.ready = False
        self.acceptor.draining = True
        log.info("draining: not ready, serving for %g s more", self.config.drain.grace)
        await asyncio.sleep(self.config.drain.grace)
        self._close_listeners()
        self.acceptor.close_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain.timeout):
                await self.acceptor.emptied.wait()
        left = len(list(self.acceptor.exchanges()))
        if left:
            log.warning("drain timed out with %d exchanges under way", left)
        self.drained.set()
        return left == 0

    @property
    def listening(self) -> bool:
        return bool(self._bound)

    # -- reload --------------------------------------------------------------------------------

    async def reload(self, config: Config | None = None) -> bool:
        """Put a new configuration in force, or keep the old one whole. True if it is in force.

        Without ``config`` the file is read again. The swap itself is one assignment between two
        requests; exchanges under way end on the configuration that they began with.
        """
        try:
            async with self._reloading:  # a signal, the file and an admin may all ask at once
                await self._swap(config if config is not None else await self._read())
        except Exception as error:  # noqa: BLE001  whatever it is, the old configuration stays
            self.reload_failures += 1
            self.reload_error = str(error)
            log.error("reload failed, the old configuration stays: %s", error)
            return False
        self.reloads += 1
        self.reload_error = None
        self.reloaded_at = time.time()
        log.info("configuration reloaded")
        return True

    async def _read(self) -> Config:
        if self.path is None:
            raise ValueError("started without a configuration file")
        from gateway.config_source import load

        return await asyncio.to_thread(load, self.path)

    async def _swap(self, config: Config) -> None:
        if self._draining is not None:
            raise ValueError("draining: what comes next is another process")
        old = self.memberships
        # Everything that can fail comes first, and what it touched is put right if it does.
        memberships: dict[str, Membership] = {}
        wiring: Wiring | None = None
        for membership in old.values():
            await membership.names.stop()  # no change of addresses in the middle of this
        try:
            memberships = self._members(config, old)
            wiring = self._wire(config, self.wiring, memberships)
            secured = self._secured(config)
            added = [each for each in config.listen if each.address not in self._bound]
            for listener in added:
                await self._bind(listener)
        except BaseException:
            if wiring is not None:
                wiring.abandon()
            for name, membership in memberships.items():
                membership.retire(old.get(name))
            for membership in old.values():
                membership.claim()
                membership.names.start()
            self._close_listeners_but(self.config)
            raise
        if _admin_addresses(config) != _admin_addresses(self.config):
            log.warning("the admin addresses change with the next start only")
        self.config, self.wiring, self.memberships = config, wiring, memberships
        wiring.activate()
        self.acceptor.use(wiring)
        self.telemetry.use(config.telemetry)
        for address, (listener, tls) in secured.items():
            self._bound[address].secure(listener, tls)
        self._close_listeners_but(config)
        self._list_addresses()
        for name, membership in old.items():
            await membership.stop()
            membership.retire(memberships.get(name))
        for membership in memberships.values():
            membership.start()

    def _members(
        self, config: Config, old: dict[str, Membership] | None = None
    ) -> dict[str, Membership]:
        old = old or {}
        return {
            name: Membership(
                name, each, config.limits, self.clock, self.rng, self.loop, old.get(name)
            )
            for name, each in config.clusters.items()
        }

    def _wire(
        self, config: Config, previous: Wiring | None, members: dict[str, Membership] | None = None
    ) -> Wiring:
        members = self.memberships if members is None else members
        clusters = {name: each.cluster for name, each in members.items()}
        return Wiring(config, clusters, self.seams, previous)

    # -- listeners -----------------------------------------------------------------------------

    async def _bind(self, listener: Listener) -> None:
        bound = await bind(listener, lambda: Downstream(self.acceptor), self.loop)
        self._bound[listener.address] = bound

    def _secured(self, config: Config) -> dict[str, tuple[Listener, ServerTls]]:
        """New certificate files for listeners that stay. Raises for what a reload cannot do."""
        changed = {}
        for listener in config.listen:
            bound = self._bound.get(listener.address)
            if bound is None or listener.tls == bound.listener.tls:
                continue
            if listener.tls is None or bound.tls is None:
                raise ValueError(f"{listener.address}: turning TLS on or off needs a restart")
            changed[listener.address] = (listener, ServerTls(listener.tls))
        return changed

    def _list_addresses(self) -> None:
        self.addresses = []
        for bound in self._bound.values():
            for sock in bound.server.sockets:
                name = sock.getsockname()
                self.addresses.append(name if isinstance(name, str) else name[:2])

    def _close_listeners_but(self, config: Config) -> None:
        for address in set(self._bound) - {each.address for each in config.listen}:
            self._bound.pop(address).close()

    def _close_listeners(self) -> None:
        for bound in self._bound.values():
            bound.close()
        self._bound.clear()

    # -- background ----------------------------------------------------------------------------

    def background(self, work: Coroutine[object, object, object]) -> None:
        """Run to the end or to the stop, whichever comes first."""
        task: asyncio.Task[object] = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def watch_file(self) -> None:
        """Reload by itself when the configuration file changes."""
        if self.path is not None:
            self.background(self._watch_file(self.path))

    async def _watch_file(self, path: Path) -> None:
        """Look once a second: works on every mount, and through the symlinks that Kubernetes
        swaps under a ConfigMap, which change inode and time of what the path leads to."""
        while True:
            await asyncio.sleep(1)
            now = _stamp(path)
            if now != self._stamp and now is not None:
                self._stamp = now
                await self.reload()

    async def _watch_certificates(self) -> None:
        while True:
            await asyncio.sleep(CERTIFICATES_S)
            found: list[CertificateFiles | None] = [each.tls for each in self._bound.values()]
            found += [each.tls for each in self.memberships.values()]
            for files in found:
                if files is None:
                    continue
                result = await asyncio.to_thread(files.poll)
                if result is Poll.CHANGED:
                    log.info("certificates reloaded")
                elif result is Poll.ERROR:
                    log.error("certificates not reloaded, the old ones stay: %s", files.error)


def shown(address: tuple[str, int] | str) -> str:
    """An address as it is written in a configuration."""
    if isinstance(address, str):
        return f"unix:{address}"
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{host}:{address[1]}"


def _admin_addresses(config: Config) -> tuple[str | None, str | None]:
    return (config.admin.listen, config.admin.probes) if config.admin else (None, None)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


async def serve(config: Config, path: Path | None) -> int:
    """Run until a signal says otherwise. Returns the exit code: 0, or 3 for a forced drain."""
    import signal

    server = Server(config, path)
    await server.start()
    try:
        await server.start_admin()
    except OSError:
        await server.stop()
        raise
    for address in server.addresses:
        print(f"listening on {shown(address)}", flush=True)
    server.watch_file()
    now = asyncio.Event()

    def terminate() -> None:
        if server.drain().done() or terminated:
            now.set()
        terminated.append(True)

    terminated: list[bool] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        server.loop.add_signal_handler(number, terminate)
    server.loop.add_signal_handler(signal.SIGHUP, lambda: server.background(server.reload()))
    drained = server.loop.create_task(server.drained.wait())
    forced = server.loop.create_task(now.wait())
    await asyncio.wait((drained, forced), return_when=asyncio.FIRST_COMPLETED)
    clean = drained.done() and server.drain().done() and server.drain().result()
    await server.stop()
    return 0 if clean else 3


def run(config: Config, path: Path | None = None) -> int:
    """The ``run`` command. Exit codes: 0, 1 could not start, 3 drain was forced."""
    import uvloop

    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    if path is not None:
        # Models beside the configuration are found. Last: a file there is not to take the place of
        # a module that the gateway has yet to import.
        sys.path.append(str(path.absolute().parent))
    # The collector has nothing to find in an exchange that ended well, as none leaves a cycle
    # behind; so it may look seldom, and never at what was there from the start.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    try:
        return uvloop.run(serve(config, path))
    except (OSError, ssl.SSLError) as error:
        log.error("could not start: %s", error)
        return 1
