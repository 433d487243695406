"""Pure: the W3C ``traceparent`` field (Trace Context, level 2), read and written by hand.

By hand, because the libraries' propagators build several objects for each request, and a request
that is not sampled is to cost none.
"""

from __future__ import annotations

from typing import NamedTuple

_HEX = frozenset(b"0123456789abcdef")
_LENGTH = 55
SAMPLED = 1


class Parent(NamedTuple):
    """``trace_id`` (32) and ``span_id`` (16) in lower-case hexadecimal."""

    trace_id: str
    span_id: str
    sampled: bool


def parse(value: bytes) -> Parent | None:
    """The parent that a client names; None for whatever the specification calls invalid.

    A version above 00 may carry more behind its flags, which is ignored.
    """
    if len(value) < _LENGTH or value[2:3] != b"-" or value[35:36] != b"-" or value[52:53] != b"-":
        return None
    version, trace_id, span_id, flags = value[:2], value[3:35], value[36:52], value[53:55]
    if not _HEX.issuperset(version + trace_id + span_id + flags) or version == b"ff":
        return None
    if len(value) > _LENGTH and (version == b"00" or value[55:56] != b"-"):
        return None
    if not trace_id.strip(b"0") or not span_id.strip(b"0"):
        return None
    return Parent(trace_id.decode(), span_id.decode(), bool(int(flags, 16) & SAMPLED))


def line(trace_id: int, span_id: int) -> bytes:
    """The header line that names this span, sampled, as the parent of what follows."""
    return b"traceparent: 00-%032x-%016x-01\r\n" % (trace_id, span_id)
