"""host: batches packed in plain memory, a buffer's own or somebody else's.

``HostDevice`` is the ``Device`` that needs no GPU. Its buffers are also what a shared-memory region
becomes for the pool, with ``wrap``.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpu_batcher import hostcopy
from gpu_batcher.api import Data, Placed, Tensor
from gpu_batcher.grid import DoesNotFitError, Grid, Layout, Region, aligned

if TYPE_CHECKING:
    from gpu_batcher.buffers import Lease


class DeviceError(RuntimeError):
    """The device is not there, or cannot do what was asked."""


@dataclass(slots=True, eq=False)
class Packed:
    """A batch in a leased buffer. ``inputs`` in the layout's order. On a GPU their ``data`` is
    empty, as it cannot be read on the host, but for BYTES, which can until outputs are fetched."""

    layout: Layout
    inputs: list[Placed]
    event: Any = None

    @property
    def done(self) -> bool:
        """May the model read it?"""
        return self.event is None or bool(self.event.done)

    def wait(self) -> None:
        """Block the thread (not the interpreter) until it may. Not for an event loop."""
        if self.event is not None:
            self.event.synchronize()


@dataclass(slots=True, eq=False)
class HostBuffer:
    """``memory`` is the whole of it, writable, as unsigned bytes."""

    memory: memoryview
    size: int
    staging: int = 0
    owner: mmap.mmap | None = None

    def close(self) -> None:
        """Give the memory back as soon as nobody has a view of it."""
        with contextlib.suppress(BufferError):
            self.memory.release()
            if self.owner is not None:
                self.owner.close()


class HostDevice:
    """Packs straight into the leased buffer. Making one loads NumPy, so that no batch has to wait
    for that."""

    name = "host"

    def __init__(self) -> None:
        import_module("gpu_batcher.kernels")

    def allocate(self, size: int) -> HostBuffer:
        """Page-aligned, private and resident at once, so that no batch pays for the first touch."""
        size = aligned(size)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
        memory = mmap.mmap(-1, size, flags=flags)
        return HostBuffer(memoryview(memory), size, owner=memory)

    def wrap(self, memory: memoryview) -> HostBuffer:
        """A buffer over memory of somebody else's, such as a shared-memory region, who also frees
        it."""
        return HostBuffer(memory.cast("B"), memory.nbytes)

    def pack(self, layout: Layout, lease: Lease[HostBuffer]) -> Packed:
        buffer = lease.buffer
        if layout.size > buffer.size:
            raise DoesNotFitError(f"{layout.size} bytes, and the buffer has {buffer.size}")
        memory = buffer.memory
        inputs = []
        for entry in layout.entries:
            hostcopy.write(memory, entry)
            data = memory[entry.offset : entry.offset + entry.size]
            tensor = Tensor(entry.name, entry.datatype, entry.shape, data)
            inputs.append(Placed(tensor, offset=entry.offset))
        return Packed(layout, inputs)

    def arrays(self, packed: Packed, lease: Lease[HostBuffer]) -> dict[str, Any]:
        assert lease.buffer is not None
        return {each.tensor.name: hostcopy.view(each.tensor) for each in packed.inputs}

    def fetch(self, lease: Lease[HostBuffer], regions: Sequence[Region]) -> list[memoryview]:
        memory = lease.buffer.memory.toreadonly()
        return [part_of(memory, each) for each in regions]

    def unpack(self, lease: Lease[HostBuffer], region: Region, grid: Grid) -> list[Data]:
        return hostcopy.read(part_of(lease.buffer.memory.toreadonly(), region), grid)

    def ipc_handle(self, buffer: Any) -> bytes:
        raise DeviceError("memory of the host has no CUDA handle")

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        pass


def part_of(memory: memoryview, region: Region) -> memoryview:
    """The place of a region; raises DoesNotFitError."""
    if region.offset + region.size > len(memory):
        raise DoesNotFitError(f"output {region.name!r} ends beyond the buffer")
    return memory[region.offset : region.offset + region.size]
