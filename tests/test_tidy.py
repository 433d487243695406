"""The style guide as a test, and a test of that test."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
import yaml

from filters.api import Reason
from gateway.config import Config
from gateway.replies import TABLE
from tests import tidy
from tests.tidy import PACKAGES, ROOT, RULES, TREES, Module

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
IMPORT_NAMES = {
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "PyYAML": "yaml",
}
ENTRIES = ("gateway.__main__", "gateway.cli", "gateway.reference", "gateway.sim.__main__")
"""What nobody imports, because it is where a run begins."""
LATE = ("aiohttp", "aioprometheus", "cupy", "numpy", "opentelemetry", "rich", "yaml", "httptools")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_is_tidy(rule: tidy.Rule) -> None:
    assert [problem for module in tidy.modules(*TREES) for problem in rule(module)] == []


# Per rule: a path, what stands there, and a piece of what is said about it.
BAD = [
    (tidy.layers, "filters/a.py", "from gateway.pool import Pool", "not below it"),
    (tidy.layers, "filters/a.py", "def f():\n    import aiohttp", "not below it"),
    (tidy.layers, "gpu_batcher/a.py", "import gateway", "not below it"),
    (tidy.layers, "gpu_batcher/plan.py", "import cupy", "whose place is"),
    (tidy.layers, "gateway/a.py", "from tests.harness import gateway", "not below it"),
    (tidy.layers, "gateway/a.py", "import loadtests.report", "not below it"),
    (tidy.layers, "gateway/pool.py", "import opentelemetry.trace", "whose place is"),
    (tidy.layers, "gateway/pool.py", "import_module('aiohttp')", "whose place is"),
    (tidy.layers, "gateway/a.py", "from . import pool", "relative"),
    (tidy.purity, "filters/a.py", "import time", "take `now`"),
    (tidy.purity, "filters/a.py", "from time import monotonic", "take `now`"),
    (tidy.purity, "filters/a.py", "from random import random", "take `rng"),
    (tidy.purity, "filters/a.py", "from asyncio import create_task", "let an edge"),
    (tidy.purity, "filters/a.py", "async def f():\n    await sleep(1)", "return a delay"),
    (tidy.purity, "filters/a.py", "def f(loop):\n    return loop.time()", "take `now`"),
    (tidy.purity, "filters/a.py", "class Policy:\n    async def f(self): ...", "return a decision"),
    (tidy.purity, "gateway/wire.py", "async def f(): ...", "return a decision"),
    (tidy.purity, "gateway/router.py", "import asyncio", "let an edge"),
    (tidy.lengths, "gateway/a.py", "x = 1\n" * 401, "401 lines"),
    (tidy.lengths, "tests/a.py", "def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
    (tidy.lengths, "tests/a.py", "async def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
    (tidy.words, "gateway/a.py", "# FIX" + "ME later", "a promise"),
    (tidy.words, "gateway/a.py", "x = 1 ", "trailing"),
    (tidy.words, "gateway/a.py", "if x:\n\ty = 1", "a tab"),
    (tidy.words, "tests/a.py", "x = '/ho" + "me/someone/x'", "one machine"),
    (tidy.comments, "gateway/a.py", "x = 1  # type: " + "ignore", "without a code"),
    (tidy.comments, "gateway/a.py", "x = 1  # no" + "qa", "without a code"),
    (tidy.docstring, "gateway/a.py", "x = 1", "no docstring"),
    (tidy.prints, "gateway/pool.py", "print('here')", "log it"),
]


@pytest.mark.parametrize(("rule", "path", "text", "said"), BAD)
def test_a_rule_sees_what_is_wrong(rule: tidy.Rule, path: str, text: str, said: str) -> None:
    (problem,) = rule(Module(path, text))
    assert path in problem
    assert said in problem


GOOD = [
    ("filters/a.py", '"""A."""\nfrom random import Random\nfrom asyncio import CancelledError'),
    ("filters/a.py", '"""A."""\nasync def f(self):\n    await self._sleep(1)'),
    ("filters/a.py", '"""A."""\nasync def f(self):\n    await self.sleep(1)'),
    ("gateway/tracing.py", '"""A."""\nfrom opentelemetry.sdk import trace\nimport time'),
    ("gpu_batcher/device.py", '"""A."""\nimport cupy, numpy'),
    ("gateway/cli.py", '"""A."""\nprint(1)  # type: ignore[misc]\nx = 1  # noqa: F401'),
    ("gateway/pool.py", '"""A."""\n' + "x = 1\n" * 399),
    ("gateway/pool.py", '"""A."""\ndef f():\n' + "    x = 1\n" * 59),
    ("tests/wire/__init__.py", ""),
]


@pytest.mark.parametrize(("path", "text"), GOOD)
def test_no_rule_minds_what_is_right(path: str, text: str) -> None:
    assert [problem for rule in RULES for problem in rule(Module(path, text))] == []


def test_every_package_is_typed() -> None:
    assert [name for name in PACKAGES if not (ROOT / name / "py.typed").is_file()] == []


def test_every_module_is_used() -> None:
    """Dead files: whatever neither starts a run nor is imported by what ships."""
    shipped = tidy.modules(*PACKAGES)
    used = {f"{name}.{what}" for module in shipped for _, name, what in module.imports if what}
    used |= {name for module in shipped for _, name, _ in module.imports}
    names = {module.path.removesuffix(".py").replace("/", ".") for module in shipped}
    assert sorted(n for n in names - used if not n.endswith(".__init__") and n not in ENTRIES) == []


def test_every_dependency_is_imported() -> None:
    imported = {f"{name}.{what}" for m in tidy.modules(*PACKAGES) for _, name, what in m.imports}
    for requirement in PROJECT["project"]["dependencies"]:
        name = re.split(r"[<>=\[]", requirement)[0]
        name = IMPORT_NAMES.get(name, name)
        assert any(f"{each}.".startswith(f"{name}.") for each in imported), requirement


def test_a_start_loads_no_library_that_it_does_not_need() -> None:
    """In a process of its own: here, everything is loaded long since."""
    program = "import sys, gateway.cli, gateway.server; print(*sys.modules)"
    run = subprocess.run(
        (sys.executable, "-c", program), cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(run.stdout.split()).intersection(LATE) == set()


def test_every_reason_has_a_reply_and_a_line_in_the_table() -> None:
    assert [reason for reason in Reason if reason not in TABLE] == []
    table = (ROOT / "docs" / "reasons.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", table, re.MULTILINE)
    assert rows == [(reason.value, str(TABLE[reason].status)) for reason in Reason]


def test_the_changelog_has_a_place_for_what_is_next() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    version = PROJECT["project"]["version"]
    assert "## [Unreleased]" in changelog
    assert len(re.findall(rf"^## \[{re.escape(version)}\]", changelog, re.MULTILINE)) <= 1


def test_no_document_names_a_path_of_one_machine() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    documents += [*ROOT.glob("configs/*"), *ROOT.glob("loadtests/**/*.*")]
    documents += [ROOT / name for name in ("Makefile", "Dockerfile", ".ci/run", "pyproject.toml")]
    texts = [path for path in documents if path.suffix not in (".pyc", ".py") and path.is_file()]
    assert [str(path) for path in texts if tidy.MACHINE.search(path.read_text())] == []


# -- every field of the configuration is documented --------------------------------------------


def structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """The configuration structs that a type names, and those below them."""
    for each in get_args(kind):
        yield from structs(each)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for hint in get_type_hints(kind, include_extras=True).values():
            yield from structs(hint)


def undocumented(text: str, root: type[msgspec.Struct]) -> list[str]:
    """Fields (``Struct.field``) that do not occur with a comment in a reference file.

    ``#|`` marks fields that need files, and is taken away first. A field counts as documented
    where a comment stands on its line or on the one above; one that is a section of its own
    needs none, because its fields have theirs.
    """
    lines = text.replace("#|", "").splitlines()
    seen: dict[str, set[str]] = {}
    _collect(yaml.compose("\n".join(lines)), root, lines, seen)
    kinds = {kind.__name__: kind for kind in structs(root)}
    return sorted(
        f"{name}.{field}"
        for name, kind in kinds.items()
        for field in kind.__struct_fields__
        if name != "Secret" and field not in seen.get(name, set())
    )


def _collect(node: Any, kind: Any, lines: list[str], seen: dict[str, set[str]]) -> None:
    """Walk a YAML node and the type that it will be read into side by side."""
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _collect(each, kind, lines, seen)
        return
    if not isinstance(node, yaml.MappingNode):
        return
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        # A container or an option: whatever struct is in it. A dict's keys are free.
        inner = next(structs(kind), None)
        if _is_dict(kind):
            for _, value in node.value:
                _collect(value, inner, lines, seen)
        elif inner is not None:
            _collect(node, inner, lines, seen)
        return
    hints = get_type_hints(kind, include_extras=True)
    for key, value in node.value:
        line = key.start_mark.line
        above = lines[line - 1].lstrip() if line else ""
        section = isinstance(value, yaml.MappingNode | yaml.SequenceNode)
        if (
            "#" in lines[line]
            or above.startswith("#")
            or (section and next(structs(hints[key.value]), None))
        ):
            seen.setdefault(kind.__name__, set()).add(key.value)
        _collect(value, hints[key.value], lines, seen)


def _is_dict(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is dict


def test_every_field_is_documented_in_the_reference() -> None:
    assert undocumented((ROOT / "configs" / "reference.yaml").read_text(), Config) == []


class _Inside(msgspec.Struct):
    documented: int
    bare: int
    absent: int


class _Sample(msgspec.Struct):
    named: dict[str, _Inside]
    listed: tuple[_Inside, ...] = ()


def test_the_check_of_the_reference_sees_what_is_missing() -> None:
    text = "named:\n  x:\n    documented: 1  # why\n\n    bare: 1\n"
    assert undocumented(text, _Sample) == ["_Inside.absent", "_Inside.bare", "_Sample.listed"]
    text += "    #|absent: 1   # needs a file\nlisted:\n  # why\n  - bare: 1  # and this\n"
    assert undocumented(text, _Sample) == []
