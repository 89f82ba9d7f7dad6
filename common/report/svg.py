"""Line charts as small SVG fragments: text stays text, colours come from the page's CSS, nothing is loaded."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from common.report.templates import template

Point = tuple[float, float | None]
LETTER = 7.0  # width of an average character of 13 px text
FILE_STYLE = (
    "svg{background:#fff}text{font:13px sans-serif}.tick,.label{fill:#5d666f}.band0{fill:#f1f3f4}.band1{fill:none}"
    ".grid{stroke:#dfe2e5}.axis{stroke:#5d666f;fill:none}.line{fill:none;stroke-width:2}"
)


@dataclass(frozen=True)
class Line:
    """One curve.

    hue:    degrees on the colour circle; the page's CSS sets lightness for light and dark screens.
    points: (x, y) in order; a y of None interrupts the curve.
    marks:  draw a dot, with its value as a tooltip, at every point.
    tag:    text beside the first point.
    """

    name: str
    hue: float
    points: Sequence[Point]
    marks: bool = False
    dash: str = ""
    tag: str = ""


@dataclass(frozen=True)
class Axes:
    """What surrounds the curves.

    bands:  (start, end, label) spans of the x axis, shaded in turn: the phases.
    labels: names of the integer positions 0..n-1 of the x axis instead of numbers: the blocks.
    """

    x: str
    y: str
    y_range: tuple[float, float] | None = None
    bands: Sequence[tuple[float, float, str]] = ()
    labels: Sequence[str] = ()
    width: int = 380
    height: int = 250
    title: str = ""
    x_range: tuple[float, float] | None = None


def cut(name: str, letters: int) -> str:
    """The name, its end replaced by an ellipsis where it has more letters."""
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that divide low..high into about `count` steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(s * power for s in (1, 2, 5, 10) if s * power * count >= span * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(lines: Sequence[Line], axes: Axes) -> Markup:
    """An <svg> of the curves, scaled to the width it is given; no id, no namespace, no address in it."""
    label = axes.title or f"{axes.y} over {axes.x}"
    return _macro("chart")(_Frame(lines, axes), label, _on_page)


def drawing(charts: Sequence[tuple[Sequence[Line], Axes]]) -> str:
    """The text of an SVG file: charts side by side, and below each the names of its lines."""
    frames = [_Frame(lines, axes) for lines, axes in charts]
    width, height = sum(f.axes.width for f in frames), max(f.axes.height + 16 * (len(f.lines) + 1) for f in frames)
    return _macro("side_by_side")(frames, width, height, FILE_STYLE, _in_file) + "\n"


def _macro(name: str) -> Callable[..., Markup]:
    found: Callable[..., Markup] = getattr(template("chart.svg").module, name)
    return found


def _on_page(kind: str, hue: float) -> str:
    """The style of a part of a line: the page's CSS makes a colour of the hue, grey of one below 0."""
    return f"--h:{hue:.0f}" if hue >= 0 else "--h:0;--vivid:0%"


def _in_file(kind: str, hue: float) -> str:
    """The colour on a bright page, written out: few viewers of files know CSS variables."""
    rgb = colorsys.hls_to_rgb(round(hue) / 360, 0.42, 0.62)
    colour = "#" + "".join(f"{round(255 * value):02x}" for value in rgb)
    return f"{'stroke' if kind == 'line' else 'fill'}:{colour}"


class _Frame:
    """Maps data to the drawing area; positions are in pixels."""

    def __init__(self, lines: Sequence[Line], axes: Axes) -> None:
        self.lines, self.axes = lines, axes
        points = [(x, y) for line in lines for x, y in line.points if y is not None]
        xs = [x for x, _ in points] + [edge for start, end, _ in axes.bands for edge in (start, end)] or [0.0, 1.0]
        if axes.labels:
            xs = [-0.4, len(axes.labels) - 0.6]
        self.x = self.axes.x_range or (min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
        low, high = min([0.0, *(y for _, y in points)]), max([0.0, *(y for _, y in points)])
        self.y = axes.y_range or ((low * 1.05, high * 1.05) if high > low else (low, low + 1))
        self.y_values = ticks(*self.y, count=5 if axes.height > 200 else 3)
        self.left, self.right = 30 + LETTER * max(len(_short(value)) for value in self.y_values), axes.width - 16
        self.top, self.bottom = (26 if axes.bands or any(line.tag for line in lines) else 12), axes.height - 40

    def at_x(self, value: float) -> float:
        return self.left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def at_y(self, value: float) -> float:
        share = (value - self.y[0]) / (self.y[1] - self.y[0])
        return self.bottom - min(1.0, max(0.0, share)) * (self.bottom - self.top)

    def bands(self) -> Iterator[tuple[float, float, str]]:
        """(left, right, as much of the label as fits) of each."""
        for start, end, label in self.axes.bands:
            x0, x1 = self.at_x(start), self.at_x(end)
            texts = (label, label.split()[0], "")
            yield x0, x1, next(text for text in texts if len(text) <= max(0.0, x1 - x0) / LETTER)

    def y_ticks(self) -> list[tuple[float, str]]:
        return [(self.at_y(value), _short(value)) for value in self.y_values]

    def x_ticks(self) -> list[tuple[float, str]]:
        """Labels where there are some, only so many that they do not overlap, else numbers."""
        names = self.axes.labels
        room = (max(map(len, names), default=1) + 1.5) * LETTER
        every = max(1, math.ceil(len(names) * room / (self.right - self.left)))
        named = [(self.at_x(float(i)), name) for i, name in enumerate(names) if i % every == 0]
        numbers = ticks(*self.x, count=5 if self.axes.width > 300 else 4)
        return named or [(self.at_x(value), _short(value)) for value in numbers]

    def path(self, line: Line) -> str:
        """What an SVG path draws: a missing value lifts the pen."""
        steps, pen = "", "M"
        for x, y in line.points:
            steps += "" if y is None else f"{pen}{self.at_x(x):.1f} {self.at_y(y):.1f}"
            pen = "M" if y is None else "L"
        return steps


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
