"""The openai SDK, unchanged, against a model in the gateway's own process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from gateway.config import Config, Drain, Listener, Route, Telemetry
from gateway.config_batching import Batching
from gateway.server import Server, shown
from tests.harness import eventually
from tests.tidy import ROOT
from tests.wire.embedder import NAME, POISON, UNWANTED, WIDTH, Embedder, Item, expected, tokens
from tests.wire.origin import BOUND

if TYPE_CHECKING:
    from openai.types import CreateEmbeddingResponse

# One batch at a time, and nobody waits for company: who is joined is then no matter of time.
ALONE = Batching(
    "openai_embeddings", runner="python", function=NAME, max_in_flight=1, max_delay=0.0, target=60.0
)


def config_of(batching: Batching) -> Config:
    return Config(
        clusters={},
        routes=(Route(path="/", batching=batching),),
        listen=(Listener(address="127.0.0.1:0"),),
        admin=None,
        drain=Drain(grace=0.0, timeout=BOUND),
        telemetry=Telemetry(access_log=None),
    )


class Bench:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.url = f"http://{shown(server.addresses[0])}/v1"
        self.client = openai.AsyncOpenAI(api_key="k", base_url=self.url, timeout=BOUND)

    @property
    def model(self) -> Embedder:
        return Embedder.made[-1]

    @property
    def runner(self) -> Any:
        return self.told("runner")

    def told(self, name: str) -> Any:
        (filters,) = self.server.wiring.filters.values()
        assert filters.batches is not None
        return filters.batches.batching.describe(self.server.clock.now())[name]

    async def embed(self, given: Any, **options: Any) -> CreateEmbeddingResponse:
        return await self.client.embeddings.create(model="m", input=given, **options)

    async def behind(self, *given: Item | list[str]) -> list[asyncio.Task[CreateEmbeddingResponse]]:
        """These wait in the plan, behind a call under way; the last is that one's."""
        self.model.gate.clear()
        before = len(self.model.calls)
        first = asyncio.create_task(self.embed("first"))
        await eventually(lambda: len(self.model.calls) == before + 1)
        tasks = []
        for count, each in enumerate(given, 1):
            tasks.append(asyncio.create_task(self.embed(each)))
            await eventually(partial(self._waits, count))
        return [*tasks, first]

    def _waits(self, count: int) -> bool:
        return bool(self.told("waiting") == count)


@asynccontextmanager
async def bench(batching: Batching = ALONE) -> AsyncIterator[Bench]:
    Embedder.made.clear()
    server = Server(config_of(batching))
    await server.start()
    made = Bench(server)
    await eventually(lambda: made.runner != "python, loading")
    try:
        yield made
    finally:
        for model in Embedder.made:
            model.gate.set()
        await made.client.close()
        async with asyncio.timeout(BOUND):
            await server.stop()


def check(
    answer: CreateEmbeddingResponse, items: list[Item], dimensions: int = WIDTH, **_: Any
) -> None:
    assert [each.index for each in answer.data] == list(range(len(items)))
    assert [each.embedding for each in answer.data] == [
        pytest.approx(expected(item, dimensions), rel=1e-6) for item in items
    ]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(tokens, items))
    assert answer.model == "m"


# -- what may be asked -----------------------------------------------------------------------------

INPUTS: list[tuple[Any, list[Item]]] = [
    ("one text", ["one text"]),
    (["a", "b c", "d"], ["a", "b c", "d"]),
    ([1, 2, 3], [[1, 2, 3]]),
    ([[1], [2, 3]], [[1], [2, 3]]),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"encoding_format": "float"},
    {"encoding_format": "base64"},
    {"dimensions": 3},
    {"dimensions": WIDTH, "encoding_format": "float"},
]


async def test_every_kind_of_input_and_answer() -> None:
    async with bench() as b:
        with openai.OpenAI(api_key="k", base_url=b.url, timeout=BOUND) as client:
            for given, items in INPUTS:
                for options in OPTIONS:
                    call = partial(client.embeddings.create, model="m", input=given, **options)
                    for answer in (await b.embed(given, **options), await asyncio.to_thread(call)):
                        if options.get("encoding_format") == "base64":
                            continue  # asked for by name, the SDK hands it on as it came
                        check(answer, items, **options)


async def test_base64_is_the_same() -> None:
    from base64 import b64decode

    import numpy as np

    async with bench() as b:
        answer = await b.embed(["a", "b"], encoding_format="base64")
        for each, item in zip(answer.data, ["a", "b"], strict=True):
            text: Any = each.embedding
            assert np.frombuffer(b64decode(text), "<f4").tolist() == expected(item)


