"""The load of ``bench_batch``: one request again and again from many connections, by wrk.

wrk is a single process that renders its request once, so it takes a fifth of what any other part
of the measurement does; what it took is in every sample (``load_share``, of one core).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench import LoadError, Sample

SCRIPT = Path(__file__).resolve().parent / "batch_post.lua"
HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Body:
    """An inference request and the header lines that go with it."""

    data: bytes
    head: Mapping[str, str]


def binary_body(values: tuple[float, ...], own_id: str = "") -> Body:
    """One row of FP32 as tritonclient sends it, with a binary answer asked for."""
    data = struct.pack(f"<{len(values)}f", *values)
    entry = {**_entry(len(values)), "parameters": {"binary_data_size": len(data)}}
    fields: dict[str, object] = {"inputs": [entry]}
    fields["parameters"] = {"binary_data_output": True}
    if own_id:
        fields = {"id": own_id, **fields}
    text = json.dumps(fields, separators=(",", ":")).encode()
    return Body(text + data, {HEADER: str(len(text))})


def json_body(values: tuple[float, ...]) -> Body:
    """The same as JSON."""
    fields = {"inputs": [{**_entry(len(values)), "data": values}]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    return Body(text, {"Content-Type": "application/json"})


def _entry(columns: int) -> dict[str, object]:
    return {"name": "X", "shape": [1, columns], "datatype": "FP32"}


@dataclass(frozen=True)
class Shot:
    """``clients`` connections, each with one request on the way at any time, for ``seconds``."""

    url: str
    body: Body
    clients: int
    seconds: float


Fire = Callable[[Shot], Sample]
"""Makes the load, and says what came of it. Raises LoadError."""


def wrk(shot: Shot, scratch: Path) -> Sample:
    """``answered`` within ``seconds``; ``refused``: with a status from 400 on; ``broken``:
    connections and timeouts. Whole seconds, at least 1."""
    if shutil.which("wrk") is None:
        raise LoadError("wrk is not installed (Debian: wrk)")
    file = scratch / "body"
    file.write_bytes(shot.body.data)
    lines = "".join(f"{name}: {value}\n" for name, value in shot.body.head.items())
    command = ["wrk", "-t1", f"-c{shot.clients}", f"-d{max(1, round(shot.seconds))}s"]
    command += ["--timeout", "10s", "-s", str(SCRIPT), shot.url]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        command,
        env={**os.environ, "BODY": str(file), "HEAD": lines},
        capture_output=True,
        text=True,
        timeout=shot.seconds + 30,
        check=False,
    )
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            told: Sample = json.loads(line.removeprefix("RESULT "))
            return _sample(told, spent / wall)
    raise LoadError(f"wrk gave no result: {(done.stdout + done.stderr)[-300:]}")


def _sample(told: Sample, share: float) -> Sample:
    answered = told["requests"] - told["refused"]
    if answered <= 0:
        raise LoadError(f"nothing was answered: {told}")
    return {
        "answered": answered,
        "seconds": told["duration_us"] / 1e6,
        "per_second": answered / (told["duration_us"] / 1e6),
        "p50_ms": told["p50_us"] / 1e3,
        "p99_ms": told["p99_us"] / 1e3,
        "refused": told["refused"],
        "broken": told["broken"],
        "load_share": share,
    }
