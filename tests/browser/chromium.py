"""A real Chromium without a window, spoken to in its own protocol (Chrome DevTools Protocol).

The system's browser and aiohttp are all that is needed: no driver whose version must fit. What the
page logs as an error, throws, or is refused by its Content-Security-Policy ends up in ``errors``.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BOUND = 30.0


def found() -> str | None:
    """The path of a browser, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page. ``errors``: whatever the console or the browser had to complain about."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._session: str | None = None
        self.errors: list[str] = []
        self.requested: list[str] = []

    async def send(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol. Raises RuntimeError for what the browser refuses."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json(message)
        async with asyncio.timeout(BOUND):
            return await self._waiting[number]

    async def listen(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            waiting = self._waiting.pop(told.get("id", 0), None)
            if waiting is None:
                self._event(told.get("method", ""), told.get("params", {}))
            elif "error" in told:
                waiting.set_exception(RuntimeError(told["error"]["message"]))
            else:
                waiting.set_result(told["result"])

    def _event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(each.get("value")) for each in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])

    async def open(self, width: int, height: int, scale: float = 1) -> None:
        made = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send("Target.attachToTarget", targetId=made["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        await self.resize(width, height, scale)

    async def resize(self, width: int, height: int, scale: float = 1) -> None:
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=False,
        )  # fmt: skip

    async def prefer(self, scheme: str) -> None:
        """``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def go(self, url: str) -> None:
        answer = await self.send("Page.navigate", url=url)
        assert "errorText" not in answer, answer

    async def value(self, expression: str) -> Any:
        """Of a JavaScript expression, awaited. Raises RuntimeError for what it throws."""
        answer = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    async def until(self, expression: str, bound: float = BOUND) -> Any:
        """Wait until an expression is true; its value."""
        try:
            async with asyncio.timeout(bound):
                while not (found := await self._quietly(expression)):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                return found
        except TimeoutError:
            text = await self.value("document.body.innerText")
            raise AssertionError(f"never true: {expression}\n{self.errors}\n{text}") from None

    async def _quietly(self, expression: str) -> Any:
        try:
            return await self.value(expression)
        except RuntimeError:
            return None  # the element is not there yet

    async def click(self, expression: str) -> None:
        """Press the mouse where the element of a JavaScript expression is, as a person would."""
        place = await self.until(
            f"(() => {{ const e = {expression}; if (!e) return null;"
            " e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            " return {x: r.x + r.width / 2, y: r.y + r.height / 2}; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.send(
                "Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place
            )

    async def type(self, text: str) -> None:
        """Into whatever has the focus."""
        await self.send("Input.insertText", text=text)

    async def picture(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        params: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = (await self.send("Page.getLayoutMetrics"))["cssContentSize"]
            params["clip"] = {
                "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1,
            }  # fmt: skip
        answer = await self.send("Page.captureScreenshot", **params)
        path.write_bytes(base64.b64decode(answer["data"]))  # noqa: ASYNC240  once, at the end


@asynccontextmanager
async def browse(width: int = 1280, height: int = 800, scale: float = 1) -> AsyncIterator[Page]:
    """A browser with one page, ended with its profile."""
    path = found()
    assert path is not None, "no Chromium: apt-get install chromium"
    # mkdtemp, because the browser may still write there when it is removed.
    profile = Path(tempfile.mkdtemp(prefix="tailrace-browser-"))
    flags = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}",
             "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
             "--disable-background-networking", "--disable-component-update",
             "--disable-default-apps", "--disable-sync", "--metrics-recording-only",
             "--password-store=basic", "--force-color-profile=srgb"]  # fmt: skip
    if os.geteuid() == 0:  # the browser refuses to sandbox itself as root
        flags.append("--no-sandbox")
    process = await asyncio.create_subprocess_exec(
        path, *flags, "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port, where = await _address(profile / "DevToolsActivePort")
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://127.0.0.1:{port}{where}", max_msg_size=0) as socket,
        ):
            page = Page(socket)
            listening = asyncio.create_task(page.listen())
            try:
                await page.open(width, height, scale)
                yield page
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
    finally:
        process.terminate()
        await process.wait()
        shutil.rmtree(profile, ignore_errors=True)


async def _address(file: Path) -> tuple[str, str]:
    """Where the browser listens, which it writes into its profile."""
    async with asyncio.timeout(BOUND):
        while True:
            told = await asyncio.to_thread(_read, file)
            port, _, where = told.strip().partition("\n")
            if where:
                return port, where
            await asyncio.sleep(0.05)


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""
