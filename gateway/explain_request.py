"""``tailrace explain``: how a request would be routed and filtered, without sending it.

The same parser, router and policies as those that serve decide here, on a configuration that is
only read. What depends on the moment (load, a queue, a burst that is used up) is said as the rule
that would decide.
"""

from __future__ import annotations

import ipaddress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from filters import deadline, hedge, priority, retry
from filters.api import Exchange, Reject, Request
from gateway.router import BoundRoute, Router, host_name, names
from gateway.wire import parse_request

if TYPE_CHECKING:
    from gateway.config import Config, Route


class Row(NamedTuple):
    """``what``: a filter or a part of the journey; ``decides``: what it would do; ``why``."""

    what: str
    decides: str
    why: str


class Explained(NamedTuple):
    """``passes`` False: it is refused whatever the moment is."""

    passes: bool
    route: str | None
    cluster: str | None
    rows: list[Row]


def head(method: str, path: str, headers: tuple[str, ...]) -> bytes:
    """A request head as a client would send it. A Host is added where none is given; a header
    without a colon is left to the parser, which says what is wrong with it."""
    lines = [f"{method} {path} HTTP/1.1"]
    if not any(each.lower().startswith("host:") for each in headers):
        lines.append("host: tailrace.test")
    return "\r\n".join((*lines, *headers, "", "")).encode("utf-8", "surrogateescape")


def explain(config: Config, raw: bytes, client: str, size: int) -> Explained:
    """Decide about a head; ``client`` is an address, ``size`` the bytes of the body to come. Raises
    ValueError if ``client`` is no address."""
    limits, trusted = config.limits, trusts(config, client)
    if len(raw) > limits.head_bytes:
        why = f"{len(raw)} bytes of head, {limits.head_bytes} are allowed"
        return Explained(False, None, None, [Row("head", "refuses", f"head_too_large: {why}")])
    try:
        request = parse_request(raw, target_bytes=limits.target_bytes, headers=limits.headers)
    except Reject as reject:
        why = f"{reject.reason.value}: {reject.detail}" if reject.detail else reject.reason.value
        return Explained(False, None, None, [Row("head", "refuses", why)])
    rows = [Row("head", "passes", f"{request.method.decode()} {_text(request.path)}")]
    if size > limits.body_bytes:
        rows.append(Row("body", "refuses", f"body_too_large: {limits.body_bytes} are allowed"))
        return Explained(False, None, None, rows)
    found = None
    for route, name in zip(config.routes, names(config.routes), strict=True):
        wrong = mismatch(route, request)
        if wrong is None:
            found = (route, name)
            rows.append(Row("route", "takes", f"{name}, to cluster {route.cluster}"))
            break
        rows.append(Row("route", "skips", f"{name}: {wrong}"))
    if found is None:
        rows.append(Row("route", "refuses", "no_route: nothing matches"))
        return Explained(False, None, None, rows)
    route, name = found
    exchange = Exchange(request, _body(), _committed(), client, trusted, False, 0.0)
    rows += _filters(config, route, exchange)
    rows += _sending(config, route, exchange, size)
    refused = any(row.decides == "refuses" for row in rows)
    return Explained(not refused, name, route.cluster, rows)


def mismatch(route: Route, request: Request) -> str | None:
    """Why a route does not match; None if it does. The router itself decides."""
    if Router([(route, True)]).match(request):
        return None
    path = route.path.rstrip("/").encode()
    if path and request.path != path and not request.path.startswith(path + b"/"):
        return f"its path is {route.path}"
    if route.methods and request.method.decode() not in {each.upper() for each in route.methods}:
        return f"its methods are {', '.join(route.methods)}"
    if route.host and not _host_fits(route.host.lower(), _text(host_name(request.host))):
        return f"its host is {route.host}"
    different = [n for n, v in route.headers.items() if _value(request, n) != v]
    return f"it wants another {different[0] if different else 'request'}"


def _host_fits(wanted: str, given: str) -> bool:
    return given.endswith(wanted[1:]) if wanted.startswith("*.") else given == wanted


def _value(request: Request, name: str) -> str | None:
    found = request.index.get(name.lower().encode())
    return None if found is None else _text(found)


def trusts(config: Config, client: str) -> bool:
    """Whether what a client says of itself is believed. Raises ValueError for no address."""
    address = ipaddress.ip_address(client)
    return any(address in ipaddress.ip_network(each, strict=False) for each in config.trust)


