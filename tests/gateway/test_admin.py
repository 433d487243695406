"""The admin listener: its pages on a running gateway, and its rules against whoever may not ask."""

from __future__ import annotations

import asyncio
import socket
import stat
from pathlib import Path

import msgspec
import pytest

from gateway.admin_rules import Asked, Listening, host_matches, judge
from gateway.config import Admin, Drain, RequestHeaders, Secret
from gateway.server import Server
from tests.gateway.administered import GET, administered, ask_proxy
from tests.gateway.exposition_format import parse, value
from tests.harness import configure, eventually
from tests.wire.client import Client
from tests.wire.origin import Origin, silent

LOCAL = Listening(unix=False, local=True)
UNIX = Listening(unix=True, local=True)
WIDE = Listening(unix=False, local=False, names=frozenset(("pod-1",)))


def asked(method: str = "GET", path: str = "/config", **headers: str | None) -> Asked:
    host = headers.get("host", "127.0.0.1:9901")
    return Asked(method, path, host, headers.get("origin"), headers.get("authorization"))


# -- the rules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "at", "token", "code"),
    [
        (asked(), LOCAL, None, None),
        (asked(host="localhost:1234"), LOCAL, None, None),
        (asked(host="[::1]:9901"), LOCAL, None, None),
        (asked(host="LOCALHOST."), LOCAL, None, None),
        (asked(host="evil.test:9901"), LOCAL, None, "foreign_host"),
        (asked(host="localhost.evil.test"), LOCAL, None, "foreign_host"),
        (asked(host="10.0.0.1"), LOCAL, None, "foreign_host"),
        (asked(host=""), LOCAL, None, "foreign_host"),
        (asked(host=None), LOCAL, None, "foreign_host"),
        (asked(path="/metrics", host="evil.test"), LOCAL, None, None),
        (asked("POST", "/metrics", host="evil.test"), LOCAL, None, "foreign_host"),
        (asked("POST", "/drain"), LOCAL, None, None),
        (asked("POST", "/drain", host="evil.test"), LOCAL, None, "foreign_host"),
        (asked("POST", "/drain", origin="http://127.0.0.1:9901"), LOCAL, None, None),
        (asked("POST", "/drain", origin="http://127.0.0.1:80"), LOCAL, None, "foreign_origin"),
        (asked("POST", "/drain", origin="https://evil.test"), LOCAL, None, "foreign_origin"),
        (asked("POST", "/drain", origin="null"), LOCAL, None, "foreign_origin"),
        (asked("POST", "/drain", origin=""), LOCAL, None, "foreign_origin"),
        (asked("DELETE", "/x", origin="https://evil.test"), LOCAL, None, "foreign_origin"),
        (asked("POST", "/drain", host="whatever"), UNIX, None, None),
        (asked("POST", "/drain", host="x", origin="http://y"), UNIX, None, "foreign_origin"),
        (asked(host="tailrace.svc"), WIDE, "t", "unauthorized"),
        (asked(host="tailrace.svc", authorization="Bearer t"), WIDE, "t", None),
        (asked("POST", authorization="Bearer t", host="tailrace.svc"), WIDE, "t", "foreign_host"),
        (asked("POST", authorization="bearer t", host="10.1.2.3:9901"), WIDE, "t", None),
        (asked("POST", authorization="Bearer t", host="pod-1:9901"), WIDE, "t", None),
        (asked("POST", authorization="Bearer u", host="10.1.2.3"), WIDE, "t", "unauthorized"),
        (asked("POST", authorization="Basic t", host="10.1.2.3"), WIDE, "t", "unauthorized"),
        (asked("POST", authorization="t", host="10.1.2.3"), WIDE, "t", "unauthorized"),
        (asked("POST", authorization="Bearer \udcff", host="10.1.2.3"), WIDE, "t", "unauthorized"),
        (asked("POST", authorization="Bearer ", host="10.1.2.3"), WIDE, None, "no_token"),
        (asked(), WIDE, None, "no_token"),
        (asked(path="/readyz"), WIDE, None, None),
    ],
)
def test_who_may_ask_for_what(
    request_: Asked, at: Listening, token: str | None, code: str | None
) -> None:
    refusal = judge(request_, at, token)
    assert (None if refusal is None else refusal.code) == code


@pytest.mark.parametrize("host", ["127.0.0.1.evil.test", "127.0.0.1@evil.test", "[::1].evil.test"])
def test_a_name_that_looks_like_an_address_is_a_name(host: str) -> None:
    assert not host_matches(host, WIDE)
    assert not host_matches(host, LOCAL)


# -- a running one -------------------------------------------------------------------------------


async def test_probes() -> None:
    async with Origin() as origin, administered(origin) as running:
        for probe in (False, True):
            assert (await running.ask("/livez", probe=probe)).status == 200
            assert (await running.ask("/readyz", probe=probe)).json == {"ready": True}
        running.server.ready = False
        answered = await running.ask("/readyz", probe=True)
        assert (answered.status, answered.json) == (503, {"ready": False, "why": "draining"})
        assert (await running.ask("/livez", probe=True)).status == 200


