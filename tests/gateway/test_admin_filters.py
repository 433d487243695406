"""What an operator sees of the filters, and does about an endpoint: /filters, /clusters, eject."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest

from filters.admission import Config as Admission
from filters.admission import Queue
from filters.deadline import Config as Deadline
from filters.hedge import Config as Hedge
from filters.outlier import Config as Outlier
from filters.rate_limit import Config as RateLimit
from filters.retry import Config as Retry
from gateway.config import Admin, Balance, Filters, Secret
from tests.gateway.administered import GET, administered, ask_proxy
from tests.gateway.exposition_format import value
from tests.harness import eventually
from tests.wire.origin import OK, Origin, answer

DEAD = "http://127.0.0.1:1"
PUSHES_BACK = b"HTTP/1.1 429 Later\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"


def eject(endpoint: str) -> str:
    return f"/clusters/c/endpoints/{endpoint}/eject"


def restore(endpoint: str) -> str:
    return f"/clusters/c/endpoints/{endpoint}/restore"


async def test_an_operator_ejects_and_restores() -> None:
    async with Origin() as one, Origin() as two, administered(one, two) as running:
        answered = await running.ask(eject(one.authority), "POST")
        assert answered.status == 200
        assert answered.json["endpoint"] == one.authority
        shown = (await running.endpoints())[one.authority]
        assert (shown["state"], shown["share"], shown["ejections"]) == ("ejected", 0, 1)
        assert shown["why"].startswith("by an operator; for 3")
        assert shown["since"] < shown["until"]
        for _ in range(4):
            assert await ask_proxy(running.server, GET) == 200
        assert (len(one.requests), len(two.requests)) == (0, 4)
        found = await running.metrics()
        assert value(found, "tailrace_ejections_total", cause="manual") == 1
        here = {"endpoint": one.authority}
        assert value(found, "tailrace_endpoint_state", state="ejected", **here) == 1
        assert value(found, "tailrace_endpoint_state", state="healthy", **here) == 0
        assert value(found, "tailrace_endpoint_share", **here) == 0
        answered = await running.ask(restore(one.authority), "POST")
        assert (answered.status, answered.json["state"]) == (200, "healthy")
        assert (answered.json["until"], answered.json["ejections"]) == (None, 1)
        again = await running.ask(restore(one.authority), "POST")
        assert (again.status, again.json["state"]) == (200, "healthy")


async def test_what_must_not_be_ejected_is_refused_with_the_reason() -> None:
    async with Origin() as one, Origin() as two, administered(one, two) as running:
        assert (await running.ask(eject(one.authority), "POST")).status == 200
        answered = await running.ask(eject(two.authority), "POST")
        assert (answered.status, answered.json["error"]["code"]) == (409, "not_ejected")
        message = answered.json["error"]["message"]
        assert message == "1 of 2 endpoints are out already, 1 may be"
        assert (await running.endpoints())[two.authority]["state"] == "healthy"
    async with administered(DEAD) as running:
        answered = await running.ask(eject("127.0.0.1:1"), "POST")
        assert (answered.status, answered.json["error"]["code"]) == (409, "not_ejected")
        assert "only endpoint" in answered.json["error"]["message"]


ADDRESSES = ("unix:/run/vllm 1%.sock", "http://[::1]:8000", DEAD)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("unix:/run/vllm 1%.sock", quote("unix:/run/vllm 1%.sock", safe="")),
        ("unix:/run/vllm 1%.sock", quote("unix:/run/vllm 1%.sock")),
        ("[::1]:8000", "[::1]:8000"),
        ("[::1]:8000", quote("[::1]:8000", safe="")),
        ("127.0.0.1:1", "127.0.0.1%3A1"),
    ],
)
async def test_every_kind_of_address_can_be_named(name: str, written: str) -> None:
    async with administered(*ADDRESSES) as running:
        answered = await running.ask(eject(written), "POST")
        assert (answered.status, answered.json["endpoint"]) == (200, name)
        assert (await running.endpoints())[name]["state"] == "ejected"
        assert (await running.ask(restore(written), "POST")).json["endpoint"] == name


async def test_who_is_not_there_is_not_found() -> None:
    async with administered(DEAD, "http://127.0.0.1:2") as running:
        for path in (
            "/clusters/x/endpoints/127.0.0.1:1/eject",
            eject("127.0.0.1:3"),
            restore("127.0.0.1:1/x"),
            "/clusters/c/endpoints//eject",
            "/clusters/c/endpoints/127.0.0.1:1/delete",
        ):
            answered = await running.ask(path, "POST")
            assert (answered.status, answered.json["error"]["code"]) == (404, "not_found"), path


async def test_ejecting_is_under_the_rules_of_what_changes_something() -> None:
    path = eject("127.0.0.1:1")
    async with administered(DEAD, "http://127.0.0.1:2") as running:
        answered = await running.ask(path)
        assert (answered.status, answered.headers["Allow"]) == (405, "POST")
        answered = await running.ask(path, "POST", origin="https://evil.test")
        assert answered.json["error"]["code"] == "foreign_origin"
        answered = await running.ask(path, "POST", host="evil.test")
        assert answered.json["error"]["code"] == "foreign_host"
        assert (await running.ask(path, "POST", probe=True)).status == 404
        assert (await running.ask("/filters", probe=True)).status == 404
        assert (await running.endpoints())["127.0.0.1:1"]["state"] == "healthy"
    admin = Admin(listen="0.0.0.0:0", token=Secret("right"))
    async with administered(DEAD, "http://127.0.0.1:2", admin=admin) as running:
        assert (await running.ask(path, "POST")).status == 401
        assert (await running.ask("/filters")).status == 401
        assert (await running.ask(path, "POST", authorization="Bearer right")).status == 200


async def test_an_ejection_by_hand_outlives_a_reload() -> None:
    async with administered(DEAD, "http://127.0.0.1:2") as running:
        assert (await running.ask(eject("127.0.0.1:1"), "POST")).status == 200
        assert await running.server.reload(running.server.config)
        assert (await running.endpoints())["127.0.0.1:1"]["state"] == "ejected"
        assert (await running.ask(restore("127.0.0.1:1"), "POST")).json["state"] == "healthy"


async def test_push_back_is_shown_with_its_end() -> None:
    async with Origin(answer(PUSHES_BACK)) as origin, administered(origin) as running:
        assert await ask_proxy(running.server, GET) == 429
        shown = (await running.endpoints())[origin.authority]
        assert (shown["state"], shown["push_backs"], shown["failed"]) == ("healthy", 1, 0)
        assert shown["why"].startswith("pushes back, ")
        assert shown["pushed_back_until"] > shown["since"]
        assert shown["share"] < 1
        pushed = value(await running.metrics(), "tailrace_endpoint_push_backs_total")
        assert pushed == 1


async def test_ejection_says_why_and_what_it_would_do() -> None:
    async with (
        Origin(answer(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")) as bad,
        Origin() as good,
    ):
        for dry_run in (False, True):
            cluster = {
                "outlier": Outlier(dry_run=dry_run),
                "balance": Balance(policy="round_robin"),
            }
            async with administered(bad, good, cluster=cluster) as running:
                for _ in range(24):
                    await ask_proxy(running.server, GET)
                shown = (await running.endpoints())[bad.authority]
                judge = (await running.ask("/clusters")).json["clusters"]["c"]["outlier"]
                found = await running.metrics()
            cause = "consecutive_failures"
            acted = value(found, "tailrace_ejections_total", cause=cause)
            would = value(found, "tailrace_dry_run_ejections_total", cause=cause)
            assert (acted, would) == ((0, 1) if dry_run else (1, 0))
            assert judge["would_eject" if dry_run else "ejections"][cause] == 1
            assert shown["state"] == ("healthy" if dry_run else "ejected")
            if not dry_run:
                assert shown["why"].startswith("5 failures in a row, last: status 503; for ")


async def test_filters_are_shown_per_route_and_off_where_they_are() -> None:
    some = Filters(rate_limit=RateLimit(key="route", rate=1.0, burst=2), hedge=Hedge())
    none = Filters(
        deadline=None, priority=None, admission=None, load_shed=None, retry=None, hedge=None
    )
    async with Origin() as origin:
        async with administered(origin, route={"filters": some, "name": "some"}) as running:
            statuses = [await ask_proxy(running.server, GET) for _ in range(3)]
            assert statuses == [200, 200, 429]
            shown = (await running.ask("/filters")).json
            assert set(shown["gateway"]) == {"loop_lag", "memory", "files", "cpu"}
            route = shown["routes"]["some"]
            assert route["cluster"] == "c"
            assert route["admission"]["limit"]["value"] == 512
            assert route["admission"]["queue"]["waiting"] == 0
            assert route["rate_limit"]["refused"] == 1
            assert route["load_shed"]["on"] is True
            assert set(route["load_shed"]["route"]["refused_share"]) == {
                "critical_plus", "critical", "sheddable_plus", "sheddable",
            }  # fmt: skip
            assert route["hedge"]["started"] == 0
            assert route["budget"] == {"balance": 10.2, "requests": 2, "spent": 0, "hedges": 0}
        async with administered(origin, route={"filters": none}) as running:
            route = (await running.ask("/filters")).json["routes"]["/"]
            assert {each for each in route.values() if each != "c"} == {"off"}
            assert len(route) == 9


async def test_a_queue_is_shown_while_somebody_waits() -> None:
    admission = Admission(limit=1, queue=Queue(size=1, timeout=30.0))
    filters = Filters(admission=admission, deadline=Deadline(), retry=Retry(attempts=1))
    asked = b"GET /x HTTP/1.1\r\nHost: a\r\nX-Request-Priority: sheddable\r\n\r\n"
    release = asyncio.Event()

    async def hold(connection: Any, request: Any) -> None:
        await release.wait()
        connection.send(OK)

    async with Origin(hold) as origin, administered(origin, route={"filters": filters}) as running:
        first = asyncio.create_task(ask_proxy(running.server, asked))
        await origin.until(lambda: bool(origin.requests))
        second = asyncio.create_task(ask_proxy(running.server, asked))
        gate = running.server.wiring.admissions["/"]
        await eventually(lambda: len(gate.queue) == 1)
        page = (await running.ask("/filters")).json["routes"]["/"]["admission"]
        assert page["limit"] == {"kind": "fixed", "value": 1}
        assert page["in_flight"] == 1
        assert page["queue"]["by_class"]["sheddable"] == 1
        assert page["queue"]["oldest_s"] >= 0
        found = await running.metrics()
        assert value(found, "tailrace_limit") == value(found, "tailrace_permits") == 1
        assert value(found, "tailrace_queue_length", priority="sheddable") == 1
        assert value(found, "tailrace_queue_length", priority="critical") == 0
        assert await ask_proxy(running.server, asked) == 429
        release.set()
        assert [await first, await second] == [200, 200]
        found = await running.metrics()
        assert value(found, "tailrace_queue_wait_seconds_count") == 1
        assert value(found, "tailrace_permits") == 0
        refused = {"reason": "queue_full", "priority": "sheddable", "code": "4xx"}
        assert value(found, "tailrace_requests_total", **refused) == 1
