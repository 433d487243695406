"""What batching does not understand whole goes on alone and untouched, on real sockets."""

from __future__ import annotations

import gzip
import json

import pytest

from gateway.config import Limits, Timeouts
from gateway.config_batching import Batching
from tests.harness import eventually
from tests.wire.oip import TARGET, ask, bench, body_of
from tests.wire.table import check_refusal, get, post

SEQUENCE = ask([2], parameters={"sequence_id": 7})
REGION = json.dumps({
    "inputs": [{
        "name": "x", "shape": [1, 1], "datatype": "INT64",
        "parameters": {"shared_memory_region": "own", "shared_memory_byte_size": 8},
    }],
}).encode()  # fmt: skip
PACKED = gzip.compress(body_of(ask([2], binary=False)))
LARGE = ask(list(range(1000, 3000)))

UNTOUCHED: dict[str, bytes] = {
    "get": get(target=b"/v2/models/double"),
    "head": b"HEAD" + get(target=TARGET)[3:],
    "put": b"PUT" + post(b"Content-Length: 2", body=b"{}", target=TARGET)[4:],
    "no body": post(b"Content-Length: 0", target=TARGET),
    "other path": post(b"Content-Length: 3", body=b"abc", target=b"/v2/repository/index"),
    "unknown field": ask([2], sequence=1),
    "sequence": SEQUENCE,
    "priority": ask([2], parameters={"priority": 1}),
    "region": post(b"Content-Length: %d" % len(REGION), body=REGION, target=TARGET),
    "compressed": post(
        b"Content-Encoding: gzip", b"Content-Length: %d" % len(PACKED), body=PACKED, target=TARGET
    ),
    "too large": LARGE,
    "too many rows": ask(list(range(65))),
}


@pytest.mark.parametrize("what", UNTOUCHED)
async def test_goes_alone_untouched(what: str) -> None:
    raw = UNTOUCHED[what]
    async with bench(Batching("kserve_v2", max_request=4096)) as b:
        response = await b.gateway.ask(raw, raw.partition(b" ")[0])
        assert response.status == 200, response
        (request,) = b.model.requests
        assert bytes(request.body) == body_of(raw)
        assert request.method == raw.partition(b" ")[0]
        line = b"%s %s HTTP/1.1\r\n" % (request.method, request.target)
        assert raw.startswith(line)
        assert (b.told("alone"), b.told("batches")) == (1, 0)
        await b.idle()


async def test_a_body_that_outgrows_what_may_be_kept_streams_through() -> None:
    limits = Limits(replay_bytes=4096, replay_total=64 << 10)
    async with bench(Batching("kserve_v2", max_request=4096), limits=limits) as b:
        async with b.gateway.client() as client:
            await client.send(post(b"Transfer-Encoding: chunked", target=TARGET))
            piece = b"z" * 3000
            for _ in range(3):
                await client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            await b.model.until(lambda: bool(b.model.heads and len(b.model.heads[0].body) == 9000))
            assert not b.model.heads[0].complete
            await client.send(b"0\r\n\r\n")
            assert (await client.response(b"POST")).status == 200
        assert bytes(b.model.passed[0].body) == piece * 3
        await b.idle()


async def test_bodies_that_together_are_too_many_stream_through() -> None:
    limits = Limits(replay_bytes=1 << 20, replay_total=1 << 20)
    async with bench(limits=limits) as b:
        held = b.gateway.server.acceptor.replay
        async with b.gateway.client() as one, b.gateway.client() as other:
            await one.send(post(b"Content-Length: 900001", target=TARGET) + b"z" * 900_000)
            await eventually(lambda: held.held == 900_000)
            await other.send(post(b"Content-Length: 300001", target=TARGET) + b"y" * 300_000)
            await b.model.until(lambda: bool(b.model.heads))
            await one.send(b"z")
            await other.send(b"y")
            # Neither is an inference request, so the codec or the server may refuse; both answer.
            assert {(await each.response(b"POST")).status for each in (one, other)} <= {200, 400}
        await b.idle()


async def test_a_client_that_leaves_within_its_upload_leaves_nothing() -> None:
    async with bench() as b:
        first = await b.busy()
        raw = ask([5], binary=False)
        for reset in (False, True):
            async with b.gateway.client() as client:
                await client.send(raw[:-3])
                await eventually(lambda: b.edge._inside == 2)
                if reset:
                    client.reset()
            await eventually(lambda: b.edge._inside == 1)
        async with b.gateway.client() as client:
            await client.send(raw[:-3])
            await eventually(lambda: b.edge._inside == 2)
            client.half_close()
            assert await client.rest() == b""
        b.free()
        assert (await first).status == 200
        assert len(b.model.heads) == 1
        assert b.told("alone") == 0
        await b.idle()


async def test_an_upload_that_stalls_is_refused() -> None:
    async with bench(timeouts=Timeouts(body_idle=0.05)) as b, b.gateway.client() as client:
        await client.send(ask([5])[:-3])
        check_refusal(await client.response(b"POST"), 408, reason="body_timeout")
        assert not b.model.heads
        await b.idle()
