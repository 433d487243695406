"""Batches of log lines to a file descriptor, on a thread, because any write may block for ever.

A pipe that nobody reads, a full disk and a closed terminal are ordinary life for a log. None of
them may cost a request anything but its line, so lines wait in a bounded queue, and what does not
fit is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

log = logging.getLogger("tailrace")

FLUSH_S = 0.15
"""Lines are handed over at most this much later: soon enough for whoever watches the log."""
BATCH_BYTES = 64 * 1024
"""Or when they are this many: one write is then worth the wake-up of a thread."""
BATCHES = 64
"""Batches that may wait, 4 MiB: a disk that hesitates for seconds loses nothing."""
_STREAMS = {"stdout": 1, "stderr": 2}


class LogWriter:
    """Lines for ``path``: ``stdout``, ``stderr`` or a file, which may be rotated away.

    The thread starts with the first batch. ``put`` never blocks: O(1), and every ``BATCH_BYTES``
    a join of the batch.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lines: list[str] = []
        self._bytes = 0
        self._armed = False
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Event | None = None
        self._overflowed = 0
        self._target = _Target(path)

    @property
    def dropped(self) -> int:
        """Lines lost because the queue was full or the write failed."""
        return self._overflowed + self._target.lost

    def put(self, line: str) -> None:
        """Take one line, ASCII with its newline. Call it on the event loop."""
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes >= BATCH_BYTES:
            self._flush()
        elif not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_later(FLUSH_S, self._tick)

    async def stop(self, seconds: float) -> None:
        """Write what is left, but wait no longer than ``seconds`` for it. A second call is free."""
        loop = asyncio.get_running_loop()
        if self._ended is None:
            self._ended = asyncio.Event()
            self._flush()
            if self._thread is None:
                self._ended.set()
            else:
                self._loop = loop
                self._queue.put(None)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()

    def _tick(self) -> None:
        self._armed = False
        self._flush()

    def _flush(self) -> None:
        if not self._lines:
            return
        count, data = len(self._lines), "".join(self._lines).encode("ascii", "replace")
        self._lines = []
        self._bytes = 0
        if self._queue.qsize() >= BATCHES:
            self._overflowed += count
            return
        self._queue.put(data)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            self._target.write(data)
        self._target.close()
        with suppress(RuntimeError):  # the loop is closed: nobody waited this long
            self._loop.call_soon_threadsafe(self._ended.set)  # type: ignore[union-attr]


class _Target:
    """The descriptor behind a path. All of it runs on the writer's thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1
        self._torn = False
        self._failing = False
        self.lost = 0

    def write(self, data: bytes) -> None:
        """Write all of ``data``, however long it takes, or count what was lost."""
        if self._torn:
            data = b"\n" + data
        view = memoryview(data)
        try:
            descriptor = self._open()
            while view:
                try:
                    view = view[os.write(descriptor, view) :]
                except BlockingIOError:
                    poll = select.poll()
                    poll.register(descriptor, select.POLLOUT)
                    poll.poll(1000)
        except OSError as error:
            self._failed(bytes(view), error, untouched=len(view) == len(data))
        else:
            self._torn = self._failing = False

    def _failed(self, rest: bytes, error: OSError, *, untouched: bool) -> None:
        self.lost += rest.count(b"\n") - (self._torn and untouched)
        # Half a line may stand there now; the next batch begins on a line of its own.
        self._torn = self._torn or not untouched
        if not self._failing:
            self._failing = True
            log.error("access log: %s", error)

    def _open(self) -> int:
        """The descriptor; of a file that was moved or deleted, one of a new file in its place."""
        stream = _STREAMS.get(self._path)
        if stream is not None:
            # Started with the stream closed, its number may since be a client's socket.
            if (sys.__stdout__ if stream == 1 else sys.__stderr__) is None:
                raise OSError(f"{self._path} is closed")
            return stream
        if self._descriptor >= 0 and not self._moved():
            return self._descriptor
        self.close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o640)
        return self._descriptor

    def _moved(self) -> bool:
        try:
            return not os.path.samestat(Path(self._path).stat(), os.fstat(self._descriptor))
        except OSError:
            return True

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
