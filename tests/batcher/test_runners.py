"""The http runner, against a server in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpu_batcher.api import (
    BadAnswerError,
    FailedError,
    Job,
    Message,
    NoAnswerError,
    TooLargeError,
)
from gpu_batcher.buffers import Pool
from gpu_batcher.codecs.kserve_v2 import KserveV2
from gpu_batcher.codecs.openai_embeddings import OpenAiEmbeddings
from gpu_batcher.device import HostDevice
from gpu_batcher.packing import Extra, Packing, Rule
from gpu_batcher.runners import Follows, HttpRunner, is_plain
from tests.batcher import oip
from tests.batcher.shared_server import POISON, Server, answered, binary, call_of, twice

VARIABLE = {"x": (1,)}
FOLLOWS = {"y": "x"}


def runner_of(
    server: Server, packing: Packing | None = None, size: int = 4096, follows: Follows = FOLLOWS
) -> tuple[HttpRunner, KserveV2, Pool[Any]]:
    codec, device = KserveV2(VARIABLE), HostDevice()
    pool = Pool([device.allocate(size)])
    packing = packing or Packing("pad", rules={"x": Rule((1,))})
    return HttpRunner(codec, packing, pool, device, server.send, follows), codec, pool


def text_of(message: Message) -> tuple[dict[str, Any], bytes]:
    return oip.parsed(message.head, b"".join(message.body))


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


async def test_equal_shapes_are_joined_without_a_buffer(server: Server) -> None:
    runner, codec, pool = runner_of(server)
    given = [[[1, 2]], [[3, 4], [5, 6]]]
    replies = await runner.run(Job([binary(codec, rows) for rows in given], [None] * 2))
    assert [answered(each) for each in replies] == [twice(rows) for rows in given]
    assert pool.high_water == 0
    assert server.once == [False]


async def test_padded_and_cut_again(server: Server) -> None:
    runner, codec, pool = runner_of(server)
    given = [[[1]], [[3, 4, 5], [6, 7, 8]], [[9, 10]]]
    job = Job([binary(codec, rows) for rows in given], [None] * 3)
    replies = await runner.run(job)
    assert [answered(each) for each in replies] == [twice(rows) for rows in given]
    assert job.padding == 3 / 12
    assert (pool.in_use, pool.high_water) == (0, 1)
    (message,) = server.sent
    assert all(isinstance(each, bytes) for each in message.body)
    assert text_of(message)[0]["inputs"][0]["shape"] == [4, 3]


async def test_outputs_that_follow_nothing_keep_the_padding(server: Server) -> None:
    runner, codec, _ = runner_of(server, follows={})
    replies = await runner.run(Job([binary(codec, [[1]]), binary(codec, [[2, 3]])], [None] * 2))
    assert [answered(each) for each in replies] == [[[3, 1]], [[5, 7]]]


async def test_the_body_outlives_the_buffer(server: Server) -> None:
    runner, codec, _ = runner_of(server)
    first = Job([binary(codec, [[1]]), binary(codec, [[2, 3]])], [None] * 2)
    await runner.run(first)
    kept = b"".join(server.sent[0].body)
    await runner.run(Job([binary(codec, [[7]]), binary(codec, [[8, 9]])], [None] * 2))
    assert b"".join(server.sent[0].body) == kept
    assert b"".join(server.sent[1].body) != kept


async def test_buckets_and_extra_inputs(server: Server) -> None:
    rule = Rule((1,), mask=Extra("mask", "BOOL"))
    runner, codec, _ = runner_of(server, Packing("bucket", (2, 4), {"x": rule}))
    given = [[[1, 2, 3]], [[4, 5, 6]]]
    replies = await runner.run(Job([binary(codec, rows) for rows in given], [None] * 2))
    assert [answered(each) for each in replies] == [twice(rows) for rows in given]
    text, tail = text_of(server.sent[0])
    assert [(each["name"], each["shape"]) for each in text["inputs"]] == [
        ("x", [2, 4]),
        ("mask", [2, 4]),
    ]
    assert tail[32:] == bytes([1, 1, 1, 0] * 2)


async def test_ragged_outputs_are_cut_where_the_inputs_were_joined(server: Server) -> None:
    runner, codec, _ = runner_of(server, Packing("ragged", rules={"x": Rule((1,))}))
    job = Job([binary(codec, [[1, 2]]), binary(codec, [[3, 4, 5], [6, 7, 8]])], [None] * 2)
    replies = await runner.run(job)
    assert text_of(server.sent[0])[0]["inputs"][0]["shape"] == [8]
    assert [answered(each) for each in replies] == [[[3, 5]], twice([[3, 4, 5], [6, 7, 8]])]


@pytest.mark.parametrize(
    ("mode", "buckets", "rule", "lengths", "plain"),
    [
        ("pad", (), Rule((1,)), (2, 2), True),
        ("pad", (), Rule((1,)), (2, 3), False),
        ("pad", (), Rule((1,), lengths=Extra("n")), (2, 2), False),
        ("bucket", (2, 4), Rule((1,)), (2, 2), True),
        ("bucket", (2, 4), Rule((1,)), (3, 3), False),
        ("bucket", (2, 4), Rule(), (3, 3), True),
        ("ragged", (), Rule((1,)), (2, 2), False),
        ("ragged", (), Rule(()), (2, 2), True),
    ],
)
def test_when_joining_is_enough(
    mode: Any, buckets: tuple[int, ...], rule: Rule, lengths: tuple[int, int], plain: bool
) -> None:
    codec = KserveV2(VARIABLE)
    calls = [binary(codec, [[0] * length]) for length in lengths]
    assert is_plain(calls, Packing(mode, buckets, {"x": rule})) is plain


async def test_too_much_for_a_buffer(server: Server) -> None:
    runner, codec, pool = runner_of(server, size=256)
    calls = [binary(codec, [[1] * 30]), binary(codec, [[1] * 40]), binary(codec, [[POISON]])]
    with pytest.raises(TooLargeError) as several:
        await runner.run(Job(calls, [None] * 3))
    assert "x" not in str(several.value)  # Nobody is told of another one's request.
    assert pool.in_use == 0
    assert not server.sent


async def test_too_much_alone_is_ones_own_mistake(server: Server) -> None:
    packing = Packing("bucket", (2, 512), {"x": Rule((1,))})
    runner, codec, pool = runner_of(server, packing, size=256)
    with pytest.raises(FailedError) as alone:
        await runner.run(Job([binary(codec, [[1] * 100])], [None]))
    assert alone.value.answer.status == 413
    assert "bytes" in json.loads(alone.value.answer.joined())["error"]
    assert pool.in_use == 0


async def test_failures_are_told_as_they_are(server: Server) -> None:
    runner, codec, _ = runner_of(server)
    with pytest.raises(FailedError) as failed:
        await runner.run(Job([binary(codec, [[POISON]]), binary(codec, [[1, 2]])], [None] * 2))
    assert failed.value.answer.status == 400
    server.up = False
    with pytest.raises(NoAnswerError):
        await runner.run(Job([binary(codec, [[1]])], [None]))


@pytest.mark.parametrize("shape", [[3, 2], [4, 1], [4, 3, 2], [3]])
async def test_an_output_that_does_not_follow(server: Server, shape: list[int]) -> None:
    runner, codec, _ = runner_of(server)
    server.lie = lambda answer: answer["outputs"][0].update(shape=shape)
    with pytest.raises(BadAnswerError):
        await runner.run(Job([binary(codec, [[1]]), binary(codec, [[2, 3, 4]] * 3)], [None] * 2))


async def test_a_closed_runner_refuses(server: Server) -> None:
    runner, codec, _ = runner_of(server)
    await runner.close()
    with pytest.raises(NoAnswerError) as none:
        await runner.run(Job([binary(codec, [[1]]), binary(codec, [[2, 3]])], [None] * 2))
    assert not none.value.begun


async def test_formats_without_tensors_are_joined() -> None:
    codec = OpenAiEmbeddings(upstream_base64=False)
    sent: list[Message] = []

    async def send(message: Message, job: Job, *, once: bool = False) -> Message:
        sent.append(message)
        texts = json.loads(message.joined())["input"]
        data = [{"index": at, "embedding": [float(each)]} for at, each in enumerate(texts)]
        return Message([json.dumps({"data": data}).encode()])

    runner = HttpRunner(codec, Packing(), None, HostDevice(), send)
    head = {b"content-type": b"application/json"}
    calls = []
    for texts in (["1"], ["2", "3"]):
        body = json.dumps({"input": texts, "model": "m"}).encode()
        call = codec.read(b"/v1/embeddings", head, memoryview(body))
        assert call is not None
        calls.append(call)
    replies = await runner.run(Job(calls, [None] * 2))
    found = [[each["embedding"] for each in json.loads(reply.body)["data"]] for reply in replies]
    assert found == [[[1.0]], [[2.0], [3.0]]]
    await runner.close()


async def test_json_replies_come_from_the_same_batch(server: Server) -> None:
    runner, codec, _ = runner_of(server)
    (reply,) = await runner.run(Job([call_of(codec, [[1, 2]])], [None]))
    assert json.loads(reply.body)["outputs"][0]["data"] == [3, 5]
