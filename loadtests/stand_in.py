"""A model server stand-in: OpenAI-shaped answers and token streams at a known cost and pace.

Its own process on uvloop and httptools, written for little CPU per token, so that what is
measured in front of it is the proxy and not this. Each streamed token carries ``sent_ns``,
the monotonic clock when it was written; one clock serves all processes of a machine.

    python -m loadtests.stand_in --port 8000 --slots 32 --service-mean 0.2 --service-sigma 0.8

``POST /v1/chat/completions`` (and any other POST) takes a slot, waits a service time, then
answers at once or, with ``"stream": true``, sends ``max_tokens`` tokens at the token interval
and holds its slot to the last. ``GET /v1/models`` and ``/health`` need no slot. ``GET /stats``
is what became of the work, ``POST /stats/reset`` zeroes it. ``POST /control`` sets what ails it
(``loadtests/faults.py``). An answer says in ``x-service-us`` how much work it was.
"""

import argparse
import asyncio
import gc
import random
import signal
import time
from collections import deque
from dataclasses import dataclass
from typing import cast

import httptools
import msgspec
import uvloop

from loadtests import answers, faults
from loadtests.capacity import Batch, Counters, ServiceTimes, Slots
from loadtests.faults import HEALTHY, Condition
from loadtests.processes import raise_open_files


class Question(msgspec.Struct):
    """The fields of a request body that change what is sent back."""

    stream: bool = False
    max_tokens: int | None = None


_QUESTION = msgspec.json.Decoder(Question)
_PAGES = (b"/stats/reset", b"/control")
now = time.monotonic
"""Not the loop's clock: uvloop's stands still within a round and has whole milliseconds."""


@dataclass(frozen=True)
class Options:
    """Seconds and counts; see ``arguments`` for their meaning on the command line."""

    slots: int = 0
    queue: int = 0
    service_mean: float = 0.0
    service_sigma: float = 0.0
    seed: int = 1
    tokens: int = 16
    token_interval: float = 0.05
    keep_working: bool = False
    mixture: tuple[float, ...] = ()
    batch: int = 0
    batch_slowdown: float = 1.0


class Server:
    """What the connections share."""

    def __init__(self, options: Options, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.loop = loop
        self.condition = HEALTHY
        self.counters = Counters()
        self.slots = Slots(options.slots, options.queue, self.counters)
        self.times = ServiceTimes(
            options.service_mean, options.service_sigma, options.seed, options.mixture
        )
        self.batch = Batch(options.batch, options.batch_slowdown)
        self.rng = random.Random(options.seed)

    def become(self, condition: Condition) -> None:
        self.condition = condition
        slots = self.options.slots if condition.slots is None else condition.slots
        self.slots.resize(slots, now())

    def refusal(self) -> tuple[int, float] | None:
        """(status, seconds until it is sent) of the answer to a request that gets no slot."""
        condition = self.condition
        if condition.limit and self.slots.inside >= condition.limit:
            self.counters.refused += 1
            return 429, 0.0
        if condition.status and self.rng.random() < condition.share:
            self.counters.failed += 1
            return condition.status, condition.after
        return None


class Generation:
    """One request that takes a slot: a service time, then one answer or paced tokens."""

    def __init__(self, server: Server, connection: "Connection", question: Question) -> None:
        self._server = server
        self._connection: Connection | None = connection
        self._question = question
        self._tokens = self._tokens_left = max(1, question.max_tokens or server.options.tokens)
        self._slow = 1.0
        self._service = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, now: float) -> None:
        self._slow = self._server.condition.slow
        self._service = self._server.times.draw() * self._slow
        self._due = now + self._service
        if self._service > 0:
            self._timer = self._server.loop.call_at(self._due, self._serve)
        else:
            self._serve()

    def abandon(self) -> None:
        """The client left. A server that does not notice (``keep_working``) goes on."""
        self._connection = None
        server = self._server
        if not server.options.keep_working:
            if self._timer is not None:
                self._timer.cancel()
            server.slots.cancel(self, now())

    def _serve(self) -> None:
        fields = answers.told(self._service) if self._service > 0 else b""
        if not self._question.stream:
            if self._connection is not None:
                self._connection.send(200, answers.completion(self._tokens_left), fields)
            self._finish()
            return
        if self._connection is not None:
            self._connection.write(answers.stream_head(fields))
        self._token()

    def _token(self) -> None:
        server = self._server
        if server.condition.stalls_after == self._tokens - self._tokens_left:
            return  # it stays in its slot until its client leaves
        self._tokens_left -= 1
        last = self._tokens_left == 0
        if self._connection is not None:
            self._connection.write(answers.chunk(last=last))
        server.counters.tokens += 1
        if last:
            if self._connection is not None:
                self._connection.write(answers.DONE)
            self._finish()
            return
        # On the schedule of the stream's start, so that a late token does not delay the next.
        factor = self._slow * server.batch.factor(server.counters.in_service)
        self._due += server.options.token_interval * factor
        self._timer = server.loop.call_at(self._due, self._token)

    def _finish(self) -> None:
        connection, self._connection = self._connection, None
        # Work without a duration has no time that it was due, but the present.
        due = self._due if self._service > 0 else now()
        self._server.slots.finish(self, due, wanted=connection is not None)
        if connection is not None:
            connection.finished()


