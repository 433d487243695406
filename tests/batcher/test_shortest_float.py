"""Nothing is lost, and nothing could be shorter."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpu_batcher.codecs.shortest_float import shortest


def float32(numbers: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


any_float32 = st.integers(0, 2**32 - 1).map(lambda bits: bits.to_bytes(4, "little"))
usual = st.floats(-1, 1, width=32).map(lambda number: float32([number]))


@given(st.lists(any_float32 | usual, min_size=1, max_size=50))
def test_numbers_are_the_float32_they_were(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    for made, (exact,) in zip(shortest(data).tolist(), struct.iter_unpack("<f", data), strict=True):
        if math.isnan(exact) or math.isinf(exact):
            assert repr(made) == repr(exact)
        else:
            assert float32([made]) == float32([exact])


def bits(number: float) -> int:
    return int.from_bytes(float32([number]), "little")


@given(st.integers(bits(1e-13) + 1, bits(1e6) - 1), st.booleans())
@example(bits(0.1), False)
@example(bits(999_999.0), True)
@example(bits(9.53702e-07), False)  # Of six digits, which rounding to seven does not find.
@example(bits(1.3063437484528428e-11), False)  # Needs nine.
def test_numbers_are_as_short_as_can_be(size: int, negative: bool) -> None:
    (number,) = struct.unpack("<f", (size | negative << 31).to_bytes(4, "little"))
    (made,) = shortest(float32([number])).tolist()
    if math.frexp(abs(number))[0] == 0.5:
        return  # At powers of two a shorter one may lie farther off, on the side with more room.
    for digits in range(1, 10):
        shorter = float(f"{number:.{digits}g}")
        if float32([shorter]) == float32([number]):
            assert repr(made) == repr(shorter)
            return
    pytest.fail("nine digits are always enough")


def test_many_numbers() -> None:
    """More than are converted at a time."""
    numbers = [index / 7 for index in range(40_000)]
    made = shortest(float32(numbers)).tolist()
    assert float32(made) == float32(numbers)
    assert made[:3] == [0.0, 0.14285715, 0.2857143]
