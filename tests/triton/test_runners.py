"""The runners of the batcher against a real Triton: HTTP and system shared memory."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import aiohttp
import numpy as np
import pytest

from gpu_batcher import slots as slots_module
from gpu_batcher.api import Call, FailedError, Job, Message, NoAnswerError, Reply
from gpu_batcher.choice import ChosenRunner, Parts, choose
from gpu_batcher.codecs.kserve_v2 import KserveV2
from gpu_batcher.packing import Extra, Packing, Rule
from gpu_batcher.shared_memory import DIRECTORY, NAME, SystemRegions
from gpu_batcher.shared_runner import SharedMemoryRunner
from loadtests.oip.triton import TritonServer, elementwise
from tests.batcher import oip
from tests.batcher.oip import Given

CODEC = KserveV2({"VALUES": (1,)})
PACKING = Packing(
    "pad", rules={"VALUES": Rule((1,), mask=Extra("MASK", "BOOL"))}, default=Rule(axes=())
)
CONNECTION = (aiohttp.ClientError, OSError)


class Wire:
    """The seams of the runners, by aiohttp."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = aiohttp.ClientSession()
        self.once = 0

    async def control(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        try:
            async with self.session.request(method, self.url + path, data=body) as answer:
                return answer.status, await answer.read()
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error)) from error

    async def send(self, message: Message, job: Job, *, once: bool = False) -> Message:
        self.once += once
        head = {name.decode(): value.decode() for name, value in message.head.items()}
        url = f"{self.url}/v2/models/{job.origins[0]}/infer"
        try:
            async with self.session.post(url, data=message.joined(), headers=head) as answer:
                lines = {
                    name.lower().encode(): value.encode() for name, value in answer.headers.items()
                }
                return Message([await answer.read()], lines, answer.status)
        except CONNECTION as error:
            begun = not isinstance(error, aiohttp.ClientConnectorError)
            raise NoAnswerError(error, begun=begun) from error

    async def regions(self) -> list[str]:
        _, body = await self.control("GET", "/v2/systemsharedmemory/status", b"")
        return sorted(each["name"] for each in json.loads(body) if NAME.fullmatch(each["name"]))


def files() -> list[str]:
    own = f"tailrace-{os.getpid()}-"
    return sorted(name for name in os.listdir(DIRECTORY) if name.startswith(own))  # noqa: PTH208


@asynccontextmanager
async def serving(url: str, kind: Any, slots: int = 4) -> AsyncIterator[tuple[ChosenRunner, Wire]]:
    wire = Wire(url)
    parts = Parts(
        CODEC,
        PACKING,
        wire.send,
        wire.control,
        slots=slots,
        inputs=1 << 16,
        outputs=1 << 16,
        follows={"DOUBLED": "VALUES"},
    )
    runner = choose(kind, parts)
    try:
        await runner.found()
        yield runner, wire
    finally:
        await runner.close()
        await wire.session.close()
    assert not files()


def shared(runner: ChosenRunner) -> SharedMemoryRunner:
    assert isinstance(runner.runner, SharedMemoryRunner)
    return runner.runner


def call(model: str, name: str, rows: Any) -> Call:
    given = Given(name, "FP32", rows.shape, rows.ravel().tolist())
    head, body = oip.request([given], parameters={"binary_data_output": True})
    target = f"/v2/models/{model}/infer".encode()
    read = CODEC.read(target, head, memoryview(body))
    assert read is not None
    return read


def outputs(reply: Reply) -> dict[str, Any]:
    assert reply.status == 200, reply.body
    text, tail = oip.parsed(reply.head, reply.body)
    return {
        each.name: np.array(each.values, "f4").reshape(each.shape)
        for each in oip.tensors(text["outputs"], tail)
    }


async def ask(runner: ChosenRunner, model: str, *given: Any) -> None:
    job = Job([call(model, "X", rows) for rows in given], [model] * len(given))
    for rows, reply in zip(given, await runner.run(job), strict=True):
        assert (outputs(reply)["Y"] == 2 * rows + 1).all()


def rows_of(rng: Random, count: int) -> Any:
    return np.array([[rng.randrange(1 << 20)] * 16 for _ in range(count)], "f4")


@pytest.mark.parametrize("kind", ["http", "auto"])
async def test_many_jobs_at_once(own_triton: TritonServer, kind: str) -> None:
    async with serving(own_triton.url, kind) as (runner, wire):
        assert runner.name == ("http" if kind == "http" else "system_shared_memory")
        rng = Random(1)
        for _ in range(20):
            jobs = [
                ask(runner, "elementwise", *(rows_of(rng, rng.randint(1, 3)) for _ in range(5)))
                for _ in range(4)
            ]
            await asyncio.gather(*jobs)
        assert wire.once == (0 if kind == "http" else 80)
        if kind == "auto":
            assert await wire.regions() == files()
            assert shared(runner).slots.down == 0
    wire = Wire(own_triton.url)
    assert await wire.regions() == []
    await wire.session.close()


