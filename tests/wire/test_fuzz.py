"""Messages with random faults. No table says what becomes of them, but some things always hold.

For requests: whatever reaches the origin is strict HTTP (its reader sees to that) and nothing of
one client's bytes becomes part of another's exchange. For answers: whatever reaches the client is
strict HTTP, and a broken answer never spoils the one after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import GOOD, gateway
from tests.wire.client import TruncatedError
from tests.wire.origin import Connection, Origin, Request, by_target
from tests.wire.table import chunked, get, post
from tests.wire.test_hostile_upgrade import SWITCH, WEBSOCKET

REQUESTS = [
    get(b"Accept: */*", b"Connection: keep-alive"),
    post(b"Content-Length: 5", body=b"hello"),
    chunked(b"5;a=b\r\nhello\r\n2\r\nhi\r\n0\r\nX-T: 1\r\n\r\n"),
    post(b"Expect: 100-continue", b"Content-Length: 5", body=b"hello"),
    b"HEAD http://a.test/x?y HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
    b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    get(*WEBSOCKET) + b"frame",
]
RESPONSES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a\r\nhello\r\n0\r\nX: 1\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 204 No Content\r\nServer: x\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 304 Not Modified\r\nETag: a\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nuntil the end",
    SWITCH + b"tunnel",
]
SPARKS = [
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\0",
        b" ",
        b"\t",
        b":",
        b",",
        b";",
        b"0",
        b"9",
        b"\x80",
        b"\r\n\r\n",
    ),
    *(b"\r\nContent-Length: 0", b"\r\nTransfer-Encoding: chunked", b"\r\nHost: b", b"\r\n x"),
    *(b"0\r\n\r\n", b"GET /y HTTP/1.1\r\n", b"HTTP/1.1 100 C\r\n\r\n", b"\r\nConnection: upgrade"),
]


@st.composite
def spoiled(draw: st.DrawFn, messages: list[bytes]) -> bytes:
    """A good message with one to three pieces cut out, put in or doubled."""
    data = draw(st.sampled_from(messages))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        piece = draw(st.one_of(st.sampled_from(SPARKS), st.binary(min_size=1, max_size=2)))
        kind = draw(st.sampled_from(["insert", "replace", "cut", "double"]))
        length = draw(st.integers(1, 8))
        if kind == "insert":
            data = data[:at] + piece + data[at:]
        elif kind == "replace":
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == "cut":
            data = data[:at] + data[at + length :]
        else:
            data = data[:at] + data[at : at + length] + data[at:]
    return data


def run(test: Coroutine[object, object, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test)


async def whole(connection: Connection, request: Request) -> None:
    await connection.body(request)
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@settings(max_examples=250)
@given(raw=spoiled(REQUESTS), pieces=st.integers(1, 4))
def test_spoiled_requests_reach_nobody_spoiled(raw: bytes, pieces: int) -> None:
    async def test() -> None:
        async with Origin(whole) as origin, gateway(origin) as g:
            async with g.client() as client:
                step = max(1, -(-len(raw) // pieces))
                for at in range(0, len(raw), step):
                    await client.send(raw[at : at + step])
                    await asyncio.sleep(0)
                client.half_close()
                await client.rest()
            after = await g.ask(GOOD)
            assert (after.status, after.body) == (200, b"ok")
            assert origin.requests[-1].target == b"/good"

    run(test())


@settings(max_examples=250)
@given(raw=spoiled(RESPONSES), data=st.data())
def test_spoiled_answers_reach_nobody_spoiled(raw: bytes, data: st.DataObject) -> None:
    close = data.draw(st.booleans())

    async def spoil(connection: Connection, request: Request) -> None:
        connection.send(raw)
        await gave_up.wait()
        connection.close()

    async def test() -> None:
        async with Origin(by_target({b"/x": spoil})) as origin, gateway(origin) as g:
            async with g.client() as client:
                await client.send(get())
                if close:
                    gave_up.set()
                else:
                    # An answer may be whole without its connection's end; if not, it ends now.
                    await origin.until(lambda: bool(origin.requests))
                    asyncio.get_running_loop().call_later(0.05, gave_up.set)
                try:
                    response = await client.response()
                except TruncatedError:
                    pass
                else:
                    await client.send(GOOD)
                    if not response.closes and response.status != 101:
                        assert (await client.response()).body == b"ok"
            after = await g.ask(GOOD)
            assert (after.status, after.body) == (200, b"ok")

    gave_up = asyncio.Event()
    run(test())
