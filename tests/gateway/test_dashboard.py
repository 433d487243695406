"""The dashboard's server side: samples, percentiles, events, the headline and the stream."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.admin_dashboard import FILES, POLICY
from gateway.admin_rules import Asked, Listening, judge
from gateway.config import Admin, Drain, Secret
from gateway.dashboard_feed import BACKLOG, SUBSCRIBERS, Feed
from gateway.dashboard_sample import (
    SECONDS,
)
from tests.gateway.administered import GET, Running, administered, ask_proxy
from tests.harness import eventually
from tests.tidy import ROOT
from tests.wire.client import Client
from tests.wire.origin import Origin, silent

PAGE = ROOT / "gateway" / "dashboard"


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests call ``tick`` themselves."""
    monkeypatch.setattr("gateway.dashboard_feed.INTERVAL_S", 3600.0)


def feed_of(running: Running) -> Feed:
    feed = running.server.feed
    assert feed is not None
    return feed


# -- on a running gateway ------------------------------------------------------------------------


async def test_history_is_there_before_anybody_looks() -> None:
    async with Origin() as origin, administered(origin) as running:
        feed = feed_of(running)
        for _ in range(3):
            assert await ask_proxy(running.server, GET) == 200
        now = running.server.clock.now()
        feed.tick(now + 1, 1000.0)
        feed.tick(now + 2, 1001.0)
        shown = (await running.ask("/dashboard.json")).json
        assert [each.get("good", 0) for each in shown["samples"]][-2:] == [3, 0]
        assert shown["headline"][0]["level"] == "good"
        (endpoint,) = shown["state"]["clusters"][0]["endpoints"]
        assert (endpoint["endpoint"], endpoint["state"]) == (origin.authority, "healthy")
        assert endpoint["rate"] == 0.0  # counted from what it was at the first look
        (route,) = shown["state"]["routes"]
        assert route["name"] == "/"
        assert route["rate"] > 0
        assert route["limit"] >= 1
        assert shown["state"]["config"]["hash"] == (await running.ask("/config")).json["hash"]
        for number in range(SECONDS):
            feed.tick(now + 3 + number, 1002.0 + number)
        assert len(feed.samples) == SECONDS


async def test_what_happens_to_an_endpoint_is_an_event() -> None:
    async with Origin() as one, Origin() as two, administered(one, two) as running:
        feed = feed_of(running)
        await running.ask(f"/clusters/c/endpoints/{one.authority}/eject", "POST")
        feed.tick(running.server.clock.now(), 1000.0)
        await running.ask(f"/clusters/c/endpoints/{one.authority}/restore", "POST")
        feed.tick(running.server.clock.now(), 1001.0)
        # Out and in again between two looks: its counter has kept it.
        await running.ask(f"/clusters/c/endpoints/{two.authority}/eject", "POST")
        await running.ask(f"/clusters/c/endpoints/{two.authority}/restore", "POST")
        feed.tick(running.server.clock.now(), 1002.0)
        kinds = [each.kind for each in feed.events.all]
        assert kinds == ["started", "ejected", "restored", "ejected", "restored"]
        assert one.authority in feed.events.all[1].text
        assert "by an operator" in feed.events.all[1].text
        assert 990 < feed.events.all[1].at <= 1000.1


async def test_reloads_limits_and_drains_are_events(tmp_path: Path) -> None:
    file = tmp_path / "tailrace.yaml"
    file.write_text("nonsense: 1\n")
    drain = Drain(grace=0, timeout=5)
    async with Origin() as origin, administered(origin, path=file, drain=drain) as running:
        feed = feed_of(running)
        assert (await running.ask("/reload", "POST")).status == 409
        feed.tick(1.0, 1000.0)
        gate = running.server.wiring.admissions["/"]
        limit: Any = gate.limit
        limit.why = "learned"
        feed.tick(2.0, 1001.0)
        limit.value = limit.value // 4
        feed.tick(3.0, 1002.0)
        feed.tick(4.0, 1003.0)
        running.server.drain()
        await eventually(running.server.drained.is_set)
        feed.tick(5.0, 1004.0)
        told = {each.kind: each.text for each in feed.events.all}
        assert list(told) == ["started", "reload_failed", "limit", "draining", "drained"]
        assert "nonsense" in told["reload_failed"]
        assert "fell from 512 to 128: learned" in told["limit"]


