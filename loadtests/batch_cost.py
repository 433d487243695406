"""What batching costs inside the process: real codec, plan and runner, no sockets, no server.

    python -m loadtests.batch_cost [--form FORM] [--callers N] [--seconds N] [--profile] [--json]

64 callers on uvloop, each with one request of 1 KB on the way: it is read, checked, submitted,
batched, joined (or packed), and the answer is divided. What answers is a function that has the
bytes ready; what it takes for itself is measured apart and subtracted. Microseconds of CPU per
request, the least and the median of many short runs: on a noisy machine the least is the figure
to tune by.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import pstats
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice

import uvloop

from gateway.clock import LoopClock
from gpu_batcher.api import Job, Message, Reply
from gpu_batcher.buffers import Pool
from gpu_batcher.coalescer import Coalescer
from gpu_batcher.codecs.kserve_v2 import KserveV2
from gpu_batcher.flight import Terms
from gpu_batcher.host import HostDevice
from gpu_batcher.pacing import Bounds
from gpu_batcher.packing import Extra, Packing, Rule
from gpu_batcher.runners import HttpRunner
from loadtests.batch_load import binary_body, json_body

CALLERS = 64
COLUMNS = 256
"""Of FP32: 1 KB."""
RUN = 50
"""Requests of each caller in a run: 3,200 together, about 0.1 s."""
TARGET = b"/v2/models/elementwise/infer"
FORMS = ("binary", "ids", "json", "padded")
"""``ids``: binary, and every request has an id of its own, as far as clients give any, so that no
two have the same JSON. ``padded``: binary, but the rows are of two lengths, and the model wants a
mask."""
_BUFFER = 1 << 20


class Answering:
    """A ``Send`` that has an answer ready for each number of rows: an output of zeros with
    ``COLUMNS`` columns."""

    def __init__(self) -> None:
        self._ready: dict[int, Message] = {}
        self.sent = 0

    async def __call__(self, message: Message, job: Job, *, once: bool = False) -> Message:
        self.sent += 1
        rows = len(job.calls)
        answer = self._ready.get(rows)
        if answer is None:
            answer = self._ready[rows] = self._made(rows)
        return answer

    def _made(self, rows: int) -> Message:
        data = bytes(4 * COLUMNS * rows)
        output = {"name": "Y", "datatype": "FP32", "shape": [rows, COLUMNS]}
        fields = {"model_name": "elementwise", "model_version": "1", "outputs": [
            {**output, "parameters": {"binary_data_size": len(data)}}
        ]}  # fmt: skip
        text = json.dumps(fields).encode()
        return Message([text + data], {b"inference-header-content-length": b"%d" % len(text)})


@dataclass
class Cost:
    """``least`` and ``median`` in microseconds per request, ``seam`` already subtracted."""

    least: float
    median: float
    seam: float
    rows_per_batch: float
    requests: int


@dataclass
class Work:
    """64 callers of one form, and what they call."""

    codec: KserveV2
    packing: Packing
    coalescer: Coalescer
    clock: LoopClock
    answering: Answering
    bodies: Sequence[Sequence[tuple[Mapping[bytes, bytes], bytes]]]
    """Of each caller, one after the other, again and again."""
    last: Reply | None = field(default=None)

    async def run(self, each: int) -> float:
        """CPU microseconds per request of ``each`` requests from every caller, the seam's share
        included."""
        began = time.process_time()
        callers = len(self.bodies)
        await asyncio.gather(*(self._caller(place, each) for place in range(callers)))
        return (time.process_time() - began) / (each * callers) * 1e6

    async def _caller(self, place: int, count: int) -> None:
        """What ``gateway.batching`` does for each request, without the exchange."""
        codec, packing, submit, clock = self.codec, self.packing, self.coalescer.submit, self.clock
        for head, body in islice(cycle(self.bodies[place]), count):
            call = codec.read(TARGET, head, memoryview(body))
            assert call is not None
            packing.check(call)
            terms = Terms(place, bytes, (b"host", False), 1, 0, clock.now() + 60.0)
            self.last = await submit(call, terms)

    async def seam(self) -> float:
        """What ``Answering`` takes for one batch, microseconds."""
        job = Job([None] * len(self.bodies), ())  # type: ignore[list-item]
        message, count = Message([b""]), 20_000
        began = time.process_time()
        for _ in range(count):
            await self.answering(message, job)
        return (time.process_time() - began) / count * 1e6


def work(form: str, callers: int = CALLERS) -> Work:
    padded = form == "padded"
    axes = {"X": (1,)} if padded else {}
    codec = KserveV2(axes)
    packing = Packing(rules={"X": Rule((1,), mask=Extra("MASK", "BOOL"))} if padded else {})
    device = HostDevice()
    pool = Pool([device.allocate(_BUFFER) for _ in range(2)])
    answering = Answering()
    runner = HttpRunner(codec, packing, pool, device, answering)
    clock = LoopClock(asyncio.get_running_loop(), time.monotonic)
    bodies = [_bodies(form, place) for place in range(callers)]
    return Work(codec, packing, Coalescer(runner, Bounds(), clock), clock, answering, bodies)


def _bodies(form: str, place: int) -> list[tuple[Mapping[bytes, bytes], bytes]]:
    """What one caller sends."""
    columns = COLUMNS - 16 * (place % 2) if form == "padded" else COLUMNS
    values = tuple(place + n / 7 for n in range(columns))
    if form == "json":
        sent = [json_body(values)]
    elif form == "ids":
        sent = [binary_body(values, own_id=f"{place}-{turn}") for turn in range(RUN)]
    else:
        sent = [binary_body(values)]
    return [
        ({name.lower().encode(): value.encode() for name, value in each.head.items()}, each.data)
        for each in sent
    ]


async def measure(
    form: str, seconds: float, *, callers: int = CALLERS, profile: bool = False
) -> Cost:
    """Runs for about ``seconds``, three runs at least. With ``profile`` cProfile's table of one
    more such time goes to stdout."""
    does = work(form, callers)
    await does.run(RUN // 5)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)  # as gateway/server.py has it
    if profile:
        await _profiled(does, seconds)
    counts, sent = does.coalescer.counts, does.answering.sent
    calls = counts.calls
    runs: list[float] = []
    until = time.monotonic() + seconds
    while len(runs) < 3 or time.monotonic() < until:
        runs.append(await does.run(RUN))
    rows = (counts.calls - calls) / (does.answering.sent - sent)
    seam = await does.seam() / rows
    requests = counts.calls - calls
    await does.coalescer.close()
    assert does.last is not None
    assert does.last.status == 200
    return Cost(min(runs) - seam, statistics.median(runs) - seam, seam, rows, requests)


async def _profiled(does: Work, seconds: float) -> None:
    profiler = cProfile.Profile()
    until = time.monotonic() + seconds
    profiler.enable()
    while time.monotonic() < until:
        await does.run(RUN)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(40)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.batch_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--form", choices=FORMS, default="binary")
    parser.add_argument("--callers", type=int, default=CALLERS, help="and rows in a batch")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--profile", action="store_true", help="cProfile's table as well")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    cost = uvloop.run(
        measure(options.form, options.seconds, callers=options.callers, profile=options.profile)
    )
    if options.json:
        print(json.dumps(asdict(cost)))
        return
    print(
        f"{options.form}: {cost.least:.1f} us per request (median {cost.median:.1f}, "
        f"{cost.rows_per_batch:.1f} rows a batch, {cost.requests:,} requests; "
        f"{cost.seam:.2f} us for the seam are subtracted)"
    )


if __name__ == "__main__":
    main()
