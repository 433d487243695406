"""layout: where the inputs of a batch go in one buffer. Pure: shapes in, offsets out, no copies.

``make`` is asked for each batch, and answers in the words of ``grid``. An entry holds views of the
callers' bodies, so a layout is dropped when its batch has been packed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from gpu_batcher.api import SIZES, Call, Data, Tensor
from gpu_batcher.grid import (
    BOX,
    STAGE,
    DoesNotFitError,
    Entry,
    Grid,
    Layout,
    LayoutError,
    aligned,
    grid_of,
)
from gpu_batcher.packing import FORMATS, MOST_AXES, Extra, Packing, Rule, element


def make(calls: Sequence[Call], packing: Packing, capacity: int, staging: int = 0) -> Layout:
    """Lay out the inputs of ``calls``, which have equal keys, in ``capacity`` bytes; ``staging``:
    bytes of the staging buffer, 0 if none is used. O(calls * inputs), for padded BYTES O(bytes).

    Raises DoesNotFitError, before anything is made by the size in question, and LayoutError where
    calls contradict each other, which equal keys and ``Packing.check`` rule out. A call alone is
    padded by buckets only, so what alone does not fit is too large for the route.
    """
    if not calls:
        raise LayoutError("no calls")
    return _Maker(calls, packing, capacity, staging).make()


@dataclass(slots=True)
class _Column:
    """One input of all calls. ``varying``: the axes that are not the same in all."""

    name: str
    datatype: str
    shapes: list[tuple[int, ...]]
    pieces: list[Data]
    varying: list[int]

    @property
    def elements(self) -> int:
        if itemsize := SIZES[self.datatype]:
            return self.size // itemsize
        return sum(map(prod, self.shapes))

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces))


class _Maker:
    """The making of one layout; places are given in the order of the inputs."""

    __slots__ = ("_calls", "_capacity", "_extras", "_layout", "_packing", "_staging")

    def __init__(self, calls: Sequence[Call], packing: Packing, capacity: int, staging: int):
        counts = [call.rows for call in calls]
        starts, rows = [], 0
        for count in counts:
            starts.append(rows)
            rows += count
        self._layout = Layout(counts, starts, rows)
        self._calls = calls
        self._packing = packing
        self._capacity = capacity
        self._staging = staging
        self._extras: dict[str, tuple[Extra, object]] = {}

    def make(self) -> Layout:
        for index in range(len(self._calls[0].inputs)):
            column = _column(self._calls, index)
            rule = self._packing.rule(column.name)
            if self._packing.mode == "ragged" and rule.axes:
                self._ragged(column, rule)
            else:
                self._dense(column, rule)
        return self._layout

    def _ragged(self, column: _Column, rule: Rule) -> None:
        if len(column.shapes[0]) < 2 or column.varying not in ([], [1]):
            raise LayoutError(f"input {column.name!r}: only dimension 1 may vary")
        spans = [0]
        for shape in column.shapes:
            spans.append(spans[-1] + shape[0] * shape[1])
        shape = (spans[-1], *column.shapes[0][2:])
        entry = self._place(column.name, column.datatype, shape, column.size, column.pieces)
        entry.spans = spans
        self._layout.elements += column.elements
        lengths: list[tuple[int, ...]] = [(shape[1],) for shape in column.shapes]
        if rule.lengths is not None:
            self._counts(rule.lengths, lengths)
        if rule.offsets is not None and self._is_new(rule.offsets, ("offsets", lengths)):
            self._offsets(rule.offsets, column.shapes)

    def _dense(self, column: _Column, rule: Rule) -> None:
        target = self._target(column, rule)
        axes: tuple[int, ...] = ()
        if column.varying or self._packing.mode == "bucket":
            axes = tuple(
                axis
                for axis, length in enumerate(target[1:], 1)
                if any(shape[axis] != length for shape in column.shapes)
            )
        if axes:
            self._padded(column, rule, target, axes)
        else:
            self._place(column.name, column.datatype, target, column.size, column.pieces)
            self._layout.elements += prod(target)
        if rule.axes and (rule.mask is not None or rule.lengths is not None):
            lengths = [tuple(shape[axis] for axis in rule.axes) for shape in column.shapes]
            if rule.mask is not None:
                self._mask(rule.mask, [target[axis] for axis in rule.axes], lengths, rule.side)
            if rule.lengths is not None:
                self._counts(rule.lengths, lengths)

    def _target(self, column: _Column, rule: Rule) -> tuple[int, ...]:
        """The batch's shape, padding included."""
        shapes, bucketed = column.shapes, self._packing.mode == "bucket"
        if rule.axes is not None and (rule.axes and rule.axes[-1] >= len(shapes[0])):
            raise LayoutError(f"input {column.name!r}: shape {list(shapes[0])} has too few axes")
        if rule.axes is not None and not set(column.varying).issubset(rule.axes):
            raise LayoutError(f"input {column.name!r}: axes {column.varying} vary")
        target = [self._layout.rows, *shapes[0][1:]]
        for axis in column.varying:
            if self._packing.mode == "ragged":
                raise LayoutError(f"input {column.name!r}: it varies, and is not ragged")
            target[axis] = max(shape[axis] for shape in shapes)
        if bucketed:
            for axis in column.varying if rule.axes is None else rule.axes:
                try:
                    target[axis] = self._packing.bucket(target[axis])
                except IndexError:
                    raise LayoutError(f"input {column.name!r}: beyond the last bucket") from None
        return tuple(target)

    def _padded(
        self, column: _Column, rule: Rule, target: tuple[int, ...], axes: tuple[int, ...]
    ) -> None:
        if len(axes) > MOST_AXES:
            raise LayoutError(f"input {column.name!r}: {len(axes)} axes vary")
        itemsize = SIZES[column.datatype]
        try:
            blank = element(column.datatype, rule.value)
        except ValueError as error:
            raise LayoutError(f"input {column.name!r}: its padding is {error}") from error
        elements = prod(target)
        padding = elements - column.elements
        size = elements * itemsize if itemsize else column.size + 4 * padding
        lengths = [tuple(shape[axis] for axis in axes) for shape in column.shapes]
        left = rule.side == "left"
        grid = grid_of(target, axes, self._layout.counts, lengths, blank, left)
        entry = self._place(
            column.name, column.datatype, target, size, column.pieces, grid if itemsize else None
        )
        if not itemsize:
            if column.size and not elements:
                raise LayoutError(f"input {column.name!r}: bytes for a shape without elements")
            entry.pieces = _padded_texts(column, grid) if elements else []
        entry.axes, entry.lengths, entry.left = axes, lengths, left
        self._layout.elements += elements
        self._layout.padding += padding

    def _mask(
        self, extra: Extra, dims: list[int], lengths: list[tuple[int, ...]], side: str
    ) -> None:
        if not self._is_new(extra, (dims, lengths, side)):
            return
        shape = (self._layout.rows, *dims)
        axes = tuple(range(1, len(shape)))
        one = element(extra.datatype, 1)
        grid = grid_of(shape, axes, self._layout.counts, lengths, bytes(len(one)), side == "left")
        grid.one = one
        self._place(extra.name, extra.datatype, shape, prod(shape) * len(one), [], grid)

    def _counts(self, extra: Extra, lengths: list[tuple[int, ...]]) -> None:
        if not self._is_new(extra, lengths):
            return
        axes = len(lengths[0])
        shape = (self._layout.rows,) if axes == 1 else (self._layout.rows, axes)
        entry = self._place(extra.name, extra.datatype, shape, prod(shape) * SIZES[extra.datatype])
        pieces = zip(lengths, self._layout.counts, strict=True)
        entry.pieces = [_numbers(extra, each) * count for each, count in pieces]

    def _offsets(self, extra: Extra, shapes: list[tuple[int, ...]]) -> None:
        shape = (self._layout.rows + 1,)
        entry = self._place(extra.name, extra.datatype, shape, prod(shape) * SIZES[extra.datatype])
        offsets, end = [0], 0
        for count, length, *_ in shapes:
            begin, end = end, end + count * length
            offsets += range(begin + length, end + 1, length) if length else [end] * count
        entry.pieces = [_numbers(extra, offsets)]

    def _is_new(self, extra: Extra, made_from: object) -> bool:
        """Two inputs may name the same extra input, if they agree on what is in it."""
        made = self._extras.setdefault(extra.name, (extra, made_from))
        if made[1] is made_from:
            return True
        if made != (extra, made_from):
            raise LayoutError(f"input {extra.name!r}: two inputs disagree on what it should hold")
        return False

    def _place(
        self,
        name: str,
        datatype: str,
        shape: tuple[int, ...],
        size: int,
        pieces: list[Data] | None = None,
        grid: Grid | None = None,
    ) -> Entry:
        layout = self._layout
        entry = Entry(name, datatype, shape, aligned(layout.size), size, pieces or [], grid)
        layout.size = entry.offset + size
        if layout.size > self._capacity:
            raise DoesNotFitError(f"{layout.size} bytes and more, expected {self._capacity}")
        entry.staged = aligned(layout.staged)
        layout.staged = entry.staged + (size if grid is None else _staged(entry, grid))
        if self._staging and layout.staged > self._staging:
            raise DoesNotFitError(f"{layout.staged} staged bytes, expected {self._staging}")
        layout.entries.append(entry)
        return entry


