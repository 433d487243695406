"""A ConfigMap that changes under a running gateway, the way the kubelet changes it.

The kubelet never writes into a file that is mounted. It makes a new folder with all files, points
``..data`` at it by renaming a symlink, and removes the old folder; the names that a container sees
are symlinks through ``..data``.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.harness import GOOD
from tests.process import Process, process
from tests.wire.client import Client
from tests.wire.origin import BOUND, Connection, Origin, Request


class Mount:
    """A folder like that of a mounted ConfigMap."""

    def __init__(self, folder: Path, **files: str) -> None:
        self.folder = folder
        self._versions = itertools.count(1)
        self.put(**files)
        for name in files:
            (folder / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")

    def put(self, **files: str) -> None:
        """All files at once; there is no moment at which one of them is missing or half."""
        data = self.folder / "..data"
        old = data.resolve() if data.exists() else None
        new = self.folder / f"..2026_11_24_04_00_00.{next(self._versions)}"
        new.mkdir()
        for name, text in files.items():
            (new / f"{name}.yaml").write_text(text)
        link = self.folder / "..data_tmp"
        link.symlink_to(new.name)
        link.replace(data)
        if old is not None:
            shutil.rmtree(old)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def configuration(url: str, probes: int) -> str:
    return f"""
listen: 127.0.0.1:0
admin: {{listen: off, probes: "127.0.0.1:{probes}"}}
telemetry: {{access_log: off}}
clusters: {{c: {{endpoints: ["{url}"]}}}}
routes: [{{path: /, cluster: c}}]
"""


class Asking:
    """Requests one after the other over one connection, until it is told to stop."""

    def __init__(self, gateway: Process) -> None:
        self.gateway = gateway
        self.bodies: list[bytes] = []
        self._more = asyncio.Event()

    async def run(self) -> None:
        async with await Client.connect(self.gateway.address) as client:
            while True:
                await client.send(GOOD)
                answer = await client.response()
                assert answer.status == 200, answer
                assert not answer.closes
                self.bodies.append(answer.body)
                self._more.set()

    async def until(self, body: bytes) -> None:
        """An answer with this body has come after now."""
        seen = len(self.bodies)
        async with asyncio.timeout(BOUND):
            while body not in self.bodies[seen:]:
                self._more.clear()
                await self._more.wait()


@asynccontextmanager
async def asking(gateway: Process) -> AsyncIterator[Asking]:
    """A failed request fails the test, whenever it was."""
    asking = Asking(gateway)
    task = asyncio.ensure_future(asking.run())
    try:
        yield asking
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def answering(body: bytes) -> Origin:
    async def script(connection: Connection, request: Request) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.send(head.encode() + body)

    return Origin(script)


async def metric(port: int, line: str) -> None:
    """Wait until ``line`` is among the metrics."""
    async with asyncio.timeout(BOUND), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                if line in (await answer.text()).splitlines():
                    return
            await asyncio.sleep(0.05)


async def test_a_swap_of_data_is_a_reload_without_a_failed_request(tmp_path: Path) -> None:
    probes = free_port()
    async with answering(b"one") as one, answering(b"two") as two:
        mount = Mount(tmp_path, tailrace=configuration(one.url, probes))
        before = (tmp_path / "tailrace.yaml").read_text()
        async with process(before, tmp_path) as running, asking(running) as load:
            await load.until(b"one")
            mount.put(tailrace=configuration(two.url, probes))
            await load.until(b"two")
            # And back, so that the next swap is seen as well as the first.
            mount.put(tailrace=configuration(one.url, probes))
            await load.until(b"one")
            await metric(probes, 'tailrace_config_reloads_total{result="success"} 2')
            await metric(probes, 'tailrace_config_reloads_total{result="failure"} 0')


async def test_a_broken_configmap_changes_nothing_and_the_next_one_does(tmp_path: Path) -> None:
    probes = free_port()
    async with answering(b"one") as one, answering(b"two") as two:
        mount = Mount(tmp_path, tailrace=configuration(one.url, probes))
        before = (tmp_path / "tailrace.yaml").read_text()
        async with process(before, tmp_path) as running, asking(running) as load:
            await load.until(b"one")
            mount.put(tailrace=configuration(two.url, probes) + "no_such_key: 1\n")
            await metric(probes, 'tailrace_config_reloads_total{result="failure"} 1')
            await metric(probes, "tailrace_config_last_reload_success 0")
            await load.until(b"one")
            assert b"two" not in load.bodies
            mount.put(tailrace=configuration(two.url, probes))
            await load.until(b"two")
            await metric(probes, "tailrace_config_last_reload_success 1")
