"""The counters as Prometheus metrics, made only when somebody scrapes.

In two halves. ``collect`` runs on the event loop and copies numbers, so that all of them are of
one moment. ``render`` may run on a thread: it loads aioprometheus at the first scrape and builds
the text, which for many routes takes longer than a token may wait.
"""

from __future__ import annotations

import importlib.metadata
import os
import resource
import time
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from gateway.metrics import OTHER, SERIES

if TYPE_CHECKING:
    from gateway.endpoint import Endpoint
    from gateway.metrics import Histogram
    from gateway.server import Server

PREFIX = "tailrace_"
Labels: TypeAlias = tuple[tuple[str, str], ...]


class Buckets(NamedTuple):
    """A histogram of one moment; ``counts`` as in ``metrics.Histogram``, not cumulative."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


class Family:
    """One metric with all its series. Equal labels add up, which is how ``other`` comes about."""

    def __init__(self, kind: Literal["counter", "gauge", "histogram"], name: str, doc: str) -> None:
        self.kind = kind
        self.name = name
        self.doc = doc
        self.numbers: dict[Labels, float] = {}
        self.buckets: dict[Labels, Buckets] = {}

    def add(self, value: float, **labels: str) -> None:
        key = tuple(labels.items())
        self.numbers[key] = self.numbers.get(key, 0) + value

    def add_histogram(self, found: Histogram, **labels: str) -> None:
        self.buckets[tuple(labels.items())] = Buckets(found.bounds, tuple(found.counts), found.sum)


class _Families:
    """The families of one scrape, by name, in the order in which they were first named."""

    def __init__(self) -> None:
        self.all: list[Family] = []

    def counter(self, name: str, doc: str) -> Family:
        return self._new(Family("counter", PREFIX + name, doc))

    def gauge(self, name: str, doc: str) -> Family:
        return self._new(Family("gauge", PREFIX + name, doc))

    def histogram(self, name: str, doc: str) -> Family:
        return self._new(Family("histogram", PREFIX + name, doc))

    def _new(self, family: Family) -> Family:
        self.all.append(family)
        return family


def collect(server: Server) -> list[Family]:
    """Copy every number of this moment. O(series), a microsecond or two for each."""
    families = _Families()
    _exchanges(families, server)
    _retries(families, server)
    _endpoints(families, server)
    _edges(families, server)
    _process(families, server)
    return families.all


def _exchanges(families: _Families, server: Server) -> None:
    requests = families.counter("requests_total", "Exchanges that ended, refused ones included.")
    durations = families.histogram(
        "request_duration_seconds", "From the request's head to the last byte of the answer."
    )
    first_bytes = families.histogram(
        "first_byte_seconds", "From the request's head to the first byte of the answer's body."
    )
    in_flight = families.gauge("in_flight", "Exchanges under way.")
    for name, counters in server.telemetry.metrics.routes.items():
        for (cluster, code, reason), count in counters.requests.items():
            why = "" if reason is None else reason.value
            requests.add(count, route=name, cluster=cluster, code=f"{code}xx", reason=why)
        durations.add_histogram(counters.durations, route=name)
        first_bytes.add_histogram(counters.first_bytes, route=name)
        in_flight.add(counters.in_flight, route=name)
    refused = families.counter("refused_total", "Refusals before a request became an exchange.")
    for each, count in server.telemetry.metrics.refused.items():
        refused.add(count, reason=each.value)


def _retries(families: _Families, server: Server) -> None:
    retries = families.counter("retries_total", "Further attempts that were made.")
    refused = families.counter(
        "retries_refused_total", "Further attempts that the budget did not bear."
    )
    poison = families.counter(
        "retries_poison_total", "Further attempts not made because the body broke servers before."
    )
    balance = families.gauge("budget_balance", "Extra attempts that could be made now.")
    now = server.clock.now()
    for number, (name, each) in enumerate(server.wiring.retries.items()):
        route = name if number < SERIES else OTHER
        retries.add(each.retries, route=route)
        refused.add(each.refused, route=route)
        poison.add(each.poison, route=route)
    for number, (name, budget) in enumerate(server.wiring.budgets.items()):
        balance.add(budget.balance(now), route=name if number < SERIES else OTHER)


def _endpoints(families: _Families, server: Server) -> None:
    healthy = families.gauge("endpoint_healthy", "1 while the endpoint takes part in balancing.")
    active = families.gauge("endpoint_in_flight", "Attempts under way at the endpoint.")
    served = families.counter("endpoint_requests_total", "Attempts at the endpoint that ended.")
    failed = families.counter("endpoint_failures_total", "Attempts at the endpoint that failed.")
    connections = families.gauge("upstream_connections", "Open connections to the endpoint.")
    connects = families.counter("upstream_connects_total", "Connections begun to the endpoint.")
    replays = families.counter(
        "upstream_replays_total", "Requests sent again because a kept connection was dead."
    )
    seen = 0
    for cluster, membership in server.memberships.items():
        for each in membership.endpoints():
            seen += 1
            name = each.name if seen <= SERIES else OTHER
            healthy.add(each.healthy, cluster=cluster, endpoint=name)
            active.add(each.active, cluster=cluster, endpoint=name)
            served.add(each.served, cluster=cluster, endpoint=name)
            failed.add(each.failed, cluster=cluster, endpoint=name)
            for state, count in _connections(each):
                connections.add(count, cluster=cluster, endpoint=name, state=state)
            connects.add(each.pool.connects, cluster=cluster, endpoint=name)
            replays.add(each.pool.replays, cluster=cluster, endpoint=name)


def _connections(endpoint: Endpoint) -> tuple[tuple[str, int], tuple[str, int]]:
    idle = endpoint.pool.idle
    return ("idle", idle), ("busy", endpoint.pool.open - idle)


def _edges(families: _Families, server: Server) -> None:
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


def _process(families: _Families, server: Server) -> None:
    reloads = families.counter("config_reloads_total", "Reloads of the configuration, by result.")
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
    families.gauge("ready", "1 while the gateway is ready for traffic.").add(server.ready)


def render(families: list[Family]) -> bytes:
    """The text format 0.0.4. Adds what is known about the process. Safe on any thread."""
    from aioprometheus import collectors
    from aioprometheus.formats.text import TextFormatter
    from aioprometheus.histogram import Histogram as Observed

    registry = collectors.Registry()
    for family in [*families, *_machine()]:
        if family.kind == "histogram":
            collector = collectors.Histogram(family.name, family.doc, registry=registry)
            for labels, found in family.buckets.items():
                observed = Observed(*found.bounds)
                sums = accumulate(found.counts)
                observed.buckets.update(zip(list(observed.buckets), sums, strict=True))
                observed.observations = sum(found.counts)
                observed.sum = found.sum
                collector.set_value(_escaped(labels), observed)
        else:
            kind = collectors.Counter if family.kind == "counter" else collectors.Gauge
            plain = kind(family.name, family.doc, registry=registry)
            for labels, number in family.numbers.items():
                # bool is a number to us, but prints as a word.
                plain.set_value(_escaped(labels), number + 0)
    text: bytes = TextFormatter().marshall(registry)
    return text


def _escaped(labels: Labels) -> dict[str, str]:
    """aioprometheus writes label values as they are; the format wants three characters escaped."""
    return {
        name: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        for name, value in labels
    }


def _machine() -> list[Family]:
    """What every process tells about itself, under the names that every dashboard knows."""
    info = Family("gauge", PREFIX + "build_info", "1, with the version that runs.")
    info.add(1, version=version())
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = Family("counter", "process_cpu_seconds_total", "CPU time used, user and system.")
    cpu.add(usage.ru_utime + usage.ru_stime)
    found = [info, cpu]
    own = Path("/proc/self")
    try:
        pages = int((own / "statm").read_text().split()[1])
        ticks = int((own / "stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        files = len(os.listdir(own / "fd"))  # noqa: PTH208  names only, there may be many
    except (OSError, ValueError, IndexError):
        return found  # not Linux
    memory = Family("gauge", "process_resident_memory_bytes", "Resident memory.")
    memory.add(pages * resource.getpagesize())
    started = Family("gauge", "process_start_time_seconds", "When the process was started.")
    started.add(round(time.time() - up + ticks / os.sysconf("SC_CLK_TCK"), 2))
    opened = Family("gauge", "process_open_fds", "Open file descriptors.")
    opened.add(files)
    most = Family("gauge", "process_max_fds", "File descriptors that may be open.")
    most.add(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return [*found, memory, started, opened, most]


def version() -> str:
    """Of the installed distribution; ``unknown`` when run from a bare source tree."""
    try:
        return importlib.metadata.version("tailrace")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
