"""A gateway with its admin listener, and how to ask both."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
from yarl import URL

from gateway.config import Admin
from gateway.server import Server
from tests.gateway.exposition_format import Samples, parse
from tests.harness import configure
from tests.wire.client import Client

if TYPE_CHECKING:
    from tests.wire.origin import Origin

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


class Answered(NamedTuple):
    status: int
    headers: Any
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Running:
    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self.server = server
        self._session = session

    async def ask(
        self, path: str, method: str = "GET", probe: bool = False, **headers: str
    ) -> Answered:
        admin = self.server.admin
        assert admin is not None
        bound = (admin.probe_addresses if probe else admin.addresses)[0]
        base = "http://localhost" if isinstance(bound, str) else f"http://{bound[0]}:{bound[1]}"
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        url = URL(base + path, encoded=True)
        async with self._session.request(method, url, headers=named) as response:
            return Answered(response.status, response.headers, await response.text())

    async def metrics(self) -> Samples:
        return parse((await self.ask("/metrics")).text)

    async def endpoints(self) -> dict[str, Any]:
        """Of the one cluster, by name."""
        shown = (await self.ask("/clusters")).json["clusters"]["c"]["endpoints"]
        return {each["endpoint"]: each for each in shown}


@asynccontextmanager
async def administered(
    *upstreams: Origin | str,
    admin: Admin | None = None,
    path: Path | None = None,
    **sections: Any,
) -> AsyncIterator[Running]:
    admin = admin or Admin(listen="127.0.0.1:0", probes="127.0.0.1:0")
    server = Server(configure(*upstreams, admin=admin, **sections), path)
    await server.start()
    listen = admin.listen or ""
    unix = listen.removeprefix("unix:") if listen.startswith("unix:") else None
    connector = aiohttp.UnixConnector(unix) if unix else aiohttp.TCPConnector()
    try:
        await server.start_admin()
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Running(server, session)
    finally:
        await server.stop()


async def ask_proxy(server: Server, raw: bytes) -> int:
    async with await Client.connect(server.addresses[0]) as client:
        await client.send(raw)
        return (await client.response()).status
