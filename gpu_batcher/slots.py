"""slots: the shared-memory regions of batches in flight, and what becomes of them.

The rule that all else follows from: a region is used again only if the server has answered for it.
A job that was given up, timed out or broken off leaves a server behind that may read and write the
region at any later time. So that region is retired: unregistered, and freed when the server no
longer lists it. The slot comes back with a new one, under a new name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from gpu_batcher.buffers import Lease, Pool, PoolClosedError
from gpu_batcher.host import DeviceError
from gpu_batcher.shared_memory import (
    CUDA,
    SYSTEM,
    Control,
    NotUpError,
    RefusedError,
    RegionError,
    Regions,
    Registry,
    SharedRegion,
    sweep,
)

log = logging.getLogger("tailrace")

Sleep = Callable[[float], Awaitable[object]]
T = TypeVar("T")

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
"""Seconds between tries to make a region, or to see whether one was let go."""
FAREWELL = 2.0
"""Seconds for threads to end, and to unregister everything, at the end."""


@dataclass(slots=True, eq=False)
class Slot:
    """``size`` and ``staging``: of the region, in bytes. ``epoch``: of the server that the region
    is registered with. ``begun``: the server may be at work on the region. ``stale``: it is not to
    be used any more for another reason. ``work``: of a thread on the region."""

    region: SharedRegion | None
    size: int
    staging: int
    epoch: int = 0
    begun: bool = False
    stale: bool = False
    work: asyncio.Future[Any] | None = None

    def close(self) -> None:
        if self.region is not None:
            self.region.close()
            self.region = None


class Slots:
    """``count`` slots with regions of ``size`` bytes. ``down``: those without a region that the
    server could use. ``on_restart`` is called when the server turns out to be another one."""

    def __init__(
        self,
        regions: Regions,
        control: Control,
        count: int,
        size: int,
        on_restart: Callable[[], object],
        sleep: Sleep,
    ) -> None:
        self.down = 0
        self.regions = regions
        self.pool: Pool[Slot] | None = None
        self._count = count
        self._size = size
        self._on_restart = on_restart
        self._sleep = sleep
        self._registry = Registry(control, regions.kind)
        self._both = [Registry(control, kind) for kind in (SYSTEM, CUDA)]
        self._epoch = 0
        self._all: list[Slot] = []
        self._retired: dict[asyncio.Task[None], SharedRegion] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._executor = ThreadPoolExecutor(count, "tailrace-pack") if regions.threaded else None

    async def open(self) -> None:
        """Clear away what crashed tailraces have left, make all regions and register them, which
        is also the proof that the server can do it. Raises NotUpError, RefusedError, RegionError
        and DeviceError; then nothing is left behind."""
        try:
            await sweep(self.regions.directory, self._both)
            for _ in range(self._count):
                region = await self._make()
                self._all.append(Slot(region, region.size, region.staging))
                await self._registry.register(region)
            listed = await self._registry.listed()
            for slot in self._all:
                if slot.region is not None and listed.get(slot.region.name) != slot.region.size:
                    raise RefusedError(f"{slot.region.name} was registered, and is not listed")
            self.pool = Pool(self._all)
        except BaseException:
            await self.close()
            raise

    def try_lease(self) -> Lease[Slot] | None:
        """None: no slot is free, or all are lost (which is logged where it happens)."""
        try:
            return self.pool.try_lease() if self.pool is not None else None
        except PoolClosedError:
            return None

    def give_back(self, lease: Lease[Slot]) -> None:
        """At once if the region can be used again, otherwise with another one, later."""
        slot = lease.buffer
        busy = slot.work is not None and not slot.work.done()
        if busy or slot.begun or slot.stale:
            self.down += 1
            task = self._spawn(self._renew(lease))
            # Cancelled only when all is closed, possibly before its first step.
            task.add_done_callback(lambda task: lease.release() if task.cancelled() else None)
        else:
            lease.release()

    async def register(self, slot: Slot) -> None:
        """With the server of now. Raises NotUpError and RefusedError."""
        if slot.epoch != self._epoch and slot.region is not None:
            epoch = self._epoch
            await self._registry.register(slot.region)
            slot.epoch = epoch

    def unknown(self, slot: Slot) -> None:
        """The server does not know the slot's region. So it knows none, and must have restarted,
        unless that was noticed before."""
        if slot.epoch == self._epoch:
            self._epoch += 1
            log.warning("the server has lost its %s; it is registered again", self.regions.name)
            self._on_restart()

    async def work(self, slot: Slot, work: Callable[[], T]) -> T:
        """What blocks, on a thread. Cancelling it leaves ``slot.work`` to be waited for."""
        if self._executor is None:
            return work()
        slot.work = asyncio.get_running_loop().run_in_executor(self._executor, work)
        return await asyncio.shield(slot.work)

    async def close(self) -> None:
        """After the last job. Takes up to twice FAREWELL."""
        working = [slot.work for slot in self._all if slot.work is not None]
        if working:
            await asyncio.wait(working, timeout=FAREWELL)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        left = [slot.region for slot in self._all if slot.region is not None]
        left += self._retired.values()
        self._retired.clear()
        farewells = [asyncio.create_task(self._part_from(region)) for region in left]
        if farewells:
            _, late = await asyncio.wait(farewells, timeout=FAREWELL)
            for task in late:
                task.cancel()
            await asyncio.gather(*farewells, return_exceptions=True)
        if self.pool is not None:
            self.pool.close()
        for region in left:
            region.close()
        if self._executor is not None:
            self._executor.shutdown(wait=False)

    # -- regions come and go -------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a slot of %s is lost", self.regions.name, exc_info=error)

    async def _renew(self, lease: Lease[Slot]) -> None:
        """Give a slot another region, and then back."""
        slot = lease.buffer
        if slot.work is not None:
            await asyncio.wait([slot.work])
            slot.work = None
        if slot.begun or slot.stale:
            region, slot.region = slot.region, None
            if region is not None:
                await self._retire(region)
            await self._refill(slot)
            slot.begun = slot.stale = False
        self.down -= 1
        lease.release()

    async def _retire(self, region: SharedRegion) -> None:
        """Returns when another one may take its place."""
        task = self._spawn(self._bury(region))
        self._retired[task] = region
        if len(self._retired) > self.regions.spare:
            await asyncio.wait([task])

    async def _bury(self, region: SharedRegion) -> None:
        """Free it when the server no longer has it."""
        task = asyncio.current_task()
        assert task is not None
        pause = FIRST_PAUSE
        while True:
            with contextlib.suppress(NotUpError, RefusedError):
                with contextlib.suppress(RefusedError):
                    await self._registry.unregister(region.name)
                if region.name not in await self._registry.listed():
                    break
            await self._sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        del self._retired[task]
        region.close()

    async def _part_from(self, region: SharedRegion) -> None:
        """At the end: unregister it, if the server is there and does."""
        region.held = True
        pause = FIRST_PAUSE
        while True:
            try:
                with contextlib.suppress(RefusedError):
                    await self._registry.unregister(region.name)
                if region.name not in await self._registry.listed():
                    break
            except (NotUpError, RefusedError):
                break
            await self._sleep(pause)
            pause *= 2
        region.held = False

    async def _refill(self, slot: Slot) -> None:
        """A new region, registered. Once made, it is the same one that is tried again: each could
        have been registered without our hearing of it."""
        pause = FIRST_PAUSE
        while True:
            try:
                if slot.region is None:
                    slot.region = await self._make()
                    slot.size, slot.staging = slot.region.size, slot.region.staging
                epoch = self._epoch
                await self._registry.register(slot.region)
            except (NotUpError, RefusedError, RegionError, DeviceError) as error:
                if pause == FIRST_PAUSE:
                    log.warning("%s: a slot is down, http instead: %s", self.regions.name, error)
                await self._sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                slot.epoch = epoch
                return

    async def _make(self) -> SharedRegion:
        if self._executor is None:
            return self.regions.make(self._size)
        loop = asyncio.get_running_loop()
        made = loop.run_in_executor(self._executor, self.regions.make, self._size)
        try:
            return await asyncio.shield(made)
        except asyncio.CancelledError:
            made.add_done_callback(_unwanted)
            raise


def _unwanted(made: asyncio.Future[SharedRegion]) -> None:
    if not made.cancelled() and made.exception() is None:
        made.result().close()
