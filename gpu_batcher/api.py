"""api: the words of the batcher, shared by codecs, plan, packing, runners and the coalescer. Pure.

The journey of a request: a ``Codec`` reads its body as a ``Call`` (or says that it goes alone, or
that it is bad); the plan puts calls that may be joined into a batch; a runner sends the batch as
one inference; the codec divides the answer, and each caller gets a ``Reply`` with its own rows and
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

SIZES: Mapping[str, int] = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2,
    "INT32": 4, "INT64": 8, "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8, "BYTES": 0,
}  # fmt: skip
"""Bytes of one element by datatype of the Open Inference Protocol; 0: it varies."""


Data = bytes | bytearray | memoryview


class BadRequestError(ValueError):
    """A caller's mistake: 400 for this request alone. The text is for the caller."""


class BadAnswerError(ValueError):
    """An answer that cannot be divided among the callers (too few rows, another datatype or shape,
    a missing output): 502 for all of its batch, and the endpoint is to blame. Never guessed at."""


@dataclass(slots=True)
class Tensor:
    """``data`` is as on the wire of the binary extension: little-endian, row-major; BYTES: each
    element as its length (32 bits) and its bytes. ``shape`` holds no negative number, and its
    first dimension is the batch. ``data`` may be a view of somebody's body or of a leased buffer,
    so it is not to outlive either."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Data

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1


@dataclass(slots=True)
class Message:
    """An HTTP request to, or answer of, the upstream. ``head`` are header lines by lower-case name,
    those that the codec has something to say about; ``body`` the chunks in order."""

    body: list[Data]
    head: dict[bytes, bytes] = field(default_factory=dict)
    status: int = 200

    def joined(self) -> bytes:
        body = self.body
        return body[0] if len(body) == 1 and isinstance(body[0], bytes) else b"".join(body)


@dataclass(slots=True, eq=False)
class Call:
    """One caller's request, read. Calls may be joined exactly if their ``key`` is equal; whatever
    would make a difference to the server is in it: model, version, names, datatypes and fixed
    dimensions of the inputs, outputs asked for, parameters.

    ``rows``: of the batch dimension, at least 1. ``size``: bytes of its part of a packed batch.
    ``length``: of its longest variable dimension, 1 where nothing varies; what padding goes by.
    ``inputs``: its tensors, where the format has tensors. ``items``: one for each row, where it has
    none (``instances``, texts). ``notes``: the codec's own, for the reply.
    """

    key: Hashable
    rows: int
    size: int
    length: int = 1
    inputs: tuple[Tensor, ...] = ()
    items: Sequence[object] = ()
    notes: object = None


@dataclass(slots=True)
class Reply:
    """What one caller gets."""

    status: int
    head: dict[bytes, bytes]
    body: bytes


class Codec(Protocol):
    """A request format. Pure; every method O(bytes) with copies only where the format needs them.

    Nothing is allocated by a size that the body only claims.
    """

    name: str

    def read(self, target: bytes, head: Mapping[bytes, bytes], body: memoryview) -> Call | None:
        """None: understood too little to join it; it goes alone, untouched. Raises
        BadRequestError."""
        ...

    def join(self, calls: Sequence[Call]) -> Message:
        """One request for the upstream with the rows of all, in order. For runners that send the
        format itself; tensors that were packed go by ``TensorCodec.head``."""
        ...

    def divide(self, calls: Sequence[Call], answer: Message) -> list[Reply]:
        """Of a 2xx answer to ``join``: a reply for each call, in order. Raises BadAnswerError."""
        ...

    def reply(self, call: Call, outputs: Sequence[Tensor]) -> Reply:
        """Of one call, from its own rows of each output, as the ``python`` runner makes them."""
        ...


class TensorCodec(Codec, Protocol):
    """A format whose inputs are tensors, so they can be packed and sent as binary or by shared
    memory."""

    def head(
        self, calls: Sequence[Call], inputs: Sequence[Placed], outputs: Sequence[Placed]
    ) -> Message:
        """The request for packed inputs: those with a ``region`` are named in it, the bytes of the
        others follow. ``outputs``: where the server is to write; empty: into its answer."""
        ...

    def outputs(self, answer: Message) -> list[Tensor]:
        """Of an answer to ``head``; data of outputs in shared memory is empty. Raises
        BadAnswerError."""
        ...

    def deal(
        self,
        calls: Sequence[Call],
        outputs: Sequence[Tensor],
        answer: Message | None = None,
        own: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> list[Reply]:
        """A reply for each call. ``outputs``: as ``outputs`` gave them with what stands in shared
        memory filled in, or as a function in this process made them (then there is no ``answer``).
        ``own``: of outputs that were padded, by name, each call's own part in the callers' order,
        instead of rows of the whole. Raises BadAnswerError."""
        ...


@dataclass(slots=True)
class Job:
    """A batch, or a part of one, on its way to a runner. ``calls`` have equal keys. ``origins``:
    the edge's own word for each caller. ``deadline`` is the latest of theirs, in the clock's
    seconds: nobody wants an answer after it.

    What is noted on the way: by the runner ``padding``, the share of padded elements; by ``Send``
    ``settle``, which is called once it turned out to be of use (True), or not.
    """

    calls: Sequence[Call]
    origins: Sequence[Any]
    deadline: float | None = None
    padding: float = 0.0
    settle: Callable[[bool], object] | None = None


class FailedError(Exception):
    """The server answered, but not with 2xx."""

    def __init__(self, answer: Message) -> None:
        super().__init__(f"status {answer.status}")
        self.answer = answer


class NoAnswerError(Exception):
    """No answer, or none that means anything for a single request: a timeout, a broken connection,
    no endpoint. ``cause`` is what callers are to be told by whoever knows them; ``begun``: the
    server may still be at work on it, so memory that it was given is not to be used again;
    ``broken``: the connection broke without an answer, as a kept one does that a server closes."""

    def __init__(self, cause: Exception, *, begun: bool = True, broken: bool = False) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.begun = begun
        self.broken = broken


class TooLargeError(Exception):
    """A job of several calls does not fit the runner's buffers; fewer of them may."""


