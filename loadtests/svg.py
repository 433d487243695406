"""One kind of picture, written by hand: lines over a logarithmic x axis, as SVG text. Pure.

It is looked at in a README, by day and by night, and by renderers that know little CSS. So it
brings its own background, follows ``prefers-color-scheme`` where that is understood, names each
line at its end and not in a legend, and gives each a mark of its own, for those who see no
colours.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 62, 112, 104, 58
"""The margins around the plot: figures on the left, names of the lines on the right."""
LABEL_GAP = 19.0
_FONT = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
_LIGHT = {
    "card": "fill:#ffffff;stroke:#d1d9e0",
    "title": "fill:#1f2328",
    "text": "fill:#59636e",
    "grid": "stroke:#e4e8ec",
    "axis": "stroke:#818b98",
    "c0": "#0969da",
    "c1": "#bc4c00",
    "c2": "#6e7781",
    "c3": "#8250df",
    "ideal": "stroke:#818b98",
}
_DARK = {
    "card": "fill:#0d1117;stroke:#30363d",
    "title": "fill:#f0f6fc",
    "text": "fill:#9198a1",
    "grid": "stroke:#21262d",
    "axis": "stroke:#656c76",
    "c0": "#4493f8",
    "c1": "#f0883e",
    "c2": "#9198a1",
    "c3": "#ab7df8",
    "ideal": "stroke:#656c76",
}


@dataclass(frozen=True)
class Line:
    """``points`` in order of x. ``colour`` 0 to 3; 0 is the one to look at."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0


@dataclass(frozen=True)
class Axis:
    """``ticks``: (value, text), in order; the first and the last are its ends."""

    title: str
    ticks: Sequence[tuple[float, str]]

    @property
    def low(self) -> float:
        return self.ticks[0][0]

    @property
    def high(self) -> float:
        return self.ticks[-1][0]


@dataclass(frozen=True)
class Chart:
    """``ideal`` is a dashed line behind the others, with its name, if it has one, at its end.
    ``x`` is logarithmic and so above 0; ``y`` is linear."""

    title: str
    subtitle: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    ideal: Line | None = None

    def place(self, x: float, y: float) -> tuple[float, float]:
        """From values to pixels; what is outside of the axes is put on their ends."""
        share_x = math.log(max(x, self.x.low) / self.x.low) / math.log(self.x.high / self.x.low)
        share_y = (y - self.y.low) / (self.y.high - self.y.low)
        return (
            LEFT + min(1.0, share_x) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - min(1.0, max(0.0, share_y)) * (HEIGHT - TOP - BOTTOM),
        )


def draw(chart: Chart) -> str:
    """The whole file. XML characters in names are escaped."""
    lines = [chart.ideal, *chart.lines] if chart.ideal is not None else list(chart.lines)
    # Background to foreground: the line to look at is drawn last.
    drawn = [_line(chart, line) for line in sorted(chart.lines, key=lambda each: -each.colour)]
    ideal = [_path(chart, chart.ideal, "ideal")] if chart.ideal is not None else []
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    name = f'role="img" aria-label={quoteattr(chart.title)}'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {name}>',
        f"<title>{escape(chart.title)}</title>",
        f"<desc>{escape(_description(chart))}</desc>",
        _style(),
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
        _text(LEFT - 38, 32, chart.title, "title", "start"),
        _text(LEFT - 38, 54, chart.subtitle, "text", "start"),
        *_grid(chart),
        *ideal,
        *drawn,
        *_names(chart, [each for each in lines if each.points and each.name]),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the ``wanted`` ones, in the same order, at least ``gap`` apart, within bounds.

    If there is no room for all, they are evenly spread. O(n^2) for the few that there are.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    if len(order) > 1 and gap * (len(order) - 1) > high - low:
        gap = (high - low) / (len(order) - 1)
    placed: list[float] = []
    for rank, index in enumerate(order):
        least = placed[-1] + gap if placed else low
        most = high - gap * (len(order) - 1 - rank)
        placed.append(min(max(wanted[index], least), most))
    # From the other end: what was pushed away may come back as far as its neighbour lets it.
    for rank in range(len(order) - 2, -1, -1):
        if placed[rank + 1] - placed[rank] < gap:
            placed[rank] = placed[rank + 1] - gap
    result = [0.0] * len(wanted)
    for place, index in zip(placed, order, strict=True):
        result[index] = place
    return result


def _style() -> str:
    def rules(colours: dict[str, str]) -> str:
        plain = [f".{name}{{{value}}}" for name, value in colours.items() if ":" in value]
        for name, value in colours.items():
            if ":" not in value:
                plain.append(f".{name}l{{stroke:{value}}}.{name}f{{fill:{value}}}")
        return "".join(plain)

    return (
        f"<style>text{{font-family:{_FONT};font-size:13px}}.title{{font-size:17px;"
        "font-weight:600}.name{font-weight:600}"
        ".line{fill:none;stroke-width:2.5;stroke-linejoin:round;stroke-linecap:round}"
        ".ideal{fill:none;stroke-width:1.5;stroke-dasharray:5 5}"
        f"{rules(_LIGHT)}@media(prefers-color-scheme:dark){{{rules(_DARK)}}}</style>"
    )


def _grid(chart: Chart) -> Iterable[str]:
    for value, label in chart.y.ticks:
        x, y = chart.place(chart.x.low, value)
        kind = "axis" if value == chart.y.low else "grid"
        yield f'<path class="{kind}" d="M{x:.1f} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield _text(x - 9, y + 4.5, label, "text", "end")
    for value, label in chart.x.ticks:
        x, y = chart.place(value, chart.y.low)
        yield f'<path class="axis" d="M{x:.1f} {y:.1f}v5"/>'
        yield _text(x, y + 21, label, "text", "middle")
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    yield _text(middle, HEIGHT - 15, chart.x.title, "text", "middle")
    yield _text(LEFT - 38, TOP - 17, chart.y.title, "text", "start")


def _line(chart: Chart, line: Line) -> str:
    marks = "".join(_mark(line.colour, *chart.place(x, y)) for x, y in line.points)
    return _path(chart, line, f"line c{line.colour}l") + marks


def _path(chart: Chart, line: Line, kind: str) -> str:
    places = (chart.place(x, y) for x, y in line.points)
    route = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return f'<path class="{kind}" d="M{route}"/>'


def _mark(colour: int, x: float, y: float) -> str:
    fill = f"c{colour}f"
    if colour == 0:
        return f'<circle class="{fill}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    if colour == 1:
        return f'<rect class="{fill}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    if colour == 2:
        return f'<path class="{fill}" d="M{x:.1f} {y - 5:.1f}l5 9h-10z"/>'
    return f'<path class="{fill}" d="M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"/>'


def _names(chart: Chart, lines: Sequence[Line]) -> Iterable[str]:
    """Each line's name beside its end, moved up or down where two would overlap."""
    ends = [chart.place(*line.points[-1]) for line in lines]
    heights = spread([y for _, y in ends], LABEL_GAP, TOP, HEIGHT - BOTTOM)
    for line, (x, _), y in zip(lines, ends, heights, strict=True):
        kind = "text" if line is chart.ideal else f"name c{line.colour}f"
        yield _text(x + 12, y + 4.5, line.name, kind, "start")


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _description(chart: Chart) -> str:
    """The figures in words, for those who hear the picture."""
    said = [
        f"{line.name}: " + ", ".join(f"{x:g}: {y:.3g}" for x, y in line.points)
        for line in chart.lines
    ]
    return f"{chart.subtitle.rstrip('.')}. {chart.y.title} by {chart.x.title}. " + "; ".join(said)
