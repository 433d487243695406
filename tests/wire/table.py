"""Rows of bad input: each has its number in the checklist, and is sent in three ways.

Whole, byte by byte, and pipelined after a good request: a parser that is strict only when the
head arrives in one piece, or only for the first message of a connection, is not strict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest

from tests.harness import GOOD, Gateway, gateway
from tests.wire.origin import Origin, Request

if TYPE_CHECKING:
    from tests.wire.client import Client, Response

HOST = b"Host: a.test\r\n"
WAYS = ("whole", "bytes", "pipelined")


class Row(NamedTuple):
    """``status`` is what a refusal may answer; ``fin``: the client ends its side after ``raw``."""

    number: int
    name: str
    raw: bytes
    status: tuple[int, ...] = (400,)
    fin: bool = False


class Error(msgspec.Struct, forbid_unknown_fields=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, forbid_unknown_fields=True):
    """OpenAI's error shape."""

    error: Error


def table(rows: Iterable[Row]) -> Callable[[Any], Any]:
    return pytest.mark.parametrize(
        ("row", "way"),
        [
            pytest.param(row, way, id=f"{row.number:03}-{row.name}-{way}")
            for row in rows
            for way in WAYS
        ],
    )


def get(*lines: bytes, target: bytes = b"/x") -> bytes:
    """A GET with a good Host and these further header lines."""
    return b"GET %s HTTP/1.1\r\n%s%s\r\n" % (target, HOST, b"".join(x + b"\r\n" for x in lines))


def post(*lines: bytes, body: bytes = b"", target: bytes = b"/x") -> bytes:
    """A POST with a good Host, these header lines and these bytes behind its head."""
    return b"POST" + get(*lines, target=target)[3:] + body


def chunked(body: bytes, *lines: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", *lines, body=body)


async def deliver(client: Client, raw: bytes, way: str) -> None:
    """Send; pipelined, the good request before it must be answered first, and whole."""
    if way == "bytes":
        await client.drip(raw)
    elif way == "whole":
        await client.send(raw)
    else:
        await client.send(GOOD + raw)
        response = await client.response()
        assert (response.status, response.body) == (200, b"ok")


def check_refusal(response: Response, *statuses: int, reason: str | None = None) -> None:
    """A refusal made here: status, reason header, the error shape of OpenAI or of the Open
    Inference Protocol, and a request id."""
    assert response.status in statuses, response
    code = response.one("x-tailrace-reason").decode()
    assert reason is None or code == reason, response
    assert response.one("content-type").startswith(b"application/json")
    assert response.values("x-request-id"), response
    found = msgspec.json.decode(response.body)["error"]
    if isinstance(found, str):
        assert found
        return
    error = msgspec.json.decode(response.body, type=ErrorBody).error
    assert error.message
    assert error.type
    assert error.code == code


async def refused(row: Row, way: str, *, mid_body: bool = False, **sections: Any) -> None:
    """The row is refused, the connection ends, the origin saw nothing, and life goes on.

    With ``mid_body`` the fault is in the body: its head may have gone upstream, then its
    connection is closed there before the message is complete.
    """
    async with Origin() as origin, gateway(origin, **sections) as g:
        async with g.client() as client:
            await deliver(client, row.raw, way)
            if row.fin:
                client.half_close()
            check_refusal(await client.response(row.raw.partition(b" ")[0]), *row.status)
            assert await client.rest() == b""
        await untouched(origin, g, goods=2 if way == "pipelined" else 1, mid_body=mid_body)


async def untouched(origin: Origin, g: Gateway, goods: int, *, mid_body: bool = False) -> None:
    """No connection is left with half a request; a good request works; nothing else was seen."""
    for connection in origin.connections:
        if connection.requests and not connection.requests[-1].complete:
            assert mid_body, origin.heads
            await origin.until(lambda connection=connection: connection.gone)  # type: ignore[misc]
    after = await g.ask(GOOD)
    assert (after.status, after.body) == (200, b"ok")
    assert [request.target for request in origin.requests] == [b"/good"] * goods
    if not mid_body:
        assert [request.target for request in origin.heads] == [b"/good"] * goods


async def accepted(row: Row, way: str, *, origin: Origin | None = None, **sections: Any) -> Request:
    """The row is answered 200 and leaves its connection usable; what the origin got of it."""
    async with origin or Origin() as origin, gateway(origin, **sections) as g, g.client() as client:
        await deliver(client, row.raw, way)
        response = await client.response(row.raw.partition(b" ")[0])
        assert response.status == 200, response
        request = origin.requests[-1]
        await client.send(GOOD)
        if not response.closes:
            assert (await client.response()).body == b"ok"
    return request
