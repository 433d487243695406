"""How numbers are written in the file, both ways: ``10s`` and ``64KiB`` to numbers and back.

Each ``parse_*`` takes the text as written and returns the value, or raises ``BadValueError`` with
what is wrong and what to write instead. Exact fractions are used on the way, so that a value
written back by ``format_unit`` loads again to the very same number. Pure; microseconds a call.
"""

import re
from decimal import Decimal
from fractions import Fraction


class BadValueError(ValueError):
    """``args[0]`` says what is wrong; ``hint`` what to write instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


DURATIONS = {
    "us": Fraction(1, 1_000_000),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}
SIZES = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
# Bounds within which every value has a positional notation that the patterns below accept.
_LONGEST = 366 * 86400
_SHORTEST = Fraction(1, 1_000_000)
_SMALLEST = Fraction(1, 10**9)
_LARGEST = 2**60
_NUMBER = re.compile(r"\d{1,20}(?:\.\d{1,60})?", re.ASCII)
_DURATION = re.compile(r"(\d{1,20}(?:\.\d{1,60})?)(us|ms|s|m|h|d)", re.ASCII)
_WITH_UNIT = re.compile(r"(\d{1,20}(?:\.\d{1,60})?) ?([A-Za-z]+)", re.ASCII)
_QUANTILE = re.compile(r"p(\d{1,2}(?:\.\d{1,60})?)", re.ASCII)
_SHARE = re.compile(r"(\d{1,20}(?:\.\d{1,60})?)(%)?", re.ASCII)
_RATE = re.compile(r"(\d{1,20}(?:\.\d{1,60})?)/([smhd])", re.ASCII)
# Also nginx's 10r/s, and 600rpm.
_RATE_SPELLED = re.compile(
    r"(\d{1,20}(?:\.\d{1,60})?) ?(?:r|req|requests)? ?(?:/|p|per)? ?([a-z]+)", re.ASCII
)
_SLOWEST = Fraction(1, 86400)
_FASTEST = 10**6


def parse_duration(text: str) -> float:
    """Seconds. A sum such as ``1m30s`` will do; a bare number will not, except 0."""
    if text == "0":
        return 0.0
    if _NUMBER.fullmatch(text):
        raise BadValueError(f"the duration {text} has no unit", f"write {text}s or {text}ms")
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        spelled = _WITH_UNIT.fullmatch(text)
        unit = spelled and _DURATION_WORDS.get(spelled[2].lower())
        hint = f"write {spelled[1]}{unit}" if spelled and unit else "write 500ms, 10s, 5m or 1h"
        raise BadValueError(f"not a duration: {short(text)}", hint)
    seconds = sum((Fraction(number) * DURATIONS[unit] for number, unit in parts), Fraction(0))
    if seconds > _LONGEST:
        raise BadValueError(f"the duration {short(text)} is too long", "at most 366d")
    if 0 < seconds < _SHORTEST:
        raise BadValueError(f"the duration {short(text)} is too short", "at least 1us, or 0")
    return float(seconds)


_DURATION_WORDS = {
    **{unit: unit for unit in DURATIONS},
    **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "m"),
    **dict.fromkeys(("hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("msec", "millis", "millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("day", "days"), "d"),
}


def parse_size(text: str) -> int:
    """Bytes. A bare whole number is bytes; ``KiB`` is 1024 and ``KB`` is 1000."""
    if text.isascii() and text.isdigit() and len(text) <= 20:
        size = Fraction(text)
    else:
        match = _WITH_UNIT.fullmatch(text)
        if not match or match[2] not in SIZES or " " in text:
            letter = match[2][:1].upper() if match else ""
            known = match is not None and letter in "KMGT" and len(match[2]) <= 3
            hint = f"write {match[1]}{letter}iB" if match and known else "write 64KiB or 1MiB"
            raise BadValueError(f"not a size: {short(text)}", hint)
        size = Fraction(match[1]) * SIZES[match[2]]
    if size.denominator != 1:
        raise BadValueError(f"the size {short(text)} is not a whole number of bytes")
    if size > _LARGEST:
        raise BadValueError(f"the size {short(text)} is too large")
    return int(size)


def parse_share(text: str) -> float:
    """From 0 to 1, written ``5%`` or as that number."""
    match = _SHARE.fullmatch(text)
    if not match:
        raise BadValueError(f"not a share: {short(text)}", "write 5% or 0.05")
    share = Fraction(match[1]) / (100 if match[2] else 1)
    if share > 1:
        hint = f"write {text}%" if not match[2] and share <= 100 else "write 5% or 0.05"
        raise BadValueError(f"the share {short(text)} is more than 100%", hint)
    if 0 < share < _SMALLEST:
        raise BadValueError(f"the share {short(text)} is too small", "at least 0.0000001%, or 0")
    return float(share)


def parse_rate(text: str) -> float:
    """Per second, written ``100/s``, ``600/m``, ``1000/h`` or ``1/d``."""
    if _NUMBER.fullmatch(text):
        raise BadValueError(f"the rate {text} has no unit", f"write {text}/s")
    match = _RATE.fullmatch(text)
    if not match:
        spelled = _RATE_SPELLED.fullmatch(text.lower())
        unit = spelled and _DURATION_WORDS.get(spelled[2])
        known = spelled is not None and unit is not None and unit in "smhd"
        hint = f"write {spelled[1]}/{unit}" if spelled and known else "write 100/s, 600/m or 1000/h"
        raise BadValueError(f"not a rate: {short(text)}", hint)
    rate = Fraction(match[1]) / DURATIONS[match[2]]
    if rate < _SLOWEST:
        hint = "at least 1/d" if rate else "at least 1/d; off is written rate_limit: off"
        raise BadValueError(f"the rate {short(text)} is too small", hint)
    if rate > _FASTEST:
        raise BadValueError(f"the rate {short(text)} is too large", f"at most {_FASTEST}/s")
    return float(rate)


def parse_quantile(text: str) -> float:
    """From 0 to 1, written ``p95`` or ``p99.9``."""
    match = _QUANTILE.fullmatch(text)
    if match:
        return float(Fraction(match[1]) / 100)
    share = _SHARE.fullmatch(text)
    percent = Fraction(share[1]) if share else Fraction(100)
    if percent <= 1:
        percent *= 100
    hint = f"write p{_plain(percent)}" if percent < 100 else "write p95 or p99.9"
    raise BadValueError(f"not a quantile: {short(text)}", hint)


NUMERIC = ("duration", "size", "share", "rate", "quantile")


def format_unit(value: float, unit: str) -> str:
    """The shortest usual way to write a number of this unit; loads again to the same number."""
    exact = Fraction(Decimal(repr(value)))
    if unit == "duration":
        return _format_duration(exact)
    if unit == "size":
        names = ("TiB", "GiB", "MiB", "KiB")
        name = next((name for name in names if value and value % SIZES[name] == 0), "B")
        return f"{int(value) // SIZES[name]}{name}"
    if unit == "share":
        return _plain(exact * 100) + "%"
    if unit == "rate":
        return _format_rate(value)
    if unit == "quantile":
        return "p" + _plain(exact * 100)
    return repr(value)


def _format_duration(seconds: Fraction) -> str:
    if not seconds:
        return "0s"
    for name in ("h", "m", "s", "ms"):
        if (seconds / DURATIONS[name]).denominator == 1:
            return f"{seconds / DURATIONS[name]}{name}"
    return _plain(seconds) + "s"


def _format_rate(rate: float) -> str:
    for name in "smhd":
        count = round(rate * DURATIONS[name])
        if count and float(count / DURATIONS[name]) == rate:
            return f"{count}/{name}"
    return _plain(Fraction(Decimal(repr(rate)))) + "/s"


def _plain(number: Fraction) -> str:
    """A decimal fraction in positional notation; the parsers know no exponents."""
    text = format(Decimal(number.numerator) / Decimal(number.denominator), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def short(text: str) -> str:
    """Quoted, and cut where it is too long to be read."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