async def test_64_at_once_are_a_few_calls() -> None:
    async with bench() as b:
        texts: list[Item | list[str]] = [f"text {n}" for n in range(62)]
        tasks = await b.behind(*texts, ["two", "together"])
        b.model.gate.set()
        for text, task in zip(texts, tasks, strict=False):
            check(await task, [text])  # type: ignore[list-item]
        check(await tasks[-2], ["two", "together"])
        check(await tasks[-1], ["first"])
        assert [len(call) for call in b.model.calls] == [1, 64]


async def test_64_that_come_as_they_will() -> None:
    async with bench(Batching("openai_embeddings", runner="python", function=NAME)) as b:
        answers = await asyncio.gather(*(b.embed(f"text {n}") for n in range(64)))
        for n, answer in enumerate(answers):
            check(answer, [f"text {n}"])
        assert sum(len(call) for call in b.model.calls) == 64


async def test_keys_and_dimensions_part_callers() -> None:
    async with bench() as b:
        others = [b.client.with_options(api_key=key) for key in ("x", "y")]
        b.model.gate.clear()
        tasks = [asyncio.create_task(b.embed("first"))]
        await eventually(lambda: len(b.model.calls) == 1)
        asked = [each.embeddings.create(model="m", input="same") for each in others]
        tasks += map(asyncio.create_task, [*asked, b.embed("same", dimensions=2)])
        await eventually(lambda: b.told("waiting") == 3)
        b.model.gate.set()
        for task, options in zip(tasks[1:], ({}, {}, {"dimensions": 2}), strict=True):
            check(await task, ["same"], **options)
        assert b.model.calls == [["first"], ["same"], ["same"], ["same"]]
        assert (await tasks[0]).usage.prompt_tokens == 1


# -- what goes wrong -------------------------------------------------------------------------------


async def test_a_poison_text_is_its_callers_alone() -> None:
    async with bench() as b:
        tasks = await b.behind("a", POISON, "c", UNWANTED, ["d", "e"])
        b.model.gate.set()
        with pytest.raises(openai.InternalServerError) as error:
            await tasks[1]
        assert error.value.status_code == 500
        assert error.value.body == {
            "message": "the model function failed", "type": "server_error", "param": None,
            "code": None,
        }  # fmt: skip
        with pytest.raises(openai.BadRequestError) as unwanted:
            await tasks[3]
        assert unwanted.value.body["message"] == "unwanted, among 1"  # type: ignore[index]
        for at, items in ((0, ["a"]), (2, ["c"]), (4, ["d", "e"]), (5, ["first"])):
            check(await tasks[at], list(items))
        assert [POISON] in b.model.calls
        assert b.model.calls.count([POISON]) == 1  # the SDK asks again, unless it is told not to


@pytest.mark.parametrize(
    ("given", "options", "word"),
    [
        ("", {}, "empty"),
        ([], {}, "empty"),
        (["a", ""], {}, "empty"),
        ([[]], {}, "empty"),
        (["a", 1], {}, "mixture"),
        ([-1], {}, "input"),
        ({"a": 1}, {}, "input"),
        ("a", {"encoding_format": "hex"}, "encoding_format"),
        ("a", {"dimensions": WIDTH + 1}, f"1 to {WIDTH}"),
        ("a", {"dimensions": 0}, f"1 to {WIDTH}"),
        ("a", {"extra_body": {"dimensions": "x"}}, f"1 to {WIDTH}"),
    ],
)
async def test_the_callers_mistakes(given: Any, options: dict[str, Any], word: str) -> None:
    async with bench() as b:
        with pytest.raises(openai.BadRequestError) as error:
            await b.embed(given, **options)
        assert word in error.value.message
        check(await b.embed("good"), ["good"])


async def test_what_is_too_much() -> None:
    async with bench(Batching(**{**_fields(ALONE), "max_rows": 3, "max_request": 2048})) as b:
        for given in (["a"] * 4, "a" * 3000):
            with pytest.raises(openai.APIStatusError) as error:
                await b.embed(given)
            assert error.value.status_code == 413
            assert "at most 3 rows" in error.value.message
        check(await b.embed(["a"] * 3), ["a"] * 3)


async def test_there_is_nothing_but_embeddings() -> None:
    async with bench() as b:
        with pytest.raises(openai.InternalServerError) as error:
            await b.client.models.list()
        assert error.value.status_code == 501
        assert error.value.response.headers["x-should-retry"] == "false"


