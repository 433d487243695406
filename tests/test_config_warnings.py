"""What `tailrace check` warns of: files that load, and probably should not say what they say."""

from pathlib import Path

import pytest

from gateway.config_source import effective, load_with_warnings

REST = """
clusters: {llm: {endpoints: http://127.0.0.1:8000}}
routes: [{cluster: llm}]
"""


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("limits: {connections: 10000000}", "is more than half of the"),
        ("timeouts: {idle: 0}", "idle is 0: no client's connection is kept"),
        ("drain: {timeout: 0}", "timeout is 0: a drain cuts"),
        ("filters: {deadline: {max: 0}}", "max is 0: every exchange ends at once"),
        ("filters: {retry: {idempotent: always}}", "something twice"),
        ("filters: {admission: {limit: 8, max: 9}}", "max has no effect with a fixed limit"),
        ("filters: {admission: {queue: {timeout: 0}}}", "queue.timeout is 0: whoever waits"),
        ("filters: {deadline: {default: 2h}}", "default 2h is more than max 1h"),
        ("filters: {hedge: {}}", "never be a hedge: the cluster 'llm' has one endpoint"),
        ("filters: {retry: {on: []}}", "on is empty: nothing is ever retried"),
        ("filters: {load_shed: {loop_lag: 0}}", "loop_lag is 0: all but critical_plus are"),
        ("filters: {load_shed: {memory: 0%}}", "memory is 0: all but critical_plus are refused"),
        ("filters: {load_shed: {files: 0}}", "files is 0: all but critical_plus are refused"),
        ("filters: {admission: {limit: 1025}}", "limit 1025 is more than the 1024 connections"),
    ],
)
def test_warnings(text: str, warning: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text + REST)
    (problem,) = load_with_warnings(file, {})[1]
    assert warning in str(problem)
    assert "a.yaml:1:" in str(problem)
    assert ": warning: " in str(problem)


def test_warnings_about_clusters(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "clusters:\n  a: {endpoints: http://a, tls: {verify: false}}\n  b: {endpoints: http://b}\n"
        "routes: [{cluster: a}]\n"
    )
    warnings = [(each.line, each.message) for each in load_with_warnings(file, {})[1]]
    assert warnings == [
        (2, "no endpoint of this cluster is https"),
        (2, "verify: false lets anyone on the way read and change everything"),
        (3, "no route leads to the cluster 'b'"),
    ]


def test_warnings_about_ejection(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "clusters:\n"
        "  a: {endpoints: http://a, outlier: {max_ejected: 0%, latency_factor: 4,\n"
        "      failure_percent: 0%},\n"
        "      balance: {policy: consistent_hash}}\n"
        "routes: [{cluster: a}]\n"
    )
    warnings = [(each.line, each.message) for each in load_with_warnings(file, {})[1]]
    assert warnings == [
        (2, "max_ejected is 0: one endpoint of several may be out all the same"),
        (2, "latency_factor has no effect under consistent_hash"),
        (3, "failure_percent is 0: 5 failures within 10s, however much goes well, eject"),
    ]


FIXED = [
    ("{limit: 8}", ["{}", "{}"], "2 routes with fixed limits lead to 'a': 16 in flight"),
    ("{}", ["{limit: 8}", "{limit: 4}"], "2 routes with fixed limits lead to 'a': 12 in flight"),
    ("{}", ["{limit: 8}", "{}"], ""),
    ("{limit: 8}", ["{}", "{limit: adaptive}"], ""),
    ("{limit: 8}", ["{}", "off"], ""),
]


@pytest.mark.parametrize(("all_routes", "own", "warning"), FIXED)
def test_fixed_limits_of_several_routes_add_up(
    all_routes: str, own: list[str], warning: str, tmp_path: Path
) -> None:
    """A limit is per route, so those of one cluster add up, whatever other clusters have."""
    file = tmp_path / "a.yaml"
    routes = [f"{{path: /{n}, cluster: a, filters: {{admission: {x}}}}}" for n, x in enumerate(own)]
    file.write_text(
        f"filters: {{admission: {all_routes}}}\n"
        "clusters: {a: {endpoints: [http://a]}, b: {endpoints: [dns: http://b]}}\n"
        f"routes: [{', '.join(routes)}, {{path: /x, cluster: b}}]\n"
    )
    found = [each.message for each in load_with_warnings(file, {})[1]]
    assert found == ([warning] if warning else [])


def test_fixed_limits_share_the_connections(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "filters: {admission: {limit: 8}}\n"
        "clusters: {a: {endpoints: [http://a, http://b], connections: {max: 4}},\n"
        "           b: {endpoints: [http://c], connections: {max: 7}},\n"
        "           c: {endpoints: [dns: http://d], connections: {max: 1}}}\n"
        "routes: [{path: /a, cluster: a}, {path: /b, cluster: b}, {cluster: c}]\n"
    )
    (found,) = load_with_warnings(file, {})[1]
    assert (found.line, found.message) == (
        1,
        "limit 8 is more than the 7 connections that 'b' may open",
    )


@pytest.mark.parametrize(
    ("filters", "why"),
    [
        ("{hedge: {}, retry: off}", None),
        ("{hedge: {}, retry: {idempotent: never}}", "retry.idempotent: never"),
        ("{hedge: {}, budget: {hedges: 0}}", "budget.hedges is 0"),
        ("{hedge: {min: 11m}}", "hedge.min 11m is not below deadline.first_byte 10m"),
        ("{hedge: {min: 5s}, deadline: {max: 5s}}", "hedge.min 5s is not below deadline.max 5s"),
    ],
)
def test_warnings_about_hedges(filters: str, why: str | None, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "clusters: {a: {endpoints: [http://a, http://b]}, b: {endpoints: [dns: http://b]}}\n"
        f"routes: [{{path: /a, cluster: a, filters: {filters}}},\n"
        "         {path: /b, cluster: b, filters: {hedge: {}}}]\n"
    )
    found = load_with_warnings(file, {})[1]
    assert [each.line for each in found] == ([2] if why else [])
    assert why is None or why in found[0].message


def test_an_effective_configuration_contradicts_nobody(tmp_path: Path) -> None:
    """All defaults are written in it, those too that what was written makes useless."""
    file = tmp_path / "a.yaml"
    file.write_text(
        "filters: {admission: {min: 600}, budget: {ratio: 2%}}\n"
        "clusters: {a: {endpoints: [http://a], balance: {policy: consistent_hash}}}\n"
        "routes: [{cluster: a}]\n"
    )
    config, found = load_with_warnings(file, {})
    assert found == []
    file.write_text(effective(config))
    assert load_with_warnings(file, {}) == (config, [])


def test_no_warnings_for_defaults(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("limits: {connections: 1}" + REST)
    assert load_with_warnings(file, {})[1] == []
