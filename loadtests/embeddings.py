"""The openai SDK against a real embedding model in the gateway's own process.

    python -m loadtests.embeddings [--quick] [--json FILE]

64 SDK clients ask for the embeddings of 1,000 texts, one in each request, of a model
(``minilm.py``, all-MiniLM-L6-v2) that ``runner: python`` calls: once with batches of up to 64 and
once with one call for each request. Every vector is compared with that of the model called without
a gateway. A process of its own looks how long requests take that the gateway answers without the
model, meanwhile. NumPy gets one thread, as the load needs the other cores. At most 2 minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import math
import os
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from loadtests import machine
from loadtests.processes import LOOPBACK, Child, StartError, free_port
from loadtests.proxies import REPOSITORY

CLIENTS = 64
TEXTS, QUICK = 1000, 250
BOUND = 110.0
"""Seconds that the loads may take together, and then it fails."""
LEAST = 0.9999
"""Cosine of a vector with that of the model called without a gateway."""
WORDS = """
    the model server answers a request about batches of text and every caller gets its own rows of
    the answer while slow queues grow at night because nobody reads the old graphs again
"""
ROUTES = {"one call for each request": "/single", "batches of up to 64": "/batched"}
CONFIG = """
listen: 127.0.0.1:{port}
admin: {{listen: 127.0.0.1:{admin}}}
telemetry: {{access_log: off}}
clusters: {{none: {{endpoints: ["http://127.0.0.1:9"]}}}}
routes:
  - path: /single
    batching: {{format: openai_embeddings, runner: python, function: "minilm:MiniLM", max_rows: 1}}
  - path: /batched
    batching:
      format: openai_embeddings
      runner: python
      function: minilm:MiniLM
      max_rows: 64
      target: 1s
"""


@dataclass(frozen=True)
class Phase:
    """``*_ms``: of requests; ``passing_*``: of those that the gateway answered without the model
    meanwhile. ``least``: the smallest cosine with what the model says by itself."""

    name: str
    per_second: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    rows_per_call: float = 1.0
    passing_p50_ms: float = 0.0
    passing_p99_ms: float = 0.0
    least: float = 1.0


def sentences(count: int) -> list[str]:
    """Of 3 to 24 words, no two alike."""
    rng, words = Random(11), WORDS.split()
    made = (" ".join(rng.choices(words, k=rng.randint(3, 24))) for _ in range(count))
    return [f"{number}: {each}" for number, each in enumerate(made)]


def direct(texts: Sequence[str]) -> tuple[Phase, list[Any]]:
    """The model without a gateway: the vectors, and how fast it is one text at a time."""
    model = import_module("loadtests.minilm").MiniLM()
    model([texts[0]])
    began = time.perf_counter()
    vectors = [model([text])["output"][0] for text in texts]
    rate = len(texts) / (time.perf_counter() - began)
    return Phase("the model without a gateway, one text a call", rate), vectors


class Gateway:
    def __init__(self, scratch: Path) -> None:
        self.port, self.admin = free_port(), free_port()
        file = scratch / "tailrace.yaml"
        file.write_text(CONFIG.format(port=self.port, admin=self.admin))
        shutil.copy(Path(__file__).with_name("minilm.py"), scratch)  # where it is looked for
        command = [sys.executable, "-m", "gateway", "run", str(file)]
        log = scratch / "gateway.log"
        self.child = Child.start("tailrace", command, log, port=self.port, cwd=REPOSITORY)

    def batching(self, path: str) -> Any:
        """What ``/filters`` says of a route's batching."""
        url = f"http://{LOOPBACK}:{self.admin}/filters"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)
        return next(each["batching"] for name, each in found["routes"].items() if path in name)


