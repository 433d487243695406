"""A model server of the Open Inference Protocol in this process, with shared memory like Triton's:
it maps the same files, does not unregister what a request under way uses, loses everything when
it restarts, and goes on with a request whose client has left.

Its model computes ``y = 2 x + 1`` of INT32, whatever the shape; it fails on a row that begins with
``POISON``.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import json
import math
import mmap
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_batcher.api import Call, Job, Message, NoAnswerError
from tests.batcher import oip
from tests.batcher.oip import HEADER, Given

if TYPE_CHECKING:
    from gpu_batcher.codecs.kserve_v2 import KserveV2

TARGET = b"/v2/models/twice/infer"
POISON = -(2**31)
REGION = re.compile(r"/v2/(system|cuda)sharedmemory/region/([^/]+)/(register|unregister)")
STATUS = re.compile(r"/v2/(system|cuda)sharedmemory/status")


class Mapped:
    """A region as the server has it. ``users``: requests under way."""

    def __init__(self, kind: str, size: int, memory: Any) -> None:
        self.kind, self.size, self.memory = kind, size, memory
        self.users = 0
        self.leaving = False


class Server:
    """``up``, ``shared`` (does it allow shared memory?), ``cuda`` and ``defers`` (does it put off
    unregistering what is in use, or refuse it?) may be changed at any time.
    ``shape`` is what the metadata says of y, behind the rows. ``gate``: requests wait at it.
    ``lie``: what is done to the answer's JSON. ``fault``: a status and body for all requests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.up = self.shared = True
        self.cuda = False
        self.defers = True
        self.datatype = "INT32"
        self.shape: list[int] = [2]
        self.gate: asyncio.Event | None = None
        self.arrived = asyncio.Event()
        self.lie: Callable[[dict[str, Any]], object] = lambda answer: None
        self.fault: tuple[int, bytes] | None = None
        self.regions: dict[str, Mapped] = {}
        self.generation = 0
        self.ghosts: list[Callable[[], object]] = []
        self.calls: list[str] = []
        self.sent: list[Message] = []
        self.once: list[bool] = []

    # -- control -------------------------------------------------------------------------------

    async def control(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        await asyncio.sleep(0)
        if not self.up:
            raise ConnectionRefusedError("nobody there")
        self.calls.append(f"{method} {path}")
        if method == "GET" and path.startswith("/v2/models/twice"):
            outputs = [{"name": "y", "datatype": self.datatype, "shape": [-1, *self.shape]}]
            return 200, json.dumps({"name": "twice", "outputs": outputs}).encode()
        if method == "GET" and (found := STATUS.fullmatch(path)):
            listed = [
                {"name": name, "byte_size": each.size}
                for name, each in self.regions.items()
                if each.kind == found[1]
            ]
            return 200, json.dumps(listed).encode()
        if method == "POST" and (found := REGION.fullmatch(path)):
            kind, name, what = found.groups()
            if not self.shared:
                return 501, b'{"error":"Client shared memory is disabled."}'
            try:
                return getattr(self, what)(kind, name, body)  # type: ignore[no-any-return]
            except OSError:
                return 500, b'{"error":"Unable to open shared memory region"}'
        return 404, b'{"error":"not found"}'

    def register(self, kind: str, name: str, body: bytes) -> tuple[int, bytes]:
        asked = json.loads(body)
        size = asked["byte_size"]
        if name in self.regions:
            return 400, b'{"error":"already in manager"}'
        if kind == "cuda":
            if not self.cuda:
                return 400, b'{"error":"failed to register shared memory region"}'
            raw = base64.b64decode(asked["raw_handle"]["b64"])
            assert len(raw) == 64
            memory: Any = memoryview(
                (ctypes.c_ubyte * size).from_address(int.from_bytes(raw, "little"))
            ).cast("B")
        else:
            path = self.directory / asked["key"].removeprefix("/")
            with path.open("r+b") as file:
                if path.stat().st_size < size:
                    return 400, b'{"error":"invalid args"}'
                memory = memoryview(mmap.mmap(file.fileno(), size))
        self.regions[name] = Mapped(kind, size, memory)
        return 200, b""

    def unregister(self, kind: str, name: str, body: bytes) -> tuple[int, bytes]:
        mapped = self.regions.get(name)
        if mapped is not None and mapped.kind == kind:
            if mapped.users and not self.defers:
                return 500, b'{"error":"it is currently in use."}'
            mapped.leaving = True
            self.let_go(name, mapped)
        return 200, b""

    def let_go(self, name: str, mapped: Mapped) -> None:
        if mapped.leaving and not mapped.users and self.regions.get(name) is mapped:
            del self.regions[name]

    def restart(self) -> None:
        """The connections break. What was under way goes on, as in a process that is slow to
        die."""
        self.regions.clear()
        self.generation += 1

    # -- inference -----------------------------------------------------------------------------

    async def send(self, message: Message, job: Job, *, once: bool = False) -> Message:
        assert all(isinstance(each, bytes) for each in message.body) or not once
        self.sent.append(message)
        self.once.append(once)
        await asyncio.sleep(0)
        if not self.up:
            raise NoAnswerError(ConnectionRefusedError("nobody there"), begun=False)
        text, tail = oip.parsed(message.head, b"".join(message.body))
        generation = self.generation
        used: dict[str, Mapped] = {}
        for each in (*text["inputs"], *text.get("outputs", ())):
            name = each.get("parameters", {}).get("shared_memory_region")
            if name is None:
                continue
            if name not in self.regions:
                return _error(404, f"Unable to find shared memory region: '{name}'")
            used[name] = self.regions[name]
        for mapped in used.values():
            mapped.users += 1

        def finish() -> Message:
            try:
                return self._infer(text, tail, used)
            finally:
                for name, mapped in used.items():
                    mapped.users -= 1
                    self.let_go(name, mapped)

        self.arrived.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.ghosts.append(finish)
            raise
        if self.generation != generation:
            self.ghosts.append(finish)
            raise NoAnswerError(ConnectionResetError("gone"))
        answer = finish()
        await asyncio.sleep(0)  # On its way.
        return answer

    def haunt(self) -> None:
        """All requests whose clients have left come to their end."""
        while self.ghosts:
            self.ghosts.pop()()

    def _infer(self, text: dict[str, Any], tail: bytes, used: dict[str, Mapped]) -> Message:
        if self.fault is not None:
            return Message([self.fault[1]], {}, self.fault[0])
        wanted = {each["name"]: each.get("parameters", {}) for each in text.get("outputs", ())}
        entries, body = [], b""
        for each in text["inputs"]:
            parameters, shape = each["parameters"], each["shape"]
            if "shared_memory_region" in parameters:
                data = bytes(self._memory(parameters, used))
            else:
                size = parameters["binary_data_size"]
                data, tail = tail[:size], tail[size:]
            if each["name"] != "x":
                continue
            assert len(data) == 4 * math.prod(shape)
            values = np.frombuffer(data, "<i4")
            if (values == POISON).any():
                return _error(400, f"poison in {values.tolist()}")
            result = (2 * values + 1).astype("<i4").tobytes()
            entry: dict[str, Any] = {"name": "y", "datatype": "INT32", "shape": shape}
            place = wanted.get("y", {})
            if "shared_memory_region" in place:
                if place["shared_memory_byte_size"] < len(result):
                    return _error(
                        500,
                        "shared memory size specified with the request for output 'y'"
                        f" should be at least {len(result)} bytes to hold the results",
                    )
                self._memory(place, used)[: len(result)] = result
            else:
                entry["parameters"] = {"binary_data_size": len(result)}
                body += result
            entries.append(entry)
        assert not tail
        answer = {"model_name": "twice", "model_version": "1", "outputs": entries}
        self.lie(answer)
        head = json.dumps(answer).encode()
        return Message([head, body], {HEADER: b"%d" % len(head)})

    def _memory(self, parameters: dict[str, Any], used: dict[str, Mapped]) -> Any:
        mapped = used[parameters["shared_memory_region"]]
        start = parameters.get("shared_memory_offset", 0)
        end = start + parameters["shared_memory_byte_size"]
        assert end <= mapped.size
        return mapped.memory[start:end]


def _error(status: int, text: str) -> Message:
    return Message([json.dumps({"error": text}).encode()], {}, status)


def call_of(codec: KserveV2, rows: list[list[int]], **fields: Any) -> Call:
    """Rows of the same length."""
    values = [each for row in rows for each in row]
    given = Given("x", "INT32", (len(rows), len(rows[0])), values)
    head, body = oip.request([given], **fields)
    call = codec.read(TARGET, head, memoryview(body))
    assert call is not None
    return call


def binary(codec: KserveV2, rows: list[list[int]]) -> Call:
    return call_of(codec, rows, parameters={"binary_data_output": True})


def answered(reply: Any) -> list[list[int]]:
    """The rows of y in a reply."""
    assert reply.status == 200, reply
    text, tail = oip.parsed(reply.head, reply.body)
    (given,) = oip.tensors(text["outputs"], tail)
    assert given.name == "y"
    rows, length = given.shape
    return [given.values[at * length : (at + 1) * length] for at in range(rows)]


def twice(rows: list[list[int]]) -> list[list[int]]:
    return [[2 * each + 1 for each in row] for row in rows]
