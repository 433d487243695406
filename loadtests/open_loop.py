"""The open-loop load: requests leave when they are due, on as many connections as that takes.

    python -m loadtests.open_loop --load load.json --out records.bin

Its own process on uvloop, written for little CPU per request: raw protocols, hand-written HTTP,
one timer for everybody, a callback and no task per request. ``load.json`` is a ``Load``. Prints
``begin NANOSECONDS`` (the monotonic clock at the load's time 0), and ends when every request has
ended. Latency counts from when a request was due, so a generator that falls behind makes the
figures worse, never better; ``lag`` of each record says by how much.

A client that leaves resets its connection (SO_LINGER 0): thousands of them in a second must not
use up the ports in TIME_WAIT.
"""

import argparse
import asyncio
import contextlib
import gc
import heapq
import itertools
import socket
import struct
import sys
import time
from collections import deque
from pathlib import Path
from random import Random
from typing import cast

import msgspec
import uvloop

from loadtests.load_plan import Flow, Load, schedule
from loadtests.processes import LOOPBACK, raise_open_files
from loadtests.records import End, Raw, Tape, save

_TICK = 0.001
_LINGER = struct.pack("ii", 1, 0)
_LAST_CHUNK = b"0\r\n\r\n"
_CHUNKED = -1
_UNTIL_CLOSE = -2
now = time.monotonic


class Ticket:
    """One request under way."""

    __slots__ = ("at", "connection", "first", "flow", "number", "over", "sent")

    def __init__(self, flow: int, at: float, number: int) -> None:
        self.flow = flow
        self.at = at
        self.number = number
        self.sent = 0.0
        self.first = 0.0
        self.over = False
        self.connection: Connection | None = None


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    __slots__ = (
        "_generator",
        "_head",
        "_keep",
        "_left",
        "_reason",
        "_retry_after",
        "_service",
        "_status",
        "_tail",
        "target",
        "ticket",
        "transport",
    )  # fmt: skip

    def __init__(self, generator: "Generator", target: int) -> None:
        self._generator = generator
        self.target = target
        self.transport: asyncio.Transport | None = None
        self.ticket: Ticket | None = None
        self._clear()

    def _clear(self) -> None:
        self._head = b""
        self._status = 0
        self._left = 0
        self._tail = b""
        self._keep = True
        self._service = 0.0
        self._retry_after = False
        self._reason = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._generator.open -= 1
        ticket, self.ticket = self.ticket, None
        if ticket is not None:
            whole = self._status and self._left == _UNTIL_CLOSE and exc is None
            self._over(ticket, End.FINISHED if whole else End.BROKEN)

    def send(self, ticket: Ticket, request: bytes) -> None:
        assert self.transport is not None
        self._clear()
        self.ticket = ticket
        ticket.connection = self
        ticket.sent = now()
        self.transport.write(request)

    def leave(self) -> None:
        """The client is gone; nothing more is heard of this connection."""
        ticket, self.ticket = self.ticket, None
        if ticket is not None:
            self._over(ticket, End.LEFT)
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        ticket = self.ticket
        if ticket is None:  # nobody asked
            if self.transport is not None:
                self.transport.abort()
            return
        while not self._status:
            data = self._head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._head = data
                return
            self._head = b""
            self._read_head(data[: end + 2])
            data = data[end + 4 :]
        if data and not ticket.first:
            ticket.first = now() - self._generator.start - ticket.at
        if self._left > 0:
            self._left -= len(data)
        elif self._left == _CHUNKED:
            # The stand-in's chunks never contain what the last one is.
            self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
            if self._tail == _LAST_CHUNK:
                self._left = 0
        if self._left == 0:
            self.ticket = None
            self._over(ticket, End.FINISHED)
            if self._keep:
                self._generator.rest(self)
            elif self.transport is not None:
                self.transport.abort()

    def _read_head(self, head: bytes) -> None:
        """Status and the few fields of interest. An interim answer leaves the status 0."""
        status = int(head[9:12])
        if status < 200:
            return
        self._status = status
        lower = head.lower()
        if (length := _field(lower, b"\r\ncontent-length:")) is not None:
            self._left = int(length)
        else:
            self._left = _CHUNKED if b"\r\ntransfer-encoding:" in lower else _UNTIL_CLOSE
        self._keep = self._left != _UNTIL_CLOSE and b"\r\nconnection: close" not in lower
        if (service := _field(lower, b"\r\nx-service-us:")) is not None:
            self._service = int(service) / 1e6
        if status >= 400:
            self._retry_after = b"\r\nretry-after:" in lower
            reason = _field(lower, b"\r\nx-tailrace-reason:")
            self._reason = self._generator.reason(reason or b"")

    def _over(self, ticket: Ticket, end: End) -> None:
        self._generator.over(
            ticket, end, self._status, self._service, self._retry_after, self._reason
        )


