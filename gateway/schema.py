"""The JSON Schema of the configuration file, for editors and for CI.

Made from the same type hints that loading follows, so it cannot fall behind them. It describes
what a person writes (``10s``, ``off``, a list of one without brackets), not the numbers that
come out. Draft 7, because that is what the YAML language server speaks. It sees less than
``tailrace check``: no references between parts, no files.
"""

from typing import Any

import msgspec
from msgspec import inspect

from gateway.config import Config, Secret
from gateway.config_source import as_written
from gateway.config_types import SHORT_FORM, Shape, described, shape

_REFERENCE = {"type": "string", "pattern": r"\$\{", "description": "read from the environment"}
_NUMBER = r"\d+(\.\d+)?"
_WRITTEN: dict[str, list[dict[str, Any]]] = {
    "duration": [{"type": "string", "pattern": rf"^({_NUMBER}(us|ms|s|m|h|d))+$"}, {"const": 0}],
    "size": [
        {"type": "string", "pattern": rf"^({_NUMBER}([KMGT]iB|[kKMGT]B|B)|\d+)$"},
        {"type": "integer", "minimum": 0},
    ],
    "share": [
        {"type": "string", "pattern": rf"^{_NUMBER}%$"},
        {"type": "number", "minimum": 0, "maximum": 1},
    ],
    "rate": [{"type": "string", "pattern": rf"^{_NUMBER}/[smhd]$"}],
    "quantile": [{"type": "string", "pattern": r"^p\d{1,2}(\.\d+)?$"}],
}
_PATTERNS = {
    "address": r"^(unix:/.+|.+:\d+)$",
    "endpoint": r"^([hH][tT][tT][pP][sS]?://[^/?#@]+/?|unix:/.+)$",
    "url": r"^https?://",
    "path": r"^/",
    "name": r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
    "function": r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$",
    "hash_key": r"^header:.+$",
    "limit_key": r"^(client|route|header:.+)$",
}
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def json_schema() -> dict[str, Any]:
    """The schema as plain data. Milliseconds; not for the hot path."""
    definitions: dict[str, Any] = {}
    root = _struct(described(Config), definitions)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "tailrace configuration",
        **root,
        "definitions": dict(sorted(definitions.items())),
    }


def _struct(kind: inspect.StructType, definitions: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": " ".join((kind.cls.__doc__ or "").split()),
        "additionalProperties": False,
        # A route's own filters are laid over the file's, so that there any field may be missing.
        "required": []
        if kind.cls.__module__.startswith("filters.")
        else [each.name for each in kind.fields if each.required],
        "properties": {each.name: _field(each, definitions) for each in kind.fields},
    }


def _field(field: inspect.Field, definitions: dict[str, Any]) -> dict[str, Any]:
    made = _kind(field.type, definitions)
    default = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    if default is not msgspec.NODEFAULT:
        # Siblings of "$ref" are ignored in this draft.
        made = {"allOf": [made]} if "$ref" in made else made
        made = {**made, "default": as_written(default, field.type)}
    return made


def _kind(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    wanted = shape(kind)
    options: list[dict[str, Any]] = []
    for each in wanted.options:
        options += _option(each, wanted, definitions)
    if wanted.optional:
        options.append({"enum": [False, "off"]})
    plain_text = any(each.get("type") == "string" and len(each) == 1 for each in options)
    scalar = not any("$ref" in each or each.get("type") in _COLLECTIONS for each in options)
    if scalar and not plain_text:
        options.append(_REFERENCE)
    return options[0] if len(options) == 1 else {"anyOf": options}


_COLLECTIONS = ("array", "object")


def _option(kind: Any, wanted: Shape, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    if isinstance(kind, inspect.StructType):
        return _named(kind, definitions)
    if isinstance(kind, inspect.VarTupleType):
        item = _kind(kind.item_type, definitions)
        one = item.get("anyOf", [item])
        return [*one, {"type": "array", "items": item}]
    if isinstance(kind, inspect.DictType):
        values = _kind(kind.value_type, definitions)
        return [{"type": "object", "additionalProperties": values}]
    if wanted.unit in _WRITTEN:
        return _WRITTEN[wanted.unit]
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        name = "integer" if isinstance(kind, inspect.IntType) else "number"
        bounds = {
            word: getattr(kind, attribute)
            for attribute, word in _BOUNDS.items()
            if getattr(kind, attribute) is not None
        }
        return [{"type": name, **bounds}]
    if isinstance(kind, inspect.LiteralType):
        return [{"enum": list(kind.values)}]
    if isinstance(kind, inspect.BoolType):
        return [{"type": "boolean"}]
    pattern = _PATTERNS.get(wanted.unit)
    return [{"type": "string", "pattern": pattern}] if pattern else [{"type": "string"}]


def _named(kind: inspect.StructType, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    if kind.cls is Secret:
        return [{"type": "string"}]
    # Every filter calls its own struct Config, so its module says which it is.
    module = kind.cls.__module__.rpartition(".")[2].title().replace("_", "")
    name = kind.cls.__name__ if kind.cls.__name__ != "Config" else module
    if name not in definitions:
        definitions[name] = {}
        definitions[name] = _struct(kind, definitions)
    options: list[dict[str, Any]] = [{"$ref": f"#/definitions/{name}"}]
    important = SHORT_FORM.get(kind.cls)
    if important is not None:
        short = next(each for each in kind.fields if each.name == important)
        wanted = _kind(short.type, definitions)
        options += wanted.get("anyOf", [wanted])
    return options
