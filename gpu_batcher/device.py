"""device: where batches are packed. In plain memory (``HostDevice``, of ``host``) or through pinned
memory on a GPU (``CupyDevice``); the methods are the same, and nobody else but ``kernels`` knows
CuPy.

CuPy is imported when a ``CupyDevice`` is made and never before, because importing and using it
makes a CUDA context that takes hundreds of MiB of the model server's GPU.

On a GPU a buffer is three: pinned host memory, in which the calls' bytes are laid out (and where
outputs are read), device memory of the same size to which they are copied as they are, and the
packed device memory that the model reads. An input without padding goes from the first to the
third at once. Each buffer has its own stream, so that with two of them the copies of the next
batch run while the last one is padded or in inference.

Whatever is put on a buffer's stream is followed by its event, also where it fails half-way, and
``pack`` begins by waiting for that event. So a lease may be returned after any failure: nothing
that a failed batch left under way reaches the next one's memory.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gpu_batcher import hostcopy
from gpu_batcher.api import SIZES, Data, Placed, Tensor
from gpu_batcher.grid import BOX, STAGE, DoesNotFitError, Entry, Grid, Layout, Region, aligned
from gpu_batcher.host import DeviceError, HostBuffer, HostDevice, Packed, part_of
from gpu_batcher.staging import Stager

if TYPE_CHECKING:
    from gpu_batcher.buffers import Buffer, Lease

__all__ = (
    "CudaBuffer", "CupyDevice", "Device", "DeviceError", "HostBuffer", "HostDevice", "Packed",
    "load_cupy", "open_device",
)  # fmt: skip

log = logging.getLogger("tailrace")

SLACK = 1 << 20
"""Bytes of staging beyond the buffer's size, for tables of calls and for alignment."""
BLOCK = 1 << 21
"""Bytes; a CUDA allocation of whole blocks shares none with another one, and an IPC handle opens
whole blocks."""
PORTABLE = 1
"""CUDA's cudaHostAllocPortable: pinned for every context of the process."""


class Device(Protocol):
    """A lease passed in was granted by a pool of buffers that this device allocated, and is
    returned only when the model has read its inputs and the outputs have been read, or when the
    method has raised. A GPU that fails shows as CuPy's RuntimeError from any of them.

    With ``HostDevice`` a call takes the time of copying the bytes, and may be made on an event
    loop. With ``CupyDevice`` it may wait for the GPU, so it belongs on a worker thread; which one
    is all the same, and several may work at different leases at the same time.
    """

    name: str

    def allocate(self, size: int) -> Buffer:
        """A buffer for at least ``size`` bytes of inputs and outputs. At start only."""
        ...

    def pack(self, layout: Layout, lease: Lease[Any]) -> Packed:
        """Write the inputs of a batch. Raises DoesNotFitError."""
        ...

    def arrays(self, packed: Packed, lease: Lease[Any]) -> dict[str, Any]:
        """The inputs by name as arrays over the buffer (``__dlpack__`` included), BYTES as NumPy
        arrays of ``bytes``, BF16 as its bits (uint16). Valid until the lease is returned."""
        ...

    def fetch(self, lease: Lease[Any], regions: Sequence[Region]) -> list[memoryview]:
        """The bytes of outputs, read-only. On the host they are views of the buffer, valid until
        the lease is returned or packed again."""
        ...

    def unpack(self, lease: Lease[Any], region: Region, grid: Grid) -> list[Data]:
        """Of a padded output each call's own elements. Valid as long as ``fetch``'s. Raises
        ValueError if the region is not of the grid's size."""
        ...

    def ipc_handle(self, buffer: Any) -> bytes:
        """The 64 bytes by which another process opens the buffer. Raises DeviceError."""
        ...

    def synchronize(self) -> None:
        """Block until nothing is under way."""
        ...

    def close(self) -> None: ...


def open_device(kind: Literal["host", "cuda", "auto"], index: int = 0, copiers: int = 1) -> Device:
    """``auto``: the GPU if there is one and CuPy works with it, else the host, which is logged with
    the reason. Raises DeviceError for ``cuda`` without either. ``host`` never touches CUDA. Takes
    up to seconds: not for an event loop."""
    if kind == "host":
        return HostDevice()
    try:
        return CupyDevice(index, copiers)
    except DeviceError as error:
        if kind == "cuda":
            raise
        log.info("batches are packed on the host: %s", error)
        return HostDevice()


def load_cupy(index: int = 0) -> Any:
    """CuPy, if it works here with GPU ``index``. Raises DeviceError with the reason."""
    try:
        cupy = import_module("cupy")
        found = cupy.cuda.runtime.getDeviceCount()
    except (ImportError, OSError, RuntimeError) as error:
        raise DeviceError(f"no CUDA here: {error}") from error
    if index >= found:
        raise DeviceError(f"no GPU {index}: there are {found}")
    return cupy


