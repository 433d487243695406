"""python_runner: batches for a model that lives in this process, a function of the user's own.

For formats with tensors it gets a dict of arrays (NumPy, or CuPy on a GPU; torch takes both by
DLPack), which are views of a leased buffer and so not to be kept, and returns such a dict, or one
array, named ``output``. For the others it gets the list of all items (texts, token ids,
instances), and returns an array or a list with one row for each. What it returns is looked at like
a server's answer: rows, datatypes, sizes.

A function that finds fault with what a caller sent raises ``BadRequestError``: that caller alone
gets its text, with 400. Any other exception is a 500 that says nothing.

It runs on a worker thread and cannot be stopped there. So the buffer comes back when the function
returns, whether anybody still waits or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from gpu_batcher import hostcopy
from gpu_batcher.api import (
    SIZES,
    BadAnswerError,
    BadRequestError,
    Codec,
    FailedError,
    Job,
    Message,
    NoAnswerError,
    Reply,
    Tensor,
    TensorCodec,
    take_rows,
)
from gpu_batcher.buffers import Lease, Pool, PoolClosedError
from gpu_batcher.codecs import tensor_bytes
from gpu_batcher.codecs.tensor_bytes import DataError
from gpu_batcher.model_function import Function, LoadError, load_and_tell
from gpu_batcher.runners import Follows, lay_out, own_parts, strip

if TYPE_CHECKING:
    from gpu_batcher.device import Device
    from gpu_batcher.grid import Layout
    from gpu_batcher.packing import Packing

log = logging.getLogger("tailrace")

T = TypeVar("T")

FAREWELL = 5.0
"""Seconds that closing waits for the function to return."""
ONLY_FP32 = frozenset(("openai_embeddings",))
"""Formats whose outputs are FP32, so that other floats become it."""
DATATYPES = {kind: name for name, kind in hostcopy.DTYPES.items() if name != "BF16"}


class FunctionError(Exception):
    """The function has raised, or has no memory. Its own words stay in the log: they could name
    files, or tell of one caller's data to the others."""


