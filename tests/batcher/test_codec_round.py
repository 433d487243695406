"""All formats together: whatever is joined with whatever, each caller gets its own rows."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from tests.batcher.wires import Wire, wires

if TYPE_CHECKING:
    from collections.abc import Hashable

    from gpu_batcher.api import Call

crowds = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(0, 15)), min_size=1, max_size=14
)
"""For each caller the number of its wire, its rows and the style of its request."""


@given(crowds)
def test_each_caller_gets_its_own_rows(crowd: list[tuple[int, int, int]]) -> None:
    every = wires()
    batches: defaultdict[Hashable, list[tuple[Wire, Call, Any]]] = defaultdict(list)
    mark = 1
    for number, rows, style in crowd:
        wire = every[number]
        marks = list(range(mark, mark + rows))
        mark += rows
        call = wire.read(marks, style)
        batches[number, call.key].append((wire, call, marks))
    for members in batches.values():
        wire = members[0][0]
        calls = [call for _, call, _ in members]
        replies = wire.codec.divide(calls, wire.serve(wire.codec.join(calls)))
        assert len(replies) == len(calls)
        for (_, call, marks), reply in zip(members, replies, strict=True):
            mine = wire.replied(reply)
            assert mine == wire.own(call)
            assert len(mine) == len(marks)


def test_no_two_rows_look_alike() -> None:
    """Or the test above would be worth nothing."""
    for wire in wires():
        rows = wire.own(wire.read(list(range(1, 200)), 1))
        assert len({repr(each) for each in rows}) == len(rows)


def test_every_style_is_of_the_same_batch() -> None:
    for wire in wires():
        assert len({wire.read([1], style).key for style in range(16)}) == 1
