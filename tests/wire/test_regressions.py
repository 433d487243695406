"""What reviews and users have found, each with the way it showed."""

import asyncio
import socket
import struct

import msgspec
import pytest

from filters.deadline import Config as Deadline
from gateway.config import (
    Balance,
    Cluster,
    Connections,
    Drain,
    Endpoint,
    Health,
    Limits,
    RequestHeaders,
    Retry,
    Secret,
)
from tests.harness import GOOD, configure, eventually, gateway
from tests.wire.client import Client
from tests.wire.origin import Connection, Origin, Request, answer
from tests.wire.table import get, post

OK = b"HTTP/1.1 200 OK\r\n"
STREAM = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
KEEN = Retry(attempts=4)


def endpoint_of(g: object) -> object:
    return next(iter(g.server.memberships["c"].cluster.endpoints.values()))  # type: ignore[attr-defined]


async def test_a_dns_endpoint_serves() -> None:
    async with Origin() as origin:
        port = origin.url.rpartition(":")[2]
        config = configure("http://unused:1")
        cluster = Cluster(endpoints=(Endpoint(dns=f"http://localhost:{port}"),))
        from gateway.server import Server

        server = Server(msgspec.structs.replace(config, clusters={"c": cluster}))
        await server.start()
        try:
            await eventually(lambda: bool(server.memberships["c"].cluster.endpoints))
            async with await Client.connect(server.addresses[0]) as client:
                statuses = set()
                for _ in range(6):
                    await client.send(GOOD)
                    statuses.add((await client.response()).status)
            # localhost may also be ::1, where nobody listens.
            assert 200 in statuses
            assert statuses <= {200, 502}
        finally:
            await server.stop()


async def test_a_reset_is_no_end_of_a_close_delimited_answer() -> None:
    async def script(connection: Connection, request: Request) -> None:
        connection.send(OK + b"Connection: close\r\n\r\npart")
        await asyncio.sleep(0.05)  # so that the part is read before the reset takes it away
        connection.reset()

    async with Origin(script) as origin, gateway(origin) as g, g.client() as client:
        await client.send(GOOD)
        rest = await client.rest()
        assert b"part" in rest
        assert not rest.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("minor", [b"0", b"1"])
async def test_a_client_that_leaves_a_silent_stream_is_noticed(minor: bytes) -> None:
    async def script(connection: Connection, request: Request) -> None:
        connection.send(STREAM if minor == b"1" else b"")
        await connection.until(lambda: connection.gone)

    async with Origin(script) as origin, gateway(origin) as g:
        client = await Client.connect(g.address)
        await client.send(b"GET /x HTTP/1." + minor + b"\r\nHost: a\r\n\r\n")
        if minor == b"1":
            assert (await client.head()).status == 200
        else:
            await origin.until(lambda: bool(origin.requests))
        await client.close()
        await origin.until(lambda: origin.open == 0)


async def test_answers_that_nobody_reads_stop_the_requests_behind_them() -> None:
    body = b"x" * 60_000
    raw = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    async with (
        Origin(answer(raw)) as origin,
        gateway(origin) as g,
        g.client(receive_buffer=4096) as client,
    ):
        await client.send(GOOD * 400)
        connection = next(iter(g.server.acceptor.connections))
        await eventually(lambda: connection.choked)
        served = -1
        while served != len(origin.requests):
            served = len(origin.requests)
            await asyncio.sleep(0.1)
        assert connection.transport.get_write_buffer_size() < 400_000
        assert served < 400
        for _ in range(400):
            assert len((await client.response()).body) == len(body)


async def test_a_slow_client_gets_its_last_answer_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.farewell.LINGER_S", 0.2)
    body = b"y" * 3_000_000
    raw = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    async with (
        Origin(answer(raw)) as origin,
        gateway(origin) as g,
        g.client(receive_buffer=4096) as client,
    ):
        await client.send(get(b"Connection: close"))
        await asyncio.sleep(0.8)
        assert (await client.response()).body == body


async def test_health_survives_a_reload_that_makes_endpoints_anew() -> None:
    health = Health(kind="tcp", interval=0.05, timeout=1)
    async with (
        Origin() as origin,
        gateway(origin, "http://127.0.0.1:1", cluster={"health": health}) as g,
    ):
        endpoints = g.server.memberships["c"].cluster.endpoints
        await eventually(lambda: not endpoints["127.0.0.1:1"].healthy)
        cluster = msgspec.structs.replace(g.server.config.clusters["c"], connect_timeout=2.0)
        assert await g.server.reload(
            msgspec.structs.replace(g.server.config, clusters={"c": cluster})
        )
        endpoint = g.server.memberships["c"].cluster.endpoints["127.0.0.1:1"]
        assert not endpoint.healthy
        assert "fails its check" in endpoint.why


async def test_a_reload_does_not_undo_a_drain() -> None:
    drain = Drain(grace=0, timeout=5)
    async with Origin() as origin, gateway(origin, drain=drain) as g:
        await g.server.drain()
        assert not await g.server.reload(g.server.config)
        assert not g.server.listening