async def test_the_probe_listener_serves_nothing_else() -> None:
    async with Origin() as origin, administered(origin) as running:
        for path in ("/", "/config", "/clusters", "/drain", "/reload", "/livez/x"):
            answered = await running.ask(path, probe=True)
            assert answered.status == 404
            assert answered.json["error"]["code"] == "not_found"
        for path in ("/drain", "/reload"):
            assert (await running.ask(path, "POST", probe=True)).status == 404
        for method in ("POST", "HEAD", "OPTIONS"):
            assert (await running.ask("/livez", method, probe=True)).status == 405
        assert running.server.ready


async def test_metrics_are_what_happened() -> None:
    async with Origin() as origin, administered(origin) as running:
        for _ in range(3):
            assert await ask_proxy(running.server, GET) == 200
        assert await ask_proxy(running.server, b"GET / HTTP/1.1\r\n\r\n") == 400
        answered = await running.ask("/metrics", probe=True)
        assert answered.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        found = parse(answered.text)
        here = {"cluster": "c", "endpoint": origin.authority}
        assert value(found, "tailrace_requests_total", route="/", code="2xx", reason="") == 3
        assert value(found, "tailrace_request_duration_seconds_count", route="/") == 3
        assert value(found, "tailrace_in_flight", route="/") == 0
        assert value(found, "tailrace_refused_total", reason="malformed") == 1
        assert value(found, "tailrace_endpoint_requests_total", **here) == 3
        assert value(found, "tailrace_endpoint_state", state="healthy", **here) == 1
        assert value(found, "tailrace_upstream_connections", state="idle", **here) == 1
        assert value(found, "tailrace_upstream_connections", state="busy", **here) == 0
        assert value(found, "tailrace_upstream_connects_total", **here) == 1
        assert value(found, "tailrace_connections_accepted_total") == 4
        assert value(found, "tailrace_config_last_reload_success") == 1
        assert value(found, "tailrace_build_info") == 1
        assert value(found, "process_resident_memory_bytes") > 1_000_000
        assert value(found, "process_open_fds") > 3


async def test_the_configuration_is_shown_without_its_secrets() -> None:
    headers = RequestHeaders(set={"authorization": Secret("hunter2", "file:key")})
    admin = Admin(listen="127.0.0.1:0", token=Secret("hunter2"))
    async with administered(
        "http://127.0.0.1:1", admin=admin, route={"request_headers": headers}
    ) as running:
        answered = await running.ask("/config")
        assert "hunter2" not in answered.text
        shown = answered.json
        assert shown["config"]["admin"]["token"] == "***"
        assert shown["config"]["routes"][0]["request_headers"]["set"]["authorization"] == "file:key"
        assert shown["config"]["timeouts"]["head"] == "10s"
        assert shown["config"]["telemetry"]["access_log"] == "off"
        assert (shown["reload"]["ok"], shown["reload"]["last_error"]) == (True, None)


async def test_clusters_tell_state_and_load() -> None:
    async with Origin(silent) as origin, administered(origin) as running:
        client = await Client.connect(running.server.addresses[0])
        async with client:
            await client.send(GET)
            await origin.until(lambda: bool(origin.requests))
            (endpoint,) = (await running.ask("/clusters")).json["clusters"]["c"]["endpoints"]
        assert endpoint["endpoint"] == origin.authority
        assert (endpoint["state"], endpoint["why"]) == ("healthy", "not checked")
        assert (endpoint["in_flight"], endpoint["latency_ms"]) == (1, None)
        assert endpoint["connections"] == {"idle": 0, "busy": 1}
        assert endpoint["addresses"] == ["127.0.0.1"]
        assert endpoint["since"].endswith("Z")


async def test_reload_reports_success_and_failure(tmp_path: Path) -> None:
    file = tmp_path / "tailrace.yaml"
    good = (
        "listen: 127.0.0.1:0\nadmin: {listen: 127.0.0.1:0}\ntelemetry: {access_log: off}\n"
        "clusters: {c: {endpoints: [http://127.0.0.1:1]}}\nroutes: [{path: /, cluster: c}]\n"
    )
    file.write_text(good)
    async with administered("http://127.0.0.1:1", path=file) as running:
        before = (await running.ask("/config")).json
        assert (await running.ask("/reload", "POST")).json == {"reloaded": True}
        file.write_text(good + "typo: 1\n")
        answered = await running.ask("/reload", "POST")
        assert answered.status == 409
        assert "typo" in answered.json["error"]["message"]
        shown = (await running.ask("/config")).json
        assert (shown["reload"]["ok"], shown["reload"]["successes"]) == (False, 1)
        assert "typo" in shown["reload"]["last_error"]
        assert (shown["path"], before["path"]) == (str(file), str(file))
        assert (await running.ask("/readyz")).status == 200
        found = parse((await running.ask("/metrics")).text)
        assert value(found, "tailrace_config_last_reload_success") == 0
        assert value(found, "tailrace_config_reloads_total", result="failure") == 1
        file.write_text(good)
        assert (await running.ask("/reload", "POST")).status == 200
        assert (await running.ask("/config")).json["reload"]["ok"] is True


