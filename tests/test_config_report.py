"""Errors of a file taken together: routes in each other's way, one pass, carets, and secrecy."""

from pathlib import Path

import pytest
import yaml

from gateway.config_problem import ConfigErrors, Problem
from gateway.config_source import load

REST = """
clusters: {llm: {endpoints: http://127.0.0.1:8000}}
routes: [{cluster: llm}]
"""


def problems_of(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> list[Problem]:
    file = tmp_path / "tailrace.yaml"
    file.write_text(text)
    with pytest.raises(ConfigErrors) as raised:
        load(file, env or {})
    return raised.value.problems


SHADOWED = [
    ("{cluster: a}", "{path: /v1, cluster: a}"),
    ("{path: /v1, cluster: a}", "{path: /v1/, cluster: a}"),
    ("{path: /v1, cluster: a}", "{path: /v1/chat, methods: [POST], cluster: a}"),
    ("{methods: [GET, POST], cluster: a}", "{methods: [POST], cluster: a}"),
    ("{host: '*.b.c', cluster: a}", "{host: a.b.c, cluster: a}"),
    ("{host: '*.c', cluster: a}", "{host: '*.b.c', cluster: a}"),
    ("{host: A.b, cluster: a}", "{host: a.B, cluster: a}"),
    ("{headers: {x-a: q}, cluster: a}", "{headers: {x-a: q, x-b: p}, cluster: a}"),
]
NOT_SHADOWED = [
    ("{path: /v1, cluster: a}", "{path: /v10, cluster: a}"),
    ("{path: /v1, cluster: a}", "{path: /, cluster: a}"),
    ("{methods: [POST], cluster: a}", "{cluster: a}"),
    ("{methods: [GET], cluster: a}", "{methods: [GET, POST], cluster: a}"),
    ("{host: '*.b.c', cluster: a}", "{host: b.c, cluster: a}"),
    ("{host: b.c, cluster: a}", "{host: '*.b.c', cluster: a}"),
    ("{host: b.c, cluster: a}", "{cluster: a}"),
    ("{headers: {x-a: q}, cluster: a}", "{headers: {x-a: p}, cluster: a}"),
    ("{headers: {x-a: q, x-b: p}, cluster: a}", "{headers: {x-a: q}, cluster: a}"),
]


@pytest.mark.parametrize(("first", "second"), SHADOWED)
def test_a_route_that_can_never_match(first: str, second: str, tmp_path: Path) -> None:
    text = f"clusters: {{a: {{endpoints: http://a}}}}\nroutes:\n- {first}\n- {second}\n"
    (problem,) = problems_of(tmp_path, text)
    assert (problem.line, problem.column) == (4, 3)
    assert "can never match: the route on line 3" in problem.message


@pytest.mark.parametrize(("first", "second"), NOT_SHADOWED)
def test_a_route_that_can_match(first: str, second: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"clusters: {{a: {{endpoints: http://a}}}}\nroutes: [{first}, {second}]\n")
    assert len(load(file, {}).routes) == 2


TOGETHER = """\
listen: [127.0.0.1:80, 127.0.0.1:80, 8080]
admin: {listen: 0.0.0.0:9901, probs: off}
trust: [10.0.0.1/8]
limits: {headers: many, pipeline: 0, head_bytes: 64k, connections: 010}
timeouts: {head: 10, idle: no, head: 1s}
telemetry: {debug_headers: 12:30, access_log: {sample: 7}}
clusters:
  llm:
    endpoints: [{url: http://a, dns: http://b}, http://a/v1, "${NOWHERE}"]
    tls: {ca: missing.pem}
routes:
  - {path: /, cluster: lm}
  - {path: /v1, cluster: llm, request_headers: {set: {authorization: "file:nope"}}}
  - {path: /v2, cluster: llm, methods: [get]}
  - {path: /v3, cluster: llm}
filters: {discovery: {}, retry: {idempotent: alway}}
"""


def test_all_classes_of_errors_in_one_pass(tmp_path: Path) -> None:
    text = "\n".join(str(each) for each in problems_of(tmp_path, TOGETHER))
    for expected in (
        "is taken by another listener",
        "write 127.0.0.1:8080",
        "has no token",
        "unknown key 'probs'",
        "bits set behind the prefix",
        "a whole number, got 'many'",
        "must be at least 1, is 0",
        "not a size",
        "reads 010 as the number 8",
        "the duration 10 has no unit",
        "reads no as false",
        "duplicate key 'head'",
        "expected true or false, got '12:30'",
        "more than 100%",
        "exactly one of url and dns",
        "no path and no query",
        "no variable NOWHERE",
        "missing.pem: there is no such file",
        "there is no cluster 'lm'",
        "cannot read the secret",
        "can never match: the route on line 12",
        "did you mean 'GET'",
        "not available in this version",
        "did you mean 'always'",
    ):
        assert expected in text, expected


def test_problems_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    places = [(each.line, each.column) for each in problems_of(tmp_path, TOGETHER)]
    assert places == sorted(places)
    assert len(places) == len(set(places))


def test_a_broken_part_hides_no_other_part(tmp_path: Path) -> None:
    text = "clusters: {a: {endpoints: [ftp://x]}, b: 5}\nroutes: [{cluster: a}, 7, {cluster: c}]\n"
    messages = [each.message for each in problems_of(tmp_path, text)]
    assert any("cannot speak 'ftp'" in each for each in messages)
    assert any("no cluster 'c'" in each for each in messages)
    assert not any("no cluster 'a'" in each for each in messages)
    assert not any("at least one" in each for each in messages)


def test_the_caret_stands_under_the_error(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "drain:\n\n  {  grace: 10 }" + REST)
    first, source, caret = str(problem).splitlines()
    assert first.endswith(
        "tailrace.yaml:3:13: error: the duration 10 has no unit (write 10s or 10ms)"
    )
    assert source[caret.index("^") :].startswith("10 }")


@pytest.mark.parametrize("before", ["é" * 5, "漢字", "x" * 400])
def test_the_caret_after_wide_and_long_text(before: str, tmp_path: Path) -> None:
    text = f'telemetry: {{access_log: {{path: "{before}"}}, zzz: 1}}' + REST
    (problem,) = problems_of(tmp_path, text)
    _, source, caret = str(problem).splitlines()
    assert len(source) <= 164
    wide = sum(1 for char in source if char in "漢字")
    assert source[caret.index("^") - wide :].startswith("zzz")


def test_line_breaks_of_every_system(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xef\xbb\xbfdrain:\r\n  grace: 1s\r\n  zzz: 1\r\n" + REST.encode())
    with pytest.raises(ConfigErrors) as raised:
        load(file, {})
    (problem,) = raised.value.problems
    assert (problem.line, problem.column, problem.source_line) == (3, 3, "  zzz: 1")


def test_alias_bomb(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, 12)]
    problems = problems_of(tmp_path, "\n".join(levels))
    assert "more than 100000 values" in problems[-1].message


def test_a_file_of_nothing_but_errors(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, "".join(f"zzz{number}: 1\n" for number in range(600)))
    assert len(problems) == 501
    # Two of them say that clusters and routes are missing.
    assert str(problems[-1]).endswith("error: 102 more errors, not shown")


def test_a_line_too_long_to_show(tmp_path: Path) -> None:
    endpoints = ", ".join(f"ftp://a{number}" for number in range(5000))
    problems = problems_of(
        tmp_path, f"clusters: {{a: {{endpoints: [{endpoints}]}}}}\nroutes: [{{cluster: a}}]"
    )
    assert problems[0].source_line == ""
    assert problems[0].column == 28


def test_a_file_too_large(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "#" * (4 * 1024**2 + 1))
    assert "larger than 4MiB" in str(problem)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: \xff", b"\x00"])
def test_a_file_that_is_no_text(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigErrors):
        load(file, {})


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing.yaml", tmp_path / "x" / "y", "a\0b"):
        with pytest.raises(ConfigErrors, match="cannot be read"):
            load(place, {})


SECRETS = [
    "admin: {listen: 0.0.0.0:80, token: hunter22, zzz: 1}",
    "admin: {tokn: hunter22}",
    "admin: {token: hunter22, listen: ",
    'admin: {"token": "hunter22", zzz: 1}',
    "admin: {token: 0x1F, zzz: hunter22, token: hunter22}",
    "routes: [{cluster: a, request_headers: {set: {x-k: hunter22}}, zzz: 1}]",
]


@pytest.mark.parametrize("text", SECRETS)
def test_no_secret_in_a_source_line(text: str, tmp_path: Path) -> None:
    problems = problems_of(tmp_path, text.replace("zzz: hunter22", "zzz: 1"))
    assert "hunter22" not in "\n".join(str(each) for each in problems)


def test_no_secret_of_the_environment(tmp_path: Path) -> None:
    text = "limits: {headers: '${KEY}'}\ndrain: {grace: '${KEY}'}\nlisten: '${KEY}'" + REST
    problems = problems_of(tmp_path, text, {"KEY": "hunter22"})
    assert len(problems) == 3
    assert "hunter22" not in "\n".join(str(each) for each in problems)
    assert all("the environment holds something else" in each.message for each in problems)


def test_a_hostile_file_does_not_write_to_the_terminal(tmp_path: Path) -> None:
    text = "zzz: 1 # \u202e\u200b" + REST
    (problem,) = problems_of(tmp_path, text)
    assert "\u202e" not in str(problem)
    assert str(problem).isprintable() or "\n" in str(problem)


def test_the_same_without_libyaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_libyaml = problems_of(tmp_path, TOGETHER)
    monkeypatch.setattr("gateway.config_yaml._LOADER", yaml.SafeLoader)
    assert problems_of(tmp_path, TOGETHER) == with_libyaml
