"""The codec between the real client and the real server: what tritonclient sends is joined, sent as
one request, divided and read by tritonclient, and must be what the server answers it directly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gpu_batcher.api import SIZES, Call, Message, Reply
from gpu_batcher.codecs.kserve_v2 import KserveV2
from tests.triton.client import Answer, Asked, Triton, asked, read

DATATYPES = tuple(SIZES)
DTYPES: dict[str, type] = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32,
    "UINT64": np.uint64, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32,
    "INT64": np.int64, "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
    "BYTES": np.object_,
}  # fmt: skip
BINARY_ONLY = ("FP16", "BF16")
ROWS = (1, 3, 2, 7, 1, 16, 1)
WORDS = [b"", b"a", "h\u00e4h".encode(), b'"\\/\n', b"x" * 300, b"\x7f\x00"]


def values(datatype: str, shape: tuple[int, ...], seed: int, *, text: bool) -> Any:
    """Odd ones first, where ``seed`` lets them be there. ``text``: must survive JSON."""
    rng = np.random.default_rng(seed)
    if datatype == "BYTES":
        words = WORDS if text else [*WORDS, b"\xff\xfe"]
        return np.array(
            [words[i] for i in rng.integers(0, len(words), shape).flat], object
        ).reshape(shape)
    if datatype == "BOOL":
        return rng.random(shape) < 0.5
    if datatype == "BF16":
        from ml_dtypes import bfloat16

        return rng.choice(np.array([1.5, -0.0, 3e38, 1e-30], bfloat16), shape)
    dtype = DTYPES[datatype]
    if np.issubdtype(dtype, np.floating):
        odd = [0.1, -0.0, 1e-8, np.finfo(dtype).max, np.finfo(dtype).tiny, 1 / 3]
        odd += [] if text else [np.nan, np.inf, -np.inf]
        return rng.choice(np.array(odd, dtype), shape)
    info = np.iinfo(dtype)
    return rng.choice(np.array([info.min, info.max, 0, 1, info.max - 1], dtype), shape)


def read_calls(codec: KserveV2, requests: Sequence[Asked]) -> list[Call]:
    calls = []
    for each in requests:
        call = codec.read(each.target, each.head, memoryview(each.body))
        assert call is not None
        calls.append(call)
    return calls


async def through(triton: Triton, codec: KserveV2, requests: Sequence[Asked]) -> list[Reply]:
    """All in one inference."""
    calls = read_calls(codec, requests)
    message = codec.join(calls)
    answer = await triton.infer(requests[0].model, message.joined(), message.head)
    assert answer.status == 200, answer
    return codec.divide(calls, answer.message)


async def check_equal(triton: Triton, requests: Sequence[Asked], codec: KserveV2) -> list[Answer]:
    """Joined is as direct; returns the direct answers."""
    replies = await through(triton, codec, requests)
    direct = [await triton.ask(each) for each in requests]
    for got, expected in zip(replies, direct, strict=True):
        assert (got.status, expected.status) == (200, 200), expected.body
        assert got.head[b"content-type"] == expected.head[b"content-type"]
        assert read(got.body, got.head).agrees(read(expected.body, expected.head))
    return direct


def echoes(datatype: str, form: Sequence[tuple[bool, bool]]) -> list[Asked]:
    """One request for each of ROWS, binary or JSON in and out by turns of ``form``."""
    requests = []
    for number, rows in enumerate(ROWS):
        binary, binary_output = form[number % len(form)]
        data = values(datatype, (rows, 5), number, text=not (binary and binary_output))
        requests.append(
            asked(
                "echo",
                {f"X_{datatype}": (datatype, data)},
                outputs=[f"Y_{datatype}"],
                binary=binary,
                binary_output=binary_output,
                request_id=f"caller {number}" if number % 2 else "",
            )
        )
    return requests


@pytest.mark.parametrize("datatype", DATATYPES)
async def test_binary_callers(triton: Triton, datatype: str) -> None:
    await check_equal(triton, echoes(datatype, [(True, True)]), KserveV2())


@pytest.mark.parametrize("datatype", [each for each in DATATYPES if each not in BINARY_ONLY])
async def test_callers_of_json_and_binary_in_one_batch(triton: Triton, datatype: str) -> None:
    forms = [(False, False), (True, False), (False, True), (True, True)]
    await check_equal(triton, echoes(datatype, forms), KserveV2())


@pytest.mark.parametrize("datatype", [each for each in DATATYPES if each not in BINARY_ONLY])
async def test_a_batch_sent_as_json(triton: Triton, datatype: str) -> None:
    """As to a server that knows no binary data; this one knows both."""
    requests = echoes(datatype, [(False, False)])
    await check_equal(triton, requests, KserveV2(binary=False))


async def test_callers_who_name_no_output(triton: Triton) -> None:
    def one(number: int, rows: int) -> Asked:
        x = values("FP32", (rows, 16), number, text=True)
        return asked("elementwise", {"X": ("FP32", x)}, request_id=str(number))

    await check_equal(triton, [one(*each) for each in enumerate(ROWS)], KserveV2())


async def test_several_inputs_and_outputs(triton: Triton) -> None:
    """Of different datatypes, in another order than the model's, and one output not asked for."""
    requests = []
    for number, rows in enumerate(ROWS):
        inputs = {
            f"X_{each}": (each, values(each, (rows, width), number, text=False))
            for each, width in (("BYTES", 2), ("INT64", 3), ("BOOL", 1), ("FP16", 4))
        }
        requests.append(asked("echo", inputs, outputs=["Y_FP16", "Y_BYTES", "Y_BOOL"]))
    await check_equal(triton, requests, KserveV2())


