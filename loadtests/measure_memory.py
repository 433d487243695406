"""Test 3: resident memory: idle, for each idle connection, and over many requests."""

import http.client
import time

from loadtests.bench import Bench, LoadError, Result, Sample, wrk
from loadtests.processes import LOOPBACK, Child, StartError
from loadtests.proxies import start_upstream

_BODY = b'{"model":"stand-in","messages":[]}'
_SETTLE = 1.0  # seconds for the proxy to finish what it was doing before memory is read


def measure(bench: Bench) -> Result:
    """One fresh process of each proxy after another; nothing else runs meanwhile.

    Resident memory of the process tree. The kernel's socket buffers are not part of it, for
    nobody. MB and KB are 10^6 and 10^3 bytes.
    """
    connections = 1_000 if bench.quick else 5_000
    requests = 20_000 if bench.quick else 200_000
    result = Result()
    with start_upstream(bench.scratch, bench.cores) as upstream:
        for proxy in bench.present():
            try:
                with proxy.start(upstream.port, bench.scratch, bench.cores) as child:
                    sample = _measure_one(bench, child, connections, requests)
            except (StartError, LoadError, OSError, http.client.HTTPException) as error:
                bench.problem(f"{proxy.name}, memory: {error}")
                continue
            result.add(proxy.name, 0, sample)
            shown = ", ".join(f"{key} {value:.5g}" for key, value in sample.items())
            bench.say(f"  {proxy.name}: {shown}")
    return result


def _measure_one(bench: Bench, proxy: Child, connections: int, requests: int) -> Sample:
    time.sleep(_SETTLE)
    idle = proxy.resident_bytes()
    # What the first requests make a proxy load or allocate once is no cost of a connection.
    _hold(proxy, 100)
    before = proxy.resident_bytes()
    held = _hold(proxy, connections)
    time.sleep(_SETTLE)
    open_now = proxy.resident_bytes()
    for connection in held:
        connection.close()
    time.sleep(_SETTLE)
    checkpoints = _load(bench, proxy, requests)
    return {
        "idle_mb": idle / 1e6,
        "connections": connections,
        "per_connection_kb": (open_now - before) / connections / 1e3,
        "requests": requests,
        "after_requests_mb": checkpoints[-1] / 1e6,
        "growth_mb": (checkpoints[-1] - checkpoints[0]) / 1e6,
    }


def _hold(proxy: Child, count: int) -> list[http.client.HTTPConnection]:
    """Keep-alive connections that have each made one request and then stay idle."""
    held: list[http.client.HTTPConnection] = []
    for _ in range(count):
        connection = http.client.HTTPConnection(LOOPBACK, proxy.port, timeout=10)
        connection.request(
            "POST", "/v1/chat/completions", _BODY, {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise LoadError(f"status {answer.status} on connection {len(held) + 1}")
        held.append(connection)
    return held


def _load(bench: Bench, proxy: Child, requests: int) -> list[int]:
    """Resident bytes at the first quarter of ``requests`` and after each wrk run since."""
    done = 0.0
    checkpoints = []
    deadline = time.monotonic() + 180
    while done < requests:
        if time.monotonic() > deadline:
            raise LoadError(f"only {done:.0f} of {requests} requests in 180 s")
        done += wrk(proxy.port, 1, bench.cores)["requests"]
        if done >= requests / 4:
            checkpoints.append(proxy.resident_bytes())
    return checkpoints
