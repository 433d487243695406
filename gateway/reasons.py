"""What each reason code means to whoever reads it, and what can be done: for ``docs/reasons.md``.

Beside ``replies.TABLE``, which says what the client is told. Text only, nothing decides by it.
"""

from typing import NamedTuple

from filters.api import Reason


class Meaning(NamedTuple):
    """``remedy`` is for the operator, or the operator's answer to the client."""

    what: str
    remedy: str


_REQUEST = "The client's to repair; `detail` in the log says what is wrong with it"
_SERVER_LOG = "The server's log at that moment; `endpoint_failures_total` shows which server"

MEANINGS: dict[Reason, Meaning] = {
    Reason.MALFORMED: Meaning("the request breaks the rules of HTTP/1.1", _REQUEST),
    Reason.VERSION: Meaning(
        "neither HTTP/1.1 nor HTTP/1.0", "A load balancer in front can end HTTP/2"
    ),
    Reason.METHOD: Meaning("CONNECT and TRACE", "None: they are not proxied"),
    Reason.NOT_IMPLEMENTED: Meaning(
        "a transfer coding or an upgrade that is not supported", _REQUEST
    ),
    Reason.EXPECTATION: Meaning("an `Expect` other than `100-continue`", _REQUEST),
    Reason.TARGET_TOO_LONG: Meaning(
        "above `limits.target_bytes`", "A shorter URL, or a higher limit"
    ),
    Reason.HEAD_TOO_LARGE: Meaning(
        "above `limits.head_bytes` or `limits.headers`",
        "Smaller cookies or tokens, or a higher limit",
    ),
    Reason.BODY_TOO_LARGE: Meaning(
        "above `limits.body_bytes`", "A smaller body, or a higher limit"
    ),
    Reason.HEAD_TIMEOUT: Meaning(
        "the head took longer than `timeouts.head`",
        "A client or a network that is slow, or somebody who means harm",
    ),
    Reason.BODY_TIMEOUT: Meaning(
        "the upload was silent for longer than `timeouts.body_idle`",
        "The client's network; a longer `timeouts.body_idle`",
    ),
    Reason.CLIENT_GONE: Meaning(
        "the client left; in log and metrics only",
        "`duration_ms` against the client's own time-out. Let it send `x-request-timeout-ms`, so "
        "that nobody works for it in vain",
    ),
    Reason.CLIENT_STALLED: Meaning(
        "the client stopped reading; in log and metrics only",
        "The client; the server's slot was given back",
    ),
    Reason.NO_ROUTE: Meaning("no route matches", "The client's URL, or a route for it"),
    Reason.DEADLINE: Meaning(
        "the exchange's deadline passed",
        "`queued_ms` large: overload, as for `shed`. Else the server: `latency_ms` in `/clusters`",
    ),
    Reason.DEADLINE_UNREACHABLE: Meaning(
        "less time left than the route's recent best case took; nothing was sent",
        "Longer deadlines, or a faster server",
    ),
    Reason.RATE_LIMITED: Meaning(
        "the key is over `rate_limit`; `Retry-After` is exact",
        "Fewer requests, or a higher `rate` or `burst`",
    ),
    Reason.SHED: Meaning(
        "the route's queue stands, and what exceeds what is served is refused, the lowest class "
        "first",
        "More capacity, or less load. `/filters`: `inflow` against `drain`",
    ),
    Reason.STRAINED: Meaning(
        "the gateway itself is at its limits: event loop, memory or open files",
        "More gateways, or a higher limit; `detail` in the log says of what",
    ),
    Reason.QUEUE_FULL: Meaning(
        "`admission.queue.size` are waiting, and this one has the least claim to a place",
        "As for `shed`; a larger queue only if the bursts are short",
    ),
    Reason.QUEUE_TIMEOUT: Meaning(
        "no permit within `admission.queue.timeout`",
        "As for `shed`; often a server that hangs: `/clusters`",
    ),
    Reason.NO_ENDPOINT: Meaning(
        "the cluster has no endpoint to send to: its name has no address, or all are ejected",
        "`/clusters` says why. Is the server running, and on this port?",
    ),
    Reason.QUARANTINED: Meaning(
        "this body has spoiled batches before, and `batching.quarantine` is `refuse`",
        "The server's own error for it is what `quarantine: alone` shows",
    ),
    Reason.CONNECTIONS: Meaning(
        "above `limits.connections`, and none of them idle",
        "More gateways; or a higher limit, and `ulimit -n` with it",
    ),
    Reason.CONNECT_FAILED: Meaning(
        "no connection to the upstream", "Is the server running? Its own log (out of memory?)"
    ),
    Reason.CONNECT_TIMEOUT: Meaning(
        "no connection within `connect_timeout`",
        "A firewall, a wrong address, a server that does not accept; far away: a larger "
        "`connect_timeout`",
    ),
    Reason.POOL_EXHAUSTED: Meaning(
        "above the endpoint's `connections.max`",
        "A larger `connections.max`, or a limit of admission below it",
    ),
    Reason.UPSTREAM_RESET: Meaning("the upstream closed before its answer began", _SERVER_LOG),
    Reason.UPSTREAM_PROTOCOL: Meaning(
        "the upstream's answer is not valid HTTP",
        "Often the port of gRPC, HTTP/2 or TLS: `detail` says what is wrong",
    ),
    Reason.UPSTREAM_TRUNCATED: Meaning(
        "the upstream broke off in the middle of its answer", _SERVER_LOG
    ),
    Reason.UPSTREAM_STATUS: Meaning(
        "between the parts only: an upstream's 5xx is passed on as it is", _SERVER_LOG
    ),
    Reason.FIRST_BYTE_TIMEOUT: Meaning(
        "no byte of the body within `deadline.first_byte`",
        "It must be longer than the longest generation that is not streamed; else a server that "
        "hangs: `/clusters`",
    ),
    Reason.STALL: Meaning(
        "silence within the body for longer than `deadline.stall`",
        "Long pauses between tokens: a larger `stall`; else the server's log",
    ),
    Reason.POISON: Meaning(
        "the connection broke twice after this body had been sent whole; it is not replayed for a "
        "minute",
        "The server's log at that moment; the request id is in both",
    ),
    Reason.BISECTION_BUDGET: Meaning(
        "the batch failed, and too much was spent of late on finding out by whose fault",
        "`batch_culprits_total`; find who sends them. A larger `batching.bisection.share` costs "
        "the server more inferences",
    ),
    Reason.BATCH_FAILED: Meaning(
        "the batch failed, and so did its parts: it is the server, and no single request",
        "The server's log; `/clusters`",
    ),
    Reason.BATCH_ANSWER: Meaning(
        "the answer to the batch has too few rows, or others than it should: nobody gets any of it",
        "The log says what was wrong. A model that is not row by row must not be batched: take "
        "`batching` off its route",
    ),
    Reason.INTERNAL: Meaning(
        "a fault of the gateway itself",
        "Its own log has a traceback with the request id. Tell us",
    ),
}
