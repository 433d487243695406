"""The strict layer: bytes of a message head in, a verdict out. No I/O, no clock, no state.

Why our own parser, when llhttp is so much faster in C: most of the cost of a head is in handing
each field to Python, which both do (measured 3 us against 2 us for nine fields); llhttp accepts
a list of things that must be refused, so a second pass over its results would be needed; and it
parses everything that a read contains, while a proxy must stop at each message so that pipelined
requests stay bytes until their turn. Tests hold this parser against llhttp as an oracle.

Framing is decided here once and always written anew, never copied (RFC 9112 section 6.3).
A head is passed as bytes from its start line up to and including the empty line.
"""

import re
from functools import lru_cache
from http import HTTPStatus
from typing import NoReturn

from filters.api import Reason, Reject, Request
from gateway.fields import BadLineError, Field, parse_lines

# Methods are upper case: a lower-case one is a broken or hostile client, never a real method.
_REQUEST_LINE = re.compile(rb"([A-Z][A-Z0-9_\-]{0,31}) ([!$-;=?-\[\]_a-z~]+) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?")
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+;=\-]+)(?::([0-9]{1,5}))?")
_ABSOLUTE = re.compile(rb"https?://([^/?]*)(.*)", re.IGNORECASE)
_DOT_SEGMENT = re.compile(rb"/(?:\.|%2e){1,2}(?=/|\\|%2f|%5c|;|$)", re.IGNORECASE)
# What no prefix of a valid head can contain; lets a bad head be refused before it is complete.
_NEVER = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")

