"""Counters and their text: buckets, bounds on labels, and a format that a scraper accepts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.api import Priority, Reason
from gateway.exposition import Family, render
from gateway.metrics import OTHER, SERIES, Histogram, Metrics
from tests.gateway.exposition_format import parse, value

CRITICAL = Priority.CRITICAL


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (0.1, 0), (0.10001, 1), (1.0, 1), (1.5, 2), (math.inf, 2)]
)
def test_a_bound_belongs_to_its_bucket(seconds: float, bucket: int) -> None:
    histogram = Histogram((0.1, 1.0))
    histogram.add(seconds)
    assert histogram.counts == [int(n == bucket) for n in range(3)]


def test_routes_beyond_the_bound_share_one_label() -> None:
    metrics = Metrics((1.0,))
    for number in range(SERIES + 500):
        metrics.route(f"r{number}").in_flight += 1
    assert len(metrics.routes) == SERIES + 1
    assert metrics.routes[OTHER].in_flight == 500
    assert metrics.route("r0") is metrics.routes["r0"]


def test_new_buckets_begin_again_and_keep_what_is_in_flight() -> None:
    metrics = Metrics((1.0,))
    counters = metrics.route("r")
    counters.in_flight = 3
    counters.requests["c", 2, None, CRITICAL] = 7
    counters.durations.add(0.5)
    counters.queue_waits.add(0.5)
    metrics.use((1.0,))
    assert counters.durations.counts == [1, 0], "equal buckets change nothing"
    metrics.use((0.2, 0.4, 0.6))
    assert metrics.route("r") is counters
    assert (counters.in_flight, counters.requests["c", 2, None, CRITICAL]) == (3, 7)
    counters.durations.add(0.5)
    assert counters.durations.counts == [0, 0, 1, 0]
    assert counters.queue_waits.counts == [0, 0, 0, 0]


def test_refusals_are_counted_by_reason() -> None:
    metrics = Metrics((1.0,))
    for reason in (Reason.MALFORMED, Reason.MALFORMED, Reason.VERSION):
        metrics.refuse(reason)
    assert metrics.refused == {Reason.MALFORMED: 2, Reason.VERSION: 1}


@given(st.lists(st.floats(0, 100, allow_nan=False), max_size=30))
def test_a_histogram_is_rendered_cumulative_and_whole(observed: list[float]) -> None:
    histogram = Histogram((0.5, 5.0, 50.0))
    for seconds in observed:
        histogram.add(seconds)
    family = Family("histogram", "h_seconds", "Help.")
    family.add_histogram(histogram, route="r")
    samples = parse(render([family]).decode())
    for bound in (0.5, 5.0, 50.0):
        below = sum(seconds <= bound for seconds in observed)
        assert value(samples, "h_seconds_bucket", le=str(bound)) == below
    assert value(samples, "h_seconds_count") == len(observed)
    assert value(samples, "h_seconds_sum") == pytest.approx(sum(observed))


@given(st.text(max_size=20))
def test_any_label_value_survives_the_format(text: str) -> None:
    family = Family("gauge", "g", "Help.")
    family.add(2.5, route=text)
    assert parse(render([family]).decode())["g", frozenset({("route", text)})] == 2.5


def test_equal_labels_add_up_and_booleans_are_numbers() -> None:
    family = Family("gauge", "g", "Help.")
    family.add(True, endpoint=OTHER)
    family.add(True, endpoint=OTHER)
    one = Family("gauge", "one", "Help.")
    one.add(True)
    samples = parse(render([family, one]).decode())
    assert value(samples, "g", endpoint=OTHER) == 2
    assert value(samples, "one") == 1


@pytest.mark.parametrize(
    "bad",
    [
        "# HELP a Help.\n# TYPE a gauge\na 1",
        "# HELP a Help.\n# TYPE a gauge\na 1\na 1\n",
        '# HELP a Help.\n# TYPE a gauge\na{x="\\q"} 1\n',
        '# HELP a Help.\n# TYPE a gauge\na{x="1",x="2"} 1\n',
        "# HELP a Help.\n# TYPE a gauge\nb 1\n",
        "# HELP a Help.\n# TYPE a gauge\na True\n",
        "# HELP a Help.\n# TYPE a counter\na 1\n",
        '# HELP a Help.\n# TYPE a histogram\na_bucket{le="1.0"} 1\na_count 1\na_sum 1\n',
    ],
)
def test_the_reader_of_these_tests_is_strict(bad: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        parse(bad)
