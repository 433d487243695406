"""What is wrong with a configuration file, and where: collected, never raised one by one.

An operator who fixes one error only to be shown the next loses a restart each time, so every
stage of loading adds to one ``Problems`` and goes on; ``ConfigErrors`` carries them all. Source
lines are shown, so they are masked here: no secret reaches a terminal or a log through an error.
"""

import re
import unicodedata
from typing import Literal

import msgspec

from gateway.config_nodes import Mark

# The line breaks of YAML 1.1, which are not those of str.splitlines.
_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
# What looks like a secret is masked even where the file is too broken to know for sure.
_SECRET = re.compile(
    r"""(?i)((?:token|authorization|api[-_]?key|secret|password)["']?\s*:\s+)"""
    r"""(?!["']?(?:file:|\$\{))("[^"]*"?|'[^']*'?|[^,}\]#]+)"""
)
_TELLING = 8
_SHOWN = 160
# Bounds on what a file of nothing but errors can make us print.
_MOST = 500
_LONGEST = 20_000


class Problem(msgspec.Struct, frozen=True):
    """One error or warning. ``line`` and ``column`` count from 1; 0 when there is no text."""

    file: str
    line: int
    column: int
    message: str
    hint: str = ""
    source_line: str = ""
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        """``file:line:col: error: what (hint)``, the source line and a caret."""
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        hint = f" ({self.hint})" if self.hint else ""
        first = f"{place}: {self.severity}: {self.message}{hint}"
        if not self.source_line:
            return first
        # A window of a long line, so that the caret stays in sight.
        start = max(0, self.column - 1 - _SHOWN // 2) if len(self.source_line) > _SHOWN else 0
        shown = self.source_line[start : start + _SHOWN]
        caret = "".join(_blank(char) for char in shown[: self.column - 1 - start]) + "^"
        return f"{first}\n    {shown}\n    {caret}"


class ConfigErrors(Exception):
    """Everything that is wrong with one file, in the order of the file."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class Problems:
    """The collector: knows the file's text, so that each problem carries its line."""

    def __init__(self, file: str, text: str = "") -> None:
        self.file = file
        self.lines = _LINE_BREAK.split(text) if text else []
        self._secrets: list[str] = []
        self._short: dict[int, list[tuple[int, str]]] = {}
        self._found: dict[tuple[int, int, str], Problem] = {}
        self._left_out = 0

    def error(self, mark: Mark, message: str, hint: str = "") -> None:
        self._add(mark, message, hint, "error")

    def warning(self, mark: Mark, message: str, hint: str = "") -> None:
        self._add(mark, message, hint, "warning")

    def hide(self, secret: str, mark: Mark) -> None:
        """Never show this text as part of a source line.

        One of some length is hidden wherever it stands; a short one only where it was written,
        because masking ``a`` everywhere would hide the file and tell where else an ``a`` stands.
        """
        pieces = [piece for piece in _LINE_BREAK.split(secret) if piece.strip()]
        self._secrets += [piece for piece in pieces if len(piece) >= _TELLING]
        short = [piece for piece in pieces if len(piece) < _TELLING]
        self._short.setdefault(mark.line, []).extend((mark.column - 1, piece) for piece in short)

    def line(self, number: int) -> str:
        return self.lines[number - 1] if 0 < number <= len(self.lines) else ""

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self._sorted() if problem.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self._sorted() if problem.severity == "warning"]

    def _add(
        self, mark: Mark, message: str, hint: str, severity: Literal["error", "warning"]
    ) -> None:
        # Two uses of one anchor find the same error twice; it stands in the file once.
        key = (mark.line, mark.column, message)
        file = mark.file or self.file
        if key in self._found:
            return
        if len(self._found) < _MOST:
            problem = Problem(file, mark.line, mark.column, message, hint, "", severity)
            self._found[key] = problem
        elif severity == "error":
            self._left_out += 1

    def _sorted(self) -> list[Problem]:
        shown = {number: self._shown(number) for number, _, _ in self._found}
        found = [
            msgspec.structs.replace(problem, source_line=shown[problem.line])
            for _, problem in sorted(self._found.items(), key=lambda item: item[0])
        ]
        if self._left_out:
            found.append(Problem(self.file, 0, 0, f"{self._left_out} more errors, not shown"))
        return found

    def _shown(self, number: int) -> str:
        line = self.line(number)
        if len(line) > _LONGEST:
            return ""
        line = _SECRET.sub(lambda found: found[1] + "*" * len(found[2]), line)
        for start, secret in self._short.get(number, ()):
            line = line[:start] + line[start:].replace(secret, "*" * len(secret), 1)
        for secret in self._secrets:
            line = line.replace(secret, "*" * len(secret))
        # A file can be hostile to the terminal that shows it.
        return "".join(char if char.isprintable() or char == "\t" else "\ufffd" for char in line)


def _blank(char: str) -> str:
    if char == "\t":
        return char
    return "  " if unicodedata.east_asian_width(char) in "WF" else " "
