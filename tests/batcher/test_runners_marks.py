"""Every row that a caller gets carries its own mark, whatever happens meanwhile: calls given up,
failures, requests that go on without a client, restarts, servers that write late.

Each value of a request is a number that no other request has, so the rows of a reply tell whose
they are.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_batcher.api import BadAnswerError, FailedError, Job, NoAnswerError
from gpu_batcher.buffers import Pool
from gpu_batcher.codecs.kserve_v2 import KserveV2
from gpu_batcher.device import CupyDevice, HostDevice
from gpu_batcher.packing import Packing, Rule
from gpu_batcher.runners import HttpRunner
from gpu_batcher.shared_memory import CudaRegions, Regions, SystemRegions
from gpu_batcher.shared_runner import SharedMemoryRunner
from tests.batcher.fake_cupy import FakeCupy
from tests.batcher.shared_server import POISON, Server, answered, binary, twice

CODEC = KserveV2({"x": (1,)})
PACKING = Packing("pad", rules={"x": Rule((1,))})
FOLLOWS = {"y": "x"}


class Crowd:
    """Jobs and mishaps in an order that ``rng`` gives."""

    def __init__(self, server: Server, runner: SharedMemoryRunner, rng: Random) -> None:
        self.server, self.runner, self.rng = server, runner, rng
        self.next = 1
        self.answered = 0
        self.jobs: dict[asyncio.Task[Any], list[list[list[int]]]] = {}
        self.gates: list[asyncio.Event] = []

    def rows(self) -> list[list[int]]:
        count, length = self.rng.randint(1, 6), self.rng.randint(1, 12)
        rows = []
        for _ in range(count):
            rows.append(list(range(self.next, self.next + length)))
            self.next += length
        return rows

    def start(self) -> None:
        given = [self.rows() for _ in range(self.rng.randint(1, 4))]
        if self.rng.random() < 0.1:
            given[0][0][0] = POISON
        job = Job([binary(CODEC, rows) for rows in given], [None] * len(given))
        self.jobs[asyncio.create_task(self.runner.run(job))] = given

    def check(self) -> None:
        for task in [task for task in self.jobs if task.done()]:
            given = self.jobs.pop(task)
            if task.cancelled():
                continue
            error = task.exception()
            if error is None:
                assert [answered(each) for each in task.result()] == [twice(own) for own in given]
                self.answered += 1
                continue
            assert isinstance(error, (FailedError, NoAnswerError, BadAnswerError)), error
            if isinstance(error, FailedError) and error.answer.status == 400:
                assert given[0][0][0] == POISON
                assert b"tailrace-" not in error.answer.joined()

    def step(self) -> None:
        server, rng = self.server, self.rng
        what = rng.randrange(20)
        if what < 10:
            # Each mishap lasts a while and is over before most of the others.
            server.up = server.up or rng.random() < 0.5
            server.fault = server.fault if rng.random() < 0.5 else None
            self.start()
        elif what in (10, 11) and self.jobs:
            rng.choice(list(self.jobs)).cancel()
        elif what == 12:
            server.restart()
        elif what == 13:
            server.haunt()
        elif what == 14:
            server.up = not server.up
        elif what == 15:
            server.fault = rng.choice([None, (504, b""), (500, b'{"error":"x"}'), (200, b"?")])
        elif what == 16:
            server.shape = rng.choice([[-1], [2], [1]])
            server.shared = rng.random() < 0.9
            server.defers = rng.random() < 0.5
        elif server.gate is None:
            server.gate = asyncio.Event()
            self.gates.append(server.gate)
        else:
            server.gate.set()
            server.gate = None

    async def settle(self) -> None:
        """The mishaps are over: everything has to work again."""
        server = self.server
        server.up = server.shared = True
        server.gate = server.fault = None
        for gate in self.gates:
            gate.set()
        server.haunt()
        if self.jobs:
            await asyncio.wait(self.jobs)
        self.check()
        server.haunt()
        async with asyncio.timeout(60):
            while self.runner.slots.down:  # noqa: ASYNC110 - of a loop without timers
                await asyncio.sleep(0)
        self.start()
        await asyncio.wait(self.jobs)
        self.check()


async def soon(_: float) -> None:
    await asyncio.sleep(0)


async def live(
    directory: Path, seed: int, steps: int, regions: Regions | None = None, slots: int = 2
) -> int:
    rng = Random(seed)
    server = Server(directory)
    server.shape = [-1]
    server.cuda = regions is not None
    device = HostDevice()
    pool = Pool([device.allocate(2048) for _ in range(4)])
    http = HttpRunner(CODEC, PACKING, pool, device, server.send, FOLLOWS)
    regions = regions or SystemRegions(slots, directory=directory)
    runner = SharedMemoryRunner(
        CODEC,
        PACKING,
        regions,
        server.send,
        server.control,
        http,
        slots=slots,
        inputs=2048,
        outputs=2048,
        follows=FOLLOWS,
        sleep=soon,
    )
    await runner.open()
    crowd = Crowd(server, runner, rng)
    for _ in range(steps):
        crowd.step()
        for _ in range(rng.randrange(8)):
            await asyncio.sleep(0)
        crowd.check()
        assert len(os.listdir(directory)) <= 3 * slots  # noqa: PTH208
    await crowd.settle()
    await runner.close()
    assert not server.regions
    assert not os.listdir(directory)  # noqa: PTH208
    assert pool.in_use == 0
    assert any(server.once)
    return crowd.answered


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 80))
def test_every_row_carries_its_callers_mark(seed: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(live(Path(directory), seed, steps))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_on_a_gpu_as_well(seed: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", FakeCupy(None))
        regions = CudaRegions(CupyDevice(), directory=Path(directory))
        asyncio.run(live(Path(directory), seed, steps, regions, slots=1))


def test_the_crowd_is_served() -> None:
    """The property would hold of a runner that answers nobody."""
    with tempfile.TemporaryDirectory() as directory:
        assert sum(asyncio.run(live(Path(directory), seed, 60)) for seed in range(5)) > 60
