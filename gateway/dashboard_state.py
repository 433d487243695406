"""How everything stands now: endpoints, routes, budgets, configuration, as plain data.

Made only while somebody looks, once a second for all of them. What is shown is bounded, so that a
gateway with a thousand routes does not stop for its dashboard: the busiest come first, and
``/clusters`` and ``/filters`` have the rest.
"""

from __future__ import annotations

import heapq
import time
from typing import TYPE_CHECKING, Any

from gateway import admin_views
from gateway.exposition import version

if TYPE_CHECKING:
    from gateway.dashboard_feed import Rates
    from gateway.dashboard_sample import Sampler
    from gateway.endpoint import Endpoint
    from gateway.membership import Membership
    from gateway.server import Server
    from gateway.wiring import RouteFilters

ROUTES = 40
ENDPOINTS = 100
"""At most so many are shown; those that are in trouble or busy first."""


def state(server: Server, sampler: Sampler, rates: Rates, digest: str) -> dict[str, Any]:
    """``digest`` is the hash of the configuration. O(endpoints + routes), about
    10 us an endpoint and 60 us a route that is shown."""
    now = server.clock.now()
    clusters = [_cluster(name, each, rates, now) for name, each in server.memberships.items()]
    wiring = server.wiring.filters
    busiest = heapq.nlargest(ROUTES, wiring.items(), key=lambda each: _busy(each[1]))
    shown = {name for name, _ in busiest}
    routes = [_route(server, sampler, name, now) for name in wiring if name in shown]
    vitals = dict(server.vitals.describe())
    vitals["strained"] = _strained(wiring.values(), now) if len(wiring) <= ROUTES else ""
    return {
        "version": version(),
        "ready": server.ready,
        "draining": server.acceptor.draining,
        "connections": len(server.acceptor.connections),
        "config": configuration(server, digest),
        "clusters": clusters,
        "routes": routes,
        "more_routes": len(wiring) - len(routes),
        "gateway": vitals,
    }


def configuration(server: Server, digest: str) -> dict[str, Any]:
    """Where it is from, its hash, and how the last reload went."""
    return {
        "path": None if server.path is None else str(server.path),
        "hash": digest,
        "loaded_at": round(server.reloaded_at, 2),
        "reloads": server.reloads,
        "failures": server.reload_failures,
        "last_error": server.reload_error,
    }


def _cluster(name: str, membership: Membership, rates: Rates, now: float) -> dict[str, Any]:
    everyone = membership.endpoints()
    states = {each.name: each.state for each in everyone}
    out = sum(each != "healthy" for each in states.values())
    shown = everyone
    if len(everyone) > ENDPOINTS:
        shown = sorted(everyone, key=lambda each: (states[each.name] == "healthy", -each.active))
        shown = shown[:ENDPOINTS]
    return {
        "name": name,
        "balance": membership.settings.balance.policy,
        "total": len(everyone),
        "out": out,
        "tried": membership.cluster.has_other(()),
        "doubted": membership.cluster.outlier.doubted,
        "endpoints": [_endpoint(name, each, rates, now) for each in shown],
    }


def _endpoint(cluster: str, one: Endpoint, rates: Rates, now: float) -> dict[str, Any]:
    latency = one.latency(now)
    served, failed = rates.of((cluster, one.name))
    return {
        "endpoint": one.name,
        "state": one.state,
        "why": one.why,
        "since": round(time.time() + one.since - now, 2),
        "pushed_back": now < one.standing.avoided_until,
        "share": round(one.share, 3),
        "in_flight": one.active,
        "latency_ms": round(latency * 1000, 2) if latency else None,
        "rate": served,
        "failed": failed,
        "ejections": one.standing.ejections,
        "connections": one.pool.open,
    }


def _busy(parts: RouteFilters) -> float:
    gate = parts.gate
    return 0.0 if gate is None else gate.in_flight + 10 * len(gate.queue)


def _route(server: Server, sampler: Sampler, name: str, now: float) -> dict[str, Any]:
    """One route. The parts that are off are None."""
    parts = server.wiring.filters[name]
    told: dict[str, Any] = {"name": name, "cluster": parts.cluster, **sampler.recent(name)}
    shown = admin_views.route(parts, now)
    admission, shed, hedge = shown["admission"], shown["load_shed"], shown["hedge"]
    if isinstance(admission, dict):
        limit, queue = admission["limit"], admission["queue"]
        told["limit"] = limit["value"]
        told["limit_why"] = limit.get("why") or "fixed"
        told["permits"] = admission["in_flight"]
        told["waiting"] = queue["waiting"]
        told["queue_size"] = queue["size"]
        told["oldest_s"] = queue["oldest_s"]
    if isinstance(shed, dict) and shed["route"] is not None:
        told["overloaded"] = shed["route"]["overloaded"]
        told["margin"] = shed["route"]["margin"]
        told["refused_share"] = shed["route"]["refused_share"]
    if isinstance(shown["budget"], dict):
        told["budget"] = shown["budget"]
    if isinstance(shown["retry"], dict):
        told["retries"] = shown["retry"]["retries"]
        told["retries_refused"] = shown["retry"]["refused_by_budget"]
    if isinstance(hedge, dict):
        told["hedge"] = {"started": hedge["started"], "ends": hedge["ends"]}
    batching = shown.get("batching")
    if isinstance(batching, dict):
        told["batching"] = batching
    return told


def _strained(routes: Any, now: float) -> str:
    for parts in routes:
        if parts.load_shed is not None:
            told = parts.load_shed.describe(now)["gateway"]
            if told and told["pressure"]:
                return str(told["why"])
    return ""
