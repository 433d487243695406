"""The Open Inference Protocol v2 once more, plainly: what a client and a model server do.

Written from the protocol and not from the codec, with the standard library only, so that the two
can disagree. The model is the identity: each output is an input, under the name ``out_NAME``.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from gpu_batcher.api import SIZES, Message

TARGET = b"/v2/models/echo/infer"
HEADER = b"inference-header-content-length"
CODES = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b",
    "INT16": "h", "INT32": "i", "INT64": "q", "FP16": "H", "BF16": "H", "FP32": "f", "FP64": "d",
}  # fmt: skip
"""16-bit floats as their bits: no value of them is ever looked at."""
NOT_JSON = ("FP16", "BF16")

ELEMENTS = {
    "BOOL": st.booleans(),
    "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "FP64": st.floats(allow_nan=False, allow_infinity=False),
    "BYTES": st.text(max_size=5).map(str.encode),
    **{
        name: st.integers(-(2 ** (8 * size - 1)), 2 ** (8 * size - 1) - 1)
        for name, size in SIZES.items()
        if name.startswith("INT")
    },
    **{
        name: st.integers(0, 2 ** (8 * size) - 1)
        for name, size in SIZES.items()
        if name.startswith("UINT") or name in NOT_JSON
    },
}


@dataclass
class Given:
    """A tensor as a client has it: its elements, flat."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: list[Any]
    binary: bool = True
    nested: bool = False


def to_bytes(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(each)) + each for each in values)
    return struct.pack(f"<{len(values)}{CODES[datatype]}", *values)


def from_bytes(datatype: str, data: bytes) -> list[Any]:
    if datatype != "BYTES":
        return list(struct.unpack(f"<{len(data) // SIZES[datatype]}{CODES[datatype]}", data))
    values = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        assert len(data) >= 4 + length
        values.append(data[4 : 4 + length])
        data = data[4 + length :]
    return values


def to_json(datatype: str, values: list[Any]) -> list[Any]:
    return [each.decode() for each in values] if datatype == "BYTES" else values


def nested(values: list[Any], shape: tuple[int, ...]) -> list[Any]:
    if len(shape) <= 1:
        return values
    step = math.prod(shape[1:])
    return [nested(values[at * step : (at + 1) * step], shape[1:]) for at in range(shape[0])]


def request(inputs: list[Given], **fields: Any) -> tuple[dict[bytes, bytes], bytes]:
    """Header lines and body. ``fields``: others of the JSON, ``id`` first if there is one."""
    entries = []
    tail = b""
    for each in inputs:
        entry: dict[str, Any] = {
            "name": each.name,
            "shape": list(each.shape),
            "datatype": each.datatype,
        }
        if each.binary:
            data = to_bytes(each.datatype, each.values)
            entry["parameters"] = {"binary_data_size": len(data)}
            tail += data
        else:
            values = to_json(each.datatype, each.values)
            entry["data"] = nested(values, each.shape) if each.nested else values
        entries.append(entry)
    own_id = {"id": fields.pop("id")} if "id" in fields else {}
    text = json.dumps({**own_id, "inputs": entries, **fields}).encode()
    if tail or any(each.binary for each in inputs):
        return {HEADER: b"%d" % len(text)}, text + tail
    return {}, text


def parsed(head: dict[bytes, bytes], body: bytes) -> tuple[dict[str, Any], bytes]:
    length = int(head.get(HEADER, len(body)))
    return json.loads(body[:length]), body[length:]


def tensors(entries: list[dict[str, Any]], tail: bytes) -> list[Given]:
    """Of the inputs of a request, or of the outputs of an answer."""
    found = []
    for each in entries:
        size = each.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = each["data"]
            if each["datatype"] == "BYTES":
                values = [text.encode() for text in values]
        else:
            assert "data" not in each
            assert size <= len(tail)
            values = from_bytes(each["datatype"], tail[:size])
            tail = tail[size:]
        shape = tuple(each["shape"])
        assert len(values) == math.prod(shape)
        found.append(Given(each["name"], each["datatype"], shape, values, size is not None))
    assert not tail
    return found


def serve(asked: Message, *, binary: bool = True) -> Message:
    """The answer of a server that knows the binary extension, or that does not."""
    text, tail = parsed(asked.head, b"".join(asked.body))
    inputs = tensors(text["inputs"], tail)
    rows = {each.shape[0] for each in inputs}
    assert len(rows) == 1
    wanted = {each["name"]: each.get("parameters", {}) for each in text.get("outputs", [])}
    default = text.get("parameters", {}).get("binary_data_output", False)
    outputs = []
    tail = b""
    for each in inputs:
        name = f"out_{each.name}"
        if wanted and name not in wanted:
            continue
        output: dict[str, Any] = {"name": name, "datatype": each.datatype, "shape": each.shape}
        if binary and wanted.get(name, {}).get("binary_data", default):
            data = to_bytes(each.datatype, each.values)
            output["parameters"] = {"binary_data_size": len(data)}
            tail += data
        else:
            assert each.datatype not in NOT_JSON
            output["data"] = to_json(each.datatype, each.values)
        outputs.append(output)
    answer = {"model_name": "echo", "model_version": "1", "outputs": outputs}
    body = json.dumps(answer).encode()
    head = {HEADER: b"%d" % len(body)} if tail else {}
    return Message([body, tail], head)
