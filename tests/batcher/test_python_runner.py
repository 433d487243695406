"""A model in this process: what it is given, what it may return, and what becomes of buffers."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

np = pytest.importorskip("numpy")

from gpu_batcher import python_runner  # noqa: E402
from gpu_batcher.api import (  # noqa: E402
    BadAnswerError,
    BadRequestError,
    Call,
    Codec,
    FailedError,
    Job,
    NoAnswerError,
)
from gpu_batcher.buffers import Pool  # noqa: E402
from gpu_batcher.codecs.kserve_v1 import KServeV1  # noqa: E402
from gpu_batcher.codecs.kserve_v2 import KserveV2  # noqa: E402
from gpu_batcher.codecs.openai_embeddings import OpenAiEmbeddings  # noqa: E402
from gpu_batcher.device import CupyDevice, HostDevice  # noqa: E402
from gpu_batcher.packing import Packing, Rule  # noqa: E402
from gpu_batcher.python_runner import PythonRunner  # noqa: E402
from tests.batcher.fake_cupy import FakeCupy  # noqa: E402
from tests.batcher.shared_server import answered, binary, twice  # noqa: E402

CODEC = KserveV2({"x": (1,)})
PACKING = Packing("pad", rules={"x": Rule((1,))})
JSON = {b"content-type": b"application/json"}


def double(arrays: dict[str, Any]) -> dict[str, Any]:
    return {"y": 2 * arrays["x"] + 1}


@asynccontextmanager
async def running(
    function: Any, codec: Codec = CODEC, packing: Packing = PACKING, **options: Any
) -> AsyncIterator[tuple[PythonRunner, Pool[Any] | None]]:
    device = options.pop("device", None) or HostDevice()
    pool = Pool([device.allocate(1024) for _ in range(2)]) if codec is CODEC else None
    options.setdefault("follows", {"y": "x"})
    runner = PythonRunner(codec, packing, pool, device, function, **options)
    try:
        yield runner, pool
    finally:
        await runner.close()
        assert pool is None or pool.in_use == 0


def job_of(*given: list[list[int]]) -> Job:
    return Job([binary(CODEC, rows) for rows in given], [None] * len(given))


def call_of(codec: Codec, target: bytes, **fields: Any) -> Call:
    call = codec.read(target, JSON, memoryview(json.dumps(fields).encode()))
    assert call is not None
    return call


# -- tensors -----------------------------------------------------------------------------------


async def test_padded_in_and_cut_out() -> None:
    shapes = []

    def function(arrays: dict[str, Any]) -> dict[str, Any]:
        shapes.append(arrays["x"].shape)
        return double(arrays)

    async with running(function) as (runner, _):
        given = [[[1]], [[2, 3, 4], [5, 6, 7]]]
        job = job_of(*given)
        replies = await runner.run(job)
        assert [answered(each) for each in replies] == [twice(rows) for rows in given]
        assert shapes == [(3, 3)]
        assert job.padding == 2 / 9


async def test_one_array_is_called_output() -> None:
    async with running(lambda arrays: arrays["x"]) as (runner, _):
        (reply,) = await runner.run(job_of([[1, 2]]))
        assert b'"output"' in reply.body


async def test_what_it_returns_is_copied() -> None:
    """The function returns its very input, and the buffer is packed again before the reply."""
    async with running(lambda arrays: {"y": arrays["x"]}, threads=2) as (runner, _):
        given = [[[at, at]] for at in range(50)]
        replies = await asyncio.gather(*(runner.run(job_of(rows)) for rows in given))
        assert [answered(each[0]) for each in replies] == given


async def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy(None))

    class OnDevice:
        """As a CuPy array looks from outside."""

        __cuda_array_interface__: dict[str, Any] = {}  # noqa: RUF012

        def __init__(self, array: Any) -> None:
            self.array = array

        def get(self) -> Any:
            return self.array

    def function(arrays: dict[str, Any]) -> dict[str, Any]:
        sys.modules["cupy"].cuda.get_current_stream().synchronize()
        return {"y": OnDevice(2 * arrays["x"] + 1)}

    async with running(function, device=CupyDevice()) as (runner, _):
        given = [[[1]], [[2, 3, 4], [5, 6, 7]]]
        replies = await runner.run(job_of(*given))
        assert [answered(each) for each in replies] == [twice(rows) for rows in given]


@pytest.mark.parametrize(
    "result",
    [
        {},
        None,
        {"y": 3},
        {"y": [[1, 2]] * 3},
        {"y": [[1], [2, 3]]},
        {"y": object()},
        {"y": np.array([[1j, 2j]] * 2)},
        {"y": np.array([{}, {}])},
        {1: np.zeros((2, 2))},
        {"z": np.zeros((3, 2)), "y": np.zeros((2, 2))},
    ],
)
async def test_what_is_no_answer(result: Any) -> None:
    async with running(lambda _: result) as (runner, _):
        with pytest.raises(BadAnswerError):
            await runner.run(job_of([[1, 2]], [[3, 4]]))


@pytest.mark.parametrize(
    ("kind", "datatype"),
    [
        (">f8", "FP64"),
        ("f2", "FP16"),
        ("?", "BOOL"),
        ("u1", "UINT8"),
        ("<i8", "INT64"),
        ("O", "BYTES"),
    ],
)
async def test_datatypes(kind: str, datatype: str) -> None:
    values: Any = [b"a", "\u00e9"] if kind == "O" else [1, 0]
    async with running(lambda _: {"z": np.array(values, kind).reshape(2, 1)}) as (runner, _):
        one, other = await runner.run(job_of([[1]], [[2]]))
        text, tail = one.body.split(b"]}", 1)
        assert f'"{datatype}"'.encode() in text + tail
        assert len(one.body) > 0
        expected = {"BYTES": b"\x02\0\0\0\xc3\xa9", "FP64": bytes(8), "BOOL": b"\0"}
        assert other.body.endswith(expected.get(datatype, b""))


# -- failures ----------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[[Any], Any]:
    def function(_: Any) -> Any:
        raise error

    return function


@pytest.mark.parametrize(
    "error", [ValueError("/secret/path"), KeyError("x"), SystemExit(3), StopIteration()]
)
async def test_its_words_are_for_the_log(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(raising(error)) as (runner, _):
        with pytest.raises(FailedError) as failed:
            await runner.run(job_of([[1]]))
        answer = failed.value.answer
        assert (answer.status, answer.joined()) == (500, b'{"error":"the model function failed"}')
        assert type(error).__name__ in caplog.text
        with pytest.raises(FailedError):
            await runner.run(job_of([[1]]))


async def test_a_callers_fault_is_told_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    codec = OpenAiEmbeddings()
    call = call_of(codec, b"/v1/embeddings", model="m", input="a")
    for using, job in ((CODEC, job_of([[1]])), (codec, Job([call], [None]))):
        async with running(raising(BadRequestError("too long")), using) as (runner, _):
            with pytest.raises(FailedError) as failed:
                await runner.run(job)
            assert failed.value.answer.status == 400
            told = json.loads(failed.value.answer.joined())["error"]
            assert (told if using is CODEC else told["message"]) == "too long"
    assert not caplog.records


@pytest.mark.parametrize(
    "error", [MemoryError(), type("OutOfMemoryError", (RuntimeError,), {})("/secret")]
)
async def test_no_memory_is_no_callers_fault(error: Exception) -> None:
    async with running(raising(error)) as (runner, _):
        with pytest.raises(NoAnswerError) as none:
            await runner.run(job_of([[1]]))
        assert "secret" not in str(none.value)


async def test_a_buffer_comes_back_when_the_function_returns() -> None:
    began, go_on = threading.Event(), threading.Event()

    def function(arrays: dict[str, Any]) -> dict[str, Any]:
        began.set()
        go_on.wait()
        return double(arrays)

    async with running(function) as (runner, pool):
        assert pool is not None
        first = asyncio.create_task(runner.run(job_of([[1]])))
        await asyncio.to_thread(began.wait)
        second = asyncio.create_task(runner.run(job_of([[2]])))
        while pool.in_use < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        await asyncio.wait([first, second])
        await asyncio.sleep(0)
        assert pool.in_use == 1  # The second had not begun, and never does.
        go_on.set()
        async with asyncio.timeout(60):
            while pool.in_use:  # noqa: ASYNC110 - a thread's doing
                await asyncio.sleep(0)


async def test_a_function_that_never_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_runner, "FAREWELL", 0.01)
    began, go_on = threading.Event(), threading.Event()

    def function(_: Any) -> Any:
        began.set()
        go_on.wait()

    device = HostDevice()
    pool = Pool([device.allocate(1024)])
    runner = PythonRunner(CODEC, PACKING, pool, device, function)
    task = asyncio.create_task(runner.run(job_of([[1]])))
    await asyncio.to_thread(began.wait)
    task.cancel()
    await asyncio.wait([task])
    await runner.close()
    assert pool.in_use == 1
    go_on.set()
    async with asyncio.timeout(60):
        while pool.in_use:  # noqa: ASYNC110 - a thread's doing
            await asyncio.sleep(0)
    with pytest.raises(NoAnswerError):
        await runner.run(job_of([[1]]))


# -- items -------------------------------------------------------------------------------------


async def test_embeddings() -> None:
    codec = OpenAiEmbeddings()
    given = []

    def function(texts: list[str]) -> list[list[float]]:
        given.append(texts)
        return [[float(len(text)), 0.5] for text in texts]

    calls = [
        call_of(codec, b"/v1/embeddings", model="m", input=texts) for texts in (["a", "bb"], "ccc")
    ]
    async with running(function, codec) as (runner, _):
        replies = await runner.run(Job(calls, [None] * 2))
    assert given == [["a", "bb", "ccc"]]
    found = [[each["embedding"] for each in json.loads(reply.body)["data"]] for reply in replies]
    assert found == [[[1.0, 0.5], [2.0, 0.5]], [[3.0, 0.5]]]


async def test_token_ids_and_counts() -> None:
    codec = OpenAiEmbeddings()

    def function(items: list[list[int]]) -> dict[str, Any]:
        assert items == [[1, 2], [3]]
        return {"embedding": np.ones((2, 3)), "prompt_tokens": np.array([2, 1])}

    calls = [call_of(codec, b"/v1/embeddings", model="m", input=ids) for ids in ([1, 2], [[3]])]
    async with running(function, codec) as (runner, _):
        replies = await runner.run(Job(calls, [None] * 2))
    assert [json.loads(each.body)["usage"]["prompt_tokens"] for each in replies] == [2, 1]


async def test_instances() -> None:
    codec = KServeV1()
    target = b"/v1/models/m:predict"
    calls = [
        call_of(codec, target, instances=[{"a": 2**60}]),
        call_of(codec, target, instances=[5, "x"]),
    ]
    assert isinstance(calls[0].items[0], msgspec.Raw)

    def function(items: list[Any]) -> list[str]:
        assert items == [{"a": 2**60}, 5, "x"]
        return [str(item) for item in items]

    async with running(function, codec) as (runner, _):
        replies = await runner.run(Job(calls, [None] * 2))
    found = [json.loads(each.body)["predictions"] for each in replies]
    assert found == [["{'a': 1152921504606846976}"], ["5", "x"]]


@pytest.mark.parametrize("result", [[1.0], [], [[1.0], [2.0, 3.0]], "text"])
async def test_items_without_a_row_each(result: Any) -> None:
    codec = OpenAiEmbeddings()
    call = call_of(codec, b"/v1/embeddings", model="m", input=["a", "b"])
    async with running(lambda _: result, codec) as (runner, _):
        with pytest.raises(BadAnswerError):
            await runner.run(Job([call], [None]))
    with pytest.raises(NoAnswerError):
        await runner.run(Job([call], [None]))
