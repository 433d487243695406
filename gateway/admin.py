"""The admin listener's life: bound behind the open listeners, closed last.

aiohttp takes a third of a second to import, so that happens on a thread while the proxy already
serves. A port that is taken is an error if the operator chose it, and only a warning if it is the
default that nobody asked for: a second gateway on one machine should just run.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import logging
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from gateway import config
from gateway.admin_rules import Listening

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.server import Server

log = logging.getLogger("tailrace")

Bound: TypeAlias = "tuple[str, int] | str"


class Admin:
    """``addresses`` and ``probe_addresses`` are the bound ones: (host, port) or a path."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._settings = server.config.admin or config.Admin(listen=None)
        self._runners: list[web.AppRunner] = []
        self._paths: list[str] = []
        self._listening = Listening(unix=False, local=False)
        self.addresses: list[Bound] = []
        self.probe_addresses: list[Bound] = []

    async def start(self) -> None:
        """Bind. Raises OSError if an address that the operator chose cannot be bound."""
        pages_of = (await asyncio.to_thread(importlib.import_module, "gateway.admin_http")).Pages
        pages = pages_of(self._server)
        settings = self._settings
        try:
            if settings.listen is not None:
                runner = pages.everything(lambda: self._listening)
                self.addresses = await self._bind(runner, settings.listen)
                self._listening = listening(settings.listen, self.addresses)
            if settings.probes is not None:
                self.probe_addresses = await self._bind(pages.probes(), settings.probes)
        except OSError as error:
            await self.stop()
            if settings != config.Admin():
                raise
            log.warning("no admin listener: %s", error)
            return
        self._warn()

    async def stop(self) -> None:
        """Close. Answers under way get a second."""
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()
        while self._paths:
            _unlink(self._paths.pop())

    async def _bind(self, runner: web.AppRunner, address: str) -> list[Bound]:
        from aiohttp import web

        await runner.setup()
        self._runners.append(runner)
        site: web.BaseSite
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            site = web.SockSite(runner, _unix_socket(path))
            self._paths.append(path)
        else:
            host, _, port = address.rpartition(":")
            site = web.TCPSite(runner, host.strip("[]") or None, int(port))
        await site.start()
        return [each if isinstance(each, str) else each[:2] for each in runner.addresses]

    def _warn(self) -> None:
        at = self._listening
        if self.addresses and not (at.local or at.unix) and self._settings.token is None:
            log.warning("admin.listen is not on loopback and has no token: only probes answer")


def listening(address: str, bound: list[Bound]) -> Listening:
    """What the rules need to know of a listener that is bound."""
    if address.startswith("unix:"):
        return Listening(unix=True, local=True)
    local = all(
        not isinstance(each, str) and ipaddress.ip_address(each[0].partition("%")[0]).is_loopback
        for each in bound
    )
    wanted = address.rpartition(":")[0].lower()
    return Listening(
        unix=False, local=local, names=frozenset((wanted, socket.gethostname().lower())) - {""}
    )


def _unix_socket(path: str) -> socket.socket:
    """A socket that only our own user may connect to: its permissions stand for the token."""
    with suppress(OSError):
        if stat.S_ISSOCK(Path(path).stat().st_mode):  # of a gateway that was killed
            _unlink(path)
    made = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        made.bind(path)
    except BaseException:
        made.close()
        raise
    finally:
        os.umask(before)
    return made


def _unlink(path: str) -> None:
    with suppress(OSError):
        Path(path).unlink()