def _field(lower: bytes, name: bytes) -> bytes | None:
    start = lower.find(name)
    if start < 0:
        return None
    start += len(name)
    return lower[start : lower.index(b"\r", start)].strip()


class Generator:
    """Sends what is due, takes clients away whose patience is over, keeps the records."""

    def __init__(self, load: Load, loop: asyncio.AbstractEventLoop) -> None:
        self._load = load
        self._loop = loop
        self._rng = Random(f"{load.seed}/generator")
        self._due: deque[tuple[float, int]] = deque(schedule(load))
        self._again: list[tuple[float, int, Ticket]] = []
        self._patience: list[tuple[float, int, Ticket]] = []
        self._serial = itertools.count()
        self._turns = itertools.cycle(load.targets)
        self._idle: dict[int, list[Connection]] = {target: [] for target in load.targets}
        self._unsent: dict[int, deque[Ticket]] = {target: deque() for target in load.targets}
        self._requests = [_request(flow) for flow in load.flows]
        self._tokens = [flow.tokens for flow in load.flows]
        self._opening: set[asyncio.Task[None]] = set()
        self._reasons = [""]
        self._under_way = 0
        self._finished = asyncio.Event()
        self.rows: list[Raw] = []
        self.open = self.peak = self.never_sent = 0
        self.start = 0.0

    async def run(self) -> Tape:
        """The whole load. Its last request ends at the latest when its client's patience does."""
        for target in self._load.targets:
            for _ in range(self._load.warm):
                self.open += 1
                await self._open(target)
        self.peak = self.open
        gc.collect()
        gc.freeze()
        gc.disable()  # nothing here makes a cycle that outlives its request
        cpu = time.process_time()
        self.start = now()
        print(f"begin {int(self.start * 1e9)}", flush=True)
        self._tick()
        await self._finished.wait()
        wall = now() - self.start
        return Tape(
            flows=[flow.name for flow in self._load.flows],
            cpu_seconds=time.process_time() - cpu,
            wall_seconds=wall,
            peak_connections=self.peak,
            unsent=self.never_sent,
            reasons=self._reasons,
            count=len(self.rows),
        )

    # -- what is due ---------------------------------------------------------------------------

    def _tick(self) -> None:
        time_now = now() - self.start
        due, again, patience = self._due, self._again, self._patience
        while due and due[0][0] <= time_now:
            at, flow = due.popleft()
            self._begin(Ticket(flow, at, 0))
        while again and again[0][0] <= time_now:
            self._begin(heapq.heappop(again)[2])
        while patience and patience[0][0] <= time_now:
            ticket = heapq.heappop(patience)[2]
            if not ticket.over:
                self._leave(ticket)
        if due or again or self._under_way:
            self._loop.call_later(_TICK, self._tick)
        else:
            self._finished.set()

    def _begin(self, ticket: Ticket) -> None:
        self._under_way += 1
        low, high = self._load.flows[ticket.flow].patience
        until = ticket.at + (low if low == high else self._rng.uniform(low, high))
        heapq.heappush(self._patience, (until, next(self._serial), ticket))
        target = next(self._turns)
        idle = self._idle[target]
        while idle:
            connection = idle.pop()
            if connection.transport is not None:
                connection.send(ticket, self._bytes(ticket))
                return
        self._unsent[target].append(ticket)
        if self.open < self._load.connections:
            self.open += 1
            self.peak = max(self.peak, self.open)
            task = self._loop.create_task(self._open(target))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, target: int) -> None:
        """One more connection, counted already, for whoever has waited longest."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(sock, (LOOPBACK, target))
            _, connection = await self._loop.create_connection(
                lambda: Connection(self, target), sock=sock
            )
        except OSError:
            sock.close()
            self.open -= 1
            if (ticket := self._longest_unsent(target)) is not None:
                self.over(ticket, End.UNREACHABLE, 0, 0.0, False, 0)
        else:
            self.rest(connection)

    def rest(self, connection: Connection) -> None:
        """``connection`` has nothing to do: the next unsent request's, or idle."""
        if (ticket := self._longest_unsent(connection.target)) is not None:
            connection.send(ticket, self._bytes(ticket))
        else:
            self._idle[connection.target].append(connection)

    def _longest_unsent(self, target: int) -> Ticket | None:
        unsent = self._unsent[target]
        while unsent:
            ticket = unsent.popleft()
            if not ticket.over:
                return ticket
        return None

    def _bytes(self, ticket: Ticket) -> bytes:
        # Every prompt is another one, as in life: nothing may be taken for a replay.
        serial = next(self._serial)
        if (tokens := self._tokens[ticket.flow]) is not None:
            return self._requests[ticket.flow] % (self._rng.randint(*tokens), serial)
        return self._requests[ticket.flow] % serial

    # -- how it ends ---------------------------------------------------------------------------

    def _leave(self, ticket: Ticket) -> None:
        if ticket.connection is not None:
            ticket.connection.leave()
        else:
            self.never_sent += 1
            self.over(ticket, End.LEFT, 0, 0.0, False, 0)

    def over(
        self, ticket: Ticket, end: End, status: int, service: float, retry_after: bool, reason: int
    ) -> None:
        at = ticket.at
        time_now = now() - self.start
        lag = ticket.sent - self.start - at if ticket.sent else -1.0
        ticket.over = True
        ticket.connection = None
        self._under_way -= 1
        row = (at, time_now - at, ticket.first, lag, service, status, ticket.flow, end,
               ticket.number, retry_after, reason)  # fmt: skip
        self.rows.append(row)
        flow = self._load.flows[ticket.flow]
        if ticket.number < flow.retries and (end is not End.FINISHED or status >= 400):
            again = time_now + flow.backoff * self._rng.uniform(0.5, 1.5)
            retry = Ticket(ticket.flow, again, ticket.number + 1)
            heapq.heappush(self._again, (again, next(self._serial), retry))

    def reason(self, name: bytes) -> int:
        text = name.decode("latin-1")
        if text not in self._reasons:
            self._reasons.append(text)
        return self._reasons.index(text)


