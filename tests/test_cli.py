"""The command: what it prints, what it passes on, and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.config import Config

CONFIGS = Path(__file__).parent.parent / "configs"
MINIMAL = str(CONFIGS / "minimal.yaml")
WRONG = "clusters: {llm: {endpoints: http://a}}\nroutes: [{cluster: lm}]\nlimts: {}\n"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def wrong(tmp_path: Path) -> str:
    file = tmp_path / "wrong.yaml"
    file.write_text(WRONG)
    return str(file)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands for the server and the demo; holds what they were called with, and answers 3."""
    calls: list[Any] = []

    def record(*arguments: Any) -> int:
        calls.append(arguments)
        return 3

    for name in ("gateway.server", "gateway.demo"):
        module = ModuleType(name)
        vars(module)["run"] = record
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_check_of_a_good_file() -> None:
    result = invoke("check", MINIMAL)
    assert (result.exit_code, result.stdout) == (0, "ok: 1 listener, 1 cluster, 1 route\n")


def test_check_shows_every_error_with_a_caret(wrong: str) -> None:
    result = invoke("check", wrong)
    assert result.exit_code == 2
    assert result.stdout.splitlines() == [
        f"{wrong}:2:20: error: there is no cluster 'lm' (did you mean 'llm'?)",
        "    routes: [{cluster: lm}]",
        "                       ^",
        f"{wrong}:3:1: error: unknown key 'limts' (did you mean 'limits'?)",
        "    limts: {}",
        "    ^",
        "2 errors",
    ]


def test_check_as_data(wrong: str) -> None:
    result = invoke("check", "--json", wrong)
    assert result.exit_code == 2
    first, second = json.loads(result.stdout)
    assert first == {
        "file": wrong,
        "line": 2,
        "column": 20,
        "message": "there is no cluster 'lm'",
        "hint": "did you mean 'llm'?",
        "source_line": "routes: [{cluster: lm}]",
        "severity": "error",
    }
    assert second["line"] == 3


def test_check_of_a_good_file_as_data() -> None:
    result = invoke("check", "--json", MINIMAL)
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])


def test_check_shows_warnings_and_is_content(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(WRONG.replace("lm}", "llm}").replace("limts: {}", "timeouts: {idle: 0}"))
    result = invoke("check", str(file))
    assert result.exit_code == 0
    assert f"{file}:3:18: warning: idle is 0" in result.stdout
    assert result.stdout.endswith("ok: 1 listener, 1 cluster, 1 route\n")
    (problem,) = json.loads(invoke("check", "--json", str(file)).stdout)
    assert problem["severity"] == "warning"


@pytest.mark.parametrize("command", ["check", "config", "run"])
def test_a_file_that_is_not_there(command: str, served: list[Any]) -> None:
    result = invoke(command, "/nowhere/at-all.yaml")
    assert result.exit_code == 2
    assert "/nowhere/at-all.yaml: error: cannot be read: No such file" in result.output
    assert not served


def test_config_prints_what_loads_again(tmp_path: Path) -> None:
    result = invoke("config", MINIMAL)
    assert result.exit_code == 0
    file = tmp_path / "effective.yaml"
    file.write_text(result.stdout)
    assert invoke("config", str(file)).stdout == result.stdout
    assert "head_bytes: 64KiB" in result.stdout


def test_config_of_a_wrong_file_prints_only_errors(wrong: str) -> None:
    result = invoke("config", wrong)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean 'limits'?" in result.stderr


def test_schema_is_the_shipped_one() -> None:
    result = invoke("schema")
    assert result.exit_code == 0
    assert result.stdout == (CONFIGS / "schema.json").read_text()


def test_run_from_a_file(served: list[Any]) -> None:
    result = invoke("run", MINIMAL)
    assert result.exit_code == 3
    ((config, path),) = served
    assert isinstance(config, Config)
    assert list(config.clusters) == ["llm"]
    assert path == Path(MINIMAL)


def test_run_from_flags(served: list[Any]) -> None:
    result = invoke(
        "run",
        *("--listen", "127.0.0.1:0", "--upstream", "http://a:1", "--upstream", "http://b:1"),
        *("--admin", "off"),
    )
    assert result.exit_code == 3
    ((config, path),) = served
    assert [each.address for each in config.listen] == ["127.0.0.1:0"]
    assert [each.url for each in config.clusters["default"].endpoints] == [
        "http://a:1",
        "http://b:1",
    ]
    assert config.admin is None
    assert path is None


def test_run_shows_warnings(tmp_path: Path, served: list[Any]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(WRONG.replace("lm}", "llm}").replace("limts: {}", "timeouts: {idle: 0}"))
    result = invoke("run", str(file))
    assert "warning: idle is 0" in result.stderr
    assert len(served) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a CONFIG file, or an --upstream"),
        (("--listen", "127.0.0.1:0"), "name a CONFIG file, or an --upstream"),
        ((MINIMAL, "--upstream", "http://a"), "CONFIG and flags"),
        ((MINIMAL, "--admin", "off"), "CONFIG and flags"),
        (("--upstream", "a:1"), "--upstream: error: the endpoint 'a:1' has no scheme"),
        (("--upstream", "http://a", "--listen", "80"), "--listen: error: the address 80"),
        (("--upstream", "http://a", "--admin", "[::]:1"), "--admin: error: admin.listen"),
        (("--upstream", "http://a", "--zzz"), "No such option"),
    ],
)
def test_run_refuses(arguments: tuple[str, ...], message: str, served: list[Any]) -> None:
    result = invoke("run", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not served


def test_run_of_a_wrong_file(wrong: str, served: list[Any]) -> None:
    result = invoke("run", wrong)
    assert (result.exit_code, served) == (2, [])
    assert "did you mean 'llm'?" in result.stderr


def test_demo(served: list[Any]) -> None:
    assert invoke("demo").exit_code == 3
    assert invoke("demo", "--seconds", "2.5").exit_code == 3
    assert served == [(None,), (2.5,)]
    assert invoke("demo", "--seconds", "0").exit_code == 2


def test_version_and_help() -> None:
    assert invoke("--version").stdout.startswith("tailrace ")
    for command in ("run", "check", "config", "schema", "demo"):
        assert command in invoke("--help").stdout
        assert invoke(command, "--help").exit_code == 0


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_start_from_flags_imports_no_more_than_it_needs() -> None:
    code = """
import sys
from types import ModuleType
server = sys.modules["gateway.server"] = ModuleType("gateway.server")
server.run = lambda config, path: 0
from gateway.cli import main
try:
    main(["run", "--upstream", "http://127.0.0.1:8000"])
except SystemExit as done:
    assert done.code == 0, done.code
print([name for name in sys.argv[1:] if name in sys.modules])
"""
    unwanted = ("yaml", "rich", "aiohttp", "opentelemetry", "jsonschema", "difflib", "watchfiles")
    assert python(code, *unwanted).strip() == "[]"


def test_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway", "check", MINIMAL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "ok: 1 listener, 1 cluster, 1 route\n")
