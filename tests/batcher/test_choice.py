"""Which runner is used: never a wait for the server, one line in the log, and a way back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gpu_batcher import choice, device
from gpu_batcher.api import Job
from gpu_batcher.choice import ChosenRunner, Kind, Parts, choose
from gpu_batcher.codecs.kserve_v1 import KServeV1
from gpu_batcher.codecs.kserve_v2 import KserveV2
from gpu_batcher.host import DeviceError
from gpu_batcher.packing import Packing, Rule
from tests.batcher.shared_server import Server, answered, binary, twice

CODEC = KserveV2({"x": (1,)})


class Naps:
    """Sleeping, until the test says so."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.over = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        self.over.clear()
        await self.over.wait()

    async def end(self) -> None:
        count = len(self.asked)
        self.over.set()
        for _ in range(200):
            await asyncio.sleep(0)
            if len(self.asked) > count:
                return


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@asynccontextmanager
async def chosen(
    server: Server, kind: Kind, **options: Any
) -> AsyncIterator[tuple[ChosenRunner, Naps]]:
    naps = Naps()
    parts = Parts(
        options.pop("codec", CODEC),
        Packing("pad", rules={"x": Rule((1,))}),
        server.send,
        server.control,
        slots=1,
        inputs=1024,
        outputs=1024,
        directory=server.directory,
        sleep=naps,
        **options,
    )
    runner = choose(kind, parts)
    try:
        yield runner, naps
    finally:
        await runner.close()
        assert not list(server.directory.iterdir())


async def works(runner: ChosenRunner) -> None:
    (reply,) = await runner.run(Job([binary(CODEC, [[1, 2]])], [None]))
    assert answered(reply) == twice([[1, 2]])


async def test_http_asks_the_server_nothing(server: Server) -> None:
    async with chosen(server, "http") as (runner, _):
        await runner.found()
        await works(runner)
        assert runner.name == "http"
        assert not server.calls


DEAD = "tailrace-1-0123456789abcdef-0"


async def test_http_clears_away_what_a_crashed_one_has_left(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tailrace")
    (server.directory / DEAD).write_bytes(bytes(4096))
    server.register("system", DEAD, b'{"key": "/%s", "byte_size": 4096}' % DEAD.encode())
    server.up = False
    async with chosen(server, "http") as (runner, naps):
        await naps.end()
        assert (server.directory / DEAD).exists()
        server.up = True
        await naps.end()
        await runner.found()
        assert not server.regions
        assert not list(server.directory.iterdir())
        await works(runner)
    assert "cleared away 1 region" in caplog.text


async def test_auto_takes_the_best_that_works(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tailrace")
    async with chosen(server, "auto") as (runner, _):
        assert runner.name == "http"
        await works(runner)
        await runner.found()
        assert runner.name == "system_shared_memory"
        await works(runner)
        assert server.once == [False, True]
        assert runner.refused == {"cuda_shared_memory": "the device is the host"}
        text = "batches go by system_shared_memory; not cuda_shared_memory: the device is the host"
        assert caplog.messages == [text]


async def test_auto_settles_for_http(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tailrace")
    server.shared = False
    async with chosen(server, "auto") as (runner, naps):
        await runner.found()
        assert runner.name == "http"
        assert not naps.asked
        (message,) = caplog.messages
        assert "shared memory is disabled" in message
        await works(runner)


async def test_auto_waits_for_the_server_beside_the_work(server: Server) -> None:
    server.up = False
    async with chosen(server, "auto") as (runner, naps):
        for _ in range(3):
            await naps.end()
        assert naps.asked == sorted(set(naps.asked))
        assert len(naps.asked) >= 3
        assert runner.name == "http"
        server.up = True
        naps.over.set()
        await runner.found()
        assert runner.name == "system_shared_memory"
        await works(runner)


async def test_what_was_asked_for_by_name_is_tried_again(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.shared = False
    async with chosen(server, "system_shared_memory") as (runner, naps):
        for _ in range(3):
            await naps.end()
        await works(runner)
        assert runner.name == "http"
        errors = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert len(errors) == 1  # For the same reason only once.
        server.shared = True
        naps.over.set()
        await runner.found()
        assert runner.name == "system_shared_memory"
        await works(runner)


async def test_without_a_gpu(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> None:
        raise DeviceError("no CUDA here")

    monkeypatch.setattr(choice, "CupyDevice", none)
    async with chosen(server, "auto", device="auto") as (runner, _):
        await runner.found()
        assert runner.name == "system_shared_memory"
        assert runner.refused == {"cuda_shared_memory": "no CUDA here"}
    assert device is not None


async def test_formats_without_tensors(server: Server) -> None:
    async with chosen(server, "auto", codec=KServeV1()) as (runner, _):
        await runner.found()
        assert runner.name == "http"
        assert not server.calls
    with pytest.raises(ValueError, match="kserve_v1 has no tensors"):
        async with chosen(server, "system_shared_memory", codec=KServeV1()):
            pass


async def test_closing_in_the_middle_of_a_try(server: Server) -> None:
    async with chosen(server, "auto"):
        for _ in range(3):
            await asyncio.sleep(0)
    assert not server.regions
