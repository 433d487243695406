"""The chunked coding (RFC 9112 section 7.1): a strict incremental decoder, and the encoder.

Extensions are checked and dropped, so nothing of the sender's chunk grammar travels on: every
"funky chunk" desync needs the next hop to see the same bytes. Pure; one object per message.
"""

import re
from functools import lru_cache

from filters.api import Headers, Reason, Reject
from gateway.fields import BadLineError, lines_of, parse_lines

EXTENSION_BYTES = 4096
TRAILER_BYTES = 8192
TRAILERS = 32

_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_EXTENSIONS = re.compile(
    rb"(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN
    + rb'|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"))?)+'
)  # fmt: skip
_SIZE_AND_EXTENSIONS = re.compile(rb"([0-9A-Fa-f]{1,16})(;.*)", re.DOTALL)
# Fields that would change how the message was framed, routed or trusted (RFC 9110 6.5.1).
_FORBIDDEN_TRAILERS = frozenset((
    b"host", b"content-length", b"transfer-encoding", b"connection", b"te", b"trailer", b"upgrade",
    b"authorization", b"proxy-authorization", b"www-authenticate", b"cookie", b"set-cookie",
    b"content-type", b"content-encoding", b"content-range", b"expect", b"range", b"cache-control",
    b"keep-alive", b"proxy-connection", b"max-forwards", b"forwarded", b"location", b"vary",
    b"retry-after", b"date", b"age", b"expires", b"traceparent", b"tracestate", b"idempotency-key",
))  # fmt: skip
_FORBIDDEN_PREFIXES = (b"x-tailrace-", b"x-forwarded-", b"x-request-", b"access-control-", b"if-")

LAST_CHUNK = b"0\r\n\r\n"


def encode(data: bytes) -> bytes:
    """One chunk. ``data`` must not be empty: an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def encode_end(trailers: Headers) -> bytes:
    if not trailers:
        return LAST_CHUNK
    return b"0\r\n%b\r\n" % lines_of(trailers)


class Decoder:
    """Feed it bytes; it returns body bytes. ``done`` once the body ended, then ``rest`` holds what
    came after it and ``trailers`` those that may be forwarded. Raises Reject(``reason``)."""

    __slots__ = (
        "_body_left", "_extension_bytes", "_held", "_left", "_reason", "done", "rest", "trailers",
    )  # fmt: skip

    def __init__(self, reason: Reason = Reason.MALFORMED, most: int | None = None) -> None:
        """``most`` bounds the body, in bytes; beyond it Reject(BODY_TOO_LARGE) is raised."""
        self._body_left = most
        self._left = -1  # -1: at a size line; -2: in the trailers; else bytes left, with the CRLF
        self._held = b""
        self._extension_bytes = 0
        self._reason = reason
        self.done = False
        self.rest = b""
        self.trailers: Headers = []

    def feed(self, data: bytes) -> bytes:
        """Body bytes in ``data``, pieces of several chunks joined. O(len(data)) amortised."""
        if self._held:
            data = self._held + data
            self._held = b""
        elif self._left == -1 and self._body_left is None:
            # One whole chunk in one read, which is how a token comes.
            start = data.find(b"\r\n") + 2
            if 2 < start <= 18 and data[-2:] == b"\r\n":
                size = _plain_size(data[: start - 2])
                if 0 < size == len(data) - start - 2:
                    return data[start:-2]
        pieces: list[bytes] = []
        at, end = 0, len(data)
        left = self._left
        while at < end:
            if left > 2:
                piece = data[at : min(end, at + left - 2)]
                pieces.append(piece)
                at += len(piece)
                left -= len(piece)
            elif left >= 0:
                if data[at] != (13 if left == 2 else 10):
                    raise Reject(self._reason, "no CRLF after chunk data")
                at += 1
                left = left - 1 or -1
            elif left == -2:
                self._trailers(data[at:])
                break
            else:
                stop = data.find(b"\r\n", at)
                if stop < 0:
                    self._hold_line(data[at:])
                    break
                size = self._size(data[at:stop])
                at = stop + 2
                left = size + 2 if size else -2
        self._left = left
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._body_left is not None:
            self._body_left -= len(body)
            if self._body_left < 0:
                raise Reject(Reason.BODY_TOO_LARGE, "body over limits.body_bytes")
        return body

    def _size(self, line: bytes) -> int:
        size = _plain_size(line)
        if size >= 0:
            return self._bounded(size)
        match = _SIZE_AND_EXTENSIONS.fullmatch(line)
        if match is None or _EXTENSIONS.fullmatch(match[2]) is None:
            raise Reject(self._reason, "chunk size line")
        self._extension_bytes += len(match[2])
        if self._extension_bytes > EXTENSION_BYTES:
            raise Reject(self._reason, f"chunk extensions over {EXTENSION_BYTES} bytes")
        return self._bounded(int(match[1], 16))

    def _bounded(self, size: int) -> int:
        if size > 0x7FFF_FFFF_FFFF_FFFF:
            raise Reject(self._reason, "chunk size overflows")
        return size

    def _hold_line(self, part: bytes) -> None:
        """Keep the beginning of a size line, unless no end could make it valid."""
        if len(part) > EXTENSION_BYTES + 32 or b"\n" in part or b"\r" in part[:-1]:
            raise Reject(self._reason, "chunk size line")
        digits = part.rstrip(b"\r").partition(b";")[0]
        if part == b"\r" or (digits and _SIZE.fullmatch(digits) is None) or part[:1] in b" \t;":
            raise Reject(self._reason, "chunk size line")
        self._held = part

    def _trailers(self, data: bytes) -> None:
        if data.startswith(b"\r\n"):
            self.done, self.rest = True, data[2:]
            return
        end = data.find(b"\r\n\r\n")
        if (end if end >= 0 else len(data)) > TRAILER_BYTES:
            raise Reject(self._head_reason(), f"trailers over {TRAILER_BYTES} bytes")
        if end < 0:
            if b"\n" in data.replace(b"\r\n", b""):
                raise Reject(self._reason, "bare LF in the trailers")
            self._held = data
            return
        try:
            fields, _ = parse_lines(data[:end].split(b"\r\n"))
        except BadLineError:
            raise Reject(self._reason, "trailers") from None
        if len(fields) > TRAILERS:
            raise Reject(self._head_reason(), f"more than {TRAILERS} trailers")
        self.trailers = [(name, value) for _, value, name, _ in fields if may_trail(name)]
        self.done, self.rest = True, data[end + 4 :]

    def _head_reason(self) -> Reason:
        return Reason.HEAD_TOO_LARGE if self._reason is Reason.MALFORMED else self._reason


@lru_cache(maxsize=4096)
def _plain_size(line: bytes) -> int:
    """The size in a line without extensions, -1 for any other line. Tokens are of few sizes."""
    return int(line, 16) if _SIZE.fullmatch(line) is not None else -1


def may_trail(name: bytes) -> bool:
    """Whether a trailer of this name may be forwarded."""
    lower = name.lower().replace(b"_", b"-")
    return lower not in _FORBIDDEN_TRAILERS and not lower.startswith(_FORBIDDEN_PREFIXES)
