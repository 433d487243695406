"""The coalescer's control calls to a model server: shared memory, model metadata. By aiohttp, off
the data path, to the one endpoint of the route's cluster; imported when the first call is made.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.endpoint import Endpoint

MOST = 1 << 20
"""Bytes of an answer."""
SECONDS = 5.0


class ControlCalls:
    """``gpu_batcher.shared_memory.Control``. To be told by ``use`` whom to call. Each call has a
    connection of its own: there are a few at start and none while all is well."""

    def __init__(self) -> None:
        self._endpoints: Callable[[], Mapping[str, Endpoint]] = dict
        self._headers: dict[str, str] = {}

    def use(
        self, endpoints: Callable[[], Mapping[str, Endpoint]], headers: Mapping[str, str]
    ) -> None:
        """``headers``: those that the route sets on every request, credentials say."""
        self._endpoints = endpoints
        self._headers = dict(headers)

    async def __call__(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body. Raises OSError."""
        endpoints = list(self._endpoints().values())
        if len(endpoints) != 1:
            raise OSError(f"{len(endpoints)} endpoints, and memory can be shared with one only")
        import aiohttp

        try:
            async with asyncio.timeout(SECONDS):
                return await self._call(endpoints[0], method, path, body)
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error) or type(error).__name__) from error

    async def _call(
        self, endpoint: Endpoint, method: str, path: str, body: bytes
    ) -> tuple[int, bytes]:
        import aiohttp

        target = endpoint.target()
        connector: aiohttp.BaseConnector
        if target.unix is None:
            connector = aiohttp.TCPConnector(force_close=True)
        else:
            connector = aiohttp.UnixConnector(target.unix, force_close=True)
        headers = {"content-type": "application/json", **self._headers}
        if target.host is not None:
            headers["host"] = target.host
        tls: ssl.SSLContext | bool = endpoint.tls or True
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(
                method,
                target.url + path,
                data=body,
                headers=headers,
                allow_redirects=False,
                ssl=tls,
                server_hostname=target.server_name,
            ) as answer,
        ):
            parts: list[bytes] = []
            async for part in answer.content.iter_any():
                parts.append(part)
                if sum(map(len, parts)) > MOST:
                    raise OSError("the answer to a control call is too large")
            return answer.status, b"".join(parts)
