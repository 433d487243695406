"""YAML text to a tree with positions, within bounds.

Made from parser events rather than with ``yaml.compose``: the composer recurses in C and expands
nothing safely, while a loop over events can refuse depth, alias bombs and recursive aliases where
they stand, and sees duplicate keys. libyaml parses when it is there (about 10 times faster).
"""

from typing import Any

import yaml
from yaml.resolver import Resolver

from gateway.config_nodes import Mapping, Mark, Node, Scalar, Sequence, Tag
from gateway.config_problem import Problems

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAX_DEPTH = 32
_MAX_NODES = 100_000
_PREFIX = "tag:yaml.org,2002:"
_TAGS: dict[str, Tag] = {
    "str": "str",
    "bool": "bool",
    "int": "int",
    "float": "float",
    "null": "null",
    "timestamp": "date",
    # A lone "=" and "<<" are text wherever they are not keys.
    "value": "str",
    "merge": "str",
}


class _StopError(Exception):
    """The rest of the file cannot be read in a useful way; the problem is already noted."""


def parse(text: str, problems: Problems) -> Node | None:
    """The tree of the one document in ``text``; None, with a problem noted, if there is none."""
    composer = _Composer(problems)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            composer.feed(event)
    except _StopError:
        return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Mark(mark.line + 1, mark.column + 1) if mark else Mark(1, 1)
        context = f" {error.context}" if error.context else ""
        problems.error(place, f"YAML syntax: {error.problem or 'cannot be read'}{context}")
        return None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problems.error(_first_unprintable(text), f"YAML syntax: {_reason(error)}")
        return None
    if composer.root is None:
        problems.error(Mark(1, 1), "the file is empty", "the smallest file has clusters and routes")
    return composer.root


class _Composer:
    def __init__(self, problems: Problems) -> None:
        self.root: Node | None = None
        self._problems = problems
        self._resolver: Any = Resolver()
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._nodes = 0
        self._documents = 0

    def feed(self, event: Any) -> None:
        mark = Mark(event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._stop(mark, "a second YAML document: one file is one configuration")
        elif isinstance(event, yaml.ScalarEvent):
            self._place(self._scalar(event, mark), event.anchor, 1)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(str(event.anchor), mark)
        elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            if len(self._stack) >= _MAX_DEPTH:
                self._stop(mark, f"nested more than {_MAX_DEPTH} levels deep")
            self._explicit_tag(event.tag, mark)
            is_map = isinstance(event, yaml.MappingStartEvent)
            self._stack.append(_Open(Mapping(mark) if is_map else Sequence(mark), event.anchor))
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            done = self._stack.pop()
            if isinstance(done.node, Mapping):
                self._fill(done.node, done.children)
            else:
                done.node.items = done.children
            self._place(done.node, done.anchor, done.size)

    def _scalar(self, event: Any, mark: Mark) -> Scalar:
        plain = event.style in (None, "")
        implicit: tuple[bool, bool] = (event.implicit[0], event.implicit[1])
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._resolver.resolve(yaml.ScalarNode, event.value, implicit)
        known = _TAGS.get(tag.removeprefix(_PREFIX)) if tag.startswith(_PREFIX) else None
        if known is None:
            self._explicit_tag(tag, mark)
        return Scalar(event.value, mark, known or "str", plain)

    def _explicit_tag(self, tag: str | None, mark: Mark) -> None:
        if tag not in (None, "!", f"{_PREFIX}map", f"{_PREFIX}seq"):
            self._problems.error(mark, f"the YAML tag {tag!r} means nothing here", "leave it out")

    def _alias(self, anchor: str, mark: Mark) -> None:
        if anchor not in self._anchors:
            inside = any(each.anchor == anchor for each in self._stack)
            what = "contains itself" if inside else "is not defined above"
            self._stop(mark, f"the anchor {anchor!r} {what}")
        node, size = self._anchors[anchor]
        if isinstance(node, Scalar):
            # A scalar is reported where it is used; a tree where it is written.
            node = Scalar(node.text, mark, node.tag, node.plain)
        self._place(node, None, size)

    def _place(self, node: Node, anchor: str | None, size: int) -> None:
        self._nodes += 1
        if anchor is not None:
            self._anchors[anchor] = (node, size)
        if not self._stack:
            self.root = node
            return
        parent = self._stack[-1]
        parent.size += size
        if self._nodes > _MAX_NODES or parent.size > _MAX_NODES:
            self._stop(node.mark, f"more than {_MAX_NODES} values, aliases expanded")
        parent.children.append(node)

    def _fill(self, mapping: Mapping, children: list[Node]) -> None:
        """Pair keys with values; note duplicates; lay ``<<`` merges under the written keys."""
        seen: dict[str, Mark] = {}
        merged: list[Node] = []
        for key, value in zip(children[::2], children[1::2], strict=True):
            if not isinstance(key, Scalar):
                self._problems.error(key.mark, "a key must be text")
            elif key.text == "<<" and key.plain:
                merged += value.items if isinstance(value, Sequence) else [value]
            elif key.text in seen:
                first = f"first on line {seen[key.text].line}"
                self._problems.error(key.mark, f"duplicate key {_short(key.text)}", first)
            else:
                seen[key.text] = key.mark
                mapping.pairs.append((key, value))
        for source in merged:
            if not isinstance(source, Mapping):
                self._problems.error(source.mark, "'<<' merges mappings only")
                continue
            for key, value in source.pairs:
                if key.text not in seen:
                    seen[key.text] = key.mark
                    mapping.pairs.append((key, value))

    def _stop(self, mark: Mark, message: str) -> None:
        self._problems.error(mark, message)
        raise _StopError


class _Open:
    """A collection whose end has not come yet; ``size`` counts its values, aliases expanded."""

    __slots__ = ("anchor", "children", "node", "size")

    def __init__(self, node: Mapping | Sequence, anchor: str | None) -> None:
        self.node = node
        self.anchor = anchor
        self.children: list[Node] = []
        self.size = 1


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character U+{_code(error.character):04X} is not allowed"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _code(character: Any) -> int:
    return character if isinstance(character, int) else ord(character)


def _first_unprintable(text: str) -> Mark:
    found = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if found is None:
        return Mark(1, 1)
    line = text.count("\n", 0, found.start()) + 1
    return Mark(line, found.start() - text.rfind("\n", 0, found.start()))
