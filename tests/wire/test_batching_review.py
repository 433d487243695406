"""What a review has found: callers are told apart by all that the server sees, and an operator is
told what it said."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gateway.config import Rewrite
from gateway.config_batching import Input
from tests.batcher import oip
from tests.wire.oip import ALONE, POISON, ask, bench, check, error
from tests.wire.origin import answer
from tests.wire.table import post

if TYPE_CHECKING:
    import pytest

    from tests.wire.client import Response

REFUSE = replace(ALONE, quarantine="refuse")


async def test_nobody_brings_anothers_body_into_quarantine() -> None:
    """By sending it with a head that makes the server refuse it."""
    async with bench(REFUSE) as b:
        same = [7]
        for _ in range(2):
            b.model.faults.append(answer(error(400, "not with this key")))
            bad = await b.gateway.ask(ask(same, b"X-Api-Key: wrong"), b"POST")
            assert bad.status == 400
            check(await b.gateway.ask(ask([1]), b"POST"), [1])  # the server works
        assert (await b.gateway.ask(ask(same, b"X-Api-Key: wrong"), b"POST")).status == 422
        check(await b.gateway.ask(ask(same, b"X-Api-Key: right"), b"POST"), same)
        await b.idle()


async def test_two_lines_of_a_credential_are_not_one_with_both() -> None:
    async with bench() as b:
        two = ask([2], b"X-Api-Key: A", b"X-Api-Key: B")
        one = ask([3], b"X-Api-Key: A, B")
        for response, value in zip(await b.together(two, one), (2, 3), strict=True):
            check(response, [value])
        assert [2, 3] not in b.batches
        assert [3, 2] not in b.batches
        sent = {tuple(each.values("x-api-key")) for each in b.model.infers[1:]}
        assert sent == {(b"A", b"B"), (b"A, B",)}


async def test_a_credential_that_its_client_nominates_goes_alone() -> None:
    async with bench() as b:
        nominated = ask([2], b"X-Api-Key: A", b"Connection: x-api-key")
        check(await b.gateway.ask(nominated, b"POST"), [2])
        assert b.edge.alone == 1
        assert b.model.infers[-1].values("x-api-key") == []


async def test_who_waits_through_a_reload_goes_where_it_was_read_for() -> None:
    async with bench(ALONE, route={"path": "/"}) as b:
        first = await b.busy()
        (waiting,) = await b.gathered(ask([2]))
        server = b.gateway.server
        (route,) = server.config.routes
        moved = replace(route, path="/v2/models/double", rewrite=Rewrite("/v2/models/other"))
        assert await server.reload(replace(server.config, routes=(moved,)))
        b.free()
        check(await first, [1])
        check(await waiting, [2])
        assert {each.target for each in b.model.infers} == {b"/v2/models/double/infer"}


async def test_whoever_brings_an_input_that_is_made_here_goes_alone() -> None:
    inputs = {"x": Input(axes=(1,), mask="m")}
    async with bench(replace(ALONE, inputs=inputs)) as b:
        given = [
            oip.Given("x", "INT64", (1, 2), [5, 6], True),
            oip.Given("m", "INT64", (1, 2), [1, 1], True),
        ]
        head, body = oip.request(given)
        lines = [b"%s: %s" % pair for pair in head.items()]
        length = b"Content-Length: %d" % len(body)
        asked = post(length, *lines, body=body, target=b"/v2/models/double/infer")
        response: Response = await b.gateway.ask(asked, b"POST")
        assert response.status == 200
        assert (b.edge.alone, b.edge.malformed) == (1, 0)


async def test_the_operator_is_told_what_the_server_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bench() as b:
        first = await b.busy()
        b.model.faults.append(answer(error(503, "out of memory on device 3")))
        tasks = await b.gathered(ask([2]), ask([3]))
        b.free()
        check(await first, [1])
        for task in tasks:
            response = await task
            assert response.status == 503
            assert b"device 3" not in response.body
        await b.idle()
    (told,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "1 batches of / have failed" in told
    assert f"{b.model.authority} answered 503" in told
    assert "out of memory on device 3" in told


async def test_a_poison_row_is_no_complaint_about_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bench() as b:
        await b.together(ask([2]), ask([POISON]), ask([3]))
        await b.idle()
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
