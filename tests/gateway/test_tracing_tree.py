"""The tree of spans as a collector receives it: hedges, retries, what was asked of a model."""

from __future__ import annotations

import asyncio
import json
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from filters import api
from filters.hedge import Config as Hedge
from gateway import config, gen_ai
from gateway.config import Filters
from gateway.tracing import Tracing
from tests.gateway.collector import Collector, attributes, collector, tracing_gateway
from tests.harness import Gateway, Retry, eventually
from tests.wire.origin import OK, Connection, Origin, Request, answer, chunks, each
from tests.wire.table import post

if TYPE_CHECKING:
    from collections.abc import Callable

ASK = post(b"Content-Length: 2", body=b"{}", target=b"/v1/chat/completions")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"
WARM = 60
"""Requests that teach the filter what is usual here; it wants 50."""
HEDGED = Filters(hedge=Hedge(), retry=None)


async def hang(connection: Connection, request: Request) -> None:
    """Take the request and never answer."""
    await connection.body(request)
    await connection.until(lambda: connection.gone)


async def head_only(connection: Connection, request: Request) -> None:
    """What a model server does that hangs before its first token."""
    await connection.body(request)
    connection.send(HEAD)
    await connection.until(lambda: connection.gone)


async def warm(running: Gateway) -> None:
    async with running.client() as client:
        for _ in range(WARM):
            await client.send(ASK)
            assert (await client.response(b"POST")).body == b"ok"


def tree(found: Collector) -> tuple[Span, list[Span]]:
    """The server span that has two attempts, and these."""
    attempts = found.of_kind(Span.SPAN_KIND_CLIENT)
    for server in found.of_kind(Span.SPAN_KIND_SERVER):
        below = [each for each in attempts if each.parent_span_id == server.span_id]
        if len(below) == 2:
            assert {each.trace_id for each in below} == {server.trace_id}
            return server, below
    raise AssertionError("no exchange has two attempts")


@pytest.mark.parametrize("loser", [hang, head_only])
async def test_the_loser_of_a_race_is_marked_and_no_error(loser: Any) -> None:
    async with (
        collector() as found,
        Origin() as a,
        Origin() as b,
        tracing_gateway(a, b, otlp=found.url, route={"filters": HEDGED}) as running,
    ):
        await warm(running)
        order = each(loser, answer(OK))
        a.script = b.script = order
        assert (await running.ask(ASK, b"POST")).body == b"ok"
        before = len(a.requests) + len(b.requests)
        assert before == WARM + 2
    server, (first, second) = tree(found)
    lost, won = attributes(first), attributes(second)
    assert (lost["tailrace.outcome"], won["tailrace.outcome"]) == ("lost", "ok")
    assert (lost.get("tailrace.hedge"), won["tailrace.hedge"]) == (None, True)
    assert {lost["server.port"], won["server.port"]} == {a.port, b.port}
    assert attributes(server)["tailrace.hedged"] is True
    assert attributes(server)["tailrace.attempts"] == 2
    assert "error.type" not in lost
    assert first.status.code != Status.STATUS_CODE_ERROR
    assert first.start_time_unix_nano <= second.start_time_unix_nano
    assert first.end_time_unix_nano > second.start_time_unix_nano, "they raced"
    for origin in (a, b):  # each was sent its own span as the parent
        last = origin.heads[-1].one("traceparent").decode()
        port = {lost["server.port"]: first, won["server.port"]: second}
        assert last[36:52] == port[origin.port].span_id.hex()


async def test_a_hedge_that_loses_is_the_one_that_is_marked() -> None:
    go = asyncio.Event()

    async def slow(connection: Connection, request: Request) -> None:
        await connection.body(request)
        await go.wait()
        connection.send(OK)

    async def rival(connection: Connection, request: Request) -> None:
        go.set()
        await hang(connection, request)

    async with (
        collector() as found,
        Origin() as a,
        Origin() as b,
        tracing_gateway(a, b, otlp=found.url, route={"filters": HEDGED}) as running,
    ):
        await warm(running)
        a.script = b.script = each(slow, rival)
        assert (await running.ask(ASK, b"POST")).body == b"ok"
    _, (first, second) = tree(found)
    assert attributes(first)["tailrace.outcome"] == "ok"
    assert attributes(second)["tailrace.outcome"] == "lost"
    assert attributes(second)["tailrace.hedge"] is True


