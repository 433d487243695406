"""Both devices with whole batches, and what is left of one that failed half-way.

The GPU's part runs on ``fake_cupy``, with the kernels compiled for the processor or with their
references in their place.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings

from gpu_batcher import device as devices
from gpu_batcher.api import Call, Tensor
from gpu_batcher.buffers import Lease, LeaseError, Pool
from gpu_batcher.device import CupyDevice, DeviceError, HostDevice, open_device
from gpu_batcher.grid import DoesNotFitError, Grid, Region, following
from gpu_batcher.layout import make
from gpu_batcher.packing import Extra, Packing, Rule
from tests.batcher.batches import call, calls_of, expected, padded_batches, tensor
from tests.batcher.fake_cupy import COMPILER, CompileException, FakeCupy, Stream

ROOT = Path(__file__).parent.parent.parent
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def cupy_device(
    monkeypatch: pytest.MonkeyPatch, directory: Path | None = None, copiers: int = 1
) -> tuple[CupyDevice, FakeCupy]:
    cupy = FakeCupy(directory)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return CupyDevice(0, copiers), cupy


@pytest.fixture(params=["host", "references", pytest.param("kernels", marks=needs_compiler)])
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> Iterator[HostDevice | CupyDevice]:
    made: HostDevice | CupyDevice = HostDevice()
    if request.param != "host":
        made, _ = cupy_device(monkeypatch, directory if request.param == "kernels" else None)
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
    buffer = device.allocate(1000)
    pool = Pool([buffer])
    lease = pool.try_lease()
    assert lease is not None
    packed = device.pack(make(calls_of([(1, 9)]), Packing(), 1000), lease)
    lease.release()
    pool.close()
    assert packed.done  # Freed memory is nothing to copy to.
    device.synchronize()


def test_a_broken_gpu_does_not_keep_buffers_from_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    device, _ = cupy_device(monkeypatch)
    buffers = [device.allocate(1) for _ in range(2)]

    def broken() -> None:
        raise RuntimeError("cudaErrorIllegalAddress")

    monkeypatch.setattr(buffers[0].stream, "synchronize", broken)
    Pool(buffers).close()
    assert [each.packed for each in buffers] == [None, None]


# -- failures ----------------------------------------------------------------------------------

MIXED = Packing(rules={"x": Rule((1,), mask=Extra("mask"))})


def mixed(rng: Random) -> list[Call]:
    """A padded input and a plain one."""
    return [
        call(tensor(rng, "x", "UINT8", (1, length)), tensor(rng, "plain", "INT8", (1, 100)))
        for length in (rng.randint(1, 50) for _ in range(5))
    ]


@pytest.mark.parametrize("copies", range(3))
def test_a_batch_that_failed_does_not_reach_the_next(
    monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    """What it had put on its stream runs late, as all of the stand-in's work does."""
    device, cupy = cupy_device(monkeypatch)
    pool = Pool([device.allocate(1 << 16)])
    lease = pool.try_lease()
    assert lease is not None
    rng = Random(copies)
    with lease as buffer:
        layout = make(mixed(rng), MIXED, buffer.size, buffer.staging)
        cupy.cuda.runtime.copies = copies
        with pytest.raises(RuntimeError, match="cudaErrorUnknown"):
            device.pack(layout, lease)
    lease = pool.try_lease()
    assert lease is not None
    calls = mixed(rng)
    layout = make(calls, MIXED, lease.buffer.size, lease.buffer.staging)
    device.pack(layout, lease)
    found = fetched(device, lease, layout)
    assert found["plain"] == b"".join(bytes(each.inputs[1].data) for each in calls)
    place, grid = layout.entries[0], layout.entries[0].grid
    assert grid is not None
    own = device.unpack(lease, Region("x", place.offset, place.size), grid)
    assert own == [each.inputs[0].data for each in calls]
    lease.release()


