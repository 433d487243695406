"""Kernels, their references, the copies of the host, and both devices with whole batches.

There is no GPU here. The CUDA source is compiled for the processor where there is a compiler (see
``fake_cupy``), so its arithmetic is tested as it stands; that it is also right CUDA, and fast,
only ``loadtests.gpu_check`` can tell.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

np = pytest.importorskip("numpy")

from gpu_batcher import device as devices  # noqa: E402
from gpu_batcher import hostcopy, kernels  # noqa: E402
from gpu_batcher.api import Call, Tensor  # noqa: E402
from gpu_batcher.buffers import Lease, LeaseError, Pool  # noqa: E402
from gpu_batcher.device import CupyDevice, DeviceError, HostDevice, open_device  # noqa: E402
from gpu_batcher.grid import DoesNotFitError, Grid, Region, following  # noqa: E402
from gpu_batcher.layout import make  # noqa: E402
from gpu_batcher.packing import Extra, Packing, Rule  # noqa: E402
from gpu_batcher.staging import CHUNK, Stager, portions  # noqa: E402
from loadtests.gpu_cases import GUARD, UNTOUCHED, random_grid  # noqa: E402
from tests.batcher.batches import call, calls_of, expected, padded_batches, tensor  # noqa: E402
from tests.batcher.fake_cupy import COMPILER, FakeCupy, Memory, Stream, _at  # noqa: E402

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


def pieces_of(grid: Grid, seed: int = 1) -> list[bytes]:
    rng = Random(seed)
    return [rng.randbytes(prod(box[1:]) * len(grid.blank)) for box in grid.boxes]


def staged(grid: Grid, pieces: list[bytes]) -> tuple[Any, Any]:
    """The table, and the pieces where it says, with rubbish between."""
    table, size = kernels.table(grid.boxes, len(grid.blank))
    raw = np.full(size, UNTOUCHED, np.uint8)
    for row, piece in zip(table.tolist(), pieces, strict=True):
        begin = row[-1] * 16
        raw[begin : begin + len(piece)] = np.frombuffer(piece, np.uint8)
    return table, raw


# -- references and copies of the host ---------------------------------------------------------


@given(grids)
def test_the_reference_packs_as_the_model_does(grid: Grid) -> None:
    pieces = pieces_of(grid)
    table, raw = staged(grid, pieces)
    wanted = model(grid, pieces)
    packed = np.full(len(wanted) + GUARD, UNTOUCHED, np.uint8)
    kernels.pack_reference(raw, packed, table, grid)
    assert packed.tobytes() == wanted + bytes([UNTOUCHED]) * GUARD


@given(grids)
def test_the_reference_unpacks_what_it_packed(grid: Grid) -> None:
    pieces = pieces_of(grid)
    table, raw = staged(grid, pieces)
    packed = np.frombuffer(model(grid, pieces), np.uint8)
    back = np.full(len(raw) + GUARD, UNTOUCHED, np.uint8)
    kernels.unpack_reference(packed, back, table, grid, len(raw))
    filled = b"".join(piece + bytes(-len(piece) % 16) for piece in pieces)
    assert back.tobytes() == filled + bytes([UNTOUCHED]) * GUARD


@given(grids, st.booleans())
def test_the_host_writes_and_reads_as_the_model_does(grid: Grid, mask: bool) -> None:
    pieces = pieces_of(grid)
    if mask:
        grid.one = b"\x01" * len(grid.blank)
    wanted = model(grid, [b""] * len(pieces) if mask else pieces)
    for write in (hostcopy.write_runs, hostcopy.write_blocks):
        area = bytearray(b"\xee" * len(wanted))
        if wanted:
            write(memoryview(area), [] if mask else pieces, grid)
        assert bytes(area) == wanted, write
    if not mask:
        found = hostcopy.read(memoryview(wanted), grid)
        assert list(map(bytes, found)) == pieces
        with pytest.raises(ValueError, match="elements of"):
            hostcopy.read(memoryview(wanted + b"."), grid)


# -- the CUDA source, on the processor ---------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def compiled(directory: Path) -> kernels.Kernels:
    return kernels.Kernels(FakeCupy(directory))


def on_fake_device(array: Any) -> tuple[Memory, Any]:
    """A copy where addresses are aligned as they are on a GPU, with a guard behind it."""
    memory = Memory(len(array) + GUARD)
    view = _at(memory.ptr, len(array) + GUARD)
    view[: len(array)] = array
    view[len(array) :] = UNTOUCHED
    return memory, view


def same_as_reference(compiled: kernels.Kernels, grid: Grid, what: str) -> None:
    pieces = pieces_of(grid)
    table, raw = staged(grid, pieces)
    full = np.frombuffer(model(grid, pieces), np.uint8)
    packed = np.full(len(full), UNTOUCHED, np.uint8) if what == "pack" else full.copy()
    (raw_memory, raw_view), (packed_memory, packed_view) = map(on_fake_device, (raw, packed))
    table_memory, _ = on_fake_device(table.view(np.uint8).reshape(-1))
    with Stream() as stream:
        if what == "pack":
            compiled.pack(raw_memory.ptr, packed_memory.ptr, table_memory.ptr, grid)
            kernels.pack_reference(raw, packed, table, grid)
        else:
            compiled.unpack(packed_memory.ptr, raw_memory.ptr, table_memory.ptr, grid, len(raw))
            kernels.unpack_reference(packed, raw, table, grid, len(raw))
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


# -- devices -----------------------------------------------------------------------------------


def cupy_device(
    monkeypatch: pytest.MonkeyPatch, directory: Path | None, copiers: int = 1
) -> CupyDevice:
    cupy = FakeCupy(directory)
    real = devices.import_module
    monkeypatch.setattr(devices, "import_module", lambda n: cupy if n == "cupy" else real(n))
    return CupyDevice(0, copiers)


@pytest.fixture(params=["host", "references", pytest.param("kernels", marks=needs_compiler)])
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> Iterator[HostDevice | CupyDevice]:
    made: HostDevice | CupyDevice = HostDevice()
    if request.param != "host":
        made = cupy_device(monkeypatch, directory if request.param == "kernels" else None)
    yield made
    made.close()


def leased(device: Any, size: int = 1 << 20) -> Lease[Any]:
    lease = Pool([device.allocate(size)]).try_lease()
    assert lease is not None
    return lease


def fetched(device: Any, lease: Lease[Any], layout: Any) -> dict[str, bytes]:
    places = [Region(entry.name, entry.offset, entry.size) for entry in layout.entries]
    views = device.fetch(lease, places)
    return {each.name: bytes(view) for each, view in zip(places, views, strict=True)}


# One device serves all examples of a test, so each finds the bytes of those before.
def test_whole_batches(device: Any) -> None:
    lease = leased(device)

    @settings(max_examples=100)
    @given(padded_batches())
    def check(batch: tuple[list[Call], Packing]) -> None:
        calls, packing = batch
        layout = make(calls, packing, lease.buffer.size, lease.buffer.staging)
        packed = device.pack(layout, lease)
        arrays = device.arrays(packed, lease)
        packed.wait()
        assert packed.done
        wanted = expected(calls, packing)
        del wanted["padding"]
        for entry, placed in zip(layout.entries, packed.inputs, strict=True):
            assert arrays[entry.name].shape == entry.shape == placed.tensor.shape
            assert placed.offset == entry.offset
            if device.name == "host" or entry.datatype == "BYTES":
                assert bytes(placed.tensor.data) == wanted[entry.name]
            if entry.datatype != "BYTES":
                assert arrays[entry.name].tobytes() == wanted[entry.name]
        del arrays
        assert fetched(device, lease, layout) == wanted
        entry = layout.entries[0]
        taken = None
        if entry.datatype != "BYTES":
            taken = following(entry, layout.counts, entry.datatype, entry.shape)
        if taken is not None:
            place = Region("x", entry.offset, entry.size)
            own = [bytes(each) for each in device.unpack(lease, place, taken[0])]
            assert own == [bytes(each.inputs[0].data) for each in calls]

    check()
    lease.release()


def test_texts_become_arrays_of_bytes(device: Any) -> None:
    lease = leased(device)
    data = b"\x01\0\0\0a\0\0\0\0\x02\0\0\0bc\x01\0\0\0d"
    layout = make([call(Tensor("x", "BYTES", (2, 2), data))], Packing(), 1 << 20)
    array = device.arrays(device.pack(layout, lease), lease)["x"]
    assert array.tolist() == [[b"a", b""], [b"bc", b"d"]]
    lease.release()


def test_a_batch_that_was_given_up_does_not_reach_the_next(device: Any) -> None:
    """Nobody waits for the first; the second has the buffer at once."""
    lease = leased(device)
    packing = Packing(rules={"x": Rule((1,), mask=Extra("mask"), lengths=Extra("lengths"))})
    rng = Random(1)
    for _ in range(20):
        shapes = [(1, rng.randint(0, 50)) for _ in range(rng.randint(1, 9))]
        calls = [
            call(tensor(rng, "x", "UINT8", shape), tensor(rng, "plain", "INT8", (1, 1)))
            for shape in shapes
        ]
        layout = make(calls, packing, lease.buffer.size, lease.buffer.staging)
        given_up = device.pack(layout, lease)
        again = make(calls[::-1], packing, lease.buffer.size, lease.buffer.staging)
        device.pack(again, lease).wait()
        assert given_up.done
        wanted = expected(calls[::-1], packing)
        del wanted["padding"]
        assert fetched(device, lease, again) == wanted
    lease.release()


def test_a_device_refuses_what_does_not_fit(device: Any) -> None:
    lease = leased(device, 1000)
    size = lease.buffer.size
    large = call(Tensor("x", "UINT8", (1, size + 1), bytes(size + 1)))
    layout = make([large], Packing(), size + 1)
    with pytest.raises(DoesNotFitError):
        device.pack(layout, lease)
    with pytest.raises(DoesNotFitError):
        device.fetch(lease, [Region("x", size, 1)])
    grid = Grid((1, 1, 1, 1), [(0, 1, 1, 1, 1)], b"\0")
    with pytest.raises(DoesNotFitError):
        device.unpack(lease, Region("x", size, 1), grid)
    with pytest.raises(ValueError, match="elements of"):
        device.unpack(lease, Region("x", 0, 2), grid)
    lease.release()
    with pytest.raises(LeaseError):
        device.pack(layout, lease)


def test_buffers_can_be_closed(device: Any) -> None:
    pool = Pool([device.allocate(1000)])
    lease = pool.try_lease()
    assert lease is not None
    device.pack(make(calls_of([(1, 9)]), Packing(), 1000), lease)
    lease.release()
    device.synchronize()
    pool.close()


def test_handles_are_of_whole_allocations(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    device = cupy_device(monkeypatch, None)
    buffer = device.allocate(5)
    assert device.ipc_handle(buffer) == buffer.packed.ptr.to_bytes(64, "little")
    assert buffer.size % devices.BLOCK == 0
    with pytest.raises(DeviceError):
        HostDevice().ipc_handle(None)
    with pytest.raises(DeviceError, match="at most"):
        device.allocate(1 << 31)


def test_the_host_packs_into_memory_of_somebody_elses() -> None:
    memory = bytearray(512)
    lease = Pool([HostDevice().wrap(memoryview(memory))]).try_lease()
    assert lease is not None
    HostDevice().pack(make(calls_of([(1, 2)]), Packing(), 512), lease)
    assert memory[:8] == b"\x01\0\0\0\x02\0\0\0"
    lease.buffer.close()
    memory.append(0)  # Nothing holds on to it.
    lease.release()


def test_without_a_gpu_there_is_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(devices, "import_module", missing)
    assert open_device("host").name == open_device("auto").name == "host"
    with pytest.raises(DeviceError, match="no CUDA here"):
        open_device("cuda")
    cupy = FakeCupy(None)
    cupy.cuda.runtime.devices = 0
    monkeypatch.setattr(devices, "import_module", lambda _: cupy)
    with pytest.raises(DeviceError, match="NoDevice"):
        open_device("cuda")
    cupy.cuda.runtime.devices = 1
    with pytest.raises(DeviceError, match="no GPU 1"):
        open_device("cuda", 1)


def test_kernels_that_do_not_compile_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: FakeCupy, code: str, options: tuple[str, ...]) -> Any:
        raise RuntimeError("NVRTC_ERROR_COMPILATION")

    monkeypatch.setattr(FakeCupy, "RawModule", broken)
    with pytest.raises(DeviceError, match="do not compile"):
        cupy_device(monkeypatch, None)


# -- staging -----------------------------------------------------------------------------------

sizes = st.lists(st.sampled_from([0, 1, 15, 16, 1000, CHUNK - 1, CHUNK, 3 * CHUNK + 5]), max_size=8)


@settings(max_examples=50)
@example([CHUNK - 1, 1000, 3 * CHUNK + 5], 16, 4)
@given(sizes, st.sampled_from([1, 16]), st.sampled_from([1, 4]))
def test_every_portion_is_there_when_it_is_said_to_be(
    lengths: list[int], align: int, copiers: int
) -> None:
    pieces = [Random(number).randbytes(size) for number, size in enumerate(lengths)]
    wanted = bytearray()
    for piece in pieces:
        wanted += bytes(-len(wanted) % align) + piece
    memory = bytearray(len(wanted) + 64)
    stager, reached = Stager(copiers), 0
    for upto in stager.stage(memoryview(memory), pieces, align):
        assert upto > reached
        assert memory[:upto] == wanted[:upto]
        reached = upto
    assert len(wanted) - reached < align
    assert bytes(memory[reached:]) == bytes(len(memory) - reached)
    stager.close()


def test_portions_are_of_about_a_chunk() -> None:
    work = portions([bytes(10 * CHUNK + 1), b"", bytes(3)], 1)
    ends = [reached for _, reached in work]
    assert ends == [*range(CHUNK, 10 * CHUNK + 1, CHUNK), 10 * CHUNK + 4]


def test_threads_stage_large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    device = cupy_device(monkeypatch, None, copiers=3)
    lease = leased(device, 16 << 20)
    rng = Random(1)
    shapes = [(1, rng.randint(1 << 16, 1 << 18)) for _ in range(12)]
    calls = [call(tensor(rng, "x", "FP32", shape)) for shape in shapes]
    size = sum(each.size for each in calls)
    layout = make(calls, Packing("ragged", rules={"x": Rule((1,))}), lease.buffer.size)
    device.pack(layout, lease)
    assert layout.size == size
    assert fetched(device, lease, layout)["x"] == b"".join(each.inputs[0].data for each in calls)
    device.close()
    lease.release()


def run_of(write: Callable[..., None], *arguments: Any) -> None:
    write(*arguments)


def test_many_short_runs_go_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    for name in ("write_runs", "write_blocks"):
        real = getattr(hostcopy, name)
        monkeypatch.setattr(
            hostcopy, name, lambda *a, n=name, r=real: (used.append(n), run_of(r, *a))
        )
    memory = memoryview(bytearray(1 << 16))
    packing = Packing(rules={"x": Rule((1,))})
    for rows in (1, hostcopy.MANY + 1):
        (entry,) = make(calls_of([(rows, 1), (rows, 2)]), packing, 1 << 16).entries
        hostcopy.write(memory, entry)
    monkeypatch.setattr(hostcopy, "numpy", lambda: None)
    hostcopy.write(memory, entry)
    assert used == ["write_runs", "write_blocks", "write_runs"]
    with pytest.raises(RuntimeError, match="numpy"):
        hostcopy.view(Tensor("x", "INT8", (1,), b"."))
