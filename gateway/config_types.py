"""What a field of a struct accepts, seen from a configuration file.

msgspec describes a type as nested wrappers and unions; loading, printing and the JSON Schema all
need the same flat answer: may it be off, how is it written, and which kinds of value will do.
"""

from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect

from gateway.config import Config, Endpoint, Expect, Listener

SHORT_FORM: dict[type, str] = {Listener: "address", Endpoint: "url", Expect: "status"}
"""Structs that may be written as the value of their one important field."""

# Planned names: a file written for a later version deserves a better answer than "unknown".
LATER = frozenset(("discovery",))


class Shape(msgspec.Struct, frozen=True):
    """``options`` holds the alternatives without their wrappers; ``unit`` is '' for none."""

    options: tuple[Any, ...]
    unit: str
    optional: bool

    def one(self, kind: type) -> Any:
        return next((each for each in self.options if isinstance(each, kind)), None)


def shape(kind: Any) -> Shape:
    unit, optional = "", False
    options: list[Any] = []
    pending = [kind]
    while pending:
        each = pending.pop(0)
        if isinstance(each, inspect.Metadata):
            unit = (each.extra or {}).get("unit", unit)
            pending.insert(0, each.type)
        elif isinstance(each, inspect.UnionType):
            pending = list(each.types) + pending
        elif isinstance(each, inspect.NoneType):
            optional = True
        else:
            options.append(each)
    return Shape(tuple(options), unit, optional)


@lru_cache
def described(cls: type) -> inspect.StructType:
    kind = inspect.type_info(cls)
    assert isinstance(kind, inspect.StructType)
    return kind


@lru_cache
def sections() -> dict[str, tuple[str, ...]]:
    """Each field's name with the places where it may stand, to help who wrote it elsewhere."""
    found: dict[str, tuple[str, ...]] = {}

    def walk(kind: Any, place: str) -> None:
        for option in shape(kind).options:
            if isinstance(option, inspect.StructType):
                for each in option.fields:
                    name = f"{place}.{each.name}" if place else each.name
                    found[each.name] = (*found.get(each.name, ()), name)
                    walk(each.type, name)
            elif isinstance(option, inspect.VarTupleType):
                walk(option.item_type, f"{place}[]")
            elif isinstance(option, inspect.DictType):
                walk(option.value_type, f"{place}.NAME")

    walk(described(Config), "")
    return found