async def test_a_large_upload_of_which_nothing_was_sent_is_sent_elsewhere() -> None:
    limits = Limits(replay_bytes=1000)
    body = b"z" * 500_000
    async with (
        Origin() as origin,
        gateway(
            "http://127.0.0.1:1",
            origin,
            retry=KEEN,
            limits=limits,
            cluster={"balance": Balance(policy="round_robin")},
        ) as g,
    ):
        for _ in range(6):
            async with g.client() as client:
                await client.send(post(b"Content-Length: %d" % len(body), target=b"/files") + body)
                assert (await client.response()).status == 200
        assert all(len(request.body) == len(body) for request in origin.requests)


async def test_a_route_replaces_host_and_removes_what_is_ours() -> None:
    headers = RequestHeaders(
        set={"host": Secret("model.internal")}, remove=("x-forwarded-for", "x-request-id")
    )
    async with Origin() as origin, gateway(origin, route={"request_headers": headers}) as g:
        assert (await g.ask(GOOD)).status == 200
        request = origin.requests[0]
        assert request.values("host") == [b"model.internal"]
        assert request.values("x-forwarded-for") == request.values("x-request-id") == []


async def test_limits_change_with_a_reload() -> None:
    many = OK + b"X-Y: 1\r\n" * 150 + b"Content-Length: 0\r\n\r\n"
    async with Origin(answer(many)) as origin, gateway(origin) as g:
        assert (await g.ask(GOOD)).status == 502
        limits = msgspec.structs.replace(g.server.config.limits, headers=200, connections=1)
        assert await g.server.reload(msgspec.structs.replace(g.server.config, limits=limits))
        assert (await g.ask(GOOD)).status == 200
        assert g.server.acceptor._most == 1


async def test_details_of_our_own_side_stay_in_the_log() -> None:
    async with gateway("http://127.0.0.1:1") as g:
        response = await g.ask(GOOD)
        assert response.status == 502
        assert b"127.0.0.1" not in response.body
        assert b"Errno" not in response.body


async def test_a_tunnel_whose_client_does_not_read_ends() -> None:
    async def script(connection: Connection, request: Request) -> None:
        connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        connection.send(b"x" * 20_000_000)
        await connection.until(lambda: connection.gone)

    async with (
        Origin(script) as origin,
        gateway(origin, deadline=Deadline(stall=0.2)) as g,
        g.client(receive_buffer=4096) as client,
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gateway.tunnel.GRACE_S", 0.2)
            await client.send(
                get(
                    b"Connection: Upgrade",
                    b"Upgrade: websocket",
                    b"Sec-WebSocket-Version: 13",
                    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                )
            )
            await eventually(lambda: not g.server.acceptor.connections)


async def test_deeply_nested_json_costs_no_permit() -> None:
    body = b'{"inputs":' + b"[" * 20_000
    refused = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
    async with Origin(answer(refused)) as origin, gateway(origin, retry=KEEN) as g:
        head = post(b"Content-Length: %d" % len(body), target=b"/v2/models/m/infer")
        for _ in range(3):
            assert (await g.ask(head + body)).status == 503
        assert endpoint_of(g).active == 0  # type: ignore[attr-defined]


async def test_a_pool_never_exceeds_its_bound() -> None:
    go = asyncio.Event()

    async def script(connection: Connection, request: Request) -> None:
        await go.wait()
        connection.send(OK + b"Content-Length: 0\r\nConnection: close\r\n\r\n")

    bound = {"connections": Connections(max=2), "connect_timeout": 5.0}
    async with Origin(script) as origin, gateway(origin, cluster=bound) as g:
        asked = [asyncio.ensure_future(g.ask(GOOD)) for _ in range(12)]
        await origin.until(lambda: len(origin.requests) == 2)
        go.set()
        most = 0
        while not all(each.done() for each in asked):
            most = max(most, endpoint_of(g).pool.open)  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        assert {each.result().status for each in asked} == {200}
        assert most == 2
        await eventually(lambda: endpoint_of(g).pool.open == 0)  # type: ignore[attr-defined]


async def test_a_client_that_was_gone_before_it_was_accepted_is_not_trusted() -> None:
    async with Origin() as origin, gateway(origin, trust=("10.0.0.0/8",)) as g:
        assert (await g.ask(GOOD)).status == 200  # a warm connection, so that nothing is awaited
        forged = get(b"X-Forwarded-For: 10.0.0.1", b"X-Real-IP: 10.0.0.1", target=b"/evil")
        with socket.create_connection(g.address) as ghost:
            ghost.send(forged)
            ghost.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert (await g.ask(GOOD)).status == 200
        evil = [each for each in origin.heads if each.target == b"/evil"]
        assert all(each.values("x-real-ip") == [] for each in evil)


async def test_what_breaks_off_with_its_head_is_counted() -> None:
    async with Origin() as origin, gateway(origin) as g:
        raw = post(b"Transfer-Encoding: chunked") + b"nonsense\r\n"
        assert (await g.ask(raw)).status == 400
        await eventually(lambda: bool(g.server.telemetry.metrics.routes))
        counters = next(iter(g.server.telemetry.metrics.routes.values()))
        await eventually(lambda: sum(counters.requests.values()) == 1)
        assert g.server.acceptor.replay.held == 0
