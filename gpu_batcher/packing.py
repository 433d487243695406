"""packing: by which rules the inputs of a route are padded or concatenated. Pure.

A ``Packing`` is made once, from configuration. ``check`` asks whether a call can be packed by it,
before the call may join a batch: so what cannot be packed is one caller's 400 and no batch's
failure. ``layout`` then computes where everything goes.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from gpu_batcher.api import SIZES, BadRequestError, Call, Tensor

Mode = Literal["pad", "bucket", "ragged"]
Side = Literal["right", "left"]
MOST_AXES = 3
"""Variable axes of one input; the kernels know no more."""
FORMATS: Mapping[str, str] = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b",
    "INT16": "h", "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
"""Of one element for ``struct``. BF16 and BYTES have none."""
COUNTS = ("INT32", "INT64", "UINT32", "UINT64")
"""Datatypes for lengths and offsets."""


@dataclass(frozen=True, slots=True)
class Extra:
    """An input that no caller sends and that is made for the batch."""

    name: str
    datatype: str = "INT64"


@dataclass(frozen=True, slots=True)
class Rule:
    """How one input is packed. Raises ValueError where its parts contradict each other.

    ``axes``: those that vary from request to request, ascending; the batch is axis 0 and not
    among them. None: whichever are found to differ in a batch. Extra inputs need them named,
    because an extra input has the same rank in every batch.
    ``value`` and ``side``: what padding is made of, and where it goes. BYTES is padded with empty
    elements.
    ``mask``: 1 for what callers sent and 0 for padding, shape (rows, *padded axes).
    ``lengths``: of each row before padding, shape (rows,), or (rows, axes) with several axes.
    ``offsets``: ragged only, shape (rows + 1,): row ``i`` is ``offsets[i]`` to ``offsets[i + 1]``
    of the concatenated axis.
    """

    axes: tuple[int, ...] | None = None
    value: float = 0
    side: Side = "right"
    mask: Extra | None = None
    lengths: Extra | None = None
    offsets: Extra | None = None

    def __post_init__(self) -> None:
        axes = self.axes or ()
        if any(axis < 1 or axis <= last for last, axis in zip((0, *axes), axes, strict=False)):
            raise ValueError(f"axes: {list(axes)}, expected ascending numbers from 1")
        if len(axes) > MOST_AXES:
            raise ValueError(f"axes: {len(axes)} of them, expected at most {MOST_AXES}")
        if self.side not in ("right", "left"):
            raise ValueError(f"side: {self.side!r}, expected right or left")
        if not axes and any(self.extras()):
            raise ValueError("axes: expected, because an extra input is made from them")
        if self.mask is not None and not SIZES.get(self.mask.datatype):
            raise ValueError(f"mask: datatype {self.mask.datatype!r} is no number")
        for extra in (self.lengths, self.offsets):
            if extra is not None and extra.datatype not in COUNTS:
                raise ValueError(
                    f"{extra.name}: datatype {extra.datatype!r}, expected {' or '.join(COUNTS)}"
                )

    def extras(self) -> list[Extra]:
        return [each for each in (self.mask, self.lengths, self.offsets) if each is not None]


@dataclass(frozen=True, slots=True)
class Packing:
    """The rules of a route. Raises ValueError where they contradict each other.

    ``pad``: variable axes become as long as the longest of the batch. ``bucket``: as the smallest
    of ``buckets`` that holds it, so that a model sees few shapes. ``ragged``: rows are
    concatenated along axis 1, and nothing is padded.
    ``rules`` by input; ``default`` for the others.
    """

    mode: Mode = "pad"
    buckets: tuple[int, ...] = ()
    rules: Mapping[str, Rule] = field(default_factory=dict)
    default: Rule = field(default_factory=Rule)
    made: frozenset[str] = field(init=False)
    """Names of the extra inputs."""

    def __post_init__(self) -> None:
        if self.mode not in ("pad", "bucket", "ragged"):
            raise ValueError(f"mode: {self.mode!r}, expected pad, bucket or ragged")
        if (self.mode == "bucket") != bool(self.buckets):
            raise ValueError("buckets: expected exactly in mode bucket")
        if list(self.buckets) != sorted({n for n in self.buckets if n > 0}):
            raise ValueError("buckets: expected ascending numbers above 0")
        if self.default.extras():
            raise ValueError("default: an extra input belongs to one input, so name that")
        for name, rule in (*self.rules.items(), ("default", self.default)):
            self._check_rule(name, rule)
        extras = [extra for rule in self.rules.values() for extra in rule.extras()]
        object.__setattr__(self, "made", frozenset(extra.name for extra in extras))
        both = self.made.intersection(self.rules)
        if both:
            raise ValueError(f"{min(both)}: both an input with a rule and an extra input")

    def _check_rule(self, name: str, rule: Rule) -> None:
        if self.mode != "ragged":
            if rule.offsets is not None:
                raise ValueError(f"{name}: offsets belong to mode ragged")
            return
        if rule.axes not in (None, (), (1,)):
            raise ValueError(f"{name}: axes {rule.axes}, but ragged rows are joined along axis 1")
        if rule.mask is not None:
            raise ValueError(f"{name}: a mask belongs to padding, and ragged rows have none")

    def rule(self, name: str) -> Rule:
        return self.rules.get(name, self.default)

    def bucket(self, length: int) -> int:
        """The smallest bucket that holds ``length``; IndexError beyond the largest."""
        return self.buckets[bisect_left(self.buckets, length)]

    def check(self, call: Call) -> None:
        """Raises BadRequestError where a call cannot be packed by these rules. O(inputs)."""
        for tensor in call.inputs:
            name, shape = tensor.name, tensor.shape
            if not shape or shape[0] != call.rows:
                raise BadRequestError(
                    f"input {name!r}: shape {list(shape)}, expected {call.rows} as its first "
                    "dimension, like the other inputs"
                )
            if name in self.made:
                raise BadRequestError(
                    f"input {name!r}: it is made here from the others, and not to be sent"
                )
            rule = self.rule(name)
            if rule.axes != ():
                self._check_axes(tensor, rule)

    def _check_axes(self, tensor: Tensor, rule: Rule) -> None:
        name, shape = tensor.name, tensor.shape
        for axis in rule.axes or ():
            if axis >= len(shape):
                raise BadRequestError(
                    f"input {name!r}: {len(shape)} dimensions, expected at least {axis + 1}"
                )
            if self.mode == "bucket" and shape[axis] > self.buckets[-1]:
                raise BadRequestError(
                    f"input {name!r}: dimension {axis} is {shape[axis]}, "
                    f"expected at most {self.buckets[-1]}"
                )
        if self.mode != "ragged" and tensor.datatype != "BYTES":
            try:
                element(tensor.datatype, rule.value)
            except ValueError as error:
                raise BadRequestError(f"input {name!r}: its padding is {error}") from error


@lru_cache(maxsize=64)
def element(datatype: str, value: float) -> bytes:
    """One element as on the wire (little-endian). Raises ValueError where the datatype has no such
    value, with a text that goes on after "is". An empty element of BYTES is four zero bytes."""
    if datatype == "BYTES":
        return bytes(4)
    if datatype == "BF16":
        return _bfloat16(value)
    kind = FORMATS.get(datatype)
    if kind is None:
        raise ValueError(f"of unknown datatype {datatype!r}")
    try:
        if kind in "efd":
            return struct.pack("<" + kind, value)
        whole = int(value)
        if whole != value or (kind == "?" and whole not in (0, 1)):
            raise ValueError
        return struct.pack("<" + kind, whole)
    except (struct.error, OverflowError, ValueError):
        raise ValueError(f"{value}, which {datatype} cannot express") from None


def _bfloat16(value: float) -> bytes:
    """The upper half of FP32, rounded to the nearest, ties to even."""
    if math.isnan(value):
        return b"\xc0\x7f"
    try:
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
    except (struct.error, OverflowError):
        raise ValueError(f"{value}, which BF16 cannot express") from None
    return struct.pack("<H", (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
