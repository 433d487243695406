"""Kernels against their references, and packing on the GPU against packing on the host.

The cases are random, with a seed that is printed: element sizes of 1, 2, 4 and 8 bytes, one to
three padded axes, both sides, calls without elements, rows of any odd length.
"""

from __future__ import annotations

from math import prod
from random import Random
from typing import Any

import numpy as np

from gpu_batcher import kernels
from gpu_batcher.api import SIZES, Call, Tensor
from gpu_batcher.buffers import Pool
from gpu_batcher.device import CupyDevice, HostDevice
from gpu_batcher.grid import STAGE, Grid, Region, grid_of
from gpu_batcher.layout import make
from gpu_batcher.packing import Extra, Packing, Rule

GUARD = 64
"""Bytes after each array, which must stay as they were."""
UNTOUCHED = 0xA5


def random_grid(rng: Random, itemsize: int, longest: int = 40) -> Grid:
    """A padded array of some shape, and the calls in it. ``longest`` where one axis is padded."""
    calls, padded = rng.randint(1, 9), rng.choice((1, 1, 1, 2, 3))
    counts = [rng.choice((0, 1, 1, 1, 2, 3, 7)) for _ in range(calls)]
    shape, axes, columns = [sum(counts)], [], []
    for _ in range(padded):
        shape += [rng.choice((2, 3))] * (padded < 3 and rng.random() < 0.2)
        axes.append(len(shape))
        most = rng.choice((1, 3, 8, longest if padded == 1 else 12))
        columns.append([rng.randint(0, most) for _ in range(calls)])
        shape.append(max(columns[-1]) + rng.choice((0, 0, 1, 5)))
    shape += [rng.choice((2, 3, 4, 16, 17))] * (padded < 3 and rng.random() < 0.5)
    lengths = list(zip(*columns, strict=True))
    blank = rng.randbytes(itemsize)
    return grid_of(shape, tuple(axes), counts, lengths, blank, rng.random() < 0.5)


def check_kernels(cupy: Any, compiled: kernels.Kernels, cases: int, seed: int) -> dict[str, Any]:
    """``cases`` for each element size. What differs is described, the first ten."""
    rng = Random(seed)
    wrong = []
    checked = 0
    for itemsize in kernels.ITEMSIZES:
        for number in range(cases):
            # Every hundredth is large, so that it takes many blocks of threads.
            grid = random_grid(rng, itemsize, 40 if number % 100 else 20_000)
            for what in ("pack", "mask", "unpack"):
                checked += 1
                grid.one = rng.randbytes(itemsize) if what == "mask" else b""
                if not _same(cupy, compiled, grid, what, rng):
                    wrong.append(f"{what} {itemsize}: {grid.dims} {grid.boxes} left={grid.left}")
    return {"checked": checked, "seed": seed, "wrong": wrong[:10], "ok": not wrong}


def pieces_of(rng: Random, grid: Grid) -> list[bytes]:
    """Each call's own elements."""
    return [rng.randbytes(prod(box[1:]) * len(grid.blank)) for box in grid.boxes]


def staged(grid: Grid, pieces: list[bytes], between: int) -> tuple[Any, Any]:
    """The kernels' table, and the pieces where it says with bytes of ``between`` between them."""
    table, size = kernels.table(grid.boxes, len(grid.blank))
    raw = np.full(size, between, np.uint8)
    for row, piece in zip(table.tolist(), pieces, strict=True):
        begin = row[-1] * STAGE
        raw[begin : begin + len(piece)] = np.frombuffer(piece, np.uint8)
    return table, raw


def guarded(data: Any) -> Any:
    """A copy with ``GUARD`` bytes behind it."""
    return np.concatenate((data, np.full(GUARD, UNTOUCHED, np.uint8)))


