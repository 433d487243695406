"""Active health checks, for clusters that configure them, and what their results mean.

A check asks one endpoint a question that a working one answers. It is the slower and surer of
two judges: outlier ejection sees real traffic and acts within seconds, a check also finds the
endpoint that gets no traffic, and tells when one is back. aiohttp does the asking, imported only
when a check first runs.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from random import Random

    from aiohttp import BaseConnector

    from gateway.config import Health

log = logging.getLogger(__name__)

BODY = 64 * 1024
"""Bytes of an answer in which ``expect.body`` is looked for."""


class Result(NamedTuple):
    """Of one check. ``detail`` says for an operator why it failed, "" when it passed."""

    passed: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a check goes. Equal targets are the same endpoint.

    ``url`` is ``scheme://address[:port]`` without a path. ``host`` is the Host header, None for
    the URL's own; ``server_name`` is what TLS verifies; ``unix`` is the path of a socket.
    """

    name: str
    url: str
    host: str | None = None
    server_name: str | None = None
    unix: str | None = None


Check = Callable[[Target], Awaitable[Result]]
"""The seam of ``HealthChecks``; raises nothing but CancelledError."""
OnChange = Callable[[str, bool], object]
"""Called with an endpoint's name and whether it is healthy now."""


class Thresholds:
    """When results become a change of state. Pure.

    An endpoint starts healthy, because unknown is no reason to refuse traffic. The first result
    decides alone, so that an endpoint that is down when the gateway starts is known at once;
    after that it takes ``unhealthy_after`` failures or ``healthy_after`` passes in a row.
    """

    __slots__ = ("_healthy_after", "_run", "_unhealthy_after", "detail", "healthy", "known")

    def __init__(self, healthy_after: int, unhealthy_after: int) -> None:
        self._healthy_after = healthy_after
        self._unhealthy_after = unhealthy_after
        self._run = 0
        self.healthy = True
        self.known = False
        self.detail = ""

    def go_on_from(self, before: Thresholds) -> None:
        """Take over what was found under other thresholds."""
        self.healthy, self.known, self.detail = before.healthy, before.known, before.detail

    def record(self, result: Result) -> bool:
        """Take one result in; True if the state changed by it."""
        self.detail = result.detail
        self._run = 0 if result.passed is self.healthy else self._run + 1
        needed = self._healthy_after if result.passed else self._unhealthy_after
        change = self._run > 0 and (not self.known or self._run >= needed)
        self.known = True
        if change:
            self.healthy = result.passed
            self._run = 0
        return change


def usable(healthy: Sequence[bool]) -> Sequence[bool]:
    """Which endpoints may get traffic, given which are healthy. Pure, O(n).

    If every one fails its check, the checks are doubted and traffic goes on to all: a wrong path
    or an expired certificate in the check must not cause the outage that it is there to prevent,
    and if all are down indeed, nothing is lost by asking them. (Envoy calls it panic mode.)
    """
    return healthy if any(healthy) else [True] * len(healthy)


class HealthChecks:
    """Checks each endpoint of one cluster in a task of its own, so that a slow one delays none.

    ``states`` holds the Thresholds of each endpoint by name, for the admin pages.
    """

    def __init__(
        self,
        config: Health,
        check: Check,
        on_change: OnChange,
        rng: Random,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._config = config
        self._check = check
        self._on_change = on_change
        self._rng = rng
        self._sleep = sleep
        self._tasks: dict[Target, asyncio.Task[None]] = {}
        self.states: dict[str, Thresholds] = {}

    def update(self, targets: Iterable[Target]) -> None:
        """Check exactly these from now on. Targets that stay keep their state and their rhythm."""
        wanted = dict.fromkeys(targets)
        for target in [each for each in self._tasks if each not in wanted]:
            self._tasks.pop(target).cancel()
            self.states.pop(target.name, None)
        for target in wanted:
            if target not in self._tasks:
                state = Thresholds(self._config.healthy_after, self._config.unhealthy_after)
                before = self.states.get(target.name)
                if before is not None:
                    state.go_on_from(before)
                self.states[target.name] = state
                watch = self._watch(target, state)
                self._tasks[target] = asyncio.get_running_loop().create_task(watch)

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        self.update(())
        if tasks:
            await asyncio.wait(tasks)

    async def _watch(self, target: Target, state: Thresholds) -> None:
        """The first check comes within a tenth of the interval, then once per jittered interval:
        many gateways that were started together must not ask together."""
        await self._sleep(self._config.interval * self._rng.uniform(0, 0.1))
        while True:
            if state.record(await self._check(target)):
                level = logging.INFO if state.healthy else logging.WARNING
                word = "healthy" if state.healthy else "unhealthy"
                log.log(level, "endpoint %s is %s %s", target.name, word, state.detail)
                self._on_change(target.name, state.healthy)
            await self._sleep(self._config.interval * self._rng.uniform(0.9, 1.1))


async def check(target: Target, config: Health, tls: ssl.SSLContext | None = None) -> Result:
    """Ask one endpoint once, over a connection of its own, within ``config.timeout`` seconds.

    ``http`` passes with a status of ``expect.status`` and ``expect.body`` within the first 64 KiB,
    redirects not followed; ``tcp`` passes when a connection (and TLS, for https) comes about.
    Raises nothing: whatever goes wrong is a failed check.
    """
    ask = _http if config.kind == "http" else _tcp
    try:
        async with asyncio.timeout(config.timeout):
            return await ask(target, config, tls)
    except TimeoutError:
        return Result(False, f"no answer within {config.timeout:g} s")
    except Exception as error:  # noqa: BLE001  Any failure to answer is the answer.
        return Result(False, f"{type(error).__name__}: {error}")


async def _http(target: Target, config: Health, tls: ssl.SSLContext | None) -> Result:
    import aiohttp

    connector: BaseConnector = (
        aiohttp.TCPConnector(force_close=True)
        if target.unix is None
        else aiohttp.UnixConnector(target.unix, force_close=True)
    )
    headers = {"user-agent": "tailrace-health"}
    if target.host is not None:
        headers["host"] = target.host
    # The timeout around us is the only one: it counts connecting and the body alike.
    session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
    async with (
        session,
        session.get(
            target.url + config.path,
            headers=headers,
            allow_redirects=False,
            ssl=True if tls is None else tls,
            server_hostname=target.server_name,
        ) as answer,
    ):
        if answer.status not in config.expect.status:
            return Result(False, f"status {answer.status}")
        if config.expect.body is None:
            return Result(True)
        body = bytearray()
        wanted = config.expect.body.encode()
        while len(body) < BODY and (part := await answer.content.read(BODY - len(body))):
            body += part
            if wanted in body:
                return Result(True)
        return Result(False, "the expected body did not come")


async def _tcp(target: Target, config: Health, tls: ssl.SSLContext | None) -> Result:
    from yarl import URL

    url = URL(target.url)
    secure = None
    name = None
    if url.scheme == "https":
        secure = tls if tls is not None else ssl.create_default_context()
        name = target.server_name or url.host
    if target.unix is not None:
        connecting = asyncio.open_unix_connection(target.unix, ssl=secure, server_hostname=name)
    else:
        connecting = asyncio.open_connection(url.host, url.port, ssl=secure, server_hostname=name)
    _, writer = await connecting
    # Aborted rather than closed: nothing was said, and a peer that is stuck need not agree.
    writer.transport.abort()
    return Result(True)
