"""What an upstream says of when to come back."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from filters.standing import PUSHED, PUSHED_BRIEFLY
from gateway.retry_after import retry_after

NOW = (b"date", b"Tue, 24 Nov 2026 02:00:00 GMT")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0),
        (b"7", 7),
        (b"30", 30),
        (b"31", 30),
        (b"999999999", 30),
        (b"1000000000", 30),
        (b"9" * 60_000, 30),
        (b"0000000000005", 5),
        (b"-1", PUSHED_BRIEFLY),
        (b"1.5", PUSHED_BRIEFLY),
        (b"", PUSHED_BRIEFLY),
        (b"5, 6", PUSHED_BRIEFLY),
        ("٣".encode(), PUSHED_BRIEFLY),
        (b"Tue, 24 Nov 2026 02:00:09 GMT", 9),
        (b"Wed, 25 Nov 2026 02:00:00 GMT", 30),
        (b"Tue, 24 Nov 2026 01:59:59 GMT", 0),
        (b"Fri, 31 Dec 1999 23:59:59 GMT", 0),
        (b"Tue, 24 Nov 2026 02:00:60 GMT", 30),
        (b"Tue, 24 Nov 2026 24:00:09 GMT", PUSHED_BRIEFLY),
        (b"Tue, 24 Now 2026 02:00:09 GMT", PUSHED_BRIEFLY),
        (b"Tue, 24 Nov 0000 02:00:09 GMT", PUSHED_BRIEFLY),
        (b"Tue, 24 Nov 2026 02:00:09 CET", PUSHED_BRIEFLY),
        (b"Tuesday, 24-Nov-26 02:00:09 GMT", PUSHED_BRIEFLY),
    ],
)
def test_seconds_and_dates(value: bytes, seconds: float) -> None:
    assert retry_after([NOW, (b"Retry-After", value)]) == seconds
    assert retry_after([(b"retry-after", value), (b"Date", NOW[1])]) == seconds


def test_a_date_needs_another() -> None:
    later = (b"retry-after", b"Tue, 24 Nov 2026 02:00:09 GMT")
    assert retry_after([later]) == PUSHED_BRIEFLY
    assert retry_after([later, (b"date", b"yesterday")]) == PUSHED_BRIEFLY


def test_nothing_said() -> None:
    assert retry_after([]) is None
    assert retry_after([NOW, (b"retry-after-ms", b"20")]) is None


DIGITS = st.integers(0, 99)
DATES = st.builds(
    lambda *n: b"Tue, %02d Feb %02d%02d %02d:%02d:%02d GMT" % n,
    DIGITS, DIGITS, DIGITS, DIGITS, DIGITS, DIGITS,
)  # fmt: skip
VALUES = st.one_of(st.binary(max_size=40), st.integers().map(lambda n: b"%d" % n), DATES)


@given(VALUES, VALUES)
@example(b"Tue, 31 Feb 9999 23:59:60 GMT", b"Tue, 31 Feb 0001 00:00:00 GMT")
def test_whatever_comes_it_is_within_bounds(value: bytes, date: bytes) -> None:
    seconds = retry_after([(b"retry-after", value), (b"date", date)])
    assert seconds is not None
    assert 0 <= seconds <= PUSHED
