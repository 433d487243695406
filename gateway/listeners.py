"""Bound addresses: opening them, their TLS, and how many connections the process can hold."""

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from gateway.config import Listener
from gateway.tls import ServerTls

log = logging.getLogger("tailrace")

BACKLOG = 4096
HANDSHAKE_S = 10.0
"""Longest TLS handshake: until its end a connection is in nobody's count."""
OTHER_FILES = 128
"""File descriptors left for what is not a connection: logs, certificates, libraries, DNS."""


async def bind(
    listener: Listener,
    accepted: Callable[[], asyncio.Protocol],
    loop: asyncio.AbstractEventLoop,
) -> "Bound":
    """Open one listener. Raises OSError or ssl.SSLError."""
    tls = ServerTls(listener.tls) if listener.tls is not None else None
    context = tls.listening if tls is not None else None
    handshake = HANDSHAKE_S if tls is not None else None
    if listener.address.startswith("unix:"):
        path = listener.address.removeprefix("unix:")
        _refuse_live_socket(path)
        server = await loop.create_unix_server(
            accepted, path, ssl=context, backlog=BACKLOG, ssl_handshake_timeout=handshake
        )
    else:
        host, _, port = listener.address.rpartition(":")
        server = await loop.create_server(
            accepted,
            host.strip("[]") or None,
            int(port),
            ssl=context,
            backlog=BACKLOG,
            ssl_handshake_timeout=handshake,
        )
    return Bound(listener, server, tls)


class Bound:
    """A listener with its socket and TLS."""

    def __init__(self, listener: Listener, server: asyncio.Server, tls: ServerTls | None) -> None:
        self.listener = listener
        self.server = server
        self.tls = tls

    def secure(self, listener: Listener, tls: ServerTls) -> None:
        """Take over new certificate files under the same address."""
        assert self.tls is not None
        tls.take_over(self.tls)
        self.listener, self.tls = listener, tls

    def close(self) -> None:
        self.server.close()
        if self.listener.address.startswith("unix:"):
            with contextlib.suppress(OSError):
                Path(self.listener.address.removeprefix("unix:")).unlink()


def connection_limit(wanted: int) -> int:
    """Raise RLIMIT_NOFILE to its hard limit; the connections that then fit, each with an upstream.

    A client's connection and its upstream's are two descriptors, so half of what there is.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > soft:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    fits = max(16, (soft - OTHER_FILES) // 2)
    if fits < wanted:
        log.info("limits.connections %d is above what %d open files allow: %d", wanted, soft, fits)
    return min(wanted, fits)


def _refuse_live_socket(path: str) -> None:
    """Raise OSError if somebody answers on this socket file.

    The event loop replaces any socket file, to get rid of those that killed processes left; that
    of a running one would be taken over without a word.
    """
    if not stat.S_ISSOCK(_mode(path)):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            probe.connect(path)
            raise OSError(errno.EADDRINUSE, f"socket in use: {path}")


def _mode(path: str) -> int:
    try:
        return Path(path).stat().st_mode
    except OSError:
        return 0
