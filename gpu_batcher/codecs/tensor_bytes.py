"""tensor_bytes: BYTES tensors as they are on the wire of the binary extension. Pure.

Each element is its length (32 bits, little-endian) and then its bytes, with nothing between, so
where an element begins is known only after all before it. They are walked whenever they come in:
the server checks the count of a whole batch, and one caller with an element too few beside one
with an element too many would shift the rows of everybody between them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

_LENGTH = struct.Struct("<I")


class DataError(ValueError):
    """Data that is not a tensor of its datatype and shape, or that JSON cannot carry. The text is
    the rest of a sentence that begins with the tensor's name."""


def ends(data: memoryview, counts: Sequence[int]) -> list[int]:
    """Where in ``data`` (bytes) each run of so many elements ends; together they are all of it.

    Raises DataError if ``data`` holds other than ``sum(counts)`` whole elements. O(elements), and
    never more than ``data`` has room for, whatever the counts claim.
    """
    if sum(counts) * _LENGTH.size > len(data):
        raise DataError(f"has too few bytes for its {sum(counts)} elements")
    found = []
    at = 0
    length_at = _LENGTH.unpack_from
    try:
        for count in counts:
            for _ in range(count):
                at += _LENGTH.size + length_at(data, at)[0]
            found.append(at)
    except struct.error:
        # The element before claims to end past the data, or too near to its end for a length.
        raise DataError("has an element that is longer than the data left") from None
    if at > len(data):
        raise DataError("has an element that is longer than the data left")
    if at < len(data):
        raise DataError(f"has {len(data) - at} bytes after its {sum(counts)} elements")
    return found


def elements(data: memoryview) -> list[memoryview]:
    """The bytes of each element, without a copy. ``data`` has passed ``ends``."""
    found = []
    at = 0
    while at < len(data):
        start = at + _LENGTH.size
        at = start + _LENGTH.unpack_from(data, at)[0]
        found.append(data[start:at])
    return found


def pack(texts: Iterable[bytes]) -> bytes:
    """The elements as they are on the wire. Raises DataError for one of 4 GiB or more."""
    packed = bytearray()  # Rather than a list: an object for each length is ten times its size.
    for text in texts:
        if len(text) >= 1 << 32:
            raise DataError("has an element of 4 GiB or more")
        packed += _LENGTH.pack(len(text))
        packed += text
    return bytes(packed)
