"""Every class of error in a configuration file, found at its place.

In the tables ``§`` stands before the place that the error must point at.
"""

import re
from pathlib import Path

import pytest

from gateway.config_problem import ConfigErrors, Problem
from gateway.config_source import load

REST = """
clusters: {llm: {endpoints: http://127.0.0.1:8000}}
routes: [{cluster: llm}]
"""
CLUSTER = "\nroutes: [{cluster: llm}]\n"
ROUTES = "\nclusters: {llm: {endpoints: http://127.0.0.1:8000}}\n"


def problems_of(tmp_path: Path, text: str) -> list[Problem]:
    file = tmp_path / "tailrace.yaml"
    file.write_text(text)
    with pytest.raises(ConfigErrors) as raised:
        load(file, {})
    return raised.value.problems


def marked(text: str) -> tuple[str, int, int]:
    before, _, after = text.partition("§")
    return before + after, before.count("\n") + 1, len(before) - before.rfind("\n")


ONE_ERROR = {
    # Keys.
    "unknown key": ("§limts: {}" + REST, "unknown key 'limts' .*did you mean 'limits'"),
    "nested unknown key": ("limits: {§hed_bytes: 1KiB}" + REST, "in limits .*'head_bytes'"),
    "unknown without a guess": ("drain: {§zzz: 1}" + REST, r"known here: grace, timeout"),
    "key of another section": ("§sample: 1%" + REST, "unknown key 'sample' "),
    "misplaced key": ("drain: {§replay_total: 1%}" + REST, "did you mean limits.replay_total?"),
    "later filter": ("filters: {§discovery: {size: 8}}" + REST, "not available in this version"),
    "later cluster key": (
        "clusters: {llm: {endpoints: http://a, §discovery: {}}}" + CLUSTER,
        "not available in this version",
    ),
    "duplicate key": ("drain:\n  grace: 1s\n  §grace: 2s" + REST, "duplicate key 'grace' .*line 2"),
    "duplicate header": (
        ROUTES + "routes: [{cluster: llm, headers: {x-a: a, §X-A: b}}]",
        "duplicate key 'X-A'",
    ),
    "missing key": (ROUTES + "routes: [§{path: /}]", "missing key 'cluster'"),
    "key that is no text": ("§[a]: 1" + REST, "a key must be text"),
    # Types.
    "list for a mapping": ("limits: §[1]" + REST, "expected a mapping, got a list"),
    "mapping for a number": ("limits: {headers: §{a: 1}}" + REST, "a whole number, got a mapping"),
    "nothing for a mapping": ("limits:§ " + REST, "got nothing .*write {}"),
    "nothing for a value": ("limits: {headers: §}" + REST, "got nothing"),
    "text for a number": ("limits: {headers: §many}" + REST, "a whole number, got 'many'"),
    "quoted number": ('limits: {headers: §"5"}' + REST, "take the quotes away"),
    "fraction for a count": ("limits: {headers: §1.5}" + REST, "whole number, got the number 1.5"),
    "text for a bool": ("telemetry: {debug_headers: §maybe}" + REST, "expected true or false"),
    "wrong word": (
        "clusters: {llm: {endpoints: http://a, balance: {policy: §least_requests}}}" + CLUSTER,
        "did you mean 'least_request'",
    ),
    "tag": ("limits: {headers: §!!python/object:os.system 5}" + REST, "means nothing here"),
    # Ranges.
    "too small": ("limits: {headers: §0}" + REST, "must be at least 1, is 0"),
    "too large": ("limits: {pipeline: §1001}" + REST, "must be at most 1000, is 1001"),
    "size too small": ("limits: {head_bytes: §1}" + REST, "must be at least 1KiB, is 1B"),
    "duration of 0": ("timeouts: {head: §0}" + REST, "must be at least 1ms, is 0s"),
    "weight of 0": (
        "clusters: {llm: {endpoints: [{url: http://a, weight: §0}]}}" + CLUSTER,
        "must be more than 0, is 0",
    ),
    "huge number": ("limits: {headers: §" + "9" * 5000 + "}" + REST, "out of range"),
    "status": (
        "clusters: {llm: {endpoints: http://a, health: {expect: {status: §99}}}}" + CLUSTER,
        "must be at least 100",
    ),
    "retry on a success": ("filters: {retry: {on: [connect, §200]}}" + REST, "no status of a fail"),
    # YAML 1.1.
    "no as text": ("telemetry: {access_log: {path: §no}}" + REST, 'reads no as false .*"no"'),
    "no for off": (ROUTES + "routes: [{cluster: llm, host: §no}]", "reads no as false .*write off"),
    "off where it cannot be": ("limits: §off" + REST, "expected a mapping"),
    "off for a duration": ("timeouts: {idle: §off}" + REST, "YAML 1.1 reads off as false"),
    "on for a mapping": ("admin: §on" + REST, "expected a mapping"),
    "clock time": ("timeouts: {idle: §12:30}" + REST, "reads 12:30 as the number 750"),
    "octal": ("limits: {headers: §010}" + REST, "reads 010 as the number 8"),
    "underscore": ("limits: {headers: §1_000}" + REST, "reads 1_000 as the number 1000"),
    "number for text": (
        ROUTES + "routes: [{cluster: llm, headers: {x-team: §007}}]",
        'reads 007 as the number 7 .*write "007"',
    ),
    "date for text": ("telemetry: {access_log: {path: §2024-01-01}}" + REST, "the date 2024-01-01"),
    "word for a bool": ("telemetry: {debug_headers: §'yes'}" + REST, "take the quotes away"),
    # Units.
    "bare duration": ("drain: {grace: §10}" + REST, "has no unit .*write 10s or 10ms"),
    "spelled duration": ("drain: {grace: §10 seconds}" + REST, "write 10s"),
    "bad size": ("limits: {head_bytes: §64k}" + REST, "write 64KiB"),
    "bad share": ("filters: {budget: {ratio: §10}}" + REST, "more than 100% .*write 10%"),
    "share over 100%": ("filters: {budget: {ratio: §101%}}" + REST, "more than 100%"),
    "bare rate": (
        "filters: {rate_limit: {rate: §100, burst: 1}}" + REST,
        "the rate 100 has no unit .*write 100/s",
    ),
    "spelled rate": (
        "filters: {rate_limit: {rate: §5 per minute, burst: 1}}" + REST,
        "write 5/m",
    ),
    "rate of 0": ("filters: {rate_limit: {rate: §0/s, burst: 1}}" + REST, "rate_limit: off"),
    "burst of 0": ("filters: {rate_limit: {rate: 1/s, burst: §0}}" + REST, "at least 1, is 0"),
    "rate without a burst": ("filters: {rate_limit: §{rate: 1/s}}" + REST, "missing key 'burst'"),
    "limit key": (
        "filters: {rate_limit: {key: §authorization, rate: 1/s, burst: 1}}" + REST,
        "cannot limit by .*write header:authorization",
    ),
    "priority header": ("filters: {priority: {header: §x y}}" + REST, "not a header's name"),
    "framing priority header": ("filters: {priority: {header: §Host}}" + REST, "belongs to the co"),
    "class": ("filters: {priority: {default: §criticl}}" + REST, "did you mean 'critical'"),
    "network": ("trust: [§10.0.0.1/8]" + REST, "write 10.0.0.0/8"),
    # Addresses and URLs.
    "port alone": ("listen: §8080" + REST, "write 127.0.0.1:8080"),
    "address without a port": ("listen: §localhost" + REST, "has no port"),
    "address with a scheme": ("listen: §http://127.0.0.1:80" + REST, "has no scheme"),
    "bare IPv6": ("listen: §::1:80" + REST, "needs brackets"),
    "port out of range": ("listen: §127.0.0.1:70000" + REST, "not a port"),
    "socket path": ("listen: §unix:run/x" + REST, "unix:/run"),
    "endpoint scheme": ("clusters: {llm: {endpoints: §a:80}}" + CLUSTER, "write http://a:80"),
    "endpoint ftp": ("clusters: {llm: {endpoints: §ftp://a}}" + CLUSTER, "cannot speak 'ftp'"),
    "endpoint path": ("clusters: {llm: {endpoints: §http://a/v1}}" + CLUSTER, "write http://a,"),
    "endpoint query": ("clusters: {llm: {endpoints: §http://a?x}}" + CLUSTER, "no path and no q"),
    "endpoint user": ("clusters: {llm: {endpoints: §http://u:pw@a}}" + CLUSTER, "no user"),
    "endpoint IPv4": ("clusters: {llm: {endpoints: §http://300.1.1.1}}" + CLUSTER, "not an IPv4"),
    "endpoint of both": (
        "clusters: {llm: {endpoints: [§{url: http://a, dns: http://b}]}}" + CLUSTER,
        "exactly one of url and dns",
    ),
    "endpoint of neither": (
        "clusters: {llm: {endpoints: [§{weight: 2}]}}" + CLUSTER,
        "exactly one",
    ),
    "dns of an address": (
        "clusters: {llm: {endpoints: [{dns: §http://10.0.0.1:80}]}}" + CLUSTER,
        "a name that can be looked up .*write url",
    ),
    "endpoint twice": (
        "clusters: {llm: {endpoints: [http://a, §http://A]}}" + CLUSTER,
        "listed twice",
    ),
    "no endpoints": ("clusters: {llm: {endpoints: §[]}}" + CLUSTER, "at least one endpoint"),
    # Between values.
    "route to nowhere": (ROUTES + "routes: [{cluster: §lm}]", "no cluster 'lm' .*mean 'llm'"),
    "no routes": (ROUTES + "routes: §[]", "at least one route"),
    "route name twice": (
        ROUTES + "routes: [{path: /a, cluster: llm, name: a}, {cluster: llm, name: §a}]",
        "two routes are named",
    ),
    "route name like what another matches": (
        ROUTES + "routes: [{path: /a, cluster: llm}, {cluster: llm, name: §/a}]",
        "not a name",
    ),
    "listener twice": ("listen: [0.0.0.0:80, §127.0.0.1:80]" + REST, "is taken by another"),
    "listener on admin": ("listen: §127.0.0.1:9901" + REST, "taken by the default of admin.listen"),
    "probes on admin": (
        "admin: {listen: 127.0.0.1:1, probes: §127.0.0.1:1}" + REST,
        "taken by admin.listen",
    ),
    "open admin": ("admin: {listen: §0.0.0.0:9901}" + REST, "has no token"),
    "open admin by name": ("admin: {listen: §gateway:9901}" + REST, "has no token"),
    "framing header": (
        ROUTES + "routes: [{cluster: llm, request_headers: {set: {§Content-Length: '1'}}}]",
        "belongs to the connection",
    ),
    "buckets": ("telemetry: {metrics: {buckets: §[1, 1]}}" + REST, "must grow"),
    "replay": ("limits: {replay_total: §1KiB}" + REST, "1MiB is more than replay_total 1KiB"),
    "tcp path": (
        "clusters: {llm: {endpoints: http://a, health: {kind: tcp, path: §/x}}}" + CLUSTER,
        "a tcp check has no path",
    ),
    "half a certificate": (
        "clusters: {llm: {endpoints: https://a, tls: §{cert: x.pem}}}" + CLUSTER,
        "key is missing",
    ),
    "ejection": (
        "clusters: {llm: {endpoints: http://a, outlier: {max_ejection: §1s}}}" + CLUSTER,
        "base_ejection 5s is more than max_ejection 1s",
    ),
    "limit": ("filters: {admission: {min: §9, max: 8}}" + REST, "min 9 is more than max 8"),
    "first limit": (
        "filters: {admission: {initial: §900, max: 800}}" + REST,
        "initial 900 is not from min 1 to max 800",
    ),
    "hedges": (
        "filters: {budget: {ratio: 10%, hedges: §20%}}" + REST,
        "hedges 20% is more than ratio 10%",
    ),
    # Routes' own values.
    "path": (ROUTES + "routes: [{cluster: llm, path: §v1}]", "write /v1"),
    "query in a path": (ROUTES + "routes: [{cluster: llm, path: §/a?b}]", "not the query"),
    "method": (ROUTES + "routes: [{cluster: llm, methods: [§post]}]", "did you mean 'POST'"),
    "refused method": (ROUTES + "routes: [{cluster: llm, methods: [§TRACE]}]", "refused"),
    "host with a port": (ROUTES + "routes: [{cluster: llm, host: §a:80}]", "without its port"),
    "header name": (ROUTES + "routes: [{cluster: llm, headers: {§x y: a}}]", "not a header's name"),
    "hash key": (
        "clusters: {llm: {endpoints: http://a, balance: {hash_by: §cookie}}}" + CLUSTER,
        "write header:NAME",
    ),
    "cluster name": (ROUTES.replace("llm", "§a b") + "routes: [{cluster: a}]", "not a name"),
    # References and secrets.
    "no variable": ("listen: 127.0.0.1:§${PORT}" + REST, "no variable PORT"),
    "half a reference": ("listen: 127.0.0.1:§${" + REST, "not a reference"),
    "no secret file": ("admin: {token: §file:nothing}" + REST, "cannot read the secret"),
    "secret from a folder": ("admin: {token: §file:.}" + REST, "is not a file"),
    "empty secret": ("admin: {token: §''}" + REST, "the secret is empty"),
    "secret of two lines": ('admin: {token: §"a\\nb"}' + REST, "cannot stand in a header"),
    # YAML itself.
    "syntax": ("a: [1\nb§: 2", "YAML syntax"),
    "undefined alias": ("a: §*x" + REST, "'x' is not defined"),
    "alias of itself": ("a: &x [§*x]" + REST, "contains itself"),
    "control character": ("a: b\nc: §\x01", r"U\+0001 is not allowed"),
    "depth": ("[" * 32 + "§[" + "]" * 33, "nested more than 32"),
    "two documents": ("a: 1\n§---\nb: 2\n", "a second YAML document"),
    "empty": ("§# nothing\n", "the file is empty"),
    "not a mapping": ("§[]", "expected a mapping, got a list"),
}


@pytest.mark.parametrize("case", ONE_ERROR)
def test_points_at_the_error(case: str, tmp_path: Path) -> None:
    text, pattern = ONE_ERROR[case]
    text, line, column = marked(text)
    problems = problems_of(tmp_path, text)
    found = [each for each in problems if re.search(pattern, f"{each.message} ({each.hint})")]
    assert found, [str(each) for each in problems]
    assert (found[0].line, found[0].column) == (line, column), str(found[0])


def test_one_mistake_is_one_error(tmp_path: Path) -> None:
    alone = [
        name for name in ONE_ERROR if name not in ("cluster name", "depth", "half a certificate")
    ]
    for name in alone:
        text, _, _ = marked(ONE_ERROR[name][0])
        found = problems_of(tmp_path, text)
        # The table's shortest files lack clusters and routes altogether.
        others = [each for each in found if not each.message.startswith("missing key")]
        assert len(others) <= 1 or "unknown key 'a'" in str(found), (name, [*map(str, found)])
