"""The span of a batch: a trace of its own, linked to its members, above the attempts it took."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec.structs import replace
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from gateway import config
from gateway.config import Telemetry
from tests.gateway.collector import attributes, collector
from tests.harness import eventually
from tests.wire.oip import ALONE, ask, bench, check


def telemetry(otlp: str) -> Telemetry:
    tracing = config.Tracing(otlp=otlp, sample=1.0, service_name="edge")
    return Telemetry(access_log=None, tracing=tracing)


async def test_a_batch_is_linked_to_its_members_and_has_its_attempts() -> None:
    async with collector() as found:
        async with bench(replace(ALONE, max_rows=8), telemetry=telemetry(found.url)) as b:
            tracing: Any = b.gateway.server.telemetry
            await eventually(lambda: tracing._tracing is not None, 60)
            first = await b.busy()
            tasks = [b.begin(ask([n])) for n in range(3)]
            await b.waits(3)
            b.free()
            for n, task in enumerate(tasks):
                check(await task, [n])
            await asyncio.gather(first)
            sent = b.model.requests[1].one("traceparent")
        servers = found.of_kind(Span.SPAN_KIND_SERVER)
        batches = {
            attributes(each)["tailrace.batch.calls"]: each
            for each in found.of_kind(Span.SPAN_KIND_INTERNAL)
        }
        attempts = found.of_kind(Span.SPAN_KIND_CLIENT)
    assert sorted(batches) == [1, 3]
    made = batches[3]
    linked = {each.span_id for each in made.links}
    assert len(linked) == 3
    assert linked <= {each.span_id for each in servers}
    for server in servers:
        if server.span_id in linked:
            assert made.trace_id != server.trace_id
            assert [each.span_id for each in server.links] == [made.span_id]
    (attempt,) = [each for each in attempts if each.parent_span_id == made.span_id]
    assert attempt.trace_id == made.trace_id
    assert sent.decode() == f"00-{made.trace_id.hex()}-{attempt.span_id.hex()}-01"
    assert attributes(attempt)["tailrace.outcome"] == "ok"
    assert attributes(made)["tailrace.batch.rows"] == 3
    assert attributes(made)["http.response.status_code"] == 200