class Workers:
    """Daemon threads: a function that never returns does not keep the process from ending."""

    def __init__(self, count: int) -> None:
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._queue = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"tailrace-model-{at}", daemon=True)
            for at in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._queue.put((future, work))
        return future

    def close(self, timeout: float) -> bool:
        """After what is queued. True if all have ended within ``timeout`` seconds for each.
        Blocks."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            future, work = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except StopIteration as error:  # Which no asyncio future takes.
                    future.set_exception(
                        RuntimeError("StopIteration").with_traceback(error.__traceback__)
                    )
                except BaseException as error:  # noqa: BLE001
                    future.set_exception(error)
            del future, work, item


class PythonRunner:
    """``function``: itself, or its name, which is then loaded on a worker thread while jobs wait.
    ``pool``: of ``device``'s buffers; None for formats without tensors. ``threads``: calls of the
    function at the same time."""

    def __init__(
        self,
        codec: Codec,
        packing: Packing,
        pool: Pool[Any] | None,
        device: Device,
        function: Function | str,
        threads: int = 1,
        follows: Follows | None = None,
    ) -> None:
        self._codec = codec
        self._packing = packing
        self.pool = pool
        self._device = device
        self._follows = follows or {}
        self._closed = False
        self._workers = Workers(threads)
        if isinstance(function, str):
            self._function = self._workers.submit(lambda: load_and_tell(function))
        else:
            self._function = Future()
            self._function.set_result(function)

    @property
    def name(self) -> str:
        """With what keeps it from working, if anything does."""
        if not self._function.done():
            return "python, loading"
        return "python, failed to load" if self.failed else "python"

    @property
    def failed(self) -> bool:
        """There is no such function. Only another runner will look again."""
        return self._function.done() and self._function.exception() is not None

    async def ready(self) -> None:
        """Returns when the function is loaded. Raises LoadError."""
        await asyncio.shield(asyncio.wrap_future(self._function))

    async def run(self, job: Job) -> list[Reply]:
        """See ``Runner``."""
        if self._closed:
            raise NoAnswerError(PoolClosedError("the runner is closed"), begun=False)
        try:
            await self.ready()
        except LoadError as error:
            raise NoAnswerError(error, begun=False) from error
        if self.pool is None:
            outputs, layout = await self._items(job), None
        else:
            outputs, layout = await self._tensors(job, self.pool)
        calls, codec = job.calls, self._codec
        if layout is not None:
            own = own_parts(outputs, layout, self._follows)
            return cast("TensorCodec", codec).deal(calls, outputs, None, own)
        parts = _divided(outputs, [call.rows for call in calls])
        return [codec.reply(call, own) for call, own in zip(calls, parts, strict=True)]

    async def close(self) -> None:
        """Waits a while for the function to return; if it does not, its thread is left to die with
        the process."""
        self._closed = True
        ended = await asyncio.to_thread(self._workers.close, FAREWELL)
        if not ended:
            log.warning("the model function does not return, and is left behind")
        await asyncio.sleep(0)  # For leases to come back.
        if self.pool is not None:
            self.pool.close()

    async def _tensors(self, job: Job, pool: Pool[Any]) -> tuple[list[Tensor], Layout]:
        try:
            lease = await pool.lease()
        except PoolClosedError as error:
            raise NoAnswerError(error, begun=False) from error
        try:
            layout = lay_out(job.calls, self._packing, lease.buffer.size, lease.buffer.staging)
        except BaseException:
            lease.release()
            raise
        job.padding = layout.padding_share
        rows = layout.rows

        def work() -> list[Tensor]:
            packed = self._device.pack(layout, lease)
            strip(layout)
            given = self._device.arrays(packed, lease)
            return self._called(given, rows, spans=any(each.spans for each in layout.entries))

        return await self._work(work, lease), layout

    async def _items(self, job: Job) -> list[Tensor]:
        given = [_plain(item) for call in job.calls for item in call.items]
        return await self._work(lambda: self._called(given, len(given), spans=False), None)

    async def _work(self, work: Callable[[], T], lease: Lease[Any] | None) -> T:
        """Cancelled before it begins, it never does."""
        loop = asyncio.get_running_loop()
        future = self._workers.submit(work)
        if lease is not None:

            def ended(_: Future[T]) -> None:
                with contextlib.suppress(RuntimeError):  # The loop is closed.
                    loop.call_soon_threadsafe(lease.release)

            future.add_done_callback(ended)
        try:
            return await asyncio.wrap_future(future)
        except (BadAnswerError, asyncio.CancelledError):
            raise
        except BaseException as error:
            raise _failure(error, self._codec.name) from error

    def _called(self, given: Any, rows: int, *, spans: bool) -> list[Tensor]:
        """On the worker thread: what the function returns, copied, because it may be the very
        memory that it was given."""
        result = self._function.result()(given)
        named = result if isinstance(result, Mapping) else {"output": result}
        if not named:
            raise BadAnswerError("the model function returned no outputs")
        single = self._codec.name in ONLY_FP32
        return [
            _tensor(name, value, None if spans else rows, single) for name, value in named.items()
        ]


def _failure(error: BaseException, form: str) -> FailedError | NoAnswerError:
    """What callers may know of it. A batch's error is told to nobody, but parts it, so what is said
    here is only ever said to one who was alone."""
    if isinstance(error, BadRequestError):  # No fault of the function's, and callers fill no logs.
        return _answered(400, str(error), form)
    log.error("the model function failed", exc_info=error)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"MemoryError", "OutOfMemoryError"}:  # CuPy's and torch's are called so.
        return NoAnswerError(FunctionError("the model function is out of memory"), begun=False)
    return _answered(500, "the model function failed", form)


def _answered(status: int, text: str, form: str) -> FailedError:
    """In the error shape of the format. It would say the same again, so clients need not ask."""
    told: object = text
    if form in ONLY_FP32:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        told = {"message": text, "type": kind, "param": None, "code": None}
    head = {b"content-type": b"application/json", b"x-should-retry": b"false"}
    return FailedError(Message([msgspec.json.encode({"error": told})], head, status))


def _plain(item: object) -> object:
    return msgspec.json.decode(item) if isinstance(item, msgspec.Raw) else item


def _tensor(name: object, value: Any, rows: int | None, single: bool) -> Tensor:
    """Raises BadAnswerError. ``rows``: None where an output may be concatenated, so that only
    dividing it can tell. ``single``: floats become FP32."""
    if not isinstance(name, str):
        raise BadAnswerError("the model function returned an output whose name is no text")
    np = import_module("numpy")
    try:
        if hasattr(value, "detach"):  # torch
            value = value.detach().cpu()
        elif hasattr(value, "__cuda_array_interface__"):  # CuPy
            value = value.get()
        array = np.asarray(value)
        if single and array.dtype.kind == "f":
            array = array.astype("<f4")
        datatype, data = _bytes_of(np, array)
    except (TypeError, ValueError, AttributeError) as error:
        raise BadAnswerError(f"output {name!r}: not an array: {error}") from error
    shape = tuple(int(length) for length in array.shape)
    if not shape or (rows is not None and shape[0] != rows):
        raise BadAnswerError(f"output {name!r}: shape {list(shape)[:8]} for {rows} rows")
    if SIZES[datatype] and len(data) != prod(shape) * SIZES[datatype]:
        raise BadAnswerError(f"output {name!r}: {len(data)} bytes for the shape {list(shape)[:8]}")
    return Tensor(name, datatype, shape, data)


def _bytes_of(np: Any, array: Any) -> tuple[str, bytes]:
    kind = array.dtype
    if kind.name == "bfloat16":
        return "BF16", array.tobytes()
    if kind.kind in "OSU":
        return "BYTES", b"".join(_element(each) for each in array.ravel().tolist())
    kind = kind.newbyteorder("<")
    datatype = next((name for each, name in DATATYPES.items() if np.dtype(each) == kind), None)
    if datatype is None:
        raise ValueError(f"elements of {array.dtype}")
    return datatype, array.astype(kind, copy=False).tobytes()


def _element(value: object) -> bytes:
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, bytes):
        raise TypeError(f"elements of {type(value).__name__}")
    return len(value).to_bytes(4, "little") + value


def _divided(outputs: Sequence[Tensor], counts: Sequence[int]) -> list[list[Tensor]]:
    """Each call's rows of each output."""
    parts: list[list[Tensor]] = [[] for _ in counts]
    for output in outputs:
        size = SIZES[output.datatype]
        stops = []
        if not size:
            try:
                each = prod(output.shape[1:])
                data = memoryview(output.data)
                stops = tensor_bytes.ends(data, [count * each for count in counts])
            except DataError as error:
                raise BadAnswerError(f"output {output.name!r} {error}") from error
        start = at = 0
        for place, count in enumerate(counts):
            if size:
                parts[place].append(take_rows(output, start, count))
            else:
                own = (count, *output.shape[1:])
                own_data = data[at : stops[place]]
                parts[place].append(Tensor(output.name, output.datatype, own, own_data))
                at = stops[place]
            start += count
    return parts
