"""hostcopy: packed inputs written to, and padded outputs read from, plain memory.

Slices of a memoryview do most of it: one costs a tenth of a microsecond and one ``memcpy``, which
for a handful of rows is less than it takes to make a NumPy array. Many short runs, where the loop
has to be in C, go by the kernels' references in NumPy, which is loaded then and not before;
``HostDevice`` loads it at start.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from gpu_batcher.api import SIZES, Data, Tensor

if TYPE_CHECKING:
    from gpu_batcher.grid import Entry, Grid

MANY = 16
"""Runs of a call from which on NumPy is faster."""
DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1",
    "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "BF16": "<u2", "FP32": "<f4",
    "FP64": "<f8",
}  # fmt: skip
"""NumPy's names. It has no BF16, so the bits are given as they are."""


def write(memory: memoryview, entry: Entry) -> None:
    """Write an input to its place, every byte of it, so that nothing of an earlier batch stays.
    One copy of each byte; O(runs) besides, where a run is what lies together in a padded row."""
    if not entry.size:
        return
    grid = entry.grid
    if grid is None:
        at = entry.offset
        for piece in entry.pieces:
            end = at + len(piece)
            memory[at:end] = piece
            at = end
        assert at == entry.offset + entry.size
        return
    area = memory[entry.offset : entry.offset + entry.size]
    if _many(grid):
        from gpu_batcher.kernels import pack_reference

        pack_reference(entry.pieces, area, grid)
    else:
        write_runs(entry.pieces, area, grid)


def _many(grid: Grid) -> bool:
    return prod(grid.dims[:3]) > MANY * len(grid.boxes)


def write_runs(pieces: Sequence[Data], area: memoryview, grid: Grid) -> None:
    """Fill ``area``, which is the whole padded array, run by run."""
    d3 = grid.dims[3]
    size = len(grid.blank)
    run, at = d3 * size, 0
    blank = memoryview(grid.blank * d3)
    ones = memoryview(grid.one * d3)
    for index, (_, count, s1, s2, s3) in enumerate(grid.boxes):
        real, taken = s3 * size, 0
        gap = run - real
        before = gap if grid.left else 0
        source = memoryview(pieces[index]) if pieces else ones
        for inside in _inside(grid, count, s1, s2):
            end = at + run
            if inside:
                begin = at + before
                finish = begin + real
                if before:
                    area[at:begin] = blank[:before]
                area[begin:finish] = source[taken : taken + real]
                if gap > before:
                    area[finish:end] = blank[:gap]
                if pieces:
                    taken += real
            else:
                area[at:end] = blank
            at = end
    assert at == len(area)


def read(data: memoryview, grid: Grid) -> list[Data]:
    """Of a padded array each call's own elements, back to back. A view where they lie together,
    otherwise a copy. Raises ValueError if ``data`` is not of the grid's size."""
    size = len(grid.blank)
    if len(data) != prod(grid.dims) * size:
        raise ValueError(f"{len(data)} bytes for {list(grid.dims)} elements of {size}")
    if not data:
        # Dimensions without elements may be of any length, so nothing is to go through them.
        return [b""] * len(grid.boxes)
    if _many(grid):
        from gpu_batcher.kernels import unpack_reference

        return list(unpack_reference(data, grid))
    return read_runs(data, grid)


def read_runs(data: memoryview, grid: Grid) -> list[Data]:
    """``data``, which is the whole padded array and not empty, taken apart run by run."""
    _, d1, d2, d3 = grid.dims
    size = len(grid.blank)
    run, at = d3 * size, 0
    found: list[Data] = []
    for _, count, s1, s2, s3 in grid.boxes:
        if (s1, s2, s3) == (d1, d2, d3):
            end = at + count * d1 * d2 * run
            found.append(data[at:end])
            at = end
            continue
        before = (d3 - s3) * size if grid.left else 0
        runs = []
        for inside in _inside(grid, count, s1, s2):
            if inside:
                runs.append(data[at + before : at + before + s3 * size])
            at += run
        found.append(runs[0] if len(runs) == 1 else b"".join(runs))
    return found


def view(tensor: Tensor) -> Any:
    """A tensor as a NumPy array: its own memory, or for BYTES a new array of ``bytes`` objects."""
    import numpy as np

    if SIZES[tensor.datatype]:
        return np.frombuffer(tensor.data, DTYPES[tensor.datatype]).reshape(tensor.shape)
    data, at = memoryview(tensor.data), 0
    array = np.empty(prod(tensor.shape), dtype=object)
    for index in range(len(array)):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        array[index] = bytes(data[at + 4 : end])
        at = end
    return array.reshape(tensor.shape)


def _inside(grid: Grid, count: int, s1: int, s2: int) -> itertools.chain[bool]:
    """For each run of a call's rows, in order: is it in the call's box?"""
    _, d1, d2, _ = grid.dims
    if d1 == d2 == 1:
        return itertools.chain(itertools.repeat(s1 == s2 == 1, count))
    inner, outer = [True] * s2 + [False] * (d2 - s2), [False] * d2
    if grid.left:
        inner.reverse()
    planes = [inner] * s1 + [outer] * (d1 - s1)
    if grid.left:
        planes.reverse()
    return itertools.chain.from_iterable(itertools.chain.from_iterable([planes] * count))
