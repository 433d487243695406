"""What the admin listener shows: the running objects as plain data."""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.config import Config
from gateway.exposition import version

if TYPE_CHECKING:
    from gateway.endpoint import Endpoint
    from gateway.membership import Membership
    from gateway.server import Server
    from gateway.wiring import RouteFilters

PLACES = {
    "GET /livez": "200 while the event loop runs",
    "GET /readyz": "200 while ready for traffic, else 503",
    "GET /metrics": "Prometheus metrics",
    "GET /config": "the effective configuration, and how its last reload went",
    "GET /clusters": "endpoints: state, why, until when, load, latency, connections",
    "GET /dashboard.json": "what the dashboard shows: ten minutes, headline, events, routes",
    "GET /events": "the same as a stream of server-sent events, a message a second",
    "GET /explain": "?request_id=ID: what became of an unusual exchange, and why",
    "GET /filters": "per route: limits, queues, refused shares, budgets; the gateway's own health",
    "POST /clusters/NAME/endpoints/ADDRESS/eject": "send it nothing for an hour, if others can",
    "POST /clusters/NAME/endpoints/ADDRESS/restore": "end an ejection",
    "POST /drain": "finish what is under way and exit; ?wait=true answers when it is done",
    "POST /reload": "read the configuration file again",
}


def index() -> dict[str, object]:
    return {"name": "tailrace", "version": version(), "places": PLACES}


def readiness(server: Server) -> dict[str, object]:
    if server.ready:
        return {"ready": True}
    return {"ready": False, "why": "drained" if server.drained.is_set() else "draining"}


def configuration(server: Server) -> dict[str, object]:
    """The effective configuration with its secrets as where they are from. About a millisecond.

    ``hash`` is of what is shown, so that two gateways with equal ones are configured alike.
    """
    from gateway.config_source import as_written
    from gateway.config_types import described

    shown = as_written(server.config, described(Config), "off")
    digest = hashlib.sha256(msgspec.json.encode(shown)).hexdigest()
    return {
        "path": None if server.path is None else str(server.path),
        "hash": digest[:16],
        "reload": {
            "ok": server.reload_error is None,
            "last_success": _rfc3339(server.reloaded_at),
            "last_error": server.reload_error,
            "successes": server.reloads,
            "failures": server.reload_failures,
        },
        "config": shown,
    }


def clusters(server: Server) -> dict[str, object]:
    now = server.clock.now()
    return {
        "clusters": {
            name: {
                "balance": membership.settings.balance.policy,
                "outlier": _plain(membership.cluster.outlier.describe(now)),
                "endpoints": [endpoint(each, membership, now) for each in membership.endpoints()],
            }
            for name, membership in server.memberships.items()
        }
    }


def endpoint(one: Endpoint, membership: Membership, now: float) -> dict[str, Any]:
    """One endpoint. ``until``: when an ejection ends; ``share``: the part of its weight that it
    gets: less than 1 while it comes back, pushes back or is under suspicion."""
    pool, location, standing = one.pool, one.location, one.standing
    latency = one.latency(now)
    return {
        "endpoint": one.name,
        "state": one.state,
        "why": one.why,
        "since": _moment(one.since, now),
        "until": _moment(standing.until, now) if now < standing.until else None,
        "pushed_back_until": (
            _moment(standing.avoided_until, now) if now < standing.avoided_until else None
        ),
        "weight": one.rated,
        "share": _plain(one.share),
        "ejections": standing.ejections,
        "push_backs": standing.push_backs,
        "in_flight": one.active,
        "latency_ms": round(latency * 1000, 3) if latency else None,
        "served": one.served,
        "failed": one.failed,
        "connections": {"idle": pool.idle, "busy": pool.open - pool.idle},
        "connects": pool.connects,
        "replays": pool.replays,
        "addresses": [] if location.socket_path else membership.names.addresses(location.host),
    }


FILTERS = ("deadline", "priority", "rate_limit", "load_shed", "gate", "retry", "hedge")
"""The attributes of ``RouteFilters``, in the order of the chains."""


def filters(server: Server) -> dict[str, object]:
    """What each filter of each route has learned and decided. About 50 us a route, and up to 1 ms
    for one that is overloaded."""
    now = server.clock.now()
    routes = {name: route(parts, now) for name, parts in server.wiring.filters.items()}
    return {"gateway": _plain(server.vitals.describe()), "routes": routes}


def route(parts: RouteFilters, now: float) -> dict[str, Any]:
    """The filters of one route."""
    shown: dict[str, Any] = {"cluster": parts.cluster}
    for part in FILTERS:
        each = getattr(parts, part)
        key = "admission" if part == "gate" else part
        shown[key] = "off" if each is None else _plain(each.describe(now))
    if parts.batches is not None:
        shown["batching"] = _plain(parts.batches.batching.describe(now))
    shown["budget"] = "off" if parts.budget is None else _plain(parts.budget.describe(now))
    return shown


def _plain(told: Any) -> Any:
    """The same, with numbers that are no longer than they are exact."""
    if isinstance(told, float):
        return float(f"{told:.6g}")
    if isinstance(told, dict):
        return {key: _plain(each) for key, each in told.items()}
    return told


def _moment(at: float, now: float) -> str:
    """A time of the monotonic clock as one of the calendar."""
    return _rfc3339(time.time() + (at - now))


def _rfc3339(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
