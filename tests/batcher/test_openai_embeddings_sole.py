"""A model in this process: no server sees to ``dimensions``, or says what is wrong."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from typing import Any

import pytest

from gpu_batcher.api import BadRequestError, Call, Tensor
from gpu_batcher.codecs.openai_embeddings import OpenAiEmbeddings

CODEC = OpenAiEmbeddings()


def call(**fields: Any) -> Call:
    found = CODEC.read(b"/v1/embeddings", {}, memoryview(json.dumps(fields).encode()))
    assert found is not None
    return found


def test_dimensions_are_seen_to() -> None:
    outputs = [Tensor("e", "FP32", (2, 3), struct.pack("<6f", 3, 4, 12, 0, 0, 9))]
    body = json.loads(CODEC.reply(call(input=["a", "b"], dimensions=2), outputs).body)
    assert [each["embedding"] for each in body["data"]] == [[0.6, 0.8], [0, 0]]
    body = json.loads(CODEC.reply(call(input=["a", "b"], dimensions=3), outputs).body)
    assert [each["embedding"] for each in body["data"]] == [[3, 4, 12], [0, 0, 9]]
    body = json.loads(CODEC.reply(call(input=["a", "b"], dimensions=None), outputs).body)
    assert len(body["data"][0]["embedding"]) == 3
    mine = call(input=["a", "b"], dimensions=2, encoding_format="base64")
    body = json.loads(CODEC.reply(mine, outputs).body)
    assert body["data"][0]["embedding"] == b64encode(struct.pack("<2f", 0.6, 0.8)).decode()
    for wrong in (0, 4, -1, 1.5, "2", [2], True, 10**30):
        reply = CODEC.reply(call(input=["a", "b"], dimensions=wrong), outputs)
        assert reply.status == 400
        assert "1 to 3" in json.loads(reply.body)["error"]["message"]


@pytest.mark.parametrize(
    "fields", [{"input": ""}, {"input": []}, {"input": ["a", ""]}, {"input": [[1], []]},
               {"input": "a", "encoding_format": "hex"}],
)  # fmt: skip
def test_without_a_server_nobody_else_says_what_is_wrong(fields: dict[str, object]) -> None:
    body = memoryview(json.dumps(fields).encode())
    assert CODEC.read(b"/v1/embeddings", {}, body) is None
    with pytest.raises(BadRequestError):
        OpenAiEmbeddings(sole=True).read(b"/v1/embeddings", {}, body)
