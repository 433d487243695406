"""CUDA IPC between two processes, and whether ten thousand batches leave anything behind.

python -m loadtests.gpu_share HANDLE INDEX OFFSET SIZE    (gpu_check starts it)
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from gpu_batcher.api import Call, Tensor
from gpu_batcher.buffers import Pool
from gpu_batcher.device import CudaBuffer, CupyDevice, load_cupy
from gpu_batcher.grid import Region
from gpu_batcher.layout import make
from gpu_batcher.packing import Packing, Rule

ROOT = Path(__file__).parent.parent
SETTLING = 500
"""Batches before memory is looked at the first time."""
DEVICE_SLACK, HOST_SLACK = 2 << 20, 32 << 20
"""Bytes that a driver or an allocator may take for itself meanwhile."""


def check_ipc(cupy: Any, device: CupyDevice, seed: int) -> dict[str, Any]:
    """The other process opens the handle of a packed batch, says what it reads at the offset of
    the second input, and writes an answer behind it, which is fetched here."""
    rng = Random(seed)
    first, second = rng.randbytes(1000), rng.randbytes(100_000)
    tensors = (Tensor("a", "UINT8", (1, 1000), first), Tensor("b", "UINT8", (1, 100_000), second))
    pool = Pool([device.allocate(4 << 20)])
    lease = pool.try_lease()
    assert lease is not None
    result: dict[str, Any]
    with lease as buffer:
        layout = make([Call("key", 1, 101_000, inputs=tensors)], Packing(), buffer.size)
        device.pack(layout, lease).wait()
        offset, size = layout.entries[1].offset, layout.entries[1].size
        child = _child(device, buffer, offset, size)
        digest = hashlib.sha256(second).hexdigest()
        (answer,) = device.fetch(lease, [Region("answer", offset + size, size)])
        read, written = child.stdout.strip() == digest, bytes(answer) == second[::-1]
        result = {"read": read, "written": written, "ok": read and written}
        if child.returncode:
            result["error"] = child.stderr[-1000:]
        del answer
    pool.close()
    return result


def _child(
    device: CupyDevice, buffer: CudaBuffer, offset: int, size: int
) -> subprocess.CompletedProcess[str]:
    handle = device.ipc_handle(buffer).hex()
    arguments = (handle, str(device.index), str(offset), str(size))
    command = (sys.executable, "-m", "loadtests.gpu_share", *arguments)
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def _other_process(handle: str, index: str, offset: str, size: str) -> None:
    cupy = load_cupy(int(index))
    runtime, begin, length = cupy.cuda.runtime, int(offset), int(size)
    with cupy.cuda.Device(int(index)):
        base = runtime.ipcOpenMemHandle(bytes.fromhex(handle))
        memory = cupy.cuda.UnownedMemory(base, begin + 2 * length, None, int(index))
        shared = cupy.ndarray((2 * length,), np.uint8, cupy.cuda.MemoryPointer(memory, begin))
        print(hashlib.sha256(cupy.asnumpy(shared[:length]).tobytes()).hexdigest())
        shared[length:] = shared[:length][::-1]
        cupy.cuda.Device().synchronize()
        del shared, memory
        runtime.ipcCloseMemHandle(base)


def check_leaks(cupy: Any, device: CupyDevice, batches: int, seed: int) -> dict[str, Any]:
    """Free memory of the GPU and resident memory of the process, before and after."""
    rng = Random(seed)
    pool = Pool([device.allocate(1 << 20) for _ in range(2)])
    packing = Packing(rules={"x": Rule(axes=(1,))})
    calls = []
    for _ in range(64):
        length = rng.randint(1, 200)
        tensor = Tensor("x", "FP32", (1, length), rng.randbytes(4 * length))
        calls.append(Call("key", 1, 4 * length, length, (tensor,)))
    before = (0, 0)
    for number in range(SETTLING + batches):
        if number == SETTLING:
            before = _memory(cupy, device)
        lease = pool.try_lease()
        assert lease is not None
        with lease as buffer:
            chosen = calls[: rng.randint(1, 64)]
            layout = make(chosen, packing, buffer.size, buffer.staging)
            device.pack(layout, lease).wait()
            entry = layout.entries[0]
            if entry.grid is not None and number % 10 == 0:
                region = Region(entry.name, entry.offset, entry.size)
                assert len(device.unpack(lease, region, entry.grid)) == len(chosen)
    after = _memory(cupy, device)
    pool.close()
    gpu, host = before[0] - after[0], after[1] - before[1]
    ok = gpu <= DEVICE_SLACK and host <= HOST_SLACK and pool.lost == pool.in_use == 0
    return {"batches": batches, "gpu_bytes": gpu, "host_bytes": host, "ok": ok}


def _memory(cupy: Any, device: CupyDevice) -> tuple[int, int]:
    device.synchronize()
    free, _ = cupy.cuda.runtime.memGetInfo()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return int(free), pages * 4096


if __name__ == "__main__":
    _other_process(*sys.argv[1:])
