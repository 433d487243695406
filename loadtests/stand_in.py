"""A model server stand-in: OpenAI-shaped answers and token streams at a known cost and pace.

Its own process on uvloop and httptools, written for little CPU per token, so that what is
measured in front of it is the proxy and not this. Each streamed token carries ``sent_ns``,
the monotonic clock when it was written; one clock serves all processes of a machine.

    python -m loadtests.stand_in --port 8000 --slots 32 --service-mean 0.2 --service-sigma 0.8

``POST /v1/chat/completions`` (and any other POST) takes a slot, waits a service time, then
answers at once or, with ``"stream": true``, sends ``max_tokens`` tokens at the token interval
and holds its slot to the last. ``GET /v1/models`` and ``/health`` need no slot. ``GET /stats``
is what became of the work, ``POST /stats/reset`` zeroes it.
"""

import argparse
import asyncio
import gc
import signal
import time
from collections import deque
from dataclasses import dataclass
from typing import cast

import httptools
import msgspec
import uvloop

from loadtests.capacity import Counters, ServiceTimes, Slots

MODEL = "stand-in"
_CREATED = int(time.time())
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_CHUNK_HEAD = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":%d,"model":"%b",'
    b'"sent_ns":' % (_CREATED, MODEL.encode())
)
_TOKEN = b',"choices":[{"index":0,"delta":{"content":"token "},"finish_reason":null}]}\n\n'
_LAST_TOKEN = b',"choices":[{"index":0,"delta":{"content":"end"},"finish_reason":"stop"}]}\n\n'
_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_PHRASES = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 503: b"Service Unavailable"}


class Question(msgspec.Struct):
    """The fields of a request body that change what is sent back."""

    stream: bool = False
    max_tokens: int | None = None


_QUESTION = msgspec.json.Decoder(Question)


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


class Server:
    """What the connections share."""

    def __init__(self, options: Options, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.loop = loop
        self.counters = Counters()
        self.slots = Slots(options.slots, options.queue, self.counters)
        self.times = ServiceTimes(options.service_mean, options.service_sigma, options.seed)


class Generation:
    """One request that takes a slot: a service time, then one answer or paced tokens."""

    def __init__(self, server: Server, connection: "Connection", question: Question) -> None:
        self._server = server
        self._connection: Connection | None = connection
        self._question = question
        self._tokens_left = max(1, question.max_tokens or server.options.tokens)
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, now: float) -> None:
        self._due = now + self._server.times.draw()
        if self._due > now:
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
            server.slots.cancel(self, server.loop.time())

    def _serve(self) -> None:
        if not self._question.stream:
            if self._connection is not None:
                self._connection.send(200, _completion(self._tokens_left))
            self._finish()
            return
        if self._connection is not None:
            self._connection.write(_STREAM_HEAD)
        self._token()

    def _token(self) -> None:
        self._tokens_left -= 1
        last = self._tokens_left == 0
        if self._connection is not None:
            self._connection.write(_chunk(_LAST_TOKEN if last else _TOKEN))
        self._server.counters.tokens += 1
        if last:
            if self._connection is not None:
                self._connection.write(_DONE)
            self._finish()
            return
        # On the schedule of the stream's start, so that a late token does not delay the next.
        self._due += self._server.options.token_interval
        self._timer = self._server.loop.call_at(self._due, self._token)

    def _finish(self) -> None:
        connection, self._connection = self._connection, None
        self._server.slots.finish(self, self._server.loop.time(), wanted=connection is not None)
        if connection is not None:
            connection.finished()


class Connection(asyncio.Protocol):
    """One client connection: requests in order, one at a time, pipelined ones wait."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._generation: Generation | None = None
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

    def send(self, status: int, body: bytes) -> None:
        closing = b"" if self._keep_alive else b"connection: close\r\n"
        self.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b"
            % (status, _PHRASES[status], len(body), closing, body)
        )

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
        if method == b"POST" and path != b"/stats/reset":
            self._generate(body)
            return
        self.send(*self._page(method, path))
        self.finished()

    def _generate(self, body: bytes) -> None:
        try:
            question = _QUESTION.decode(body) if body else Question()
        except msgspec.DecodeError:
            question = Question()  # not JSON: a binary tensor is answered all the same
        generation = self._generation = Generation(self._server, self, question)
        if not self._server.slots.enter(generation, self._server.loop.time()):
            self.send(503, b'{"error":{"message":"queue full","type":"overloaded"}}')
            self.finished()

    def _page(self, method: bytes, path: bytes) -> tuple[int, bytes]:
        counters = self._server.counters
        if path == b"/stats/reset" and method == b"POST":
            counters.reset()
            return 200, b"{}"
        if path == b"/stats":
            return 200, msgspec.json.encode(counters.as_dict())
        if path == b"/health":
            return 200, b"{}"
        if path == b"/v1/models":
            model = {"id": MODEL, "object": "model", "created": _CREATED, "owned_by": "loadtests"}
            return 200, msgspec.json.encode({"object": "list", "data": [model]})
        return 404, b'{"error":{"message":"no such page","type":"not_found"}}'


def _chunk(rest: bytes) -> bytes:
    event = b"%b%d%b" % (_CHUNK_HEAD, time.monotonic_ns(), rest)
    return b"%x\r\n%b\r\n" % (len(event), event)


def _completion(tokens: int) -> bytes:
    text = "token " * min(tokens, 4096)
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    return msgspec.json.encode(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": _CREATED,
            "model": MODEL,
            "choices": [choice],
            "usage": usage,
        }
    )


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
    uvloop.run(serve(host, port, Options(**given)))


if __name__ == "__main__":
    main()
