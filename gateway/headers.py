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
_PLAIN_CONNECTIONS = frozenset((b"keep-alive", b"close", b"Keep-Alive", b"Close", b"upgrade"))
_TRACEPARENT = frozenset((b"traceparent",))
_TRACE = frozenset((b"traceparent", b"tracestate"))
"""State without a parent that can be read belongs to no trace (W3C Trace Context 3.3)."""


def request_head(exchange: Exchange, route: BoundRoute, authority: bytes, now: float) -> bytes:
    """The head of one attempt. O(headers); ``now`` turns the deadline into what is left of it."""
    request = exchange.request
    index = request.index
    drop = _NOT_FORWARDED if exchange.trusted else _NOT_FORWARDED_UNTRUSTED
    connection = index.get(b"connection")
    if connection is not None and connection not in _PLAIN_CONNECTIONS:
        drop = drop | (connection_options(connection) - _PROTECTED)
    if route.request_drop:
        drop = drop | route.request_drop
    if exchange.span is not None:
        drop = drop | (_TRACEPARENT if exchange.span.traced_before else _TRACE)
    target = request.target if route.rewrite is None else route.rewrite(request.target)
    host = route.host or request.host or authority
    head = b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (request.method, target, host)
    head += b"".join([each[3] for each in request.fields if each[0] not in drop])
    lines = [_forwarding(exchange)]
    if b"te" in index and b"trailers" in index[b"te"].lower():
        lines.append(b"te: trailers\r\n")
    if exchange.asked and exchange.deadline is not None:
        left = max(1, int((exchange.deadline - now) * 1000))
        lines.append(b"x-request-timeout-ms: %d\r\n" % left)
    if exchange.span is not None:
        lines.append(exchange.span.header_line())
    if exchange.upgrade:
        lines.append(b"connection: upgrade\r\nupgrade: websocket\r\n")
    if request.length is None:
        lines.append(b"transfer-encoding: chunked\r\n")
    elif request.length or b"content-length" in index or request.method in (b"POST", b"PUT"):
        lines.append(b"content-length: %d\r\n" % request.length)
    lines.append(b"x-request-id: %b\r\n" % exchange.request_id)
    own = b"".join(lines)
    if route.request_drop:  # what a route removes or sets is not ours to write either
        kept = [line for line in own.splitlines(True) if line.partition(b":")[0] not in drop]
        own = b"".join(kept) + route.request_lines
    return head + own + b"\r\n"


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


def answer_lines(head: ResponseHead, request_id: bytes) -> bytes:
    """What of an upstream's head goes to the client, as lines; framing is the responder's."""
    drop = _NOT_RETURNED
    connection = head.index.get(b"connection")
    if connection is not None and connection not in _PLAIN_CONNECTIONS:
        drop = drop | {each.strip(b" \t") for each in connection.lower().split(b",")}
    lines = [each[3] for each in head.fields if each[0] not in drop]
    if request_id:
        lines.append(b"x-request-id: %b\r\n" % request_id)
    return b"".join(lines)


def upgrade_lines(head: ResponseHead, request_id: bytes) -> bytes:
    """The head of a 101: as an answer, with the upgrade itself put back."""
    return answer_lines(head, request_id) + b"connection: upgrade\r\nupgrade: websocket\r\n"


def debug_lines(exchange: Exchange) -> bytes:
    """What became of an exchange here, where ``telemetry.debug_headers`` asks for it."""
    return b"x-tailrace-endpoint: %b\r\nx-tailrace-attempts: %d\r\n" % (
        exchange.endpoint.encode(),
        exchange.attempts,
    )
