"""Batches in shared memory through a real gateway: one writer for each region, whatever breaks."""

from __future__ import annotations

import json
import mmap
import os
import struct
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from tests.batcher import oip
from tests.harness import eventually
from tests.wire.oip import ALONE, Model, _head, ask, bench, check, error, message

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.wire.origin import Connection, Request


def told(value: object) -> bytes:
    return message(200, json.dumps(value).encode())


class Sharing(Model):
    """Maps the regions as Triton does. ``moods``, one for each inference: ``drop`` breaks the
    connection and goes on working; ``late`` lets what was dropped write before it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.regions: dict[str, int] = {}
        self.moods: list[str] = []
        self.used: list[str] = []
        self.ghost: Callable[[], object] = lambda: None

    async def serve(self, connection: Connection, request: Request) -> None:
        body = await connection.body(request)
        parts = request.target.decode().split("/")
        if parts[2] == "systemsharedmemory":
            connection.send(told(self.manage(parts, bytes(body))))
        elif parts[2] == "cudasharedmemory":
            connection.send(error(400, "no CUDA here"))
        elif parts[-1] == "infer":
            await self.infer(connection, request, bytes(body))
        else:
            output = {"name": "y", "datatype": "INT64", "shape": [-1, 1]}
            connection.send(told({"outputs": [output]}))

    def manage(self, parts: list[str], body: bytes) -> object:
        if parts[-1] == "status":
            return [{"name": name, "byte_size": size} for name, size in self.regions.items()]
        if parts[-1] == "register":
            self.regions[parts[-2]] = json.loads(body)["byte_size"]
        else:
            self.regions.pop(parts[-2], None)
        return {}

    async def infer(self, connection: Connection, request: Request, body: bytes) -> None:
        length = int(_head(request).get(oip.HEADER, b"%d" % len(body)))
        asked, tail = json.loads(body[:length]), body[length:]
        (given,) = asked["inputs"]
        where = given.get("parameters", {})
        rows, name = given["shape"][0], where.get("shared_memory_region", "")
        memory: Any = bytearray(tail)
        if name:
            self.used.append(name)
            descriptor = os.open(f"/dev/shm/{name}", os.O_RDWR)
            memory = mmap.mmap(descriptor, self.regions[name])
            os.close(descriptor)
        values = struct.unpack_from(f"<{rows}q", memory, where.get("shared_memory_offset", 0))
        result = struct.pack(f"<{rows}q", *[2 * each + 1 for each in values])
        put = (asked.get("outputs") or [{}])[0].get("parameters", {})
        placed = bool(put.get("shared_memory_region"))

        def write() -> None:
            if placed:
                at = put.get("shared_memory_offset", 0)
                memory[at : at + len(result)] = result

        mood = self.moods.pop(0) if self.moods else ""
        if mood == "drop":
            self.ghost = write
            connection.reset()
            return
        write()
        if mood == "late":
            self.ghost()
        output: dict[str, Any] = {"name": "y", "datatype": "INT64", "shape": [rows, 1]}
        if not placed:
            output["parameters"] = {"binary_data_size": len(result)}
        text = json.dumps({"model_name": "double", "outputs": [output]}).encode()
        line = b"Inference-Header-Content-Length: %d" % len(text)
        connection.send(message(200, text if placed else text + result, line))


async def test_a_batch_whose_connection_breaks_has_one_writer() -> None:
    """A kept connection breaks, which the pool takes for one that the server has closed; but the
    server goes on, and writes when the next batch is at work."""
    model = Sharing()
    config = replace(ALONE, runner="system_shared_memory")
    async with bench(config, origins=[model]) as b:
        await eventually(lambda: b.told("runner") == "system_shared_memory")
        for value in (1, 2, 3):
            check(await b.gateway.ask(ask([value]), b"POST"), [value])
        assert len(set(model.used)) == 1
        model.moods = ["drop", "", "late"]
        check(await b.gateway.ask(ask([100]), b"POST"), [100])
        dropped = model.used[-1]
        await eventually(lambda: dropped not in model.regions)
        await eventually(lambda: b.edge.buffers().get("free") == 1)
        check(await b.gateway.ask(ask([555]), b"POST"), [555])
        check(await b.gateway.ask(ask([556]), b"POST"), [556])
        assert dropped not in model.used[model.used.index(dropped) + 4 :]
        await b.idle()
