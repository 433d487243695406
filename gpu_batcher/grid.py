"""grid: the words of a layout. Pure.

Every input of a batch gets an ``Entry``: its place in the buffer (256-byte aligned, as GPU loads
and servers like it), its shape for the whole batch, and the callers' bytes that make it up. Where
nothing is padded those bytes lie back to back. Where something is, a ``Grid`` says which box of
the padded array each call fills.

A grid has four dimensions whatever the input has, because neighbouring dimensions that are padded
nowhere are one: rows with all fixed dimensions before the first padded one, and then each padded
dimension with the fixed ones after it. (rows, padded, 768) is the grid (rows, 1, 1, padded * 768).
So copying and the kernels know one case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gpu_batcher.api import SIZES, Data
from gpu_batcher.packing import MOST_AXES

ALIGN = 256
"""Bytes; every input and output begins at a multiple of it."""
STAGE = 16
"""Bytes; in the staging buffer every call begins at a multiple of it, so that it can be read in
vectors."""
BOX = 20
"""Bytes of a call's entry in the kernels' table."""

Dims = tuple[int, int, int, int]
Box = tuple[int, int, int, int, int]


class LayoutError(ValueError):
    """These calls cannot be packed together."""


class DoesNotFitError(LayoutError):
    """They need more than the buffer has. Fewer of them may fit: padding goes by the longest."""


@dataclass(slots=True)
class Grid:
    """A padded array. ``dims`` in elements, rows first. ``boxes``: of each call its first row, its
    number of rows and its extent in the other dimensions; on the left or the right of each.
    ``blank`` is one element of padding. ``one``: what stands for the callers' elements where
    there are none to copy, in a mask."""

    dims: Dims
    boxes: list[Box]
    blank: bytes
    left: bool = False
    one: bytes = b""


@dataclass(slots=True)
class Entry:
    """One packed input. ``pieces``: its bytes, back to back; with a grid, one piece for each call,
    and none for a mask. ``axes`` are those that were padded, and ``lengths`` each call's own
    dimensions there. ``spans``: ragged, where each call begins along axis 0, and the end.
    ``staged``: where its bytes go in a staging buffer."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    pieces: list[Data]
    grid: Grid | None = None
    axes: tuple[int, ...] = ()
    lengths: list[tuple[int, ...]] = field(default_factory=list)
    left: bool = False
    spans: list[int] = field(default_factory=list)
    staged: int = 0


@dataclass(slots=True)
class Layout:
    """A batch. ``counts``: rows of each call; ``starts``: its first one. ``size`` and ``staged``:
    bytes used of the buffer, and of a staging buffer. ``elements`` that the callers' inputs have
    in the batch, and how many of them are ``padding``."""

    counts: list[int]
    starts: list[int]
    rows: int
    entries: list[Entry] = field(default_factory=list)
    size: int = 0
    staged: int = 0
    elements: int = 0
    padding: int = 0

    @property
    def padding_share(self) -> float:
        return self.padding / self.elements if self.elements else 0.0


@dataclass(frozen=True, slots=True)
class Region:
    """A place for an output, in bytes."""

    name: str
    offset: int
    size: int


def aligned(size: int, to: int = ALIGN) -> int:
    """``size`` rounded up to a multiple of ``to``."""
    return -(-size // to) * to


def regions(sizes: Iterable[tuple[str, int]], capacity: int, start: int = 0) -> list[Region]:
    """Places for outputs of the given sizes, from byte ``start`` on. Raises DoesNotFitError."""
    placed = []
    for name, size in sizes:
        start = aligned(start)
        placed.append(Region(name, start, size))
        start += size
        if size < 0 or start > capacity:
            raise DoesNotFitError(f"output {name!r}: {size} bytes, and {capacity} in all")
    return placed


def following(
    entry: Entry, counts: Sequence[int], datatype: str, shape: Sequence[int]
) -> tuple[Grid, list[tuple[int, ...]]] | None:
    """An output that is padded as ``entry`` is, along the same axes: the grid to take it apart by,
    and each caller's shape. None: nothing was padded, so rows are enough. Raises LayoutError if
    the output has other dimensions, or elements of no fixed size."""
    if not entry.axes:
        return None
    here = (0, *entry.axes)
    if len(shape) <= here[-1] or any(shape[axis] != entry.shape[axis] for axis in here):
        raise LayoutError(f"shape {list(shape)} is not padded like {list(entry.shape)}")
    if not SIZES.get(datatype):
        raise LayoutError(f"elements of {datatype} have no fixed size")
    grid = grid_of(shape, entry.axes, counts, entry.lengths, bytes(SIZES[datatype]), entry.left)
    shapes = []
    for count, lengths in zip(counts, entry.lengths, strict=True):
        own = [count, *shape[1:]]
        for axis, length in zip(entry.axes, lengths, strict=True):
            own[axis] = length
        shapes.append(tuple(own))
    return grid, shapes


def grid_of(
    shape: Sequence[int],
    axes: tuple[int, ...],
    counts: Sequence[int],
    lengths: list[tuple[int, ...]],
    blank: bytes,
    left: bool,
) -> Grid:
    """``shape`` is the batch's, ``lengths`` each call's along ``axes``."""
    dims, tails = [shape[0]], [1]
    for axis, length in enumerate(shape[1:], 1):
        if axis in axes:
            dims.append(length)
            tails.append(1)
        else:
            dims[-1] *= length
            tails[-1] *= length
    unused = [1] * (MOST_AXES - len(axes))
    boxes, row = [], 0
    for count, own in zip(counts, lengths, strict=True):
        extent = [length * tail for length, tail in zip(own, tails[1:], strict=True)]
        s1, s2, s3 = unused + extent
        boxes.append((row, count * tails[0], s1, s2, s3))
        row += count * tails[0]
    d1, d2, d3 = unused + dims[1:]
    return Grid((dims[0], d1, d2, d3), boxes, blank, left)
