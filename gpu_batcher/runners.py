"""runners: where a batch goes by HTTP, and what all runners have in common.

``HttpRunner`` sends the callers' own bytes where nothing has to be padded or concatenated, and
otherwise what was packed in a leased buffer. It always packs on the host: what was packed on a
GPU would have to be copied back to be sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import msgspec

from gpu_batcher import hostcopy
from gpu_batcher.api import (
    SIZES,
    BadAnswerError,
    Call,
    Codec,
    FailedError,
    Job,
    Message,
    NoAnswerError,
    Reply,
    Send,
    Tensor,
    TensorCodec,
    TooLargeError,
)
from gpu_batcher.buffers import Pool, PoolClosedError
from gpu_batcher.codecs.kserve_v2_answer import flat
from gpu_batcher.grid import DoesNotFitError, Entry, Layout, LayoutError, following
from gpu_batcher.layout import make

if TYPE_CHECKING:
    from gpu_batcher.host import HostBuffer, HostDevice
    from gpu_batcher.packing import Packing

Follows = Mapping[str, str]
"""Output -> the input that it is padded like: each caller then gets its own part of it, without
the padding. Outputs that are not here are divided by rows."""


class HttpRunner:
    """One request for a batch, sent as any other one is. ``pool``: of ``device``'s buffers, None
    for formats without tensors, whose requests are joined as text.

    The leased buffer is returned before the request is sent, because retries and hedges may hold
    the body for long: the body is a copy of it.
    """

    name = "http"

    def __init__(
        self,
        codec: Codec,
        packing: Packing,
        pool: Pool[HostBuffer] | None,
        device: HostDevice,
        send: Send,
        follows: Follows | None = None,
    ) -> None:
        self._codec = codec
        self._packing = packing
        self.pool = pool
        self._device = device
        self._send = send
        self._follows = follows or {}

    async def run(self, job: Job) -> list[Reply]:
        calls, codec = job.calls, self._codec
        if self.pool is None or is_plain(calls, self._packing):
            layout = None
            try:
                message = codec.join(calls)
            except ValueError as error:
                raise refusal(calls, 400, error) from error
        else:
            message, layout = await self._packed(job, self.pool)
        answer = await self._send(message, job)
        if not 200 <= answer.status < 300:
            raise FailedError(answer)
        if layout is None or not self._follows:
            return codec.divide(calls, answer)
        tensors = cast("TensorCodec", codec)
        outputs = tensors.outputs(answer)
        own = own_parts(outputs, layout, self._follows)
        return tensors.deal(calls, outputs, answer, own)

    async def close(self) -> None:
        if self.pool is not None:
            self.pool.close()

    async def _packed(self, job: Job, pool: Pool[HostBuffer]) -> tuple[Message, Layout]:
        codec = cast("TensorCodec", self._codec)
        try:
            lease = await pool.lease()
        except PoolClosedError as error:
            raise NoAnswerError(error, begun=False) from error
        with lease as buffer:
            layout = lay_out(job.calls, self._packing, buffer.size)
            packed = self._device.pack(layout, lease)
            message = codec.head(job.calls, packed.inputs, ())
            body = b"".join(message.body)
        job.padding = layout.padding_share
        strip(layout)
        return Message([body], message.head), layout


def is_plain(calls: Sequence[Call], packing: Packing) -> bool:
    """Would packing put the inputs together as they are, rows after rows, and make no others? Then
    joining is enough. O(calls * inputs)."""
    for place, first in enumerate(calls[0].inputs):
        rule, tail = packing.rule(first.name), first.shape[1:]
        if rule.extras() or (rule.axes and packing.mode == "ragged"):
            return False
        for call in calls:
            if place >= len(call.inputs) or call.inputs[place].shape[1:] != tail:
                return False
        if packing.mode == "bucket":
            lengths = [first.shape[axis] for axis in rule.axes or () if axis < len(first.shape)]
            if any(length not in packing.buckets for length in lengths):
                return False
    return True


def lay_out(calls: Sequence[Call], packing: Packing, capacity: int, staging: int = 0) -> Layout:
    """``layout.make`` for a runner. Raises TooLargeError, and FailedError for a call alone."""
    try:
        return make(calls, packing, capacity, staging)
    except DoesNotFitError as error:
        raise refusal(calls, 413, error) from error
    except LayoutError as error:
        raise refusal(calls, 400, error) from error


def refusal(calls: Sequence[Call], status: int, why: object) -> TooLargeError | FailedError:
    """What to raise for calls that cannot be one request. The reason may speak of one of them, so
    several are not told it."""
    if len(calls) > 1:
        return TooLargeError(f"{len(calls)} calls cannot be packed together")
    body = msgspec.json.encode({"error": str(why)})
    return FailedError(Message([body], {b"content-type": b"application/json"}, status))


def strip(layout: Layout) -> None:
    """Drop the views of the callers' bodies, once they were packed: an answer may take long."""
    for entry in layout.entries:
        entry.pieces = []


def own_parts(
    outputs: Sequence[Tensor], layout: Layout, follows: Follows
) -> dict[str, list[Tensor]]:
    """Of each output that follows an input which was padded or concatenated: every call's own part,
    in order. Raises BadAnswerError where it does not have that input's dimensions. O(bytes)."""
    entries = {entry.name: entry for entry in layout.entries}
    own = {}
    for output in outputs:
        entry = entries.get(follows.get(output.name, ""))
        if entry is None or not (entry.axes or entry.spans):
            continue
        try:
            cut = _ragged if entry.spans else _padded
            own[output.name] = cut(output, entry, layout.counts)
        except ValueError as error:
            raise BadAnswerError(f"output {output.name!r}: {error}") from error
    return own


def _padded(output: Tensor, entry: Entry, counts: Sequence[int]) -> list[Tensor]:
    found = following(entry, counts, output.datatype, output.shape)
    assert found is not None
    grid, shapes = found
    parts = hostcopy.read(flat(output.data), grid)
    return [
        Tensor(output.name, output.datatype, shape, part)
        for shape, part in zip(shapes, parts, strict=True)
    ]


def _ragged(output: Tensor, entry: Entry, counts: Sequence[int]) -> list[Tensor]:
    """A call's rows are all of the same length, so its part is (rows, length, ...) again."""
    size, shape, spans = SIZES.get(output.datatype), output.shape, entry.spans
    if not size or not shape or shape[0] != spans[-1]:
        raise LayoutError(f"shape {list(shape)} is not concatenated like {list(entry.shape)}")
    each = size
    for length in shape[1:]:
        each *= length
    data = flat(output.data)
    if len(data) != each * shape[0]:
        raise LayoutError(f"{len(data)} bytes for the shape {list(shape)}")
    parts = []
    for begin, end, rows in zip(spans, spans[1:], counts, strict=False):
        own = (rows, (end - begin) // rows, *shape[1:])
        parts.append(Tensor(output.name, output.datatype, own, data[begin * each : end * each]))
    return parts
