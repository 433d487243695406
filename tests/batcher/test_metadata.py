"""What a model says of its outputs, and which of them get a place."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gpu_batcher import metadata
from gpu_batcher.layout import make
from gpu_batcher.metadata import Model, Models, Output, expected
from gpu_batcher.packing import Packing, Rule
from tests.batcher.batches import calls_of

SCORE = Output("score", "FP32", (-1, 3))
TEXT = Output("text", "BYTES", (-1, 1))
LIKE = Output("like", "FP16", (-1, -1, 2))
MODEL = Model("m", "")


def found(
    outputs: list[Output], named: list[str], packing: Packing | None = None, **follows: str
) -> dict[str, tuple[int, ...]]:
    packing = packing or Packing("pad", rules={"x": Rule((1,))})
    layout = make(calls_of([(1, 2), (2, 5)]), packing, 4096)
    return {each.name: each.shape for each in expected(outputs, named, layout, packing, follows)}


def test_all_or_none_where_none_is_named() -> None:
    assert found([SCORE], []) == {"score": (3, 3)}
    assert found([SCORE, TEXT], []) == {}
    assert found([SCORE, TEXT], ["text", "score"]) == {"score": (3, 3)}
    assert found([SCORE, TEXT], ["text"]) == {}


def test_padded_like_an_input() -> None:
    assert found([LIKE], []) == {}
    assert found([LIKE], [], like="x") == {"like": (3, 5, 2)}
    assert found([LIKE], [], like="nobody") == {}
    assert found([Output("like", "FP16", (-1, 2, -1))], [], like="x") == {}
    ragged = Packing("ragged", rules={"x": Rule((1,))})
    assert found([SCORE], [], ragged, score="x") == {"score": (12, 3)}
    assert found([LIKE], [], ragged, like="x") == {}


@pytest.mark.parametrize("shape", [(), (4, 3), (-1, 0), (-1, -1)])
def test_sizes_that_are_not_known(shape: tuple[int, ...]) -> None:
    assert found([Output("score", "FP32", shape)], []) == {}


def test_paths() -> None:
    assert Model("a/../b?", "1").path == "/v2/models/a%2F..%2Fb%3F/versions/1"
    assert MODEL.path == "/v2/models/m"


class Told:
    """A server that says ``answers`` one after the other."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.paths: list[str] = []

    async def __call__(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        self.paths.append(f"{method} {path}")
        await asyncio.sleep(0)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode())


SAID = {"name": "m", "outputs": [{"name": "score", "datatype": "FP32", "shape": [-1, 3]}]}


async def test_asked_once_and_beside_the_work() -> None:
    told = Told(SAID)
    models = Models(told)
    assert list(models.outputs(MODEL)) == list(models.outputs(MODEL)) == []
    await models.asked()
    assert list(models.outputs(MODEL)) == [SCORE]
    assert told.paths == ["GET /v2/models/m"]


@pytest.mark.parametrize(
    "failure", [OSError("gone"), (404, b"{}"), (200, b"?"), (200, b"{}"), {"outputs": [{}]}]
)
async def test_a_failure_is_forgotten(failure: Any) -> None:
    models = Models(Told(failure, SAID))
    for _ in range(2):
        assert not models.outputs(MODEL)
        await models.asked()
    assert models.outputs(MODEL)


async def test_distrusted_until_the_server_is_another() -> None:
    told = Told(SAID, SAID)
    models = Models(told)
    models.outputs(MODEL)
    await models.asked()
    models.distrust(MODEL)
    assert not models.outputs(MODEL)
    assert len(told.paths) == 1
    models.forget()
    models.outputs(MODEL)
    await models.asked()
    assert models.outputs(MODEL)


async def test_forgetting_in_the_middle_of_a_question() -> None:
    models = Models(Told(SAID, SAID))
    models.outputs(MODEL)
    await asyncio.sleep(0)
    models.forget()
    await asyncio.sleep(0)
    assert not models.outputs(MODEL)
    await models.asked()
    assert models.outputs(MODEL)
    models.close()


async def test_names_from_requests_take_no_memory_without_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metadata, "MOST_MODELS", 5)
    models = Models(Told(*[SAID] * 30))
    for start in range(0, 30, 3):
        for at in range(start, start + 3):
            models.outputs(Model(str(at), ""))
        await models.asked()
        assert len(models._known) <= 5