@pytest.mark.parametrize("what", ["fetch", "unpack"])
def test_outputs_that_could_not_be_read_do_not_reach_the_next_batch(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Copies to pinned memory are under way when the call fails: nothing may be staged there
    until they have ended."""
    device, cupy = cupy_device(monkeypatch)
    lease = leased(device, 1 << 16)
    calls = mixed(Random(1))
    layout = make(calls, MIXED, lease.buffer.size, lease.buffer.staging)
    device.pack(layout, lease).wait()
    entry = layout.entries[0]
    assert entry.grid is not None
    place = Region("x", entry.offset, entry.size)
    arguments: Any = ([place, place],) if what == "fetch" else (place, entry.grid)
    cupy.cuda.runtime.copies = 1
    with pytest.raises(RuntimeError, match="cudaErrorUnknown"):
        getattr(device, what)(lease, *arguments)
    again = mixed(Random(2))
    layout = make(again, MIXED, lease.buffer.size, lease.buffer.staging)
    device.pack(layout, lease)
    wanted = b"".join(bytes(each.inputs[1].data) for each in again)
    assert fetched(device, lease, layout)["plain"] == wanted
    lease.release()


def test_outputs_stay_what_they_are_when_more_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them pass through the same pinned memory."""
    device, _ = cupy_device(monkeypatch)
    lease = leased(device)
    packing = Packing(rules={"a": Rule((1,)), "b": Rule((1,))})
    rng = Random(1)
    calls = [
        call(tensor(rng, "a", "UINT8", (1, length)), tensor(rng, "b", "UINT8", (1, length)))
        for length in (3, 70, 20)
    ]
    layout = make(calls, packing, lease.buffer.size, lease.buffer.staging)
    device.pack(layout, lease)
    entries = layout.entries
    places = [Region(each.name, each.offset, each.size) for each in entries]
    (whole,) = device.fetch(lease, places[:1])
    before = bytes(whole)
    apart = [
        device.unpack(lease, place, entry.grid)
        for place, entry in zip(places, entries, strict=True)
        if entry.grid is not None
    ]
    device.fetch(lease, places)
    device.pack(make(calls[::-1], packing, lease.buffer.size), lease).wait()
    lease.release()
    assert whole == before
    assert apart == [[each.inputs[index].data for each in calls] for index in (0, 1)]


def test_a_new_buffer_holds_nothing_of_others(device: Any) -> None:
    lease = leased(device)
    (all_of_it,) = device.fetch(lease, [Region("x", 0, lease.buffer.size)])
    assert not any(all_of_it)
    lease.release()


def test_work_on_arrays_waits_for_the_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here waits, but the stream on which the model works."""
    device, _ = cupy_device(monkeypatch)
    lease = leased(device)
    calls = calls_of([(1, 2), (1, 3)])
    packed = device.pack(make(calls, MIXED, lease.buffer.size, lease.buffer.staging), lease)
    array = device.arrays(packed, lease)["x"]
    assert not packed.done
    Stream.current[-1].synchronize()
    assert packed.done
    assert array.tolist() == [[1, 2, 0], [3, 4, 5]]
    lease.release()


def test_an_output_without_elements_may_be_of_any_length(device: Any) -> None:
    lease = leased(device)
    grid = Grid((2, 10**12, 1, 0), [(0, 1, 10**12, 1, 0), (1, 1, 3, 1, 0)], b"\0")
    assert device.unpack(lease, Region("x", 0, 0), grid) == [b"", b""]
    lease.release()


def test_importing_loads_neither_numpy_nor_cupy() -> None:
    program = (
        "import sys, gpu_batcher.device as d, gpu_batcher.layout as _, gpu_batcher.buffers\n"
        "found = lambda: {'numpy', 'cupy'}.intersection(sys.modules)\n"
        "assert found() == set(); d.open_device('host'); assert found() == {'numpy'}"
    )
    subprocess.run((sys.executable, "-c", program), cwd=ROOT, check=True)


# -- places ------------------------------------------------------------------------------------


def test_handles_are_of_whole_allocations(monkeypatch: pytest.MonkeyPatch) -> None:
    device, _ = cupy_device(monkeypatch)
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


def test_without_a_gpu_there_is_the_host(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with caplog.at_level("INFO", "tailrace"):
        assert open_device("host").name == open_device("auto").name == "host"
    assert caplog.text.count("packed on the host: no CUDA here") == 1
    with pytest.raises(DeviceError, match="no CUDA here"):
        open_device("cuda")
    cupy = FakeCupy(None)
    cupy.cuda.runtime.devices = 0
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(DeviceError, match="NoDevice"):
        open_device("cuda")
    cupy.cuda.runtime.devices = 1
    with pytest.raises(DeviceError, match="no GPU 1"):
        open_device("cuda", 1)


@pytest.mark.parametrize("kind", [CompileException, RuntimeError, ImportError])
def test_kernels_that_do_not_compile_are_a_reason(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def broken(self: FakeCupy, code: str, options: tuple[str, ...]) -> Any:
        raise kind("NVRTC_ERROR_COMPILATION")

    monkeypatch.setattr(FakeCupy, "RawModule", broken)
    with pytest.raises(DeviceError, match="do not compile"):
        cupy_device(monkeypatch)


def test_threads_stage_large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    device, _ = cupy_device(monkeypatch, copiers=3)
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
