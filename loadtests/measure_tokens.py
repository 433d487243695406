"""Tests 2 and 5: what a streamed token costs, and how much later it arrives.

Both read streams of the stand-in with ``loadtests.streams`` in a process of its own; the
proxy's CPU is sampled when that process says that its window begins and ends.
"""

import json
import sys
import threading

from loadtests.bench import Bench, CpuWindow, LoadError, Result, Sample
from loadtests.processes import Child
from loadtests.proxies import REPOSITORY


def measure_chunks(bench: Bench) -> Result:
    """64 streams of 20 tokens per second: each chunk arrives alone, about one in 0.8 ms."""
    seconds = 3.0 if bench.quick else 6.0
    with bench.stand_in() as server, bench.running(server.port) as proxies:
        return bench.interleaved(
            proxies,
            lambda _, proxy: _window(bench, server, proxy, 64, 1.0, seconds),
        )


def measure_streams(bench: Bench) -> Result:
    """1,000 streams of 20 tokens per second; the added delay is what direct reading lacks.

    ``added_p50_ms`` and ``added_p99_ms`` are the quantile through the proxy minus the same
    quantile measured directly in the same round.
    """
    seconds = 4.0 if bench.quick else 8.0
    with bench.stand_in() as server, bench.running(server.port) as proxies:
        direct: Sample = {}

        def once(name: str, proxy: Child | None) -> Sample:
            sample = _window(bench, server, proxy, 1000, 2.0, seconds)
            if proxy is None:
                direct.clear()
                direct.update(sample)
            elif direct:
                for quantile in ("p50_ms", "p99_ms"):
                    sample[f"added_{quantile}"] = sample[quantile] - direct[quantile]
            return sample

        return bench.interleaved(proxies, once)


def _window(
    bench: Bench, server: Child, proxy: Child | None, streams: int, ramp: float, seconds: float
) -> Sample:
    """One run of the reader through ``proxy``, or straight from the stand-in ``server``."""
    port = (proxy or server).port
    command = [sys.executable, "-m", "loadtests.streams", "--port", str(port)]
    command += ["--streams", str(streams), "--ramp", str(ramp), "--seconds", str(seconds)]
    log = bench.scratch / "streams.log"
    cores = bench.cores.load
    with Child.start(
        "streams", command, log, cores=cores, stdout_pipe=True, cwd=REPOSITORY
    ) as reader:
        limit = threading.Timer(ramp + seconds + 30, reader.process.kill)
        limit.start()
        try:
            _expect(reader, "begin")
            window = CpuWindow(proxy, bench.cores) if proxy is not None else None
            load_before = server.cpu_seconds() + reader.cpu_seconds()
            _expect(reader, "end")
            if window is not None:
                window.close()
            load_spent = server.cpu_seconds() + reader.cpu_seconds() - load_before
            read: Sample = json.loads(_line(reader))
        finally:
            limit.cancel()
    if read["refused"] or read["broken"] or not read["tokens"]:
        raise LoadError(
            f"{read['refused']:.0f} streams refused, {read['broken']:.0f} broken, "
            f"{read['tokens']:.0f} tokens"
        )
    return {
        **(window.sample(read["tokens"]) if window is not None else {}),
        "p50_ms": read["p50_us"] / 1e3,
        "p99_ms": read["p99_us"] / 1e3,
        "max_ms": read["max_us"] / 1e3,
        "delivered": read["tokens"] / read["expected"],
        "tokens_per_read": read["tokens"] / read["reads"],
        "load_share": load_spent / seconds / len(bench.cores.load),
    }


def _line(reader: Child) -> str:
    assert reader.process.stdout is not None
    line = reader.process.stdout.readline().decode().strip()
    if not line:
        raise LoadError(f"the reader of streams ended early: {reader.tail()}")
    return line


def _expect(reader: Child, word: str) -> None:
    line = _line(reader)
    if line != word:
        raise LoadError(f"the reader of streams said {line!r}")
