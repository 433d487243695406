"""Retry-After of an upstream's answer, in seconds. Pure: a date is held against the answer's own.

So neither a clock of ours nor one that is wrong at the other end has a say. A date without a Date
beside it, and anything that is not in the grammar, counts for ``PUSHED_BRIEFLY``.
"""

import re
from calendar import timegm

from filters.api import Headers
from filters.standing import PUSHED, PUSHED_BRIEFLY

_DATE = re.compile(
    rb"[A-Z][a-z]{2}, ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
)
"""IMF-fixdate of RFC 9110, section 5.6.7; the two obsolete forms are not worth their code."""
_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


def retry_after(headers: Headers) -> float | None:
    """Seconds from 0 to ``PUSHED``; None without one. O(headers), and 3 us more for a date."""
    value = _first(headers, b"retry-after")
    if value is None:
        return None
    if value.isdigit():
        digits = value.lstrip(b"0")
        return PUSHED if len(digits) > 9 else min(PUSHED, float(digits or b"0"))
    until, now = _moment(value), _moment(_first(headers, b"date") or b"")
    if until is None or now is None:
        return PUSHED_BRIEFLY
    return min(PUSHED, max(0.0, float(until - now)))


def _first(headers: Headers, wanted: bytes) -> bytes | None:
    return next((value for name, value in headers if name.lower() == wanted), None)


def _moment(date: bytes) -> int | None:
    """Seconds since 1970, None if it is no date."""
    found = _DATE.fullmatch(date)
    if found is None or found[2] not in _MONTHS:
        return None
    day, year, hour, minute, second = (int(found[n]) for n in (1, 3, 4, 5, 6))
    month = _MONTHS.index(found[2]) + 1
    if not (year and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
        return None
    return timegm((year, month, day, hour, minute, second))