# -- its life --------------------------------------------------------------------------------------


def _fields(batching: Batching) -> dict[str, Any]:
    return {name: getattr(batching, name) for name in batching.__struct_fields__}


def named(function: str) -> Batching:
    return Batching(**{**_fields(ALONE), "function": function})


async def test_a_function_that_is_missing_and_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "comes_later", raising=False)
    caplog.set_level(logging.INFO, "tailrace")
    config = named("comes_later:embed")
    async with bench(config) as b:
        (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert "no model" in line.message
        assert "no module 'comes_later'" in line.message
        assert b.runner == "python, failed to load"
        with pytest.raises(openai.InternalServerError) as error:
            await b.client.with_options(max_retries=0).embeddings.create(model="m", input="a")
        assert error.value.status_code == 503
        assert "comes_later" not in error.value.message
        (tmp_path / "comes_later.py").write_text(
            "def embed(texts):\n    return [[2.0]] * len(texts)"
        )
        assert await b.server.reload(config_of(config))
        await eventually(lambda: b.runner == "python")
        assert (await b.embed("a")).data[0].embedding == [2.0]
        assert str(tmp_path / "comes_later.py") in caplog.text
    sys.modules.pop("comes_later", None)


async def test_a_reload_leaves_the_model_alone() -> None:
    async with bench() as b:
        tasks = await b.behind("a")
        assert await b.server.reload(config_of(ALONE))
        b.model.gate.set()
        check(await tasks[0], ["a"])
        assert len(Embedder.made) == 1


async def test_a_reload_with_another_function() -> None:
    """Who has been taken in is answered by the old one, who comes afterwards by the new."""
    async with bench() as b:
        old = b.model
        tasks = await b.behind("a")
        assert await b.server.reload(config_of(named("tests.wire.embedder:Embedder.made.clear")))
        await eventually(lambda: b.runner == "python")
        assert await b.server.reload(config_of(named(f"{NAME}")))
        await eventually(lambda: len(Embedder.made) > 0 and b.runner == "python")
        assert b.model is not old
        check(await b.embed("new"), ["new"])
        assert b.model.calls == [["new"]]
        old.gate.set()
        check(await tasks[0], ["a"])
        check(await tasks[1], ["first"])
        assert old.calls == [["first"], ["a"]]


async def test_a_drain_waits_for_the_model() -> None:
    async with bench() as b:
        tasks = await b.behind("a", POISON)
        drained = b.server.drain()
        b.model.gate.set()
        check(await tasks[0], ["a"])
        with pytest.raises(openai.InternalServerError):
            await tasks[1]
        check(await tasks[2], ["first"])
        await b.client.close()
        assert await drained


FILE = """
listen: 127.0.0.1:0
admin: off
clusters: {other: {endpoints: ["http://127.0.0.1:9"]}}
telemetry: {access_log: off}
drain: {grace: 0s, timeout: 5s}
routes: [{batching: {format: openai_embeddings, runner: python, function: "model_here:Model"}}]
"""
MODEL = """
import threading
import sibling

class Model:
    def __call__(self, texts):
        return [[sibling.VALUE, len(text)] for text in texts]
"""


async def test_a_model_beside_the_configuration(tmp_path: Path) -> None:
    """``tailrace run``, as its users start it: from elsewhere, and the folder is on no path. A
    file with the name of a module that the gateway uses does no harm."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/tailrace.yaml").write_text(FILE)
    (tmp_path / "conf/model_here.py").write_text(MODEL)
    (tmp_path / "conf/sibling.py").write_text("VALUE = 7.0")
    (tmp_path / "conf/numpy.py").write_text("1 / 0")
    program = Path(sys.executable).with_name("tailrace")
    command = [sys.executable, str(program), "run", "conf/tailrace.yaml"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(BOUND):
            line = (await process.stdout.readline()).decode()
            assert line.startswith("listening on "), line + (await process.stderr.read()).decode()
            url = f"http://{line.removeprefix('listening on ').strip()}/v1"
            async with openai.AsyncOpenAI(api_key="k", base_url=url) as client:
                answer = await client.embeddings.create(model="m", input=["a", "bcd"])
            assert [each.embedding for each in answer.data] == [[7.0, 1.0], [7.0, 3.0]]
            process.send_signal(signal.SIGTERM)
            log = (await process.stderr.read()).decode()
            assert await process.wait() == 0, log
            assert "model model_here:Model of" in log
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
