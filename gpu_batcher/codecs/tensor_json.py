"""tensor_json: a tensor's JSON ``data`` to the bytes of the binary extension, and back. Pure.

msgspec reads numbers in C, exactly and into the type asked for, so integers beyond 2^53 survive
and a string among numbers is refused; ``struct`` refuses what its datatype has no room for. Data
may be flat or nested, as Triton reads it: row-major, with the count of its elements checked.

FP16 can be written as JSON numbers, which some servers do and Triton refuses; that is for the
codec to decide. BF16 cannot. JSON has neither NaN nor infinities: they are malformed where a
caller sends them, and written as null, as browsers and most servers write them.
"""

from __future__ import annotations

import re
import struct
from functools import cache
from itertools import chain
from types import GenericAlias
from typing import Any

import msgspec

from gpu_batcher.codecs import tensor_bytes
from gpu_batcher.codecs.tensor_bytes import DataError

FORMATS = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b",
    "INT16": "h", "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
"""Datatypes with elements of a fixed size that JSON can carry, and their ``struct`` format."""
DEEPEST = 32
"""Arrays in arrays: more than any tensor has dimensions."""

_OPENING = re.compile(rb"[ \t\r\n\[]*")
_NAN = float("nan")


def decode(datatype: str, text: bytes | msgspec.Raw, count: int, *, nulls: bool = False) -> bytes:
    """The bytes of ``text``, an array of ``count`` elements, flat or nested evenly.

    ``nulls``: null is NaN for floating-point datatypes; for a server's answer. Raises DataError.
    O(text), and nothing is allocated by ``count``.
    """
    opening = _OPENING.match(text)
    depth = opening.group().count(b"[") if opening else 0
    if not 1 <= depth <= DEEPEST:
        raise DataError(f"is to have an array as data, nested at most {DEEPEST} deep")
    try:
        values: Any = _decoder(_kind(datatype, nulls), depth).decode(text)
    except RecursionError:
        raise DataError("has data that is nested too deep") from None
    except DataError:
        raise
    except (msgspec.MsgspecError, ValueError) as error:
        # ValueError: not UTF-8, or an integer of thousands of digits.
        raise DataError(f"has data that is no array of {datatype}: {error}") from None
    for _ in range(depth - 1):
        values = chain.from_iterable(values)
    values = list(values) if depth > 1 else values
    if len(values) != count:
        raise DataError(f"has {len(values)} elements where its shape has {count}")
    if nulls and None in values:
        values = [_NAN if each is None else each for each in values]
    return _packed(datatype, values)


def encode(datatype: str, data: memoryview) -> bytes:
    """``data`` as the text of a flat array, numbers that are not finite as null. Raises DataError
    for a datatype or for bytes that JSON cannot carry. ``data`` holds whole elements."""
    if datatype == "BYTES":
        try:
            return msgspec.json.encode([str(each, "utf-8") for each in tensor_bytes.elements(data)])
        except UnicodeDecodeError:
            raise DataError("has an element that is not UTF-8, so JSON cannot carry it") from None
    code = _format(datatype)
    count = len(data) // struct.calcsize("<" + code)
    return msgspec.json.encode(struct.unpack(f"<{count}{code}", data))


def _format(datatype: str) -> str:
    code = FORMATS.get(datatype)
    if code is None:
        raise DataError(f"has the datatype {datatype}, which JSON cannot carry")
    return code


def _kind(datatype: str, nulls: bool) -> Any:
    """The type to read elements as."""
    if datatype == "BYTES":
        return str
    code = _format(datatype)
    if code == "?":
        return bool
    if code in "efd":
        return float | None if nulls else float
    return int


@cache
def _decoder(kind: Any, depth: int) -> msgspec.json.Decoder[Any]:
    """At most 32 for each of five kinds."""
    for _ in range(depth):
        kind = GenericAlias(list, (kind,))
    return msgspec.json.Decoder(kind)


def _packed(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        try:
            return tensor_bytes.pack(each.encode() for each in values)
        except UnicodeEncodeError:
            raise DataError("has half of a surrogate pair, which is no character") from None
    try:
        return struct.pack(f"<{len(values)}{FORMATS[datatype]}", *values)
    except (struct.error, OverflowError):
        raise DataError(f"has a number that {datatype} has no room for") from None