@dataclass(slots=True, eq=False)
class CudaBuffer:
    """``host``: pinned, of ``staging`` bytes, as is ``raw`` on the device; ``packed``: ``size``
    bytes on the device. The last two are CuPy's ``Memory``, each an allocation of its own."""

    size: int
    staging: int
    host: memoryview
    host_pointer: int
    raw: Any
    packed: Any
    stream: Any
    event: Any

    def close(self) -> None:
        """Wait for what is under way, and free all of it as soon as nobody has a view of it."""
        try:
            self.stream.synchronize()
        finally:
            with contextlib.suppress(BufferError):
                self.host.release()
            self.raw = self.packed = self.stream = self.event = None


class CupyDevice:
    """Packs on a GPU. ``copiers``: threads that stage large batches; with 1, the calling one does.
    Making one compiles the kernels. Raises DeviceError."""

    name = "cuda"

    def __init__(self, index: int = 0, copiers: int = 1) -> None:
        self._cupy = cupy = load_cupy(index)
        self._runtime = cupy.cuda.runtime
        self._device = cupy.cuda.Device(index)
        self.index = index
        kernels = import_module("gpu_batcher.kernels")
        self._table = kernels.table
        self._most = kernels.MOST_BYTES
        failures = (ImportError, OSError, RuntimeError, cupy.cuda.compiler.CompileException)
        try:
            with self._device:
                self._kernels = kernels.Kernels(cupy)
        except failures as error:
            raise DeviceError(f"the kernels do not compile here: {error}") from error
        self._stager = Stager(copiers)

    def allocate(self, size: int) -> CudaBuffer:
        """Raises DeviceError if the GPU, or pinned memory, has not got it."""
        size = aligned(size, BLOCK)
        if size + SLACK > self._most:
            raise DeviceError(f"{size} bytes in one buffer, at most {self._most - SLACK}")
        try:
            with self._device:
                return self._allocate(size, size + SLACK)
        except (MemoryError, RuntimeError) as error:
            raise DeviceError(f"no buffer of {size} bytes: {error}") from error

    def _allocate(self, size: int, staging: int) -> CudaBuffer:
        # None of it from CuPy's pools: they round up, keep what is freed, and hand out parts of
        # larger allocations, which an IPC handle does not tell apart.
        cuda = self._cupy.cuda
        memory = cuda.PinnedMemory(staging, PORTABLE)
        pinned = cuda.PinnedMemoryPointer(memory, 0)
        buffer = CudaBuffer(
            size,
            staging,
            memoryview(pinned).cast("B"),
            int(pinned.ptr),
            cuda.Memory(aligned(staging, BLOCK)),
            cuda.Memory(size),
            cuda.Stream(non_blocking=True),
            cuda.Event(block=True, disable_timing=True),
        )
        # A model server can read all of it, and what other programs left there is not its own.
        self._runtime.memsetAsync(buffer.packed.ptr, 0, size, buffer.stream.ptr)
        buffer.event.record(buffer.stream)
        return buffer

    def pack(self, layout: Layout, lease: Lease[CudaBuffer]) -> Packed:
        """Returns when all is staged; ``Packed`` tells when it has arrived. The time it takes is
        that of copying the calls' bytes into pinned memory."""
        buffer = lease.buffer
        if layout.size > buffer.size or layout.staged > buffer.staging:
            raise DoesNotFitError(f"{layout.size} bytes, and the buffer has {buffer.size}")
        # A batch that failed or was given up may have left copies of this very memory under way.
        buffer.event.synchronize()
        with self._working(buffer):
            for entry in layout.entries:
                if entry.size:
                    self._write(buffer, entry)
        inputs = [Placed(_tensor(buffer, each), offset=each.offset) for each in layout.entries]
        return Packed(layout, inputs, buffer.event)

    @contextlib.contextmanager
    def _working(self, buffer: CudaBuffer) -> Iterator[None]:
        """Whatever is put on the buffer's stream meanwhile is done when its event is."""
        with self._device, buffer.stream:
            try:
                yield
            finally:
                buffer.event.record(buffer.stream)

    def _write(self, buffer: CudaBuffer, entry: Entry) -> None:
        grid, at = entry.grid, entry.staged
        target = int(buffer.packed.ptr) + entry.offset
        if grid is None:
            self._send(buffer, at, entry.pieces, 1, target)
            return
        table, _ = self._table(grid.boxes, len(grid.blank))
        raw = int(buffer.raw.ptr) + at
        self._send(buffer, at, [table.tobytes(), *entry.pieces], STAGE, raw)
        calls = raw + aligned(len(grid.boxes) * BOX, STAGE)
        self._kernels.pack(calls, target, raw, grid)

    def _send(
        self, buffer: CudaBuffer, at: int, pieces: Sequence[Data], align: int, target: int
    ) -> None:
        """Stage pieces from byte ``at`` on and copy them to ``target`` as they come."""
        kind, sent = self._runtime.memcpyHostToDevice, 0
        # Closed at once if a copy fails: a thread that staged on would write into the next batch.
        with contextlib.closing(self._stager.stage(buffer.host[at:], pieces, align)) as portions:
            for reached in portions:
                source = buffer.host_pointer + at + sent
                size = reached - sent
                self._runtime.memcpyAsync(target + sent, source, size, kind, buffer.stream.ptr)
                sent = reached

    def arrays(self, packed: Packed, lease: Lease[CudaBuffer]) -> dict[str, Any]:
        """CuPy's arrays. Work that the calling thread puts on its current stream waits for the
        packing; torch reads them by ``torch.from_dlpack``."""
        buffer, cupy = lease.buffer, self._cupy
        with self._device:
            cupy.cuda.get_current_stream().wait_event(buffer.event)
            return {
                entry.name: self._array(buffer, entry)
                if SIZES[entry.datatype]
                else hostcopy.view(_tensor(buffer, entry))
                for entry in packed.layout.entries
            }

    def _array(self, buffer: CudaBuffer, entry: Entry) -> Any:
        pointer = self._cupy.cuda.MemoryPointer(buffer.packed, entry.offset)
        return self._cupy.ndarray(entry.shape, hostcopy.DTYPES[entry.datatype], pointer)

    def fetch(self, lease: Lease[CudaBuffer], regions: Sequence[Region]) -> list[memoryview]:
        """Through pinned memory, over the inputs that were staged there, and from there copied
        once more: so what is returned outlives the lease, and the next ``fetch``."""
        buffer = lease.buffer
        parts = [part_of(buffer.host[: buffer.size], each) for each in regions]
        with self._working(buffer):
            for region in regions:
                source = int(buffer.packed.ptr) + region.offset
                self._bring(buffer, region.offset, source, region.size)
        buffer.event.synchronize()
        return [memoryview(bytes(part)) for part in parts]

    def unpack(self, lease: Lease[CudaBuffer], region: Region, grid: Grid) -> list[Data]:
        """By a kernel, so that only the callers' own elements are copied to the host; there as
        ``fetch`` does."""
        buffer, itemsize = lease.buffer, len(grid.blank)
        if region.size != prod(grid.dims) * itemsize:
            raise ValueError(f"{region.size} bytes for {list(grid.dims)} elements of {itemsize}")
        if not region.size:
            # Dimensions without elements may be of any length, too long for the table.
            return [b""] * len(grid.boxes)
        table, size = self._table(grid.boxes, itemsize)
        head = aligned(len(grid.boxes) * BOX, STAGE)
        if region.offset + region.size > buffer.size or head + size > buffer.staging:
            raise DoesNotFitError(f"output {region.name!r} ends beyond the buffer")
        raw = int(buffer.raw.ptr)
        with self._working(buffer):
            self._send(buffer, 0, [table.tobytes()], STAGE, raw)
            packed = int(buffer.packed.ptr) + region.offset
            self._kernels.unpack(packed, raw + head, raw, grid, size)
            self._bring(buffer, head, raw + head, size)
        buffer.event.synchronize()
        found: list[Data] = []
        for row, (_, count, s1, s2, s3) in zip(table.tolist(), grid.boxes, strict=True):
            begin = head + row[-1] * STAGE
            found.append(bytes(buffer.host[begin : begin + count * s1 * s2 * s3 * itemsize]))
        return found

    def _bring(self, buffer: CudaBuffer, at: int, source: int, size: int) -> None:
        kind, target = self._runtime.memcpyDeviceToHost, buffer.host_pointer + at
        if size:
            self._runtime.memcpyAsync(target, source, size, kind, buffer.stream.ptr)

    def ipc_handle(self, buffer: CudaBuffer) -> bytes:
        """Of ``packed``, whose offsets are the layout's."""
        with self._device:
            return bytes(self._runtime.ipcGetMemHandle(buffer.packed.ptr))

    def synchronize(self) -> None:
        self._device.synchronize()

    def close(self) -> None:
        """After the last buffer was closed."""
        self._stager.close()


def _tensor(buffer: CudaBuffer, entry: Entry) -> Tensor:
    """BYTES were staged as they are to be, so the host still has them; how many bytes they are is
    seen nowhere else."""
    data = buffer.host[entry.staged : entry.staged + (0 if SIZES[entry.datatype] else entry.size)]
    return Tensor(entry.name, entry.datatype, entry.shape, data)