async def test_an_answer_that_was_thrown_away_for_a_retry_has_failed() -> None:
    async with collector() as found, Origin(each(answer(BUSY), answer(OK))) as origin:
        retry = Retry(attempts=2, idempotent="always")
        async with tracing_gateway(origin, otlp=found.url, retry=retry) as running:
            assert (await running.ask(ASK, b"POST")).status == 200
    _, (first, second) = tree(found)
    told = attributes(first)
    assert told["tailrace.outcome"] == "failed"
    assert told["http.response.status_code"] == 503
    assert told["error.type"] == "upstream_status"
    assert first.status.code == Status.STATUS_CODE_ERROR
    assert first.end_time_unix_nano <= second.start_time_unix_nano
    assert "tailrace.hedge" not in attributes(second)
    assert attributes(second)["tailrace.outcome"] == "ok"


async def test_a_client_that_leaves_cancels_the_attempt() -> None:
    async with collector() as found, Origin(hang) as origin:
        async with tracing_gateway(origin, otlp=found.url) as running:
            async with running.client() as client:
                await client.send(ASK)
                await origin.until(lambda: len(origin.requests) == 1)
            counters = running.server.telemetry.metrics.routes["/"]
            await eventually(lambda: counters.in_flight == 0)
        (attempt,) = found.of_kind(Span.SPAN_KIND_CLIENT)
        assert attributes(attempt)["tailrace.outcome"] == "cancelled"
        (server,) = found.of_kind(Span.SPAN_KIND_SERVER)
        assert attributes(server)["error.type"] == "client_gone"


async def test_an_answer_that_breaks_off_has_failed() -> None:
    broken = answer(HEAD + b"5\r\nabcde\r\n", close=True)
    async with collector() as found, Origin(broken) as origin:
        async with tracing_gateway(origin, otlp=found.url) as running, running.client() as client:
            await client.send(ASK)
            await client.rest()
        (attempt,) = found.of_kind(Span.SPAN_KIND_CLIENT)
        told = attributes(attempt)
        assert told["tailrace.outcome"] == "failed"
        assert told["error.type"] == "upstream_truncated"


def asking(path: bytes, body: Any, *fields: bytes) -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return post(b"Content-Length: %d" % len(text), *fields, body=text, target=path)


async def told_of(raw: bytes, script: Any = None) -> dict[str, Any]:
    """What the server span says of generative AI."""
    async with collector() as found, Origin(script or answer(OK)) as origin:
        async with tracing_gateway(origin, otlp=found.url) as running:
            assert (await running.ask(raw, b"POST")).status == 200
        (server,) = found.of_kind(Span.SPAN_KIND_SERVER)
        told = attributes(server)
        assert "secret" not in str(server)
        return {name: each for name, each in told.items() if name.startswith(("gen_ai", "openai"))}


async def test_a_chat_is_told_in_the_words_of_the_conventions() -> None:
    body = {
        "model": "m-8b",
        "messages": [{"role": "user", "content": "a secret"}],
        "stream": True,
        "max_tokens": 64,
    }
    streamed = answer(HEAD + chunks([b"data: x\n\n"]))
    told = await told_of(asking(b"/v1/chat/completions?key=secret", body), streamed)
    assert 0 < told.pop("gen_ai.response.time_to_first_chunk") < 60
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "openai.api.type": "chat_completions",
        "gen_ai.request.model": "m-8b",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 64,
    }


async def test_a_body_that_is_too_large_is_not_read() -> None:
    body = {"model": "m", "input": "x" * gen_ai.BODY_BYTES}
    told = await told_of(asking(b"/v1/embeddings", body))
    assert told == {"gen_ai.operation.name": "embeddings", "gen_ai.provider.name": "openai"}


