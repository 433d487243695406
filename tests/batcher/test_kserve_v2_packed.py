"""The Open Inference Protocol v2 with packed inputs, shared memory, and replies of our own."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import pytest

from gpu_batcher.api import BadAnswerError, Call, Message, Placed, Tensor
from gpu_batcher.codecs.kserve_v2 import KserveV2
from tests.batcher import oip
from tests.batcher.oip import HEADER, TARGET, Given

X = Given("x", "INT32", (1, 2), [1, 2])
LONG = Given("x", "INT32", (2, 3), [3, 4, 5, 6, 7, 8])
PACKED = struct.pack("<9i", 1, 2, 0, 3, 4, 5, 6, 7, 8)
LENGTHS = struct.pack("<3i", 2, 3, 3)


def read(codec: KserveV2, inputs: Sequence[Given], target: bytes = TARGET, **fields: Any) -> Call:
    head, body = oip.request(list(inputs), **fields)
    call = codec.read(target, head, memoryview(body))
    assert call is not None
    return call


def packed(codec: KserveV2, **fields: Any) -> tuple[list[Call], list[Placed]]:
    """Two calls of different lengths, padded to 3, with their lengths as a second input."""
    calls = [read(codec, [X], **fields), read(codec, [LONG], **fields)]
    buffer = memoryview(bytearray(PACKED + LENGTHS))
    tensors = [
        Tensor("x", "INT32", (3, 3), buffer[:36].cast("i", (3, 3))),
        Tensor("lengths", "INT32", (3,), buffer[36:]),
    ]
    return calls, [Placed(each) for each in tensors]


def text_of(message: Message) -> tuple[dict[str, Any], bytes]:
    return oip.parsed(message.head, b"".join(message.body))


def test_packed_inputs_follow_the_json() -> None:
    codec = KserveV2({"x": (1,)})
    calls, inputs = packed(codec, outputs=[{"name": "out_x"}])
    message = codec.head(calls, inputs, ())
    text, tail = text_of(message)
    assert text == {
        "inputs": [
            {
                "name": "x",
                "shape": [3, 3],
                "datatype": "INT32",
                "parameters": {"binary_data_size": 36},
            },
            {
                "name": "lengths",
                "shape": [3],
                "datatype": "INT32",
                "parameters": {"binary_data_size": 12},
            },
        ],
        "outputs": [{"name": "out_x", "parameters": {"binary_data": True}}],
        "parameters": {"binary_data_output": True},
    }
    assert tail == PACKED + LENGTHS
    replies = codec.divide(calls, oip.serve(message))
    given = [json.loads(reply.body)["outputs"][0] for reply in replies]
    assert [each["shape"] for each in given] == [[1, 3], [2, 3]]
    assert [each["data"] for each in given] == [[1, 2, 0], [3, 4, 5, 6, 7, 8]]


def test_packed_inputs_as_json() -> None:
    codec = KserveV2({"x": (1,)}, binary=False)
    calls, inputs = packed(codec)
    text, tail = text_of(codec.head(calls, inputs, ()))
    assert [each["data"] for each in text["inputs"]] == [[1, 2, 0, 3, 4, 5, 6, 7, 8], [2, 3, 3]]
    assert "parameters" not in text
    assert tail == b""


def test_inputs_and_outputs_in_shared_memory() -> None:
    codec = KserveV2({"x": (1,)})
    calls, inputs = packed(codec, outputs=[{"name": "b"}, {"name": "a"}])
    inputs[0].region, inputs[0].offset = "in", 256
    room = [
        Placed(Tensor("a", "FP32", (3, 2), memoryview(bytes(24))), "out"),
        Placed(Tensor("c", "FP32", (3, 2), b""), "out", 512),
    ]
    text, tail = text_of(codec.head(calls, inputs, room))
    assert tail == LENGTHS
    assert text["inputs"][0]["parameters"] == {
        "shared_memory_region": "in",
        "shared_memory_byte_size": 36,
        "shared_memory_offset": 256,
    }
    assert text["outputs"] == [
        {"name": "b", "parameters": {"binary_data": True}},
        {
            "name": "a",
            "parameters": {"shared_memory_region": "out", "shared_memory_byte_size": 24},
        },
        {
            "name": "c",
            "parameters": {
                "shared_memory_region": "out",
                "shared_memory_byte_size": 24,
                "shared_memory_offset": 512,
            },
        },
    ]


ANSWER = {
    "model_name": "m",
    "model_version": "7",
    "outputs": [{"name": "y", "datatype": "INT16", "shape": [3, 2]}],
}


def test_outputs_that_stand_in_shared_memory() -> None:
    codec = KserveV2({"x": (1,)})
    calls, _ = packed(codec, id="mine", parameters={"binary_data_output": True})
    answer = Message([json.dumps(ANSWER).encode()])
    outputs = codec.outputs(answer)
    assert outputs == [Tensor("y", "INT16", (3, 2), b"")]
    with pytest.raises(BadAnswerError, match="has 0 bytes"):
        codec.deal(calls, outputs, answer)
    with pytest.raises(BadAnswerError, match="has 0 bytes"):
        codec.divide(calls, answer)
    outputs[0].data = memoryview(struct.pack("<6h", 1, 2, 3, 4, 5, 6)).cast("h", (3, 2))
    first, second = codec.deal(calls, outputs, answer)
    assert text_of(Message([first.body], first.head)) == (
        {
            "id": "mine",
            "model_name": "m",
            "model_version": "7",
            "outputs": [
                {
                    "name": "y",
                    "datatype": "INT16",
                    "shape": [1, 2],
                    "parameters": {"binary_data_size": 4},
                }
            ],
        },
        struct.pack("<2h", 1, 2),
    )
    assert second.body.endswith(struct.pack("<4h", 3, 4, 5, 6))


def test_a_reply_to_one_call() -> None:
    codec = KserveV2()
    call = read(codec, [X], b"/v2/models/a%20b/versions/3/infer", id="1")
    reply = codec.reply(call, [Tensor("y", "FP32", (1, 2), struct.pack("<2f", 0.5, 1))])
    assert reply.status == 200
    assert reply.head == {b"content-type": b"application/json"}
    assert json.loads(reply.body) == {
        "id": "1",
        "model_name": "a b",
        "model_version": "3",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 1.0]}],
    }
    with pytest.raises(BadAnswerError, match="1 rows were asked"):
        codec.reply(call, [Tensor("y", "FP32", (2, 1), struct.pack("<2f", 0.5, 1))])
    with pytest.raises(BadAnswerError, match="1 rows were asked"):
        codec.reply(call, [Tensor("y", "FP32", (), struct.pack("<f", 0.5))])


def test_no_bytes_of_data_is_a_json_answer() -> None:
    codec = KserveV2()
    call = read(codec, [Given("x", "FP32", (1, 0), [])], parameters={"binary_data_output": True})
    reply = codec.divide([call], oip.serve(codec.join([call])))[0]
    assert HEADER not in reply.head
    assert json.loads(reply.body)["outputs"][0]["parameters"] == {"binary_data_size": 0}


def test_what_the_server_says_of_an_output() -> None:
    """What its data is goes to everybody; whatever else it says could be about one."""
    codec = KserveV2(binary=False)
    calls = [read(codec, [X]), read(codec, [Given("x", "INT32", (1, 2), [5, 6])])]
    answer: dict[str, Any] = {
        "model_name": "m",
        "model_version": None,
        "id": "somebody",
        "parameters": {"content_type": "np", "of": "one"},
        "outputs": [
            {
                "name": "y",
                "datatype": "BYTES",
                "shape": [2, 1],
                "parameters": {"content_type": "str", "of": "one"},
                "data": ["a", "b"],
            }
        ],
    }
    replies = codec.divide(calls, Message([json.dumps(answer).encode()]))
    for reply, text in zip(replies, ("a", "b"), strict=True):
        assert json.loads(reply.body) == {
            "model_name": "m",
            "parameters": {"content_type": "np"},
            "outputs": [
                {
                    "name": "y",
                    "datatype": "BYTES",
                    "shape": [1, 1],
                    "parameters": {"content_type": "str"},
                    "data": [text],
                }
            ],
        }


def test_half_precision_of_a_server_of_json() -> None:
    codec = KserveV2(binary=False)
    body = b'{"inputs":[{"name":"x","shape":[2],"datatype":"FP16","data":[0.5,2]}]}'
    call = codec.read(TARGET, {}, memoryview(body))
    assert call is not None
    assert call.inputs[0].data == struct.pack("<2e", 0.5, 2)
    reply = codec.divide(
        [call],
        Message([b'{"outputs":[{"name":"y","shape":[2],"datatype":"FP16","data":[0.25,null]}]}']),
    )[0]
    assert json.loads(reply.body)["outputs"][0]["data"] == [0.25, None]


def test_a_reply_changes_no_other() -> None:
    """Callers may add header lines to theirs."""
    codec = KserveV2()
    calls = [read(codec, [X]), read(codec, [X])]
    first, second = codec.divide(calls, oip.serve(codec.join(calls)))
    first.head[b"x-mine"] = b"1"
    assert b"x-mine" not in second.head
    joined = codec.join(calls)
    joined.head[b"x-mine"] = b"1"
    assert b"x-mine" not in codec.join(calls).head
