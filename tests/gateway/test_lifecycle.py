"""Start, reload, drain: nobody may notice the first two, and the third only as a good-bye."""

import asyncio
import contextlib
import socket
from pathlib import Path

import msgspec
import pytest

from gateway.config import Cluster, Config, Drain, Endpoint, Listener
from gateway.server import Server
from tests.harness import GOOD, configure, eventually, gateway
from tests.wire.client import Client
from tests.wire.origin import Connection, Origin, Request

FAST = Drain(grace=0.1, timeout=5)


def change(config: Config, **fields: object) -> Config:
    return msgspec.structs.replace(config, **fields)


async def test_start_does_not_wait_for_an_upstream() -> None:
    async with gateway("http://127.0.0.1:1") as g:
        assert g.server.ready


async def test_a_port_in_use_leaves_nothing_open() -> None:
    async with gateway("http://127.0.0.1:1") as g:
        taken = f"127.0.0.1:{g.address[1]}"
        listeners = (Listener(address="127.0.0.1:0"), Listener(address=taken))
        second = Server(change(configure("http://127.0.0.1:1"), listen=listeners))
        with pytest.raises(OSError, match="in use"):
            await second.start()
        assert second.addresses == []


async def test_no_request_fails_across_twenty_reloads_under_load() -> None:
    """Every second reload brings a second endpoint, changed limits and another listener."""
    async with Origin() as one, Origin() as two, gateway(one) as g:
        small = g.server.config
        endpoints = (Endpoint(url=one.url), Endpoint(url=two.url))
        extra = (*small.listen, Listener(address="localhost:0"))
        large = change(
            small,
            clusters={"c": Cluster(endpoints=endpoints)},
            listen=extra,
            limits=msgspec.structs.replace(small.limits, body_bytes=5_000_000),
        )
        answered = 0
        stop = False

        async def load() -> None:
            nonlocal answered
            async with g.client() as client:
                while not stop:
                    await client.send(GOOD)
                    assert (await client.response()).status == 200
                    answered += 1

        tasks = [asyncio.ensure_future(load()) for _ in range(8)]
        for number in range(20):
            before = answered
            assert await g.server.reload(large if number % 2 == 0 else small)
            await eventually(lambda before=before: answered >= before + 20)
        stop = True
        await asyncio.gather(*tasks)
        assert g.server.reloads == 20
        assert len(two.requests) > 0


async def test_endpoints_that_stay_keep_their_connections() -> None:
    async with Origin() as origin, gateway(origin) as g:
        assert (await g.ask(GOOD)).status == 200
        endpoint = next(iter(g.server.memberships["c"].cluster.endpoints.values()))
        assert await g.server.reload(g.server.config)
        assert next(iter(g.server.memberships["c"].cluster.endpoints.values())) is endpoint
        assert (await g.ask(GOOD)).status == 200
        assert len(origin.connections) == 1


async def test_a_running_exchange_ends_on_the_configuration_it_began_with() -> None:
    go = asyncio.Event()

    async def slow(connection: Connection, request: Request) -> None:
        await go.wait()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold")

    async with Origin(slow) as old, Origin() as new, gateway(old) as g:
        pending = asyncio.ensure_future(g.ask(GOOD))
        await old.until(lambda: bool(old.requests))
        clusters = {"c": Cluster(endpoints=(Endpoint(url=new.url),))}
        assert await g.server.reload(change(g.server.config, clusters=clusters))
        assert (await g.ask(GOOD)).status == 200
        assert len(new.requests) == 1
        go.set()
        assert (await pending).body == b"old"
        await old.until(lambda: old.open == 0)


async def test_a_bad_file_changes_nothing_and_shows(tmp_path: Path) -> None:
    path = tmp_path / "tailrace.yaml"
    async with Origin() as origin:
        good = f"""
listen: 127.0.0.1:0
admin: off
telemetry: {{access_log: off}}
clusters: {{c: {{endpoints: ["{origin.url}"]}}}}
routes: [{{path: /, cluster: c}}]
"""
        path.write_text(good)
        from gateway.config_source import load

        server = Server(load(path), path)
        await server.start()
        try:
            server.watch_file()
            wiring = server.wiring
            path.write_text(good.replace("cluster: c", "cluster: d"))
            await eventually(lambda: server.reload_failures == 1)
            assert server.wiring is wiring
            assert "d" in (server.reload_error or "")
            # The way Kubernetes does it: another file under the same name.
            other = tmp_path / "other.yaml"
            other.write_text(good + "timeouts: {idle: 60s}\n")
            other.replace(path)
            await eventually(lambda: server.reloads == 1)
            assert server.acceptor.timeouts.idle == 60
            assert server.reload_error is None
        finally:
            await server.stop()


