"""Batching over reloads, drains and stops: nobody inside is lost, and nothing is left behind."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from filters.retry import Config as Retry
from gateway.config import Drain, Listener, Rewrite, Route
from gateway.config_batching import Batching
from gateway.server import Server
from gpu_batcher.buffers import Pool
from tests.harness import configure, eventually
from tests.wire.oip import ALONE, Bench, ask, bench, check, plain
from tests.wire.origin import BOUND, crash, silent
from tests.wire.table import check_refusal

OTHER = replace(ALONE, max_rows=2)
Pools = list["Pool[Any]"]


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pools]:
    """All that are made, in order. In the end each of them is closed, with all of its buffers."""
    made: Pools = []
    plain = Pool.__init__

    def noted(self: Pool[Any], *args: Any, **more: Any) -> None:
        plain(self, *args, **more)
        made.append(self)

    monkeypatch.setattr(Pool, "__init__", noted)
    yield made
    assert made
    assert all(is_closed(each) for each in made)


def is_closed(pool: Pool[Any]) -> bool:
    return pool._closed and not pool._free and not pool.in_use and not pool.lost


def route(b: Bench, **fields: Any) -> Route:
    (now,) = b.gateway.server.config.routes
    return replace(now, **fields)


async def reload(b: Bench, **fields: Any) -> bool:
    """Put the same configuration in force, but for these fields of its one route."""
    config = b.gateway.server.config
    return await b.gateway.server.reload(
        msgspec.structs.replace(config, routes=(route(b, **fields),))
    )


# -- reload ----------------------------------------------------------------------------------------


async def test_what_does_not_change_goes_on(pools: Pools) -> None:
    async with bench() as b:
        line, coalescer = b.line, b.edge.coalescer
        first = await b.busy()
        tasks = await b.gathered(ask([2]), ask([3]))
        assert await reload(b, filters=plain(retry=Retry(attempts=4)))
        tasks += await b.gathered(ask([4]))
        assert b.line is line
        assert b.edge.coalescer is coalescer
        b.free()
        for task, value in zip((first, *tasks), (1, 2, 3, 4), strict=True):
            check(await task, [value])
        assert b.model.batches == [[1], [2, 3, 4]]
        assert len(pools) == 1
        await b.idle()


async def test_the_new_path_and_chain_hold_from_the_next_request_on() -> None:
    async with bench(route={"name": "kept"}) as b:
        check(await b.gateway.ask(ask([1]), b"POST"), [1])
        line = b.line
        assert await reload(b, path="/in", rewrite=Rewrite("/v2"))
        raw = ask([2], target=b"/in/models/double/infer")
        check(await b.gateway.ask(raw, b"POST"), [2])
        check_refusal(await b.gateway.ask(ask([2]), b"POST"), 404, reason="no_route")
        assert await reload(b, filters=plain(retry=Retry()))
        b.model.faults.extend([crash, crash])
        check(await b.gateway.ask(raw, b"POST"), [2])
        assert await reload(b, rewrite=Rewrite("/v3"))
        assert b.line is line
        assert (await b.gateway.ask(raw, b"POST")).status == 200
        assert b.told("alone") == 1  # no codec understands such a target
        assert b.model.infers[-1].target == b"/v3/models/double/infer"


async def test_a_reload_that_fails_changes_nothing_for_those_inside(pools: Pools) -> None:
    async with bench() as b:
        server = b.gateway.server
        line = b.line
        first = await b.busy()
        tasks = await b.gathered(ask([2]), ask([3]))
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            also = Listener(address=f"127.0.0.1:{taken.getsockname()[1]}")
            for config in (ALONE, OTHER):
                routes = (route(b, batching=config, rewrite=Rewrite("/x")),)
                bad = replace(server.config, listen=(*server.config.listen, also), routes=routes)
                assert not await server.reload(bad)
        assert b.line is line
        assert len(pools) == 2
        await eventually(lambda: is_closed(pools[1]))
        assert not is_closed(pools[0])
        tasks += await b.gathered(ask([4]))
        b.free()
        for task, value in zip((first, *tasks), (1, 2, 3, 4), strict=True):
            check(await task, [value])
        assert b.model.batches == [[1], [2, 3, 4]]
        assert b.edge.rewrite is None


async def test_a_route_that_cannot_be_made_takes_none_with_it(pools: Pools) -> None:
    async with bench() as b:
        server = b.gateway.server
        good = route(b, batching=OTHER, path="/a")
        bad = route(b, batching=replace(OTHER, format="no such format"), path="/b")
        assert not await server.reload(replace(server.config, routes=(good, bad)))
        assert len(pools) == 2
        await eventually(lambda: is_closed(pools[1]))
        check(await b.gateway.ask(ask([1]), b"POST"), [1])


@pytest.mark.parametrize("change", [{"batching": OTHER}, {"batching": None}, {"path": "/none"}])
async def test_members_end_on_what_they_began_with(change: dict[str, Any], pools: Pools) -> None:
    async with bench() as b:
        old = b.line
        first = await b.busy()
        tasks = await b.gathered(ask([2]), ask([3]), ask([4]))
        async with b.gateway.client() as slow:
            raw = ask([5])
            await slow.send(raw[:-1])
            await eventually(lambda: old.batching._inside == 5)
            assert await reload(b, **change)
            assert not old.batching.closed
            b.free()
            for task, value in zip((first, *tasks), (1, 2, 3, 4), strict=True):
                check(await task, [value])
            assert b.model.batches == [[1], [2, 3, 4]]
            assert not old.batching.closed
            assert not is_closed(pools[0])
            await slow.send(raw[-1:])
            check(await slow.response(b"POST"), [5])
        await eventually(lambda: old.batching.closed)
        assert is_closed(pools[0])
        if change.get("batching") is OTHER:
            responses = await b.together(ask([6]), ask([7]), ask([8]))
            for response, value in zip(responses, (6, 7, 8), strict=True):
                check(response, [value])
            assert max(map(len, b.model.batches[2:])) == 2


async def test_one_that_begins_in_the_very_moment_of_a_reload_is_served(pools: Pools) -> None:
    """Its head is read and its task made, and before that takes a step the reload happens."""
    async with bench() as b:
        server = b.gateway.server
        name, swap = server.acceptor.name, server.acceptor.use

        def reload_now(config: Batching) -> None:
            server.config = replace(server.config, routes=(route(b, batching=config),))
            server.wiring = server._wire(server.config, server.wiring)
            server.wiring.activate()
            swap(server.wiring)

        def and_reload(exchange: Any) -> None:
            name(exchange)
            server.loop.call_soon(reload_now, OTHER if b.line.config is ALONE else ALONE)

        server.acceptor.name = and_reload  # type: ignore[method-assign]
        for turn in range(4):
            old = b.line
            check(await b.gateway.ask(ask([turn]), b"POST"), [turn])
            assert b.line is not old
            await eventually(lambda old=old: old.batching.closed)  # type: ignore[misc]


async def test_reload_after_reload_under_load(pools: Pools) -> None:
    async with bench(Batching("kserve_v2")) as b:
        done = asyncio.Event()
        served = 0

        async def client(n: int) -> None:
            nonlocal served
            async with b.gateway.client() as client:
                turn = 0
                while not done.is_set():
                    values = [10_000 * n + turn]
                    await client.send(ask(values, binary=turn % 2 == 0))
                    check(await client.response(b"POST"), values)
                    turn += 1
                    served += 1

        clients = [asyncio.ensure_future(client(n)) for n in range(16)]
        for turn in range(20):
            before = served
            assert await reload(b, batching=Batching("kserve_v2", max_rows=2 + turn % 5))
            await eventually(lambda before=before: served > before)  # type: ignore[misc]
        done.set()
        await asyncio.gather(*clients)
        await b.idle()
        await eventually(lambda: all(map(is_closed, pools[:-1])))
        assert len(pools) == 21


# -- drain, stop and start -------------------------------------------------------------------------


async def test_a_drain_waits_for_who_waits(pools: Pools) -> None:
    async with bench(drain=Drain(grace=0.0, timeout=BOUND)) as b:
        first = await b.busy()
        tasks = await b.gathered(ask([2]), ask([3]))
        drained = b.gateway.server.drain()
        await eventually(lambda: not b.gateway.server.listening)
        b.free()
        for task, value in zip((first, *tasks), (1, 2, 3), strict=True):
            check(await task, [value])
        assert await drained


async def test_a_drain_that_runs_out_gives_all_back(pools: Pools) -> None:
    async with bench(drain=Drain(grace=0.0, timeout=0.05)) as b:
        await b.busy()
        await b.gathered(ask([2]), ask([3]))
        assert not await b.gateway.server.drain()
        await b.gateway.server.stop()
        assert is_closed(pools[0])
        assert b.edge.coalescer.idle


async def test_a_stop_ends_the_retired_as_well(pools: Pools) -> None:
    async with bench() as b:
        first = await b.busy()
        (waits,) = await b.gathered(ask([2]))
        old = b.line
        close = old.batching.coalescer.runner.close

        async def close_slowly() -> None:
            await asyncio.sleep(0.05)
            await close()

        old.batching.coalescer.runner.close = close_slowly  # type: ignore[method-assign]
        assert await reload(b, batching=OTHER)
        b.model.faults.append(silent)
        late = b.begin(ask([3]))
        await eventually(lambda: b.model.batches == [[1], [3]])
        assert await reload(b, batching=replace(OTHER, max_rows=3))
        await b.gateway.server.stop()
        assert old.batching.closed
        assert len(pools) == 3
        assert all(map(is_closed, pools))
        for task in (first, waits, late):
            assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], Exception)
        await b.model.until(lambda: not b.model.open)


async def test_a_start_that_fails_gives_its_buffers_back(pools: Pools) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = configure(
            "http://127.0.0.1:1", route={"batching": ALONE}, listener={"address": address}
        )
        server = Server(config)
        with pytest.raises(OSError, match="in use"):
            await server.start()
    assert is_closed(pools[0])


async def test_the_table_of_why_a_caller_is_refused() -> None:
    """A batch that is given up inside is a refusal that may be tried again."""
    async with bench() as b:
        await b.busy()
        (task,) = await b.gathered(ask([2]))
        await b.edge.close()
        check_refusal(await task, 503, reason="batch_failed")
        check_refusal(await b.gateway.ask(ask([3]), b"POST"), 503, reason="batch_failed")


# -- without batching ------------------------------------------------------------------------------

PLAIN = """
import asyncio, sys
from tests.harness import GOOD, gateway
from tests.wire.origin import Origin

async def main():
    async with Origin() as origin, gateway(origin) as g:
        assert (await g.ask(GOOD)).status == 200
        (route,) = g.server.wiring.filters.values()
        assert route.batches is None

asyncio.run(main())
loaded = [name for name in sys.modules if name.split(".")[0] in ("gpu_batcher", "numpy", "cupy")]
loaded += [name for name in sys.modules if name.startswith("gateway.batch")]
assert not loaded, loaded
"""


def test_a_gateway_without_batching_loads_nothing_of_it() -> None:
    done = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