async def test_two_inputs_with_a_mask(triton: Triton) -> None:
    requests = []
    for number, rows in enumerate(ROWS):
        x = np.arange(rows * 6, dtype=np.float32).reshape(rows, 6) + 100 * number
        inputs = {"VALUES": ("FP32", x), "MASK": ("BOOL", x % 3 > 0)}
        requests.append(asked("masked", inputs, outputs=["SUM", "DOUBLED"]))
    await check_equal(triton, requests, KserveV2())


async def test_every_caller_gets_his_own_row(triton: Triton) -> None:
    """Not compared with direct calls but with what was marked: 64 callers, one row each."""
    requests = [
        asked("elementwise", {"X": ("FP32", np.full((1, 16), number, np.float32))})
        for number in range(64)
    ]
    replies = await through(triton, KserveV2(), requests)
    got = [read(each.body, each.head).arrays["Y"] for each in replies]
    assert [each.tolist() for each in got] == [[[2 * n + 1] * 16] for n in range(64)]


async def test_a_batch_with_too_many_rows_is_refused_whole(triton: Triton) -> None:
    requests = [
        asked("elementwise", {"X": ("FP32", np.zeros((rows, 16), np.float32))}) for rows in (60, 5)
    ]
    message = KserveV2().join(read_calls(KserveV2(), requests))
    answer = await triton.infer("elementwise", message.joined(), message.head)
    assert (answer.status, "batch-size must be <= 64" in answer.error) == (400, True)


async def test_an_error_is_no_answer_to_divide(triton: Triton) -> None:
    """The chunks of a message are what is sent, so one poisoned caller spoils the joined call."""
    good = asked("poison", {"X": ("FP32", np.ones((1, 4), np.float32))})
    bad = asked("poison", {"X": ("FP32", np.full((1, 4), 1001, np.float32))})
    codec = KserveV2()
    message: Message = codec.join(read_calls(codec, [good, bad, good]))
    answer = await triton.infer("poison", message.joined(), message.head)
    assert (answer.status, "a row is poison" in answer.error) == (500, True)
    await check_equal(triton, [good, good], codec)