async def test_reload_without_a_file_says_so() -> None:
    async with administered("http://127.0.0.1:1") as running:
        answered = await running.ask("/reload", "POST")
        assert answered.status == 409
        assert "without a configuration file" in answered.json["error"]["message"]


async def test_drain_can_be_waited_for() -> None:
    drain = Drain(grace=0, timeout=30)
    async with Origin(silent) as origin, administered(origin, drain=drain) as running:
        async with await Client.connect(running.server.addresses[0]) as client:
            await client.send(GET)
            await origin.until(lambda: bool(origin.requests))
            waiting = asyncio.create_task(running.ask("/drain?wait=true", "POST"))
            again = await running.ask("/drain", "POST")
            assert (again.status, again.json) == (202, {"draining": True})
            assert (await running.ask("/readyz")).status == 503
            assert not waiting.done()
        assert (await waiting).json == {"drained": True, "cut_off": False}


async def test_what_changes_something_needs_post_and_the_same_origin() -> None:
    async with Origin() as origin, administered(origin) as running:
        for path in ("/drain", "/reload"):
            answered = await running.ask(path)
            assert (answered.status, answered.headers["Allow"]) == (405, "POST")
            assert answered.json["error"]["code"] == "method_not_allowed"
            answered = await running.ask(path, "POST", origin="https://evil.test")
            assert answered.json["error"]["code"] == "foreign_origin"
            answered = await running.ask(path, "POST", host="evil.test")
            assert (answered.status, answered.json["error"]["code"]) == (403, "foreign_host")
        assert (await running.ask("/config", host="evil.test")).status == 403
        assert (await running.ask("/readyz", host="evil.test")).json == {"ready": True}
        assert running.server.reload_failures == 0


async def test_off_loopback_nothing_but_probes_goes_without_the_token() -> None:
    """The token in force is that of the configuration in force."""
    admin = Admin(listen="0.0.0.0:0", token=Secret("first"))
    async with Origin() as origin, administered(origin, admin=admin) as running:
        assert (await running.ask("/metrics")).status == 200
        answered = await running.ask("/config")
        assert (answered.status, answered.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert (await running.ask("/reload", "POST", authorization="Bearer second")).status == 401
        assert (await running.ask("/reload", "POST", authorization="Bearer first")).status == 409
        other = msgspec.structs.replace(admin, token=Secret("second"))
        config = msgspec.structs.replace(running.server.config, admin=other)
        assert await running.server.reload(config)
        assert (await running.ask("/config", authorization="Bearer first")).status == 401
        assert (await running.ask("/config", authorization="Bearer second")).status == 200


async def test_a_unix_socket_is_guarded_by_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(str(path))
    left_over.close()
    async with administered("http://127.0.0.1:1", admin=Admin(listen=f"unix:{path}")) as running:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert running.server.admin is not None
        assert running.server.admin.addresses == [str(path)]
        assert (await running.ask("/config", host="any.test")).status == 200
        assert (await running.ask("/reload", "POST")).status == 409
    assert not path.exists()


async def test_pages_say_how_to_go_on() -> None:
    async with administered("http://127.0.0.1:1") as running:
        index = await running.ask("/")
        assert {each.split()[1] for each in index.json["places"]} >= {"/metrics", "/drain"}
        missing = await running.ask("/nowhere")
        assert (missing.status, missing.json["error"]["code"]) == (404, "not_found")
        assert missing.headers["Server"] == "tailrace"


async def test_a_port_that_was_asked_for_and_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = Server(configure("http://127.0.0.1:1", admin=Admin(listen=address)))
        await server.start()
        with pytest.raises(OSError, match="in use"):
            await server.start_admin()
        await server.stop()


async def test_the_default_port_that_is_taken_is_only_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr("gateway.admin.config.Admin", lambda **_: Admin(listen=address))
        async with Origin() as origin:
            server = Server(configure(origin, admin=Admin(listen=address)))
            await server.start()
            await server.start_admin()
            assert server.admin is not None
            assert server.admin.addresses == []
            assert "no admin listener" in caplog.text
            assert await ask_proxy(server, GET) == 200
            await server.stop()


async def test_endpoints_that_vanish_leave_the_metrics() -> None:
    async with Origin() as first, Origin() as second, administered(first) as running:
        await ask_proxy(running.server, GET)
        assert await running.server.reload(
            msgspec.structs.replace(configure(second), admin=running.server.config.admin)
        )
        await eventually(
            lambda: second.authority in running.server.memberships["c"].cluster.endpoints
        )
        text = (await running.ask("/metrics")).text
        parse(text)
        assert second.authority in text
        assert first.authority not in text
