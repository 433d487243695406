"""The blocks of the documents (configurations, commands, programs, samples), and what each is.

A block is what stands between two fences, or is indented by four columns. Each has to be of a kind
that is checked; what cannot be says so itself, with its reason, in the line above it:

    <!-- not run: needs a GPU -->
    <!-- manifest: no schema for it here -->
    <!-- sample: a figure of one machine -->

Configurations that are not whole are completed by one rule, ``complete``: a file without
``clusters`` or ``routes`` gets those that its other half names. One of which ``tailrace check`` is
to warn says so in a comment, ``# check warns: ...``.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

from gateway.config import Config, Route
from tests.tidy import ROOT

Kind: TypeAlias = Literal["config", "manifest", "shell", "python", "sample", "formula", "unknown"]

WHOLE = set(Config.__struct_fields__)
PARTS = set(Route.__struct_fields__) - WHOLE
COMMANDS = {
    "tailrace", "make", "curl", "docker", "kubectl", "helm", "python", "python3", "pip", "openssl",
    "mkdir", ".ci/run", "git", "vllm", "tailrace-env/bin/pip", ".venv/bin/python",
    ".venv/bin/tailrace",
}  # fmt: skip
SAMPLES = re.compile(
    r"\{\"|WARNING |INFO |tailrace_\w+\{|x-[\w-]+: |retry-after: |/(?:filters|clusters): "
)
MARKER = re.compile(r"<!-- (not run|manifest|sample): (\S.+) -->")
KNOWN = {
    ("docs/kubernetes.md", "pod deleted"): "a picture of what follows what",
}
"""Blocks without a kind in documents that carry no markers, by their first words, and why."""
_FENCE = re.compile(r"^```([\w-]*) ?(.*)$")
_ASSIGNMENT = re.compile(r"^[A-Z_]+=\S*$")


@dataclass(frozen=True)
class Block:
    """``document``: relative to the repository; ``line``: of its first line. ``mark`` and
    ``reason`` are its marker's; ``name``: what stands behind the language of a fence."""

    document: str
    line: int
    language: str
    name: str
    text: str
    mark: str = ""
    reason: str = ""

    @property
    def where(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def kind(self) -> Kind:
        if self.mark in ("manifest", "sample"):
            return "manifest" if self.mark == "manifest" else "sample"
        if self.language == "python":
            return "python"
        tree = _tree(self.text) if self.language in ("", "yaml") else None
        if tree and set(tree) <= WHOLE | PARTS and set(tree) != {"spec"}:
            return "config"
        if self.language == "yaml":
            return "manifest"
        if self.language in ("sh", "bash", "shell", "console") or self._commands():
            return "shell"
        starts = [each for each in self.text.splitlines() if each[:1] != " "]
        if starts and all(SAMPLES.match(each) for each in starts):
            return "sample"
        return "formula" if self.document == "docs/limits.md" else "unknown"

    def _commands(self) -> bool:
        lines = [each for each in self.text.splitlines() if each.strip()]
        return bool(lines) and all(word(each) in COMMANDS for each in joined(lines))


def word(line: str) -> str:
    """The command of a line, its assignments left out."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return ""
    words = [each for each in words if not _ASSIGNMENT.match(each)]
    return words[0] if words else ""


def joined(lines: list[str]) -> list[str]:
    """Lines with what continues them; comments alone on a line are none."""
    text = "\n".join(lines).replace("\\\n", " ")
    return [each for each in text.splitlines() if each.strip() and each.lstrip()[0] != "#"]


def commands(block: Block) -> list[list[str]]:
    """Each command of a shell block, in words, without assignments before it; ``a && b`` is two."""
    found = []
    for line in joined(block.text.splitlines()):
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            while words and _ASSIGNMENT.match(words[0]):
                words.pop(0)
            found.append(words)
    return found


def _tree(text: str) -> dict[str, Any] | None:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return tree if isinstance(tree, dict) and all(isinstance(each, str) for each in tree) else None


def complete(text: str) -> str:
    """A whole configuration of a part of one: its keys are those of a file, or of one route.

    Missing routes lead to the first cluster; missing clusters are those that the routes name.
    """
    tree, text = _tree(text), text.rstrip() + "\n"
    assert tree is not None
    if not set(tree) <= WHOLE:
        indented = "".join(f"    {line}\n" for line in text.splitlines())
        text = f"routes:\n  -\n{indented}    cluster: completed\n"
        tree = {"routes": [{**tree, "cluster": "completed"}]}
    if "clusters" not in tree:
        named = [each.get("cluster") for each in tree.get("routes", [])]
        names = dict.fromkeys(filter(None, named)) or {"completed": None}
        text += "clusters:\n" + "".join(
            f"  {name}: {{endpoints: [http://127.0.0.1:8000, http://127.0.0.1:8001]}}\n"
            for name in names
        )
        tree["clusters"] = names
    if "routes" not in tree:
        text += f"routes: [{{cluster: {next(iter(tree['clusters']))}}}]\n"
    return text


def blocks(path: Path) -> list[Block]:
    """Every block of a document, in order."""
    document = path.relative_to(ROOT).as_posix()
    lines = path.read_text().splitlines()
    found: list[Block] = []
    at = 0
    said = ""  # the last line that is not blank
    while at < len(lines):
        line = lines[at]
        begun = at
        fence = _FENCE.match(line)
        if fence:
            at = lines.index("```", at + 1)
            text, language, name = "\n".join(lines[begun + 1 : at]), fence[1], fence[2]
        elif line.startswith("    ") and (begun == 0 or not lines[begun - 1].strip()):
            while at + 1 < len(lines) and (lines[at + 1][:4].isspace() or not lines[at + 1]):
                at += 1
            text = "\n".join(each[4:] for each in lines[begun : at + 1]).rstrip()
            language = name = ""
        else:
            said = line if line.strip() else said
            at += 1
            continue
        marker = MARKER.fullmatch(said.strip())
        mark, reason = (marker[1], marker[2]) if marker else ("", "")
        found.append(Block(document, begun + 1, language, name, text, mark, reason))
        said = ""
        at += 1
    return found


def documents() -> list[Path]:
    """README, and whatever is below ``docs``."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def every(kind: Kind) -> list[Block]:
    return [each for path in documents() for each in blocks(path) if each.kind == kind]
