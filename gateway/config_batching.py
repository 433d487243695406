"""``routes[].batching``: the structs, with every default and its reason.

What the words mean to the batcher stands in ``gpu_batcher``: ``pacing.Bounds`` for the planning,
``packing.Rule`` for the inputs. ``gateway/batching.py`` turns one into the other.
"""

from typing import Annotated, Literal

import msgspec

from filters.units import HeaderName, Share, Struct

InputName = Annotated[str, msgspec.Meta(extra={"unit": "input"})]
Axis = Annotated[int, msgspec.Meta(ge=1, le=8)]
Length = Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]
Wait = Annotated[float, msgspec.Meta(ge=0.001, extra={"unit": "duration"})]
Bytes = Annotated[int, msgspec.Meta(ge=1024, le=1 << 30, extra={"unit": "size"})]
Function = Annotated[str, msgspec.Meta(extra={"unit": "function"})]


class Input(Struct, frozen=True):
    """How one input is packed. ``axes`` are those that vary from request to request; the batch is
    axis 0. ``value`` 0 and ``side`` right are what most tokenizers pad with. ``mask``, ``lengths``
    and ``offsets`` name inputs that are made here for the model, and are not to be sent."""

    axes: tuple[Axis, ...] = (1,)
    value: float = 0.0
    side: Literal["right", "left"] = "right"
    mask: InputName | None = None
    lengths: InputName | None = None
    offsets: InputName | None = None
    extra_datatype: Literal["INT64", "INT32", "BOOL", "FP32"] = "INT64"


class Bisection(Struct, frozen=True):
    """What may be spent on finding out who spoils a batch: ``share`` of an inference for each
    request, and ``burst`` at once. One culprit in 100 needs about 10 %."""

    share: Share = 0.15
    burst: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 64


class Batching(Struct, frozen=True):
    """Concurrent requests of a route go as one. Only what a codec understands whole is joined;
    anything else goes on alone, untouched.

    ``max_rows`` 64 and ``max_bytes`` 8 MiB: beyond, batches gain little and make everybody wait.
    ``max_request`` keeps large bodies from being parsed, which would hold up all others.
    ``max_delay`` is only ever waited while that is worth it. ``target``: batches that take longer
    shrink. ``max_in_flight`` 2: one is packed while another is in inference. ``queue``: who may
    wait; beyond it the worst is refused. ``headers``: requests are joined only where these are
    equal, and then they are sent; the credentials are always among them. ``buffer``: of each of
    ``max_in_flight`` buffers for inputs with their padding, and again for outputs in shared memory.
    ``share_with``: who may map that memory; the model server may be another user.
    """

    format: Literal["kserve_v2", "kserve_v1", "openai_embeddings"]
    max_rows: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 64
    max_items: Annotated[int, msgspec.Meta(ge=1, le=65536)] | None = None
    max_bytes: Bytes = 8 << 20
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)] | None = None
    max_request: Bytes = 1 << 20
    max_delay: Annotated[float, msgspec.Meta(ge=0, le=10, extra={"unit": "duration"})] = 0.005
    target: Wait = 0.05
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    queue: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1024
    preferred: tuple[Length, ...] = ()
    headers: tuple[HeaderName, ...] = ()
    pack: Literal["pad", "bucket", "ragged"] = "pad"
    buckets: tuple[Length, ...] = ()
    inputs: dict[InputName, Input] = msgspec.field(default_factory=dict)
    outputs: dict[InputName, InputName] = msgspec.field(default_factory=dict)
    binary: bool = True
    runner: Literal["http", "system_shared_memory", "cuda_shared_memory", "python", "auto"] = "http"
    device: Literal["host", "cuda", "auto"] = "host"
    gpu: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    copiers: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    buffer: Bytes = 16 << 20
    answer: Bytes = 64 << 20
    function: Function | None = None
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    bisection: Bisection = Bisection()
    quarantine: Literal["alone", "refuse"] = "alone"
    share_with: Literal["owner", "group", "everyone"] = "owner"
