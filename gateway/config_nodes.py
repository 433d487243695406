"""A configuration file as a tree that remembers where each piece stands.

The tree stands between YAML and the structs: ``config_yaml.py`` makes it from text and
``config_source.py`` from command line flags, so that both are converted, checked and reported
by the same code, and a start without a file never imports a YAML parser.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Tag: TypeAlias = Literal["str", "bool", "int", "float", "null", "date"]
Path: TypeAlias = tuple[str | int, ...]
"""Where a value is in the tree, such as ``("routes", 0, "cluster")``."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the file, counted from 1; in ``file`` if that is another than the one loaded."""

    line: int
    column: int
    file: str = ""


@dataclass(frozen=True, slots=True)
class Scalar:
    """``text`` as written; ``tag`` is what YAML 1.1 makes of it.

    ``plain`` is false for quoted text. ``untyped`` marks what came from the environment, where
    no quotes can tell a number from text: it is whatever the field expects.
    """

    text: str
    mark: Mark
    tag: Tag = "str"
    plain: bool = True
    untyped: bool = False


@dataclass(slots=True)
class Sequence:
    mark: Mark
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Mapping:
    """Pairs in written order, without duplicates (reported when the tree was made)."""

    mark: Mark
    pairs: list[tuple[Scalar, Node]] = field(default_factory=list)

    def get(self, name: str) -> Node | None:
        return next((value for key, value in self.pairs if key.text == name), None)


Node: TypeAlias = Scalar | Sequence | Mapping
