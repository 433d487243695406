"""An OTLP/HTTP collector inside the test's own event loop, and a gateway that exports to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway import config
from tests.harness import Gateway, eventually, gateway

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from tests.wire.origin import Origin


class Collector:
    """An OTLP/HTTP collector: every span that came, and the resources they came with."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.url = ""

    async def receive(self, request: web.Request) -> web.Response:
        assert request.headers["Content-Type"] == "application/x-protobuf"
        message = ExportTraceServiceRequest.FromString(await request.read())
        for resource in message.resource_spans:
            for pair in resource.resource.attributes:
                if pair.key == "service.name":
                    self.services.add(pair.value.string_value)
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response()

    def of_kind(self, kind: int) -> list[Span]:
        return sorted(
            (each for each in self.spans if each.kind == kind),
            key=lambda each: each.start_time_unix_nano,
        )


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", made.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@asynccontextmanager
async def tracing_gateway(
    *origins: Origin, otlp: str, sample: float = 1.0, **sections: Any
) -> AsyncIterator[Gateway]:
    tracing = config.Tracing(otlp=otlp, sample=sample, service_name="edge")
    telemetry = config.Telemetry(access_log=None, tracing=tracing)
    async with gateway(*origins, telemetry=telemetry, **sections) as running:
        await eventually(lambda: running.server.telemetry._tracing is not None, 60)
        yield running


def attributes(span: Span) -> dict[str, Any]:
    """By name, each as the Python value that it is."""
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value")
        for each in span.attributes
    }
