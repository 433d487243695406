"""The picture: well-formed, inside its card, every line named and no two names on each other."""

import itertools
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import svg
from loadtests.goodput import medians, picture, table
from loadtests.svg import Axis, Chart, Line, draw, spread

AXIS_X = Axis("load", [(0.25, "0.25"), (1.0, "1"), (10.0, "10")])
AXIS_Y = Axis("share", [(0.0, "0"), (0.5, "50"), (1.0, "100")])


def chart(*lines: Line) -> Chart:
    return Chart("A <title> & more", "below it", AXIS_X, AXIS_Y, lines, Line("ideal", [(1, 1)]))


@given(
    st.lists(st.floats(0, 400), max_size=8), st.floats(1, 40), st.floats(0, 100), st.floats(0, 300)
)
def test_labels_are_spread(wanted: list[float], gap: float, low: float, room: float) -> None:
    high = low + room
    placed = spread(wanted, gap, low, high)
    assert all(low - 1e-6 <= place <= high + 1e-6 for place in placed)
    ordered = sorted(placed)
    fits = gap * (len(wanted) - 1) <= room
    apart = gap if fits else room / max(1, len(wanted) - 1)
    pairs = itertools.pairwise(ordered)
    assert all(above - below >= apart - 1e-6 for below, above in pairs)
    ranks = sorted(range(len(wanted)), key=lambda n: wanted[n])
    assert [placed[n] for n in ranks] == ordered


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread([100.0, 20.0, 60.0], 19, 0, 200) == [100.0, 20.0, 60.0]
    assert spread([50.0, 50.0], 10, 0, 200) == [50.0, 60.0]
    assert spread([200.0, 200.0], 10, 0, 200) == [190.0, 200.0]
    assert spread([], 10, 0, 1) == []


def test_the_ends_of_the_axes_are_the_corners_of_the_plot() -> None:
    plain = chart()
    assert plain.place(0.25, 0) == (svg.LEFT, svg.HEIGHT - svg.BOTTOM)
    assert plain.place(10, 1) == (svg.WIDTH - svg.RIGHT, svg.TOP)
    assert plain.place(99, 1.2) == (svg.WIDTH - svg.RIGHT, svg.TOP)
    middle = svg.LEFT + (svg.WIDTH - svg.LEFT - svg.RIGHT) / 2
    assert plain.place((0.25 * 10) ** 0.5, 0.5)[0] == pytest.approx(middle)


def test_a_picture_is_well_formed_and_says_everything() -> None:
    lines = [Line(f"line {n} <&>", [(0.25, 0.25), (10.0, 0.9)], n) for n in range(4)]
    text = draw(chart(*lines))
    root = ElementTree.fromstring(text)
    said = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}text")]
    for wanted in ("A <title> & more", "load", "share", "ideal", *(line.name for line in lines)):
        assert wanted in said
    heights = [float(e.get("y", 0)) for e in root.iter() if "name" in (e.get("class") or "")]
    assert len(heights) == 4
    ordered = sorted(heights)
    assert all(b - a >= svg.LABEL_GAP - 0.2 for a, b in itertools.pairwise(ordered))
    assert "prefers-color-scheme:dark" in text
    # Every class that is used has a colour by day and by night.
    style = text[text.index("<style>") : text.index("</style>")]
    day, night = style.split("@media")
    for kind in ("card", "title", "text", "grid", "axis", "ideal", "c0l", "c0f", "c3f"):
        assert re.search(rf"\.{kind}\{{[^}}]*#", day), kind
        assert re.search(rf"\.{kind}\{{[^}}]*#", night), kind


def _point(load: float, goodput: float, valid: bool = True) -> dict[str, object]:
    return {"load": load, "goodput": goodput, "valid": valid}


def test_goodput_draws_the_median_of_the_valid_rounds() -> None:
    points = [_point(2, 0.9), _point(1, 0.8), _point(2, 0.5), _point(2, 0.8), _point(2, 0, False)]
    assert medians(points) == [(1, 0.8), (2, 0.8)]
    document = {
        "points": {"none": [_point(0.25, 0.25), _point(3, 0.0)], "tailrace": points},
        "problems": ["a problem"],
    }
    drawn = picture(document)
    assert [line.name for line in drawn.lines] == ["no proxy", "tailrace"]
    assert drawn.x.high == 3
    ElementTree.fromstring(draw(drawn))
    lines = table(document)
    assert "| 2x | - | 80.0 % |" in lines
    assert "problem: tailrace at 2x: the generator fell behind" in lines
    assert "problem: a problem" in lines
