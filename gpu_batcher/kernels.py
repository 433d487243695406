"""kernels: padding and unpadding on the GPU, each beside its plain reference in NumPy.

``pack`` gathers the calls of one input from a staging buffer, where they lie one after the other,
into the padded array: one launch, whatever the number of calls. ``unpack`` is the way back. A
kernel and its reference leave the same bytes; ``gpu_check`` compares them on a machine with a GPU,
and the tests compare the references with a model in plain Python on any machine. The references
take each call's bytes by themselves instead of a staging buffer and its table, so they are also
how a host without a GPU pads what has many short runs.

How ``pack`` works: a thread makes 16 bytes of the padded array, so that every store is a whole
vector. It divides to find out which element that is (32-bit: a buffer has at most 2 GiB), and
searches the table of calls for the row (a few steps in cached memory). Where the 16 bytes lie
within a caller's run and the source is aligned as well, one vector load brings them; where they
are padding, none; elements are taken one by one only across the end of a run or from a source
that is not aligned. ``unpack`` is the mirror image, with a thread for 16 bytes of the destination
once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_batcher.grid import BOX, STAGE, Box, Grid

if TYPE_CHECKING:
    import numpy.typing as npt

    from gpu_batcher.api import Data

    Table = npt.NDArray[np.uint32]

ITEMSIZES = (1, 2, 4, 8)
MOST_BYTES = 1 << 31
"""Of a buffer, because elements are counted in 32 bits."""
_THREADS = 256

SOURCE = r"""
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned char byte;

// A call: its first row, its extent in the other dimensions, and where it begins in the staging
// buffer, in units of 16 bytes.
struct Box { u32 first, s1, s2, s3, from; };

template <typename T> union Chunk { uint4 whole; T part[16 / sizeof(T)]; };

__device__ __forceinline__ u32 call_of_row(const Box* boxes, u32 calls, u32 row) {
    u32 low = 0, high = calls;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if (boxes[middle].first <= row) low = middle; else high = middle;
    }
    return low;
}

__device__ __forceinline__ u32 call_of_chunk(const Box* boxes, u32 calls, u32 chunk) {
    u32 low = 0, high = calls;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if (boxes[middle].from <= chunk) low = middle; else high = middle;
    }
    return low;
}

// Below, o1, o2, o3 are where a call's box begins in the padded dimensions. Subtracting them wraps
// around for what lies before the box, so one unsigned comparison tells whether it is inside.

template <typename T>
__device__ __forceinline__ void pack(
    const byte* __restrict__ raw, byte* __restrict__ packed, const Box* __restrict__ boxes,
    u32 calls, u32 rows, u32 d1, u32 d2, u32 d3, u64 blank_bits, u64 one_bits, u32 left,
    u32 constant
) {
    const u32 N = 16 / sizeof(T);
    const T blank = (T)blank_bits, one = (T)one_bits;
    const u32 total = rows * d1 * d2 * d3;
    const u32 chunk = blockIdx.x * blockDim.x + threadIdx.x;
    if (chunk >= (total + N - 1) / N) return;
    const u32 at = chunk * N;
    u32 c3 = at % d3, row = at / d3, c2 = 0, c1 = 0;
    if (d2 > 1) { c2 = row % d2; row /= d2; }
    if (d1 > 1) { c1 = row % d1; row /= d1; }
    u32 call = call_of_row(boxes, calls, row);

    Chunk<T> out;
    bool whole = false;
    if (c3 + N <= d3) {
        const Box box = boxes[call];
        const u32 x1 = c1 - (left ? d1 - box.s1 : 0), x2 = c2 - (left ? d2 - box.s2 : 0);
        const u32 o3 = left ? d3 - box.s3 : 0;
        if (x1 >= box.s1 || x2 >= box.s2 || c3 >= o3 + box.s3 || c3 + N <= o3) {
            for (u32 k = 0; k < N; ++k) out.part[k] = blank;
            whole = true;
        } else if (c3 >= o3 && c3 + N <= o3 + box.s3) {
            if (constant) {
                for (u32 k = 0; k < N; ++k) out.part[k] = one;
            } else {
                const u32 plane = ((row - box.first) * box.s1 + x1) * box.s2 + x2;
                const u32 from = plane * box.s3 + c3 - o3;
                const T* source = (const T*)(raw + (u64)box.from * 16) + from;
                if (from % N == 0) {
                    out.whole = *(const uint4*)source;
                } else {
                    for (u32 k = 0; k < N; ++k) out.part[k] = source[k];
                }
            }
            whole = true;
        }
    }
    if (!whole) {
        for (u32 k = 0; k < N; ++k) {
            out.part[k] = blank;
            if (at + k >= total) continue;
            const Box box = boxes[call];
            const u32 x1 = c1 - (left ? d1 - box.s1 : 0), x2 = c2 - (left ? d2 - box.s2 : 0);
            const u32 x3 = c3 - (left ? d3 - box.s3 : 0);
            if (x1 < box.s1 && x2 < box.s2 && x3 < box.s3) {
                const u32 from = (((row - box.first) * box.s1 + x1) * box.s2 + x2) * box.s3 + x3;
                out.part[k] = constant ? one : ((const T*)(raw + (u64)box.from * 16))[from];
            }
            if (++c3 < d3) continue;
            c3 = 0;
            if (++c2 < d2) continue;
            c2 = 0;
            if (++c1 < d1) continue;
            c1 = 0;
            ++row;
            while (call + 1 < calls && row >= boxes[call + 1].first) ++call;
        }
    }
    if (at + N <= total) {
        ((uint4*)packed)[chunk] = out.whole;
    } else {
        for (u32 k = 0; at + k < total; ++k) ((T*)packed)[at + k] = out.part[k];
    }
}

