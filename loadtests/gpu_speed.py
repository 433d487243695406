"""Bandwidths and overlap of packing on a GPU, each beside the plain copy of the same bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import numpy as np

from gpu_batcher import kernels
from gpu_batcher.api import Call, Tensor
from gpu_batcher.buffers import Lease, Pool
from gpu_batcher.device import CudaBuffer, CupyDevice
from gpu_batcher.grid import Layout, aligned, grid_of
from gpu_batcher.layout import make
from gpu_batcher.packing import Packing, Rule

CALLS, CALL_BYTES = 64, 64 << 10
PACKING = Packing(rules={"x": Rule(axes=(1,))})
WARM_UP = 5
IN_A_ROW = 20
"""Times that ``on_device`` puts the work on the stream for one measurement."""
HEAD_START = 4_000_000
"""Cycles that the GPU is kept busy meanwhile: some milliseconds, and putting takes less."""
SPIN = r"""
extern "C" __global__ void spin(long long cycles) {
    const long long end = clock64() + cycles;
    while (clock64() < end) {}
}
"""


def wall(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of ``work``, which waits for its own end."""
    for _ in range(WARM_UP):
        work()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def on_device(cupy: Any, work: Callable[[], object], repeats: int) -> float:
    """Median seconds of what ``work`` puts on a stream, by the GPU's own clock.

    A launch from Python takes longer than many a kernel. So the GPU is first given something else
    to do, until the work is there many times over, and then does it without a gap.
    """
    stream = cupy.cuda.Stream(non_blocking=True)
    spin = cupy.RawKernel(SPIN, "spin")
    taken: list[float] = []
    with stream:
        for number in range(WARM_UP + repeats):
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            spin((1,), (1,), (np.int64(HEAD_START),))
            begin.record(stream)
            for _ in range(IN_A_ROW):
                work()
            end.record(stream)
            end.synchronize()
            if number >= WARM_UP:
                taken.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3 / IN_A_ROW)
    return statistics.median(taken)


def gigabytes(size: int, seconds: float) -> float:
    return round(size / seconds / 1e9, 2)


def calls_of(rng: Random, lengths: list[int]) -> list[Call]:
    """FP32, one row each, each in memory of its own as a request's body is."""
    made = []
    for length in lengths:
        tensor = Tensor("x", "FP32", (1, length), rng.randbytes(4 * length))
        made.append(Call("key", 1, 4 * length, length, (tensor,)))
    return made