@pytest.mark.parametrize("kind", ["http", "system_shared_memory"])
async def test_padding_never_reaches_a_caller(own_triton: TritonServer, kind: str) -> None:
    async with serving(own_triton.url, kind) as (runner, _):
        for _ in range(3):  # The second time the outputs have their place in the region.
            given = [np.full((count, length), count * 10 + length, "f4")
                     for count, length in ((1, 3), (2, 7), (1, 1))]  # fmt: skip
            job = Job([call("masked", "VALUES", rows) for rows in given], ["masked"] * 3)
            for rows, reply in zip(given, await runner.run(job), strict=True):
                found = outputs(reply)
                assert (found["DOUBLED"] == 2 * rows).all()
                assert found["DOUBLED"].shape == rows.shape
                assert (found["SUM"][:, 0] == rows.sum(axis=1)).all()
            assert job.padding > 0
            if kind != "http":
                await shared(runner).models.asked()


async def test_a_job_given_up_is_written_elsewhere(own_triton: TritonServer) -> None:
    async with serving(own_triton.url, "system_shared_memory", slots=1) as (runner, wire):
        rng = Random(2)
        await ask(runner, "slow", rows_of(rng, 1))
        await shared(runner).models.asked()
        (old,) = await wire.regions()
        task = asyncio.create_task(ask(runner, "slow", rows_of(rng, 1)))
        await asyncio.sleep(0.1)  # On its way; if it were not, the test would only be weaker.
        task.cancel()
        await asyncio.wait([task])
        async with asyncio.timeout(60):
            while shared(runner).slots.down:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            for _ in range(5):
                await ask(runner, "elementwise", rows_of(rng, 2))
            while old in await wire.regions():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert len(await wire.regions()) == 1
        assert await wire.regions() == files()


async def test_closing_while_a_region_is_in_use(
    own_triton: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots_module, "FAREWELL", 30.0)
    async with serving(own_triton.url, "system_shared_memory", slots=1) as (runner, wire):
        task = asyncio.create_task(ask(runner, "slow", rows_of(Random(3), 1)))
        async with asyncio.timeout(60):
            while not wire.once:  # noqa: ASYNC110
                await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait([task])
    wire = Wire(own_triton.url)
    assert await wire.regions() == []
    await wire.session.close()


async def test_a_failure_is_the_servers_own(own_triton: TritonServer) -> None:
    async with serving(own_triton.url, "system_shared_memory") as (runner, _):
        with pytest.raises(FailedError) as failed:
            await ask(runner, "elementwise", np.zeros((1, 3), "f4"))
        assert failed.value.answer.status == 400
        with pytest.raises(FailedError) as failed:
            await ask(runner, "nothing_of_the_kind", np.zeros((1, 16), "f4"))
        assert failed.value.answer.status == 404
        assert shared(runner).slots.down == 0


async def test_what_a_crash_left_is_cleared_away(own_triton: TritonServer) -> None:
    wire = Wire(own_triton.url)
    region = SystemRegions(0).make(4096)
    path = f"/v2/systemsharedmemory/region/{region.name}/register"
    assert (await wire.control("POST", path, region.registration))[0] == 200
    region.held = True
    region.close()  # As the end of a process does it: the file stays, the lock goes.
    assert files() == await wire.regions() == [region.name]
    async with serving(own_triton.url, "system_shared_memory"):
        assert region.name not in await wire.regions()
        assert region.name not in files()
    await wire.session.close()


async def test_killed_and_restarted_under_load(own_triton: TritonServer) -> None:
    server = TritonServer([elementwise(per_call=0.002)])
    await server.start()
    rng = Random(4)
    try:
        async with serving(server.url, "system_shared_memory") as (runner, wire):
            ended = False
            failures = answers = 0

            async def caller() -> None:
                nonlocal failures, answers
                while not ended:
                    try:
                        await ask(runner, "elementwise", rows_of(rng, 2), rows_of(rng, 1))
                        answers += 1
                    except (NoAnswerError, FailedError):
                        failures += 1
                        await asyncio.sleep(0.01)

            callers = [asyncio.create_task(caller()) for _ in range(4)]
            for _ in range(2):
                async with asyncio.timeout(60):
                    before = answers
                    while answers < before + 50:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                await server.kill()
                await server.restart()
            async with asyncio.timeout(60):
                before = answers
                while answers < before + 50 or shared(runner).slots.down:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                once = wire.once
                while wire.once < once + 20:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            ended = True
            await asyncio.gather(*callers)
            assert failures
            assert await wire.regions() == files()
    finally:
        await server.stop()