template <typename T>
__device__ __forceinline__ void unpack(
    const byte* __restrict__ packed, byte* __restrict__ raw, const Box* __restrict__ boxes,
    u32 calls, u32 rows, u32 d1, u32 d2, u32 d3, u32 left, u32 chunks
) {
    const u32 N = 16 / sizeof(T);
    const u32 chunk = blockIdx.x * blockDim.x + threadIdx.x;
    if (chunk >= chunks) return;
    const u32 call = call_of_chunk(boxes, calls, chunk);
    const Box box = boxes[call];
    const u32 next = call + 1 < calls ? boxes[call + 1].first : rows;
    const u32 total = (next - box.first) * box.s1 * box.s2 * box.s3;
    const u32 at = (chunk - box.from) * N;
    if (at >= total) return;
    const u32 o1 = left ? d1 - box.s1 : 0, o2 = left ? d2 - box.s2 : 0, o3 = left ? d3 - box.s3 : 0;
    u32 c3 = at % box.s3, row = at / box.s3;
    u32 c2 = row % box.s2; row /= box.s2;
    u32 c1 = row % box.s1; row /= box.s1;
    row += box.first;

    Chunk<T> out;
    const T* source = (const T*)packed;
    const u32 from = ((row * d1 + c1 + o1) * d2 + c2 + o2) * d3 + c3 + o3;
    if (c3 + N <= box.s3 && from % N == 0) {
        out.whole = *(const uint4*)(source + from);
    } else {
        for (u32 k = 0; k < N; ++k) {
            out.part[k] = 0;
            if (at + k >= total) continue;
            out.part[k] = source[((row * d1 + c1 + o1) * d2 + c2 + o2) * d3 + c3 + o3];
            if (++c3 < box.s3) continue;
            c3 = 0;
            if (++c2 < box.s2) continue;
            c2 = 0;
            if (++c1 < box.s1) continue;
            c1 = 0;
            ++row;
        }
    }
    ((uint4*)raw)[chunk] = out.whole;
}

#define KERNELS(SIZE, T)                                                                          \
    extern "C" __global__ void pack_##SIZE(                                                       \
        const byte* raw, byte* packed, const Box* boxes, u32 calls, u32 rows, u32 d1, u32 d2,     \
        u32 d3, u64 blank, u64 one, u32 left, u32 constant) {                                     \
        pack<T>(raw, packed, boxes, calls, rows, d1, d2, d3, blank, one, left, constant);         \
    }                                                                                             \
    extern "C" __global__ void unpack_##SIZE(                                                     \
        const byte* packed, byte* raw, const Box* boxes, u32 calls, u32 rows, u32 d1, u32 d2,     \
        u32 d3, u32 left, u32 chunks) {                                                           \
        unpack<T>(packed, raw, boxes, calls, rows, d1, d2, d3, left, chunks);                     \
    }

