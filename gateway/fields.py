"""Header lines: checked one by one, and remembered.

The same clients send the same lines with every request, and so do servers with every answer. A
line that was seen before costs one look-up in a table instead of a match, a lower-casing and a
formatting; that halves the cost of a head. What is remembered is a pure function of the line, so
nothing of one client can reach another through the table. Lines that are secrets or that are
never seen twice are not kept.
"""

import re
from typing import NamedTuple

from filters.api import Headers

_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)", re.DOTALL)
_NOT_KEPT = frozenset((
    b"authorization", b"proxy-authorization", b"cookie", b"set-cookie", b"x-api-key", b"api-key",
    b"idempotency-key", b"x-request-id", b"traceparent", b"tracestate", b"sec-websocket-key",
    b"etag", b"age", b"last-modified",
))  # fmt: skip
_KEPT_BYTES = 128
_KEPT = 2048


class Field(NamedTuple):
    """One header line. ``name`` as it came, ``line`` as it is sent on, with its line end."""

    lower: bytes
    value: bytes
    name: bytes
    line: bytes


class BadLineError(ValueError):
    """A header line that is none."""


_known: dict[bytes, Field] = {}


def parse_lines(lines: list[bytes]) -> list[Field]:
    """The fields of header lines, which come without their line ends. Raises BadLineError."""
    known = _known.get
    return [known(line) or _parse(line) for line in lines]


def field(name: bytes, value: bytes) -> Field:
    """A field of ours, or of a test."""
    return Field(name.lower(), value, name, b"%b: %b\r\n" % (name, value))


def pairs(fields: list[Field]) -> Headers:
    return [(each.name, each.value) for each in fields]


def lines_of(headers: Headers) -> bytes:
    """Name and value pairs as lines of a head, each with its line end."""
    return b"".join([b"%b: %b\r\n" % each for each in headers])


def _parse(line: bytes) -> Field:
    match = _LINE.fullmatch(line)
    if match is None:
        raise BadLineError
    made = field(match[1], match[2].rstrip(b" \t"))
    if len(line) <= _KEPT_BYTES and made.lower not in _NOT_KEPT:
        if len(_known) >= _KEPT:
            _known.clear()
        _known[line] = made
    return made
