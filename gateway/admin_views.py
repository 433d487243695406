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

PLACES = {
    "GET /livez": "200 while the event loop runs",
    "GET /readyz": "200 while ready for traffic, else 503",
    "GET /metrics": "Prometheus metrics",
    "GET /config": "the effective configuration, and how its last reload went",
    "GET /clusters": "endpoints: state, why, load, latency, connections",
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
                "endpoints": [_endpoint(each, membership, now) for each in membership.endpoints()],
            }
            for name, membership in server.memberships.items()
        }
    }


def _endpoint(endpoint: Endpoint, membership: Membership, now: float) -> dict[str, Any]:
    pool, location = endpoint.pool, endpoint.location
    latency = endpoint.latency(now)
    return {
        "endpoint": endpoint.name,
        "state": endpoint.state,
        "why": endpoint.why,
        "since": _rfc3339(time.time() - (now - endpoint.since)),
        "weight": endpoint.weight,
        "in_flight": endpoint.active,
        "latency_ms": round(latency * 1000, 3) if latency else None,
        "served": endpoint.served,
        "failed": endpoint.failed,
        "connections": {"idle": pool.idle, "busy": pool.open - pool.idle},
        "connects": pool.connects,
        "replays": pool.replays,
        "addresses": [] if location.socket_path else membership.names.addresses(location.host),
    }


def _rfc3339(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
