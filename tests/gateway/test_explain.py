"""``tailrace explain``: decides as the gateway would, and says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli import main
from gateway.config import Cluster, Config, Endpoint, Route
from gateway.explain_request import Explained, explain, head
from gateway.router import Router, names
from gateway.wire import parse_request

FILE = """
clusters:
  llm: {endpoints: [http://a:8000, http://b:8000]}
  team: {endpoints: [http://c:8000]}
trust: [127.0.0.0/8]
filters:
  hedge: {after: p95}
  rate_limit: {key: "header:authorization", rate: 10/s, burst: 20}
  deadline: {default: 30s}
routes:
  - {name: team, path: /v1/, headers: {x-team: a}, cluster: team}
  - {name: chat, host: "*.example.com", path: /v1/, methods: [POST], cluster: llm, rewrite: {prefix: /api}}
  - {name: api, path: /v1/, methods: [POST], cluster: llm}
"""  # noqa: E501


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "tailrace.yaml"
    path.write_text(FILE)
    return str(path)


def ask(file: str, *arguments: str) -> Any:
    result = CliRunner().invoke(main, ["explain", file, "--json", *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def row(told: Any, what: str) -> tuple[str, str]:
    return next((each["decides"], each["why"]) for each in told["rows"] if each["what"] == what)


def test_where_a_request_goes_and_why_not_elsewhere(file: str) -> None:
    told = ask(file, "--method", "POST", "--path", "/v1/completions")
    assert (told["passes"], told["route"], told["cluster"]) == (True, "api", "llm")
    skipped = [each["why"] for each in told["rows"] if each["decides"] == "skips"]
    assert skipped == ["team: it wants another x-team", "chat: its host is *.example.com"]
    assert "http://a:8000, http://b:8000" in row(told, "cluster")[1]
    assert row(told, "deadline") == ("passes", "30 s, the route's")
    assert row(told, "hedge")[0] == "hedges"
    assert row(told, "rate_limit")[1] == "10/s, burst 20, by its address, 127.0.0.1"


def test_a_header_and_a_host_change_the_route(file: str) -> None:
    told = ask(file, "--path", "/v1/x", "--header", "x-team: a")
    assert told["route"] == "team"
    told = ask(file, "--method", "POST", "--path", "/v1/x?y=1", "--header", "Host: z.example.com")
    assert told["route"] == "chat"
    assert row(told, "rewrite")[1] == "/api/x?y=1"


def test_who_is_not_trusted_can_only_lower(file: str) -> None:
    claim = ("--header", "x-request-priority: critical_plus", "--header",
             "x-request-timeout-ms: 60000", "--method", "POST", "--path", "/v1/x")  # fmt: skip
    told = ask(file, *claim)
    assert row(told, "priority")[1] == "class critical_plus"
    assert row(told, "deadline")[1] == "60 s, asked for"
    told = ask(file, *claim, "--client", "10.0.0.1")
    assert row(told, "priority")[1] == "class critical"
    assert row(told, "deadline")[1] == "30 s, asked for"


@pytest.mark.parametrize(
    ("arguments", "what", "why"),
    [
        (("--path", "/nowhere"), "route", "no_route: nothing matches"),
        (("--path", "/v1/../x"), "head", "malformed: dot segment in the path"),
        (("--header", "no colon"), "head", "malformed: a header line that is none"),
        (("--method", "CONNECT"), "head", "method_not_allowed: CONNECT is not proxied"),
        (("--body-bytes", str(2**40)), "body", "body_too_large: 1073741824 are allowed"),
    ],
)
def test_what_is_refused_whatever_the_moment_is(
    file: str, arguments: tuple[str, ...], what: str, why: str
) -> None:
    told = ask(file, *arguments)
    assert not told["passes"]
    decides, found = [(each["decides"], each["why"]) for each in told["rows"]
                      if each["what"] == what][-1]  # fmt: skip
    assert (decides, found) == ("refuses", why)


def test_what_is_not_sent_twice(file: str) -> None:
    told = ask(file, "--method", "POST", "--path", "/v1/files")
    assert row(told, "hedge")[0] == "does not"
    assert "may change something" in row(told, "retry")[1]
    large = ("--method", "POST", "--path", "/v1/completions", "--body-bytes", "5000000")
    assert "is sent once" in row(ask(file, *large), "retry")[1]


def test_as_text_and_without_values(file: str) -> None:
    result = CliRunner().invoke(
        main,
        ["explain", file, "--method", "POST", "--path", "/v1/x", "--header",
         "authorization: Bearer hunter2"],
    )  # fmt: skip
    assert result.exit_code == 0
    assert result.stdout.endswith("would be sent on\n")
    assert "by its authorization" in result.stdout
    assert "hunter2" not in result.stdout


def test_wrong_usage(file: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["explain", file, "--client", "nobody"])
    assert (result.exit_code, "--client" in result.output) == (2, True)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("limts: {}\n")
    assert CliRunner().invoke(main, ["explain", str(wrong)]).exit_code == 2


PATHS = st.sampled_from(["/", "/v1", "/v1/x", "/v10", "/v2/x"])
ROUTES = st.builds(
    Route,
    cluster=st.just("c"),
    path=PATHS,
    methods=st.sampled_from([(), ("GET",), ("POST", "GET")]),
    host=st.sampled_from([None, "a.test", "*.test"]),
    headers=st.sampled_from([{}, {"x-team": "a"}]),
)


@given(
    st.lists(ROUTES, max_size=4),
    PATHS,
    st.sampled_from(["GET", "POST"]),
    st.sampled_from([(), ("x-team: a",), ("host: a.test",), ("host: b.test", "x-team: b")]),
)
def test_it_routes_as_the_router_does(
    routes: list[Route], path: str, method: str, headers: tuple[str, ...]
) -> None:
    config = Config(
        clusters={"c": Cluster(endpoints=(Endpoint(url="http://a"),))}, routes=tuple(routes)
    )
    raw = head(method, path, headers)
    request = parse_request(raw, target_bytes=8192, headers=100)
    named = list(zip(routes, names(routes), strict=True))
    told: Explained = explain(config, raw, "127.0.0.1", 0)
    assert told.route == Router(named).match(request)
    assert told.passes == (told.route is not None)
    assert all(each.why for each in told.rows)
