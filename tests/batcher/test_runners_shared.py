"""The shared-memory runner: nobody gets another's rows, whatever the server does and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gpu_batcher.api import BadAnswerError, FailedError, Job, NoAnswerError
from gpu_batcher.buffers import Pool
from gpu_batcher.codecs.kserve_v2 import KserveV2
from gpu_batcher.device import HostDevice
from gpu_batcher.packing import Packing, Rule
from gpu_batcher.runners import HttpRunner
from gpu_batcher.shared_memory import SystemRegions
from gpu_batcher.shared_runner import SharedMemoryRunner
from tests.batcher import oip
from tests.batcher.shared_server import POISON, Server, answered, binary, twice

CODEC = KserveV2({"x": (1,)})
PACKING = Packing("pad", rules={"x": Rule((1,))})
FOLLOWS = {"y": "x"}


@pytest.fixture
def server(tmp_path: Path) -> Server:
    server = Server(tmp_path)
    server.shape = [-1]
    return server


async def soon(_: float) -> None:
    await asyncio.sleep(0)


async def rounds(count: int = 60) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def runner_of(
    server: Server, slots: int = 1, outputs: int = 1024, sleep: Any = soon, **options: Any
) -> SharedMemoryRunner:
    device = HostDevice()
    pool = Pool([device.allocate(1024)])
    http = HttpRunner(CODEC, PACKING, pool, device, server.send, FOLLOWS)
    regions = options.pop("regions", None) or SystemRegions(slots, directory=server.directory)
    return SharedMemoryRunner(
        CODEC,
        PACKING,
        regions,
        server.send,
        server.control,
        http,
        slots=slots,
        inputs=1024,
        outputs=outputs,
        follows=options.pop("follows", FOLLOWS),
        sleep=sleep,
    )


@asynccontextmanager
async def opened(server: Server, **options: Any) -> AsyncIterator[SharedMemoryRunner]:
    runner = runner_of(server, **options)
    await runner.open()
    try:
        yield runner
    finally:
        await runner.close()
        assert not list(server.directory.iterdir())


def job_of(*given: list[list[int]]) -> Job:
    return Job([binary(CODEC, rows) for rows in given], [None] * len(given))


async def ask(runner: SharedMemoryRunner, *given: list[list[int]]) -> None:
    replies = await runner.run(job_of(*given))
    assert [answered(each) for each in replies] == [twice(rows) for rows in given]


def asked(server: Server, at: int = -1) -> tuple[dict[str, Any], bytes]:
    message = server.sent[at]
    return oip.parsed(message.head, b"".join(message.body))


def region_of(server: Server) -> str | None:
    """That the last request named for its input."""
    name = asked(server)[0]["inputs"][0]["parameters"].get("shared_memory_region")
    assert name is None or isinstance(name, str)
    return name


def output_of(server: Server) -> dict[str, Any]:
    text, _ = asked(server)
    (output,) = text.get("outputs") or [{}]
    parameters = output.get("parameters", {})
    assert isinstance(parameters, dict)
    return parameters


async def test_no_tensor_goes_over_the_socket(server: Server) -> None:
    async with opened(server) as runner:
        await ask(runner, [[1, 2]], [[3, 4, 5], [6, 7, 8]])
        assert region_of(server) in server.regions
        assert asked(server)[1] == b""
        assert "shared_memory_region" not in output_of(server)  # It was not known yet.
        await runner.models.asked()
        await ask(runner, [[1, 2]], [[3, 4, 5], [6, 7, 8]])
        assert output_of(server)["shared_memory_region"] == region_of(server)
        assert output_of(server)["shared_memory_offset"] == 256
        assert output_of(server)["shared_memory_byte_size"] == 36
        assert server.once == [True, True]
        assert sum("models" in each for each in server.calls) == 1
    assert not server.regions


@pytest.mark.parametrize(
    ("shape", "follows", "placed"),
    [([2], {}, True), ([-1], {}, False), ([-1], FOLLOWS, True), ([2, -1], FOLLOWS, False)],
)
async def test_outputs_of_a_known_size_have_a_place(
    server: Server, shape: list[int], follows: dict[str, str], placed: bool
) -> None:
    server.shape = shape
    async with opened(server, follows=follows) as runner:
        await ask(runner, [[1, 2]])
        await runner.models.asked()
        await ask(runner, [[1, 2]])
        assert ("shared_memory_region" in output_of(server)) is placed


@pytest.mark.parametrize("datatype", ["BYTES", "STRANGE"])
async def test_outputs_of_other_datatypes_have_none(server: Server, datatype: str) -> None:
    server.datatype = datatype
    async with opened(server) as runner:
        await ask(runner, [[1, 2]])
        await runner.models.asked()
        await ask(runner, [[1, 2]])
        assert "shared_memory_region" not in output_of(server)


async def test_outputs_that_do_not_fit_come_in_the_body(server: Server) -> None:
    async with opened(server, outputs=0) as runner:
        await ask(runner, [[1, 2]])
        await runner.models.asked()
        await ask(runner, [[1, 2]])
        assert "shared_memory_region" in output_of(server)
        await ask(runner, [[1] * 200])
        assert "shared_memory_region" not in output_of(server)


async def test_an_output_that_was_not_written_is_nobodys(server: Server) -> None:
    """A server that answers 200 and writes nothing: zeros, and no rows of an earlier batch."""
    async with opened(server) as runner:
        await ask(runner, [[1, 2]])
        await runner.models.asked()
        await ask(runner, [[41, 42]])
        memory = server._memory

        def nowhere(given: dict[str, Any], used: dict[str, Any]) -> Any:
            size = given["shared_memory_byte_size"]
            return bytearray(size) if "shared_memory_offset" in given else memory(given, used)

        server._memory = nowhere  # type: ignore[assignment, method-assign]
        (reply,) = await runner.run(job_of([[1, 2]]))
        assert answered(reply) == [[0, 0]]


async def test_an_output_that_is_not_what_its_model_said(server: Server) -> None:
    server.shape = [3]
    async with opened(server) as runner:
        await ask(runner, [[1, 2]])
        await runner.models.asked()
        await ask(runner, [[1, 2]])  # 12 bytes are placed, and 8 come.
        assert len(server.sent) == 3
        assert "shared_memory_region" not in output_of(server)
        await ask(runner, [[1, 2]])
        assert len(server.sent) == 4
        assert runner.slots.down == 0


async def test_an_output_larger_than_its_model_said(server: Server) -> None:
    server.shape = [1]
    async with opened(server) as runner:
        await ask(runner, [[1, 2]])
        await runner.models.asked()
        settled: list[bool] = []
        job = job_of([[1, 2]])
        job.settle = settled.append
        (reply,) = await runner.run(job)
        assert answered(reply) == [[3, 5]]
        assert settled == [True]  # The first answer blames nobody.
        assert len(server.sent) == 3
        assert "shared_memory_region" not in output_of(server)


async def test_a_missing_output_is_an_error_of_the_answer(server: Server) -> None:
    async with opened(server) as runner:
        await ask(runner, [[1, 2]])
        await runner.models.asked()
        server.lie = lambda answer: answer["outputs"].clear()
        with pytest.raises(BadAnswerError):
            await runner.run(job_of([[1, 2]]))


@pytest.mark.parametrize("defers", [True, False])
async def test_a_late_write_reaches_nobody(server: Server, defers: bool) -> None:
    server.defers = defers
    async with opened(server) as runner:
        await ask(runner, [[1, 2]])
        await runner.models.asked()
        server.gate = asyncio.Event()
        server.arrived.clear()
        task = asyncio.create_task(runner.run(job_of([[7, 7]])))
        await server.arrived.wait()
        old = region_of(server)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await rounds()
        server.gate = None
        assert runner.slots.down == 0
        assert old in server.regions  # Put off: it is in use.
        server.gate = asyncio.Event()
        server.arrived.clear()
        next_task = asyncio.create_task(runner.run(job_of([[1, 2]])))
        await server.arrived.wait()
        assert region_of(server) != old
        server.haunt()  # Now the old request writes its output.
        server.gate.set()
        (reply,) = await next_task
        assert answered(reply) == [[3, 5]]
        server.gate = None
        await rounds()
        assert list(server.regions) == [region_of(server)]
        assert [each.name for each in server.directory.iterdir()] == list(server.regions)


@pytest.mark.parametrize("begun", [True, False])
async def test_without_an_answer_the_region_is_used_again_only_if_nothing_began(
    server: Server, begun: bool
) -> None:
    async with opened(server) as runner:
        await ask(runner, [[1, 2]])
        old = region_of(server)
        send = runner._send

        async def broken(*_: Any, **__: Any) -> Any:
            raise NoAnswerError(TimeoutError("late"), begun=begun)

        runner._send = broken
        with pytest.raises(NoAnswerError):
            await runner.run(job_of([[1, 2]]))
        await rounds()
        runner._send = send
        await ask(runner, [[1, 2]])
        assert (region_of(server) != old) is begun


@pytest.mark.parametrize(
    ("status", "body", "kept"),
    [
        (500, b'{"error":"it broke"}', True),
        (503, b'{"error":"queue full"}', True),
        (504, b'{"error":"gave up"}', False),
        (503, b"upstream connect error", False),
        (500, b'{"message":"who are you"}', False),
        (200, b"<html>", False),
    ],
)
async def test_only_the_servers_own_answer_frees_the_region(
    server: Server, status: int, body: bytes, kept: bool
) -> None:
    async with opened(server) as runner:
        await ask(runner, [[1, 2]])
        old = region_of(server)
        server.fault = (status, body)
        with pytest.raises(FailedError if status >= 300 else BadAnswerError):
            await runner.run(job_of([[1, 2]]))
        server.fault = None
        await rounds()
        await ask(runner, [[1, 2]])
        assert (region_of(server) == old) is kept


async def test_poison_is_told_as_it_is(server: Server) -> None:
    async with opened(server) as runner:
        with pytest.raises(FailedError) as failed:
            await runner.run(job_of([[POISON]]))
        assert failed.value.answer.status == 400
        await ask(runner, [[1, 2]])


async def test_a_restart_is_noticed_and_the_job_repeated(server: Server) -> None:
    async with opened(server, slots=2) as runner:
        await ask(runner, [[1, 2]])
        await runner.models.asked()
        server.restart()
        await ask(runner, [[3, 4]])
        assert len(server.sent) == 3
        assert len(server.regions) == 1
        await ask(runner, [[3, 4]])  # By the other slot, which is registered before.
        assert len(server.sent) == 4
        assert len(server.regions) == 2
        await runner.models.asked()
        assert sum("models" in each for each in server.calls) == 2
        assert runner.slots.down == 0


async def test_calls_too_large_blame_nobody_and_keep_the_slot(server: Server) -> None:
    async with opened(server) as runner:
        with pytest.raises(FailedError) as failed:
            await runner.run(job_of([[1] * 300]))
        assert failed.value.answer.status == 413
        assert runner.slots.down == 0
        await ask(runner, [[1, 2]])
