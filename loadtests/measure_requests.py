"""Test 1: CPU time, throughput and latency of small requests, 32 keep-alive connections."""

import contextlib

from loadtests.bench import DIRECT, Bench, CpuWindow, LoadError, Result, Sample, wrk
from loadtests.processes import Child
from loadtests.proxies import start_upstream


def measure(bench: Bench) -> Result:
    """POST of 0.5 KB JSON, an answer of 0.5 KB; wrk always has 32 requests on the way.

    CPU per request is user plus system time of the proxy's process tree, divided by the
    requests that wrk saw answered. Latency is that of a saturated proxy (closed loop), so it
    says the same as requests per second and is no promise for a quiet one. ``tailrace-all`` is
    tailrace with every filter on.
    """
    seconds = 2.0 if bench.quick else 4.0
    with start_upstream(bench.scratch, bench.cores) as upstream:

        def once(name: str, proxy: Child | None) -> Sample:
            if proxy is None:
                return _sample(wrk(upstream.port, seconds, bench.cores))
            window = CpuWindow(proxy, bench.cores)
            load = wrk(proxy.port, seconds, bench.cores)
            window.close()
            return {**window.sample(load["requests"]), **_sample(load)}

        with bench.running(upstream.port, variants=True) as proxies:
            for name, proxy in [(DIRECT, upstream), *proxies.items()]:
                with contextlib.suppress(LoadError):  # the first round will say so
                    bench.say(f"  warming up {name}")
                    wrk(proxy.port, 1, bench.cores)
            return bench.interleaved(proxies, once)


def _sample(load: Sample) -> Sample:
    return {
        "per_second": load["requests"] / (load["duration_us"] / 1e6),
        "p50_ms": load["p50_us"] / 1e3,
        "p99_ms": load["p99_us"] / 1e3,
    }
