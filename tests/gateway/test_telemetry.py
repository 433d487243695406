"""The outermost filter on a running gateway: what is counted and logged of how exchanges end."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from filters.admission import Config as Admission
from filters.admission import Queue
from filters.api import Priority, Reason
from filters.deadline import Config as Deadline
from gateway.config import AccessLog, Filters, Limits, Telemetry
from tests.harness import Gateway, eventually, gateway
from tests.wire.origin import Connection, Origin, Request, answer, by_target, echo, silent, slam

if TYPE_CHECKING:
    from gateway.metrics import RouteCounters

GET = b"GET /x HTTP/1.1\r\nHost: a\r\nUser-Agent: test\r\n\r\n"
ROUTE = "/"
CRITICAL = Priority.CRITICAL


class Seen:
    """A running gateway with its log in a file."""

    def __init__(self, running: Gateway, path: Path) -> None:
        self.running = running
        self.path = path

    @property
    def counters(self) -> RouteCounters:
        return self.running.server.telemetry.metrics.routes[ROUTE]

    async def lines(self, count: int) -> list[dict[str, Any]]:
        """The first lines of the log, once there are ``count``."""
        await eventually(lambda: len(self._read()) >= count)
        lines = self._read()
        assert len(lines) == count
        return lines

    def _read(self) -> list[dict[str, Any]]:
        text = self.path.read_text() if self.path.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line]


@asynccontextmanager
async def logging_gateway(
    path: Path, *upstreams: Origin | str, **sections: Any
) -> AsyncIterator[Seen]:
    telemetry = Telemetry(access_log=AccessLog(path=str(path)))
    async with gateway(*upstreams, telemetry=telemetry, **sections) as running:
        yield Seen(running, path)


async def test_an_answer_is_counted_and_logged(tmp_path: Path) -> None:
    async with Origin(echo) as origin, logging_gateway(tmp_path / "log", origin) as seen:
        head = b"POST /p?q=1 HTTP/1.1\r\nHost: h\r\nX-Request-Id: mine\r\nContent-Length: 5\r\n\r\n"
        assert (await seen.running.ask(head + b"hello")).body == b"hello"
        (line,) = await seen.lines(1)
        wanted = {
            "request_id": "mine", "client": "127.0.0.1", "method": "POST", "path": "/p",
            "host": "h", "status": 200, "route": ROUTE, "cluster": "c", "attempts": 1,
            "endpoint": origin.authority, "bytes_in": 5, "bytes_out": 5, "user_agent": "",
        }  # fmt: skip
        assert {name: line[name] for name in wanted} == wanted
        assert 0 <= line["first_byte_ms"] <= line["duration_ms"]
        assert seen.counters.requests == {("c", 2, None, CRITICAL): 1}
        assert seen.counters.in_flight == 0
        assert sum(seen.counters.durations.counts) == 1
        assert sum(seen.counters.first_bytes.counts) == 1


async def test_the_first_byte_of_a_stream_is_not_its_head(tmp_path: Path) -> None:
    """The head goes downstream at once; the first token comes later and is what counts."""

    async def stream(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        await connection.until(lambda: go)
        connection.send(b"ok")

    go: list[int] = []
    async with Origin(stream) as origin, logging_gateway(tmp_path / "log", origin) as seen:
        async with seen.running.client() as client:
            await client.send(GET)
            assert (await client.head()).status == 200
            assert seen.counters.in_flight == 1
            go.append(1)
            origin.connections[0].origin.changed()
            assert await client.exactly(2) == b"ok"
        (line,) = await seen.lines(1)
        assert line["first_byte_ms"] is not None
        assert sum(seen.counters.first_bytes.counts) == 1


async def test_a_client_that_leaves_is_499(tmp_path: Path) -> None:
    async with Origin(silent) as origin, logging_gateway(tmp_path / "log", origin) as seen:
        async with seen.running.client() as client:
            await client.send(GET)
            await origin.until(lambda: bool(origin.requests))
            assert seen.counters.in_flight == 1
        (line,) = await seen.lines(1)
        assert (line["status"], line["reason"]) == (499, "client_gone")
        assert seen.counters.requests == {("c", 4, Reason.CLIENT_GONE, CRITICAL): 1}
        assert seen.counters.in_flight == 0


async def test_refusals_and_failures_have_their_reason(tmp_path: Path) -> None:
    """Whatever the sample: failures are always logged."""
    scripts = {b"/slam": slam, b"/own": answer(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")}
    telemetry = Telemetry(access_log=AccessLog(path=str(tmp_path / "log"), sample=0.0))
    async with (
        Origin(by_target(scripts, silent)) as origin,
        gateway(origin, telemetry=telemetry, deadline=Deadline(max=0.05)) as running,
    ):
        seen = Seen(running, tmp_path / "log")
        for target, status in ((b"/slam", 502), (b"/own", 500), (b"/late", 504)):
            response = await running.ask(GET.replace(b"/x", target))
            assert response.status == status
        assert (await running.ask(b"GET / HTTP/1.1\r\n\r\n")).status == 400
        lines = await seen.lines(4)
        found = [(each.get("path"), each["status"], each.get("reason")) for each in lines]
        assert found == [
            ("/slam", 502, "upstream_reset"),
            ("/own", 500, None),
            ("/late", 504, "deadline"),
            (None, 400, "malformed"),
        ]
        assert lines[3]["detail"]
        assert seen.counters.requests == {
            ("c", 5, Reason.UPSTREAM_RESET, CRITICAL): 1,
            ("c", 5, None, CRITICAL): 1,
            ("c", 5, Reason.DEADLINE, CRITICAL): 1,
        }
        assert running.server.telemetry.metrics.refused == {Reason.MALFORMED: 1}


async def test_a_body_that_breaks_off_is_one_exchange_and_one_line(tmp_path: Path) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with (
        Origin(silent) as origin,
        logging_gateway(tmp_path / "log", origin, limits=Limits(body_bytes=10)) as seen,
    ):
        async with seen.running.client() as client:
            await client.send(head)
            await origin.until(lambda: bool(origin.heads))
            await client.send(b"14\r\n" + b"x" * 20 + b"\r\n")
            response = await client.response()
        assert response.status == 413
        assert response.one("x-request-id") == b"mine"
        (line,) = await seen.lines(1)
        assert (line["status"], line["reason"], line["path"]) == (413, "body_too_large", "/")
        assert seen.running.server.telemetry.metrics.refused == {}
        assert seen.counters.requests == {("c", 4, Reason.BODY_TOO_LARGE, CRITICAL): 1}


async def test_no_route_is_counted_too(tmp_path: Path) -> None:
    async with (
        Origin() as origin,
        logging_gateway(tmp_path / "log", origin, route={"path": "/only"}) as seen,
    ):
        assert (await seen.running.ask(GET)).status == 404
        (line,) = await seen.lines(1)
        assert (line["route"], line["cluster"], line["reason"]) == ("-", "-", "no_route")


async def test_only_waits_that_ended_with_a_permit_are_measured(tmp_path: Path) -> None:
    """Who waited in vain says nothing about how long a permit takes; the log has both."""

    async def held(connection: Connection, request: Request) -> None:
        await connection.until(lambda: len(go) >= len(origin.requests))
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    go: list[int] = []
    admission = Admission(limit=1, queue=Queue(timeout=0.02))
    filters = Filters(admission=admission, load_shed=None)
    async with (
        Origin(held) as origin,
        logging_gateway(tmp_path / "log", origin, route={"filters": filters}) as seen,
    ):
        first = asyncio.create_task(seen.running.ask(GET))
        await origin.until(lambda: len(origin.requests) == 1)
        assert (await seen.running.ask(GET)).status == 503
        assert sum(seen.counters.queue_waits.counts) == 0
        config = seen.running.server.config
        longer = msgspec.structs.replace(admission, queue=Queue())
        route = msgspec.structs.replace(
            config.routes[0], filters=msgspec.structs.replace(filters, admission=longer)
        )
        assert await seen.running.server.reload(msgspec.structs.replace(config, routes=(route,)))
        second = asyncio.create_task(seen.running.ask(GET))
        (gate,) = seen.running.server.wiring.admissions.values()
        await eventually(lambda: len(gate.queue) == 1)
        go += [1, 2]
        origin.changed()
        assert [(await each).status for each in (first, second)] == [200, 200]
        refused, _, waited = await seen.lines(3)
        assert refused["reason"] == "queue_timeout"
        assert refused["queued_ms"] >= 20
        assert waited["queued_ms"] > 0
        assert sum(seen.counters.queue_waits.counts) == 1


async def test_a_reload_moves_the_log_and_loses_nothing(tmp_path: Path) -> None:
    async with Origin() as origin, logging_gateway(tmp_path / "one", origin) as seen:
        server = seen.running.server
        await seen.running.ask(GET)
        for name, form in (("two", "json"), ("two", "text"), ("three", "json")):
            log = AccessLog(path=str(tmp_path / name), format=form)  # type: ignore[arg-type]
            telemetry = Telemetry(access_log=log)
            config = msgspec.structs.replace(server.config, telemetry=telemetry)
            assert await server.reload(config)
            await seen.running.ask(GET)
        off = Telemetry(access_log=None)
        assert await server.reload(msgspec.structs.replace(server.config, telemetry=off))
        await seen.running.ask(GET)
        three = tmp_path / "three"
        await eventually(lambda: three.exists() and three.read_text() != "")
        await server.telemetry.stop()
        counts = [
            len((tmp_path / each).read_text().splitlines()) for each in ("one", "two", "three")
        ]
        assert counts == [1, 2, 1]
        assert seen.counters.requests == {("c", 2, None, CRITICAL): 5}
        assert server.telemetry.lines_dropped == 0


async def test_what_is_left_is_written_at_the_end(tmp_path: Path) -> None:
    async with Origin() as origin, logging_gateway(tmp_path / "log", origin) as seen:
        await seen.running.ask(GET)
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_nothing_is_imported_that_a_run_does_not_need() -> None:
    """A metrics library, a tracing library, an HTTP library: none, until someone asks for it."""
    script = """
import asyncio, sys
from tests.harness import gateway
from tests.wire.origin import Origin

async def main():
    async with Origin() as origin, gateway(origin) as g:
        assert (await g.ask(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")).status == 200

asyncio.run(main())
print([each for each in sys.modules if each.split(".")[0] in
       ("opentelemetry", "aioprometheus", "aiohttp", "requests", "yaml", "rich", "cupy")])
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.strip() == "[]"