class Stream:
    """What a page reads."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def next(self) -> tuple[str, Any]:
        async with asyncio.timeout(30):
            name = (await self._response.content.readline()).decode().strip()
            line = b""
            while not line.endswith(b"\n"):
                line += await self._response.content.readany()
        kind, _, data = line.decode().partition(": ")
        assert kind == "data"
        return name.removeprefix("event: "), json.loads(data)


def address(running: Running) -> str:
    admin = running.server.admin
    assert admin is not None
    bound = admin.addresses[0]
    return f"http://{bound[0]}:{bound[1]}"


async def test_the_stream_begins_with_everything_and_goes_on() -> None:
    async with (
        Origin() as origin,
        administered(origin) as running,
        aiohttp.ClientSession(read_bufsize=1 << 22) as session,
        session.get(address(running) + "/events") as response,
    ):
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["Cache-Control"] == "no-store"
        stream = Stream(response)
        name, told = await stream.next()
        assert (name, told["headline"][0]["level"]) == ("whole", "good")
        assert told["events"][0]["kind"] == "started"
        assert await ask_proxy(running.server, GET) == 200
        feed_of(running).tick(running.server.clock.now(), 5.0)
        name, told = await stream.next()
        assert (name, told["sample"]["good"]) == ("tick", 1)
        assert told["events"] == []
        await running.ask(f"/clusters/c/endpoints/{origin.authority}/restore", "POST")
        assert feed_of(running).subscribers == 1


async def test_whoever_leaves_is_forgotten() -> None:
    async with Origin() as origin, administered(origin) as running:
        feed = feed_of(running)
        async with (
            aiohttp.ClientSession() as session,
            session.get(address(running) + "/events") as response,
        ):
            await response.content.readline()
            assert feed.subscribers == 1

        def gone() -> bool:
            feed.tick(running.server.clock.now(), 5.0)  # who has left is noticed at a message
            return feed.subscribers == 0

        await eventually(gone)


async def test_subscribers_are_bounded_and_slow_ones_dropped() -> None:
    async with Origin() as origin, administered(origin) as running:
        feed = feed_of(running)
        dropped: list[int] = []
        made = [feed.subscribe(lambda n=n: dropped.append(n)) for n in range(SUBSCRIBERS)]  # type: ignore[misc]
        assert all(made)
        assert feed.subscribe(lambda: None) is None
        answered = await running.ask("/events")
        assert answered.status == 503
        keeps_up = made[3]
        assert keeps_up is not None
        for number in range(BACKLOG + 1):
            while not keeps_up.messages.empty():
                keeps_up.messages.get_nowait()
            feed.tick(float(number), 1000.0 + number)
        assert sorted(dropped) == [n for n in range(SUBSCRIBERS) if n != 3]
        assert feed.subscribers == 1
        feed.close()
        assert feed.subscribe(lambda: None) is None


async def test_a_stop_does_not_wait_for_the_streams() -> None:
    async with (
        Origin() as origin,
        administered(origin) as running,
        aiohttp.ClientSession() as session,
        session.get(address(running) + "/events") as response,
    ):
        await response.content.readline()
        await running.server.stop()
        async with asyncio.timeout(30):
            await response.content.read()  # to its end, which comes


# -- the page ------------------------------------------------------------------------------------


async def test_a_browser_gets_the_page_and_others_the_places() -> None:
    async with Origin() as origin, administered(origin) as running:
        page = await running.ask("/", Accept="text/html,*/*")
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert page.headers["Content-Security-Policy"] == POLICY
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        assert page.text == (PAGE / "index.html").read_text()
        assert (await running.ask("/")).json["name"] == "tailrace"
        for path, (name, kind) in FILES.items():
            answered = await running.ask(path, Accept="text/html")
            assert answered.headers["Content-Type"].startswith(kind)
            assert answered.text == (PAGE / name).read_text()
        for path in ("/dashboard/x.js", "/dashboard/../cli.py", "/dashboard/%2e%2e/cli.py"):
            assert (await running.ask(path)).status == 404


def test_every_file_of_the_page_is_served_and_small() -> None:
    there = {path.name for path in PAGE.iterdir()}
    assert there == {name for name, _ in FILES.values()}
    assert sum(path.stat().st_size for path in PAGE.iterdir()) < 150_000


def test_the_page_makes_no_html_of_text_and_loads_nothing_from_elsewhere() -> None:
    banned = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
              "Function(", "localStorage", "sessionStorage", "cookie", "DOMParser")  # fmt: skip
    for path in PAGE.iterdir():
        text = path.read_text()
        assert [word for word in banned if word in text] == []
        # The name of a language is no place to load from.
        assert "//" not in "\n".join(
            line
            for line in text.replace("http://www.w3.org/2000/svg", "").splitlines()
            if not line.lstrip().startswith("//")
        )
        assert " style=" not in text
        assert "onclick" not in text


WIDE = Listening(unix=False, local=False)


@pytest.mark.parametrize("path", ["/", "/dashboard/app.js"])
def test_the_page_itself_is_open_and_its_data_is_not(path: str) -> None:
    def ask(method: str, path: str) -> Any:
        return judge(Asked(method, path, "10.0.0.1", None, None), WIDE, "secret")

    assert ask("GET", path) is None
    assert ask("POST", path) is not None
    for data in ("/dashboard.json", "/events", "/explain", "/dashboard"):
        assert ask("GET", data).code == "unauthorized"
    local = Listening(unix=False, local=True)
    assert judge(Asked("GET", path, "evil.test", None, None), local, None) is not None


async def test_no_secret_is_on_the_dashboard() -> None:
    admin = Admin(listen="127.0.0.1:0", token=Secret("hunter2"))
    async with administered("http://127.0.0.1:1", admin=admin) as running:
        assert "hunter2" not in (await running.ask("/dashboard.json")).text


async def test_what_is_under_way_shows() -> None:
    async with (
        Origin(silent) as origin,
        administered(origin) as running,
        await Client.connect(running.server.addresses[0]) as client,
    ):
        await client.send(GET)
        await origin.until(lambda: bool(origin.requests))
        feed_of(running).tick(running.server.clock.now(), 5.0)
        shown = (await running.ask("/dashboard.json")).json
        assert shown["samples"][-1]["in_flight"] == 1
        (route,) = shown["state"]["routes"]
        assert route["permits"] == 1
