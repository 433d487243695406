"""``docs/configuration.md``, written from the structs: every field with how it is written, its
bounds and its default. The reasons are the structs' docstrings; the words beside a field are the
comment that it has in ``configs/reference.yaml``, which is handed in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from gateway.config import Config, Secret
from gateway.config_nodes import Mapping, Node, Sequence
from gateway.config_problem import ConfigErrors, Problems
from gateway.config_source import as_written
from gateway.config_types import SHORT_FORM, Shape, described, shape
from gateway.config_units import NUMERIC, format_unit
from gateway.config_yaml import parse

WRITTEN = "<!-- Written by `python -m gateway.reference`. Do not edit. -->"
UNITS = {
    "cidr": "network, or one address",
    "endpoint": "URL without a path, or `unix:PATH`",
    "file": "path of a file",
    "function": "`MODULE:FUNCTION`",
    "hash_key": "`header:NAME`",
    "header": "name of a header",
    "header_value": "value of a header",
    "host": "host name",
    "input": "name of an input or output",
    "limit_key": "`client`, `route` or `header:NAME`",
    "method": "HTTP method",
    "url": "URL",
}
"""Where the unit's own name is no word for an operator."""
_SIGNS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_ABOVE = re.compile(r"^\s*# ?(.*)$")
_FIRST = re.compile(r"^[\s-]*$")
_EXAMPLE = re.compile(r"^(?:example\b[;.]?|name or off\.) *")
_ONLY_TYPE = re.compile(r"\w+(?: \| \w+)*|off by default")
_TELLS_TYPE = re.compile(
    r"(?:durations?|sizes?|shares?|counts?|numbers?|address|names?|text|path|rate|quantile|secret|"
    r"one or a list|header:NAME|PEM|required|off by default|\w+ \|)"
)


class Section(msgspec.Struct):
    """A struct and where it stands in the file."""

    place: str
    kind: inspect.StructType
    optional: bool


def configuration(reference: str) -> str:
    """The document. ``reference`` is the text of ``configs/reference.yaml``; ValueError if it is
    no YAML. Some 20 ms."""
    root = _read(reference)
    said = comments(reference)
    lines = [
        "# Configuration",
        "",
        WRITTEN,
        "",
        "Every field, from the code. As one file with the same comments, to copy from:",
        "[configs/reference.yaml](../configs/reference.yaml). What the filters do:",
        "[filters.md](filters.md); how limits are computed: [limits.md](limits.md).",
        "",
        "| written | |",
        "| --- | --- |",
        "| duration | `500ms` `10s` `5m` `1h`, also `1m30s`; 0 needs no unit |",
        "| size | `64KiB` `1MiB` (1024), `64KB` `1MB` (1000); a bare number is bytes |",
        "| share | `5%`, or a number from 0 to 1 |",
        "| rate | `100/s` `600/m` `1000/h` `1/d` |",
        "| quantile | `p95` `p99.9` |",
        "| secret | the text, `${NAME}`, or `file:PATH`; never printed |",
        "| off | turns a thing off, where it is a default or among what is taken |",
        "| list | a list of one may be written without brackets |",
        "| `${NAME}`, `${NAME:-default}` | read the environment, in every value; `$${` is `${` |",
        "",
        "Unknown and duplicate keys are errors; `tailrace check FILE` shows all of them at once.",
    ]
    for section in sections([key.text for key, _ in root.pairs]):
        lines += ["", *_section(section, said)]
    return "\n".join(lines) + "\n"


def sections(order: list[str]) -> Iterator[Section]:
    """Every struct once, at the first place where it stands; ``order``: of the top fields."""
    seen: set[type] = set()

    def walk(kind: Any, place: str, optional: bool) -> Iterator[Section]:
        for option in shape(kind).options:
            if isinstance(option, inspect.VarTupleType):
                yield from walk(option.item_type, f"{place}[]", False)
            elif isinstance(option, inspect.DictType):
                yield from walk(option.value_type, f"{place}.NAME", False)
            elif isinstance(option, inspect.StructType) and option.cls not in seen | {Secret}:
                seen.add(option.cls)
                yield Section(place, option, optional)
                fields = list(option.fields)
                if option.cls is Config:
                    fields.sort(key=lambda each: order.index(each.name))
                for each in fields:
                    inner = f"{place}.{each.name}" if place else each.name
                    yield from walk(each.type, inner, each.default is None)

    yield from walk(described(Config), "", False)


def _section(section: Section, said: dict[tuple[type, str], str]) -> Iterator[str]:
    yield f"## {section.place or 'The file'}"
    yield ""
    kind = section.kind
    doc = " ".join((kind.cls.__doc__ or "").split()).replace("``", "`")
    yield doc.replace("(None: off)", "(may be `off`)")
    yield ""
    if section.optional:
        whole = not any(each.required for each in kind.fields)
        hint = " A mapping turns it on, even `{}`." if whole else ""
        yield f"Off by default.{hint}"
        yield ""
    if kind.cls in SHORT_FORM:
        yield f"May be written as its `{SHORT_FORM[kind.cls]}` alone."
        yield ""
    yield "| field | written | default | |"
    yield "| --- | --- | --- | --- |"
    for each in kind.fields:
        words = said.get((kind.cls, each.name), "").replace("|", "\\|")
        inherited = each.name == "filters" and kind.cls is not Config
        default = "`filters` of the file" if inherited else _default(each)
        yield f"| `{each.name}` | {written(each)} | {default} | {words} |"


