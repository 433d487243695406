"""Batches that fail on real sockets: each caller gets what is its own, and nothing of another."""

from __future__ import annotations

import asyncio
import json

import pytest
from msgspec.structs import replace

from filters.hedge import Config as Hedge
from filters.retry import Config as Retry
from gateway.config import Balance, Telemetry
from gateway.config_batching import Bisection
from tests.harness import eventually
from tests.wire.oip import (
    ALONE,
    POISON,
    TARGET,
    Model,
    ask,
    bench,
    body_of,
    check,
    error,
    message,
    plain,
)
from tests.wire.origin import Connection, Request, answer, crash, silent
from tests.wire.table import check_refusal, post

DEBUG = Telemetry(access_log=None, debug_headers=True)


def infer(body: bytes, *lines: bytes) -> bytes:
    return post(b"Content-Length: %d" % len(body), *lines, body=body, target=TARGET)


# -- malformed -------------------------------------------------------------------------------------


def claims(**fields: object) -> bytes:
    entry = {"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [1], **fields}
    return json.dumps({"inputs": [entry]}).encode()


MALFORMED: dict[str, bytes] = {
    "no JSON": infer(b"{nonsense"),
    "bomb": infer(b'{"inputs":' + b"[" * 5000),
    "negative shape": infer(claims(shape=[-1, 1])),
    "2 GB claimed": infer(claims(shape=[1 << 28, 1])),
    "2 GB of binary claimed": infer(
        b'{"inputs":[{"name":"x","shape":[268435456,1],"datatype":"INT64",'
        b'"parameters":{"binary_data_size":2147483648}}]}0123456789',
        b"Inference-Header-Content-Length: 119",
    ),
    "two ways": infer(claims(parameters={"binary_data_size": 8})),
    "too much data": infer(claims(data=[1, 2])),
    "other data": infer(claims(data=["one"])),
    "head beyond the body": infer(claims(), b"Inference-Header-Content-Length: 4294967296"),
    "head of no length": infer(claims(), b"Inference-Header-Content-Length: -1"),
    "leftover": infer(body_of(ask([1])) + b"x", b"Inference-Header-Content-Length: 101"),
}


@pytest.mark.parametrize("what", MALFORMED)
async def test_malformed_is_its_own_senders_trouble(what: str) -> None:
    async with bench() as b:
        first = await b.busy()
        good = await b.gathered(ask([2]), ask([3], binary=False))
        refused = await b.gateway.ask(MALFORMED[what], b"POST")
        check_refusal(refused, 400, reason="malformed")
        assert b.told("malformed") == 1
        b.free()
        for task, value in zip((first, *good), (1, 2, 3), strict=True):
            check(await task, [value])
        assert b.model.batches == [[1], [2, 3]]
        await b.idle()


# -- poison ----------------------------------------------------------------------------------------


async def test_poison_gets_its_own_error_and_the_others_their_rows() -> None:
    async with bench() as b:
        values = [*range(2, 20), POISON, *range(20, 40)]
        responses = await b.together(*[ask([n], binary=n % 2 == 0) for n in values])
        for response, value in zip(responses, values, strict=True):
            if value == POISON:
                assert response.status == 500
                assert json.loads(response.body) == {"error": "secret of [666]"}
            else:
                check(response, [value])
                assert b"secret" not in response.body
        assert b.told("culprits") == 1
        assert len(b.model.batches) <= 14
        await b.idle()


async def test_what_was_said_to_several_is_told_to_nobody() -> None:
    async with bench(replace(ALONE, bisection=Bisection(share=0.0, burst=0))) as b:
        for response in await b.together(ask([2]), ask([POISON]), ask([3])):
            check_refusal(response, 503, reason="bisection_budget")
            assert b"secret" not in repr(response).encode()
        await b.idle()


@pytest.mark.parametrize(
    ("status", "line", "told", "wait"),
    [
        (401, b"WWW-Authenticate: secret", 401, b""),
        (404, b"X-Own: secret", 404, b""),
        (429, b"Retry-After: 7", 429, b"7"),
        (503, b"Retry-After: 9", 503, b"9"),
        (503, b"X-Own: secret", 503, b"1"),
        (501, b"X-Own: secret", 501, b"1"),
        (302, b"Location: /secret", 503, b"1"),
    ],
)
async def test_a_status_for_all_is_kept_and_its_words_are_not(
    status: int, line: bytes, told: int, wait: bytes
) -> None:
    async with bench() as b:
        first = await b.busy()
        b.model.faults.append(answer(error(status, "secret", line)))
        tasks = await b.gathered(ask([2]), ask([3]))
        b.free()
        check(await first, [1])
        for response in [await task for task in tasks]:
            reason = "batch_failed" if told != status else "upstream_status"
            check_refusal(response, told, reason=reason)
            assert response.values("retry-after") == ([wait] if wait else [])
            assert b"secret" not in repr(response).encode()
        assert len(b.model.batches) == 2  # such an answer is no reason to divide
        await b.idle()


async def test_who_was_alone_gets_all_that_the_server_said() -> None:
    async with bench(replace(ALONE, answer=4096)) as b:
        for status in (400, 404, 429, 500, 503):
            raw = error(status, f"about you: {status}", b"X-Own: yours", b"Retry-After: 3")
            b.model.faults.append(answer(raw))
            response = await b.gateway.ask(ask([2]), b"POST")
            assert (response.status, body_of(raw)) == (status, response.body)
            assert (response.one("x-own"), response.one("retry-after")) == (b"yours", b"3")
            assert len(response.values("x-request-id")) == 1
        b.model.faults.append(answer(error(500, "x" * 4096)))
        check_refusal(await b.gateway.ask(ask([2]), b"POST"), 502, reason="batch_answer")


# -- answers that cannot be divided ----------------------------------------------------------------


async def test_too_few_rows_are_nobodys() -> None:
    async with bench() as b:
        first = await b.busy()
        b.model.short = 1
        tasks = await b.gathered(ask([2]), ask([3]), ask([4]))
        b.free()
        assert (await first).status == 502
        for task in tasks:
            check_refusal(await task, 502, reason="batch_answer")
        (endpoint,) = b.gateway.server.wiring.clusters["c"].endpoints.values()
        await b.idle()
        assert (endpoint.served, endpoint.failed) == (2, 2)


async def test_an_endpoint_with_such_answers_is_ejected() -> None:
    in_turn = {"balance": Balance(policy="round_robin")}
    async with bench(models=2, cluster=in_turn) as b:
        bad, good = b.models
        bad.short = 1
        endpoints = b.gateway.server.wiring.clusters["c"].endpoints
        for n in range(50):
            response = await b.gateway.ask(ask([n]), b"POST")
            assert response.status in (200, 502)
            if endpoints[bad.authority].state == "ejected":
                break
        assert endpoints[bad.authority].state == "ejected"
        assert endpoints[good.authority].failed == 0
        seen = len(bad.batches)
        for n in range(10):
            check(await b.gateway.ask(ask([n]), b"POST"), [n])
        assert len(bad.batches) == seen


GARBAGE: dict[str, bytes] = {
    "no JSON": message(200, b"secret"),
    "no outputs": message(200, b'{"model_name": "secret"}'),
    "2 GB claimed": message(
        200,
        b'{"outputs":[{"name":"y","shape":[2,134217728],"datatype":"INT64",'
        b'"parameters":{"binary_data_size":2147483648}}]}',
        b"Inference-Header-Content-Length: 112",
    ),
    "compressed": message(200, b"secret", b"Content-Encoding: gzip"),
    "empty": message(204, b""),
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_is_a_502_for_all(what: str) -> None:
    async with bench(replace(ALONE, answer=4096)) as b:
        first = await b.busy()
        b.model.faults.append(
            answer(GARBAGE[what].replace(b"204 X\r\nContent-Length: 0", b"204 X"))
        )
        tasks = await b.gathered(ask([2]), ask([3]))
        b.free()
        check(await first, [1])
        for task in tasks:
            response = await task
            check_refusal(response, 502, reason="batch_answer")
            assert b"secret" not in response.body
        await b.idle()
        (endpoint,) = b.gateway.server.wiring.clusters["c"].endpoints.values()
        assert endpoint.failed == 1


# -- retry, hedge, ejection ------------------------------------------------------------------------


async def test_a_reset_batch_is_tried_elsewhere() -> None:
    async with bench(models=2, retry=Retry(), telemetry=DEBUG) as b:
        one, other = b.models
        one.faults = other.faults
        held = await b.busy()
        tasks = await b.gathered(ask([2]), ask([3]))
        # On a kept connection, after which the pool tries a fresh one, and on that.
        one.faults.extend([crash, crash])
        b.free()
        check(await held, [1])
        for task, value in zip(tasks, (2, 3), strict=True):
            response = await task
            check(response, [value])
            assert response.one("x-tailrace-attempts") == b"2"
        assert b.batches.count([2, 3]) == 3
        await b.idle()


async def test_without_retry_a_reset_is_told_to_all() -> None:
    async with bench(telemetry=DEBUG) as b:
        held = await b.busy()
        b.model.faults.extend([crash, crash])  # on the kept connection, and on a fresh one
        tasks = await b.gathered(ask([2]), ask([3]))
        b.free()
        check(await held, [1])
        for task in tasks:
            check_refusal(await task, 502, reason="upstream_reset")
        await b.idle()


async def test_an_endpoint_that_is_out_gets_no_batch() -> None:
    async with bench(models=2) as b:
        cluster = b.gateway.server.wiring.clusters["c"]
        assert not cluster.eject(cluster.endpoints[b.models[0].authority], "by a test")
        for n in range(20):
            check(await b.gateway.ask(ask([n]), b"POST"), [n])
        assert [len(model.batches) for model in b.models] == [0, 20]


async def test_a_slow_batch_is_hedged() -> None:
    filters = plain(hedge=Hedge())
    async with bench(models=2, route={"filters": filters}, telemetry=DEBUG) as b:
        for n in range(60):
            check(await b.gateway.ask(ask([n]), b"POST"), [n])
        before = len(b.batches)
        for model in b.models:
            model.hold()
        task = b.begin(ask([7, 8]))
        await eventually(lambda: len(b.batches) == before + 2)  # the same batch at both
        slow = next(model for model in b.models if model.batches[-1] == [7, 8])
        next(model for model in b.models if model is not slow).free()
        response = await task
        check(response, [7, 8])
        assert response.one("x-tailrace-hedged") == b"true"
        assert response.one("x-tailrace-attempts") == b"2"
        await eventually(lambda: any(connection.gone for connection in slow.connections))
        await b.idle()


# -- servers that die ------------------------------------------------------------------------------


class Mortal(Model):
    """Dies of 13: its connections are reset, and new ones refused until it is started again."""

    async def serve(self, connection: Connection, request: Request) -> None:
        if (13).to_bytes(8, "little") in await connection.body(request):
            await self.refuse_connections()
            for each in self.connections:
                if not each.gone:
                    each.reset()
            return
        await super().serve(connection, request)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", self.port)


@pytest.mark.parametrize("kept", [True, False])
async def test_who_kills_the_server_goes_alone_and_is_refused_in_the_end(kept: bool) -> None:
    mortal = Mortal()
    mortal.closes = not kept
    config = replace(ALONE, quarantine="refuse")
    async with bench(config, origins=[mortal], cluster={"outlier": None}) as b:

        async def find_out() -> None:
            """That the server is dead. Where the connection was a kept one, the pool has already
            tried to make another."""
            if not kept:
                check_refusal(await b.gateway.ask(ask([5]), b"POST"), 502, reason="connect_failed")
            await mortal.start()

        trio = [ask([n]) for n in (2, 13, 3)]
        for _ in range(2):
            for response in await b.together(*trio):
                reason = "connect_failed" if kept else "upstream_reset"
                check_refusal(response, 502, reason=reason)
            await find_out()
        assert mortal.batches == [[1], [1]]
        # Suspects: each goes alone, which clears who does not harm, and makes the other certain.
        first = await b.busy()
        tasks = await b.gathered(*trio)
        b.free()
        check(await first, [1])
        check(await tasks[0], [2])
        assert (await tasks[1]).status == 502
        assert (await tasks[2]).status == 502  # the server was dead, which is nobody's fault
        await find_out()
        thirteen = await b.gateway.ask(trio[1], b"POST")
        check_refusal(thirteen, 422, reason="quarantined")
        assert thirteen.one("x-should-retry") == b"false"
        for response, value in zip(await b.together(trio[0], trio[2]), (2, 3), strict=True):
            check(response, [value])
        assert b.told("quarantined") == 1


# -- deadlines, and clients that leave -------------------------------------------------------------


async def test_a_deadline_that_passes_while_it_waits_is_its_own() -> None:
    async with bench() as b:
        first = await b.busy()
        late, good = await b.gathered(ask([2], b"X-Request-Timeout-Ms: 300"), ask([3]))
        check_refusal(await late, 504, reason="deadline")
        await b.waits(1)
        b.free()
        check(await first, [1])
        check(await good, [3])
        assert b.model.batches == [[1], [3]]
        await b.idle()


async def test_a_deadline_that_passes_in_flight_is_its_own() -> None:
    async with bench() as b:
        first = await b.busy()
        late, good = await b.gathered(ask([2], b"X-Request-Timeout-Ms: 600"), ask([3]))
        b.model.faults.append(silent)
        b.model.free()
        check(await first, [1])
        check_refusal(await late, 504, reason="deadline")
        assert b.model.batches == [[1], [2, 3]]
        assert not good.done()
        good.cancel()  # and with the last one the batch is given up
        await eventually(lambda: all(connection.gone for connection in b.model.connections))
        await b.idle()


async def test_once_all_have_left_the_server_is_told() -> None:
    async with bench() as b:
        first = await b.busy()
        tasks = await b.gathered(ask([2]), ask([3]), ask([4]))
        tasks[0].cancel()
        await b.waits(2)  # out of the plan at once
        b.model.faults.append(silent)
        b.model.free()
        check(await first, [1])
        await eventually(lambda: b.model.batches == [[1], [3, 4]])
        (connection,) = b.model.connections
        tasks[1].cancel()
        await eventually(lambda: b.edge._inside == 1)
        assert not connection.gone
        tasks[2].cancel()
        await b.model.until(lambda: connection.gone)
        check(await b.gateway.ask(ask([9]), b"POST"), [9])
        assert b.edge.coalescer.counts.cancelled == 1
        await b.idle()


async def test_a_client_that_does_not_read_holds_up_nobody() -> None:
    async with bench() as b:
        async with b.gateway.client(receive_buffer=4096) as deaf:
            for _ in range(3):
                await deaf.send(ask(list(range(1000, 1064))) * 50)
            for n in range(20):
                check(await b.gateway.ask(ask([n]), b"POST"), [n])
        await b.idle()
