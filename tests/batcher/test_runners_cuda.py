"""The shared-memory runner with regions on a GPU, which is a stand-in here."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_batcher.choice import Parts, choose
from gpu_batcher.device import CupyDevice
from gpu_batcher.shared_memory import CudaRegions, RefusedError
from tests.batcher.fake_cupy import FakeCupy
from tests.batcher.shared_server import Server, answered
from tests.batcher.test_runners_shared import (
    CODEC,
    PACKING,
    ask,
    asked,
    job_of,
    opened,
    output_of,
    region_of,
    runner_of,
)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    server = Server(tmp_path)
    server.shape = [-1]
    server.cuda = True
    return server


@pytest.fixture
def regions(server: Server, monkeypatch: pytest.MonkeyPatch) -> CudaRegions:
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy(None))
    return CudaRegions(CupyDevice(), directory=server.directory)


async def until(met: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not met():  # noqa: ASYNC110 - a thread's doing, which sets no Event
            await asyncio.sleep(0)


async def test_no_tensor_goes_over_the_socket(server: Server, regions: CudaRegions) -> None:
    async with opened(server, regions=regions) as runner:
        assert runner.name == "cuda_shared_memory"
        for _ in range(3):
            await ask(runner, [[1, 2]], [[3, 4, 5], [6, 7, 8]])
            await runner.models.asked()
        assert region_of(server) in server.regions
        assert asked(server)[1] == b""
        assert output_of(server)["shared_memory_region"] == region_of(server)
        assert server.once == [True] * 3
    assert not server.regions


async def test_no_memory_is_freed_that_the_server_may_write(
    server: Server, regions: CudaRegions
) -> None:
    server.defers = False
    async with opened(server, regions=regions) as runner:
        await ask(runner, [[1, 2]])
        await runner.models.asked()
        lease = runner.slots.try_lease()
        assert lease is not None
        assert lease.buffer.region is not None
        buffer = lease.buffer.region.lease.buffer
        lease.release()
        server.gate = asyncio.Event()
        server.arrived.clear()
        task = asyncio.create_task(runner.run(job_of([[7, 7]])))
        await server.arrived.wait()
        old = region_of(server)
        task.cancel()
        await asyncio.wait([task])
        server.gate = None
        for _ in range(50):
            await ask(runner, [[1, 2]])
        assert not server.once[-1]  # By http: no second region meanwhile.
        assert os.listdir(server.directory) == [old]  # noqa: PTH208
        assert buffer.packed is not None
        server.haunt()
        await until(lambda: not runner.slots.down)
        assert buffer.packed is None
        await ask(runner, [[1, 2]])
        assert server.once[-1]
        assert region_of(server) != old


async def test_a_region_is_not_reused_while_a_thread_packs_it(
    server: Server, regions: CudaRegions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server, regions=regions) as runner:
        await ask(runner, [[1, 2]])
        old = region_of(server)
        packing, go_on = threading.Event(), threading.Event()
        pack = regions.device.pack

        def slow(*given: Any) -> Any:
            packing.set()
            go_on.wait()
            return pack(*given)

        monkeypatch.setattr(regions.device, "pack", slow)
        task = asyncio.create_task(runner.run(job_of([[7, 7]])))
        await until(packing.is_set)
        task.cancel()
        await asyncio.wait([task])
        assert runner.slots.down == 1
        await ask(runner, [[1, 2]])
        assert region_of(server) is None
        go_on.set()
        await until(lambda: not runner.slots.down)
        await ask(runner, [[1, 2]])
        assert region_of(server) == old  # The server has never heard of that job.


@pytest.mark.parametrize("what", ["pack", "fetch"])
async def test_a_gpu_that_fails(
    server: Server, regions: CudaRegions, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async with opened(server, regions=regions) as runner:
        await ask(runner, [[1, 2]])
        await runner.models.asked()
        with monkeypatch.context() as broken:

            def fails(*_: Any) -> None:
                raise RuntimeError("cudaErrorIllegalAddress")

            broken.setattr(regions.device, what, fails)
            await ask(runner, [[3, 4]])
            assert not server.once[-1]
        await until(lambda: not runner.slots.down)
        await ask(runner, [[5, 6]])
        assert server.once[-1]


async def test_a_server_on_another_gpu(server: Server, regions: CudaRegions) -> None:
    server.cuda = False
    with pytest.raises(RefusedError, match="failed to register"):
        await runner_of(server, regions=regions).open()
    assert not os.listdir(server.directory)  # noqa: PTH208


async def test_auto_begins_with_the_gpu(server: Server, regions: CudaRegions) -> None:
    def chosen(kind: Any) -> Any:
        return choose(
            kind,
            Parts(
                CODEC,
                PACKING,
                server.send,
                server.control,
                slots=1,
                inputs=1024,
                outputs=1024,
                device="auto",
                directory=server.directory,
            ),
        )

    runner = chosen("auto")
    await runner.found()
    assert runner.name == "cuda_shared_memory"
    (reply,) = await runner.run(job_of([[1, 2]]))
    assert answered(reply) == [[3, 5]]
    await runner.close()
    server.cuda = False
    runner = chosen("auto")
    await runner.found()
    assert runner.name == "system_shared_memory"
    assert "failed to register" in runner.refused["cuda_shared_memory"]
    await runner.close()
