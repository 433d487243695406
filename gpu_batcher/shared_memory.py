"""shared_memory: regions that a model server on the same machine maps as well, from their making to
their end. Linux only.

A region of system memory is a file in ``/dev/shm``, which is what the server's ``shm_open`` opens.
A region of GPU memory has an empty file there. Its name, ``tailrace-PID-NONCE-N``, is the region's
name at the server, and as the nonce is not to be guessed, a server that can register it has the
same ``/dev/shm`` as we have.

Who has died is told by a lock: the owner holds the file ``flock``ed as long as it lives. Process
ids would not do, for tailraces in other PID namespaces may share the directory, and there a live
one looks dead. A process forked from the owner without ``exec`` keeps the lock too; then a dead
region stays until that one has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import mmap
import os
import re
import secrets
import stat
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from gpu_batcher.buffers import Lease, Pool
from gpu_batcher.device import CupyDevice, Device, HostDevice
from gpu_batcher.grid import aligned

Control = Callable[[str, str, bytes], Awaitable[tuple[int, bytes]]]
"""The seam to the server for everything but inference: method, path and body in, status and body
out. To the one endpoint that the jobs go to. Raises OSError (TimeoutError included) when it is not
there."""

DIRECTORY = Path("/dev/shm")  # noqa: S108
SYSTEM = "systemsharedmemory"
CUDA = "cudasharedmemory"
PATIENCE = 5.0
"""Seconds for one control call."""
NAME = re.compile(r"tailrace-\d+-[0-9a-f]{16}-\d+")


class RegionError(Exception):
    """A region cannot be made here."""


class NotUpError(Exception):
    """The server does not answer; it may do so later."""


class RefusedError(Exception):
    """The server answers, and will not do it."""


# -- files -------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Claim:
    """A locked file in the directory of shared memory."""

    path: Path
    descriptor: int

    @classmethod
    def make(cls, path: Path, mode: int) -> Claim | None:
        """None: a sweeper was faster, so try another name. Raises OSError."""
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        claim = cls(path, os.open(path, flags, mode))
        try:
            os.fchmod(claim.descriptor, mode)  # The umask may have taken something away.
            if claim._lock():
                return claim
        except OSError:
            claim.close()
            raise
        claim.close()
        return None

    @classmethod
    def take_over(cls, path: Path) -> Claim | None:
        """The claim of an owner that is dead; None if it lives, or the file is not ours to take."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            claim = cls(path, os.open(path, flags))
        except OSError:
            return None
        if claim._lock():
            return claim
        os.close(claim.descriptor)
        return None

    def _lock(self) -> bool:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            here, there = os.fstat(self.descriptor), self.path.lstat()
        except OSError:
            return False
        # A file that was unlinked between opening and locking is nobody's any more.
        same = (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
        return same and stat.S_ISREG(here.st_mode) and here.st_uid == os.geteuid()

    def close(self) -> None:
        """Unlink the file, so that nobody can open it any more, and give up the lock."""
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)

    def abandon(self) -> None:
        """Give up the lock, and leave the file for another sweep."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)  # A mapping has a descriptor of its own.
        os.close(self.descriptor)


def dead_claims(directory: Path) -> Iterator[Claim]:
    """The claims whose owners are dead, one at a time; each is the taker's to close."""
    try:
        names = sorted(each.name for each in directory.iterdir() if NAME.fullmatch(each.name))
    except OSError:
        return
    for name in names:
        claim = Claim.take_over(directory / name)
        if claim is not None:
            yield claim


# -- regions -----------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class SharedRegion:
    """``lease``: of its memory, for the device. ``size``: bytes that the server may use.
    ``registration``: what the server is told to make it find the memory. ``held``: the server would
    not let go of it."""

    name: str
    size: int
    lease: Lease[Any]
    registration: bytes
    claim: Claim
    mapping: mmap.mmap | None = None
    held: bool = False
    closed: bool = False

    @property
    def staging(self) -> int:
        return int(self.lease.buffer.staging)

    def close(self) -> None:
        """Give the memory back; the server keeps what it has mapped. The file is left for the next
        sweep where one is needed. A second time does nothing."""
        if self.closed:
            return
        self.closed = True
        self.claim.abandon() if self.held else self.claim.close()
        self.lease.release()
        if self.mapping is not None:
            # A view that somebody still has keeps the mapping, and takes it along.
            with contextlib.suppress(BufferError):
                self.mapping.close()


class Regions(Protocol):
    """A kind of regions. ``spare``: how many that were retired may wait for the server to let go
    of them, beside the ones in use; more would be memory without a bound. ``threaded``: packing
    blocks, so it is for another thread. ``kind``: the word in the server's paths."""

    name: str
    kind: str
    directory: Path
    spare: int
    threaded: bool

    @property
    def device(self) -> Device: ...

    def make(self, size: int) -> SharedRegion:
        """Memory for ``size`` bytes, zeroed and resident. Raises RegionError."""
        ...


def _claim(directory: Path, nonce: str, numbers: Iterator[int], mode: int) -> Claim:
    try:
        for _ in range(10):
            path = directory / f"tailrace-{os.getpid()}-{nonce}-{next(numbers)}"
            if claim := Claim.make(path, mode):
                return claim
    except OSError as error:
        raise RegionError(f"no shared memory in {directory}: {error}") from error
    raise RegionError(f"no shared memory in {directory}: the files are locked by others")


