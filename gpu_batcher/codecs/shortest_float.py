"""shortest_float: float32 as numbers that print shortest. Pure.

``0.1`` as a float32 is exactly 0.100000001490116119384765625. A printer of doubles, such as
msgspec's, writes it ``0.10000000149011612``, though ``0.1`` reads back as the same float32 and is
half as long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 1 << 14
"""Elements converted at a time: what is in between then stays within a processor's cache."""
_LEAST, _MOST = 1e-13, 1e6
"""Between these the powers of ten below are exact in a double, and so is the division by them."""
_POWERS = [float(f"1e{power}") for power in range(23)]


def shortest(data: bytes) -> NDArray[np.float64]:
    """Little-endian float32 as doubles that print shortest: each is the double nearest to the
    shortest decimal that reads back as that float32.

    Any printer of shortest doubles (msgspec's is one, after Adams's Ryu) then prints that decimal.
    Round to 9, 8, 7 and 6 significant digits, keep the last that still reads back: 9 digits are
    always enough for a float32, and what 6 or fewer digits can say, rounding to 6 finds. Outside
    1e-13 to 1e6, where that is not exact, and for infinities and NaN, it is the float32's exact
    value. ``data`` is not empty. About 40 ns an element.
    """
    import numpy as np  # Only callers that want numbers pay for loading it.

    floats = np.frombuffer(data, "<f4")
    powers = np.array(_POWERS)
    found = floats.astype(np.float64)
    for start in range(0, len(floats), _CHUNK):
        exact, result = floats[start : start + _CHUNK], found[start : start + _CHUNK]
        size = np.abs(result)
        inside = (size >= _LEAST) & (size < _MOST)
        value = np.where(inside, result, 0.0)
        before = np.floor(np.log10(np.where(inside, size, 1.0))).astype(np.intp)
        for digits in (9, 8, 7, 6):
            power = powers[digits - 1 - before]
            rounded = np.rint(value * power) / power
            np.copyto(result, rounded, where=inside & (rounded.astype("<f4") == exact))
    return found
