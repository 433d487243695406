"""Four clocks upstream under one deadline, three downstream; each with its own reason code.

The values are small so that the tests are short; no test depends on one clock being faster than
the machine, because in each test only one clock can end the exchange.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from filters.deadline import Config as Deadline
from gateway.config import Connections, Timeouts
from tests.harness import GOOD, gateway
from tests.wire.client import TruncatedError
from tests.wire.origin import BOUND, Connection, Origin, Request, answer, silent
from tests.wire.table import check_refusal, chunked, get, post

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def blackhole() -> Iterator[str]:
    """An address whose accept queue is full: connecting neither succeeds nor fails."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=0)
    address = listening.getsockname()
    fillers: list[socket.socket] = []
    try:
        while len(fillers) < 100:
            fillers.append(socket.socket())
            fillers[-1].settimeout(0.3)
            try:
                fillers[-1].connect(address)
            except TimeoutError:
                break
        yield f"http://127.0.0.1:{address[1]}"
    finally:
        for each in (*fillers, listening):
            each.close()


async def test_connect(blackhole: str) -> None:
    async with gateway(blackhole, cluster={"connect_timeout": 0.2}) as g:
        check_refusal(await g.ask(get()), 504, reason="connect_timeout")


async def test_first_byte_without_any_answer() -> None:
    async with Origin(silent) as origin, gateway(origin, deadline=Deadline(first_byte=0.2)) as g:
        check_refusal(await g.ask(get()), 504, reason="first_byte_timeout")
        await origin.until(lambda: origin.open == 0)


async def test_first_byte_of_the_body_after_the_head() -> None:
    async def script(connection: Connection, request: Request) -> None:
        connection.send(HEAD)
        await connection.until(lambda: connection.gone)

    async with Origin(script) as origin, gateway(origin, deadline=Deadline(first_byte=0.2)) as g:
        with pytest.raises(TruncatedError):
            await g.ask(get())
        await origin.until(lambda: origin.open == 0)


async def test_interim_answers_do_not_restart_the_first_byte_clock() -> None:
    async def script(connection: Connection, request: Request) -> None:
        for _ in range(3):
            connection.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        await connection.until(lambda: connection.gone)

    async with Origin(script) as origin, gateway(origin, deadline=Deadline(first_byte=0.2)) as g:
        response = await g.ask(get())
        check_refusal(response, 504, reason="first_byte_timeout")


async def test_142_stall_between_bytes_truncates_visibly() -> None:
    async def script(connection: Connection, request: Request) -> None:
        connection.send(HEAD + b"5\r\nhello\r\n")
        await connection.until(lambda: connection.gone)

    async with Origin(script) as origin, gateway(origin, deadline=Deadline(stall=0.2)) as g:
        with pytest.raises(TruncatedError) as caught:
            await g.ask(get())
        assert caught.value.body == b"hello"
        await origin.until(lambda: origin.open == 0)


async def test_142_a_slow_stream_that_never_stalls_is_not_cut() -> None:
    """Longer in all than the stall clock, each gap far below it."""

    async def script(connection: Connection, request: Request) -> None:
        connection.send(HEAD)
        for _ in range(30):
            connection.send(b"1\r\nx\r\n")
            await asyncio.sleep(0.05)
        connection.send(b"0\r\n\r\n")

    async with Origin(script) as origin, gateway(origin, deadline=Deadline(stall=1.2)) as g:
        assert (await g.ask(get())).body == b"x" * 30


@pytest.mark.parametrize("source", ["header", "default", "max"])
async def test_total_before_the_head_is_504(source: str) -> None:
    deadline = {
        "header": Deadline(),
        "default": Deadline(default=0.2),
        "max": Deadline(max=0.2),
    }[source]
    lines = [b"x-request-timeout-ms: 200"] if source == "header" else []
    async with Origin(silent) as origin, gateway(origin, deadline=deadline) as g:
        check_refusal(await g.ask(get(*lines)), 504, reason="deadline")
        await origin.until(lambda: origin.open == 0)


async def test_total_after_the_head_truncates_visibly() -> None:
    async def drip(connection: Connection, request: Request) -> None:
        connection.send(HEAD)
        while not connection.gone:
            connection.send(b"1\r\nx\r\n")
            await asyncio.sleep(0.01)

    async with Origin(drip) as origin, gateway(origin) as g:
        with pytest.raises(TruncatedError):
            await g.ask(get(b"x-request-timeout-ms: 300"))
        await origin.until(lambda: origin.open == 0)


async def test_the_remaining_time_is_sent_upstream() -> None:
    async with Origin() as origin, gateway(origin) as g:
        assert (await g.ask(get(b"x-request-timeout-ms: 5000"))).status == 200
        assert 0 < int(origin.requests[0].one("x-request-timeout-ms")) <= 5000


BAD_DEADLINES = [
    *(
        b"-1",
        b"-5000",
        b"nan",
        b"inf",
        b"1e309",
        b"abc",
        b"",
        b"0x10",
        b"1_0",
        b"5s",
        b"+5",
        b"\xb2",
    ),
    b"9" * 100,
]


