"""What tritonclient sends and reads, and a plain HTTP client to carry it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from gpu_batcher.api import Message

if TYPE_CHECKING:
    import numpy as np

    from loadtests.oip.server import Server

BOUND = 30.0
"""Seconds after which a test gives up."""
HEADER = b"inference-header-content-length"
SHARED = "/v2/systemsharedmemory"


@dataclass(frozen=True)
class Answer:
    status: int
    head: dict[bytes, bytes]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None

    @property
    def error(self) -> str:
        return str(self.json["error"])

    @property
    def message(self) -> Message:
        return Message([self.body], self.head, self.status)


@dataclass(frozen=True)
class Asked:
    """A request of the client's library: for ``model``, these bytes."""

    model: str
    head: dict[bytes, bytes]
    body: bytes

    @property
    def target(self) -> bytes:
        return f"/v2/models/{self.model}/infer".encode()


class Triton:
    """Requests to a running server; each on a connection of its own."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def send(
        self, method: str, path: str, body: bytes = b"", head: Mapping[bytes, bytes] | None = None
    ) -> Answer:
        timeout = aiohttp.ClientTimeout(total=BOUND)
        lines = {name.decode(): value.decode() for name, value in (head or {}).items()}
        # aiohttp would allow gzip, and Triton compresses then.
        lines.setdefault("accept-encoding", "identity")
        # And MLServer takes nothing else for JSON; aiohttp says octet-stream.
        if HEADER not in (head or {}):
            lines["content-type"] = "application/json"
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
            session.request(method, self.server.url + path, data=body, headers=lines) as answer,
        ):
            got = {k.lower().encode(): v.encode() for k, v in answer.headers.items()}
            return Answer(answer.status, got, await answer.read())

    async def infer(self, model: str, fields: Any, head: Any = None) -> Answer:
        """``fields``: of the JSON, or all of the body."""
        body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        return await self.send("POST", f"/v2/models/{model}/infer", body, head)

    async def ask(self, asked: Asked) -> Answer:
        return await self.infer(asked.model, asked.body, asked.head)

    async def register(self, name: str, key: str, size: int, offset: int = 0) -> Answer:
        fields = {"key": f"/{key}", "offset": offset, "byte_size": size}
        path = f"{SHARED}/region/{name}/register"
        return await self.send("POST", path, json.dumps(fields).encode())

    async def unregister(self, name: str) -> Answer:
        return await self.send("POST", f"{SHARED}/region/{name}/unregister")

    async def status(self, name: str = "") -> Answer:
        return await self.send(
            "GET", f"{SHARED}/region/{name}/status" if name else f"{SHARED}/status"
        )


def asked(
    model: str,
    inputs: Mapping[str, tuple[str, np.ndarray[Any, Any]]],
    *,
    outputs: Sequence[str] = (),
    binary: bool = True,
    binary_output: bool = True,
    request_id: str = "",
) -> Asked:
    """As ``tritonclient.http`` makes it. ``inputs``: datatype and data by name. Without
    ``outputs`` the library asks for binary data, of all that there are."""
    from tritonclient.http import (  # type: ignore[import-untyped]
        InferenceServerClient,
        InferInput,
        InferRequestedOutput,
    )

    given = []
    for name, (datatype, data) in inputs.items():
        each = InferInput(name, list(data.shape), datatype)
        each.set_data_from_numpy(data, binary_data=binary)
        given.append(each)
    wanted = [InferRequestedOutput(name, binary_data=binary_output) for name in outputs]
    body, length = InferenceServerClient.generate_request_body(
        given, outputs=wanted or None, request_id=request_id
    )
    head = {} if length is None else {HEADER: b"%d" % length}
    return Asked(model, head, bytes(body))


@dataclass(frozen=True)
class Read:
    """An answer as the library reads it: the JSON without data, and the outputs by name. Their
    order is not compared: the server's is that in which the model makes them, whatever the caller
    asked for, and the codec's is the caller's."""

    fields: dict[str, Any]
    arrays: dict[str, np.ndarray[Any, Any]]

    def agrees(self, other: Read) -> bool:
        """Bit by bit: NaN is itself here, and -0 is not 0."""
        return self.fields == other.fields and all(
            mine.dtype == (its := other.arrays[name]).dtype
            and mine.shape == its.shape
            # The bytes of objects are their addresses.
            and (
                mine.tolist() == its.tolist()
                if mine.dtype == object
                else mine.tobytes() == its.tobytes()
            )
            for name, mine in self.arrays.items()
        )


def read(body: bytes, head: Mapping[bytes, bytes]) -> Read:
    from tritonclient.http import InferenceServerClient

    length = int(head[HEADER]) if HEADER in head else None
    result = InferenceServerClient.parse_response_body(body, header_length=length)
    fields = result.get_response()
    names = [each["name"] for each in fields["outputs"]]
    arrays = {name: result.as_numpy(name) for name in names}
    for each in fields["outputs"]:
        each.pop("data", None)
    fields["outputs"].sort(key=lambda each: str(each["name"]))
    return Read(fields, arrays)
