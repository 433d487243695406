"""The dashboard in a real browser: it renders, follows, its buttons work, and it is safe.

Under load from a real client, with real model servers of which one begins to fail. Without a
Chromium on the machine these tests are left out (``-m "not browser"`` does that on purpose), but
fail where ``CI`` is set. With ``SCREENSHOT=FILE.png`` in the environment the picture for the
documents is taken (``make screenshot``).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from filters.hedge import Config as Hedge
from filters.priority import Config as Priorities
from gateway import admin_views
from gateway.config import Admin, Secret
from gateway.demo import configuration
from gateway.demo_load import Load
from gateway.demo_servers import Fault, ModelServer
from gateway.server import Server
from tests.browser.chromium import Page, browse, found
from tests.gateway.administered import administered
from tests.wire.client import Client
from tests.wire.origin import Origin

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        found() is None and not os.environ.get("CI"), reason="no Chromium on this machine"
    ),
    pytest.mark.timeout(180),
]

PICTURE = os.environ.get("SCREENSHOT", "")
HOSTILE = "/<img/src=x/onerror=alert(1)>"
STATE = "[...document.querySelectorAll('#endpoints .state')].map((each) => each.textContent)"
DRAWN = """[...document.querySelectorAll('canvas')].map((canvas) => {
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    return data.some((byte) => byte > 0); })"""


class Stage:
    """Three model servers, a gateway, a load."""

    def __init__(self) -> None:
        rng = Random(7)
        self.models = [ModelServer(f"model-{name}", rng) for name in "abc"]
        self._rng = rng

    async def start(self) -> None:
        for each in self.models:
            await each.start()
        settings = configuration([each.url for each in self.models])
        route = settings.routes[0]
        filters = msgspec.structs.replace(route.filters, hedge=Hedge(), priority=Priorities())
        routes = (msgspec.structs.replace(route, filters=filters),)
        self.gateway = Server(msgspec.structs.replace(settings, routes=routes))
        await self.gateway.start()
        await self.gateway.start_admin()
        self.load = Load(_url(self.gateway.addresses), self._rng)
        self._stop = asyncio.Event()
        self._loading = asyncio.create_task(self.load.run(self._stop))

    @property
    def admin(self) -> str:
        assert self.gateway.admin is not None
        return _url(self.gateway.admin.addresses)

    def address(self, number: int) -> str:
        return f"127.0.0.1:{self.models[number].port}"

    async def stop(self) -> None:
        self._stop.set()
        await self._loading
        await self.gateway.stop()
        for each in self.models:
            await each.stop()


def _url(addresses: list[Any]) -> str:
    return f"http://{addresses[0][0]}:{addresses[0][1]}"


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    made = Stage()
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def begin(page: Page, url: str) -> None:
    await page.go(url)
    await page.until("!document.getElementById('content').hidden")


def text(element: str) -> str:
    return f"document.getElementById('{element}').textContent"


async def test_one_endpoint_fails_under_load() -> None:
    async with stage() as it, browse() as page:
        await begin(page, it.admin)
        assert await page.value("document.title") == "tailrace"
        await page.until(f"{text('first')}.includes('all 3 endpoints serve')")
        await page.until(f"Number.parseFloat({text('tile-rate')}.replace(/^\\D+/, '')) > 10")
        await page.until(f"({DRAWN}).every((each) => each)")
        assert await page.value(STATE) == ["healthy"] * 3
        if PICTURE:
            await asyncio.sleep(30)  # a picture wants some past
        await it.models[1].become(Fault.REFUSING)
        bad = it.address(1)
        await page.until(f"{text('first')}.includes('endpoint {bad} is ejected')")
        assert (await page.value(text("first"))).endswith("2 of 3 serve")
        assert await page.value("document.getElementById('headline').className") == "headline warn"
        assert (await page.value("document.title")).startswith("▲")
        await page.until(f"({STATE}).filter((each) => each === 'healthy').length === 2")
        await page.until(f"{text('events')}.includes('{bad} of models is ejected')")
        await page.until("document.querySelectorAll('#notable .state.retried').length > 0")
        if PICTURE:
            await page.until(f"{text('first')}.includes('its probe failed')")
            await page.picture(Path(PICTURE))
        await page.click("document.querySelector('#notable tr:has(.retried) button')")
        await page.until("!document.getElementById('explained').hidden")
        explained = await page.value("document.getElementById('explained').innerText")
        assert f"{bad}" in explained
        assert "head 503" in explained
        assert page.errors == []


async def test_buttons_eject_and_restore() -> None:
    async with stage() as it, browse() as page:
        await begin(page, it.admin)
        endpoint = it.address(0)
        button = f"document.querySelector('[aria-label=\"eject {endpoint}\"]')"
        await page.click(button)
        await page.until(f"{button}.textContent === 'Really eject'")
        cluster = it.gateway.memberships["models"].cluster
        assert cluster.endpoints[endpoint].state == "healthy"  # once is asking, twice is doing
        await page.click(button)
        await page.until(f"{text('said')} === '{endpoint}: ejected'")
        assert cluster.endpoints[endpoint].state == "ejected"
        back = f"document.querySelector('[aria-label=\"restore {endpoint}\"]')"
        await page.until(f"{text('first')}.includes('{endpoint} is ejected: by an operator')")
        await page.click(back)
        await page.until(f"{text('said')} === '{endpoint}: restored'")
        assert cluster.endpoints[endpoint].state == "healthy"
        assert page.errors == []


async def test_batches_show_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = admin_views.route

    def batched(*arguments: Any) -> dict[str, Any]:
        told = {"waiting": 3, "in_flight": 1, "rows": 12.5}
        return {**plain(*arguments), "batching": told}

    async with Origin() as origin, administered(origin) as running, browse() as page:
        await begin(page, _url_of(running.server))
        assert await page.value("document.getElementById('batches').hidden")
        monkeypatch.setattr(admin_views, "route", batched)
        await page.until("!document.getElementById('batches').hidden")
        shown = await page.value("document.getElementById('batches').innerText")
        assert shown.split() == ["Batches", "Route", "waiting", "in", "flight", "rows",
                                 "/", "3", "1", "12.5"]  # fmt: skip
        assert page.errors == []


async def test_what_requests_say_stays_text() -> None:
    async with Origin() as origin, administered(origin) as running, browse() as page:
        raw = f"GET {HOSTILE} HTTP/1.1\r\nHost: a\r\nx-request-id: :/+=--\r\n\r\n"
        await running.server.memberships["c"].stop()
        running.server.telemetry.metrics.route("/").slow = 0.0  # so that it is kept
        async with await Client.connect(running.server.addresses[0]) as client:
            await client.send(raw.encode())
            status = (await client.response()).status
        found = running.server.telemetry.recorder.latest(10)
        if status == 400:  # the strict layer does not even take it
            assert found[0]["reason"] == "malformed"
        await begin(page, _url_of(running.server))
        name = found[-1]["request_id"]
        await page.click("document.querySelector('#notable tbody button')")
        await page.until(f"document.getElementById('explained').innerText.includes('{name}')")
        assert await page.value("document.images.length") == 1  # our own mark
        assert await page.value("document.scripts.length") == 1
        assert page.errors == []


async def test_names_that_look_like_html_stay_text() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    async with Origin() as origin, administered(origin) as running, browse() as page:
        feed = running.server.feed
        assert feed is not None
        feed.events.add(1.0, "bad", "x", hostile)
        running.server.reload_error = hostile
        (endpoint,) = running.server.memberships["c"].endpoints()
        endpoint.mark(False, hostile, 0.0)
        await begin(page, _url_of(running.server))
        await page.until(f"document.getElementById('events').innerText.includes('{hostile}')")
        assert hostile in await page.value("document.getElementById('endpoints').innerText")
        assert hostile in await page.value("document.getElementById('headline').innerText")
        assert await page.value("document.images.length") == 1
        assert page.errors == []


async def test_the_policy_refuses_what_is_not_ours() -> None:
    async with Origin() as origin, administered(origin) as running, browse() as page:
        await begin(page, _url_of(running.server))
        with pytest.raises(RuntimeError, match="TrustedHTML"):
            await page.value("document.body.innerHTML = '<b>x</b>'")
        with pytest.raises(RuntimeError, match=r"Failed to fetch|violates"):
            await page.value(f"fetch('{origin.url}/x')")
        assert origin.requests == []
        own = _url_of(running.server)
        assert {url for url in page.requested if not url.startswith(own + "/")} <= {
            f"{origin.url}/x", "about:blank",
        }  # fmt: skip


async def test_a_token_is_asked_for_and_used() -> None:
    admin = Admin(listen="0.0.0.0:0", token=Secret("open sesame"))
    async with (
        Origin() as one,
        Origin() as two,
        administered(one, two, admin=admin) as running,
        browse() as page,
    ):
        where = running.server.admin
        assert where is not None
        await page.go(f"http://127.0.0.1:{where.addresses[0][1]}/")
        await page.until("!document.getElementById('ask').hidden")
        assert await page.value("document.getElementById('content').hidden")
        await page.type("wrong")
        await page.click("document.querySelector('#ask button')")
        await page.until(f"{text('refusal')} !== ''")
        await page.type("open sesame")
        await page.click("document.querySelector('#ask button')")
        await page.until("!document.getElementById('content').hidden")
        button = f"document.querySelector('[aria-label=\"eject {one.authority}\"]')"
        await page.click(button)
        await page.click(button)
        await page.until(f"{text('said')} === '{one.authority}: ejected'")
        # The browser itself reports each 401 that the page asked for.
        assert all("401" in error for error in page.errors)


async def test_a_gateway_that_goes_away_and_comes_back() -> None:
    async with Origin() as origin, browse() as page:
        async with administered(origin) as running:
            where = running.server.admin
            assert where is not None
            port = where.addresses[0][1]
            await begin(page, _url_of(running.server))
            await page.until(f"{text('connection')} === 'live'")
        await page.until(f"{text('connection')}.startsWith('no word since')")
        async with administered(origin, admin=Admin(listen=f"127.0.0.1:{port}")):
            await page.until(f"{text('connection')} === 'live'")


async def test_it_fits_a_telephone_and_both_schemes() -> None:
    async with stage() as it, browse(400, 800) as page:
        for scheme in ("light", "dark"):
            await page.prefer(scheme)
            await begin(page, it.admin)
            wide = await page.value("document.documentElement.scrollWidth")
            assert wide <= 400
            ground = await page.value("getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(14, 17, 21)") == (scheme == "dark")
        assert page.errors == []


def _url_of(server: Server) -> str:
    assert server.admin is not None
    return _url(server.admin.addresses)
