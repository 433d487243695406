"""A gateway inside the test's own event loop: real sockets, port 0, started in milliseconds.

    async with Origin() as origin, gateway(origin) as g, g.client() as c:
        await c.send(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
        assert (await c.response()).status == 200

Sections of the configuration are given as keyword arguments; what is left out has its default,
except that there is no admin listener, no access log, and no retry: an origin that misbehaves on
purpose should be asked once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from filters.deadline import Config as Deadline
from filters.retry import Config as Retry
from gateway.config import Cluster, Config, Endpoint, Filters, Listener, Route, Telemetry
from gateway.server import Server
from tests.wire.client import Client, Response
from tests.wire.origin import BOUND, Origin

GOOD = b"GET /good HTTP/1.1\r\nHost: good.test\r\n\r\n"

__all__ = ["GOOD", "Gateway", "Retry", "configure", "eventually", "gateway"]


def configure(
    *upstreams: Origin | str,
    retry: Retry | None = None,
    deadline: Deadline | None = None,
    cluster: dict[str, Any] | None = None,
    route: dict[str, Any] | None = None,
    listener: dict[str, Any] | None = None,
    **top: Any,
) -> Config:
    """One cluster of these upstreams behind one route for everything."""
    urls = [each.url if isinstance(each, Origin) else each for each in upstreams]
    endpoints = tuple(Endpoint(url=url) for url in urls)
    filters = Filters(retry=retry, deadline=deadline or Deadline())
    sections: dict[str, Any] = {
        "listen": (Listener(**{"address": "127.0.0.1:0", **(listener or {})}),),
        "admin": None,
        "telemetry": Telemetry(access_log=None),
        **top,
    }
    return Config(
        clusters={"c": Cluster(endpoints=endpoints, **(cluster or {}))},
        routes=(Route(**{"cluster": "c", "path": "/", "filters": filters, **(route or {})}),),
        **sections,
    )


class Gateway:
    """A running gateway. ``address`` is that of its first listener."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.address = server.addresses[0]

    @asynccontextmanager
    async def client(self, receive_buffer: int = 0) -> AsyncIterator[Client]:
        client = await Client.connect(self.address, receive_buffer)
        async with client:
            yield client

    async def ask(self, raw: bytes, method: bytes = b"GET") -> Response:
        """Send on a connection of its own, read one answer."""
        async with self.client() as client:
            await client.send(raw)
            return await client.response(method)


@asynccontextmanager
async def gateway(*upstreams: Origin | str, **sections: Any) -> AsyncIterator[Gateway]:
    """``sections`` as for ``configure``."""
    server = Server(configure(*upstreams, **sections))
    await server.start()
    try:
        yield Gateway(server)
    finally:
        async with asyncio.timeout(BOUND):
            await server.stop()


async def eventually(ready: Callable[[], bool], bound: float = BOUND) -> None:
    """Poll for something that announces itself to nobody: a file, a process, a counter."""
    async with asyncio.timeout(bound):
        while not ready():  # noqa: ASYNC110 - nothing to wait for
            await asyncio.sleep(0.01)