@pytest.mark.parametrize("trust", [("127.0.0.0/8",), ()], ids=["trusted", "untrusted"])
@pytest.mark.parametrize("value", BAD_DEADLINES)
async def test_154_bad_deadlines_are_ignored(value: bytes, trust: tuple[str, ...]) -> None:
    deadline = Deadline(default=50.0)
    async with Origin() as origin, gateway(origin, deadline=deadline, trust=trust) as g:
        assert (await g.ask(get(b"x-request-timeout-ms: " + value))).status == 200
        for sent in origin.requests[0].values("x-request-timeout-ms"):
            assert 0 < int(sent) <= 50_000


@pytest.mark.parametrize("value", [b"60001", b"3600001", b"99999999999"])
async def test_154_huge_deadlines_are_bounded_by_the_routes(value: bytes) -> None:
    async with Origin() as origin, gateway(origin, deadline=Deadline(max=60.0)) as g:
        assert (await g.ask(get(b"x-request-timeout-ms: " + value))).status == 200
        assert 0 < int(origin.requests[0].one("x-request-timeout-ms")) <= 60_000


async def test_154_untrusted_clients_only_shorten() -> None:
    deadline = Deadline(default=20.0, max=60.0)
    async with Origin() as origin, gateway(origin, deadline=deadline, trust=()) as g:
        for asked in (b"50000", b"1000"):
            assert (await g.ask(get(b"x-request-timeout-ms: " + asked))).status == 200
        longer, shorter = (int(r.one("x-request-timeout-ms")) for r in origin.requests)
        assert 0 < longer <= 20_000
        assert 0 < shorter <= 1000


async def test_154_forwarding_headers_of_untrusted_clients_are_replaced() -> None:
    lines = (
        b"X-Forwarded-For: 9.9.9.9",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host: evil.test",
        b"Forwarded: for=9.9.9.9",
        b"X-Real-IP: 9.9.9.9",
        b"X-Tailrace-Endpoint: x",
    )
    async with Origin() as origin:
        async with gateway(origin, trust=()) as g:
            assert (await g.ask(get(*lines))).status == 200
        request = origin.requests[0]
        assert request.values("x-forwarded-for") == [b"127.0.0.1"]
        assert request.values("x-forwarded-proto") == [b"http"]
        assert b"evil.test" not in request.values("x-forwarded-host")
        assert not any(b"9.9.9.9" in value for value in request.values("forwarded"))
        assert request.values("x-tailrace-endpoint") == []
        async with gateway(origin) as g:
            assert (await g.ask(get(*lines))).status == 200
        chain = (
            b",".join(origin.requests[1].values("x-forwarded-for")).replace(b" ", b"").split(b",")
        )
        assert chain == [b"9.9.9.9", b"127.0.0.1"]


async def test_idle_connections_downstream_are_closed() -> None:
    async with (
        Origin() as origin,
        gateway(origin, timeouts=Timeouts(idle=0.2)) as g,
        g.client() as client,
    ):
        await client.send(GOOD)
        assert (await client.response()).status == 200
        assert await client.rest() == b""
        assert client.ended == "eof"


async def test_idle_connections_upstream_are_closed() -> None:
    cluster = {"connections": Connections(idle=0.2)}
    async with Origin() as origin, gateway(origin, cluster=cluster) as g:
        assert (await g.ask(GOOD)).status == 200
        await origin.until(lambda: origin.open == 0)
        assert (await g.ask(GOOD)).status == 200


async def test_the_idle_clock_does_not_run_while_an_answer_is_awaited() -> None:
    release = asyncio.Event()

    async def late(connection: Connection, request: Request) -> None:
        await release.wait()
        await answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")(connection, request)

    timeouts = Timeouts(head=0.1, idle=0.1, body_idle=0.1)
    async with (
        Origin(late) as origin,
        gateway(origin, timeouts=timeouts) as g,
        g.client() as watched,
        g.client() as client,
    ):
        await client.send(get())
        await origin.until(lambda: bool(origin.heads))
        # The one that sends nothing is closed: by then the other clocks would have fired too.
        await watched.rest()
        async with g.client() as second:
            await second.rest()
        release.set()
        assert (await client.response()).body == b"ok"


async def test_a_body_that_keeps_coming_is_not_timed_out() -> None:
    async with (
        Origin() as origin,
        gateway(origin, timeouts=Timeouts(body_idle=1.0)) as g,
        g.client() as client,
        asyncio.timeout(BOUND),
    ):
        await client.send(post(b"Content-Length: 30"))
        for _ in range(30):
            await client.send(b"x")
            await asyncio.sleep(0.05)
        assert (await client.response()).status == 200


async def test_a_chunked_body_that_stops_is_408_and_cancels_upstream() -> None:
    async with Origin() as origin, gateway(origin, timeouts=Timeouts(body_idle=0.2)) as g:
        async with g.client() as client:
            await client.send(chunked(b"5\r\nhello\r\n"))
            check_refusal(await client.response(), 408, reason="body_timeout")
        await origin.until(lambda: origin.open == 0)
        assert origin.requests == []
