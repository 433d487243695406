"""The only table from a refusal or failure to what the client is told.

The body has the error shape that clients of the path parse: OpenAI's, and on the paths of the Open
Inference Protocol and KServe v1 theirs, ``{"error": "text"}``, since tritonclient fails over any
other. The reason code stands in OpenAI's, in ``x-tailrace-reason``, in the log and in the metrics
alike.
"""

import logging
import math
from typing import NamedTuple

import msgspec

from filters.api import Exchange, Headers, Kind, Outcome, Reason, Reject, Service
from gateway.fields import lines_of

log = logging.getLogger("tailrace")


class Reply(NamedTuple):
    """``retry``: seconds until trying again can help; None where it cannot."""

    status: int
    message: str
    retry: float | None = None


TABLE: dict[Reason, Reply] = {
    Reason.MALFORMED: Reply(400, "The request is malformed"),
    Reason.VERSION: Reply(505, "This HTTP version is not supported"),
    Reason.METHOD: Reply(405, "This method is not allowed"),
    Reason.NOT_IMPLEMENTED: Reply(501, "This is not implemented"),
    Reason.EXPECTATION: Reply(417, "This expectation cannot be met"),
    Reason.TARGET_TOO_LONG: Reply(414, "The request target is too long"),
    Reason.HEAD_TOO_LARGE: Reply(431, "The request head is too large"),
    Reason.BODY_TOO_LARGE: Reply(413, "The request body is too large"),
    Reason.HEAD_TIMEOUT: Reply(408, "The request head did not come in time"),
    Reason.BODY_TIMEOUT: Reply(408, "The request body did not come in time"),
    Reason.CLIENT_GONE: Reply(499, "The client closed the connection"),
    Reason.CLIENT_STALLED: Reply(499, "The client stopped reading"),
    Reason.NO_ROUTE: Reply(404, "No route matches this request"),
    Reason.DEADLINE: Reply(504, "The deadline of this request has passed", 1),
    Reason.DEADLINE_UNREACHABLE: Reply(504, "This cannot be done in the time that is left", 1),
    Reason.RATE_LIMITED: Reply(429, "The rate limit is reached", 1),
    Reason.SHED: Reply(503, "The model server is overloaded", 1),
    Reason.STRAINED: Reply(503, "The gateway itself is overloaded", 1),
    Reason.QUEUE_FULL: Reply(429, "The queue is full", 1),
    Reason.QUEUE_TIMEOUT: Reply(503, "The wait in the queue was too long", 1),
    Reason.NO_ENDPOINT: Reply(503, "No healthy endpoint", 1),
    Reason.CONNECTIONS: Reply(503, "Too many connections", 1),
    Reason.CONNECT_FAILED: Reply(502, "The upstream cannot be reached", 1),
    Reason.CONNECT_TIMEOUT: Reply(504, "The upstream did not accept a connection in time", 1),
    Reason.POOL_EXHAUSTED: Reply(503, "All connections to the upstream are in use", 1),
    Reason.UPSTREAM_RESET: Reply(502, "The upstream closed the connection before answering", 1),
    Reason.UPSTREAM_PROTOCOL: Reply(502, "The upstream's answer is not valid HTTP"),
    Reason.UPSTREAM_TRUNCATED: Reply(502, "The upstream broke off its answer", 1),
    Reason.UPSTREAM_STATUS: Reply(502, "The upstream failed", 1),
    Reason.FIRST_BYTE_TIMEOUT: Reply(504, "The upstream did not answer in time", 1),
    Reason.STALL: Reply(504, "The upstream stopped answering", 1),
    Reason.POISON: Reply(502, "This request has crashed more than one upstream"),
    Reason.QUARANTINED: Reply(422, "This request has spoiled batches, and is refused for a while"),
    Reason.BISECTION_BUDGET: Reply(503, "Too many batches failed to find out by whose fault", 1),
    Reason.BATCH_FAILED: Reply(503, "The batch failed, by no single request's fault", 1),
    Reason.BATCH_ANSWER: Reply(502, "The answer to the batch cannot be divided", 1),
    Reason.INTERNAL: Reply(500, "Internal error of the gateway"),
}


_AGAIN = frozenset((408, 409, 425, 429))
"""Client errors that may go away by themselves."""


class _Error(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str


class _Body(msgspec.Struct):
    error: _Error


_TEXTS = (b"/v2/models", b"/v2/health/", b"/v2/repository", b"sharedmemory/")
"""Of the Open Inference Protocol."""


class _Text(msgspec.Struct):
    error: str


_encode = msgspec.json.Encoder().encode


def says_text(path: bytes) -> bool:
    """Whether clients of a path, behind any prefix, expect ``error`` to be a text. ``/v2`` alone
    does not tell: other APIs have rerank and chat there."""
    return path.endswith((b":predict", b":explain")) or any(each in path for each in _TEXTS)


def render(reject: Reject, request_id: bytes, path: bytes = b"") -> tuple[int, Headers, bytes]:
    """Status, fields (without framing) and JSON body of a refusal. ``path`` of the request, as far
    as it is known."""
    reply = TABLE[reject.reason]
    status = reject.status or reply.status
    if status == 429:
        kind = "rate_limit_error"
    elif status < 500:
        kind = "invalid_request_error"
    else:
        kind = "server_error"
    # What went wrong on our own side is for the log: it would tell clients what stands behind.
    told = reject.detail and status < 500
    message = f"{reply.message}: {reject.detail}" if told else f"{reply.message}."
    if says_text(path):
        body = _encode(_Text(message))
    else:
        body = _encode(_Body(_Error(message, kind, None, reject.reason.value)))
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"x-tailrace-reason", reject.reason.value.encode()),
    ]
    retry = reject.retry_after if reject.retry_after is not None else reply.retry
    if 400 <= status < 500 and status not in _AGAIN:
        retry = None  # what a server has answered to a batch, say: it will say so again
    if retry is None:
        headers.append((b"x-should-retry", b"false"))
    else:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(retry))))
        headers.append((b"retry-after-ms", b"%d" % max(1, math.ceil(retry * 1000))))
    if reject.reason is Reason.METHOD:
        headers.append((b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"))
    if request_id:
        headers.append((b"x-request-id", request_id))
    return status, headers, body


async def replies(exchange: Exchange, next: Service[Exchange, Outcome]) -> Outcome:  # noqa: A002
    """Exchange filter: turn a Reject into a response, or into a visible abort after the head."""
    try:
        return await next(exchange)
    except Reject as reject:
        refused = reject
    except Exception:
        # A fault of ours must cost one exchange, not the connection's task and its clean-up.
        log.exception("exchange %s failed inside the gateway", exchange.request_id.decode())
        refused = Reject(Reason.INTERNAL)
    refused.__traceback__ = None  # this frame is in it: a cycle that keeps the whole exchange
    exchange.reason = refused.reason
    downstream = exchange.downstream
    if downstream.committed:
        downstream.abort()
        return Outcome(Kind.FAILED, 0, refused.reason)
    status, headers, body = render(refused, exchange.request_id, exchange.request.path)
    downstream.start(status, lines_of(headers) + exchange.lines, len(body))
    downstream.finish(body, [])
    return Outcome(Kind.IGNORED, status, refused.reason, detail=refused.detail)