def packing(cupy: Any, index: int, repeats: int, seed: int) -> dict[str, Any]:
    """64 requests of 64 KB from the callers' bytes to packed device memory, wall time; beside it
    one synchronous copy of as many bytes from pinned memory."""
    rng = Random(seed)
    full = CALL_BYTES // 4
    batches = {
        "plain": calls_of(rng, [full] * CALLS),
        "padded": calls_of(rng, [rng.randint(full * 3 // 4, full) for _ in range(CALLS)]),
    }
    figures: dict[str, Any] = {}
    for copiers in (1, 2, 4, 8):
        device = CupyDevice(index, copiers)
        pool = Pool([device.allocate(CALLS * CALL_BYTES + (1 << 20))])
        lease = pool.try_lease()
        assert lease is not None
        with lease as buffer:
            for name, calls in batches.items():
                layout = make(calls, PACKING, buffer.size, buffer.staging)
                size = sum(call.size for call in calls)
                copy = wall(partial(_copy, cupy, buffer, size), repeats)
                pack = wall(partial(_pack, device, layout, lease), repeats)
                figures[f"{name}, copiers {copiers}"] = {
                    "bytes": size,
                    "pack_gb_per_s": gigabytes(size, pack),
                    "pinned_copy_gb_per_s": gigabytes(size, copy),
                    "share": round(copy / pack, 3),
                    "goal": 0.6,
                }
            if copiers == 1:
                figures["without staging"] = _arrival(cupy, buffer, full * 4 * CALLS, repeats)
                figures["staging alone"] = _staging(buffer, batches["plain"], repeats)
        pool.close()
        device.close()
    return figures


def _pack(device: CupyDevice, layout: Layout, lease: Lease[CudaBuffer]) -> None:
    device.pack(layout, lease).wait()


def _copy(cupy: Any, buffer: CudaBuffer, size: int) -> None:
    runtime = cupy.cuda.runtime
    runtime.memcpy(int(buffer.packed.ptr), buffer.host_pointer, size, runtime.memcpyHostToDevice)


def _arrival(cupy: Any, buffer: CudaBuffer, size: int, repeats: int) -> dict[str, Any]:
    """The copy by the GPU's clock: what the bus can do with these bytes."""
    runtime = cupy.cuda.runtime

    def work() -> None:
        target, stream = int(buffer.packed.ptr), cupy.cuda.get_current_stream().ptr
        kind = runtime.memcpyHostToDevice
        runtime.memcpyAsync(target, buffer.host_pointer, size, kind, stream)

    return {"bytes": size, "copy_gb_per_s": gigabytes(size, on_device(cupy, work, repeats))}


def _staging(buffer: CudaBuffer, calls: list[Call], repeats: int) -> dict[str, Any]:
    """The copy from the callers' memory into pinned memory: what one core can do."""
    pieces = [call.inputs[0].data for call in calls]

    def work() -> None:
        at = 0
        for piece in pieces:
            buffer.host[at : at + len(piece)] = piece
            at += len(piece)

    size = sum(map(len, pieces))
    return {"bytes": size, "copy_gb_per_s": gigabytes(size, wall(work, repeats))}


def gathering(cupy: Any, index: int, repeats: int, seed: int, large: int) -> dict[str, Any]:
    """The kernel alone, by the GPU's clock, beside a copy within the device. Both are given in
    bytes read and written."""
    rng = Random(seed)
    figures = {}
    with cupy.cuda.Device(index):
        compiled = kernels.Kernels(cupy)
        for total in (CALLS * CALL_BYTES, large):
            quarter = total // CALLS // 16
            lengths = [rng.randint(quarter * 2, quarter * 4) for _ in range(CALLS)]
            for name, own, width in (
                ("aligned", [each // 4 * 4 for each in lengths], quarter * 4),
                ("odd", [each // 2 * 2 - 1 for each in lengths], quarter * 4 + 1),
            ):
                ones = [1] * CALLS
                grid = grid_of(
                    (CALLS, width), (1,), ones, [(each,) for each in own], bytes(4), False
                )
                figures[f"{total >> 20} MiB, {name}"] = _gather(cupy, compiled, grid, repeats)
    return figures


def _gather(cupy: Any, compiled: kernels.Kernels, grid: Any, repeats: int) -> dict[str, Any]:
    table, staged = kernels.table(grid.boxes, 4)
    written = grid.dims[0] * grid.dims[3] * 4
    read = 4 * sum(box[4] for box in grid.boxes)
    raw, packed = cupy.zeros(staged, np.uint8), cupy.zeros(aligned(written), np.uint8)
    places = cupy.asarray(table)
    runtime = cupy.cuda.runtime
    other = cupy.zeros(aligned(written), np.uint8)

    def gather() -> None:
        compiled.pack(int(raw.data.ptr), int(packed.data.ptr), int(places.data.ptr), grid)

    def copy() -> None:
        stream = cupy.cuda.get_current_stream().ptr
        kind = runtime.memcpyDeviceToDevice
        runtime.memcpyAsync(int(other.data.ptr), int(packed.data.ptr), written, kind, stream)

    cupy.cuda.Device().synchronize()
    gathered, copied = on_device(cupy, gather, repeats), on_device(cupy, copy, repeats)
    mine, plain = gigabytes(read + written, gathered), gigabytes(2 * written, copied)
    return {
        "gather_gb_per_s": mine,
        "device_copy_gb_per_s": plain,
        "share": round(mine / plain, 3),
        "goal": 0.7,
    }


def overlap(cupy: Any, index: int, batches: int, seed: int) -> dict[str, Any]:
    """Batches one after the other, and with two buffers so that one is packed while the other is
    in inference: a kernel of one thread that takes about as long as packing does."""
    device = CupyDevice(index)
    spin = cupy.RawKernel(SPIN, "spin")
    rng = Random(seed)
    size = CALLS * CALL_BYTES
    pool = Pool([device.allocate(size + (1 << 20)) for _ in range(2)])
    leases = [pool.try_lease() for _ in range(2)]
    held: list[Lease[CudaBuffer]] = [lease for lease in leases if lease is not None]
    layout = make(calls_of(rng, [CALL_BYTES // 4] * CALLS), PACKING, size + (1 << 20))
    with cupy.cuda.Device(index):
        inference = cupy.cuda.Stream(non_blocking=True)

        def infer(cycles: int) -> None:
            with inference:
                spin((1,), (1,), (np.int64(cycles),))

        def spun(cycles: int) -> None:
            infer(cycles)
            inference.synchronize()

        packing_s = wall(lambda: device.pack(layout, held[0]).wait(), 50)
        million = wall(lambda: spun(1_000_000), 20)
        cycles = max(1, int(1_000_000 * packing_s / million))
        inference_s = wall(lambda: spun(cycles), 50)
        alone = wall(lambda: _in_turn(device, layout, held[0], spun, cycles, batches), 3) / batches
        both = (
            wall(lambda: _two(cupy, device, layout, held, inference, infer, cycles, batches), 3)
            / batches
        )
    for lease in held:
        lease.release()
    pool.close()
    device.close()
    return {
        "packing_ms": round(packing_s * 1e3, 4),
        "inference_ms": round(inference_s * 1e3, 4),
        "in_turn_ms_per_batch": round(alone * 1e3, 4),
        "overlapped_ms_per_batch": round(both * 1e3, 4),
        "longer_of_the_two_ms": round(max(packing_s, inference_s) * 1e3, 4),
    }


def _in_turn(
    device: CupyDevice,
    layout: Layout,
    lease: Lease[CudaBuffer],
    spun: Callable[[int], None],
    cycles: int,
    batches: int,
) -> None:
    for _ in range(batches):
        device.pack(layout, lease).wait()
        spun(cycles)


def _two(
    cupy: Any,
    device: CupyDevice,
    layout: Layout,
    held: list[Lease[CudaBuffer]],
    inference: Any,
    infer: Callable[[int], None],
    cycles: int,
    batches: int,
) -> None:
    """Each buffer is packed again once the inference that read it has ended."""
    ends: list[Any] = [None, None]
    for number in range(batches):
        which = number % 2
        if ends[which] is not None:
            ends[which].synchronize()
        packed = device.pack(layout, held[which])
        inference.wait_event(packed.event)
        infer(cycles)
        ends[which] = cupy.cuda.Event(block=True, disable_timing=True)
        ends[which].record(inference)
    inference.synchronize()
