"""Finding the function of ``runner: python``, and what becomes of jobs until it is there."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy")

from gpu_batcher.api import NoAnswerError
from gpu_batcher.model_function import LoadError, load
from tests.batcher.shared_server import answered
from tests.batcher.test_python_runner import double, job_of, running


class Model:
    def __call__(self, arrays: Any) -> Any:
        return double(arrays)

    def method(self, arrays: Any) -> Any:
        return arrays


class Broken:
    def __init__(self) -> None:
        raise ValueError("no weights")


MODEL = Model()


def test_loading() -> None:
    assert load("math:sqrt")(4) == 2
    assert isinstance(load(f"{__name__}:Model"), Model)
    assert load(f"{__name__}:MODEL.method")(3) == 3


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("math", "expected module:function"),
        (":f", "expected module:function"),
        ("math:", "expected module:function"),
        ("no_such_module.here:f", "no module 'no_such_module'"),
        ("math:nothing", "no 'nothing' in it"),
        ("math:pi", "not callable"),
        (f"{__name__}:Broken", "making one failed: ValueError: no weights"),
        ("broken_module:f", "importing the module failed: ZeroDivisionError"),
        ("ends_the_process:f", "importing the module failed: SystemExit: 3"),
    ],
)
def test_what_cannot_be_loaded(
    name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("1 / 0")
    (tmp_path / "ends_the_process.py").write_text("import sys; sys.exit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LoadError) as error:
        load(name)
    assert why in str(error.value)
    assert name in str(error.value)


def test_a_module_that_has_only_just_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LoadError, match="no module"):
        load("has_just_come:f")
    (tmp_path / "has_just_come.py").write_text("def f(given): return given")
    assert load("has_just_come:f")(7) == 7
    del sys.modules["has_just_come"]


async def test_jobs_wait_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    class Slow:
        def __init__(self) -> None:
            self.thread = threading.current_thread()
            go_on.wait()

        def __call__(self, arrays: Any) -> Any:
            assert threading.current_thread() is self.thread
            return double(arrays)

    module = types.ModuleType("slow_model")
    module.Slow = Slow  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "slow_model", module)
    async with running("slow_model:Slow") as (runner, pool):
        task = asyncio.create_task(runner.run(job_of([[1]])))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
        assert (runner.failed, runner.name) == (False, "python, loading")
        assert pool is not None
        assert pool.in_use == 0
        go_on.set()
        assert [answered(each) for each in await task] == [[[3]]]


async def test_a_model_that_cannot_be_loaded(caplog: pytest.LogCaptureFixture) -> None:
    async with running("math:nothing") as (runner, _):
        with pytest.raises(LoadError):
            await runner.ready()
        with pytest.raises(NoAnswerError) as none:
            await runner.run(job_of([[1]]))
        assert isinstance(none.value.cause, LoadError)
        assert not none.value.begun
        assert (runner.failed, runner.name) == (True, "python, failed to load")
    (record,) = caplog.records
    assert "no model" in record.message


async def test_what_is_loaded_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tailrace")
    async with running(f"{__name__}:Model") as (runner, _):
        await runner.ready()
        assert (runner.failed, runner.name) == (False, "python")
    assert __file__ in caplog.text