def _lent(buffer: Any) -> Lease[Any]:
    """A buffer as a lease that lasts as long as its region: returning it closes the buffer."""
    pool = Pool([buffer])
    lease = pool.try_lease()
    assert lease is not None
    pool.close()
    return lease


class SystemRegions:
    """Files in ``/dev/shm``. ``mode``: their permissions; a server that runs as another user needs
    more than the owner's."""

    name = "system_shared_memory"
    kind = SYSTEM
    threaded = False

    def __init__(self, spare: int, mode: int = 0o600, directory: Path = DIRECTORY) -> None:
        self.device = HostDevice()
        self.directory = directory
        self.spare = spare
        self._mode = mode
        self._nonce = secrets.token_hex(8)
        self._numbers = itertools.count()

    def make(self, size: int) -> SharedRegion:
        size = aligned(size, mmap.PAGESIZE)
        claim = _claim(self.directory, self._nonce, self._numbers, self._mode)
        try:
            # Without this a full /dev/shm (64 MiB in a container) shows as SIGBUS while packing.
            os.posix_fallocate(claim.descriptor, 0, size)
            mapping = mmap.mmap(claim.descriptor, size)
        except OSError as error:
            claim.close()
            raise RegionError(f"no {size} bytes in {self.directory}: {error}") from error
        name = claim.path.name
        registration = msgspec.json.encode({"key": f"/{name}", "offset": 0, "byte_size": size})
        lease = _lent(self.device.wrap(memoryview(mapping)))
        return SharedRegion(name, size, lease, registration, claim, mapping)


class CudaRegions:
    """Memory of a GPU, known to the server by CUDA IPC. ``server_index``: the GPU's number at the
    server, if it is not the one here. No spare ones: memory that the server has opened must not be
    freed, and the GPU's memory is the server's rather than ours."""

    name = "cuda_shared_memory"
    kind = CUDA
    threaded = True
    spare = 0

    def __init__(
        self, device: CupyDevice, server_index: int | None = None, directory: Path = DIRECTORY
    ) -> None:
        self.device = device
        self.directory = directory
        self._index = device.index if server_index is None else server_index
        self._nonce = secrets.token_hex(8)
        self._numbers = itertools.count()

    def make(self, size: int) -> SharedRegion:
        """Blocks the thread. Also raises DeviceError."""
        claim = _claim(self.directory, self._nonce, self._numbers, 0o600)
        try:
            buffer = self.device.allocate(size)
            handle = b64encode(self.device.ipc_handle(buffer)).decode()
        except BaseException:
            claim.close()
            raise
        registration = msgspec.json.encode(
            {"raw_handle": {"b64": handle}, "device_id": self._index, "byte_size": buffer.size}
        )
        return SharedRegion(claim.path.name, buffer.size, _lent(buffer), registration, claim)


# -- the server --------------------------------------------------------------------------------


class _Listed(msgspec.Struct):
    name: str
    byte_size: int


_listed = msgspec.json.Decoder(list[_Listed])


class Registry:
    """The server's list of regions of one kind. All methods raise NotUpError and RefusedError."""

    def __init__(self, control: Control, kind: str) -> None:
        self._control = control
        self._kind = kind

    async def register(self, region: SharedRegion) -> None:
        """Nothing happens where it is registered already: an earlier try may have timed out and
        yet succeeded."""
        try:
            await self._ask(f"/region/{region.name}/register", region.registration)
        except RefusedError:
            if (await self.listed()).get(region.name) != region.size:
                raise

    async def unregister(self, name: str) -> None:
        """While the server still uses the region for a request, it refuses this or puts it off,
        depending on its version; in either case the region is ``listed`` until then. One that is
        not registered is no error."""
        await self._ask(f"/region/{name}/unregister", b"")

    async def listed(self) -> dict[str, int]:
        """Name -> bytes."""
        try:
            return {
                each.name: each.byte_size for each in _listed.decode(await self._ask("/status"))
            }
        except (msgspec.MsgspecError, ValueError) as error:
            raise RefusedError(f"its list of regions is none: {error}") from error

    async def _ask(self, path: str, body: bytes | None = None) -> bytes:
        return await ask(self._control, f"/v2/{self._kind}{path}", body)


async def ask(control: Control, path: str, body: bytes | None = None) -> bytes:
    """The body of a 2xx answer to GET, or to POST with a ``body``. Raises NotUpError and
    RefusedError."""
    try:
        async with asyncio.timeout(PATIENCE):
            status, answer = await control("GET" if body is None else "POST", path, body or b"")
    except OSError as error:
        raise NotUpError(f"{type(error).__name__}: {error}") from error
    if status in (502, 503, 504):
        raise NotUpError(f"{path}: status {status}")
    if not 200 <= status < 300:
        text = answer[:200].decode("utf-8", "replace")
        raise RefusedError(f"the server says {status}: {text}")
    return answer


async def sweep(directory: Path, registries: Sequence[Registry]) -> int:
    """Unregister and unlink what tailraces that crashed have left behind; how many. In this order,
    because without the file nobody would know that the registration is stale. Raises NotUpError."""
    count = 0
    for claim in dead_claims(directory):
        try:
            for registry in registries:
                with contextlib.suppress(RefusedError):
                    await registry.unregister(claim.path.name)
        except BaseException:
            claim.abandon()
            raise
        claim.close()
        count += 1
    return count
