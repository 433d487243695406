"""Pure: which fields travel, which are replaced and which are added, in both directions.

Fields that a client nominates in Connection are removed before ours are added, and never those
that carry identity or our own control (the hop-by-hop abuse class of CVE-2022-31813).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from gateway.wire import connection_options

if TYPE_CHECKING:
    from filters.api import Exchange
    from gateway.router import BoundRoute
    from gateway.wire import ResponseHead

# Hop-by-hop (RFC 9110 7.6.1), framing, and what is written anew for every attempt.
_NOT_FORWARDED = frozenset((
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"http2-settings", b"expect", b"content-length", b"host",
    b"x-request-id", b"x-request-timeout-ms", b"forwarded", b"x-forwarded-for",
))  # fmt: skip
_FORWARDED = frozenset((
    b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host",
    b"x-forwarded-port", b"x-forwarded-server", b"x-forwarded-prefix", b"x-real-ip",
))  # fmt: skip
_NOT_FORWARDED_UNTRUSTED = _NOT_FORWARDED | _FORWARDED
# End-to-end fields that a nomination cannot remove: losing one of these changes who is asking.
_PROTECTED = _FORWARDED | frozenset((
    b"authorization", b"cookie", b"content-type", b"content-encoding", b"x-request-id",
    b"x-request-timeout-ms", b"x-request-priority", b"traceparent", b"tracestate",
    b"idempotency-key", b"cache-control",
))  # fmt: skip
_NOT_RETURNED = frozenset((
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"content-length", b"x-request-id",
))  # fmt: skip
LIMITS = b"x-ratelimit-"
"""What the lines that filters add to an answer (``Exchange.lines``) are named, all of them."""
_PLAIN_CONNECTIONS = frozenset((b"keep-alive", b"close", b"Keep-Alive", b"Close", b"upgrade"))
_TRACEPARENT = frozenset((b"traceparent",))
_TRACE = frozenset((b"traceparent", b"tracestate"))
"""State without a parent that can be read belongs to no trace (W3C Trace Context 3.3)."""


def request_head(exchange: Exchange, route: BoundRoute, authority: bytes, now: float) -> bytes:
    """The head of one attempt; ``now`` turns the deadline into what is left of it. O(headers), and
    O(1) but for copying it where the client repeats itself and the route edits nothing."""
    told = exchange.request.told
    if told is not None and told.route is route and exchange.span is None:
        return b"%b%b\r\n" % (told.lines, _changing_lines(exchange, now))
    drop = _NOT_FORWARDED if exchange.trusted else _NOT_FORWARDED_UNTRUSTED
    connection = exchange.request.index.get(b"connection")
    if connection is not None and connection not in _PLAIN_CONNECTIONS:
        drop = drop | (connection_options(connection) - _PROTECTED)
    if route.request_drop:
        drop = drop | route.request_drop
    if exchange.span is not None:
        drop = drop | (_TRACEPARENT if exchange.span.traced_before else _TRACE)
    lasting = _lasting_lines(exchange, route, authority, drop)
    own = _forwarding(exchange)
    te = exchange.request.index.get(b"te")
    if te is not None and b"trailers" in te.lower():
        own += b"te: trailers\r\n"
    changing = _changing_lines(exchange, now)
    if route.request_drop:  # what a route removes or sets is not ours to write either
        own += changing
        edited = route.request_drop
        kept = [line for line in own.splitlines(True) if line.partition(b":")[0] not in edited]
        return b"%b%b%b\r\n" % (lasting, b"".join(kept), route.request_lines)
    lasting += own
    if told is not None and exchange.span is None:
        told.lines, told.route = lasting, route
    return b"%b%b\r\n" % (lasting, changing)


def _lasting_lines(
    exchange: Exchange, route: BoundRoute, authority: bytes, drop: frozenset[bytes]
) -> bytes:
    """The request line and what comes from the client: the same for every head that repeats."""
    request = exchange.request
    target = request.target if route.rewrite is None else route.rewrite(request.target)
    host = route.host or request.host or authority
    lines = [line for lower, _, _, line in request.fields if lower not in drop]
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b" % (request.method, target, host, b"".join(lines))


def _changing_lines(exchange: Exchange, now: float) -> bytes:
    """What may differ from one request to the next."""
    request = exchange.request
    length = request.length
    if length is None:
        lines = b"transfer-encoding: chunked\r\nx-request-id: %b\r\n" % exchange.request_id
    elif length or b"content-length" in request.index or request.method in (b"POST", b"PUT"):
        lines = b"content-length: %d\r\nx-request-id: %b\r\n" % (length, exchange.request_id)
    else:
        lines = b"x-request-id: %b\r\n" % exchange.request_id
    if exchange.upgrade:
        lines = b"connection: upgrade\r\nupgrade: websocket\r\n" + lines
    if exchange.span is not None:
        lines = exchange.span.header_line() + lines
    if exchange.asked and exchange.deadline is not None:
        left = max(1, int((exchange.deadline - now) * 1000))
        lines = b"x-request-timeout-ms: %d\r\n%b" % (left, lines)
    return lines


def _forwarding(exchange: Exchange) -> bytes:
    """Who asked. A trusted client's own account is kept and added to; others are not believed."""
    index = exchange.request.index
    if not exchange.trusted or _FORWARDED.isdisjoint(index):
        return _own_account(exchange.client, exchange.secure)
    client = exchange.client.encode()
    scheme = b"https" if exchange.secure else b"http"
    # One line each: many servers that build a mapping of fields keep only the last of several.
    before = index.get(b"x-forwarded-for")
    lines = b"x-forwarded-for: %b\r\n" % (client if before is None else before + b", " + client)
    if b"x-forwarded-proto" not in index:
        lines += b"x-forwarded-proto: %b\r\n" % scheme
    if b"forwarded" in index:
        quoted = b'"[%b]"' % client if b":" in client else client or b"unknown"
        lines += b"forwarded: %b, for=%b;proto=%b\r\n" % (index[b"forwarded"], quoted, scheme)
    return lines


