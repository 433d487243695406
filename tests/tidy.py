"""The style guide as functions: one Python file in, sentences on what is wrong with it out.

What spans several files (every field documented, every reason answered) stands in
``test_tidy.py``, which also tests these rules on small bad examples. A banned call is named
together with what to use in its place. After TigerBeetle's ``tidy.zig``.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("filters", "gateway", "gpu_batcher")
TREES = (*PACKAGES, "tests", "loadtests")
FILE_LINES = 400
FUNCTION_LINES = 60

LAYERS = {
    "filters/": {"filters", "msgspec"},
    "gpu_batcher/": {"gpu_batcher", "msgspec", "numpy", "cupy"},
    "gateway/": {"gateway", "filters", "gpu_batcher", "msgspec", "aiohttp", "aioprometheus",
                 "click", "opentelemetry", "rich", "uvloop", "yaml", "yarl"},
}  # fmt: skip
"""Who may import what besides the standard library. Imports only go down."""

ONLY_IN = {
    "aiohttp": r"gateway/(admin|admin_http|admin_dashboard|batch_control|health|discovery"
    r"|demo_load)\.py",
    "aioprometheus": r"gateway/exposition\.py",
    "click": r"gateway/(cli|sim/__main__)\.py",
    "cupy": r"gpu_batcher/(device|kernels)\.py",
    "numpy": r"gpu_batcher/.*",
    "opentelemetry": r"gateway/tracing\.py",
    "rich": r"gateway/(demo(_\w+)?|top(_\w+)?)\.py",
    "uvloop": r"gateway/(server|demo)\.py",
    "yarl": r"gateway/health\.py",
    "yaml": r"gateway/config_\w+\.py",
}
"""Libraries that have one place, so that a run which does not need them never loads them."""

PURE = re.compile(
    r"filters/.*\.py|gateway/(wire|chunked|headers|head_buffer|router|balancer|replies|metrics"
    r"|trace_context)\.py"
    r"|gpu_batcher/(api|plan|agenda|lanes|pacing|contain|quarantine|packing|layout|grid|codecs/\w+)"
    r"\.py"
)
AWAITLESS = re.compile(
    r"gateway/(wire|chunked|headers|head_buffer|router|balancer|metrics|trace_context)\.py"
    r"|gpu_batcher/(plan|agenda|lanes|pacing|contain|quarantine|packing|layout|grid|codecs/\w+)\.py"
)
BANNED_IMPORTS = {
    "time": "take `now` (monotonic seconds) as an argument",
    "datetime": "take `now` (monotonic seconds) as an argument",
    "random": "take `rng: random.Random` as an argument",
    "secrets": "take `rng: random.Random` as an argument",
    "uuid": "take `rng: random.Random` as an argument",
    "os": "let the caller look, and pass what it found",
    "socket": "let an edge do it",
    "threading": "the chains run on one loop; there is nothing to lock",
    "logging": "return a decision; the filter or the edge says it",
}
MAY = {"gateway/replies.py": {"logging"}, "filters/*": {"asyncio"}}
ASYNCIO = {
    "AbstractEventLoop",
    "CancelledError",
    "Future",
    "Task",
    "current_task",
    "get_running_loop",
    "sleep",
}
"""What a filter's glue may name of asyncio; ``sleep`` only as the default of an argument."""
BANNED_CALLS = {
    "sleep": "take `sleep` as an argument with asyncio's as its default, or return a delay",
    "time": "take `now` as an argument",
    "monotonic": "take `now` as an argument",
    "perf_counter": "take `now` as an argument",
    "urandom": "take `rng: random.Random` as an argument",
    "call_later": "use `Clock.call_at`",
    "create_task": "return what is to be done; an edge does it",
}
PRINTS = re.compile(r"gateway/(cli|server|top|demo(_\w+)?|sim/__main__)\.py|(tests|loadtests)/.*")
WORDS = re.compile(r"\b(?:TOD[O]|FIXM[E]|XX[X])\b")
OURS = re.compile(r"(?:filters|gateway|gpu_batcher)(?:\.\w+)+")
MACHINE = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/\w")


@dataclass(frozen=True)
class Module:
    """One Python file; ``path`` is relative to the repository, with slashes."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def imports(self) -> list[tuple[int, str, str]]:
        """(line, module, name imported from it or ""), inside functions too."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                found += [(node.lineno, module, alias.name) for alias in node.names]
            elif isinstance(node, ast.Call) and _name(node.func) == "import_module" and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    found.append((node.lineno, str(first.value), ""))
            elif isinstance(node, ast.Constant) and OURS.fullmatch(str(node.value)):
                # A module handed on by name, as in to_thread(import_module, "a.b").
                found.append((node.lineno, str(node.value), ""))
        return found