async def test_what_is_not_openais_is_not_read() -> None:
    assert await told_of(asking(b"/v2/models/m/infer", {"model": "m"})) == {}


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        (b"POST", b"/v1/chat/completions", "chat"),
        (b"POST", b"/v1/completions", "text_completion"),
        (b"POST", b"/v1/embeddings", "embeddings"),
        (b"POST", b"/v1/responses", "chat"),
        (b"POST", b"/team/v1/embeddings", "embeddings"),
        (b"GET", b"/v1/responses", None),
        (b"POST", b"/v1/responses/x", None),
        (b"POST", b"/v1/embeddings/", None),
        (b"POST", b"/xv1/embeddings", None),
        (b"POST", b"*", None),
    ],
)
def test_the_path_names_the_operation(method: bytes, path: bytes, operation: str | None) -> None:
    assert gen_ai.of_path(method, path).get("gen_ai.operation.name") == operation


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", {}),
        (b"[]", {}),
        (b"\xff\xfe", {}),
        (b'{"model": "\\ud800"}', {}),
        (b'{"model": 7}', {}),
        (b'{"model": "m"} {}', {}),
        (b'{"model": "m", "max_tokens": 1e400}', {}),
        (b'{"model": "m", "max_tokens": 99999999999999999999}', {}),
        (b'{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}", {}),
        (b'{"model": ""}', {}),
        (b'{"model": "m", "stream": null}', {"gen_ai.request.model": "m"}),
        (b'{"max_completion_tokens": 5, "max_tokens": 9}', {"gen_ai.request.max_tokens": 5}),
        (b'{"model": "' + b"m" * 300 + b'"}', {"gen_ai.request.model": "m" * 256}),
    ],
)
def test_any_body_is_read_or_left(body: bytes, told: dict[str, Any]) -> None:
    assert gen_ai.of_body(body) == told


async def test_a_batch_is_linked_to_its_members_and_they_to_it() -> None:
    """Two exchanges under way, one of them sampled by its parent, and a batch made of both."""
    async with (
        collector() as found,
        Origin(hang) as origin,
        tracing_gateway(origin, otlp=found.url, sample=0.0) as running,
    ):
        seen: list[Any] = []
        keep_exchanges(running, seen.append)
        parent = b"traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
        async with running.client() as one, running.client() as two:
            await one.send(post(b"Content-Length: 0", parent))
            await two.send(post(b"Content-Length: 0"))
            await origin.until(lambda: len(origin.requests) == 2)
            tracing = running.server.telemetry._tracing
            assert tracing is not None
            sampled = [each for each in seen if each.span is not None]
            assert len(sampled) == 1
            others = [each for each in seen if each.span is None]
            batch: Any = SimpleNamespace(span=None, reason=None)
            tracing.begin_batch(batch, others)
            assert batch.span is None
            tracing.begin_batch(batch, seen)
            line = batch.span.header_line().decode()
            tracing.end_batch(batch, 200, {"tailrace.batch.rows": 2})
        counters = running.server.telemetry.metrics.routes["/"]
        await eventually(lambda: counters.in_flight == 0)
    (made,) = [each for each in found.spans if each.name == "batch"]
    (server,) = found.of_kind(Span.SPAN_KIND_SERVER)
    assert made.trace_id != server.trace_id, "a trace of its own"
    assert made.parent_span_id == b""
    for here, there in ((made, server), (server, made)):
        (link,) = here.links
        assert (link.trace_id, link.span_id) == (there.trace_id, there.span_id)
    assert line == f"traceparent: 00-{made.trace_id.hex()}-{made.span_id.hex()}-01\r\n"
    assert attributes(made)["tailrace.batch.rows"] == 2


async def test_each_of_two_attempts_sends_its_own_parent() -> None:
    """Also the first one, whose connection comes about only when the second has begun."""
    tracing = Tracing(config.Tracing(otlp="http://127.0.0.1:1", sample=1.0), Random(1))
    request = api.Request(b"GET", b"/x", 1, [], {}, b"a.test", 0)
    nothing: Any = None
    exchange = api.Exchange(request, nothing, nothing, "127.0.0.1", True, False, 0.0)
    exchange.route = SimpleNamespace(name="/", cluster="c")
    tracing.begin(exchange)
    spans = exchange.span
    begun = asyncio.Event()

    async def attempt(number: int, wait: bool) -> tuple[bytes, bytes]:
        made = tracing.begin_attempt(api.Attempt(exchange, number, ()))
        if wait:
            await begun.wait()
        begun.set()
        return spans.header_line(), b"-%016x-" % made.span.get_span_context().span_id

    before = spans.header_line()
    for line, own in await asyncio.gather(attempt(1, True), attempt(2, False)):
        assert own in line
        assert own not in before
    assert spans.header_line() == before, "this task makes no attempt"
    await tracing.stop(0.0)


def keep_exchanges(running: Gateway, keep: Callable[[Any], None]) -> None:
    """Let ``keep`` see every exchange that is attempted."""
    telemetry = running.server.telemetry
    begin = telemetry._tracing.begin  # type: ignore[union-attr]

    def begun(exchange: Any) -> None:
        begin(exchange)
        keep(exchange)

    telemetry._tracing.begin = begun  # type: ignore[method-assign, union-attr]
