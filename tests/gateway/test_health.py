"""Thresholds as plain functions; checks against real servers on loopback."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trustme
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Expect, Health
from gateway.health import HealthChecks, Result, Target, Thresholds, check, usable

PASS, FAIL = Result(True), Result(False, "status 500")


def states(healthy_after: int, unhealthy_after: int, results: str) -> str:
    """``+`` and ``-`` are checks that pass and fail; the state after each comes back likewise."""
    thresholds = Thresholds(healthy_after, unhealthy_after)
    after = ""
    for each in results:
        before = thresholds.healthy
        changed = thresholds.record(PASS if each == "+" else FAIL)
        assert changed == (before != thresholds.healthy)
        after += "+" if thresholds.healthy else "-"
    return after


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ("+", "+"),
        ("-", "-"),
        ("-++", "--+"),
        ("+--", "+++"),
        ("+---", "+++-"),
        ("+--+--+---", "+++++++++-"),
        ("-+-++", "----+"),
        ("+---++---", "+++--+++-"),
    ],
)
def test_the_first_result_decides_and_then_it_takes_a_row(results: str, expected: str) -> None:
    assert states(2, 3, results) == expected


def test_unknown_is_healthy() -> None:
    thresholds = Thresholds(2, 3)
    assert thresholds.healthy
    assert not thresholds.known


@given(st.integers(1, 5), st.integers(1, 5), st.text("+-", min_size=1, max_size=60))
def test_a_state_changes_only_after_its_row(up: int, down: int, results: str) -> None:
    after = states(up, down, results)
    assert after[0] == results[0]
    for n in range(1, len(results)):
        if after[n] != after[n - 1]:
            row = up if after[n] == "+" else down
            assert results[n + 1 - row : n + 1] == after[n] * row


@given(st.lists(st.booleans()))
def test_nobody_healthy_means_that_the_checks_are_doubted(healthy: list[bool]) -> None:
    expected = healthy if any(healthy) else [True] * len(healthy)
    assert list(usable(healthy)) == expected


class Model:
    """A model server with a health page that the test sets."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b"ready"
        self.hang = False
        self.leaving = asyncio.Event()
        self.requests: list[tuple[str, str]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.path, request.headers["host"]))
        if self.hang:
            await self.leaving.wait()
        headers = {"location": "/health"} if self.status == 302 else None
        return web.Response(status=self.status, body=self.body, headers=headers)

    @asynccontextmanager
    async def serving(
        self, *, tls: ssl.SSLContext | None = None, unix: Path | None = None
    ) -> AsyncIterator[Target]:
        app = web.Application()
        app.router.add_get("/{path:.*}", self.answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            if unix is not None:
                await web.UnixSite(runner, str(unix)).start()
                yield Target("model", "http://localhost", unix=str(unix))
            else:
                await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
                port = runner.addresses[0][1]
                yield Target("model", f"http{'s' if tls else ''}://127.0.0.1:{port}")
        finally:
            self.leaving.set()
            await runner.cleanup()


@pytest.fixture
def model() -> Model:
    return Model()


def closed_port() -> Target:
    import socket

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return Target("gone", f"http://127.0.0.1:{bound.getsockname()[1]}")


class TestHttp:
    async def test_the_expected_status_passes(self, model: Model) -> None:
        async with model.serving() as target:
            assert await check(target, Health(path="/ready")) == PASS
            assert model.requests[0][0] == "/ready"

    @pytest.mark.parametrize("status", [204, 302, 404, 500, 503])
    async def test_another_status_fails(self, model: Model, status: int) -> None:
        model.status = status
        async with model.serving() as target:
            assert await check(target, Health()) == Result(False, f"status {status}")
            listed = Health(expect=Expect(status=(200, status)))
            assert await check(target, listed) == PASS
        assert len(model.requests) == 2

    async def test_the_expected_body_must_occur_near_the_beginning(self, model: Model) -> None:
        config = Health(expect=Expect(body="ready"))
        async with model.serving() as target:
            model.body = b"x" * 60_000 + b"ready"
            assert await check(target, config) == PASS
            model.body = b"x" * 70_000 + b"ready"
            assert not (await check(target, config)).passed
            model.body = b"rea"
            assert not (await check(target, config)).passed

    async def test_no_answer_in_time_fails(self, model: Model) -> None:
        model.hang = True
        async with model.serving() as target:
            result = await check(target, Health(timeout=0.05))
        assert result == Result(False, "no answer within 0.05 s")

    async def test_a_closed_port_fails_and_says_why(self) -> None:
        result = await check(closed_port(), Health())
        assert not result.passed
        assert "Connect" in result.detail

    async def test_the_host_can_be_another_than_the_address(self, model: Model) -> None:
        async with model.serving() as target:
            await check(Target("m", target.url, host="model.example"), Health())
        assert model.requests == [("/health", "model.example")]

    async def test_a_unix_socket_is_asked_like_any_other(
        self, model: Model, tmp_path: Path
    ) -> None:
        async with model.serving(unix=tmp_path / "s") as target:
            assert await check(target, Health()) == PASS
            assert await check(target, Health(kind="tcp")) == PASS
        assert not (await check(target, Health())).passed
        assert not (await check(target, Health(kind="tcp"))).passed

    async def test_a_peer_that_speaks_no_http_fails(self) -> None:
        async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example ESMTP\r\n")
            writer.close()

        server = await asyncio.start_server(babble, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            assert not (await check(Target("m", f"http://127.0.0.1:{port}"), Health())).passed

    @pytest.mark.parametrize("kind", ["http", "tcp"])
    async def test_tls_is_verified_against_the_server_name(self, model: Model, kind: str) -> None:
        ca = trustme.CA()
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        ca.issue_cert("model.example").configure_cert(server)
        ca.configure_trust(client)
        config = Health(kind="http" if kind == "http" else "tcp")
        async with model.serving(tls=server) as target:
            named = Target("m", target.url, server_name="model.example")
            assert await check(named, config, client) == PASS
            assert "CERTIFICATE" in (await check(target, config, client)).detail.upper()
            assert not (await check(named, config)).passed


class TestTcp:
    async def test_a_connection_is_enough(self, model: Model) -> None:
        async with model.serving() as target:
            assert await check(target, Health(kind="tcp")) == PASS
        assert model.requests == []
        assert not (await check(closed_port(), Health(kind="tcp"))).passed


class Rounds:
    """A sleep that ends when the test says so, and tells how long it was meant to be."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[float] = asyncio.Queue()
        self.go = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        self.asked.put_nowait(seconds)
        await self.go.acquire()

    async def next(self) -> float:
        """Let one sleeper go on and wait until somebody sleeps again."""
        self.go.release()
        return await self.asked.get()


class TestHealthChecks:
    def make(self) -> tuple[HealthChecks, dict[str, Result], list[tuple[str, bool]], Rounds]:
        answers: dict[str, Result] = {}
        changes: list[tuple[str, bool]] = []
        rounds = Rounds()

        async def answer(target: Target) -> Result:
            return answers[target.name]

        checks = HealthChecks(
            Health(interval=10, healthy_after=2, unhealthy_after=3),
            answer,
            lambda name, healthy: changes.append((name, healthy)),
            Random(1),
            rounds,
        )
        return checks, answers, changes, rounds

    async def test_changes_are_told_once_and_the_interval_is_jittered(self) -> None:
        checks, answers, changes, rounds = self.make()
        answers["a"] = FAIL
        checks.update([Target("a", "http://a")])
        first = await rounds.asked.get()
        assert 0 <= first <= 1
        pauses = [await rounds.next() for _ in range(3)]
        assert changes == [("a", False)]
        assert checks.states["a"].detail == "status 500"
        answers["a"] = PASS
        pauses += [await rounds.next() for _ in range(2)]
        assert changes == [("a", False), ("a", True)]
        assert all(9 <= pause <= 11 for pause in pauses)
        assert len(set(pauses)) == len(pauses)
        await checks.stop()
        assert checks.states == {}

    async def test_endpoints_that_stay_keep_their_state(self) -> None:
        checks, answers, changes, rounds = self.make()
        answers.update(a=FAIL, b=PASS)
        a, b = Target("a", "http://a"), Target("b", "http://b")
        checks.update([a])
        await rounds.asked.get()
        await rounds.next()
        state = checks.states["a"]
        checks.update([a, b])
        await rounds.asked.get()
        assert checks.states["a"] is state
        assert not state.healthy
        checks.update([b])
        assert list(checks.states) == ["b"]
        assert changes == [("a", False)]
        await checks.stop()

    async def test_a_hanging_check_does_not_delay_another(self) -> None:
        changes: list[str] = []
        told = asyncio.Event()

        async def answer(target: Target) -> Result:
            if target.name == "stuck":
                await asyncio.Event().wait()
            return FAIL

        def change(name: str, healthy: bool) -> None:
            changes.append(name)
            told.set()

        async def at_once(seconds: float) -> None:
            await asyncio.sleep(0)

        checks = HealthChecks(Health(), answer, change, Random(1), at_once)
        checks.update([Target("stuck", "http://s"), Target("a", "http://a")])
        await told.wait()
        assert changes == ["a"]
        await checks.stop()

    async def test_stopping_what_never_started_is_no_error(self) -> None:
        checks, _, _, _ = self.make()
        await checks.stop()


def test_aiohttp_is_not_imported_before_a_check_runs() -> None:
    import subprocess
    import sys

    code = "import sys, gateway.health; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