Rule = Callable[[Module], Iterator[str]]


def layers(module: Module) -> Iterator[str]:
    """Imports only go down, and a library with one place is imported there."""
    allowed = next((names for top, names in LAYERS.items() if module.path.startswith(top)), None)
    if allowed is None:
        return
    for line, name, _ in module.imports:
        top = name.partition(".")[0]
        if top == "":
            yield f"{module.path}:{line}: relative import: write the whole name"
        elif top not in allowed.union(sys.stdlib_module_names):
            yield f"{module.path}:{line}: imports {top}, which is not below it"
        elif top in ONLY_IN and not re.fullmatch(ONLY_IN[top], module.path):
            yield f"{module.path}:{line}: imports {top}, whose place is {ONLY_IN[top]}"


def purity(module: Module) -> Iterator[str]:
    """No clock, chance, sleep or await where decisions are made."""
    if not PURE.fullmatch(module.path):
        return
    for line, name, what in module.imports:
        top = name.partition(".")[0]
        if top == "random" and what == "Random":
            continue  # The type of an argument.
        if top in BANNED_IMPORTS and top not in MAY.get(module.path, ()):
            yield f"{module.path}:{line}: {top} in a policy: {BANNED_IMPORTS[top]}"
        if top == "asyncio" and (not module.path.startswith("filters/") or what not in ASYNCIO):
            yield f"{module.path}:{line}: asyncio {what} in a policy: let an edge do it"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and (name := _name(node.func)) in BANNED_CALLS:
            if isinstance(node.func, ast.Attribute) and _is_own(node.func):
                continue  # self._sleep and the like were passed in.
            yield f"{module.path}:{node.lineno}: {name}() in a policy: {BANNED_CALLS[name]}"
        elif isinstance(node, ast.AsyncFunctionDef) and AWAITLESS.fullmatch(module.path):
            yield f"{module.path}:{node.lineno}: async in a pure module: return a decision"
        elif isinstance(node, ast.ClassDef) and node.name == "Policy":
            for each in ast.walk(node):
                if isinstance(each, ast.AsyncFunctionDef):
                    yield f"{module.path}:{each.lineno}: async in a policy: return a decision"


def lengths(module: Module) -> Iterator[str]:
    """What does not fit on a screen or two wants to be two."""
    lines = len(module.text.splitlines())
    if lines > FILE_LINES:
        yield f"{module.path}: {lines} lines, at most {FILE_LINES}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > FUNCTION_LINES:
                where = f"{module.path}:{node.lineno}"
                yield f"{where}: {node.name} has {length} lines, at most {FUNCTION_LINES}"


def words(module: Module) -> Iterator[str]:
    """Nothing left over: promises, tabs, trailing blanks, paths of somebody's machine."""
    for number, line in enumerate(module.text.splitlines(), 1):
        where = f"{module.path}:{number}"
        if WORDS.search(line):
            yield f"{where}: a promise: do it, or open an issue"
        if "\t" in line or line != line.rstrip():
            yield f"{where}: a tab or trailing blanks"
        if MACHINE.search(line):
            yield f"{where}: a path of one machine"


def comments(module: Module) -> Iterator[str]:
    """A silenced check says which, and no more."""
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type != tokenize.COMMENT:
            continue
        where = f"{module.path}:{token.start[0]}"
        if re.search(r"type: ignore(?!\[)", token.string):
            yield f"{where}: type: ignore without a code: write type: ignore[code]"
        if re.search(r"\bnoqa\b(?!: ?[A-Z])", token.string):
            yield f"{where}: noqa without a code: write noqa: CODE"


def docstring(module: Module) -> Iterator[str]:
    """Every module says what it does."""
    if module.text.strip() and ast.get_docstring(module.tree) is None:
        yield f"{module.path}: no docstring: say what it does and why this way"


def prints(module: Module) -> Iterator[str]:
    """Standard output belongs to the command."""
    if PRINTS.fullmatch(module.path):
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and node.id == "print":
            yield f"{module.path}:{node.lineno}: print: log it, or return it to the command"


RULES: tuple[Rule, ...] = (layers, purity, lengths, words, comments, docstring, prints)


def modules(*trees: str) -> list[Module]:
    """Every Python file below the given top folders."""
    return [
        Module(path.relative_to(ROOT).as_posix(), path.read_text())
        for tree in trees
        for path in sorted((ROOT / tree).rglob("*.py"))
    ]


def _name(function: ast.expr) -> str:
    """The last part of what is called: ``sleep`` for ``asyncio.sleep``."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _is_own(function: ast.Attribute) -> bool:
    return isinstance(function.value, ast.Name) and function.value.id == "self"
