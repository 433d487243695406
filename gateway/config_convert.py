"""The tree of a file to the structs, guided by their type hints; every error noted, none raised.

A part that is wrong is replaced by its default, or left out of its list, so that the rest is
still read and its errors come out in the same pass. ``positions`` remembers where each value
stands and ``dirty`` which parts had errors, for the checks that come after (``config_check.py``).
"""

import re
from collections.abc import Mapping as Environment
from pathlib import Path as FilePath
from typing import Any

import msgspec
from msgspec import inspect

from gateway.config import Config, Filters, Route, Secret
from gateway.config_nodes import Mapping, Mark, Node, Path, Scalar, Sequence
from gateway.config_problem import Problems
from gateway.config_scalar import expected, is_off, scalar_value, suggest
from gateway.config_text import PARSERS
from gateway.config_types import LATER, SHORT_FORM, Shape, described, sections, shape
from gateway.config_units import BadValueError, short

INVALID: Any = object()
_REFERENCE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-((?:[^}\\]|\\.)*))?\}|\$\{")
_SECRET_BYTES = 64 * 1024


class Converter:
    """One file's conversion. ``folder`` is where relative paths start."""

    def __init__(self, problems: Problems, folder: FilePath, env: Environment[str, str]) -> None:
        self.problems = problems
        self.positions: dict[Path, Mark] = {}
        self.dirty: list[Path] = []
        self._around: set[Path] | None = None
        self._exact: set[Path] = set()
        self._folder = folder
        self._env = env
        self._filters = Filters()

    def config(self, root: Node) -> Config:
        """The whole file. Parts with errors hold defaults, so it is only good for checks then."""
        config = self._struct(root, described(Config), (), None)
        return Config(clusters={}, routes=()) if config is INVALID else config

    def mark(self, path: Path) -> Mark:
        """Where ``path`` stands, or else the nearest thing around it that stands in the file."""
        while path and path not in self.positions:
            path = path[:-1]
        return self.positions.get(path, Mark(1, 1))

    def error(self, path: Path, mark: Mark, message: str, hint: str = "") -> Any:
        self.problems.error(mark, message, hint)
        self.dirty.append(path)
        if self._around is not None:
            self._around.update(path[:size] for size in range(len(path) + 1))
            self._exact.add(path)
        return INVALID

    def clean(self, path: Path) -> bool:
        """Whether nothing was wrong in this part of the file, nor with a part around it."""
        if self._around is None:
            self._around = {each[:size] for each in self.dirty for size in range(len(each) + 1)}
            self._exact = set(self.dirty)
        inside = path in self._around
        return not inside and not any(path[:size] in self._exact for size in range(len(path)))

    def _value(self, node: Node, kind: Any, path: Path, base: Any = None) -> Any:
        self.positions[path] = node.mark
        wanted = shape(kind)
        struct = wanted.one(inspect.StructType)
        if struct is not None and struct.cls is Secret:
            return self._secret(node, wanted, path)
        if isinstance(node, Scalar):
            expanded = self._expand(node, path)
            if expanded is None:
                return INVALID
            node = expanded
            if wanted.optional and is_off(node, wanted):
                return None
        if struct is not None:
            return self._struct(node, struct, path, base)
        if (items := wanted.one(inspect.VarTupleType)) is not None:
            return self._tuple(node, items, path)
        if (pairs := wanted.one(inspect.DictType)) is not None:
            return self._dict(node, pairs, path)
        return self._scalar(node, wanted, path)

    def _scalar(self, node: Node, wanted: Shape, path: Path) -> Any:
        if not isinstance(node, Scalar):
            got = "a list" if isinstance(node, Sequence) else "a mapping"
            return self.error(path, node.mark, f"expected {expected(wanted)}, got {got}")
        try:
            value = scalar_value(node, wanted)
        except BadValueError as bad:
            if node.untyped:
                # The value may be a secret that landed in the wrong variable: not shown.
                message = f"expected {expected(wanted)}, but the environment holds something else"
                return self.error(path, node.mark, message)
            return self.error(path, node.mark, str(bad), bad.hint)
        return str(self._folder / value) if wanted.unit == "file" else value

    def _struct(self, node: Node, kind: inspect.StructType, path: Path, base: Any) -> Any:
        if not isinstance(node, Mapping):
            important = SHORT_FORM.get(kind.cls)
            if important is None or (isinstance(node, Scalar) and node.tag == "null"):
                complete = not any(each.required for each in kind.fields)
                hint = "write {} for the defaults" if complete else ""
                return self.error(path, node.mark, f"expected a mapping, got {_kind(node)}", hint)
            node = Mapping(node.mark, [(Scalar(important, node.mark), node)])
        fields = {each.name: each for each in kind.fields}
        values: dict[str, Any] = {}
        # The filters of the file come first: a route's own are laid over them.
        for key, child in sorted(node.pairs, key=lambda pair: pair[0].text != "filters"):
            each = fields.get(key.text)
            if each is None:
                self._unknown(key, child, kind, path)
                continue
            inner = self._filters if each.name == "filters" else getattr(base, each.name, None)
            value = self._value(child, each.type, (*path, each.name), inner)
            if value is not INVALID:
                values[each.name] = value
            if kind.cls is Config and each.name == "filters" and value is not INVALID:
                self._filters = value
        if kind.cls is Route:
            values.setdefault("filters", self._filters)
        return self._build(node, kind, path, base, values)

    def _build(
        self, node: Mapping, kind: inspect.StructType, path: Path, base: Any, values: dict[str, Any]
    ) -> Any:
        for each in kind.fields:
            if not each.required or each.name in values or base is not None:
                continue
            if node.get(each.name) is None:
                near = next((key.text for key, _ in node.pairs if _near(key.text, each.name)), "")
                if not near:
                    self.error((*path, each.name), node.mark, f"missing key {each.name!r}")
            if kind.cls is not Config:
                return INVALID
            values[each.name] = {} if each.name == "clusters" else ()
        try:
            return msgspec.structs.replace(base, **values) if base else kind.cls(**values)
        except (TypeError, ValueError) as error:
            return self.error(path, node.mark, str(error))

    def _unknown(self, key: Scalar, value: Node, kind: inspect.StructType, path: Path) -> None:
        names = [each.name for each in kind.fields]
        hint = suggest(key.text, names)
        elsewhere = [place for place in sections().get(key.text, ()) if "." in place or path]
        if key.text in LATER:
            hint = "not available in this version"
        elif not hint and len(elsewhere) == 1:
            hint = f"did you mean {elsewhere[0]}?"
        elif not hint:
            hint = "known here: " + ", ".join(names)
        if isinstance(value, Scalar) and any(
            _near(key.text, secret) for secret in ("token", "authorization")
        ):
            self.problems.hide(value.text, value.mark)
        place = f" in {_spelled(path)}" if path else ""
        self.error((*path, key.text), key.mark, f"unknown key {short(key.text)}{place}", hint)

    def _tuple(self, node: Node, kind: inspect.VarTupleType, path: Path) -> Any:
        # A list of one may be written without its brackets.
        items = node.items if isinstance(node, Sequence) else [node]
        values: list[Any] = []
        for item in items:
            # Positions follow the values that are kept, so that checks can go by index.
            place = (*path, len(values))
            known = len(self.dirty)
            value = self._value(item, kind.item_type, place)
            if value is INVALID:
                del self.dirty[known:]
                self.dirty.append((*path, "*"))
            else:
                values.append(value)
        return tuple(values)

    def _dict(self, node: Node, kind: inspect.DictType, path: Path) -> Any:
        if not isinstance(node, Mapping):
            return self.error(path, node.mark, f"expected a mapping, got {_kind(node)}")
        parse = PARSERS.get(shape(kind.key_type).unit, str)
        values: dict[str, Any] = {}
        for key, child in node.pairs:
            try:
                name = str(parse(key.text))
            except BadValueError as bad:
                self.error((*path, key.text), key.mark, str(bad), bad.hint)
                continue
            if name in values:
                self.error((*path, name), key.mark, f"duplicate key {short(key.text)}")
                continue
            value = self._value(child, kind.value_type, (*path, name))
            self.positions[(*path, name)] = key.mark
            if value is not INVALID:
                values[name] = value
        return values

    def _secret(self, node: Node, wanted: Shape, path: Path) -> Any:
        if not isinstance(node, Scalar):
            return self.error(path, node.mark, f"expected text or file:PATH, got {_kind(node)}")
        written = node.text
        if not written.startswith("file:"):
            literal = _REFERENCE.sub("", written)
            if literal:
                self.problems.hide(literal, node.mark)
        expanded = self._expand(node, path)
        if expanded is None:
            return INVALID
        if wanted.optional and is_off(expanded, wanted):
            return None
        text = expanded.text
        if text.startswith("file:"):
            return self._secret_file(text.removeprefix("file:"), written, node, path)
        if expanded.tag != "str":
            message = f"expected text or file:PATH, but YAML 1.1 reads this as {expanded.tag}"
            return self.error(path, node.mark, message, "write it in quotes")
        whole = _REFERENCE.fullmatch(written)
        source = f"${{{whole[1]}}}" if whole and whole[1] else "***"
        return self._checked_secret(text, source, node, path)

    def _secret_file(self, name: str, written: str, node: Scalar, path: Path) -> Any:
        source = written if written.startswith("file:") else "***"
        file = self._folder / name
        try:
            if not file.is_file():
                what = "is not a file" if file.exists() else "there is no such file"
                return self.error(path, node.mark, f"cannot read the secret {name!r}: {what}")
            with file.open("rb") as opened:
                data = opened.read(_SECRET_BYTES + 1)
            text = data.decode()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            return self.error(path, node.mark, f"cannot read the secret {name!r}: {reason}")
        if len(data) > _SECRET_BYTES:
            return self.error(path, node.mark, f"the secret {name!r} is larger than 64KiB")
        return self._checked_secret(text.rstrip("\r\n"), source, node, path)

    def _checked_secret(self, value: str, source: str, node: Scalar, path: Path) -> Any:
        if not value.strip():
            return self.error(path, node.mark, "the secret is empty")
        if not value.isascii() or not value.isprintable() or value != value.strip():
            message = "the secret cannot stand in a header: visible ASCII only, no line breaks"
            return self.error(path, node.mark, message)
        return Secret(value, source)

    def _expand(self, node: Scalar, path: Path) -> Scalar | None:
        """``${NAME}`` and ``${NAME:-default}`` from the environment; ``$${`` is a plain ``${``."""
        if "${" not in node.text:
            return node
        failed = False

        def value(found: re.Match[str]) -> str:
            nonlocal failed
            if found[0] == "$${":
                return "${"
            name, default = found[1], found[2]
            given = self._env.get(name) if name else None
            # As in a shell, ":-" also stands in for a variable that is set to nothing.
            if given or (given is not None and default is None):
                return given
            if default is not None:
                return re.sub(r"\\(.)", r"\1", default)
            failed = True
            text = self.problems.line(node.mark.line)
            column = text.find(found[0], node.mark.column - 1) + 1 or node.mark.column
            mark = Mark(node.mark.line, column, node.mark.file)
            if name:
                hint = f"set it, or write ${{{name}:-default}}"
                self.error(path, mark, f"the environment has no variable {name}", hint)
            else:
                self.error(path, mark, "not a reference: '${'", "${NAME}, or $${ for the text ${")
            return ""

        text = _REFERENCE.sub(value, node.text)
        if failed:
            return None
        referred = any(found[0] != "$${" for found in _REFERENCE.finditer(node.text))
        return Scalar(text, node.mark, node.tag, node.plain, untyped=referred)


def _kind(node: Node) -> str:
    if isinstance(node, Scalar):
        return "nothing" if node.tag == "null" else "something else" if node.untyped else "a value"
    return "a list" if isinstance(node, Sequence) else "a mapping"


def _near(word: str, name: str) -> bool:
    return word != name and bool(suggest(word, [name]))


def _spelled(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
