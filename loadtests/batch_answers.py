"""Does everybody get its own answer? Twice: by the real tritonclient, and among poison.

The rows of every request are its own, so an answer that belongs to another caller shows.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from random import Random
from typing import Any

import uvloop

from loadtests.bench import LoadError
from loadtests.processes import LOOPBACK

THREADS = 64
FAILS = 1001.0
"""As in ``loadtests/models/poison.py``: ``execute`` raises, so all of its batch fails."""
EVERY = 100
"""One request in so many is poison."""
_HEADER = "inference-header-content-length"
_SECONDS = 60.0


@dataclass
class Seen:
    """``wrong``: 200, but not with the caller's own rows. ``refused``: a fine request that was not
    answered with 200, by status. ``spread``: poison that was answered with 200."""

    sent: int = 0
    right: int = 0
    wrong: int = 0
    poison: int = 0
    spread: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def fine(self) -> int:
        return self.sent - self.poison

    def refuse(self, why: str) -> None:
        self.refused[why] = self.refused.get(why, 0) + 1


# -- tritonclient ----------------------------------------------------------------------------------


def by_tritonclient(port: int, route: str, model: str, columns: int, each: int) -> Seen:
    """``each`` requests of one row from each of 64 threads, every thread with a client of its own,
    as its users have it: half of them ask for JSON. Raises ImportError, LoadError."""
    client = import_module("tritonclient.http")
    numpy = import_module("numpy")
    seen, lock = Seen(), threading.Lock()

    def thread(number: int) -> None:
        own = client.InferenceServerClient(f"{LOOPBACK}:{port}/{route}", network_timeout=_SECONDS)
        for turn in range(each):
            first = (number * each + turn) * columns
            x = numpy.arange(first, first + columns, dtype=numpy.float32).reshape(1, columns)
            why, right = _asked(client, own, model, x, binary=bool(number % 2))
            with lock:
                seen.sent += 1
                if why:
                    seen.refuse(why)
                elif right:
                    seen.right += 1
                else:
                    seen.wrong += 1
        own.close()

    threads = [threading.Thread(target=thread, args=(n,), daemon=True) for n in range(THREADS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(_SECONDS)
    if seen.sent != THREADS * each:
        raise LoadError(f"{seen.sent} requests of {THREADS * each} have ended")
    return seen


def _asked(client: Any, own: Any, model: str, x: Any, *, binary: bool) -> tuple[str, bool]:
    """What went wrong, or whether the answer is right."""
    given = client.InferInput("X", list(x.shape), "FP32")
    given.set_data_from_numpy(x, binary_data=binary)
    wanted = client.InferRequestedOutput("Y", binary_data=binary)
    try:
        y = own.infer(model, [given], outputs=[wanted]).as_numpy("Y")
    except Exception as error:  # its own, and gevent's
        return str(error)[:100], False
    return "", y.shape == x.shape and bool((y == 2 * x + 1).all())


# -- among poison ----------------------------------------------------------------------------------


def among_poison(port: int, path: str, requests: int, clients: int) -> Seen:
    """``requests`` of one row, one in ``EVERY`` poison, no two alike, so quarantine is of no help.
    The answer is the row itself. Raises LoadError."""
    return uvloop.run(_among(port, path, requests, clients))


async def _among(port: int, path: str, requests: int, clients: int) -> Seen:
    seen = Seen()
    numbers = _numbers(requests)
    work = [_client(port, path, numbers, seen) for _ in range(clients)]
    try:
        async with asyncio.timeout(_SECONDS):
            await asyncio.gather(*work)
    except (OSError, EOFError, TimeoutError, ValueError) as error:
        raise LoadError(f"after {seen.sent} requests: {error!r}") from error
    return seen


def _numbers(requests: int) -> Iterator[tuple[int, bool]]:
    """The requests, and which are poison: of each ``EVERY`` one, at a random place."""
    rng = Random(EVERY)
    bad = 0
    for number in range(requests):
        if number % EVERY == 0:
            bad = number + rng.randrange(min(EVERY, requests - number))
        yield number, number == bad


async def _client(port: int, path: str, numbers: Iterator[tuple[int, bool]], seen: Seen) -> None:
    """All share ``numbers``, the requests that are still to be made."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        for number, bad in numbers:
            # No two are alike, and none reads the same backwards.
            row = struct.pack("<4f", FAILS if bad else 0.0, number, 1.0, -number)
            writer.write(_request(path, row))
            status, data = await _answer(reader)
            seen.sent += 1
            seen.poison += bad
            if bad:
                seen.spread += status == 200
            elif status != 200:
                seen.refuse(str(status))
            elif data == row:
                seen.right += 1
            else:
                seen.wrong += 1
    finally:
        writer.close()


def _request(path: str, row: bytes) -> bytes:
    text = (
        b'{"inputs":[{"name":"X","shape":[1,4],"datatype":"FP32",'
        b'"parameters":{"binary_data_size":16}}],"parameters":{"binary_data_output":true}}'
    )
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\n{_HEADER}: {len(text)}\r\n"
        f"Content-Length: {len(text) + len(row)}\r\n\r\n"
    )
    return head.encode() + text + row


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status, and what follows the JSON."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status_line, *lines = head.split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines if line)
    body = await reader.readexactly(int(fields.get("content-length", 0)))
    return int(status_line.split()[1]), body[int(fields.get(_HEADER, len(body))) :]