class Held:
    """One request that takes no slot: refused a moment from now, or kept without an answer."""

    def __init__(self, server: Server, connection: "Connection") -> None:
        self._server = server
        self._connection = connection
        self._timer: asyncio.TimerHandle | None = None
        server.counters.held += 1

    def refuse(self, status: int, after: float) -> None:
        self._timer = self._server.loop.call_later(after, self._send, status)

    def abandon(self) -> None:
        counters = self._server.counters
        counters.held -= 1
        if self._timer is not None:
            self._timer.cancel()
        else:
            counters.cancelled += 1

    def _send(self, status: int) -> None:
        self._server.counters.held -= 1
        self._connection.refuse(status)


class Connection(asyncio.Protocol):
    """One client connection: requests in order, one at a time, pipelined ones wait."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._generation: Generation | Held | None = None
        self._waiting: deque[tuple[bytes, bytes, bytes, bool]] = deque()
        self._url = b""
        self._body: list[bytes] = []
        self._keep_alive = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._keep_alive = False
            self.send(400, b"{}")
            self.finished()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._waiting.clear()
        if self._generation is not None:
            self._generation.abandon()
            self._generation = None

    # httptools' callbacks.

    def on_message_begin(self) -> None:
        self._url = b""
        self._body = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"expect" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        path = self._url.partition(b"?")[0]
        keep_alive = self._parser.should_keep_alive()
        self._waiting.append((self._parser.get_method(), path, b"".join(self._body), keep_alive))
        if len(self._waiting) == 1 and self._generation is None:
            self._answer_next()

    # What answers use.

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def send(self, status: int, body: bytes, fields: bytes = b"") -> None:
        head = answers.head(status, len(body), fields, keep_alive=self._keep_alive)
        self.write(head + body)

    def refuse(self, status: int) -> None:
        after = self._server.condition.retry_after
        fields = b"" if after is None else b"retry-after: %d\r\n" % after
        self.send(status, answers.error("not now", "overloaded"), fields)
        self.finished()

    def finished(self) -> None:
        """The answer is out to its last byte."""
        self._generation = None
        if not self._keep_alive:
            if self._transport is not None:
                self._transport.close()
        elif self._waiting:
            # By way of the loop: a thousand pipelined requests must not nest a thousand calls.
            self._server.loop.call_soon(self._answer_next)

    def _answer_next(self) -> None:
        if self._generation is not None or not self._waiting:
            return
        method, path, body, self._keep_alive = self._waiting.popleft()
        if method == b"POST" and path not in _PAGES:
            self._generate(body)
            return
        self.send(*self._page(method, path, body))
        self.finished()

    def _generate(self, body: bytes) -> None:
        server = self._server
        server.counters.arrived += 1
        condition = server.condition
        if condition is not HEALTHY and self._ails(condition):
            return
        try:
            question = _QUESTION.decode(body) if body else Question()
        except msgspec.DecodeError:
            question = Question()  # not JSON: a binary tensor is answered all the same
        generation = self._generation = Generation(server, self, question)
        if not server.slots.enter(generation, now()):
            self.refuse(503)

    def _ails(self, condition: Condition) -> bool:
        """Whether this request gets no slot but what the condition has for it."""
        server = self._server
        if condition.hangs or condition.head_only:
            self._generation = Held(server, self)
            if condition.head_only:
                self.write(answers.stream_head())
            return True
        if (refusal := server.refusal()) is None:
            return False
        held = self._generation = Held(server, self)
        held.refuse(*refusal)
        return True

    def _page(self, method: bytes, path: bytes, body: bytes) -> tuple[int, bytes]:
        server = self._server
        if path == b"/stats/reset" and method == b"POST":
            server.counters.reset()
            return 200, b"{}"
        if path == b"/control" and method == b"POST":
            try:
                server.become(faults.decode(body))
            except msgspec.MsgspecError as problem:
                return 400, answers.error(str(problem), "invalid_request")
            return 200, b"{}"
        if path == b"/stats":
            return 200, msgspec.json.encode(server.counters.as_dict())
        if path == b"/health":
            return 200, b"{}"
        if path == b"/v1/models":
            return 200, answers.models()
        return 404, answers.error("no such page", "not_found")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.stand_in", description=__doc__)
    plain = Options()
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="0: any free one, printed when ready")
    add("--slots", type=int, default=plain.slots, help="requests at work at once; 0: no bound")
    add("--queue", type=int, default=plain.queue, help="waiting for a slot; 0: no bound")
    add("--service-mean", type=float, default=0.0, help="seconds before an answer or first token")
    add("--service-sigma", type=float, default=0.0, help="of the lognormal's logarithm; 0: fixed")
    add("--seed", type=int, default=plain.seed)
    add("--tokens", type=int, default=plain.tokens, help="when a request sets no max_tokens")
    add("--token-interval", type=float, default=plain.token_interval, help="seconds")
    add("--keep-working", action="store_true", help="do not notice that a client left")
    add("--mixture", type=float, nargs="*", default=[], help="service times, each as likely")
    add("--batch", type=int, default=0, help="streams of a full batch; tokens get slower up to it")
    add("--batch-slowdown", type=float, default=1.0, help="of the tokens in a full batch")
    return parser.parse_args()


async def serve(host: str, port: int, options: Options) -> None:
    """Serves until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    state = Server(options, loop)
    listener = await loop.create_server(lambda: Connection(state), host, port, backlog=4096)
    print(f"listening on {host}:{listener.sockets[0].getsockname()[1]}", flush=True)
    gc.freeze()
    await stop.wait()
    listener.close()


def main() -> None:
    given = vars(arguments())
    host, port = given.pop("host"), given.pop("port")
    given["mixture"] = tuple(given["mixture"])
    raise_open_files()
    uvloop.run(serve(host, port, Options(**given)))


if __name__ == "__main__":
    main()
