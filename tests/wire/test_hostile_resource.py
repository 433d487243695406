"""Cases 147 to 149, 151, 155: too many of something, and what ends up in logs and labels."""

from __future__ import annotations

import asyncio
import json
import random
import unicodedata
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from gateway.config import AccessLog, Admin, Limits, Telemetry, Timeouts
from tests.harness import GOOD, Gateway, eventually, gateway
from tests.process import process
from tests.wire.client import Client, TruncatedError
from tests.wire.origin import BOUND, Origin, silent
from tests.wire.table import get


@asynccontextmanager
async def crowd(g: Gateway, size: int) -> AsyncIterator[list[Client]]:
    """Connections that are open at once."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(g.client()) for _ in range(size)]


async def served(address: tuple[str, int] | str) -> bool:
    """Whether a good request on a new connection is answered."""
    try:
        async with await Client.connect(address) as client:
            await client.send(GOOD)
            return (await client.response()).status == 200
    except (TruncatedError, ConnectionError):
        return False


async def until_served(address: tuple[str, int] | str) -> None:
    async with asyncio.timeout(BOUND):
        while not await served(address):  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.02)


async def test_147_the_oldest_idle_connection_makes_room() -> None:
    limits = Limits(connections=20)
    async with Origin() as origin, gateway(origin, limits=limits) as g, crowd(g, 20) as clients:
        for client in clients:
            await client.send(GOOD)
            assert (await client.response()).status == 200
        for _ in range(5):
            assert await served(g.address)
        assert await clients[0].rest() == b""
        assert clients[0].ended == "eof"
        # The newest are still there.
        await clients[-1].send(GOOD)
        assert (await clients[-1].response()).status == 200


async def test_147_connections_over_the_limit_do_not_disturb_busy_ones() -> None:
    release = asyncio.Event()

    async def late(connection: object, request: object) -> None:
        await release.wait()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")  # type: ignore[attr-defined]

    async with Origin(late) as origin, gateway(origin, limits=Limits(connections=5)) as g:
        async with crowd(g, 5) as busy:
            for client in busy:
                await client.send(get())
            await origin.until(lambda: len(origin.requests) == 5)
            async with g.client() as extra:
                await extra.send(GOOD)
                rest = await extra.rest()
                assert rest == b"" or b" 503 " in rest.partition(b"\r\n")[0]
            release.set()
            for client in busy:
                assert (await client.response()).body == b"ok"
        assert len(origin.requests) == 5


@pytest.mark.parametrize(
    "part",
    [b"", b"GET /x HTTP/1.1\r\nX-A: ", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"],
)
async def test_148_slow_clients_in_every_place_do_not_keep_others_out(part: bytes) -> None:
    """Slowloris (heads), slow bodies, and connections that say nothing, twice the limit of them."""
    timeouts = Timeouts(head=0.3, idle=0.3, body_idle=0.3)
    limits = Limits(connections=20)
    async with Origin() as origin, gateway(origin, limits=limits, timeouts=timeouts) as g:
        async with crowd(g, 40) as slow:
            for client in slow:
                await client.send(part)
            await until_served(g.address)
            for client in slow:
                await client.rest()
        assert await served(g.address)
        assert {bytes(request.target) for request in origin.requests} == {b"/good"}


CONFIG = """
listen: 127.0.0.1:0
admin: off
telemetry: {{access_log: off}}
clusters: {{c: {{endpoints: ["{url}"]}}}}
routes: [{{path: /, cluster: c}}]
"""


async def test_149_running_out_of_descriptors_neither_spins_nor_lasts(tmp_path: Path) -> None:
    """More connections than a process of 160 open files can take; afterwards all is as before."""
    async with (
        Origin() as origin,
        process(CONFIG.format(url=origin.url), tmp_path, descriptors=160) as running,
    ):
        clients = [await Client.connect(running.address) for _ in range(250)]
        before, loop = running.cpu, asyncio.get_running_loop()
        began = loop.time()
        await eventually(lambda: loop.time() - began > 0.5)
        # Spinning on accept would take all of the half second.
        assert running.cpu - before < 0.25
        assert running.running.returncode is None
        for client in clients:
            await client.close()
        await until_served(running.address)


HOSTILE_LOG = [
    get(b"User-Agent: \xc2\x9b31mred\xc2\x85next", target=b"/%1b[31m%0a%0d"),
    get(b'User-Agent: "quote\\" , {"a": 1}', target=b'/%22"'.replace(b'"', b"")),
    get(b"User-Agent: \xff\xfe bytes that are no text"),
    get("User-Agent: \u202e\u2028\u200b direction".encode()),
    get(b"User-Agent: tab\there"),
    b"GET /\x1b[2J HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: a\x1b]0;title\x07\r\n\r\n",
    b"\x1b[2J\x1b[H\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\nInjected: 1\r\n\r\n",
]


@pytest.mark.parametrize("format_", ["json", "text"])
async def test_151_nothing_in_a_request_can_forge_a_log(format_: str, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    telemetry = Telemetry(access_log=AccessLog(format=format_, path=str(log)))  # type: ignore[arg-type]
    async with Origin() as origin, gateway(origin, telemetry=telemetry) as g:
        for raw in HOSTILE_LOG:
            await g.ask(raw)
        await g.ask(get(target=b"/the-last-one"))
        await eventually(lambda: log.exists() and b"/the-last-one" in log.read_bytes())
    text = log.read_bytes().decode()
    assert not [c for c in text if unicodedata.category(c) in {"Cc", "Zl", "Zp"} and c != "\n"]
    lines = text.splitlines()
    assert len(lines) >= 6
    if format_ == "json":
        assert all(isinstance(json.loads(line), dict) for line in lines)


@asynccontextmanager
async def administered(origin: Origin, **sections: Any) -> AsyncIterator[tuple[Gateway, str]]:
    """A gateway and the address of its admin listener."""
    async with gateway(origin, admin=Admin(listen="127.0.0.1:0"), **sections) as g:
        await g.server.start_admin()
        assert g.server.admin is not None
        yield g, f"http://127.0.0.1:{g.server.admin.addresses[0][1]}"


async def fetch(url: str) -> str:
    async with ClientSession() as session, session.get(url) as response:
        assert response.status == 200
        return await response.text()


async def test_147_the_admin_listener_answers_when_connections_are_used_up() -> None:
    sections = {"limits": Limits(connections=5)}
    async with (
        Origin(silent) as origin,
        administered(origin, **sections) as (g, admin),
        crowd(g, 5) as busy,
    ):
        for client in busy:
            await client.send(get())
        await origin.until(lambda: len(origin.requests) == 5)
        for page in ("/livez", "/readyz", "/metrics"):
            assert await fetch(admin + page)


async def test_155_random_names_do_not_become_labels() -> None:
    """Methods, hosts, paths, models: none of them is a label, so the count of series stands."""
    rng = random.Random(3)

    async def ask(g: Gateway, name: bytes) -> None:
        body = b'{"model": "%s"}' % name
        await g.ask(
            b"M%s /%s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s"
            % (name.upper(), name, name, len(body), body)
        )

    async def series(admin: str) -> set[str]:
        lines = (await fetch(admin + "/metrics")).splitlines()
        return {line.rpartition(" ")[0] for line in lines if line[:1] != "#"}

    async with Origin() as origin, administered(origin) as (g, admin):
        for _ in range(2):
            await ask(g, b"first")
        before = await series(admin)
        assert before
        for _ in range(100):
            await ask(g, b"%x" % rng.getrandbits(64))
        assert await series(admin) == before
        assert len(origin.requests) == 102