def written(field: inspect.Field) -> str:
    """What a field takes, with its bounds."""
    wanted = shape(field.type)
    names = [_option(each, wanted) for each in wanted.options]
    if wanted.optional:
        names.append("`off`")
    return " or ".join(dict.fromkeys(names))


def _option(kind: Any, wanted: Shape) -> str:
    if isinstance(kind, inspect.StructType):
        return "secret" if kind.cls is Secret else "mapping"
    if isinstance(kind, inspect.VarTupleType):
        return "list of: " + _all(kind.item_type)
    if isinstance(kind, inspect.DictType):
        return f"mapping of {_all(kind.key_type)} to: {_all(kind.value_type)}"
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, inspect.BoolType):
        return "`true`, `false`"
    if isinstance(kind, inspect.StrType):
        return UNITS.get(wanted.unit, wanted.unit or "text")
    name = wanted.unit or ("count" if isinstance(kind, inspect.IntType) else "number")
    return ", ".join([name, *_bounds(kind, wanted.unit)])


def _all(kind: Any) -> str:
    wanted = shape(kind)
    return " or ".join(dict.fromkeys(_option(each, wanted) for each in wanted.options))


def _bounds(kind: Any, unit: str) -> Iterator[str]:
    for attribute, words in _SIGNS.items():
        bound = getattr(kind, attribute)
        if bound is None or (unit in ("duration", "size") and attribute == "ge" and not bound):
            continue  # no duration and no size is negative
        if unit == "share" or (unit == "rate" and not bound):
            continue  # what a share and a rate are
        plain = int(bound) if bound == int(bound) else bound
        yield f"{words} {format_unit(bound, unit) if unit in NUMERIC else f'{plain:,}'}"


def _default(field: inspect.Field) -> str:
    if field.required:
        return "required"
    value = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value is None:
        return "`off`" if shape(field.type).optional else ""
    if isinstance(value, msgspec.Struct):
        return "as below"
    plain = as_written(value, field.type)
    if isinstance(plain, list):
        items = [next(iter(each.values())) if isinstance(each, dict) else each for each in plain]
        return f"`[{', '.join(_word(each) for each in items)}]`"
    return f"`{_word(plain)}`"


def _word(plain: object) -> str:
    if isinstance(plain, bool):
        return str(plain).lower()
    return "{}" if plain == {} else str(plain)


def comments(reference: str) -> dict[tuple[type, str], str]:
    """By struct and field, what the reference says of it, without the type that the code knows."""
    said: dict[tuple[type, str], str] = {}
    lines = reference.replace("#|", "").splitlines()
    _collect(_read(reference), described(Config), lines, said)
    return said


def _read(reference: str) -> Mapping:
    text = reference.replace("#|", "")
    problems = Problems("reference", text)
    root = parse(text, problems)
    if not isinstance(root, Mapping):
        raise ValueError(str(ConfigErrors(problems.errors)))
    return root


def _collect(node: Node, kind: Any, lines: list[str], said: dict[tuple[type, str], str]) -> None:
    """Walk a node and the type that it is read into side by side."""
    wanted = shape(kind)
    if isinstance(node, Sequence):
        items = wanted.one(inspect.VarTupleType)
        for each in node.items:
            _collect(each, items.item_type if items else kind, lines, said)
    elif isinstance(node, Mapping):
        struct, pairs = wanted.one(inspect.StructType), wanted.one(inspect.DictType)
        items = wanted.one(inspect.VarTupleType)
        if struct is None and pairs is None and items is not None:
            _collect(node, items.item_type, lines, said)
            return
        fields = {each.name: each.type for each in struct.fields} if struct else {}
        for key, child in node.pairs:
            inner = pairs.value_type if struct is None else fields[key.text]
            before = lines[key.mark.line - 1][: key.mark.column - 1]
            alone = _FIRST.match(before)  # else the comment is its section's
            found = _comment(lines, key.mark.line - 1)
            if struct is not None and alone and found is not None:
                said.setdefault((struct.cls, key.text), found)
            _collect(child, inner, lines, said)


def _comment(lines: list[str], at: int) -> str | None:
    """The words on a line, or else the lines of comment right above it; None without any."""
    name, mark, words = lines[at].partition(" # ")
    if not mark:
        above: list[str] = []
        while at and (match := _ABOVE.match(lines[at - 1])) and match[1]:
            at -= 1
            above.insert(0, match[1])
        return " ".join(above).removeprefix(name.strip(" -") + " ") if at and above else None
    words = _EXAMPLE.sub("", words.strip())
    first, semicolon, rest = words.partition("; ")
    if semicolon and _TELLS_TYPE.match(first):
        words = rest
    return "" if _ONLY_TYPE.fullmatch(words) else words
