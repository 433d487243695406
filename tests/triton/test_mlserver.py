"""The codec and a real MLServer, which knows only JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest

from gpu_batcher.codecs.kserve_v2 import KserveV2
from loadtests.oip.install import MissingError
from loadtests.oip.mlserver import MlServer, elementwise
from tests.triton.client import Triton, asked, read
from tests.triton.test_codec import ROWS, read_calls


@pytest.fixture
async def mlserver() -> AsyncIterator[Triton]:
    """Heavy, so not installed by CI."""
    pytest.importorskip("tritonclient.http")
    try:
        server = MlServer([elementwise(), elementwise("elementwise_batched", batched=True)])
    except MissingError as why:
        pytest.skip(str(why))
    async with server:
        yield Triton(server)


@pytest.mark.parametrize("model", ["elementwise", "elementwise_batched"])
async def test_joined_is_as_direct(mlserver: Triton, model: str) -> None:
    requests = []
    for number, rows in enumerate(ROWS):
        x = np.full((rows, 16), number, np.float32) + np.float32(0.1)
        given = {"X": ("FP32", x)}
        requests.append(asked(model, given, binary=False, request_id=f"caller {number}"))
    codec = KserveV2(binary=False)
    calls = read_calls(codec, requests)
    message = codec.join(calls)
    answer = await mlserver.infer(model, message.joined(), message.head)
    assert answer.status == 200, answer
    for request, reply in zip(requests, codec.divide(calls, answer.message), strict=True):
        direct = await mlserver.ask(request)
        mine, its = read(reply.body, reply.head), read(direct.body, direct.head)
        assert (mine.fields["id"], mine.fields["model_name"]) == (its.fields["id"], model)
        assert mine.arrays["Y"].tobytes() == its.arrays["Y"].tobytes()


async def test_binary_bodies_are_refused(mlserver: Triton) -> None:
    fine = asked("elementwise", {"X": ("FP32", np.zeros((1, 16), np.float32))})
    assert (await mlserver.ask(fine)).status == 422
