"""What a file means: shorthands, units, overrides, references, flags, and the way back to YAML."""

import stat
from pathlib import Path

import pytest

from filters.deadline import Config as Deadline
from filters.priority import Config as Priority
from filters.rate_limit import Config as RateLimit
from filters.retry import Config as Retry
from gateway.config import Admin, Config, Endpoint, Filters, Health, Listener, Secret
from gateway.config_check import is_local
from gateway.config_problem import ConfigErrors
from gateway.config_source import effective, from_flags, load

CONFIGS = Path(__file__).parent.parent / "configs"
REST = """
clusters: {llm: {endpoints: http://127.0.0.1:8000}}
routes: [{cluster: llm}]
"""


def loaded(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> Config:
    file = tmp_path / "tailrace.yaml"
    file.write_text(text)
    return load(file, env or {})


def test_the_smallest_file() -> None:
    config = load(CONFIGS / "minimal.yaml", {})
    assert config.listen == (Listener(address="127.0.0.1:8080"),)
    assert [each.url for each in config.clusters["llm"].endpoints] == [
        "http://127.0.0.1:8000",
        "http://127.0.0.1:8001",
    ]
    assert config.admin == Admin(listen="127.0.0.1:9901")
    assert config.routes[0].filters == Filters()
    assert config.limits.head_bytes == 65536


def test_json_is_yaml(tmp_path: Path) -> None:
    text = '{"clusters": {"a": {"endpoints": ["http://a"], "health": "off"}}, "admin": false,\n'
    config = loaded(tmp_path, text + '"routes": [{"cluster": "a"}], "drain": {"grace": "1s"}}')
    assert (config.admin, config.clusters["a"].health, config.drain.grace) == (None, None, 1.0)


@pytest.mark.parametrize(
    "listen",
    [
        "127.0.0.1:80",
        "{address: 127.0.0.1:80}",
        "[127.0.0.1:80]",
        "[{address: 127.0.0.1:80}]",
    ],
)
def test_forms_of_listen(listen: str, tmp_path: Path) -> None:
    assert loaded(tmp_path, f"listen: {listen}{REST}").listen == (Listener(address="127.0.0.1:80"),)


def test_forms_of_endpoints(tmp_path: Path) -> None:
    text = """
clusters:
  a:
    endpoints: ["HTTP://LLM:80/", {dns: http://b:8000}, {url: "unix:/run/x", weight: 2.5}]
    health: {expect: 204}
  b: {endpoints: {url: "https://[::1]:8443"}, health: {expect: {status: [200, 204], body: "off"}}}
routes: {cluster: a}
"""
    config = loaded(tmp_path, text)
    assert config.clusters["a"].endpoints == (
        Endpoint(url="http://llm:80"),
        Endpoint(dns="http://b:8000"),
        Endpoint(url="unix:/run/x", weight=2.5),
    )
    assert config.clusters["b"].endpoints == (Endpoint(url="https://[::1]:8443"),)
    one, other = config.clusters["a"].health, config.clusters["b"].health
    assert isinstance(one, Health)
    assert isinstance(other, Health)
    assert (one.expect.status, one.expect.body) == ((204,), None)
    assert (other.expect.status, other.expect.body) == ((200, 204), "off")


def test_values_become_canonical(tmp_path: Path) -> None:
    text = """
trust: 10.1.2.3
clusters: {a: {endpoints: http://a, balance: {hash_by: header:X-Session}}}
routes: [{cluster: a, host: "*.Example.COM", headers: {X-Team: Red},
  request_headers: {set: {X-B: b}, remove: X-A}}]
"""
    config = loaded(tmp_path, text)
    route = config.routes[0]
    assert config.trust == ("10.1.2.3/32",)
    assert (route.host, route.headers) == ("*.example.com", {"x-team": "Red"})
    assert list(route.request_headers.set) == ["x-b"]
    assert route.request_headers.remove == ("x-a",)
    assert config.clusters["a"].balance.hash_by == "header:x-session"


def test_a_route_overrides_field_by_field(tmp_path: Path) -> None:
    text = """
routes:
  - {path: /a, cluster: llm, filters: {retry: {attempts: 4}, deadline: off}}
  - {path: /b, cluster: llm, filters: {deadline: {default: 1s}}}
  - {path: /c, cluster: llm}
clusters: {llm: {endpoints: http://127.0.0.1:8000}}
filters: {retry: {attempts: 3, idempotent: never}, deadline: {max: 1m, stall: 2s}}
"""
    config = loaded(tmp_path, text)
    a, b, c = (each.filters for each in config.routes)
    assert config.filters.retry == Retry(attempts=3, idempotent="never")
    assert (a.retry, a.deadline) == (Retry(attempts=4, idempotent="never"), None)
    assert (b.retry, b.deadline) == (c.retry, Deadline(default=1.0, max=60.0, stall=2.0))
    assert c == config.filters


def test_a_route_overrides_what_has_no_default(tmp_path: Path) -> None:
    text = """
filters: {rate_limit: {key: client, rate: 60/m, burst: 5}, priority: {header: X-Class}}
clusters: {llm: {endpoints: http://127.0.0.1:8000}}
routes:
  - {path: /a, cluster: llm, filters: {rate_limit: {rate: 1/h}}}
  - {path: /b, cluster: llm, filters: {rate_limit: off, priority: {default: sheddable}}}
"""
    config = loaded(tmp_path, text)
    a, b = (each.filters for each in config.routes)
    assert config.filters.rate_limit == RateLimit(key="client", rate=1.0, burst=5)
    assert a.rate_limit == RateLimit(key="client", rate=1 / 3600, burst=5)
    assert (b.rate_limit, b.priority) == (None, Priority(header="x-class", default="sheddable"))


def test_a_route_turns_on_what_is_off(tmp_path: Path) -> None:
    text = """
filters: {retry: off}
clusters: {llm: {endpoints: http://127.0.0.1:8000}}
routes: [{path: /a, cluster: llm, filters: {retry: {}}}, {cluster: llm}]
"""
    config = loaded(tmp_path, text)
    assert [each.filters.retry for each in config.routes] == [Retry(), None]


def test_anchors_and_merges(tmp_path: Path) -> None:
    text = """
clusters:
  a: &a {endpoints: http://a, connect_timeout: 2s, resolve: 9s}
  b: {<<: *a, endpoints: http://b, resolve: 1s}
routes: [{cluster: a}]
"""
    b = loaded(tmp_path, text).clusters["b"]
    assert (b.endpoints[0].url, b.connect_timeout, b.resolve) == ("http://b", 2.0, 1.0)


ENVIRONMENT = {"PORT": "81", "GRACE": "7s", "NO": "no", "NUMBER": "007", "EMPTY": "", "OFF": "off"}


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("listen: 127.0.0.1:${PORT}", "listen.0.address", "127.0.0.1:81"),
        ("listen: 127.0.0.1:${NONE:-82}", "listen.0.address", "127.0.0.1:82"),
        ("listen: 127.0.0.1:${EMPTY:-83}", "listen.0.address", "127.0.0.1:83"),
        ("drain: {grace: '${GRACE}'}", "drain.grace", 7.0),
        ("limits: {headers: '${PORT}'}", "limits.headers", 81),
        ("admin: ${OFF}", "admin", None),
        ("admin: ${NONE:-off}", "admin", None),
        ("telemetry: {debug_headers: '${NONE:-true}'}", "telemetry.debug_headers", True),
        ("telemetry: {access_log: {path: '${NO}'}}", "telemetry.access_log.path", "no"),
        ("telemetry: {access_log: {path: '${NUMBER}'}}", "telemetry.access_log.path", "007"),
        ("telemetry: {access_log: {path: '$${NO}'}}", "telemetry.access_log.path", "${NO}"),
        ("telemetry: {access_log: {path: '$$${NO}'}}", "telemetry.access_log.path", "$${NO}"),
        ("telemetry: {access_log: {path: '$5'}}", "telemetry.access_log.path", "$5"),
    ],
)
def test_references_to_the_environment(text: str, path: str, value: object, tmp_path: Path) -> None:
    part: object = loaded(tmp_path, text + REST, ENVIRONMENT)
    for name in path.split("."):
        part = part[int(name)] if isinstance(part, tuple) else getattr(part, name)
    assert part == value


