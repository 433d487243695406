"""A model server that speaks the Open Inference Protocol v2, and callers of it, for tests of
batching: y = 2x + 1 on integers. Every value is its caller's own, so that a row in the wrong hands
shows.

The server answers as it is told: ``hold`` keeps answers back until ``free``, ``faults`` are scripts
for the next inferences, a row with ``POISON`` fails its batch with a text that names all its rows.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway.config import Filters
from gateway.config_batching import Batching
from tests.batcher import oip
from tests.harness import Gateway, eventually, gateway
from tests.wire.origin import OK, Connection, Origin, Request, Script
from tests.wire.table import post

if TYPE_CHECKING:
    from gateway.batch_wiring import BatchLine
    from gateway.batching import Batching as Edge
    from tests.wire.client import Response

TARGET = b"/v2/models/double/infer"
POISON = 666
INFERENCE = "inference-header-content-length"
ALONE = Batching("kserve_v2", max_in_flight=1, max_delay=0.0, target=60.0)
"""One batch at a time, and nobody waits for company: who is joined is then no matter of time."""


class Model(Origin):
    """``batches``: the first values of the rows of each inference, as it came. ``passed``: targets
    and bodies of whatever else came."""

    def __init__(self) -> None:
        super().__init__(self.serve)
        self.batches: list[list[int]] = []
        self.infers: list[Request] = []
        self.passed: list[Request] = []
        self.faults: deque[Script] = deque()
        self.short = 0
        """Rows that are missing in each answer."""
        self.closes = False
        """Each connection, after its answer."""
        self._held = False

    def hold(self) -> None:
        self._held = True

    def free(self) -> None:
        self._held = False
        self.changed()

    async def serve(self, connection: Connection, request: Request) -> None:
        body = await connection.body(request)
        if request.method != b"POST" or not request.target.endswith(b"/infer"):
            self.passed.append(request)
            connection.send(OK if request.method != b"HEAD" else OK[:-2])
            return
        try:
            text, tail = oip.parsed(_head(request), body)
            given = oip.tensors(text["inputs"], tail)[0]
        except (ValueError, KeyError, UnicodeDecodeError):
            self.passed.append(request)
            connection.send(OK)
            return
        each = len(given.values) // given.shape[0]
        firsts = given.values[::each]
        self.batches.append(firsts)
        self.infers.append(request)
        self.changed()
        if self.faults:
            await self.faults.popleft()(connection, request)
            return
        await connection.until(lambda: not self._held)
        if POISON in firsts:
            connection.send(error(500, f"secret of {firsts}"))
            return
        rows = given.shape[0] - self.short
        shape = (rows, *given.shape[1:])
        values = [2 * value + 1 for value in given.values[: rows * each]]
        wanted = text.get("parameters", {}).get("binary_data_output", False)
        connection.send(_answer(oip.Given("y", given.datatype, shape, values), binary=wanted))
        if self.closes:
            connection.close()


def _head(request: Request) -> dict[bytes, bytes]:
    length = request.values(INFERENCE)
    return {oip.HEADER: length[0]} if length else {}


def _answer(output: oip.Given, *, binary: bool) -> bytes:
    entry: dict[str, Any] = {
        "name": output.name, "datatype": output.datatype, "shape": output.shape
    }  # fmt: skip
    tail = oip.to_bytes(output.datatype, output.values)
    if binary:
        entry["parameters"] = {"binary_data_size": len(tail)}
    else:
        entry["data"] = output.values
        tail = b""
    text = json.dumps({"model_name": "double", "outputs": [entry]}).encode()
    lines = [b"%s: %d" % (INFERENCE.encode(), len(text))] if binary else []
    return message(200, text + tail, *lines)


def message(status: int, body: bytes, *lines: bytes) -> bytes:
    head = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n" % (status, len(body))
    return head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def error(status: int, text: str, *lines: bytes) -> bytes:
    return message(status, json.dumps({"error": text}).encode(), *lines)


def plain(**fields: Any) -> Filters:
    """The filters of a route, without retry and without a look at how busy this machine is."""
    return Filters(**{"retry": None, "load_shed": None, **fields})


# -- callers ---------------------------------------------------------------------------------------


def ask(
    values: Sequence[int],
    *lines: bytes,
    binary: bool = True,
    target: bytes = TARGET,
    width: int = 1,
    datatype: str = "INT64",
    **fields: Any,
) -> bytes:
    """A request for these values, ``width`` in a row. ``fields``: further ones of its JSON."""
    shape = (len(values) // width, width)
    given = oip.Given("x", datatype, shape, list(values), binary)
    head, body = oip.request([given], **fields)
    own = [b"%s: %s" % pair for pair in head.items()]
    return post(b"Content-Length: %d" % len(body), *own, *lines, body=body, target=target)


def body_of(raw: bytes) -> bytes:
    return raw.partition(b"\r\n\r\n")[2]


def answered(response: Response) -> list[int]:
    """The values of its output, in whichever form."""
    assert response.status == 200, response
    length = response.values(INFERENCE)
    head = {oip.HEADER: length[0]} if length else {}
    text, tail = oip.parsed(head, response.body)
    (output,) = oip.tensors(text["outputs"], tail)
    assert output.name == "y"
    return output.values


def check(response: Response, values: Sequence[int]) -> None:
    assert answered(response) == [2 * value + 1 for value in values]


class Bench:
    """A gateway with one route that has batching, and a model server or several behind it."""

    def __init__(self, g: Gateway, models: Sequence[Model]) -> None:
        self.gateway = g
        self.models = models
        self._tasks: list[asyncio.Task[Response]] = []

    @property
    def model(self) -> Model:
        return self.models[0]

    @property
    def line(self) -> BatchLine:
        (filters,) = self.gateway.server.wiring.filters.values()
        assert filters.batches is not None
        return filters.batches

    @property
    def edge(self) -> Edge:
        return self.line.batching

    def told(self, name: str) -> Any:
        return self.edge.describe(self.gateway.server.clock.now())[name]

    @property
    def batches(self) -> list[list[int]]:
        return [each for model in self.models for each in model.batches]

    def begin(self, raw: bytes) -> asyncio.Task[Response]:
        """Send on a connection of its own; the task is its answer."""
        task = asyncio.get_running_loop().create_task(self.gateway.ask(raw, b"POST"))
        self._tasks.append(task)
        return task

    async def waits(self, count: int) -> None:
        """Until so many wait in the plan."""
        await eventually(lambda: self.told("waiting") == count)

    async def busy(self, raw: bytes | None = None) -> asyncio.Task[Response]:
        """Keep the one slot taken until ``free``; who comes meanwhile gathers."""
        before = len(self.batches)
        for model in self.models:
            model.hold()
        task = self.begin(raw or ask([1]))
        await eventually(lambda: len(self.batches) == before + 1)
        return task

    async def gathered(self, *raws: bytes) -> list[asyncio.Task[Response]]:
        """Behind a batch under way: all of these wait in the plan, in this order."""
        tasks = []
        already = self.told("waiting")
        for count, raw in enumerate(raws, 1):
            tasks.append(self.begin(raw))
            await self.waits(already + count)
        return tasks

    def free(self) -> None:
        for model in self.models:
            model.free()

    async def together(self, *raws: bytes) -> list[Response]:
        """The answers of requests that had every chance to be joined."""
        first = await self.busy()
        tasks = await self.gathered(*raws)
        self.free()
        assert (await first).status == 200
        return [await task for task in tasks]

    async def idle(self) -> None:
        """Nothing is left of anything: no place, no slot, no permit, no kept byte."""
        server = self.gateway.server
        endpoints = server.wiring.clusters["c"].endpoints.values()
        await eventually(lambda: self.edge.coalescer.idle)
        await eventually(lambda: not any(endpoint.active for endpoint in endpoints))
        await eventually(lambda: server.acceptor.replay.held == 0)
        assert self.edge._inside == 0

    async def end(self) -> None:
        self.free()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def bench(
    config: Batching = ALONE,
    *,
    models: int = 1,
    origins: Sequence[Model] = (),
    route: dict[str, Any] | None = None,
    **top: Any,
) -> AsyncIterator[Bench]:
    """``top`` as for ``gateway``, but nobody is refused because this machine is busy."""
    route = {"filters": plain(retry=top.pop("retry", None)), **(route or {})}
    origins = origins or [Model() for _ in range(models)]
    for origin in origins:
        await origin.__aenter__()
    try:
        async with gateway(*origins, route={"batching": config, **route}, **top) as g:
            made = Bench(g, origins)
            try:
                yield made
            finally:
                await made.end()
    except BaseException:
        for origin in origins:
            await origin.__aexit__(BaseException, None, None)
        raise
    for origin in origins:
        await origin.__aexit__(None, None, None)
