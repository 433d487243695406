"""A gateway that recognises the heads it has seen relays what each message says, not the last."""

from __future__ import annotations

import msgspec

from gateway.config import RequestHeaders, Secret
from tests.harness import gateway
from tests.wire.origin import Connection, Origin, Request, answer, each, echo
from tests.wire.table import get, post

TURNS = 5
"""Requests of a kind, on one connection: the third is the first that can be recognised."""


def counted(body: bytes, *lines: bytes) -> bytes:
    return post(*lines, b"Content-Length: %d" % len(body), body=body)


async def test_lengths_ids_and_credentials_are_those_of_each_request() -> None:
    async with Origin(echo) as origin, gateway(origin) as g, g.client() as client:
        sent = [(b"Bearer %d" % (n // TURNS), b"id-%d" % n, b"x" * (n * n + 1)) for n in range(25)]
        for number, (bearer, name, body) in enumerate(sent):
            raw = counted(body, b"Authorization: " + bearer, b"X-Request-Id: " + name)
            if number % 7 == 6:
                await client.send(raw[:40])
                await client.send(raw[40:])
            else:
                await client.send(raw)
            response = await client.response()
            assert response.body == body
            assert response.one("x-request-id") == name
        assert len(origin.connections) == 1
        for request, (bearer, name, body) in zip(origin.requests, sent, strict=True):
            assert request.one("authorization") == bearer
            assert request.one("x-request-id") == name
            assert request.one("content-length") == b"%d" % len(body)


async def test_repeated_requests_can_be_pipelined() -> None:
    async with Origin(echo) as origin, gateway(origin) as g, g.client() as client:
        for _ in range(TURNS):
            await client.send(counted(b"first") + counted(b"second!"))
            assert (await client.response()).body == b"first"
            assert (await client.response()).body == b"second!"


async def test_the_answer_to_head_has_no_body_however_well_its_head_is_known() -> None:
    async def script(connection: Connection, request: Request) -> None:
        body = b"" if request.method == b"HEAD" else b"ok"
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + body)

    async with Origin(script) as origin, gateway(origin) as g, g.client() as client:
        for _ in range(TURNS):
            for method in (b"GET", b"GET", b"GET", b"HEAD"):
                await client.send(method + get()[3:])
                response = await client.response(method)
                assert response.one("content-length") == b"2"
                assert response.body == (b"" if method == b"HEAD" else b"ok")


async def test_answers_keep_their_own_length_id_and_cookie() -> None:
    raw = b"HTTP/1.1 200 OK\r\nX-Request-Id: %d\r\n%bContent-Length: %d\r\n\r\n%b"
    bodies = [b"y" * n for n in range(30)]
    cookies = [b"Set-Cookie: n=%d\r\n" % n if n % 4 == 3 else b"" for n in range(30)]
    scripts = [
        answer(raw % (n, cookie, len(body), body))
        for n, (body, cookie) in enumerate(zip(bodies, cookies, strict=True))
    ]
    async with Origin(each(*scripts)) as origin, gateway(origin) as g, g.client() as client:
        for body, cookie in zip(bodies, cookies, strict=True):
            await client.send(get(b"X-Request-Id: ours"))
            response = await client.response()
            assert response.body == body
            assert response.one("x-request-id") == b"ours"
            assert len(response.values("set-cookie")) == bool(cookie)


async def test_a_reload_changes_what_is_made_of_a_known_head() -> None:
    async with Origin() as origin, gateway(origin) as g, g.client() as client:
        config = g.server.config
        for value in ("1", "2"):
            headers = RequestHeaders(set={"x-new": Secret(value=value)})
            route = msgspec.structs.replace(config.routes[0], request_headers=headers)
            for routes in ((route,), config.routes):
                assert await g.server.reload(msgspec.structs.replace(config, routes=routes))
                for _ in range(TURNS):
                    await client.send(get(b"X-A: 1"))
                    await client.response()
                seen = [request.values("x-new") for request in origin.requests[-TURNS:]]
                wanted = [value.encode()] if routes is not config.routes else []
                assert seen == [wanted] * TURNS


async def test_a_lower_limit_holds_for_a_known_head() -> None:
    async with Origin(echo) as origin, gateway(origin) as g, g.client() as client:
        for _ in range(TURNS):
            await client.send(counted(b"12345"))
            assert (await client.response()).status == 200
        limits = msgspec.structs.replace(g.server.config.limits, body_bytes=4)
        assert await g.server.reload(msgspec.structs.replace(g.server.config, limits=limits))
        await client.send(counted(b"12345"))
        assert (await client.response()).status == 413
