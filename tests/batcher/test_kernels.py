"""Kernels, their references, and the copies of the host, array by array.

There is no GPU here. The CUDA source is compiled for the processor where there is a compiler (see
``fake_cupy``), so its arithmetic is tested as it stands; that it is also right CUDA, and fast,
only ``loadtests.gpu_check`` can tell.
"""

from __future__ import annotations

import itertools
from math import prod
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_batcher import hostcopy, kernels
from gpu_batcher.api import SIZES, Tensor
from gpu_batcher.grid import Grid
from gpu_batcher.layout import make
from gpu_batcher.packing import Packing, Rule, element
from loadtests.gpu_cases import GUARD, UNTOUCHED, pieces_of, random_grid, staged
from tests.batcher.batches import calls_of
from tests.batcher.fake_cupy import COMPILER, FakeCupy, Memory, Stream, at

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
grids = st.builds(
    lambda seed, itemsize: random_grid(Random(seed), itemsize),
    st.integers(0, 2**32),
    st.sampled_from(kernels.ITEMSIZES),
)


def model(grid: Grid, pieces: list[bytes]) -> bytes:
    """The padded array, element by element."""
    size, (_, *inner) = len(grid.blank), grid.dims
    found = []
    for data, (_, count, *own) in zip(pieces, grid.boxes, strict=True):
        gaps = [d - s if grid.left else 0 for d, s in zip(inner, own, strict=True)]
        for row, *index in itertools.product(range(count), *map(range, inner)):
            place = row
            inside = True
            for i, gap, extent in zip(index, gaps, own, strict=True):
                inside = inside and 0 <= i - gap < extent
                place = place * extent + i - gap
            real = (data[place * size : (place + 1) * size]) if data else grid.one
            found.append(real if inside else grid.blank)
    return b"".join(found)


# -- references and copies of the host ---------------------------------------------------------


@given(grids, st.booleans())
def test_references_and_copies_do_as_the_model_does(grid: Grid, mask: bool) -> None:
    pieces = pieces_of(Random(1), grid)
    if mask:
        grid.one = b"\x01" * len(grid.blank)
    wanted = model(grid, [b""] * len(pieces) if mask else pieces)
    for write in (hostcopy.write_runs, kernels.pack_reference):
        area = bytearray(b"\xee" * len(wanted))
        if wanted:
            write([] if mask else pieces, memoryview(area), grid)
        assert bytes(area) == wanted, write
    if not mask:
        assert kernels.unpack_reference(wanted, grid) == pieces
        assert list(map(bytes, hostcopy.read(memoryview(wanted), grid))) == pieces
        if wanted:
            assert list(map(bytes, hostcopy.read_runs(memoryview(wanted), grid))) == pieces
        with pytest.raises(ValueError, match="elements of"):
            hostcopy.read(memoryview(wanted + b"."), grid)


def test_dimensions_without_elements_may_be_of_any_length() -> None:
    huge = 10**12
    for grid in (
        Grid((1, huge, 0, 5), [(0, 1, huge, 0, 4)], b"\0"),
        Grid((huge, 1, 0, 2), [(0, huge, 1, 0, 1)], b"\0"),
    ):
        assert hostcopy.read(memoryview(b""), grid) == [b""]


def test_many_short_runs_go_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    packing = Packing(rules={"x": Rule((1,))})
    memory = memoryview(bytearray(1 << 16))
    for module, names in (
        (hostcopy, ("write_runs", "read_runs")),
        (kernels, ("pack_reference", "unpack_reference")),
    ):
        for name in names:
            real = getattr(module, name)

            def spy(*arguments: Any, name: str = name, real: Any = real) -> Any:
                used.append(name)
                return real(*arguments)

            monkeypatch.setattr(module, name, spy)
    for rows in (1, hostcopy.MANY + 1):
        calls = calls_of([(rows, 1), (rows, 2)])
        (entry,) = make(calls, packing, 1 << 16).entries
        hostcopy.write(memory, entry)
        assert entry.grid is not None
        found = hostcopy.read(memory[: entry.size], entry.grid)
        assert [bytes(each) for each in found] == [each.inputs[0].data for each in calls]
    assert used == ["write_runs", "read_runs", "pack_reference", "unpack_reference"]


@pytest.mark.parametrize("datatype", [name for name, size in SIZES.items() if size])
def test_arrays_have_the_datatype(datatype: str) -> None:
    one = element(datatype, 1)
    array = hostcopy.view(Tensor("x", datatype, (2, 1), one + bytes(len(one))))
    assert array.itemsize == SIZES[datatype]
    assert array.tolist() == [[16256 if datatype == "BF16" else 1], [0]]  # BF16: its bits.


# -- the CUDA source, on the processor ---------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> kernels.Kernels:
    return kernels.Kernels(FakeCupy(tmp_path_factory.mktemp("kernels")))


def on_fake_device(array: Any) -> tuple[Memory, Any]:
    """A copy where addresses are aligned as they are on a GPU, with a guard behind it."""
    memory = Memory(len(array) + GUARD)
    view = at(memory.ptr, len(array) + GUARD)
    view[: len(array)] = array
    view[len(array) :] = UNTOUCHED
    return memory, view


def same_as_reference(compiled: kernels.Kernels, grid: Grid, what: str) -> None:
    pieces = pieces_of(Random(1), grid)
    table, raw = staged(grid, pieces, 0 if what == "unpack" else UNTOUCHED)
    packed = np.full(prod(grid.dims) * len(grid.blank), UNTOUCHED, np.uint8)
    kernels.pack_reference([] if grid.one else pieces, packed.data, grid)
    given = (np.full_like(raw, UNTOUCHED), packed) if what == "unpack" else (raw, packed ^ 255)
    (raw_memory, raw_view), (packed_memory, packed_view) = map(on_fake_device, given)
    table_memory, _ = on_fake_device(table.view(np.uint8).reshape(-1))
    with Stream() as stream:
        if what == "pack":
            compiled.pack(raw_memory.ptr, packed_memory.ptr, table_memory.ptr, grid)
        else:
            compiled.unpack(packed_memory.ptr, raw_memory.ptr, table_memory.ptr, grid, len(raw))
        stream.synchronize()
    guard = bytes([UNTOUCHED]) * GUARD
    assert raw_view.tobytes() == raw.tobytes() + guard
    assert packed_view.tobytes() == packed.tobytes() + guard


@needs_compiler
@settings(max_examples=300)
@given(grids, st.sampled_from(["pack", "mask", "unpack"]))
def test_the_kernels_leave_the_same_bytes_as_their_references(
    compiled: kernels.Kernels, grid: Grid, what: str
) -> None:
    if what == "mask":
        grid.one, what = b"\x01" * len(grid.blank), "pack"
    same_as_reference(compiled, grid, what)


@needs_compiler
@pytest.mark.parametrize("what", ["pack", "unpack"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("lengths", [(16, 12, 8), (16, 13, 1), (5000, 4096, 0), (1, 1, 1)])
def test_rows_of_whole_and_of_broken_vectors(
    compiled: kernels.Kernels, what: str, left: bool, lengths: tuple[int, ...]
) -> None:
    boxes = [(row, 1, 1, 1, length) for row, length in enumerate(lengths)]
    for width in (max(lengths), max(lengths) + 1):
        grid = Grid((len(lengths), 1, 1, width), boxes, b"\x01\x02\x03\x04", left)
        same_as_reference(compiled, grid, what)