class Clock(Protocol):
    """Monotonic seconds, and the only way to be called later."""

    def now(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], object]) -> Handle: ...


class Handle(Protocol):
    """A timer that can be called off."""

    def cancel(self) -> None: ...


class Send(Protocol):
    """The seam to the network: one request, its whole answer."""

    async def __call__(self, message: Message, job: Job, *, once: bool = False) -> Message:
        """Send ``message`` to where the job's requests go, with retries, hedges and all. ``once``:
        to one server, one time and over one connection, because it names memory that two
        inferences must not write to. Returns an
        answer of any status; raises NoAnswerError. Cancelling it breaks the request off, and tells
        the server no more than that its client is gone."""
        ...


class Runner(Protocol):
    """Where batches go."""

    @property
    def name(self) -> str: ...

    async def run(self, job: Job) -> list[Reply]:
        """A reply for each call, in order. Raises FailedError, NoAnswerError, BadAnswerError and
        TooLargeError; when it is cancelled, it sees to what it has lent out."""
        ...

    async def close(self) -> None:
        """After the last job: give everything back. Raises nothing."""
        ...


@dataclass(slots=True)
class Placed:
    """A packed tensor of a batch: ``tensor.data`` is a view of the leased buffer. ``region`` is the
    shared-memory region it lies in at ``offset``, if any."""

    tensor: Tensor
    region: str = ""
    offset: int = 0


def take_rows(output: Tensor, start: int, rows: int) -> Tensor:
    """Rows ``start`` to ``start + rows`` of a tensor with fixed-size elements, without a copy.
    BYTES has rows of different sizes; its codec walks them."""
    per_row = len(output.data) // output.shape[0] if output.shape[0] else 0
    data = memoryview(output.data)[start * per_row : (start + rows) * per_row]
    return Tensor(output.name, output.datatype, (rows, *output.shape[1:]), data)