@lru_cache(maxsize=1024)
def _own_account(client: str, secure: bool) -> bytes:
    scheme = b"https" if secure else b"http"
    return b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\n" % (client.encode(), scheme)


def answer_lines(head: ResponseHead, request_id: bytes, ours: bytes = b"") -> bytes:
    """What of an upstream's head goes to the client, as lines; framing is the responder's.

    ``ours`` are lines of the gateway, which take the place of the upstream's of the same names:
    two answers to one question, such as how much of a rate limit is left, help nobody."""
    lines = head.lines
    if lines is None:
        lines = head.lines = _returned(head, _NOT_RETURNED)
        head.limits = LIMITS in lines.lower()  # or in a value, which does no harm
    if ours and head.limits:
        names = {line.partition(b":")[0] for line in ours.split(b"\r\n")}
        lines = _returned(head, _NOT_RETURNED | names)
    if not request_id:
        return lines + ours
    return b"".join((lines, b"x-request-id: ", request_id, b"\r\n", ours))


def _returned(head: ResponseHead, drop: frozenset[bytes]) -> bytes:
    connection = head.index.get(b"connection")
    if connection is not None and connection not in _PLAIN_CONNECTIONS:
        drop = drop | {each.strip(b" \t") for each in connection.lower().split(b",")}
    return b"".join([line for lower, _, _, line in head.fields if lower not in drop])


def upgrade_lines(head: ResponseHead, request_id: bytes, ours: bytes = b"") -> bytes:
    """The head of a 101: as an answer, with the upgrade itself put back."""
    return answer_lines(head, request_id, ours) + b"connection: upgrade\r\nupgrade: websocket\r\n"


def debug_lines(exchange: Exchange) -> bytes:
    """What became of an exchange here, where ``telemetry.debug_headers`` asks for it."""
    return (
        b"x-tailrace-endpoint: %b\r\nx-tailrace-attempts: %d\r\nx-tailrace-hedged: %b\r\n"
        b"x-tailrace-queue-ms: %.3f\r\n"
    ) % (
        exchange.endpoint.encode(),
        exchange.attempts,
        b"true" if exchange.hedged else b"false",
        exchange.queued * 1000,
    )