def _filters(config: Config, route: Route, exchange: Exchange) -> list[Row]:
    filters, request = route.filters, exchange.request
    who = "trusted" if exchange.trusted else "not in trust, so it can only lower its claims"
    rows = [Row("client", "passes", f"{exchange.client}, {who}")]
    if filters.deadline is not None:
        asked_ms = request.index.get(deadline.HEADER)
        asked = None if asked_ms is None else deadline.asked_seconds(asked_ms)
        bound = deadline.bound(filters.deadline, 0.0, asked, exchange.trusted)
        named = "asked for" if asked is not None else "the route's"
        decides = "passes" if bound > 0 else "refuses"
        rows.append(Row("deadline", decides, f"{bound:g} s, {named}"))
    if filters.priority is not None:
        priority.Priorities(filters.priority).arrive(exchange, 0.0)
    rows.append(Row("priority", "passes", f"class {exchange.priority.name.lower()}"))
    if filters.rate_limit is not None:
        limit = filters.rate_limit
        rows.append(
            Row(
                "rate_limit",
                "asks",
                f"{limit.rate:g}/s, burst {limit.burst}, {_key(limit.key, exchange)}",
            )
        )
    if filters.load_shed is not None:
        rows.append(Row("load_shed", "asks", "refuses the worst classes while the queue stands"))
    if route.batching is not None:
        batching = route.batching
        fits = exchange.request.method == b"POST"
        how = f"with others if it is {batching.format} as a whole, by {batching.runner}"
        rows.append(Row("batching", "joins" if fits else "passes", how if fits else "alone"))
    if filters.admission is not None:
        admission = filters.admission
        queue = admission.queue
        size = f"a queue of {queue.size} for {queue.timeout:g} s at most"
        fair = f"shared fairly {_key(admission.fair_by, exchange)}"
        rows.append(Row("admission", "asks", f"limit {admission.limit}, {size}, {fair}"))
    return rows


def _key(key: str, exchange: Exchange) -> str:
    """Who shares with this request. Never a value: it may be a credential."""
    kind, _, name = key.partition(":")
    if kind == "header" and exchange.request.index.get(name.lower().encode()):
        return f"by its {name}"
    return "with everybody" if key == "route" else f"by its address, {exchange.client}"


def _sending(config: Config, route: Route, exchange: Exchange, size: int) -> list[Row]:
    filters, rows = route.filters, []
    policy = retry.Policy(filters.retry or retry.Config(attempts=1))
    safe = policy.replayable(exchange)
    kept = size <= config.limits.replay_bytes
    if not kept:
        may = f"a body of {size} bytes is not kept, so it is sent once"
    elif safe:
        may = "may be sent again"
    else:
        may = "may change something, so it is sent again only if nothing of it was sent"
    if filters.retry is not None:
        conditions = ", ".join(str(each) for each in filters.retry.on)
        rows.append(
            Row("retry", "asks", f"{filters.retry.attempts} attempts on {conditions}; {may}")
        )
    if filters.hedge is not None:
        after = f"p{filters.hedge.after * 100:g}"
        would = "hedges" if safe and kept else "does not"
        place = hedge.CLASSES[hedge.size_class(size)]
        rows.append(Row("hedge", would, f"after {after} of bodies {place}; {may}"))
    if not route.cluster:
        return rows
    cluster = config.clusters[route.cluster]
    listed = ", ".join(each.url or f"{each.dns} (each address)" for each in cluster.endpoints[:8])
    more = len(cluster.endpoints) - 8
    listed += f" and {more} more" if more > 0 else ""
    rows.append(Row("cluster", "sends", f"{route.cluster}: {cluster.balance.policy} of {listed}"))
    bound = BoundRoute("", route.cluster, (1.0, 1.0), policy.replayable, route)
    if bound.rewrite is not None:
        rows.append(Row("rewrite", "sends", f"{_text(bound.rewrite(exchange.request.target))}"))
    put = sorted(route.request_headers.set)
    if put or route.request_headers.remove:
        removed = ", ".join(route.request_headers.remove) or "nothing"
        rows.append(
            Row("headers", "sends", f"sets {', '.join(put) or 'nothing'}; removes {removed}")
        )
    return rows


def _body() -> Any:
    """Stands for a body that is not there: nothing is known of what is in it."""
    return SimpleNamespace(
        peek=lambda: None, replayable=True, complete=True, fingerprint=lambda: None
    )


def _committed() -> Any:
    return SimpleNamespace(committed=False)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def rendered(told: Explained) -> str:
    """For a terminal."""
    wide = max(len(row.what) for row in told.rows)
    lines = [f"{row.what:<{wide}}  {row.decides:<8} {row.why}" for row in told.rows]
    end = "would be sent on" if told.passes else "would be refused"
    return "\n".join((*lines, end))