async def test_a_drain_serves_on_then_says_good_bye() -> None:
    async with Origin() as origin, gateway(origin, drain=FAST) as g, g.client() as client:
        await client.send(GOOD)
        assert (await client.response()).status == 200
        drained = g.server.drain()
        await eventually(lambda: not g.server.ready)
        assert (await g.ask(GOOD)).status == 200  # not ready, but serving
        await eventually(lambda: not g.server.listening)
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await Client.connect(g.address)
        assert await drained
        assert await client.rest() == b""


async def test_a_drain_waits_for_streams_and_closes_behind_them() -> None:
    go = asyncio.Event()

    async def stream(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await go.wait()
        connection.send(b"3\r\ntwo\r\n0\r\n\r\n")

    async with Origin(stream) as origin, gateway(origin, drain=FAST) as g, g.client() as client:
        await client.send(GOOD)
        await origin.until(lambda: bool(origin.requests))
        drained = g.server.drain()
        await eventually(lambda: not g.server.listening)
        assert not drained.done()
        go.set()
        assert (await client.response()).body == b"onetwo"
        assert await drained


async def test_a_drain_has_a_hard_end() -> None:
    async def silent(connection: Connection, request: Request) -> None:
        await connection.until(lambda: connection.gone)

    bound = Drain(grace=0, timeout=0.2)
    async with Origin(silent) as origin, gateway(origin, drain=bound) as g, g.client() as client:
        await client.send(GOOD)
        await origin.until(lambda: bool(origin.requests))
        assert not await g.server.drain()


async def test_no_request_fails_across_a_drain_behind_a_second_instance() -> None:
    """The client is a load balancer in small: it follows readiness and the good-byes."""
    grace = Drain(grace=0.3, timeout=5)
    async with Origin() as origin, gateway(origin) as second:  # noqa: SIM117  one ends first
        async with gateway(origin, drain=grace) as first:
            answered = 0
            stop = False

            async def load() -> None:
                nonlocal answered
                client: Client | None = None
                while not stop:
                    if client is None:
                        chosen = first if first.server.ready else second
                        try:
                            client = await Client.connect(chosen.address)
                        except OSError:  # it closed in between; no request was sent
                            client = await Client.connect(second.address)
                    await client.send(GOOD)
                    response = await client.response()
                    assert response.status == 200
                    answered += 1
                    if (b"connection", b"close") in response.headers:
                        await client.close()
                        client = None
                if client is not None:
                    await client.close()

            tasks = [asyncio.ensure_future(load()) for _ in range(8)]
            await eventually(lambda: answered > 100)
            assert await first.server.drain()
            before = answered
            await eventually(lambda: answered > before + 100 or any(t.done() for t in tasks))
            stop = True
            await asyncio.gather(*tasks)


async def test_stop_gives_every_upstream_connection_back() -> None:
    async def silent(connection: Connection, request: Request) -> None:
        await connection.until(lambda: connection.gone)

    async with Origin(silent) as origin:
        async with gateway(origin) as g:
            clients = [await Client.connect(g.address) for _ in range(10)]
            for client in clients:
                await client.send(GOOD)
            await origin.until(lambda: len(origin.requests) == 10)
            endpoint = next(iter(g.server.memberships["c"].cluster.endpoints.values()))
            assert endpoint.active == 10
        await origin.until(lambda: origin.open == 0)
        assert endpoint.active == 0
        assert endpoint.pool.open == 0
        for client in clients:
            with contextlib.suppress(OSError):
                await client.close()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    listener = {"address": f"unix:{path}"}
    async with Origin() as origin, gateway(origin, listener=listener) as g:
        assert g.address == str(path)
        assert (await g.ask(GOOD)).status == 200
        second = Server(configure(origin, listener=listener))
        with pytest.raises(OSError, match="in use"):
            await second.start()
        assert (await g.ask(GOOD)).status == 200
    assert not path.exists()


async def test_a_reload_that_fails_half_way_leaves_no_listener_behind() -> None:
    async with Origin() as origin, gateway(origin) as g, gateway(origin) as other:
        taken = Listener(address=f"127.0.0.1:{other.address[1]}")
        fresh = Listener(address="localhost:0")
        before = list(g.server.addresses)
        listen = (*g.server.config.listen, fresh, taken)
        assert not await g.server.reload(change(g.server.config, listen=listen))
        assert g.server.addresses == before
        assert len(g.server._bound) == 1
        assert (await g.ask(GOOD)).status == 200
        assert await g.server.reload(g.server.config)


async def test_reloads_at_the_same_time_wait_for_each_other() -> None:
    async with Origin() as origin, gateway(origin) as g:
        done = await asyncio.gather(*[g.server.reload(g.server.config) for _ in range(5)])
        assert done == [True] * 5
        assert (await g.ask(GOOD)).status == 200
