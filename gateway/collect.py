"""What is told to whoever scrapes: the plain numbers of everything that runs, by name and labels.

Runs on the event loop and only copies. Nothing here is counted anywhere else: a filter's numbers
are attributes of the filter, and what one request did is counted by ``telemetry.py``.
``docs/metrics.md`` is written from this, and held against it by a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from filters.api import Priority, Reason
from filters.retry import Stop
from gateway.collect_batches import collect_batches
from gateway.exposition import Families, Family
from gateway.metrics import OTHER, SERIES

if TYPE_CHECKING:
    from gateway.endpoint import Endpoint
    from gateway.server import Server
    from gateway.wiring import RouteFilters

STATES = ("healthy", "ejected", "probing", "unhealthy")
CLASSES = tuple(each.name.lower() for each in Priority)


def collect(server: Server) -> list[Family]:
    """Copy every number of this moment. O(series), a microsecond or two for each."""
    families = Families()
    _exchanges(families, server)
    _admission(families, server)
    _arrivals(families, server)
    _retries(families, server)
    _hedges(families, server)
    _dry_runs(families, server)
    _endpoints(families, server)
    _connections(families, server)
    _ejections(families, server)
    _edges(families, server)
    _process(families, server)
    _batches(families, server)
    return families.all


def _routes(server: Server) -> Iterator[tuple[str, RouteFilters]]:
    """The filters of each route, with the label that it gets."""
    for number, (name, filters) in enumerate(server.wiring.filters.items()):
        yield name if number < SERIES else OTHER, filters


def _batches(families: Families, server: Server) -> None:
    batching = [
        (route, filters.batches.batching)
        for route, filters in _routes(server)
        if filters.batches is not None
    ]
    collect_batches(families, batching)


def _exchanges(families: Families, server: Server) -> None:
    requests = families.counter(
        "requests_total",
        "Exchanges that ended, refused ones included; reason is empty for what went well.",
        "route cluster code reason priority",
    )
    durations = families.histogram(
        "request_duration_seconds",
        "From the request's head to the last byte of the answer.",
        "route",
    )
    first_bytes = families.histogram(
        "first_byte_seconds",
        "From the request's head to the first byte of the answer's body.",
        "route",
    )
    queue_waits = families.histogram(
        "queue_wait_seconds",
        "Of exchanges that waited for a permit and got it; who waited in vain is not in it.",
        "route",
    )
    in_flight = families.gauge("in_flight", "Exchanges under way, waiting ones included.", "route")
    for name, counters in server.telemetry.metrics.routes.items():
        for (cluster, code, reason, priority), count in counters.requests.items():
            requests.add(
                count,
                route=name,
                cluster=cluster,
                code=f"{code}xx",
                reason="" if reason is None else reason.value,
                priority=CLASSES[priority],
            )
        durations.add_histogram(counters.durations, route=name)
        first_bytes.add_histogram(counters.first_bytes, route=name)
        queue_waits.add_histogram(counters.queue_waits, route=name)
        in_flight.add(counters.in_flight, route=name)
    refused = families.counter(
        "refused_total", "Refusals before a request became an exchange.", "reason"
    )
    for each, count in server.telemetry.metrics.refused.items():
        refused.add(count, reason=each.value)


def _admission(families: Families, server: Server) -> None:
    limit = families.gauge("limit", "Permits of the route: what it may have in flight.", "route")
    permits = families.gauge(
        "permits",
        "Permits given out and not come back yet: what is in flight at the cluster.",
        "route",
    )
    saturation = families.gauge(
        "admission_saturation",
        "(permits + waiting) / limit. Above 1 exchanges wait; made for autoscaling.",
        "route",
    )
    waiting = families.gauge(
        "queue_length", "Exchanges that wait for a permit, by class.", "route priority"
    )
    overloaded = families.gauge(
        "overloaded", "1 while the queue stands and arrivals are shed.", "route"
    )
    overloads = families.counter("overloads_total", "How often that began.", "route")
    now = server.clock.now()
    for route, filters in _routes(server):
        gate = filters.gate
        if gate is None:
            continue
        value = gate.limit.value
        limit.add(value, route=route)
        permits.add(gate.in_flight, route=route)
        # Those that share ``other`` have no saturation: adding theirs up would say nothing.
        if route != OTHER:
            saturation.add((gate.in_flight + len(gate.queue)) / max(1, value), route=route)
        for name, length in zip(CLASSES, gate.queue.by_level(), strict=True):
            waiting.add(length, route=route, priority=name)
        overloaded.add(gate.shedder.stands(now), route=route)
        overloads.add(gate.shedder.episodes, route=route)


def _arrivals(families: Families, server: Server) -> None:
    keys = families.gauge(
        "rate_limit_keys", "Keys that have used some of their burst lately.", "route"
    )
    evictions = families.counter(
        "rate_limit_evictions_total",
        "Active keys that were forgotten for want of room: their limits are not exact.",
        "route",
    )
    disbelieved = families.counter(
        "priorities_disbelieved_total",
        "Claims of a class that were not believed or understood.",
        "route",
    )
    for route, filters in _routes(server):
        if filters.rate_limit is not None:
            keys.add(filters.rate_limit.keys, route=route)
            evictions.add(filters.rate_limit.evicted, route=route)
        if filters.priority is not None:
            disbelieved.add(filters.priority.disbelieved, route=route)


def _retries(families: Families, server: Server) -> None:
    retries = families.counter(
        "retries_total", "Further attempts that were made after a failure.", "route"
    )
    refused = families.counter(
        "retries_refused_total",
        "Failures that were not retried although they could be, by why.",
        "route why",
    )
    balance = families.gauge("budget_balance", "Extra attempts that could be made now.", "route")
    for route, filters in _routes(server):
        if filters.retry is None:
            continue
        retries.add(filters.retry.retries, route=route)
        refused.add(filters.retry.refused, route=route, why="budget")
        for why, count in filters.retry.stopped.items():
            if why is not Stop.FINAL:
                refused.add(count, route=route, why=why.value)
    now = server.clock.now()
    for number, (name, budget) in enumerate(server.wiring.budgets.items()):
        balance.add(budget.balance(now), route=name if number < SERIES else OTHER)


def _hedges(families: Families, server: Server) -> None:
    hedges = families.counter(
        "hedges_total", "Second attempts that have ended, by outcome.", "route outcome"
    )
    refused = families.counter(
        "hedges_refused_total",
        "Late attempts without a second, by why; samples counts all, late or not.",
        "route why",
    )
    for route, filters in _routes(server):
        hedge = filters.hedge
        if hedge is None:
            continue
        for end, count in hedge.ends.items():
            hedges.add(count, route=route, outcome=end.value)
        for why, count in hedge.refused.items():
            refused.add(count, route=route, why=why.value)


def _dry_runs(families: Families, server: Server) -> None:
    """What ``would`` have been done: refused (its reason code), made to wait, hedged. Only of
    filters with ``dry_run``, and of those that had it before a reload."""
    family = families.counter(
        "dry_run_total",
        "What filters with dry_run would have done; absent without one.",
        "route would",
    )
    for route, filters in _routes(server):
        for would, count, dry_run in _would(filters):
            if dry_run or count:
                family.add(count, route=route, would=would)


def _would(filters: RouteFilters) -> Iterator[tuple[str, int, bool]]:
    """What, how often, and whether the filter is in a dry run now."""
    deadline, rate_limit, load_shed = filters.deadline, filters.rate_limit, filters.load_shed
    if deadline is not None:
        yield Reason.DEADLINE_UNREACHABLE.value, deadline.would_refuse, deadline.config.dry_run
    if rate_limit is not None:
        yield Reason.RATE_LIMITED.value, rate_limit.would_refuse, rate_limit.config.dry_run
    if load_shed is not None:
        yield Reason.SHED.value, load_shed.would_shed, load_shed.dry_run
        yield Reason.STRAINED.value, load_shed.would_strain, load_shed.dry_run
    if filters.gate is not None:
        yield "queue", filters.gate.would_wait, filters.gate.config.dry_run
    if filters.hedge is not None:
        yield "hedge", filters.hedge.would_hedge, filters.hedge.policy.config.dry_run


def _named(server: Server) -> Iterator[tuple[dict[str, str], Endpoint]]:
    """Each endpoint with its labels."""
    seen = 0
    for cluster, membership in server.memberships.items():
        for each in membership.endpoints():
            seen += 1
            yield {"cluster": cluster, "endpoint": each.name if seen <= SERIES else OTHER}, each


def _endpoints(families: Families, server: Server) -> None:
    states = families.gauge(
        "endpoint_state", "1 for the state that the endpoint is in.", "cluster endpoint state"
    )
    shares = families.gauge(
        "endpoint_share",
        "The part of its weight that the endpoint gets: 0 while ejected, else 1 or less.",
        "cluster endpoint",
    )
    active = families.gauge(
        "endpoint_in_flight", "Attempts under way at the endpoint.", "cluster endpoint"
    )
    served = families.counter(
        "endpoint_requests_total", "Attempts at the endpoint that ended.", "cluster endpoint"
    )
    failed = families.counter(
        "endpoint_failures_total", "Attempts at the endpoint that failed.", "cluster endpoint"
    )
    pushed = families.counter(
        "endpoint_push_backs_total",
        "Attempts refused for its load: 429, or 503 with Retry-After.",
        "cluster endpoint",
    )
    for labels, each in _named(server):
        now = each.state
        for state in STATES:
            states.add(state == now, **labels, state=state)
        shares.add(each.share, **labels)
        active.add(each.active, **labels)
        served.add(each.served, **labels)
        failed.add(each.failed, **labels)
        pushed.add(each.standing.push_backs, **labels)


def _connections(families: Families, server: Server) -> None:
    connections = families.gauge(
        "upstream_connections", "Open connections to the endpoint.", "cluster endpoint state"
    )
    connects = families.counter(
        "upstream_connects_total", "Connections begun to the endpoint.", "cluster endpoint"
    )
    replays = families.counter(
        "upstream_replays_total",
        "Requests sent again because a kept connection was dead.",
        "cluster endpoint",
    )
    for labels, each in _named(server):
        idle = each.pool.idle
        connections.add(idle, **labels, state="idle")
        connections.add(each.pool.open - idle, **labels, state="busy")
        connects.add(each.pool.connects, **labels)
        replays.add(each.pool.replays, **labels)


def _ejections(families: Families, server: Server) -> None:
    ejections = families.counter(
        "ejections_total", "Endpoints that were ejected, by cause.", "cluster cause"
    )
    would = families.counter(
        "dry_run_ejections_total",
        "Endpoints that outlier with dry_run would have ejected.",
        "cluster cause",
    )
    doubted = families.gauge(
        "ejection_doubted", "1 while every endpoint looks bad, so that none is ejected.", "cluster"
    )
    for cluster, membership in server.memberships.items():
        outlier = membership.cluster.outlier
        for cause, count in outlier.ejections.items():
            ejections.add(count, cluster=cluster, cause=cause.value)
        for cause, count in outlier.would_eject.items():
            would.add(count, cluster=cluster, cause=cause.value)
        doubted.add(outlier.doubted, cluster=cluster)


def _edges(families: Families, server: Server) -> None:
    acceptor = server.acceptor
    families.gauge("connections", "Open connections of clients.").add(len(acceptor.connections))
    families.counter("connections_accepted_total", "Connections of clients so far.").add(
        acceptor.accepted
    )
    families.counter(
        "connections_evicted_total", "Idle connections closed to make room for new ones."
    ).add(acceptor.evicted)
    families.gauge("replay_bytes", "Bytes of request bodies kept for another attempt.").add(
        acceptor.replay.held
    )
    families.counter(
        "bodies_not_replayable_total",
        "Request bodies too large to be kept: sent once, never again.",
    ).add(acceptor.replay.bodies_streamed)


def _process(families: Families, server: Server) -> None:
    reloads = families.counter(
        "config_reloads_total", "Reloads of the configuration, by result.", "result"
    )
    reloads.add(server.reloads, result="success")
    reloads.add(server.reload_failures, result="failure")
    families.gauge(
        "config_last_reload_success", "1 if the last reload succeeded, or none was."
    ).add(server.reload_error is None)
    families.gauge(
        "config_last_reload_success_timestamp_seconds", "When the configuration came into force."
    ).add(server.reloaded_at)
    families.counter("access_log_dropped_total", "Lines of the access log that were lost.").add(
        server.telemetry.lines_dropped
    )
    _spans(families, server)
    families.gauge("ready", "1 while the gateway is ready for traffic.").add(server.ready)
    vitals = server.vitals
    families.gauge(
        "saturation",
        "The highest of CPU (of one core), connections, memory and open files; 1 is full.",
    ).add(vitals.saturation(server.acceptor.fullness))
    lag = families.gauge(
        "event_loop_lag_seconds", "How late the event loop was at the last look, ten a second."
    )
    lag.add(vitals.loop_lag)
    memory = families.gauge(
        "memory_ratio", "The working set, of the limit of its cgroup; absent without a limit."
    )
    files = families.gauge("open_files_ratio", "Open files, of the limit on them.")
    if vitals.memory is not None:
        memory.add(vitals.memory)
    if vitals.files is not None:
        files.add(vitals.files)


def _spans(families: Families, server: Server) -> None:
    counts = server.telemetry.spans
    spans = families.counter("spans_total", "Spans, by what became of them.", "result")
    for result, count in (
        ("exported", counts.exported),
        ("failed", counts.failed),
        ("dropped", counts.dropped),
    ):
        spans.add(count, result=result)
    families.counter(
        "exchanges_untraced_total",
        "Sampled exchanges without spans: too many waited for the collector.",
    ).add(counts.untraced)