def test_the_process_environment_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILRACE_TEST_PORT", "84")
    file = tmp_path / "a.yaml"
    file.write_text("listen: 127.0.0.1:${TAILRACE_TEST_PORT}" + REST)
    assert load(file).listen[0].address == "127.0.0.1:84"


@pytest.mark.parametrize(
    ("written", "value", "source"),
    [
        ("file:token", "from-file", "file:token"),
        ("file:${NAME}", "from-file", "file:${NAME}"),
        ("'${KEY}'", "from-env", "${KEY}"),
        ("'${NONE:-fallback}'", "fallback", "${NONE}"),
        ("plain-text", "plain-text", "***"),
        ("'Bearer ${KEY}'", "Bearer from-env", "***"),
    ],
)
def test_secrets(written: str, value: str, source: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    written = f"'{written}'" if written.startswith("file:$") else written
    config = loaded(
        tmp_path, f"admin: {{token: {written}}}{REST}", {"KEY": "from-env", "NAME": "token"}
    )
    assert config.admin is not None
    assert config.admin.token == Secret(value, source)
    assert value not in repr(config)
    assert value not in effective(config)
    assert f"token: {source}" in effective(config).replace("'", "")


def test_a_secret_that_may_not_be_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(b"x" * (64 * 1024 + 1))
    with pytest.raises(ConfigErrors, match="larger than 64KiB"):
        loaded(tmp_path, "admin: {token: file:token}" + REST)
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigErrors, match="not UTF-8"):
        loaded(tmp_path, "admin: {token: file:token}" + REST)
    assert stat.S_ISREG(file.stat().st_mode)


