"""The benchmark of batching, with a model server in this process and a load that is no load.

Nothing here depends on speed: what is tested is that each part runs, counts and checks right.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from loadtests import batch_report, batch_stage, bench_batch
from loadtests.batch_answers import EVERY, FAILS, among_poison
from loadtests.batch_load import Shot, binary_body, json_body, wrk
from loadtests.batch_stage import Backend
from loadtests.bench import LoadError, Result, Sample
from loadtests.processes import LOOPBACK
from tests.batcher import oip
from tests.batcher.oip import Given

SETTINGS = bench_batch.Settings(
    rounds=1, warm=1, poison=3 * EVERY, answers=2, cost=0.0, runner=0.2
)  # fmt: skip
SHOT = 12
"""Requests."""


class Handler(BaseHTTPRequestHandler):
    """y = 2 x + 1, or x itself from ``poison``, which fails as a whole on a marked row. No shared
    memory. ``swap``: the rows of an answer are somebody else's."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one segment
    server: Fake

    def do_GET(self) -> None:
        model = self.path.split("/")[3]
        rows, calls, failed = (
            self.server.seen[f"{what} {model}"] for what in ("rows", "calls", "failed")
        )
        stats = {"inference_count": rows, "execution_count": calls}
        self.answer(
            200, {"model_stats": [{**stats, "inference_stats": {"fail": {"count": failed}}}]}
        )

    def do_POST(self) -> None:
        head = {name.lower().encode(): value.encode() for name, value in self.headers.items()}
        body = self.rfile.read(int(self.headers["content-length"]))
        if "/models/" not in self.path:
            self.answer(404, {"error": "no shared memory"})
            return
        model = self.path.split("/")[3]
        text, tail = oip.parsed(head, body)
        (x,) = oip.tensors(text["inputs"], tail)
        seen = self.server.seen
        if model == "poison" and FAILS in x.values[:: x.shape[1]]:
            seen[f"failed {model}"] += 1
            self.answer(500, {"error": "a row is poison"})
            return
        seen[f"calls {model}"] += 1
        seen[f"rows {model}"] += x.shape[0]
        y = x.values if model == "poison" else [2 * each + 1 for each in x.values]
        if self.server.swap:
            y = y[::-1]
        out = Given("Y", "FP32", x.shape, y)
        entry: dict[str, Any] = {"name": "Y", "shape": x.shape, "datatype": "FP32"}
        if not x.binary:
            entry["data"] = out.values
            self.answer(200, {"model_name": model, "outputs": [entry]})
            return
        data = oip.to_bytes("FP32", out.values)
        entry["parameters"] = {"binary_data_size": len(data)}
        self.answer(200, {"model_name": model, "outputs": [entry]}, data)

    def answer(self, status: int, fields: dict[str, Any], data: bytes = b"") -> None:
        text = json.dumps(fields).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text + data)))
        if data:
            self.send_header("Inference-Header-Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text + data)

    def log_message(self, *_: object) -> None: ...


class Fake(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__((LOOPBACK, 0), Handler)
        self.seen: Counter[str] = Counter()
        self.swap = False


@pytest.fixture
def server() -> Iterator[Fake]:
    with Fake() as fake:
        thread = threading.Thread(target=fake.serve_forever, args=(0.01,))
        thread.start()
        yield fake
        fake.shutdown()
        thread.join()


def url(server: Fake, model: str = "elementwise") -> str:
    return f"http://{LOOPBACK}:{server.server_port}/v2/models/{model}/infer"


def fire(shot: Shot) -> Sample:
    """Some requests, one after another."""
    parts = urlsplit(shot.url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    for _ in range(SHOT):
        connection.request("POST", parts.path, shot.body.data, dict(shot.body.head))
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
    connection.close()
    sample = dict.fromkeys(("refused", "broken", "load_share"), 0.0)
    return {**sample, "answered": SHOT, "seconds": 1.0, "per_second": SHOT, "p50_ms": 1.0}


def test_a_whole_run(server: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(name: str, *, binary: bool) -> Any:
        backend = Backend(name, server.server_port, binary, lambda: 0.0)
        return lambda: contextlib.nullcontext(backend)

    monkeypatch.setattr(batch_stage, "triton", started("triton", binary=True))
    monkeypatch.setattr(batch_stage, "ml_server", started("mlserver", binary=False))
    run = bench_batch.Run(tmp_path, SETTINGS, bench_batch.PARTS, fire)
    bench_batch.measure(run)
    problems = [each for each in run.problems if not each.startswith("route shared goes by http")]
    results = run.results
    if find_spec("tritonclient") is None:
        assert [each.startswith("answers: not checked") for each in problems] == [True]
    else:
        assert problems == []
        assert {way: rounds[0]["right"] for way, rounds in results["answers"].samples.items()} == {
            "alone": 64,
            "http": 128,
        }
    direct, batched, alone, http = "direct", "direct, batched", "alone", "http"
    for part in ("many", "wide", "mlserver"):
        assert list(results[part].samples) == [direct, batched, alone, http]
    for part in ("one", "free"):
        assert list(results[part].samples) == [direct, alone, http]
    assert results["many"].samples[http][0]["gateway_us"] > 0
    assert results["many"].samples[batched][0]["rows_per_call"] == 1
    assert server.seen["rows elementwise_batched"] >= SHOT
    among = results["poison"].samples[http][0]
    assert (among["sent"], among["poisoned"], among["wrong"], among["spread"]) == (300, 3, 0, 0)
    assert among["right_share"] == 1
    assert among["inferences"] == server.seen["calls poison"] + server.seen["failed poison"]
    assert list(results["cost"].samples) == ["binary", "ids", "json", "padded"]
    assert results["cost"].median("padded", "least_us")
    assert "| requests/s | 12 | 12 | 12 | 12 |" in batch_report.markdown(results, {}, "so")
    batch_report.show(results, {"cpu": "some"}, "so")
    json.dumps(batch_report.document(results))


def test_answers_of_somebody_else_are_seen(server: Fake) -> None:
    server.swap = True
    seen = among_poison(server.server_port, "/v2/models/poison/infer", 2 * EVERY, 8)
    assert (seen.sent, seen.poison, seen.right, seen.wrong) == (200, 2, 0, 198)
    run = bench_batch.Run(Path(), SETTINGS, (), fire)
    run.blame("it", seen)
    assert run.problems == ["it: 198 wrong, 0 poisoned ones answered"]


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_sends_what_it_is_given(server: Fake, tmp_path: Path) -> None:
    shoot = partial(wrk, scratch=tmp_path)
    for make in (binary_body, json_body):
        sample = shoot(Shot(url(server), make((1.0, 2.0)), 2, 1.0))
        assert sample["answered"] > 0
        assert (sample["refused"], sample["broken"]) == (0, 0)
        assert 0 < sample["p50_ms"] <= sample["p99_ms"]
        assert sample["load_share"] > 0
    assert server.seen["rows elementwise"] == server.seen["calls elementwise"] > 0
    with pytest.raises(LoadError, match="nothing was answered"):
        shoot(Shot(url(server, "poison"), binary_body((FAILS, 0.0)), 1, 1.0))


def test_targets_compare_within_rounds() -> None:
    many = Result()
    for number, (base, batched, ours) in enumerate(((10, 100, 80), (20, 50, 100), (5, 90, 85))):
        many.add("direct", number, {"per_second": base})
        many.add("direct, batched", number, {"per_second": batched, "p50_ms": 10.0})
        many.add("http", number, {"per_second": ours, "p50_ms": 16.0})
    judged = {each.title: each for each in batch_report.targets({"many": many})}
    ratio = judged["http, 64 B: requests/s to direct"]
    assert (ratio.measured, ratio.reached) == (8, True)
    ratio = judged["http, 64 B: requests/s to direct, batched"]
    assert ratio.measured == pytest.approx(85 / 90)
    assert ratio.reached
    later = judged["http, 64 B: p50 after direct, batched, ms"]
    assert (later.measured, later.reached) == (6, False)
    assert judged["shared, 64 B: requests/s to direct"].reached is None
    assert judged["CPU per request, binary, us"].reached is None


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_batch.main(["--only", "many,few"])
    assert "not known: few" in capsys.readouterr().err
