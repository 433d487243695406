"""A light reader of many token streams: its own process, so that only the proxy is measured.

    python -m loadtests.streams --port 8080 --streams 64 --rate 20 --seconds 6

Opens the streams one after another over ``--ramp`` seconds, waits ``--settle``, prints
``begin``, reads for ``--seconds``, prints ``end``, and then one line of JSON: how many tokens
arrived in that window and how long each had been on its way, from the ``sent_ns`` inside it to
the read that brought it. The starts follow a golden-ratio sequence, which spreads the phases
of all streams evenly over one token interval: tokens arrive alone, as they do from a model
server, not in volleys.
"""

import argparse
import asyncio
import gc
import json
import re
import resource
import time
from dataclasses import dataclass, field
from typing import cast

import uvloop

_SENT = re.compile(rb'"sent_ns":(\d+)')
_GOLDEN = 0.6180339887498949


@dataclass
class Tally:
    """What all streams of the window brought."""

    open: bool = False
    delays_ns: list[int] = field(default_factory=list)
    reads: int = 0
    refused: int = 0
    broken: int = 0


class Stream(asyncio.Protocol):
    """One streamed request; every token's delay goes into the tally while it is open."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        self._request = request
        self._tally = tally
        self._rest = b""
        self._answered = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        tally = self._tally
        if not self._answered:
            self._answered = True
            if not data.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
                tally.refused += 1
        if self._rest:
            data = self._rest + data
        # An event cut in two by the read waits for its end: its stamp may be cut as well.
        end = data.rfind(b"\n\n")
        self._rest = data if end < 0 else data[end + 2 :]
        if tally.open:
            tally.reads += 1
            for sent in _SENT.findall(data, 0, max(end, 0)):
                tally.delays_ns.append(now - int(sent))

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._tally.open:
            self._tally.broken += 1


async def read_streams(options: argparse.Namespace) -> Tally:
    tally = Tally()
    gc.disable()
    interval = 1 / options.rate
    length = options.ramp + options.settle + options.seconds + 5
    request = _request(options.port, int(length * options.rate))
    loop = asyncio.get_running_loop()
    start = loop.time()
    opened = []
    for i in range(options.streams):
        slot = int(i * options.ramp / options.streams / interval) * interval
        opened.append(slot + (i * _GOLDEN % 1.0) * interval)
    streams = []
    for at in sorted(opened):
        await asyncio.sleep(start + at - loop.time())
        _, stream = await loop.create_connection(
            lambda: Stream(request, tally), options.host, options.port
        )
        streams.append(stream)
    await asyncio.sleep(options.settle)
    tally.open = True
    print("begin", flush=True)
    await asyncio.sleep(options.seconds)
    tally.open = False
    print("end", flush=True)
    for stream in streams:
        if stream.transport is not None:
            stream.transport.abort()
    return tally


def summary(tally: Tally, options: argparse.Namespace) -> dict[str, float]:
    """Delays in microseconds. ``expected`` is what an undisturbed run would have brought."""
    ordered = sorted(tally.delays_ns)
    usage = resource.getrusage(resource.RUSAGE_SELF)

    def quantile(q: float) -> float:
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] / 1000 if ordered else 0.0

    return {
        "streams": options.streams,
        "tokens": len(ordered),
        "expected": options.streams * options.rate * options.seconds,
        "reads": tally.reads,
        "refused": tally.refused,
        "broken": tally.broken,
        "p50_us": quantile(0.5),
        "p90_us": quantile(0.9),
        "p99_us": quantile(0.99),
        "max_us": quantile(1.0),
        "client_cpu_s": usage.ru_utime + usage.ru_stime,
    }


def _request(port: int, tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": "stand-in",
            "stream": True,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": "Count the waves."}],
        }
    ).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: text/event-stream\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (port, len(body), body)
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.streams", description=__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, required=True)
    add("--streams", type=int, default=64)
    add("--rate", type=float, default=20.0, help="tokens per second of each stream")
    add("--ramp", type=float, default=1.0, help="seconds over which the streams are opened")
    add("--settle", type=float, default=1.0, help="seconds between the last start and the window")
    add("--seconds", type=float, default=6.0, help="length of the window that is counted")
    options = parser.parse_args()
    tally = uvloop.run(read_streams(options))
    print(json.dumps(summary(tally, options)), flush=True)


if __name__ == "__main__":
    main()
