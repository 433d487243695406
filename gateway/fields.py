"""Header lines: checked one by one, and remembered.

The same clients send the same lines with every request, and so do servers with every answer. A
line that was seen before costs one look-up in a table instead of a match, a lower-casing and a
formatting; that halves the cost of a head. What is remembered is a pure function of the line, so
nothing of one client can reach another through the table. Lines that are secrets or that are
never seen twice are not kept.
"""

import re
from typing import TypeAlias

from filters.api import Headers

_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)", re.DOTALL)
_NOT_KEPT = frozenset((
    b"authorization", b"proxy-authorization", b"cookie", b"set-cookie", b"x-api-key", b"api-key",
    b"idempotency-key", b"x-request-id", b"traceparent", b"tracestate", b"sec-websocket-key",
    b"etag", b"age", b"last-modified",
))  # fmt: skip
_OURS = b"x-tailrace-"
_KEPT_BYTES = 128
_KEPT = 2048


Field: TypeAlias = tuple[bytes, bytes, bytes, bytes]
"""One header line: name in lower case, value, name as it came, and the line as it is sent on, with
its line end. A plain tuple, because the heads' loops take one apart in half the time that they
take for a named one."""


class BadLineError(ValueError):
    """A header line that is none."""


class _Known(dict[bytes, Field]):
    """The fields of lines that were seen before. ``odd`` says that a line was looked up whose name
    needs a second look; such lines are never kept, so none is missed."""

    __slots__ = ("odd",)

    def __missing__(self, line: bytes) -> Field:
        match = _LINE.fullmatch(line)
        if match is None:
            raise BadLineError
        made = field(match[1], match[2].rstrip(b" \t"))
        lower = made[0]
        if b"_" in lower or lower.startswith(_OURS):
            self.odd = True
        elif len(line) <= _KEPT_BYTES and lower not in _NOT_KEPT:
            if len(self) >= _KEPT:
                self.clear()
            self[line] = made
        return made


_known = _Known()


def parse_lines(lines: list[bytes]) -> tuple[list[Field], bool]:
    """The fields of header lines, which come without their line ends, and whether a name among
    them is odd: ours, or with a ``_`` in it. Raises BadLineError."""
    _known.odd = False
    fields = list(map(_known.__getitem__, lines))
    return fields, _known.odd


def field(name: bytes, value: bytes) -> Field:
    """A field of ours, or of a test."""
    return name.lower(), value, name, b"%b: %b\r\n" % (name, value)


def pairs(fields: list[Field]) -> Headers:
    return [(name, value) for _, value, name, _ in fields]


def lines_of(headers: Headers) -> bytes:
    """Name and value pairs as lines of a head, each with its line end."""
    return b"".join([b"%b: %b\r\n" % each for each in headers])