def _request(flow: Flow) -> bytes:
    """The request with a place for its serial number; before it, in a stream, for its tokens."""
    stream = '"stream":true,"max_tokens":%06d,' if flow.tokens is not None else ""
    prompt = "Count the waves until the water has passed the dam. " * 4
    body = (
        f'{{"model":"stand-in",{stream}"messages":[{{"role":"user","content":"%012d {prompt}"}}]}}'
    )
    length = len(body % ((0, 0) if stream else 0))
    # JSON has no leading zeros; six spaces before a number are as good.
    body = body.replace("%06d", "%6d")
    fields = "".join(f"{name}: {value}\r\n" for name, value in flow.headers).replace("%", "%%")
    head = (
        f"POST {flow.path} HTTP/1.1\r\nhost: {LOOPBACK}\r\ncontent-type: application/json\r\n"
        f"{fields}content-length: {length}\r\n\r\n"
    )
    return (head + body).encode()


async def _run(load: Load, out: Path) -> None:
    generator = Generator(load, asyncio.get_running_loop())
    tape = await generator.run()
    save(out, tape, generator.rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.open_loop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--load", type=Path, required=True, help="a Load as JSON")
    parser.add_argument("--out", type=Path, required=True, help="where the records go")
    options = parser.parse_args()
    raise_open_files()
    load = msgspec.json.decode(options.load.read_bytes(), type=Load)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_run(load, options.out))
        sys.exit(0)
    sys.exit(130)


if __name__ == "__main__":
    main()
