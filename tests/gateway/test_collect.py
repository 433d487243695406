"""What is told to a scraper: held against the table of docs/metrics.md, and bounded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from filters.hedge import Config as Hedge
from filters.rate_limit import Config as RateLimit
from filters.retry import Config as Retry
from filters.standing import Cause
from gateway.collect import STATES, collect
from gateway.config import Filters
from gateway.exposition import PREFIX, render
from gateway.metrics import OTHER, SERIES
from tests.gateway.administered import GET, administered, ask_proxy
from tests.gateway.exposition_format import parse, value
from tests.harness import gateway
from tests.tidy import ROOT
from tests.wire.origin import Origin

if TYPE_CHECKING:
    from gateway.exposition import Family
    from gateway.server import Server

EVERYTHING = Filters(
    rate_limit=RateLimit(key="route", rate=1000.0, burst=1000),
    retry=Retry(),
    hedge=Hedge(dry_run=True),
)
ROW = re.compile(r"^\| `tailrace_([a-z_]+)` \| \w+ \| ([a-z, ]*?) ?\|", re.MULTILINE)
TABLE = (ROOT / "docs" / "metrics.md").read_text()


def documented() -> dict[str, set[str]]:
    """The labels of each metric of ours in the table, without the prefix."""
    return {name: set(labels.split(", ")) - {""} for name, labels in ROW.findall(TABLE)}


def labels(family: Family) -> set[str]:
    """Those of its series; as they are declared where there is none, because nothing batches."""
    found = {name for each in (*family.numbers, *family.buckets) for name, _ in each}
    return found or set(family.labels)


async def test_the_table_names_every_metric_and_its_labels() -> None:
    async with Origin() as origin, gateway(origin, route={"filters": EVERYTHING}) as running:
        await running.ask(GET)
        await running.ask(b"nonsense\r\n\r\n")
        families = collect(running.server)
        text = render(families).decode()
    told = {each.name.removeprefix(PREFIX): labels(each) for each in families}
    told["build_info"] = {"version"}
    assert told == documented()
    parse(text)


async def test_the_values_of_labels_are_those_that_are_listed() -> None:
    async with Origin() as origin, gateway(origin, route={"filters": EVERYTHING}) as running:
        families = {each.name: each for each in collect(running.server)}
    for name, label in (
        ("retries_refused_total", "why"),
        ("hedges_refused_total", "why"),
        ("hedges_total", "outcome"),
        ("ejections_total", "cause"),
    ):
        row = next(line for line in TABLE.splitlines() if line.startswith(f"| `{label}` |"))
        values = {dict(each)[label] for each in families[PREFIX + name].numbers}
        assert values <= set(re.findall(r"`(\w+)`", row)), name
    assert {each.value for each in Cause} == {
        dict(each)["cause"] for each in families[PREFIX + "ejections_total"].numbers
    }


async def test_each_endpoint_is_in_one_state() -> None:
    async with Origin() as one, Origin() as two, administered(one, two) as running:
        for cluster in (running.server.memberships["c"].cluster,):
            assert cluster.eject(cluster.endpoints[one.authority], "a test") == ""
        found = await running.metrics()
        for endpoint in (one.authority, two.authority):
            here = [
                value(found, "tailrace_endpoint_state", endpoint=endpoint, state=state)
                for state in STATES
            ]
            assert sum(here) == 1


async def test_endpoints_beyond_the_bound_share_their_series() -> None:
    upstreams = [f"http://127.0.0.1:{port}" for port in range(1, SERIES + 4)]
    async with gateway(*upstreams) as running:
        families = {each.name: each for each in collect(running.server)}
    states = families[PREFIX + "endpoint_state"].numbers
    assert len({dict(each)["endpoint"] for each in states}) == SERIES + 1
    others = {
        dict(each)["state"]: n for each, n in states.items() if dict(each)["endpoint"] == OTHER
    }
    assert others == {"healthy": 3, "ejected": 0, "probing": 0, "unhealthy": 0}


async def test_what_happened_is_told_by_class() -> None:
    limited = Filters(rate_limit=RateLimit(key="route", rate=0.001, burst=1))
    asked = b"GET /x HTTP/1.1\r\nHost: a\r\nX-Request-Priority: sheddable\r\n\r\n"
    async with Origin() as origin, administered(origin, route={"filters": limited}) as running:
        assert await ask_proxy(running.server, GET) == 200
        assert await ask_proxy(running.server, asked) == 429
        found = await running.metrics()
        requests = "tailrace_requests_total"
        assert value(found, requests, reason="", priority="critical", code="2xx") == 1
        assert value(found, requests, reason="rate_limited", priority="sheddable", code="4xx") == 1
        assert value(found, "tailrace_rate_limit_keys") == 1
        assert value(found, "tailrace_event_loop_lag_seconds") >= 0


def told_by(server: Server) -> dict[str, float]:
    """The series of ``dry_run_total``, by what would have been done."""
    (found,) = [each for each in collect(server) if each.name == PREFIX + "dry_run_total"]
    return {dict(each)["would"]: n for each, n in found.numbers.items()}


async def test_a_dry_run_is_counted_and_hurts_nobody() -> None:
    limit = RateLimit(key="route", rate=0.001, burst=1, dry_run=True)
    async with (
        Origin() as origin,
        administered(origin, route={"filters": Filters(rate_limit=limit)}) as running,
    ):
        assert [await ask_proxy(running.server, GET) for _ in range(3)] == [200] * 3
        found = await running.metrics()
        assert value(found, "tailrace_dry_run_total", would="rate_limited") == 2
        assert told_by(running.server) == {"rate_limited": 2}
        # What was counted stays when the dry run ends, and nothing is told of filters without one.
        config = running.server.config
        filters = Filters(rate_limit=msgspec.structs.replace(limit, burst=9, dry_run=False))
        routes = (msgspec.structs.replace(config.routes[0], filters=filters),)
        assert await running.server.reload(msgspec.structs.replace(config, routes=routes))
        assert told_by(running.server) == {"rate_limited": 2}
