"""One real Triton for all tests of a run (and worker), started for the first that asks.

Where Triton or its client is not installed these tests are skipped, with what to do about it;
not so where TAILRACE_TRITON is ``required``, as it is in CI once the install has succeeded.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from importlib import import_module
from typing import NoReturn

import pytest

from loadtests.oip.install import MissingError
from loadtests.oip.triton import TritonServer, echo, elementwise, masked, poison
from tests.triton.client import Triton

SLOW = 0.6
"""Seconds: an inference that is still under way when a test's next request has long been answered,
also on a machine that is busy."""
INSTALL = "make triton ARGS=--install"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/triton/" in item.nodeid:
            item.add_marker(pytest.mark.triton)


def missing(why: Exception) -> NoReturn:
    text = str(why) if isinstance(why, MissingError) else f"{why}: {INSTALL}"
    if os.environ.get("TAILRACE_TRITON") == "required":
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture(scope="session")
def own_triton() -> Iterator[TritonServer]:
    """Not to be harmed; a test that kills starts its own."""
    try:
        import_module("tritonclient.http")

        server = TritonServer(
            [elementwise(), elementwise("slow", per_call=SLOW), masked(), poison(), echo()]
        )
    except (ImportError, MissingError) as why:
        missing(why)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture
async def triton(own_triton: TritonServer) -> Triton:
    return Triton(own_triton)
