"""The slots of the shared-memory runner: opened, down, and closed, and nothing left behind."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from gpu_batcher import slots as slots_module
from gpu_batcher.api import FailedError, NoAnswerError
from gpu_batcher.shared_memory import NotUpError, RefusedError, RegionError
from tests.batcher.shared_server import Server, answered
from tests.batcher.test_runners_shared import (
    ask,
    job_of,
    opened,
    region_of,
    rounds,
    runner_of,
)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    server = Server(tmp_path)
    server.shape = [-1]
    return server


async def test_a_restart_without_shared_memory(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()

    async def sleep(_: float) -> None:
        await gate.wait()

    async with opened(server, sleep=sleep) as runner:
        await ask(runner, [[1, 2]])
        server.restart()
        server.shared = False
        caplog.set_level(logging.WARNING, "tailrace")
        await ask(runner, [[3, 4]])
        await rounds()
        await ask(runner, [[5, 6]])
        assert region_of(server) is None
        assert runner.slots.down == 1
        assert "down, http instead" in caplog.text
        server.shared = True
        gate.set()
        await rounds()
        await ask(runner, [[7, 8]])
        assert region_of(server) in server.regions
        assert runner.slots.down == 0


async def test_a_job_without_a_free_slot_goes_by_http(server: Server) -> None:
    async with opened(server) as runner:
        server.gate = asyncio.Event()
        first = asyncio.create_task(runner.run(job_of([[1, 2]])))
        await server.arrived.wait()
        server.arrived.clear()
        second = asyncio.create_task(runner.run(job_of([[3, 4]])))
        await server.arrived.wait()
        server.gate.set()
        assert [answered(each) for each in await first + await second] == [[[3, 5]], [[7, 9]]]
        assert server.once == [True, False]


async def test_retired_regions_are_bounded(server: Server) -> None:
    """A server that hangs gets no more than twice the memory."""
    async with opened(server, slots=2) as runner:
        server.gate = asyncio.Event()
        for _ in range(10):
            server.arrived.clear()
            task = asyncio.create_task(runner.run(job_of([[1, 2]])))
            await server.arrived.wait()
            task.cancel()
            await asyncio.wait([task])
            await rounds()
        assert len(list(server.directory.iterdir())) <= 4
        assert runner.slots.down == 2
        server.gate = None
        server.haunt()
        await rounds()
        assert runner.slots.down == 0
        assert len(list(server.directory.iterdir())) == 2
        await ask(runner, [[1, 2]])
        assert server.once[-1]


async def test_making_a_region_fails_for_a_while(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()

    async def sleep(_: float) -> None:
        await gate.wait()

    async with opened(server, sleep=sleep) as runner:
        make = runner.slots.regions.make

        def full(size: int) -> Any:
            if not gate.is_set():
                raise RegionError("no room")
            return make(size)

        monkeypatch.setattr(runner.slots.regions, "make", full)
        server.fault = (504, b"")
        with pytest.raises(FailedError):
            await runner.run(job_of([[1, 2]]))
        server.fault = None
        await rounds()
        assert runner.slots.down == 1
        await ask(runner, [[1, 2]])
        gate.set()
        await rounds()
        assert runner.slots.down == 0
        await ask(runner, [[1, 2]])
        assert server.once == [True, False, True]


@pytest.mark.parametrize("broken", ["up", "shared"])
async def test_opening_leaves_nothing_behind(server: Server, broken: str) -> None:
    setattr(server, broken, False)
    with pytest.raises(NotUpError if broken == "up" else RefusedError):
        await runner_of(server, slots=2).open()
    assert not list(server.directory.iterdir())


async def test_opening_without_the_same_shared_memory(
    server: Server, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    runner = runner_of(server)
    server.directory = tmp_path_factory.mktemp("other")
    with pytest.raises(RefusedError, match="Unable to open"):
        await runner.open()
    assert not os.listdir(tmp_path)  # noqa: PTH208


async def test_opening_sees_through_a_server_that_says_yes_to_everything(server: Server) -> None:
    register = server.register
    server.register = lambda *_: (200, b"")  # type: ignore[method-assign]
    with pytest.raises(RefusedError, match="not listed"):
        await runner_of(server).open()
    server.register = register  # type: ignore[method-assign]
    assert not list(server.directory.iterdir())


async def test_closing_while_the_server_is_gone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots_module, "FAREWELL", 10.0)
    runner = runner_of(server, slots=2)
    await runner.open()
    server.up = False
    await runner.close()
    assert not list(server.directory.iterdir())
    with pytest.raises(NoAnswerError) as none:
        await runner.run(job_of([[1]]))
    assert not none.value.begun


async def test_closing_with_a_job_under_way(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots_module, "FAREWELL", 0.01)
    server.defers = False
    runner = runner_of(server)
    await runner.open()
    server.gate = asyncio.Event()
    task = asyncio.create_task(runner.run(job_of([[1, 2]])))
    await server.arrived.wait()
    task.cancel()
    await asyncio.wait([task])
    await runner.close()
    # The server still has it in use; whoever starts next, clears it away.
    (name,) = server.regions
    assert os.listdir(server.directory) == [name]  # noqa: PTH208
    server.haunt()
    async with opened(server):
        assert name not in server.regions
    assert not server.regions
