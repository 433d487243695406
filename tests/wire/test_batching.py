"""Batching on real sockets: who is joined, who never is, what of a caller reaches the server."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from filters.admission import Config as Admission
from filters.deadline import Config as Deadline
from filters.priority import Config as Priorities
from filters.rate_limit import Config as RateLimit
from gateway.config import (
    AccessLog,
    RequestHeaders,
    Rewrite,
    Secret,
    Telemetry,
)
from gateway.config_batching import Batching
from tests.wire.oip import (
    ALONE,
    TARGET,
    answered,
    ask,
    bench,
    body_of,
    check,
    error,
    plain,
)
from tests.wire.origin import BOUND, answer
from tests.wire.table import check_refusal, post

# -- joined ----------------------------------------------------------------------------------------


async def test_64_callers_get_their_own_rows_of_one_inference(tmp_path: Path) -> None:
    log = tmp_path / "log"
    filters = plain(rate_limit=RateLimit(key="host", rate=1e6, burst=1000))
    telemetry = Telemetry(access_log=AccessLog(path=str(log)), debug_headers=True)
    config = replace(ALONE, max_rows=128)
    async with bench(config, route={"filters": filters}, telemetry=telemetry) as b:
        first = await b.busy()
        own = {n: [1000 * n, 1000 * n + 1][: 1 + n % 2] for n in range(64)}
        raws = {
            n: ask(values, b"X-Request-Id: mine-%d" % n, binary=n % 3 == 0, id=f"call {n}")
            for n, values in own.items()
        }
        tasks = {n: b.begin(raw) for n, raw in raws.items()}
        await b.waits(64)
        b.free()
        for n, task in tasks.items():
            response = await task
            check(response, own[n])
            assert response.one("x-request-id") == b"mine-%d" % n
            assert b'"call %d"' % n in response.body
            assert int(response.one("x-ratelimit-remaining")) < 1000
            assert len(response.values("x-ratelimit-limit")) == 1
            assert response.one("x-tailrace-attempts") == b"1"
            assert response.one("x-tailrace-endpoint") == b.model.authority.encode()
            assert float(response.one("x-tailrace-queue-ms")) > 0
        await first
        assert [len(each) for each in b.model.batches] == [1, 96]
        assert b.told("rows_per_batch") == 48.5
        assert (sum(b.edge.stats.rows.counts), sum(b.edge.stats.waits.counts)) == (2, 65)
        await b.idle()
        counters = b.gateway.server.telemetry.metrics.routes["/"]
        assert sum(counters.requests.values()) == 65
        assert {code for _, code, _, _ in counters.requests} == {2}
        assert sum(counters.queue_waits.counts) == 65
        (endpoint,) = b.gateway.server.wiring.clusters["c"].endpoints.values()
        assert (endpoint.served, endpoint.failed) == (2, 0)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 65
    mine = [line for line in lines if line["request_id"].startswith("mine-")]
    assert {line["endpoint"] for line in mine} == {b.model.authority}
    assert all(line["attempts"] == 1 and line["queued_ms"] > 0 for line in mine)
    assert all(line["bytes_in"] and line["bytes_out"] and line["status"] == 200 for line in mine)


async def test_a_lone_caller_waits_for_nobody() -> None:
    config = Batching("kserve_v2", max_delay=10.0, target=60.0)
    async with bench(config) as b, asyncio.timeout(5):
        for n in range(5):
            check(await b.gateway.ask(ask([n]), b"POST"), [n])
        assert b.model.batches == [[0], [1], [2], [3], [4]]


async def test_concurrent_keep_alive_clients_under_load() -> None:
    async with bench(Batching("kserve_v2", max_rows=16)) as b:

        async def client(n: int) -> None:
            async with b.gateway.client() as client:
                for turn in range(20):
                    values = [10_000 * n + turn]
                    await client.send(ask(values, binary=(n + turn) % 2 == 0))
                    check(await client.response(b"POST"), values)

        await asyncio.gather(*[client(n) for n in range(64)])
        assert len(b.model.batches) < 64 * 20
        assert max(map(len, b.model.batches)) <= 16
        await b.idle()


async def test_a_pipelined_client_gets_its_answers_in_order() -> None:
    async with bench() as b, b.gateway.client() as client:
        await client.send(b"".join(ask([n], binary=n % 2 == 0) for n in range(8)))
        for n in range(8):
            check(await client.response(b"POST"), [n])


async def test_an_upload_in_many_pieces_is_joined_in_the_end() -> None:
    async with bench() as b:
        first = await b.busy()
        async with b.gateway.client() as slow:
            await slow.drip(ask([5], binary=False))
            await b.waits(1)
            (quick,) = await b.gathered(ask([6]))
            b.free()
            check(await slow.response(b"POST"), [5])
        check(await quick, [6])
        await first
        assert sorted(b.model.batches[-1]) == [5, 6]


async def test_continue_is_said_and_the_body_joined() -> None:
    async with bench() as b, b.gateway.client() as client:
        raw = ask([5], b"Expect: 100-continue")
        head, _, body = raw.partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        assert (await client.head()).status == 100
        await client.send(body)
        check(await client.response(b"POST"), [5])
        assert b.told("alone") == 0
        assert b.model.infers[0].values("expect") == []


async def test_a_chunked_body_is_joined_when_it_is_whole() -> None:
    async with bench() as b, b.gateway.client() as client:
        body = body_of(ask([5], binary=False))
        head = post(b"Transfer-Encoding: chunked", target=TARGET)
        await client.send(head + b"%x\r\n%s\r\n" % (len(body), body))
        await client.send(b"0\r\n\r\n")
        check(await client.response(b"POST"), [5])
        assert b.told("alone") == 0


# -- never joined ----------------------------------------------------------------------------------

APART: dict[str, tuple[bytes, bytes]] = {
    "authorization": (ask([2], b"Authorization: Bearer a"), ask([3], b"Authorization: Bearer b")),
    "none and some": (ask([2]), ask([3], b"Authorization: Bearer b")),
    "x-api-key": (ask([2], b"X-Api-Key: a"), ask([3], b"X-Api-Key: b")),
    "api-key": (ask([2], b"Api-Key: a"), ask([3], b"Api-Key: b")),
    "cookie": (ask([2], b"Cookie: s=a"), ask([3], b"Cookie: s=b")),
    "named header": (ask([2], b"X-Team: a"), ask([3], b"X-Team: b")),
    "host": (ask([2]), ask([3]).replace(b"a.test", b"b.test")),
    "model": (ask([2]), ask([3], target=b"/v2/models/other/infer")),
    "version": (ask([2]), ask([3], target=b"/v2/models/double/versions/2/infer")),
    "parameters": (ask([2], parameters={"a": 1}), ask([3], parameters={"a": 2})),
    "outputs": (ask([2]), ask([3], outputs=[{"name": "y"}])),
    "datatype": (ask([2]), ask([3], datatype="INT32")),
    "shape": (ask([2]), ask([3, 4], width=2)),
}


@pytest.mark.parametrize("what", APART)
async def test_never_joined(what: str) -> None:
    config = replace(ALONE, headers=("x-team",))
    async with bench(config) as b:
        one, other = APART[what]
        for response, value in zip(await b.together(one, other), (2, 3), strict=True):
            assert answered(response)[0] == 2 * value + 1
        assert sorted(b.model.batches) == [[1], [2], [3]]
        same = await b.together(one, one)
        assert [answered(each)[0] for each in same] == [5, 5]
        assert b.model.batches[-1] == [2, 2]


async def test_a_query_goes_alone() -> None:
    async with bench() as b:
        first = await b.busy()
        for _ in range(2):
            response = await b.gateway.ask(ask([2], target=TARGET + b"?a"), b"POST")
            assert response.status == 200
        assert [request.target for request in b.model.passed] == [TARGET + b"?a"] * 2
        b.free()
        check(await first, [1])


OWN = [
    b"Cookie-Like: zzz", b"Traceparent: 00-%032x-%016x-01" % (7, 7), b"X-Forwarded-For: 9.9.9.9",
    b"User-Agent: zzz", b"Accept-Encoding: gzip", b"Referer: http://zzz", b"X-Own: zzz",
    b"Forwarded: for=9.9.9.9", b"X-Real-Ip: 9.9.9.9", b"Baggage: zzz", b"Accept: zzz/zzz",
    b"Idempotency-Key: zzz", b"X-Request-Id: zzz", b"X-Request-Priority: sheddable",
    b"Tracestate: zzz=1", b"X-Request-Timeout-Ms: 77000", b"From: zzz", b"Connection: x-zzz",
]  # fmt: skip


async def test_no_header_of_one_caller_reaches_the_server() -> None:
    async with bench() as b:
        first = await b.busy(ask([1], *OWN))
        tasks = await b.gathered(ask([2], *OWN), ask([3]), ask([4], *OWN))
        b.free()
        for task, value in zip((first, *tasks), (1, 2, 3, 4), strict=True):
            check(await task, [value])
        assert sorted(b.model.batches[-1]) == [2, 3, 4]
        for request in b.model.infers:
            sent = b" ".join(name + b": " + value for name, value in request.headers).lower()
            assert not re.search(rb"zzz|9\.9\.9\.9|gzip|7{8}", sent), request
            assert request.one("x-forwarded-for") == b"unknown"
            assert request.one("accept-encoding") == b"identity"
        # Only where all of them named a deadline is the latest one told.
        assert b.model.infers[0].values("x-request-timeout-ms")
        assert not b.model.infers[1].values("x-request-timeout-ms")


async def test_what_all_agree_on_is_sent_once() -> None:
    named = ("x-team", "content-type", "x-forwarded-for")
    config = replace(ALONE, headers=named)
    lines = [
        b"Authorization: Bearer a", b"X-Team: a", b"Cookie: c=d", b"Content-Type: x/y",
        b"X-Forwarded-For: 1.1.1.1",
    ]  # fmt: skip
    for trust, told in ((("127.0.0.0/8",), b"1.1.1.1, unknown"), ((), b"unknown")):
        async with bench(config, trust=trust) as b:
            for response in await b.together(ask([2], *lines), ask([3], *lines)):
                assert response.status == 200
            request = b.model.infers[-1]
            assert b.model.batches[-1] == [2, 3]
            for line in lines[:3]:
                name, _, value = line.partition(b": ")
                assert request.one(name.decode().lower()) == value
            assert request.one("content-type") != b"x/y"  # what the body is, is the codec's to say
            assert request.one("x-forwarded-for") == told


# -- what a route does besides ---------------------------------------------------------------------


async def test_the_path_is_rewritten_and_the_head_edited() -> None:
    route: dict[str, Any] = {
        "path": "/models",
        "rewrite": Rewrite("/v2/models"),
        "request_headers": RequestHeaders(
            set={"x-set": Secret("by route"), "authorization": Secret("Bearer own")},
            remove=("cookie",),
        ),
    }
    lines = (b"Authorization: Bearer a", b"Cookie: a=b", b"X-Set: client")
    async with bench(route=route) as b:
        raws = [ask([n], *lines, target=b"/models/double/infer") for n in (1, 2, 3)]
        first = await b.busy(raws[0])
        tasks = await b.gathered(*raws[1:])
        b.free()
        for task, value in zip((first, *tasks), (1, 2, 3), strict=True):
            check(await task, [value])
        assert [request.target for request in b.model.infers] == [TARGET] * 2
        request = b.model.infers[-1]
        assert b.model.batches[-1] == [2, 3]
        assert request.one("x-set") == b"by route"
        assert request.one("authorization") == b"Bearer own"
        assert request.one("x-forwarded-for") == b"unknown"
        assert request.values("cookie") == []
        alone = await b.gateway.ask(
            post(b"Content-Length: 3", *lines, target=b"/models/x/load", body=b"abc"), b"POST"
        )
        assert alone.status == 200
        assert b.model.passed[0].one("content-length") == b"3"
        assert bytes(b.model.passed[0].body) == b"abc"


async def test_refusals_come_before_the_body_is_read() -> None:
    limit = RateLimit(key="host", rate=0.001, burst=1)
    async with bench(route={"filters": plain(rate_limit=limit)}) as b:
        check(await b.gateway.ask(ask([2]), b"POST"), [2])
        async with b.gateway.client() as client:
            await client.send(ask([3])[:-1])  # the last byte never comes
            refused = await client.response(b"POST")
            check_refusal(refused, 429, reason="rate_limited")
            assert refused.one("x-ratelimit-remaining") == b"0"
        assert b.model.batches == [[2]]


async def test_the_limits_of_the_route_take_the_place_of_the_servers() -> None:
    limit = RateLimit(key="host", rate=1e6, burst=1000)
    async with bench(route={"filters": plain(rate_limit=limit)}) as b:
        b.model.faults.append(answer(error(422, "no", b"X-RateLimit-Limit: 5", b"X-Own: y")))
        response = await b.gateway.ask(ask([2]), b"POST")
        assert (response.status, response.one("x-own")) == (422, b"y")
        assert response.one("x-ratelimit-limit") == b"1000"


async def test_the_worst_class_is_displaced_and_the_best_goes_first() -> None:
    config = replace(ALONE, queue=2, max_rows=1)
    async with bench(config, route={"filters": plain()}) as b:
        first = await b.busy()
        low = await b.gathered(
            ask([2], b"X-Request-Priority: sheddable"),
            ask([3], b"X-Request-Priority: sheddable_plus"),
        )
        best = b.begin(ask([4], b"X-Request-Priority: critical_plus"))
        refused = await low[0]
        check_refusal(refused, 429, reason="queue_full")
        assert refused.one("retry-after") == b"1"
        same = await b.gateway.ask(ask([5], b"X-Request-Priority: sheddable"), b"POST")
        check_refusal(same, 429, reason="queue_full")
        b.free()
        check(await best, [4])
        check(await low[1], [3])
        await first
        assert b.model.batches == [[1], [4], [3]]


async def test_one_tenant_cannot_keep_the_others_out() -> None:
    config = replace(ALONE, queue=4, max_rows=1)
    filters = plain(priority=Priorities(), admission=Admission(fair_by="header:x-team"))
    async with bench(config, route={"filters": filters}) as b:
        first = await b.busy(ask([1], b"X-Team: z"))
        greedy = await b.gathered(*[ask([n], b"X-Team: a") for n in range(10, 14)])
        modest = b.begin(ask([2], b"X-Team: b"))
        check_refusal(await greedy[3], 429, reason="queue_full")
        check_refusal(
            await b.gateway.ask(ask([14], b"X-Team: a"), b"POST"), 429, reason="queue_full"
        )
        b.free()
        check(await modest, [2])
        await first
        for n, task in enumerate(greedy[:3], 10):
            check(await task, [n])
        assert b.model.batches.index([2]) < 3  # not behind all that came before it


async def test_http_1_0_and_close_are_answered_as_ever() -> None:
    async with bench() as b, asyncio.timeout(BOUND):
        for line in (b"Connection: close", b"Connection: keep-alive"):
            async with b.gateway.client() as client:
                await client.send(ask([2], line).replace(b"HTTP/1.1", b"HTTP/1.0"))
                response = await client.response(b"POST")
                check(response, [2])
                if line.endswith(b"close"):
                    assert await client.rest() == b""


async def test_a_deadline_of_the_route_is_no_claim_of_the_client() -> None:
    filters = plain(deadline=Deadline(default=30.0))
    async with bench(route={"filters": filters}) as b:
        await b.together(ask([2]), ask([3], b"X-Request-Timeout-Ms: 5000"))
        left = int(b.model.infers[-1].one("x-request-timeout-ms"))
        assert 20_000 < left <= 30_000  # the latest of the two