def _same(cupy: Any, compiled: kernels.Kernels, grid: Grid, what: str, rng: Random) -> bool:
    pieces = pieces_of(rng, grid)
    table, raw = staged(grid, pieces, 0)
    packed = np.full(prod(grid.dims) * len(grid.blank), UNTOUCHED, np.uint8)
    kernels.pack_reference([] if grid.one else pieces, packed.data, grid)
    given = (np.full_like(raw, UNTOUCHED), packed) if what == "unpack" else (raw, packed ^ 255)
    arrays = [guarded(given[0]), guarded(given[1]), table.view(np.uint8).reshape(-1)]
    on_device = [cupy.asarray(each) for each in arrays]
    raw_at, packed_at, table_at = (int(each.data.ptr) for each in on_device)
    if what == "unpack":
        compiled.unpack(packed_at, raw_at, table_at, grid, raw.size)
    else:
        compiled.pack(raw_at, packed_at, table_at, grid)
    found = [cupy.asnumpy(each) for each in on_device[:2]]
    wanted = (guarded(raw), guarded(packed))
    return all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


PACKINGS = (
    Packing(),
    Packing(rules={"x": Rule(axes=(1,), value=1, mask=Extra("mask"), lengths=Extra("lengths"))}),
    Packing(rules={"x": Rule(axes=(1, 2), side="left", mask=Extra("mask", "BOOL"))}),
    Packing("bucket", (8, 32, 128), {"x": Rule(axes=(1,), value=1)}, Rule(axes=())),
)
RAGGED = Packing(
    "ragged", rules={"x": Rule(axes=(1,), offsets=Extra("offsets", "INT32"))}, default=Rule(axes=())
)


def random_calls(rng: Random, packing: Packing) -> list[Call]:
    """Of one key: "x" varies as the packing allows, "fixed" and "text" do not."""
    datatype = rng.choice([name for name, size in SIZES.items() if size])
    rule = packing.rule("x")
    calls = []
    for _ in range(rng.randint(1, 20)):
        rows = rng.choice((1, 1, 1, 2, 5))
        wide = rng.randint(0, 60) if rule.axes == (1, 2) else 3
        shape = (rows, rng.randint(0, 60), wide)
        text = b"".join(
            len(each).to_bytes(4, "little") + each
            for each in (rng.randbytes(rng.randint(0, 9)) for _ in range(rows * 2))
        )
        inputs = (
            Tensor("x", datatype, shape, rng.randbytes(prod(shape) * SIZES[datatype])),
            Tensor("fixed", "FP32", (rows, 5), rng.randbytes(rows * 20)),
            Tensor("text", "BYTES", (rows, 2), text),
        )
        calls.append(Call("key", rows, sum(len(each.data) for each in inputs), inputs=inputs))
    return calls


def check_devices(device: CupyDevice, batches: int, seed: int) -> dict[str, Any]:
    """Whole batches: every byte of every input as the host packs it, and taken apart again."""
    rng = Random(seed)
    host = HostDevice()
    host_pool, pool = Pool([host.allocate(4 << 20)]), Pool([device.allocate(4 << 20)])
    wrong = []
    for _ in range(batches):
        packing = rng.choice((*PACKINGS, RAGGED))
        calls = random_calls(rng, packing)
        lease, host_lease = pool.try_lease(), host_pool.try_lease()
        assert lease is not None
        assert host_lease is not None
        with lease as buffer, host_lease:
            layout = make(calls, packing, buffer.size, buffer.staging)
            expected = [bytes(each.tensor.data) for each in host.pack(layout, host_lease).inputs]
            device.pack(layout, lease).wait()
            regions = [Region(each.name, each.offset, each.size) for each in layout.entries]
            names = [each.name for each in layout.entries]
            found = [bytes(each) for each in device.fetch(lease, regions)]
            wrong += [n for n, a, b in zip(names, expected, found, strict=True) if a != b]
            for region, entry in zip(regions, layout.entries, strict=True):
                if entry.grid is not None and not entry.grid.one:
                    own = [bytes(each) for each in device.unpack(lease, region, entry.grid)]
                    if own != [bytes(each) for each in entry.pieces]:
                        wrong.append(f"{entry.name} taken apart")
    pool.close()
    host_pool.close()
    return {"checked": batches, "seed": seed, "wrong": wrong[:10], "ok": not wrong}
