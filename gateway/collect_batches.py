"""What is told of batches to whoever scrapes; beside ``collect.py``, which has everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.batching import Batching
    from gateway.exposition import Families


def collect_batches(families: Families, batching: Sequence[tuple[str, Batching]]) -> None:
    """``batching``: of each route that has it, by the label of the route."""
    _traffic(families, batching)
    _failures(families, batching)
    _now(families, batching)


def _traffic(families: Families, batching: Sequence[tuple[str, Batching]]) -> None:
    calls = families.counter(
        "batch_calls_total",
        "Requests of a route with batching, by what became of them.",
        "route how",
    )
    rows = families.histogram("batch_rows", "Rows of each batch.", "route")
    waits = families.histogram(
        "batch_wait_seconds", "From a request's last byte to the start of its batch.", "route"
    )
    times = families.histogram(
        "batch_duration_seconds", "From a batch's start to its answer.", "route"
    )
    padding = families.counter(
        "batch_padding_total",
        "Sum of the batches' shares of padding; divided by batch_rows_count, the mean.",
        "route",
    )
    inferences = families.counter(
        "batch_inferences_total",
        "Inferences: batches, and the parts of those that failed.",
        "route",
    )
    for route, each in batching:
        counts, stats = each.coalescer.counts, each.stats
        calls.add(counts.calls, route=route, how="joined")
        calls.add(each.alone, route=route, how="alone")
        calls.add(each.malformed, route=route, how="malformed")
        rows.add_histogram(stats.rows, route=route)
        waits.add_histogram(stats.waits, route=route)
        times.add_histogram(stats.times, route=route)
        padding.add(stats.padding, route=route)
        inferences.add(counts.inferences, route=route)


def _failures(families: Families, batching: Sequence[tuple[str, Batching]]) -> None:
    bisections = families.counter(
        "batch_bisections_total",
        "Failed batches that were divided to find out by whose fault.",
        "route",
    )
    parts = families.counter("batch_parts_total", "Inferences that dividing them took.", "route")
    culprits = families.counter("batch_culprits_total", "Requests that spoiled a batch.", "route")
    cancelled = families.counter(
        "batch_cancelled_total",
        "Batches that were given up because all their callers had left.",
        "route",
    )
    refused = families.counter(
        "batch_refused_total", "Requests that got no answer, by why.", "route why"
    )
    diverted = families.counter(
        "batch_quarantined_total",
        "Requests that went alone, or nowhere, for what they had done.",
        "route",
    )
    for route, each in batching:
        counts = each.coalescer.counts
        bisections.add(counts.bisections, route=route)
        parts.add(counts.parts, route=route)
        culprits.add(counts.culprits, route=route)
        cancelled.add(counts.cancelled, route=route)
        diverted.add(counts.quarantined, route=route)
        for why, count in counts.refused.items():
            refused.add(count, route=route, why=why.value)


def _now(families: Families, batching: Sequence[tuple[str, Batching]]) -> None:
    waiting = families.gauge("batch_waiting", "Requests that wait for their batch.", "route")
    flying = families.gauge("batches_in_flight", "Batches under way.", "route")
    runners = families.gauge("batch_runner", "1 for the runner that is in use.", "route runner")
    buffers = families.gauge("batch_buffers", "Buffers of the route, by state.", "route state")
    for route, each in batching:
        coalescer = each.coalescer
        waiting.add(coalescer.waiting, route=route)
        flying.add(coalescer.in_flight, route=route)
        runners.add(1, route=route, runner=coalescer.runner.name)
        for state, count in each.buffers().items():
            buffers.add(count, route=route, state=state)
