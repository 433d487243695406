"""The demo: three model servers with faults, the gateway, and callers who hardly notice.

All in one process and on one event loop, on loopback ports that were free. The faults follow a
schedule, so that each is seen: one server turns slow (the balancer moves away from it), one dies
and comes back (retries, then the health check), one answers 503 although it passes its health
check (retries, then the balancer). What no gateway can repair shows too: a stream whose server
dies in the middle of it ends there, because its beginning is with the caller already.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from random import Random
from typing import NamedTuple

from rich.console import Console
from rich.live import Live

from filters.deadline import Config as Deadline
from filters.retry import Config as Retry
from gateway import config
from gateway.demo_load import Load
from gateway.demo_servers import LOOPBACK, Fault, ModelServer
from gateway.demo_view import Scene, line, screen, summary
from gateway.server import Server

CYCLE_S = 24.0
"""Seconds in which every fault comes once, if there is time."""
FRAME_S = 0.25
LINE_S = 1.0
BEARABLE = 0.05
"""Share of failed callers above which the demo itself counts as failed: mechanisms that work keep
it far below one percent, and a machine that stalls for a moment should not fail a build."""


class Scheduled(NamedTuple):
    """From ``begin`` to ``end``, as shares of a cycle, server number ``server`` has ``fault``."""

    begin: float
    end: float
    server: int
    fault: Fault
    story: str


SCHEDULE = (
    Scheduled(0.12, 0.32, 0, Fault.SLOW, "{} is slow: the balancer sends new requests elsewhere"),
    Scheduled(0.42, 0.62, 1, Fault.DEAD, "{} is dead: retries, then its health check fails"),
    Scheduled(0.72, 0.92, 2, Fault.REFUSING, "{} answers 503: retries, and less and less traffic"),
)
CALM = "every server is fine"


def run(seconds: float | None) -> int:
    """Show the demo until Ctrl-C, or for ``seconds``. Exit codes: 0, 1 if too many callers failed.

    Raises nothing for a terminal that is none: then it prints a line each second.
    """
    import uvloop

    # The gateway's own warnings would tear the live picture; the picture shows their causes.
    logging.getLogger().addHandler(logging.NullHandler())
    return uvloop.run(_Demo(seconds).run())


class _Demo:
    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        # Whole cycles, so that a short demo shows every fault, only for a shorter time.
        self._cycle = CYCLE_S
        if seconds is not None:
            self._cycle = seconds / max(1, round(seconds / CYCLE_S))
        self._rng = Random()  # only for how things look
        self._console = Console()
        self._stop = asyncio.Event()
        self._story = CALM
        self._servers = [ModelServer(f"model-{name}", self._rng) for name in "abc"]

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        for server in self._servers:
            await server.start()
        self._gateway = Server(configuration([each.url for each in self._servers]))
        await self._gateway.start()
        await self._gateway.start_admin()
        self._url = _url(self._gateway.addresses)
        self._load = Load(self._url, self._rng)
        self._began = loop.time()
        try:
            return await self._show()
        finally:
            await self._gateway.stop()
            for server in self._servers:
                await server.stop()

    async def _show(self) -> int:
        load = asyncio.create_task(self._load.run(self._stop))
        faults = asyncio.create_task(self._change_faults())
        try:
            await (self._draw() if self._console.is_terminal else self._print_lines())
        finally:
            self._stop.set()
            faults.cancel()
            await asyncio.gather(faults, return_exceptions=True)
        for server in self._servers:
            await server.become(Fault.NONE)
        await load
        print(summary(self._scene()))
        few = self._load.failed <= BEARABLE * self._load.requests
        return 0 if self._load.requests and few else 1

    async def _draw(self) -> None:
        with Live(screen(self._scene()), console=self._console, auto_refresh=False) as live:
            while not await self._ended(FRAME_S):
                live.update(screen(self._scene()), refresh=True)

    async def _print_lines(self) -> None:
        print(self._where(), flush=True)
        while not await self._ended(LINE_S):
            print(line(self._scene(), self._elapsed()), flush=True)

    async def _ended(self, wait: float) -> bool:
        """Wait for the next picture; True once there is to be none."""
        if self._seconds is not None:
            wait = max(0.0, min(wait, self._seconds - self._elapsed()))
        try:
            async with asyncio.timeout(wait):
                await self._stop.wait()
        except TimeoutError:
            return self._seconds is not None and self._elapsed() >= self._seconds
        return True

    async def _change_faults(self) -> None:
        """Follow the schedule; each cycle, the faults meet other servers."""
        while True:
            cycle, share = divmod(self._elapsed() / self._cycle, 1)
            self._story = CALM
            for number, server in enumerate(self._servers):
                fault = Fault.NONE
                for each in SCHEDULE:
                    chosen = (each.server + int(cycle)) % len(self._servers) == number
                    if chosen and each.begin <= share < each.end:
                        fault = each.fault
                        self._story = each.story.format(server.name)
                if fault is not server.fault:
                    await server.become(fault)
            await asyncio.sleep(0.05)

    def _elapsed(self) -> float:
        return asyncio.get_running_loop().time() - self._began

    def _where(self) -> str:
        admin = self._gateway.admin
        shown = _url(admin.addresses) if admin is not None else "none"
        return f"gateway {self._url}   admin {shown}   Ctrl-C ends the demo"

    def _scene(self) -> Scene:
        now = asyncio.get_running_loop().time()
        return Scene(self._servers, self._gateway, self._load, self._where(), self._story, now)


def configuration(urls: list[str]) -> config.Config:
    """Defaults, but for what a demo of seconds needs: quicker checks, and 5 s for an answer."""
    cluster = config.Cluster(
        endpoints=tuple(config.Endpoint(url=url) for url in urls),
        health=config.Health(interval=0.5, timeout=0.5, unhealthy_after=2, healthy_after=1),
    )
    filters = config.Filters(deadline=Deadline(default=5.0), retry=Retry(attempts=3))
    return config.Config(
        listen=(config.Listener(address=f"{LOOPBACK}:0"),),
        admin=config.Admin(listen=f"{LOOPBACK}:0"),
        clusters={"models": cluster},
        routes=(config.Route(name="demo", cluster="models", filters=filters),),
        telemetry=config.Telemetry(access_log=None, debug_headers=True),
    )


def _url(addresses: list[tuple[str, int] | str]) -> str:
    first = addresses[0]
    assert not isinstance(first, str), "the demo listens on no unix socket"
    return f"http://{first[0]}:{first[1]}"
