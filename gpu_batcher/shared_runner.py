"""shared_runner: batches through memory that the model server has mapped as well; over the socket
goes only what they are.

Each batch in flight has a slot with a region: the inputs, and behind them such outputs as have a
known size. Where no slot is free, jobs go by HTTP, and nobody waits. Whatever goes wrong with the
shared memory itself is nobody's fault among the callers: it is put right and the job repeated once,
or it goes by HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

from gpu_batcher.api import (
    FailedError,
    Job,
    Message,
    NoAnswerError,
    Placed,
    Reply,
    Runner,
    Send,
    Tensor,
    TensorCodec,
)
from gpu_batcher.buffers import PoolClosedError
from gpu_batcher.codecs.kserve_v2_request import Ask
from gpu_batcher.grid import DoesNotFitError, Entry, Layout, Region, aligned, regions
from gpu_batcher.metadata import Model, Models, expected, size_of
from gpu_batcher.runners import Follows, lay_out, own_parts, strip
from gpu_batcher.shared_memory import Control, NotUpError, RefusedError, Regions, SharedRegion
from gpu_batcher.slots import Sleep, Slot, Slots

if TYPE_CHECKING:
    from gpu_batcher.buffers import Pool
    from gpu_batcher.packing import Packing

log = logging.getLogger("tailrace")

Trouble = Literal["region", "output", "other"]
T = TypeVar("T")

MIDDLEMEN = frozenset((408, 502, 504))
"""Statuses of a proxy that has given up, or of a server that has on a part of itself: not a word
on whether the inference has ended."""


@dataclass(slots=True)
class _Batch:
    """Packed. ``outputs`` have a place each, in ``places``, in order."""

    model: Model
    layout: Layout
    inputs: list[Placed]
    outputs: list[Placed]
    places: list[Region]


class _TroubleError(Exception):
    """It did not work out with the shared memory. ``other``: and cannot be put right."""

    def __init__(self, kind: Trouble, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class SharedMemoryRunner:
    """``slots``: as many as there are batches in flight. ``inputs`` and ``outputs``: bytes for them
    in each. ``fallback``: for jobs while no slot is free; it is not closed here."""

    def __init__(
        self,
        codec: TensorCodec,
        packing: Packing,
        regions: Regions,
        send: Send,
        control: Control,
        fallback: Runner,
        *,
        slots: int,
        inputs: int,
        outputs: int,
        follows: Follows | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.name = regions.name
        self.models = Models(control)
        size = aligned(inputs) + aligned(outputs)
        self.slots = Slots(regions, control, slots, size, self.models.forget, sleep)
        self._device = regions.device
        self._codec = codec
        self._packing = packing
        self._send = send
        self._fallback = fallback
        self._inputs = aligned(inputs)
        self._follows = follows or {}
        self._zeros = bytes(size)
        self._closed = False

    @property
    def pool(self) -> Pool[Slot] | None:
        """One buffer for each slot; None before the runner is open."""
        return self.slots.pool

    async def open(self) -> None:
        """Once, before the first job. Raises NotUpError, RefusedError, RegionError and
        DeviceError; then nothing is left behind."""
        await self.slots.open()

    async def run(self, job: Job) -> list[Reply]:
        """See ``Runner``."""
        if self._closed:
            raise NoAnswerError(PoolClosedError("the runner is closed"), begun=False)
        lease = self.slots.try_lease()
        if lease is None:
            return await self._fallback.run(job)
        try:
            return await self._repeated(lease.buffer, job)
        except _TroubleError as error:
            log.warning("a batch goes by http rather than %s: %s", self.name, error)
        except NoAnswerError as error:
            # It was sent once, whatever retry may say, so that its memory has one writer. That
            # memory is given up now, and elsewhere the batch may be sent again like any request.
            if not error.broken:
                raise
        finally:
            self.slots.give_back(lease)
        _settle(job)
        return await self._fallback.run(job)

    async def close(self) -> None:
        """See ``Runner``. Takes up to some seconds, if the server does not answer."""
        self._closed = True
        self.models.close()
        await self.slots.close()

    async def _repeated(self, slot: Slot, job: Job) -> list[Reply]:
        """What goes wrong with the shared memory is put right, each kind once."""
        known: set[Trouble] = {"other"}
        while True:
            try:
                return await self._once(slot, job)
            except _TroubleError as error:
                if error.kind in known:
                    slot.stale = True
                    raise
                known.add(error.kind)
            _settle(job)

    async def _once(self, slot: Slot, job: Job) -> list[Reply]:
        codec, region = self._codec, slot.region
        assert region is not None
        try:
            await self.slots.register(slot)
        except (NotUpError, RefusedError) as error:
            raise _TroubleError("other", str(error)) from error
        batch = await self._pack(slot, region, job)
        message = codec.head(job.calls, batch.inputs, batch.outputs)
        message = Message([b"".join(message.body)], message.head)
        slot.begun = True
        try:
            answer = await self._send(message, job, once=True)
        except NoAnswerError as error:
            slot.begun = error.begun
            raise
        if not 200 <= answer.status < 300:
            raise self._failure(slot, region, batch, answer)
        outputs = codec.outputs(answer)
        slot.begun = False
        self._check(outputs, batch)
        if batch.places:
            found = await self._work(slot, lambda: self._device.fetch(region.lease, batch.places))
            data = {place.name: each for place, each in zip(batch.places, found, strict=True)}
            for output in outputs:
                if not len(output.data):
                    output.data = data.get(output.name, output.data)
        own = own_parts(outputs, batch.layout, self._follows)
        return codec.deal(job.calls, outputs, answer, own)

    async def _pack(self, slot: Slot, region: SharedRegion, job: Job) -> _Batch:
        layout = lay_out(job.calls, self._packing, self._inputs, region.staging)
        ask = job.calls[0].notes
        assert isinstance(ask, Ask)
        model = Model(ask.model, ask.version)
        named = [each.name for each in ask.outputs]
        known = self.models.outputs(model)
        wanted = expected(known, named, layout, self._packing, self._follows)
        places = _places(wanted, layout, len(self._zeros), region.staging)
        count = len(layout.entries)
        if places:
            self._clear(layout, places)

        def pack() -> list[Placed]:
            packed = self._device.pack(layout, region.lease)
            packed.wait()
            return packed.inputs

        packed = await self._work(slot, pack)
        job.padding = layout.padding_share
        strip(layout)
        del layout.entries[count:]
        inputs = [
            # A place without bytes is none to a server.
            Placed(each.tensor, region.name, each.offset) if entry.size else Placed(each.tensor)
            for entry, each in zip(layout.entries, packed, strict=False)
        ]
        outputs = [
            Placed(tensor, region.name, place.offset)
            for tensor, place in zip(wanted, places, strict=False)
        ]
        return _Batch(model, layout, inputs, outputs, places)

    def _clear(self, layout: Layout, places: Sequence[Region]) -> None:
        """Zeros where the outputs go, as one more input that the server is not told of. What an
        earlier batch left there must reach nobody, should a server answer without having
        written."""
        start, end = places[0].offset, places[-1].offset + places[-1].size
        zeros = memoryview(self._zeros)[: end - start]
        entry = Entry("", "UINT8", (end - start,), start, end - start, [zeros])
        entry.staged = aligned(layout.staged)
        layout.entries.append(entry)
        layout.size, layout.staged = end, entry.staged + len(zeros)

    def _failure(
        self, slot: Slot, region: SharedRegion, batch: _Batch, answer: Message
    ) -> FailedError | _TroubleError:
        """What a status other than 2xx means."""
        text = _error_of(answer)
        if text is None or answer.status in MIDDLEMEN:
            return FailedError(answer)
        slot.begun = False
        if region.name in text:
            # It is the server's own complaint: callers are never told the name.
            self.slots.unknown(slot)
            return _TroubleError("region", text[:200])
        if "shared memory" in text and any(each.tensor.name in text for each in batch.outputs):
            self.models.distrust(batch.model)
            return _TroubleError("output", text[:200])
        return FailedError(answer)

    def _check(self, outputs: Sequence[Tensor], batch: _Batch) -> None:
        """Raises _TroubleError if an output with a place is not what its model said."""
        found = {output.name: (output.datatype, output.shape) for output in outputs}
        for placed in batch.outputs:
            wanted = placed.tensor
            if found.get(wanted.name) != (wanted.datatype, wanted.shape):
                self.models.distrust(batch.model)
                text = f"output {wanted.name!r} is not what its model said"
                raise _TroubleError("output", text)

    async def _work(self, slot: Slot, work: Callable[[], T]) -> T:
        try:
            return await self.slots.work(slot, work)
        except RuntimeError as error:  # Of a GPU that fails.
            raise _TroubleError("other", f"{type(error).__name__}: {error}") from error


def _places(wanted: Sequence[Tensor], layout: Layout, capacity: int, staging: int) -> list[Region]:
    """Behind the inputs; none where they do not fit."""
    sizes = [(each.name, size_of(each)) for each in wanted]
    try:
        places = regions(sizes, capacity, layout.size)
    except DoesNotFitError:
        return []
    if places and staging:
        size = places[-1].offset + places[-1].size - places[0].offset
        if aligned(layout.staged) + size > staging:
            return []
    return places


class _Error(msgspec.Struct):
    error: str


_errors = msgspec.json.Decoder(_Error)


def _error_of(answer: Message) -> str | None:
    """What the server itself says; None if it is not its own answer."""
    try:
        return _errors.decode(answer.joined()).error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _settle(job: Job) -> None:
    """The job is sent once more. What went wrong was ours, and not the server's."""
    if job.settle is not None:
        job.settle(True)
        job.settle = None
