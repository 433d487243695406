"""Spans as a collector receives them, and the context that goes upstream."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from gateway import trace_context
from gateway.trace_context import Parent
from tests.gateway.collector import attributes, collector, tracing_gateway
from tests.harness import Retry
from tests.tidy import ROOT
from tests.wire.origin import OK, Origin, answer, crash, each

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{SPAN}-01"
UNSAMPLED = f"00-{TRACE}-{SPAN}-00"


@pytest.mark.parametrize(
    ("field", "parent"),
    [
        (SAMPLED, Parent(TRACE, SPAN, True)),
        (UNSAMPLED, Parent(TRACE, SPAN, False)),
        (f"00-{TRACE}-{SPAN}-03", Parent(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01", Parent(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01-what-comes", Parent(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01x", None),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE}-{SPAN}-0", None),
        (f"00_{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE[:-1]}g-{SPAN}-01", None),
        ("", None),
    ],
)
def test_traceparent_is_read_as_the_specification_says(field: str, parent: Parent | None) -> None:
    assert trace_context.parse(field.encode()) == parent


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1))
def test_what_is_written_can_be_read(trace_id: int, span_id: int) -> None:
    field = trace_context.line(trace_id, span_id).removeprefix(b"traceparent: ").strip()
    assert trace_context.parse(field) == Parent(f"{trace_id:032x}", f"{span_id:016x}", True)


def get(*fields: str) -> bytes:
    lines = ["GET /v1/models?key=secret HTTP/1.1", "Host: a.test", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


async def test_an_exchange_and_its_attempts_are_one_trace() -> None:
    async with collector() as found, Origin(each(crash, answer(OK))) as origin:
        async with tracing_gateway(origin, otlp=found.url, retry=Retry(attempts=2)) as running:
            sent = get(f"traceparent: {SAMPLED}", "tracestate: a=1")
            assert (await running.ask(sent)).status == 200
        # Stopping has exported what there was.
        (server,) = found.of_kind(Span.SPAN_KIND_SERVER)
        first, second = found.of_kind(Span.SPAN_KIND_CLIENT)
        assert server.trace_id.hex() == first.trace_id.hex() == second.trace_id.hex() == TRACE
        assert server.parent_span_id.hex() == SPAN
        assert first.parent_span_id == second.parent_span_id == server.span_id
        assert found.services == {"edge"}
        assert server.name == "GET /"
        told = attributes(server)
        assert told["http.request.method"] == "GET"
        assert told["http.response.status_code"] == 200
        assert told["url.path"] == "/v1/models"
        assert told["client.address"] == "127.0.0.1"
        assert told["tailrace.attempts"] == 2
        assert "secret" not in str(server)
        assert attributes(first)["error.type"] == "upstream_reset"
        assert first.status.code == Status.STATUS_CODE_ERROR
        assert attributes(second)["server.port"] == origin.port
        assert attributes(second)["tailrace.attempt"] == 2
        assert second.end_time_unix_nano <= server.end_time_unix_nano
        upstream = [request.one("traceparent").decode() for request in origin.requests]
        assert upstream == [f"00-{TRACE}-{each.span_id.hex()}-01" for each in (first, second)]
        assert origin.requests[1].values("tracestate") == [b"a=1"]


async def test_a_trusted_parent_decides() -> None:
    async with collector() as found, Origin() as origin:
        async with tracing_gateway(origin, otlp=found.url, sample=1.0) as running:
            await running.ask(get(f"traceparent: {UNSAMPLED}"))
        async with tracing_gateway(origin, otlp=found.url, sample=0.0) as running:
            await running.ask(get(f"traceparent: {SAMPLED}"))
        assert [each.one("traceparent").decode()[-2:] for each in origin.requests] == ["00", "01"]
        assert origin.requests[0].one("traceparent").decode() == UNSAMPLED
        assert len(found.of_kind(Span.SPAN_KIND_SERVER)) == 1


async def test_a_stranger_does_not_decide() -> None:
    async with collector() as found, Origin() as origin:
        async with tracing_gateway(origin, otlp=found.url, sample=0.0, trust=()) as running:
            await running.ask(get(f"traceparent: {SAMPLED}"))
            assert running.server.telemetry.metrics.routes["/"].requests
        assert found.spans == []


async def test_without_a_parent_a_trace_begins() -> None:
    """State that belongs to no parent is not passed on."""
    async with collector() as found, Origin() as origin:
        async with tracing_gateway(origin, otlp=found.url) as running:
            await running.ask(get("traceparent: nonsense", "tracestate: a=1"))
        (server,) = found.of_kind(Span.SPAN_KIND_SERVER)
        assert server.parent_span_id == b""
        assert origin.requests[0].values("tracestate") == []
        (parent,) = origin.requests[0].values("traceparent")
        assert parent.decode()[3:35] == server.trace_id.hex()


async def test_an_exchange_that_is_not_sampled_has_no_span() -> None:
    async with collector() as found, Origin() as origin:
        async with tracing_gateway(origin, otlp=found.url, sample=0.0) as running:
            await running.ask(get())
        assert origin.requests[0].values("traceparent") == []
        assert found.spans == []


async def test_a_collector_that_is_gone_costs_nothing() -> None:
    async with Origin() as origin, tracing_gateway(origin, otlp="http://127.0.0.1:1") as running:
        for _ in range(3):
            assert (await running.ask(get())).status == 200


async def test_refusals_are_spans_with_their_reason() -> None:
    async with collector() as found, Origin() as origin:
        async with tracing_gateway(origin, otlp=found.url, route={"path": "/else"}) as running:
            assert (await running.ask(get())).status == 404
        (server,) = found.of_kind(Span.SPAN_KIND_SERVER)
        assert attributes(server)["error.type"] == "no_route"
        assert attributes(server)["http.response.status_code"] == 404
        assert found.of_kind(Span.SPAN_KIND_CLIENT) == []


def test_the_documentation_names_every_attribute() -> None:
    told = (ROOT / "docs" / "tracing.md").read_text()
    makers = ("tracing.py", "gen_ai.py", "tries.py", "batch_send.py", "batching.py")
    code = "".join((ROOT / "gateway" / name).read_text() for name in makers)
    prefixes = "tailrace|gen_ai|openai|http|url|server|client|user_agent|network|error"
    named = set(re.findall(rf'"((?:{prefixes})\.[a-z_.]+)"', code))
    assert "tailrace.outcome" in named
    told_names = set(re.findall(r"`([a-z_]+\.[a-z_.]+)`", told))
    assert named - {"http.request.method_original"} <= told_names
    assert {each for each in told_names if each.startswith(("tailrace.", "gen_ai."))} <= named
