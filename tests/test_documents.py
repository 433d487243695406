"""Every block of README and docs is checked: configurations load, commands exist and run where that
is harmless, programs compile, samples are what the code writes. ``tests/test_guides.py`` runs more.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest
import trustme
import yaml
from aiohttp.test_utils import make_mocked_request
from click.testing import CliRunner

from filters.api import Reason
from gateway.access_log import __file__ as access_log
from gateway.admin_http import Pages
from gateway.admin_rules import Listening
from gateway.cli import main
from gateway.config_source import load_with_warnings
from gateway.server import Server
from tests.documents import (
    COMMANDS,
    KNOWN,
    Block,
    blocks,
    commands,
    complete,
    documents,
    every,
    word,
)  # fmt: skip
from tests.harness import configure
from tests.tidy import ROOT

CONFIGS, SHELL = every("config"), every("shell")
PLACES = re.compile(r"^(?:configs|docs|loadtests|tests)/\S+$|^\S+\.(?:txt|toml|lock)$")
HARMLESS = ("check", "config", "schema", "explain")
ADMIN = ("9901", "9902")
OF_THE_MACHINE = re.compile(r"files this process may open")
"""A warning that is about where the test runs."""


def name(block: Block) -> str:
    return block.where


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    unknown = [each for path in documents() for each in blocks(path) if each.kind == "unknown"]
    known = {(each.document, " ".join(each.text.split()[:2])) for each in unknown}
    assert known == set(KNOWN), "say what it is, or mark it with a reason: tests/documents.py"


def test_every_exemption_is_still_needed() -> None:
    marked = [each for path in documents() for each in blocks(path) if each.mark]
    assert all(len(each.reason) > 10 for each in marked)
    unmarked = [Block(*(each.document, each.line, each.language, each.name, each.text))
                for each in marked if each.mark != "not run"]  # fmt: skip
    assert [each.where for each in unmarked if each.kind in ("config", "python", "shell")] == []
    written = sum(path.read_text().count("<!-- not run:") for path in documents())
    written += sum(path.read_text().count("<!-- manifest:") for path in documents())
    assert written == len(marked), "a marker stands right above its block"


# -- configurations --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of whoever follows a guide: certificates, a token, a configuration."""
    authority = trustme.CA()
    server = authority.issue_cert("localhost", "127.0.0.1")
    tls = tmp_path / "tls"
    tls.mkdir()
    for each in ("server", "client"):
        server.private_key_pem.write_to_path(str(tls / f"{each}.key"))
        (tls / f"{each}.pem").write_bytes(b"".join(b.bytes() for b in server.cert_chain_pems))
    for each in ("clients", "authority"):
        authority.cert_pem.write_to_path(str(tls / f"{each}.pem"))
    (tls / "token").write_text("secret\n")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "tailrace.yaml").write_text((ROOT / "configs" / "minimal.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", CONFIGS, ids=name)
def test_configurations_load_without_a_warning(block: Block, folder: Path) -> None:
    file = folder / "shown.yaml"
    file.write_text(complete(block.text))
    _, problems = load_with_warnings(file, env={})
    warnings = [str(each) for each in problems if not OF_THE_MACHINE.search(str(each))]
    assert len(warnings) == block.text.count("# check warns: "), warnings


def test_the_rule_that_completes_a_part() -> None:
    route = yaml.safe_load(complete("batching: {format: kserve_v1}\n"))
    assert route["routes"] == [{"batching": {"format": "kserve_v1"}, "cluster": "completed"}]
    routes = yaml.safe_load(complete("routes:\n  - cluster: a\n  - cluster: b\n"))
    assert list(routes["clusters"]) == ["a", "b"]
    whole = "clusters: {a: {endpoints: http://a}}\nroutes: [{cluster: a}]\n"
    assert complete(whole) == whole


@pytest.mark.parametrize("block", every("manifest"), ids=name)
def test_manifests_are_validated_or_say_why_not(block: Block) -> None:
    tree = yaml.safe_load(block.text)
    if block.mark or block.document == "docs/kubernetes.md":  # tests/ops/test_kubernetes.py
        return
    assert set(tree) == {"spec"}, "not marked, and nothing here validates it"
    validate = pytest.importorskip("kubernetes_validate")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "shown"}, **tree}
    validate.validate(pod, "1.33", strict=True)


# -- commands --------------------------------------------------------------------------------------


def shown(*which: str) -> Iterator[tuple[str, list[str]]]:
    """(where, words) of each command named ``which``."""
    for block in SHELL:
        for words in commands(block):
            if words[0].rpartition("/")[2] in which:
                yield block.where, words


def test_every_command_is_known() -> None:
    assert {word(" ".join(words)) for _, words in shown("")} == set()
    for block in SHELL:
        for words in commands(block):
            assert words[0] in COMMANDS, f"{block.where}: {words[0]}"
            for each in words[1:]:
                if PLACES.match(each):
                    assert (ROOT / each).exists() or "tls" in each, f"{block.where}: {each}"


@pytest.mark.parametrize(("where", "words"), list(shown("tailrace")), ids=str)
def test_our_command_takes_these_options(where: str, words: list[str], folder: Path) -> None:
    """And runs, where that is harmless: on the configuration that the guide has shown last."""
    before = [each for each in CONFIGS if where.startswith(f"{each.document}:")]
    line = int(where.rpartition(":")[2])
    for each in before:
        if each.line < line:
            (folder / "tailrace.yaml").write_text(complete(each.text))
    command = main.commands[words[1]]
    command.make_context(words[1], list(words[2:]))
    if words[1] in HARMLESS:
        result = CliRunner().invoke(main, words[1:])
        assert result.exit_code == 0, f"{where}: {result.output}"


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    variables = set(re.findall(r"\$\(?\{?(?:if |origin |or )?\(?([A-Z]+)\b", makefile)) | {
        "SECONDS"
    }
    for where, words in shown("make"):
        for each in words[1:]:
            if "=" in each:
                assert each.partition("=")[0] in variables, where
            else:
                assert each in targets, where