# Fields that stand at most once: a second one is a disagreement waiting for two parsers.
_SINGLETONS = frozenset((
    b"host", b"content-length", b"transfer-encoding", b"content-type", b"content-encoding",
    b"authorization", b"expect", b"x-request-timeout-ms", b"x-request-priority",
    b"idempotency-key", b"content-range", b"range", b"upgrade", b"sec-websocket-key",
))  # fmt: skip
# What some servers fold onto the real field when they map '-' to '_' (CGI, WSGI).
_FOLDED = frozenset((
    b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade",
    b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host",
    b"x-request-id", b"x-request-timeout-ms", b"x-request-priority", b"x-real-ip",
    b"authorization", b"content-type", b"idempotency-key",
))  # fmt: skip
_CODINGS = frozenset((b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress", b"chunked"))
_OURS = b"x-tailrace-"
_NOMINATED_NEVER = frozenset((b"host", b"content-length", b"transfer-encoding"))

_CACHED_BYTES = 256

STATUS_LINES = {s.value: b"HTTP/1.1 %d %s\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}


def status_line(status: int) -> bytes:
    """The phrase comes from a table: an upstream's words never reach the client's parser."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def malformed(detail: str) -> NoReturn:
    raise Reject(Reason.MALFORMED, detail)


# -- request heads ---------------------------------------------------------------------------


def parse_request(head: bytes, *, target_bytes: int, headers: int) -> Request:
    """Check and parse one request head. Raises Reject. Linear in the head."""
    lines = head.split(b"\r\n")
    # Clients of a model server repeat a handful of request lines; long ones are not worth keeping.
    known = _request_line if len(lines[0]) < _CACHED_BYTES else _request_line.__wrapped__
    method, target, version = known(lines[0], target_bytes)
    try:
        fields, odd = parse_lines(lines[1:-2])
    except BadLineError:
        malformed("a header line that is none")
    if len(fields) > headers:
        raise Reject(Reason.HEAD_TOO_LARGE, f"more than {headers} headers")
    if odd:
        # These are for the way back; from a client they would be claims about us.
        fields = [each for each in fields if not each[0].startswith(_OURS)]
    index = {lower: value for lower, value, _, _ in fields}
    if len(index) != len(fields):
        index = _index_repeated(fields)
    if odd:
        _refuse_folded_names(index)
    host = index.get(b"host")
    if host is not None:
        if not _is_host(host):
            malformed("Host is no host")
    elif version == 1:
        malformed("no Host")
    else:
        host = b""
    if target[0] != 47:  # "/"
        target = _other_form(method, target, host)
    return Request(method, target, version, fields, index, host, request_length(index, version))


@lru_cache(maxsize=512)
def _request_line(line: bytes, target_bytes: int) -> tuple[bytes, bytes, int]:
    """Method, target and HTTP/1 minor version of a valid request line. Raises Reject."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        blame_request_line(line, target_bytes)
    method, target, minor = match.groups()
    if len(target) > target_bytes:
        raise Reject(Reason.TARGET_TOO_LONG, f"target over {target_bytes} bytes")
    if method in (b"CONNECT", b"TRACE", b"TRACK"):
        raise Reject(Reason.METHOD, f"{method.decode()} is not proxied")
    _refuse_dot_segments(target)
    return method, target, int(minor)


@lru_cache(maxsize=512)
def _is_host(host: bytes) -> bool:
    match = _HOST.fullmatch(host)
    return match is not None and int(match[2] or 0) <= 65535


def _index_repeated(fields: list[Field]) -> dict[bytes, bytes]:
    """Lines of one name are joined as a list (RFC 9110 section 5.3) in the index only; what is
    forwarded stays as many lines as came. Raises Reject for fields that may stand once."""
    index: dict[bytes, bytes] = {}
    for lower, value, _, _ in fields:
        if lower not in index:
            index[lower] = value
        elif lower in _SINGLETONS:
            malformed(f"{lower.decode()} stands twice")
        else:
            index[lower] = index[lower] + b", " + value
    return index


def request_length(index: dict[bytes, bytes], version: int) -> int | None:
    """The one framing decision for a request: bytes, None for chunked, 0 without a body."""
    declared = index.get(b"content-length")
    coding = index.get(b"transfer-encoding")
    if coding is None:
        if declared is None:
            return 0
        if not is_length(declared):
            malformed("content-length is not a number")
        return int(declared)
    if declared is not None:
        malformed("content-length beside transfer-encoding")
    if version == 0:
        malformed("transfer-encoding in HTTP/1.0")
    if coding.lower() != b"chunked":
        codings = [each.strip(b" \t") for each in coding.lower().split(b",")]
        if _CODINGS.issuperset(codings) and b"chunked" not in codings[:-1]:
            raise Reject(Reason.NOT_IMPLEMENTED, "transfer-encoding other than chunked")
        malformed("transfer-encoding is not chunked")
    return None


def is_length(value: bytes) -> bool:
    """Digits, no leading zero, below 10^18: what every parser reads as the same number."""
    return value.isdigit() and len(value) <= 18 and (value[0] != 48 or len(value) == 1)


def blame_request_line(line: bytes, target_bytes: int) -> NoReturn:
    """Say what is wrong with a request line that did not match. Raises Reject always."""
    match = re.fullmatch(rb"([A-Z][A-Z0-9_\-]{0,31}) (\S+) (\S+)", line)
    if match is None:
        malformed("request line")
    _, target, version = match.groups()
    if len(target) > target_bytes:
        raise Reject(Reason.TARGET_TOO_LONG, f"target over {target_bytes} bytes")
    if re.fullmatch(rb"HTTP/[2-9]\.[0-9]|HTTP/1\.[2-9]", version):
        raise Reject(Reason.VERSION, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    malformed("request line")


def check_partial(head: bytearray, seen: int, *, target_bytes: int, head_bytes: int) -> None:
    """Refuse a head that cannot become valid any more. Raises Reject.

    ``seen`` bytes were checked before. Without this, a client that ends its lines with a bare
    LF would hang until the head timeout, and one without line ends could fill ``head_bytes``.
    """
    if _NEVER.search(head, max(0, seen - 1)) is not None:
        malformed("control character or bare line end in the head")
    end = head.find(b"\r\n", 0, target_bytes + 64)
    if end < 0:
        if len(head) > 33 and b" " not in head[:33]:
            malformed("method")
        if len(head) >= target_bytes + 64:
            raise Reject(Reason.TARGET_TOO_LONG, f"target over {target_bytes} bytes")
    elif seen <= end + 2:
        _request_line.__wrapped__(bytes(head[:end]), target_bytes)
    if len(head) > head_bytes:
        raise Reject(Reason.HEAD_TOO_LARGE, f"head over {head_bytes} bytes")


def _other_form(method: bytes, target: bytes, host: bytes) -> bytes:
    """Absolute-form becomes origin-form when it names the same host; ``*`` is for OPTIONS."""
    if target == b"*" and method == b"OPTIONS":
        return target
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        malformed("target")
    # RFC 9112 3.2.2 would let the target win. Two names for one host are how requests get
    # routed by one and authorised by the other, so they must agree.
    if host and _plain_host(match[1]) != _plain_host(host):
        malformed("target and Host differ")
    if not _is_host(match[1]):
        malformed("target")
    rest: bytes = match[2]
    return rest if rest.startswith(b"/") else b"/" + rest


def _plain_host(host: bytes) -> bytes:
    return host.lower().removesuffix(b":80").removesuffix(b":443")


def _refuse_dot_segments(target: bytes) -> None:
    if _DOT_SEGMENT.search(target.partition(b"?")[0]) is not None:
        malformed("dot segment in the path")


def _refuse_folded_names(index: dict[bytes, bytes]) -> None:
    for name in index:
        if b"_" in name and name.replace(b"_", b"-") in _FOLDED:
            malformed("a name with '_' that some servers read as another field")


# -- connection options ----------------------------------------------------------------------


@lru_cache(maxsize=128)
def connection_options(value: bytes) -> frozenset[bytes]:
    """The lower-case options of a Connection field. Raises Reject for framing fields in it."""
    options = frozenset(each.strip(b" \t") for each in value.lower().split(b",")) - {b""}
    if not _NOMINATED_NEVER.isdisjoint(options):
        malformed("Connection names a framing field")
    return options


def is_persistent(request: Request) -> bool:
    """Whether the client means to go on using the connection. Raises Reject for options that
    would take framing away."""
    connection = request.index.get(b"connection")
    if connection is None:
        return request.minor == 1
    options = connection_options(connection)
    return b"close" not in options and (request.minor == 1 or b"keep-alive" in options)


def expects_continue(request: Request) -> bool:
    """Whether an Expect field asks for an interim answer; HTTP/1.0 has none. Raises Reject."""
    if request.minor == 0:
        return False
    if request.index[b"expect"].lower() != b"100-continue":
        raise Reject(Reason.EXPECTATION, "only 100-continue is understood")
    return request.length != 0


def wants_upgrade(request: Request) -> bool:
    """Only a WebSocket handshake as RFC 6455 4.1 has it; whatever else is a plain request."""
    index = request.index
    return (
        b"upgrade" in index
        and request.method == b"GET"
        and request.minor == 1
        and request.length == 0
        and b"content-length" not in index
        and index[b"upgrade"].lower() == b"websocket"
        and b"upgrade" in connection_options(index.get(b"connection", b""))
        and b"sec-websocket-key" in index
    )


# -- response heads --------------------------------------------------------------------------


class ResponseHead:
    """A checked response head. ``length``: bytes, None for chunked, -1 for "until it closes".

    ``lines`` are those that go to the client, once ``gateway/headers.py`` has chosen them, and
    ``limits`` then says whether the upstream tells of rate limits of its own."""

    __slots__ = ("fields", "index", "keep", "length", "limits", "lines", "status")

    def __init__(
        self,
        status: int,
        fields: list[Field],
        index: dict[bytes, bytes],
        length: int | None,
        keep: bool,
    ) -> None:
        self.status = status
        self.fields = fields
        self.index = index
        self.length = length
        self.keep = keep
        self.lines: bytes | None = None
        self.limits = False


def parse_response(head: bytes, *, method: bytes, headers: int) -> ResponseHead:
    """Check and parse one response head. Raises Reject(UPSTREAM_PROTOCOL)."""
    lines = head.split(b"\r\n")
    known = _status_line if len(lines[0]) < _CACHED_BYTES else _status_line.__wrapped__
    status, version = known(lines[0])
    try:
        fields, odd = parse_lines(lines[1:-2])
    except BadLineError:
        broken("a header line that is none")
    if len(fields) > headers:
        broken("too many headers")
    if odd:
        # Those of a gateway behind this one: to a client, x-tailrace-... speaks of this one alone.
        fields = [each for each in fields if not each[0].startswith(_OURS)]
    index = {lower: value for lower, value, _, _ in fields}
    if len(index) != len(fields):
        index = _index_repeated_answer(fields)
    if version == 0 and b"transfer-encoding" in index:
        broken("transfer-encoding in HTTP/1.0")
    length = _response_length(index, status, method)
    connection = index.get(b"connection")
    if connection is None:
        keep = version == 1
    else:
        options = connection.lower()
        keep = b"close" not in options and (version == 1 or b"keep-alive" in options)
    return ResponseHead(status, fields, index, length, keep and length != -1)


@lru_cache(maxsize=128)
def _status_line(line: bytes) -> tuple[int, int]:
    """Status and HTTP/1 minor version of a valid status line. Raises Reject."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        broken("status line")
    return int(match[2]), int(match[1])


def _index_repeated_answer(fields: list[Field]) -> dict[bytes, bytes]:
    index: dict[bytes, bytes] = {}
    for lower, value, _, _ in fields:
        if lower not in index:
            index[lower] = value
        elif lower == b"content-length":
            if value != index[lower]:
                broken("two lengths")
        elif lower == b"transfer-encoding":
            broken("two transfer-encodings")
        else:
            index[lower] = index[lower] + b", " + value
    return index


def check_partial_response(head: bytearray, seen: int) -> None:
    """Refuse the beginning of what cannot become a response head: an upstream that speaks
    something else would otherwise be waited for until a clock runs out."""
    if not b"HTTP/1.".startswith(head[:7]) or _NEVER.search(head, max(0, seen - 1)) is not None:
        broken("not HTTP/1")


def _response_length(index: dict[bytes, bytes], status: int, method: bytes) -> int | None:
    declared = index.get(b"content-length")
    coding = index.get(b"transfer-encoding")
    if declared is not None and not is_length(declared):
        broken("content-length")
    if coding is not None:
        if declared is not None:
            broken("content-length beside transfer-encoding")
        if coding.lower() != b"chunked":
            broken("transfer-encoding is not chunked")
    if method == b"HEAD" or status < 200 or status in (204, 304):
        return 0
    if coding is not None:
        return None
    return -1 if declared is None else int(declared)


def broken(detail: str) -> NoReturn:
    raise Reject(Reason.UPSTREAM_PROTOCOL, detail)
