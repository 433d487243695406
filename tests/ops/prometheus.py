"""Prometheus' own programs, where they are installed, and what an expression names."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.wire.origin import BOUND

if TYPE_CHECKING:
    from pathlib import Path

WHERE = "is not installed here: it is in Debian's package prometheus"
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_NAME = re.compile(r"\b(?:tailrace|process)_[a-z_]+\b")
_SELECTOR = re.compile(r"\b((?:tailrace|process)_[a-z_]+)\s*\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def program(name: str) -> str:
    """Where ``prometheus`` or ``promtool`` is. Without it a test is skipped, and fails where ``CI``
    is set, as services that run tests do."""
    found = shutil.which(name)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{name} {WHERE}")
    if found is None:
        pytest.skip(f"{name} {WHERE}")
    return found


def run(*command: str, text: str = "", silent: bool = False) -> None:
    """AssertionError with what it says if the command fails, or was to be silent and is not."""
    ran = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said
    assert not (silent and said), said


def named(expression: str) -> set[str]:
    """The metrics that an expression names."""
    return set(_NAME.findall(_STRINGS.sub('""', expression)))


def selected(expression: str) -> list[tuple[str, set[str]]]:
    """Each selector's metric, and the labels that it asks for."""
    found = _SELECTOR.findall(_STRINGS.sub('""', expression))
    return [(name, set(re.findall(r"(\w+)\s*[=!]", labels))) for name, labels in found]


def grouped(expression: str) -> set[str]:
    """The labels that it groups or joins by."""
    return {
        label.strip() for each in _GROUPING.findall(expression) for label in each.split(",")
    } - {""}


class Prometheus:
    """A real server that scrapes one target, five times a second."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector that ``expression`` is now. AssertionError for what is no PromQL."""
        async with self._session.get(
            f"{self._url}/api/v1/query", params={"query": expression}
        ) as response:
            answer = json.loads(await response.text())
        assert answer["status"] == "success", f"{answer.get('error')}: {expression}"
        data = answer["data"]
        assert data["resultType"] in ("vector", "scalar"), expression
        result: list[dict[str, Any]] = data["result"]
        return result

    async def scraped(self, times: int) -> None:
        """Wait until so many further scrapes have come in."""
        many = "count_over_time(up[1h])"
        wanted = await self._scrapes(many) + times
        async with asyncio.timeout(6 * BOUND):
            while await self._scrapes(many) < wanted:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)

    async def _scrapes(self, expression: str) -> float:
        try:
            found = await self.query(expression)
        except (aiohttp.ClientError, json.JSONDecodeError):
            return 0.0  # it starts
        return float(found[0]["value"][1]) if found else 0.0


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[Prometheus]:
    """One that scrapes ``target``, HOST:PORT, as the job ``tailrace``; gone at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    file = folder / "prometheus.yaml"
    file.write_text(
        "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
        f"scrape_configs: [{{job_name: tailrace, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    process = await asyncio.create_subprocess_exec(
        program("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as session:
            yield Prometheus(f"http://127.0.0.1:{port}", session)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
