"""The figures that are taken from the records of a load."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import records
from loadtests.records import End, Record, Tape, quantile, settled

FINE = Record(1.0, 0.05, 0.04, 0.001, 0.02, 200, 0, End.FINISHED, 0, False, "")


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.001, 1))
def test_a_quantile_is_the_smallest_value_that_enough_do_not_exceed(
    values: list[float], part: float
) -> None:
    found = quantile(values, part)
    assert found in values
    assert sum(value <= found for value in values) >= part * len(values) - 1e-6
    assert sum(value < found for value in values) < part * len(values) + 1e-6


def test_quantiles_of_a_few() -> None:
    assert quantile([], 0.5) == 0
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2
    assert quantile(range(1, 101), 0.95) == 95
    assert quantile(range(1, 101), 0.99) == 99
    assert quantile([1.0, 2.0], 1.0) == 2


def test_what_counts_as_well_answered() -> None:
    late = FINE._replace(latency=0.3)
    refused = FINE._replace(status=503, reason="shed")
    cut = FINE._replace(end=End.BROKEN)
    left = FINE._replace(end=End.LEFT, status=0)
    everything = [FINE, late, refused, cut, left]
    assert [r for r in everything if r.ok] == [FINE, late]
    assert list(records.useful(everything, 0.2)) == [FINE]
    assert [r for r in everything if r.refused] == [refused]
    assert records.failures(everything) == {"shed": 1, "broken": 1, "left": 1}
    assert records.due(everything, 1.0, 1.1) == everything
    assert records.ended(everything, 1.0, 1.1) == [FINE, refused, cut, left]
    assert records.share([FINE], everything) == 0.2
    assert records.share([], []) == 1


def test_records_survive_the_way_from_their_process(tmp_path: Path) -> None:
    tape = Tape(["a"], 1.0, 2.0, 3, 4, ["", "shed"], 2)
    rows = [
        (1.0, 0.5, 0.25, 0.125, 0.0, 200, 0, 0, 0, 0, 0),
        (2.0, 0.5, 0.0, -1.0, 0.0, 503, 0, 1, 2, 1, 1),
    ]
    records.save(tmp_path / "out", tape, rows)
    back, taken = records.load(tmp_path / "out")
    assert back == tape
    assert taken[0] == Record(1.0, 0.5, 0.25, 0.125, 0.0, 200, 0, End.FINISHED, 0, False, "")
    assert taken[1] == Record(2.0, 0.5, 0.0, -1.0, 0.0, 503, 0, End.LEFT, 2, True, "shed")


def _steady(since: float, until: float, rate: float) -> list[Record]:
    count = round((until - since) * rate)
    return [FINE._replace(at=since + n / rate, latency=0.0) for n in range(count)]


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (_steady(10, 40, 100), 0.0),
        (_steady(13, 40, 100), 3.0),
        (_steady(10, 40, 80), None),
        (_steady(10, 20, 100) + _steady(25, 40, 100), 15.0),
        (_steady(10, 37, 100), None),
        ([], None),
    ],
    ids=["at-once", "late", "never", "with-a-gap", "not-to-the-end", "nothing"],
)
def test_since_when_it_has_been_good_to_the_end(done: list[Record], expected: float | None) -> None:
    found = settled(done, 10.0, 40.0, 99.0)
    # Five seconds may hold a few hundredths of a gap and still bring 99 of 100.
    assert found == expected or (
        found is not None and expected is not None and abs(found - expected) <= 0.5
    )


def test_a_window_shorter_than_the_span_is_never_settled() -> None:
    assert settled(_steady(0, 3, 100), 0.0, 3.0, 50.0) is None
