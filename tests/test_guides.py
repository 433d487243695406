"""What the guides promise, tried: the quick start's demo, and the programs against stand-ins."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from filters.retry import Config as Retry
from gateway.config import Config, Listener
from gateway.config_source import load
from gateway.demo_servers import ModelServer
from gateway.server import Server
from tests.documents import Block, blocks, complete
from tests.harness import gateway
from tests.tidy import ROOT

HOWTO = ROOT / "docs" / "howto"
BOUND = 60.0
LENGTH = "Inference-Header-Content-Length"


def program(path: Path, which: int = 0) -> str:
    found = [each for each in blocks(path) if each.kind == "python" and not each.name]
    return found[which].text


async def ran(code: str, port: int) -> list[str]:
    """Run a program of a guide, in a thread, against this port in place of the guide's; what it
    printed."""
    assert "127.0.0.1:8080" in code
    printed: list[str] = []

    def show(*values: object, end: str = "\n") -> None:
        printed.append(" ".join(map(str, values)) + end)

    text = code.replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    shown = compile(text, "guide", "exec")
    async with asyncio.timeout(BOUND):
        await asyncio.to_thread(exec, shown, {"print": show, "__name__": "guide"})
    return printed


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[int]:
    """A configuration of a guide on a port that is free, without its admin listener."""
    listen = (Listener(address="127.0.0.1:0"),)
    server = Server(msgspec.structs.replace(config, listen=listen, admin=None))
    await server.start()
    try:
        address = server.addresses[0]
        assert not isinstance(address, str)
        yield address[1]
    finally:
        await server.stop()


# -- the quick start -------------------------------------------------------------------------------


async def test_the_quick_start_shows_a_failure_and_contains_it() -> None:
    """Step by step: the addresses are told, the page is there, a server that fails is out with a
    sentence why, the callers hardly notice, Ctrl-C ends it."""
    told = "gateway http://127.0.0.1:PORT   admin http://127.0.0.1:PORT"
    assert told in (ROOT / "docs" / "quickstart.md").read_text()
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "demo"), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert demo.stdout is not None
    try:
        async with asyncio.timeout(BOUND):
            first = (await demo.stdout.readline()).decode()
            found = re.match(told.replace("PORT", r"(\d+)"), first)
            assert found, first
            admin = f"http://127.0.0.1:{found[2]}"
            why, page = await failing(admin)
            top = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", "top", admin, "--once"),
                cwd=ROOT, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            seen = (await top.communicate())[0].decode()
            by_hand = [await posted(admin, what) for what in ("eject", "restore")]
            demo.send_signal(signal.SIGINT)
            rest = (await demo.stdout.read()).decode()
            assert await demo.wait() == 0, "too many callers failed"
    finally:
        if demo.returncode is None:
            demo.kill()
            await demo.wait()
    assert why
    assert "<!doctype html>" in page.lower()
    assert "seen by callers" in rest
    assert "127.0.0.1" in seen
    assert by_hand[0] in (200, 409)  # one of the others may be out just then
    assert by_hand[1] == 200


async def failing(admin: str) -> tuple[str, str]:
    """(why, page), once one server of the demo is out."""
    html = {"Accept": "text/html"}
    async with aiohttp.ClientSession() as session:
        async with session.get(admin, headers=html) as answer:
            page = await answer.text()
        while True:
            async with session.get(f"{admin}/clusters") as answer:
                (cluster,) = (await answer.json())["clusters"].values()
            ends = cluster["endpoints"]
            out = [each for each in _each(ends) if each["state"] in ("ejected", "unhealthy")]
            if out:
                return out[0]["why"], page
            await asyncio.sleep(0.1)


async def posted(admin: str, what: str) -> int:
    """Eject or restore the first endpoint, as the guide says; the status."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{admin}/clusters") as answer:
            ((name, cluster),) = (await answer.json())["clusters"].items()
        (first, *_) = _each(cluster["endpoints"])
        url = f"{admin}/clusters/{name}/endpoints/{first['endpoint']}/{what}"
        async with session.post(url) as answer:
            return answer.status


def _each(ends: Any) -> list[Any]:
    return list(ends.values()) if isinstance(ends, dict) else list(ends)


# -- the programs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [ROOT / "docs" / "quickstart.md", HOWTO / "vllm.md"], ids=lambda path: path.name
)
async def test_the_chat_programs_get_an_answer(path: Path) -> None:
    pytest.importorskip("openai")
    model = ModelServer("a", Random(1))
    await model.start()
    try:
        async with gateway(model.url, retry=Retry()) as g:
            printed = await ran(program(path), g.server.addresses[0][1])  # type: ignore[arg-type]
    finally:
        await model.stop()
    assert "token0" in "".join(printed)


async def test_the_embedding_program_is_answered_by_the_model_in_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    found = blocks(HOWTO / "embeddings.md")
    (model,) = [each for each in found if each.name == "my_model.py"]
    (tmp_path / model.name).write_text(model.text)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = shown_config(found, "runner: python", tmp_path)
    async with running(config) as port:
        printed = await ran(program(HOWTO / "embeddings.md"), port)
    assert printed == ["2 8\n"]


async def test_the_triton_program_is_answered(tmp_path: Path) -> None:
    pytest.importorskip("tritonclient.http")
    found = blocks(HOWTO / "triton.md")
    async with oip() as url:
        text = "runner: system_shared_memory"
        block = next(each for each in found if text in each.text)
        http = block.text.replace(text, "runner: http").replace("http://127.0.0.1:8000", url)
        (tmp_path / "shown.yaml").write_text(complete(http))
        async with running(load(tmp_path / "shown.yaml")) as port:
            printed = await ran(program(HOWTO / "triton.md"), port)
    assert re.findall(r"[\d.]+", "".join(printed)) == ["3."] * 16


def shown_config(found: list[Block], part: str, folder: Path) -> Config:
    (block,) = [each for each in found if each.kind == "config" and part in each.text]
    (folder / "shown.yaml").write_text(complete(block.text))
    return load(folder / "shown.yaml", env={})


@asynccontextmanager
async def oip() -> AsyncIterator[str]:
    """A model server of the Open Inference Protocol: Y = 2 X + 1, FP32, answered in JSON."""
    np = pytest.importorskip("numpy")

    async def infer(request: web.Request) -> web.Response:
        body = await request.read()
        length = int(request.headers.get(LENGTH, len(body)))
        (x,) = json.loads(body[:length])["inputs"]
        values = np.frombuffer(body[length:], np.float32) if "data" not in x else x["data"]
        y = (2 * np.asarray(values, np.float32) + 1).ravel().tolist()
        output = {"name": "Y", "shape": x["shape"], "datatype": "FP32", "data": y}
        return web.json_response({"model_name": "elementwise", "outputs": [output]})

    app = web.Application()
    app.router.add_post("/v2/models/elementwise/infer", infer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
