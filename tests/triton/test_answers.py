"""What a real Triton (2.51) answers to requests that go wrong, as facts that containment relies on:
which statuses a caller's mistake has, and what is left of a server after a poisoned request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from loadtests.oip.triton import SHARED_MEMORY, TritonServer, elementwise, poison
from loadtests.processes import tree
from tests.triton.client import BOUND, HEADER, Triton, asked

FAILS, REFUSED, KILLS_MODEL, KILLS_SERVER = 1001.0, 1002.0, 1003.0, 1004.0
"""As in ``loadtests/models/poison.py``, which cannot be imported here."""


def x(shape: tuple[int, ...] = (1, 16), **fields: Any) -> dict[str, Any]:
    count = int(np.prod(shape))
    return {"name": "X", "shape": shape, "datatype": "FP32", "data": [1.0] * count, **fields}


def marked(*marks: float) -> dict[str, Any]:
    """For ``poison``: a row for each."""
    data = [[mark, 0.0, 0.0, 0.0] for mark in marks]
    return {"inputs": [x((len(marks), 4), data=data)]}


MISTAKES: dict[str, tuple[Any, int, str]] = {
    "no JSON": (b"{", 500, "failed to parse the request JSON buffer"),
    "no inputs": ({}, 500, "Unable to parse 'inputs'"),
    "negative dimension": ({"inputs": [{**x(), "shape": [-1, 16]}]}, 500, "parse 'shape'"),
    "too few elements": ({"inputs": [x(data=[1.0])]}, 500, "does not match true shape"),
    "too many elements": ({"inputs": [x(data=[1.0] * 17)]}, 500, "does not match true shape"),
    "dimension": ({"inputs": [x((1, 15))]}, 400, "unexpected shape for input 'X'"),
    "datatype": ({"inputs": [x(datatype="FP64")]}, 400, "data-type is 'FP64'"),
    "no datatype": ({"inputs": [x(datatype="FP31")]}, 400, "invalid datatype"),
    "unknown input": ({"inputs": [x(name="Z")]}, 400, "unexpected inference input 'Z'"),
    "missing input": ({"inputs": []}, 400, "expected 1 inputs but got 0"),
    "unknown output": ({"inputs": [x()], "outputs": [{"name": "Q"}]}, 400, "inference output 'Q'"),
    "rows": ({"inputs": [x((65, 16))]}, 400, "batch-size must be <= 64"),
    "no rows": ({"inputs": [x((0, 16))]}, 400, "Expected 64, got 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
async def test_mistakes(triton: Triton, name: str) -> None:
    """Errors are JSON, whatever their content-type says; some that are the caller's are 500."""
    fields, status, text = MISTAKES[name]
    answer = await triton.infer("elementwise", fields)
    assert (answer.status, text in answer.error) == (status, True), answer


@pytest.mark.parametrize("extra", [-4, 4])
async def test_binary_data_of_another_length(triton: Triton, extra: int) -> None:
    fine = asked("elementwise", {"X": ("FP32", np.zeros((1, 16), np.float32))})
    body = fine.body[:extra] if extra < 0 else fine.body + b"\0" * extra
    answer = await triton.infer("elementwise", body, fine.head)
    assert (answer.status, "additional" in answer.error) == (400, True)
    answer = await triton.infer("elementwise", fine.body, {HEADER: b"99999"})
    assert (answer.status, "header size" in answer.error) == (400, True)


async def test_16_bit_floats_are_not_for_json(triton: Triton) -> None:
    data = np.ones((1, 2), np.float16)
    out = asked("echo", {"X_FP16": ("FP16", data)}, outputs=["Y_FP16"], binary_output=False)
    answer = await triton.ask(out)
    assert (answer.status, "FP16 data via JSON is not supported" in answer.error) == (400, True)
    into = {"name": "X_FP16", "shape": [1, 1], "datatype": "FP16", "data": [1.0]}
    answer = await triton.infer("echo", {"inputs": [into]})
    assert (answer.status, "FP16 data via JSON is not supported" in answer.error) == (400, True)


async def test_an_unknown_model(triton: Triton) -> None:
    """404, as an unknown region is; the texts differ."""
    for target in ("nobody", "elementwise/versions/9"):
        answer = await triton.infer(target, {"inputs": [x()]})
        assert (answer.status, answer.error.startswith("Request for unknown model")) == (404, True)
    assert (await triton.send("GET", "/v2/models/nobody/ready")).status == 400


async def test_answers_are_compressed_only_for_who_accepts_it(triton: Triton) -> None:
    """So what a caller accepts must not go along with a batch."""
    fine = asked("elementwise", {"X": ("FP32", np.zeros((1, 16), np.float32))})
    for accepted, encoding in ((b"gzip", b"gzip"), (b"identity", None)):
        answer = await triton.infer(
            "elementwise", fine.body, {**fine.head, b"accept-encoding": accepted}
        )
        assert (answer.status, answer.head.get(b"content-encoding")) == (200, encoding)


@pytest.mark.parametrize(
    ("mark", "text"), [(FAILS, "a row is poison"), (REFUSED, "a row is refused")]
)
async def test_a_failing_row_fails_its_call(triton: Triton, mark: float, text: str) -> None:
    """And nothing afterwards."""
    answer = await triton.infer("poison", marked(1.0, mark, 2.0))
    assert (answer.status, text in answer.error) == (500, True)
    answer = await triton.infer("poison", marked(1.0, 2.0))
    assert answer.json["outputs"][0]["data"] == [1, 0, 0, 0, 2, 0, 0, 0]


@pytest.fixture
async def mortal(triton: Triton) -> AsyncIterator[Triton]:
    """One of its own; ``triton`` only sees to the skip."""
    server = TritonServer([elementwise(), poison()])
    async with server:
        yield Triton(server)
        await server.kill()  # faster than SIGTERM, which waits for what may be dead
    assert not server.folder.exists()
    assert list(SHARED_MEMORY.glob(f"*-{server.port}-*")) == []


async def test_a_dead_model_fails_everything_while_the_server_looks_ready(mortal: Triton) -> None:
    """Not started again by this version, so it is the endpoint that is to blame."""
    for mark in (KILLS_MODEL, 1.0, 1.0):
        answer = await mortal.infer("poison", marked(mark))
        assert (answer.status, "is not healthy" in answer.error) == (500, True)
    for path in ("/v2/health/ready", "/v2/models/poison/ready"):
        assert (await mortal.send("GET", path)).status == 200
    assert (await mortal.infer("elementwise", {"inputs": [x()]})).status == 200


async def test_a_killed_server_starts_again_on_its_port(mortal: Triton) -> None:
    server = mortal.server
    port = server.port
    with pytest.raises(aiohttp.ClientError):
        await mortal.infer("poison", marked(KILLS_SERVER))
    await server.ended(BOUND)
    assert not server.running
    await server.restart()
    assert (server.port, await until_answers(mortal)) == (port, 200)
    await server.restart()
    assert (await mortal.infer("elementwise", {"inputs": [x()]})).status == 200
    assert server.child is not None
    pids = tree(server.child.process.pid)
    assert len(pids) > 1
    await server.kill()
    async with asyncio.timeout(BOUND):
        while any(alive(pid) for pid in pids):  # noqa: ASYNC110  nobody tells us
            await asyncio.sleep(0.01)


async def until_answers(triton: Triton) -> int:
    async with asyncio.timeout(BOUND):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                return (await triton.infer("elementwise", {"inputs": [x()]})).status


def alive(pid: int) -> bool:
    """A zombie is not: its parent may never look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
