"""The three formats as a client and a model server see them, for tests that hold for all of them.

Every model is an echo: what it says of a row is a function of that row alone, so whoever gets a
reply can tell whose rows are in it. Numbers in JSON are read as their digits, so that none is too
long and none is rounded.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from gpu_batcher.api import Call, Codec, Message, Reply
from gpu_batcher.codecs.kserve_v1 import KServeV1
from gpu_batcher.codecs.kserve_v2 import KserveV2
from gpu_batcher.codecs.openai_embeddings import OpenAiEmbeddings
from tests.batcher import oip
from tests.batcher.oip import Given

Rows = list[Any]


def digits(text: bytes | str) -> Any:
    return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)


class Wire:
    """``style``: the bits choose among the ways to say the same."""

    codec: Codec
    target: bytes

    def request(self, marks: list[int], style: int) -> tuple[dict[bytes, bytes], bytes]:
        """The head and body of a request with a row for each mark."""
        raise NotImplementedError

    def serve(self, asked: Message) -> Message:
        raise NotImplementedError

    def rows(self, head: Mapping[bytes, bytes], body: bytes) -> Rows:
        """Of an answer or a reply."""
        raise NotImplementedError

    def own(self, call: Call) -> Rows:
        """What ``rows`` is to be of the reply to ``call``."""
        raise NotImplementedError

    # What follows is the same for all.

    def read(self, marks: list[int], style: int) -> Call:
        head, body = self.request(marks, style)
        call = self.codec.read(self.target, head, memoryview(body))
        assert call is not None
        assert call.rows == len(marks)
        return call

    def replied(self, reply: Reply) -> Rows:
        assert reply.status == 200
        assert type(reply.body) is bytes
        str(reply.body[: int(reply.head.get(oip.HEADER, len(reply.body)))], "utf-8")
        return self.rows(reply.head, reply.body)

    def __repr__(self) -> str:
        return type(self).__name__


class Predict(Wire):
    codec = KServeV1()
    target = b"/v1/models/m:predict"

    def request(self, marks: list[int], style: int) -> tuple[dict[bytes, bytes], bytes]:
        rows = [{"mark": mark, "t": ['é\\"', None, 1e-7]} if style & 1 else mark for mark in marks]
        text = json.dumps({"instances": rows, "signature_name": "s"}, ensure_ascii=style & 2 > 0)
        return {b"content-type": b"application/json"} if style & 4 else {}, text.encode()

    def serve(self, asked: Message) -> Message:
        return Message([json.dumps({"predictions": digits(asked.joined())["instances"]}).encode()])

    def rows(self, head: Mapping[bytes, bytes], body: bytes) -> Rows:
        found: Rows = digits(body)["predictions"]
        return found

    def own(self, call: Call) -> Rows:
        return [digits(bytes(item)) for item in call.items]  # type: ignore[call-overload]


class Embed(Wire):
    """``tokens``: of token ids, rather than of texts."""

    def __init__(self, *, tokens: bool, base64: bool = True) -> None:
        self.codec = OpenAiEmbeddings(upstream_base64=base64)
        self.target = b"/v1/embeddings"
        self._tokens = tokens
        self._base64 = base64

    def request(self, marks: list[int], style: int) -> tuple[dict[bytes, bytes], bytes]:
        rows: list[Any] = [[mark, 7] if self._tokens else f"é {mark}" for mark in marks]
        fields: dict[str, Any] = {"model": "m", "input": rows}
        if style & 1 and self._base64:
            fields["encoding_format"] = "base64" if style & 2 else "float"
        if len(rows) == 1 and style & 4:
            fields["input"] = rows[0]
        return {}, json.dumps(fields).encode()

    def serve(self, asked: Message) -> Message:
        request = json.loads(asked.joined())
        in_text = request.get("encoding_format") == "base64"
        data = []
        for index, item in enumerate(request["input"]):
            vector = _vector(item)
            text = base64.b64encode(struct.pack("<3f", *vector)).decode()
            data.append({"index": index, "embedding": text if in_text else vector})
        usage = {"prompt_tokens": 100, "total_tokens": 100}
        # Servers may answer in any order.
        fields = {"object": "list", "model": "m", "data": data[::-1], "usage": usage}
        return Message([json.dumps(fields).encode()])

    def rows(self, head: Mapping[bytes, bytes], body: bytes) -> Rows:
        found: dict[int, Any] = {}
        for each in json.loads(body)["data"]:
            vector = each["embedding"]
            with contextlib.suppress(binascii.Error, struct.error, TypeError, OverflowError):
                if isinstance(vector, list):  # A decimal that is short, or the exact one.
                    vector = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector))
                data = base64.b64decode(vector, validate=True)
                vector = [number for (number,) in struct.iter_unpack("<f", data)]
            found[each["index"]] = json.dumps(vector, default=repr)
        return [found[index] for index in range(len(found))]

    def own(self, call: Call) -> Rows:
        return [json.dumps(_vector(item)) for item in call.items]

    def __repr__(self) -> str:
        return f"Embed({self._tokens}, {self._base64})"


def _vector(item: Any) -> list[float]:
    """Two numbers that hardly any two inputs share, and one with digits."""
    mark = zlib.crc32(json.dumps(item).encode())
    return [float(mark >> 16), float(mark & 0xFFFF), 0.5]


class Infer(Wire):
    """``binary``: whether the server knows the binary extension."""

    def __init__(self, *, binary: bool) -> None:
        self.codec = KserveV2(binary=binary)
        self.target = oip.TARGET
        self._binary = binary

    def request(self, marks: list[int], style: int) -> tuple[dict[bytes, bytes], bytes]:
        numbers = [each for mark in marks for each in (mark, -mark)]
        texts = [b"%d" % mark * (mark % 3) for mark in marks]
        inputs = [
            Given("n", "INT32", (len(marks), 2), numbers, bool(style & 1), bool(style & 2)),
            Given("t", "BYTES", (len(marks),), texts, bool(style & 2)),
        ]
        fields: dict[str, Any] = {"parameters": {"binary_data_output": bool(style & 4)}}
        if style & 8:
            fields["id"] = str(marks[0])
        return oip.request(inputs, **fields)

    def serve(self, asked: Message) -> Message:
        return oip.serve(asked, binary=self._binary)

    def rows(self, head: Mapping[bytes, bytes], body: bytes) -> Rows:
        length = int(head.get(oip.HEADER, len(body)))
        text = json.loads(body[:length].decode(errors="replace"))
        return _by_row(oip.tensors(text["outputs"], body[length:]))

    def own(self, call: Call) -> Rows:
        inputs = []
        for each in call.inputs:
            values = oip.from_bytes(each.datatype, bytes(each.data))
            inputs.append(Given(f"out_{each.name}", each.datatype, each.shape, values))
        return _by_row(inputs)

    def __repr__(self) -> str:
        return f"Infer({self._binary})"


def _by_row(tensors: list[Given]) -> Rows:
    """For each row what stands there in each tensor, by name."""
    found: Rows = []
    for row in range(tensors[0].shape[0] if tensors else 0):
        mine = {}
        for each in tensors:
            size = len(each.values) // each.shape[0]
            mine[each.name] = each.values[row * size : (row + 1) * size]
        found.append(mine)
    return found


def wires() -> list[Wire]:
    """One of each kind, new."""
    return [
        Predict(),
        Embed(tokens=False),
        Embed(tokens=True),
        Embed(tokens=True, base64=False),
        Infer(binary=True),
        Infer(binary=False),
    ]
