"""choice: which runner a route gets, found out beside the work and not before it.

Batches go by HTTP from the first moment on, since starting never waits for a server. Meanwhile the
shared-memory runners that were asked for are opened one after the other, which shows whether the
server can do it, and the first that opens takes over. While the server is not up, that is tried
again. ``auto`` takes what it gets, once; a runner that was asked for by name and does not open is
an error in the log, and is tried again and again, with HTTP in its place: a gateway that refused to
serve would be worse.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from gpu_batcher.api import Codec, Job, Reply, Runner, Send, TensorCodec
from gpu_batcher.buffers import Pool
from gpu_batcher.codecs.registry import is_tensor_codec
from gpu_batcher.device import CupyDevice
from gpu_batcher.host import DeviceError, HostDevice
from gpu_batcher.runners import Follows, HttpRunner
from gpu_batcher.shared_memory import (
    CUDA,
    DIRECTORY,
    NAME,
    SYSTEM,
    Control,
    CudaRegions,
    NotUpError,
    RefusedError,
    RegionError,
    Regions,
    Registry,
    SystemRegions,
    sweep,
)
from gpu_batcher.shared_runner import SharedMemoryRunner
from gpu_batcher.slots import FIRST_PAUSE, Sleep

if TYPE_CHECKING:
    from gpu_batcher.packing import Packing

log = logging.getLogger("tailrace")

Kind = Literal["http", "system_shared_memory", "cuda_shared_memory", "auto"]
Opener = Callable[[], Awaitable[Runner]]
"""A runner that is ready. Raises NotUpError, or any of FAILURES."""

FAILURES = (RefusedError, RegionError, DeviceError, OSError, RuntimeError)
CLEARINGS = 10
"""Tries, over about 100 s."""
LONGEST_PAUSE = 30.0
"""Seconds between tries."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What runners are made of. ``slots``: batches in flight; ``inputs`` and ``outputs``: bytes of
    each. ``device``: where batches may be packed for ``cuda_shared_memory``; what goes by HTTP is
    always packed on the host. ``mode``: permissions of the shared memory's files. ``server_gpu``:
    the GPU's number at the server, if it is another one there."""

    codec: Codec
    packing: Packing
    send: Send
    control: Control
    slots: int
    inputs: int
    outputs: int
    follows: Follows = field(default_factory=dict)
    device: Literal["host", "cuda", "auto"] = "host"
    gpu: int = 0
    copiers: int = 1
    server_gpu: int | None = None
    mode: int = 0o600
    directory: Path = DIRECTORY
    sleep: Sleep = asyncio.sleep

    async def clear(self) -> None:
        """Unregister and unlink what a crashed tailrace has left, which may have had another runner
        than this one has. While the server is not up that is tried again, a few times."""
        if not self.directory.is_dir():  # not on Linux
            return
        if not any(NAME.fullmatch(each.name) for each in self.directory.iterdir()):
            return
        both = [Registry(self.control, SYSTEM), Registry(self.control, CUDA)]
        for turn in range(CLEARINGS):
            try:
                count = await sweep(self.directory, both)
            except NotUpError:
                await self.sleep(FIRST_PAUSE * 2**turn)
            else:
                if count:
                    log.info("cleared away %d region(s) of a tailrace that has crashed", count)
                return


def choose(kind: Kind, parts: Parts) -> ChosenRunner:
    """Allocates the buffers of the HTTP runner: ``slots`` of ``inputs`` bytes, where the format has
    tensors. Call it on the event loop. Raises ValueError for a runner that the format cannot
    have."""
    codec, device = parts.codec, HostDevice()
    tensors = codec if is_tensor_codec(codec) else None
    buffers = [device.allocate(parts.inputs) for _ in range(parts.slots)] if tensors else []
    pool = Pool(buffers) if buffers else None
    http = HttpRunner(codec, parts.packing, pool, device, parts.send, parts.follows)

    async def system() -> Runner:
        assert tensors is not None
        regions = SystemRegions(parts.slots, parts.mode, parts.directory)
        return await _opened(parts, tensors, regions, http)

    async def cuda() -> Runner:
        assert tensors is not None
        if parts.device == "host":
            raise DeviceError("the device is the host")
        device = await asyncio.to_thread(CupyDevice, parts.gpu, parts.copiers)
        try:
            regions = CudaRegions(device, parts.server_gpu, parts.directory)
            return await _opened(parts, tensors, regions, http)
        except BaseException:
            device.close()
            raise

    openers: dict[str, Opener] = {"cuda_shared_memory": cuda, "system_shared_memory": system}
    if kind == "http" or (kind == "auto" and tensors is None):
        openers = {}
    elif kind != "auto":
        openers = {kind: openers[kind]}
    if openers and tensors is None:
        raise ValueError(f"runner {kind}: {codec.name} has no tensors to be shared")
    clear = None if openers or not tensors else parts.clear
    return ChosenRunner(http, openers, insist=kind != "auto", sleep=parts.sleep, clear=clear)


async def _opened(parts: Parts, codec: TensorCodec, regions: Regions, http: Runner) -> Runner:
    runner = SharedMemoryRunner(
        codec,
        parts.packing,
        regions,
        parts.send,
        parts.control,
        http,
        slots=parts.slots,
        inputs=parts.inputs,
        outputs=parts.outputs,
        follows=parts.follows,
        sleep=parts.sleep,
    )
    await runner.open()
    return runner


class ChosenRunner:
    """The runner in use, whose ``name`` it has. ``refused``: the others, and why not. ``insist``:
    the first of ``openers`` is to be had, so an error is logged while it is not."""

    def __init__(
        self,
        http: Runner,
        openers: Mapping[str, Opener],
        *,
        insist: bool,
        sleep: Sleep,
        clear: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self.refused: dict[str, str] = {}
        self._http = http
        self._now = http
        self._openers = openers
        self._insist = insist
        self._sleep = sleep
        work = self._find() if openers else clear() if clear is not None else None
        self._task = None if work is None else asyncio.create_task(work)

    @property
    def name(self) -> str:
        return self._now.name

    @property
    def runner(self) -> Runner:
        """In use at this moment."""
        return self._now

    @property
    def pool(self) -> Pool[Any] | None:
        """The buffers of the runner in use; None where it has none."""
        return cast("Pool[Any] | None", getattr(self._now, "pool", None))

    async def run(self, job: Job) -> list[Reply]:
        """See ``Runner``."""
        return await self._now.run(job)

    async def close(self) -> None:
        """See ``Runner``."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._now is not self._http:
            await self._now.close()
        await self._http.close()

    async def found(self) -> None:
        """Returns when it is settled which runner is used; for tests and tools."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _find(self) -> None:
        pause = FIRST_PAUSE
        told = ""
        while not await self._try():
            why = "; ".join(f"{name}: {text}" for name, text in self.refused.items())
            if (reason := NAME.sub("", why)) != told:
                level = logging.ERROR if self._insist else logging.INFO
                log.log(level, "batches go by http for now (%s)", why)
                told = reason
            await self._sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _try(self) -> bool:
        """Is it settled?"""
        self.refused = {}
        for name, opener in self._openers.items():
            try:
                self._now = await opener()
            except NotUpError as error:
                self.refused[name] = f"the server is not up: {error}"
                return False
            except FAILURES as error:
                self.refused[name] = str(error) or type(error).__name__
            else:
                break
        else:
            if self._insist:
                return False
        why = "".join(f"; not {name}: {text}" for name, text in self.refused.items())
        log.info("batches go by %s%s", self.name, why)
        return True
