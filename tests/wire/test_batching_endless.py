"""Answers to batches that do not end: what is taken of them is bounded, and so is their time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from tests.harness import eventually
from tests.wire.oip import ALONE, ask, bench, check
from tests.wire.table import check_refusal

if TYPE_CHECKING:
    from tests.wire.origin import Connection, Request

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


async def test_an_endless_answer_is_broken_off() -> None:
    gone: list[bool] = []

    async def watched(connection: Connection, request: Request) -> None:
        connection.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.send((b"1000\r\n" + b"x" * 4096 + b"\r\n") * 20)  # and never the end
        await connection.until(lambda: connection.gone)
        gone.append(True)

    async with bench(replace(ALONE, answer=16 * 1024)) as b:
        b.model.faults.append(watched)
        response = await b.gateway.ask(ask([1]), b"POST")
        check_refusal(response, 502, reason="batch_answer")
        await eventually(lambda: gone == [True])
        check(await b.gateway.ask(ask([2]), b"POST"), [2])
        await b.idle()


async def test_an_answer_that_is_too_large_for_several_is_not_for_fewer() -> None:
    """The bound is ours: callers are answered in smaller batches, and no endpoint is blamed."""
    async with bench(replace(ALONE, answer=1024, max_rows=64)) as b:
        wide = [[n] * 100 for n in range(4)]  # 800 bytes of answer each
        responses = await b.together(*(ask(row, width=100) for row in wide))
        for response, row in zip(responses, wide, strict=True):
            check(response, row)
        (endpoint,) = b.gateway.server.wiring.clusters["c"].endpoints.values()
        assert endpoint.failed == 0
        await b.idle()


async def test_a_large_answer_that_comes_whole_is_as_bad_and_harms_nobody_after() -> None:
    async def large(connection: Connection, request: Request) -> None:
        body = b"x" * 64 * 1024
        connection.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    async with bench(replace(ALONE, answer=16 * 1024)) as b:
        for n in range(5):
            b.model.faults.append(large)
            response = await b.gateway.ask(ask([n]), b"POST")
            check_refusal(response, 502, reason="batch_answer")
            check(await b.gateway.ask(ask([n]), b"POST"), [n])
        await b.idle()