async def test_every_url_of_the_admin_listener_exists() -> None:
    pages = Pages(Server(configure("http://127.0.0.1:9")))
    runner = pages.everything(lambda: Listening(unix=False, local=True))
    asked = 0
    for where, words in shown("curl"):
        method, url, data = _curl(words)
        parts = urlsplit(url)
        assert parts.hostname in ("127.0.0.1", "localhost"), where
        if data:
            json.loads(data)
        if str(parts.port) in ADMIN:
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            match = await runner.app.router.resolve(make_mocked_request(method, path))
            assert match.http_exception is None, f"{where}: {method} {path}"
            asked += 1
    assert asked > 4


def _curl(words: list[str]) -> tuple[str, str, str]:
    """(method, URL, data). Only options that curl has, with what takes a value known."""
    valued = {"-X": "method", "-d": "data", "-H": "", "--cacert": "", "--max-time": "",
              "--noproxy": ""}  # fmt: skip
    method, url, data = "", "", ""
    rest = iter(words[1:])
    for each in rest:
        if each in valued:
            value = next(rest)
            method = value if each == "-X" else method
            data = value if each == "-d" else data
        elif each.startswith("-"):
            assert each in ("-f", "-s", "-S", "-fsS", "-i", "-v", "-N"), each
        else:
            url = each
    return method or ("POST" if data else "GET"), url, data


def test_every_module_that_is_run_exists() -> None:
    for where, words in shown("python", "python3"):
        if words[1] == "-m" and words[2] != "venv":
            assert importlib.util.find_spec(words[2]) is not None, where
            source = import_module(words[2].removesuffix(".__main__")).__file__
            assert source is not None
            near = Path(source).parent if source.endswith("__init__.py") else Path(source)
            files = near.rglob("*.py") if near.is_dir() else [near]
            text = "".join(each.read_text() for each in files)
            for option in (each for each in words[3:] if each.startswith("--")):
                assert f'"{option.partition("=")[0]}"' in text, f"{where}: {option}"


@pytest.mark.parametrize(("where", "words"), list(shown("openssl")), ids=str)
def test_the_certificate_that_a_guide_makes_is_good(
    where: str, words: list[str], folder: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    for old in ("server.pem", "server.key"):
        (folder / "tls" / old).unlink()
    subprocess.run(words, check=True, capture_output=True, cwd=folder)
    for block in CONFIGS:
        if block.document == where.partition(":")[0]:
            (folder / "made.yaml").write_text(complete(block.text))
            load_with_warnings(folder / "made.yaml", env={})


# -- in the text -----------------------------------------------------------------------------------

SPAN = re.compile(r"`([^`\n]+)`")


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_commands_in_the_text_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for span in SPAN.findall(path.read_text()):
        words = span.replace("[", " ").replace("]", " ").split()
        if words[:1] == ["make"] and len(words) > 1:
            assert words[1] in targets, span
        if words[:1] == ["tailrace"] and len(words) > 1 and words[1].islower():
            command = main.commands.get(words[1])
            assert command is not None, span
            known = {name for each in command.params for name in each.opts}
            assert {each for each in words[2:] if each.startswith("--")} <= known, span


SHOWN = {"hedge.sizes"}
"""Of ``/filters``, and no fields."""


def fields() -> set[str]:
    """Every dotted name of a field, also without what stands before it."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    found = set()
    for place, table in re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.M | re.S):
        for field in re.findall(r"^\| `(\w+)` \|", table, re.M):
            parts = [*place.replace("[]", "").split("."), field]
            found |= {".".join(parts[at:]) for at in range(len(parts))}
    return found


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_fields_in_the_text_exist(path: Path) -> None:
    known = fields()
    sections = {each.split(".")[0] for each in known if "." in each}
    for span in SPAN.findall(path.read_text()):
        dotted = re.fullmatch(r"([a-z_]+)((?:\.[a-z_]+)+)(?::.*)?", span)
        if dotted and dotted[1] in sections and not span.endswith((".py", ".md", ".yaml")):
            assert dotted[1] + dotted[2] in known | SHOWN, span


# -- programs and samples --------------------------------------------------------------------------


@pytest.mark.parametrize("block", every("python"), ids=name)
def test_programs_compile(block: Block) -> None:
    compile(block.text, block.where, "exec")


@pytest.mark.parametrize("block", every("sample"), ids=name)
def test_log_lines_that_are_shown_have_the_fields_of_the_log(block: Block) -> None:
    written = Path(access_log).read_text()
    known = set(re.findall(r'"(\w+)"', written))
    lines = re.findall(r"^\{.*?\}$", block.text, re.MULTILINE | re.DOTALL)
    for line in lines:
        told = json.loads(line)
        assert set(told) <= known
        assert told.get("reason", Reason.SHED.value) in {each.value for each in Reason}
    assert len(lines) == len(re.findall(r"^\{", block.text, re.MULTILINE))


def test_a_click_option_that_is_not_there_is_seen() -> None:
    with pytest.raises(click.UsageError):
        main.commands["run"].make_context("run", ["--upstreams", "http://a"])
