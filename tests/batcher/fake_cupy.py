"""A stand-in for CuPy on machines without a GPU: as much of it as ``device`` and ``kernels`` use.

Streams are lazy. What is put on one runs only when something waits for it, in order, and then
with whatever the memory holds by that time; so a missing wait shows as wrong bytes. Kernels are
the real CUDA source, compiled as C++ for the processor and run thread after thread, where there
is a compiler, and otherwise their NumPy references.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
import threading
import weakref
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gpu_batcher import kernels
from gpu_batcher.grid import BOX, STAGE, Grid

COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)

PRELUDE = """
struct alignas(16) uint4 { unsigned int x, y, z, w; };
struct Index { unsigned int x; };
static Index blockIdx, blockDim, threadIdx;
#define __device__
#define __global__
#define __forceinline__ inline
#define __restrict__
"""
LOOP = """
extern "C" void run_{name}(unsigned int blocks, unsigned int threads, {parameters}) {{
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) {name}({names});
}}
"""
HEAD = "const byte* a, byte* b, const Box* c, u32 d, u32 e, u32 f, u32 g, u32 h"
PACK = HEAD + ", u64 i, u64 j, u32 k, u32 l"
UNPACK = HEAD + ", u32 i, u32 j"


@cache
def library(directory: Path) -> ctypes.CDLL:
    """The kernels as functions of this processor."""
    assert COMPILER is not None
    text = PRELUDE + kernels.SOURCE
    for size in kernels.ITEMSIZES:
        for what, parameters in (("pack", PACK), ("unpack", UNPACK)):
            names = ", ".join(each.split()[-1] for each in parameters.split(","))
            text += LOOP.format(name=f"{what}_{size}", parameters=parameters, names=names)
    source, target = directory / "kernels.cpp", directory / "kernels.so"
    source.write_text(text)
    options = ("-std=c++14", "-O1", "-Wall", "-Werror", "-fno-strict-aliasing", "-shared", "-fPIC")
    subprocess.run((COMPILER, *options, "-o", str(target), str(source)), check=True)
    return ctypes.CDLL(os.fspath(target))


def at(pointer: int, size: int) -> Any:
    """The bytes at an address as an array."""
    return np.frombuffer(memoryview((ctypes.c_ubyte * size).from_address(pointer)), np.uint8)


def compiled(directory: Path, name: str) -> Callable[..., None]:
    """A kernel from ``library``, called as CuPy calls one."""
    function = getattr(library(directory), f"run_{name}")
    function.restype = None

    def run(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
        kinds = {4: ctypes.c_uint32, 8: ctypes.c_uint64}
        values = [kinds[each.itemsize](int(each)) for each in arguments]
        function(ctypes.c_uint32(grid[0]), ctypes.c_uint32(block[0]), *values)

    return run


def referred(name: str) -> Callable[..., None]:
    """The reference, called as CuPy calls the kernel."""
    what, _, size = name.partition("_")
    itemsize = int(size)

    def run(_grid: tuple[int], _block: tuple[int], arguments: tuple[Any, ...]) -> None:
        first, second, places, calls, *dims = (int(each) for each in arguments[:8])
        rest = [int(each) for each in arguments[8:]]
        table = at(places, calls * BOX).view(np.uint32).reshape(calls, 5).tolist()
        ends = [row[0] for row in table[1:]] + [dims[0]]
        boxes = [(row[0], end - row[0], *row[1:4]) for row, end in zip(table, ends, strict=True)]
        grid = Grid((dims[0], dims[1], dims[2], dims[3]), boxes, bytes(itemsize))
        total = prod(dims) * itemsize
        starts = [row[4] * STAGE for row in table]
        if what == "pack":
            blank, one, left, constant = rest
            grid.blank, grid.left = blank.to_bytes(itemsize, "little"), bool(left)
            grid.one = one.to_bytes(itemsize, "little") if constant else b""
            sizes = [0 if constant else prod(box[1:]) * itemsize for box in boxes]
            pieces = [at(first + b, n).tobytes() for b, n in zip(starts, sizes, strict=True)]
            kernels.pack_reference(pieces, at(second, total).data, grid)
            return
        left, chunks = rest
        grid.left = bool(left)
        raw = at(second, chunks * STAGE)
        raw[:] = 0
        own = kernels.unpack_reference(at(first, total).data, grid)
        for begin, piece in zip(starts, own, strict=True):
            raw[begin : begin + len(piece)] = np.frombuffer(piece, np.uint8)

    return run


class Stacks(threading.local):
    """The current streams of each thread, as in CUDA: a worker that packs puts nothing on the
    stream of another one."""

    def __init__(self) -> None:
        self.streams: list[Stream] = [Stream()]

    def append(self, stream: Stream) -> None:
        self.streams.append(stream)

    def pop(self) -> None:
        self.streams.pop()

    def __getitem__(self, place: int) -> Stream:
        return self.streams[place]


class Stream:
    """Work in order, done when somebody waits. Whoever drops a stream with its memory drops its
    work too, as nothing of it may run when the memory is gone."""

    current: ClassVar[Stacks]
    running: ClassVar[threading.RLock] = threading.RLock()
    by_pointer: ClassVar[weakref.WeakValueDictionary[int, Stream]] = weakref.WeakValueDictionary()
    pointers: ClassVar[itertools.count[int]] = itertools.count(1)

    def __init__(self, non_blocking: bool = False) -> None:
        self.ptr = next(self.pointers)
        self.by_pointer[self.ptr] = self
        self.work: list[Callable[[], object]] = []
        self.done = 0

    def put(self, work: Callable[[], object]) -> None:
        self.work.append(work)

    def run(self, upto: int) -> None:
        with self.running:  # the compiled kernels have one index for all
            while self.done < upto:
                work = self.work[self.done]
                self.done += 1
                work()

    def synchronize(self) -> None:
        self.run(len(self.work))

    def wait_event(self, event: Event) -> None:
        self.put(event.synchronize)

    def __enter__(self) -> Stream:
        self.current.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.current.pop()


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.stream: Stream | None = None
        self.position = 0

    def record(self, stream: Stream) -> None:
        self.stream, self.position = stream, len(stream.work)

    @property
    def done(self) -> bool:
        return self.stream is None or self.stream.done >= self.position

    def synchronize(self) -> None:
        if self.stream is not None:
            self.stream.run(self.position)


class Memory:
    """Aligned as CUDA's is, and full of rubbish at first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._owner = bytearray(b"\xa5") * (size + 256)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._owner))
        self.ptr = -(-address // 256) * 256


class PinnedMemory:
    def __init__(self, size: int, flags: int = 0) -> None:
        assert flags == 1
        self.size = size


class PinnedMemoryPointer(bytearray):
    def __init__(self, memory: PinnedMemory, offset: int) -> None:
        super().__init__(b"\x5a" * (memory.size - offset))
        self.ptr = ctypes.addressof(ctypes.c_char.from_buffer(self))


class MemoryPointer:
    def __init__(self, memory: Memory, offset: int) -> None:
        self.memory, self.ptr = memory, memory.ptr + offset


class Device:
    def __init__(self, index: int = 0) -> None:
        self.index = index

    def synchronize(self) -> None:
        for stream in list(Stream.by_pointer.values()):
            stream.synchronize()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Runtime:
    """``copies``: how many more will work before one fails."""

    memcpyHostToDevice = 1  # noqa: N815
    memcpyDeviceToHost = 2  # noqa: N815
    memcpyDeviceToDevice = 3  # noqa: N815

    def __init__(self) -> None:
        self.devices = 1
        self.copies = 10**9

    def getDeviceCount(self) -> int:  # noqa: N802
        if not self.devices:
            raise RuntimeError("cudaErrorNoDevice")
        return self.devices

    def memcpyAsync(  # noqa: N802
        self, target: int, source: int, size: int, kind: int, stream: int
    ) -> None:
        assert kind in (1, 2, 3)
        assert size > 0
        self.copies -= 1
        if self.copies == -1:
            raise RuntimeError("cudaErrorUnknown")
        Stream.by_pointer[stream].put(lambda: ctypes.memmove(target, source, size))

    def memsetAsync(self, target: int, value: int, size: int, stream: int) -> None:  # noqa: N802
        Stream.by_pointer[stream].put(lambda: ctypes.memset(target, value, size))

    def memcpy(self, target: int, source: int, size: int, kind: int) -> None:
        assert kind == self.memcpyHostToDevice
        ctypes.memmove(target, source, size)

    def memGetInfo(self) -> tuple[int, int]:  # noqa: N802
        return 1 << 33, 1 << 34

    def driverGetVersion(self) -> int:  # noqa: N802
        return 0

    runtimeGetVersion = driverGetVersion  # noqa: N815

    def getDeviceProperties(self, index: int) -> dict[str, Any]:  # noqa: N802
        return {"name": b"None", "major": 0, "minor": index}

    def ipcGetMemHandle(self, pointer: int) -> bytes:  # noqa: N802
        return pointer.to_bytes(64, "little")


class CompileException(Exception):
    """Not a RuntimeError, as in CuPy."""


class Compiler:
    CompileException = CompileException


class Cuda:
    compiler = Compiler
    Device = Device
    Event = Event
    Memory = Memory
    MemoryPointer = MemoryPointer
    PinnedMemory = PinnedMemory
    PinnedMemoryPointer = PinnedMemoryPointer
    Stream = Stream

    def __init__(self) -> None:
        self.runtime = Runtime()
        self.get_current_stream = lambda: Stream.current[-1]
        self.get_elapsed_time = lambda begin, end: 1.0


class RawModule:
    def __init__(self, directory: Path | None, code: str, options: tuple[str, ...]) -> None:
        assert code == kernels.SOURCE
        self.directory = directory

    def get_function(self, name: str) -> Callable[..., None]:
        run = referred(name) if self.directory is None else compiled(self.directory, name)
        return lambda *arguments: Stream.current[-1].put(lambda: run(*arguments))


class Array:
    """Of the device, in its memory; ``data`` is its address, as CuPy's is."""

    def __init__(self, host: Any) -> None:
        self.size = host.nbytes
        self.data = Memory(self.size)
        at(self.data.ptr, self.size)[:] = host.reshape(-1).view(np.uint8)


class FakeCupy:
    """``directory``: where to compile the kernels; None: the references take their place. Making
    one forgets what was under way on the current stream: an earlier test's memory is gone."""

    __version__ = "0"

    def __init__(self, directory: Path | None) -> None:
        self.cuda = Cuda()
        Stream.current = Stacks()
        self._directory = directory

    def RawModule(self, code: str, options: tuple[str, ...]) -> RawModule:  # noqa: N802
        return RawModule(self._directory, code, options)

    def ndarray(self, shape: tuple[int, ...], dtype: str, pointer: MemoryPointer) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return at(pointer.ptr, size).view(dtype).reshape(shape)

    def RawKernel(self, code: str, name: str) -> Callable[..., None]:  # noqa: N802
        """One that takes time, and does nothing else."""
        assert f"__global__ void {name}(" in code
        return lambda *_: Stream.current[-1].put(lambda: None)

    def asarray(self, host: Any) -> Array:
        return Array(host)

    def zeros(self, size: int, dtype: Any) -> Array:
        return Array(np.zeros(size, dtype))

    def asnumpy(self, array: Array) -> Any:
        Stream.current[-1].synchronize()
        return at(array.data.ptr, array.size).copy()