KERNELS(1, unsigned char)
KERNELS(2, unsigned short)
KERNELS(4, u32)
KERNELS(8, u64)
"""


class Kernels:
    """The compiled kernels of the current device. Making it compiles them, which takes a second or
    so unless CuPy's cache has them (``CUPY_CACHE_IN_MEMORY=1`` where it cannot be written).

    ``raw``, ``packed`` and ``table`` are addresses in device memory, multiples of 16; launches go
    to CuPy's current stream and return at once.
    """

    __slots__ = ("_pack", "_unpack")

    def __init__(self, cupy: Any) -> None:
        module = cupy.RawModule(code=SOURCE, options=("--std=c++17",))
        self._pack = {size: module.get_function(f"pack_{size}") for size in ITEMSIZES}
        self._unpack = {size: module.get_function(f"unpack_{size}") for size in ITEMSIZES}

    def pack(self, raw: int, packed: int, table: int, grid: Grid) -> None:
        """``packed`` becomes the padded array; without ``grid.one`` from what lies at ``raw``."""
        size, elements = len(grid.blank), prod(grid.dims)
        if not elements:
            return
        arguments = (
            np.uint64(raw),
            np.uint64(packed),
            np.uint64(table),
            np.uint32(len(grid.boxes)),
            *map(np.uint32, grid.dims),
            np.uint64(int.from_bytes(grid.blank, "little")),
            np.uint64(int.from_bytes(grid.one, "little")),
            np.uint32(grid.left),
            np.uint32(bool(grid.one)),
        )
        self._pack[size]((_blocks(elements * size),), (_THREADS,), arguments)

    def unpack(self, packed: int, raw: int, table: int, grid: Grid, staged: int) -> None:
        """The ``staged`` bytes at ``raw`` become the calls' elements, each call from where the
        table says, with zeros up to the next multiple of 16."""
        if not staged:
            return
        arguments = (
            np.uint64(packed),
            np.uint64(raw),
            np.uint64(table),
            np.uint32(len(grid.boxes)),
            *map(np.uint32, grid.dims),
            np.uint32(grid.left),
            np.uint32(staged // STAGE),
        )
        self._unpack[len(grid.blank)]((_blocks(staged),), (_THREADS,), arguments)


def _blocks(size: int) -> int:
    return -(-size // (STAGE * _THREADS))


def table(boxes: Sequence[Box], itemsize: int) -> tuple[Table, int]:
    """The kernels' table of calls, and how many bytes of staging the calls take."""
    rows, at = [], 0
    for first, count, s1, s2, s3 in boxes:
        rows.append((first, s1, s2, s3, at))
        at += -(-(count * s1 * s2 * s3 * itemsize) // STAGE)
    made = np.array(rows, dtype=np.uint32)
    assert made.nbytes == BOX * len(boxes)
    return made, at * STAGE


def pack_reference(pieces: Sequence[Data], packed: Data, grid: Grid) -> None:
    """What ``Kernels.pack`` does, in NumPy: every byte of ``packed``, from each call's own
    elements, or without ``pieces`` from ``grid.one``. ``HostDevice`` packs by it."""
    kind = f"<u{len(grid.blank)}"
    out = np.frombuffer(packed, kind).reshape(grid.dims)
    out[...] = np.frombuffer(grid.blank, kind)[0]
    for index, (place, shape) in enumerate(_places(grid)):
        if grid.one:
            out[place] = np.frombuffer(grid.one, kind)[0]
        elif prod(shape):
            out[place] = np.frombuffer(pieces[index], kind).reshape(shape)


def unpack_reference(packed: Data, grid: Grid) -> list[bytes]:
    """What ``Kernels.unpack`` does, in NumPy: each call's own elements."""
    padded = np.frombuffer(packed, f"<u{len(grid.blank)}").reshape(grid.dims)
    return [padded[place].tobytes() for place, _ in _places(grid)]


def _places(grid: Grid) -> Iterator[tuple[tuple[slice, ...], tuple[int, ...]]]:
    """Of each call the slices of its box, and their shape."""
    for first, count, *own in grid.boxes:
        gaps = [d - s if grid.left else 0 for d, s in zip(grid.dims[1:], own, strict=True)]
        inner = (slice(gap, gap + s) for gap, s in zip(gaps, own, strict=True))
        yield (slice(first, first + count), *inner), (count, *own)
