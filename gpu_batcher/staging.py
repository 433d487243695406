"""staging: callers' bytes copied into one memory, in portions that can be sent on as they come.

A copy to the GPU takes less time than the copy that goes before it, from the callers' memory into
pinned memory, which one core does at 10 GB/s or so. So the second begins long before the first
has ended, and a batch of several portions may be staged by several threads.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from gpu_batcher.api import Data
from gpu_batcher.grid import STAGE, aligned

CHUNK = 1 << 19
"""Bytes of a portion, about."""
Part = tuple[int, Data]


class Stager:
    """``copiers``: threads to copy with; 1 copies in the calling thread, as does a small batch.
    More than one need NumPy, which lets other threads run while it copies."""

    __slots__ = ("_threads",)

    def __init__(self, copiers: int = 1) -> None:
        self._threads = ThreadPoolExecutor(copiers, "stage") if copiers > 1 else None

    def stage(self, memory: memoryview, pieces: Sequence[Data], align: int) -> Generator[int]:
        """Copy pieces to the start of ``memory``, each to a multiple of ``align``; after each
        portion say up to where everything is there. Exhaust it or close it: only then does no
        thread write any more."""
        work = portions(pieces, align)
        if self._threads is None or len(work) < 3:
            for parts, reached in work:
                for at, data in parts:
                    memory[at : at + len(data)] = data
                yield reached
            return
        under_way: list[Future[None]] = []
        try:
            under_way += [self._threads.submit(_copy, memory, parts) for parts, _ in work]
            for future, (_, reached) in zip(under_way, work, strict=True):
                future.result()
                yield reached
        finally:
            wait(under_way)

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()


def portions(pieces: Sequence[Data], align: int) -> list[tuple[list[Part], int]]:
    """Pieces with their places, in portions of about ``CHUNK`` bytes, and where each portion ends.
    A piece that is larger than a portion is divided."""
    work: list[tuple[list[Part], int]] = []
    parts: list[Part] = []
    at = begin = 0
    for piece in pieces:
        at, rest = aligned(at, align), piece
        while len(rest):
            room = max(begin + CHUNK - at, STAGE)
            part = rest if len(rest) <= room else memoryview(rest)[:room]
            rest = memoryview(rest)[len(part) :]
            parts.append((at, part))
            at += len(part)
            if at >= begin + CHUNK:
                work.append((parts, at))
                parts, begin = [], at
    if parts:
        work.append((parts, at))
    return work


def _copy(memory: memoryview, parts: list[Part]) -> None:
    import numpy as np  # Whoever has more than one thread has it loaded.

    target = np.frombuffer(memory, np.uint8)
    for at, data in parts:
        target[at : at + len(data)] = np.frombuffer(data, np.uint8)