def _staged(entry: Entry, grid: Grid) -> int:
    """Of a padded input: the kernel's table, and the calls' bytes."""
    pieces = sum(-(-len(piece) // STAGE) for piece in entry.pieces) * STAGE
    return aligned(len(grid.boxes) * BOX, STAGE) + pieces


def _column(calls: Sequence[Call], index: int) -> _Column:
    """Input ``index`` of the first call, in all of them. Whatever does not match is found here,
    since a shape that belies its bytes would shift the rows of the others."""
    first = calls[0].inputs[index]
    name, datatype, rank = first.name, first.datatype, len(first.shape)
    many, tail = len(calls[0].inputs), first.shape[1:]
    itemsize = SIZES.get(datatype, -1)
    if itemsize < 0:
        raise LayoutError(f"input {name!r}: unknown datatype {datatype!r}")
    shapes, pieces, even = [], [], True
    for call in calls:
        tensor = call.inputs[index] if index < len(call.inputs) else None
        if tensor is None or tensor.name != name:
            tensor = _named(call, name)
        shape, data = tensor.shape, tensor.data
        if isinstance(data, memoryview) and (data.format != "B" or data.ndim != 1):
            data = data.cast("B")
        if len(call.inputs) != many or tensor.datatype != datatype or len(shape) != rank:
            raise LayoutError(f"input {name!r}: calls of different kinds")
        if not shape or shape[0] != call.rows or min(shape) < 0:
            raise LayoutError(f"input {name!r}: shape {list(shape)} of {call.rows} rows")
        if itemsize and prod(shape) * itemsize != len(data):
            raise LayoutError(f"input {name!r}: {len(data)} bytes for shape {list(shape)}")
        even = even and shape[1:] == tail
        shapes.append(shape)
        pieces.append(data)
    varying = [] if even else [a for a in range(1, rank) if len({s[a] for s in shapes}) > 1]
    return _Column(name, datatype, shapes, pieces, varying)


def _named(call: Call, name: str) -> Tensor:
    for tensor in call.inputs:
        if tensor.name == name:
            return tensor
    raise LayoutError(f"input {name!r}: a call has none")


def _padded_texts(column: _Column, grid: Grid) -> list[Data]:
    """BYTES with empty elements between: all pieces in order. O(bytes)."""
    _, d1, d2, d3 = grid.dims
    pieces: list[Data] = []
    for data, (_, count, s1, s2, s3) in zip(column.pieces, grid.boxes, strict=True):
        o1, o2, before = (d1 - s1, d2 - s2, d3 - s3) if grid.left else (0, 0, 0)
        view, at = memoryview(data), 0
        for _ in range(count):
            for i1 in range(d1):
                for i2 in range(d2):
                    if not (o1 <= i1 < o1 + s1 and o2 <= i2 < o2 + s2):
                        pieces.append(bytes(4 * d3))
                        continue
                    end = _skip(view, at, s3, column.name)
                    pieces += (bytes(4 * before), view[at:end], bytes(4 * (d3 - s3 - before)))
                    at = end
        if at != len(view):
            raise LayoutError(f"input {column.name!r}: more elements than its shape has")
    return pieces


def _skip(view: memoryview, at: int, elements: int, name: str) -> int:
    """Where the element after the next ``elements`` ones begins."""
    for _ in range(elements):
        if at + 4 > len(view):
            raise LayoutError(f"input {name!r}: fewer elements than its shape has")
        at += 4 + int.from_bytes(view[at : at + 4], "little")
    if at > len(view):
        raise LayoutError(f"input {name!r}: an element is longer than its bytes")
    return at


def _numbers(extra: Extra, numbers: Sequence[int]) -> bytes:
    try:
        return struct.pack(f"<{len(numbers)}{FORMATS[extra.datatype]}", *numbers)
    except struct.error:
        raise LayoutError(f"input {extra.name!r}: too large for {extra.datatype}") from None