def test_from_flags() -> None:
    config = from_flags(["127.0.0.1:0", "unix:/run/x"], ["http://a:1", "unix:/b"], "127.0.0.1:5")
    assert [each.address for each in config.listen] == ["127.0.0.1:0", "unix:/run/x"]
    assert [each.url for each in config.clusters["default"].endpoints] == ["http://a:1", "unix:/b"]
    assert config.routes[0].cluster == "default"
    assert config.admin == Admin(listen="127.0.0.1:5")


def test_from_flags_with_defaults() -> None:
    config = from_flags([], ["http://a:1"], None)
    assert config.listen == (Listener(address="127.0.0.1:8080"),)
    assert config.admin == Admin()
    assert from_flags([], ["http://a:1"], "off").admin is None


def test_from_flags_names_every_wrong_flag() -> None:
    with pytest.raises(ConfigErrors) as raised:
        from_flags(["8080"], ["a:1", "ftp://b"], "0.0.0.0:9901")
    lines = [str(each) for each in raised.value.problems]
    assert [each.partition(":")[0] for each in lines].count("--upstream") == 2
    assert any(each.startswith("--listen: error: the address 8080 has no host") for each in lines)
    assert any(each.startswith("--admin: error: admin.listen 0.0.0.0:9901") for each in lines)


def test_from_flags_without_an_upstream() -> None:
    with pytest.raises(ConfigErrors, match="--upstream: error: a cluster needs at least one"):
        from_flags([], [])


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/x", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("gateway:1", False),
    ],
)
def test_is_local(address: str, local: bool) -> None:
    assert is_local(address) is local


@pytest.mark.parametrize("name", ["minimal", "sidecar", "reference"])
def test_the_effective_configuration_loads_again(name: str, tmp_path: Path) -> None:
    config = load(CONFIGS / f"{name}.yaml", {})
    text = effective(config)
    again = loaded(tmp_path, text)
    if name == "reference":
        # It sets a header, and headers are secrets: they do not survive.
        assert "***" in text
        assert effective(again) == text
    else:
        assert again == config


def test_the_effective_configuration_is_written_for_people(tmp_path: Path) -> None:
    text = effective(loaded(tmp_path, "drain: {grace: 1500ms}\nadmin: off" + REST))
    for line in (
        "grace: 1500ms",
        "admin: off",
        "head_bytes: 64KiB",
        "ratio: 10%",
        "debug_headers: false",
        "idle: 75s",
    ):
        assert line in text, line