async def ask_all(url: str, texts: Sequence[str]) -> tuple[list[list[float]], list[float], float]:
    """Vectors, seconds of each request, and of all together."""
    openai = import_module("openai")
    clients = [openai.AsyncOpenAI(api_key="k", base_url=url, timeout=60.0) for _ in range(CLIENTS)]
    vectors: list[list[float]] = [[]] * len(texts)
    times = []
    todo = iter(enumerate(texts))

    async def work(client: Any) -> None:
        for at, text in todo:
            began = time.perf_counter()
            answer = await client.embeddings.create(model="all-MiniLM-L6-v2", input=text)
            times.append(time.perf_counter() - began)
            vectors[at] = answer.data[0].embedding

    await clients[0].embeddings.create(model="all-MiniLM-L6-v2", input="is it loaded?")
    began = time.perf_counter()
    await asyncio.gather(*(work(client) for client in clients))
    seconds = time.perf_counter() - began
    await asyncio.gather(*(client.close() for client in clients))
    return vectors, times, seconds


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    def norm(vector: Sequence[float]) -> float:
        return math.sqrt(sum(float(x) * float(x) for x in vector))

    if len(one) != len(other):
        return 0.0
    product = sum(float(x) * float(y) for x, y in zip(one, other, strict=True))
    return product / (norm(one) * norm(other))


def share(values: Sequence[float], part: float) -> float:
    """In milliseconds."""
    at = min(len(values) - 1, int(part * len(values)))
    return sorted(values)[at] * 1e3


def phase(name: str, path: str, gateway: Gateway, texts: Sequence[str], own: list[Any]) -> Phase:
    """One load, through one route."""
    url = f"http://{LOOPBACK}:{gateway.port}{path}/v1"
    command = [sys.executable, "-m", "loadtests.embeddings", "--probe", str(gateway.port)]
    log = gateway.child.log.with_name("probe.log")
    with Child.start("probe", command, log, stdout_pipe=True, cwd=REPOSITORY) as probe:
        vectors, times, seconds = asyncio.run(asyncio.wait_for(ask_all(url, texts), BOUND / 2.5))
        probe.process.terminate()
        passing = json.loads(probe.process.communicate(timeout=10)[0])
    return Phase(
        name,
        len(texts) / seconds,
        share(times, 0.5),
        share(times, 0.99),
        gateway.batching(path)["rows_per_batch"],
        share(passing, 0.5),
        share(passing, 0.99),
        min(cosine(each, mine) for each, mine in zip(vectors, own, strict=True)),
    )


def probe(port: int) -> None:
    """100 small requests a second that no model sees, until SIGTERM; their seconds on stdout."""
    import signal

    times: list[float] = []

    def end(*_: object) -> None:
        print(json.dumps(times or [0.0]), flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=30)
    until = time.monotonic() + BOUND
    while time.monotonic() < until:
        began = time.perf_counter()
        connection.request("GET", "/single/v1/models")
        connection.getresponse().read()
        times.append(time.perf_counter() - began)
        time.sleep(0.01)
    end()


def show(phases: Sequence[Phase]) -> None:
    for each in phases:
        print(f"{each.name}: {each.per_second:.0f} texts/s", end="")
        if each.p50_ms:
            print(
                f", p50 {each.p50_ms:.0f} ms, p99 {each.p99_ms:.0f} ms, {each.rows_per_call} texts "
                f"a call; least cosine {each.least:.6f}; requests that pass by meanwhile: p50 "
                f"{each.passing_p50_ms:.1f} ms, p99 {each.passing_p99_ms:.1f} ms",
                end="",
            )
        print()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.embeddings")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} texts instead of {TEXTS}")
    parser.add_argument("--json", type=Path, help="write the figures to a file, too")
    parser.add_argument("--probe", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.probe:
        probe(options.probe)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    about = machine.describe()
    texts = sentences(QUICK if options.quick else TEXTS)
    try:
        first, own = direct(texts)
    except ModuleNotFoundError as error:
        print(f"no {error.name}: make embeddings", file=sys.stderr)
        return 1
    phases = [first]
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(Path(folder))
        with gateway.child:
            try:
                gateway.child.wait_listening()
            except StartError as error:
                print(error, file=sys.stderr)
                return 1
            for name, path in ROUTES.items():
                phases.append(phase(name, path, gateway, texts, own))
    show(phases)
    figures = {"machine": about, "texts": len(texts), "phases": [asdict(each) for each in phases]}
    written = json.dumps(figures, indent=2)
    print(written)
    if options.json is not None:
        options.json.write_text(written + "\n")
    wrong = [each.name for each in phases if not each.least > LEAST]
    if wrong:
        print(f"vectors differ from the model's own: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
