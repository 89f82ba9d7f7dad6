"""Line charts as small SVG fragments: text stays text, colours come from the page's CSS, nothing is loaded."""

from __future__ import annotations

import colorsys
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

Point = tuple[float, float | None]
LETTER = 7.0  # width of an average character of 13 px text
DOT = Markup('<circle class="dot" style="--h:{:.0f}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}: {:.4g}</title></circle>')
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
    """

    name: str
    hue: float
    points: Sequence[Point]
    marks: bool = False
    dash: str = ""


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
    title: str = field(default="")


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
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        axes.width, axes.height, label, _drawn(lines, axes)
    )


def drawing(charts: Sequence[tuple[Sequence[Line], Axes]]) -> str:
    """The text of an SVG file: charts side by side, and below each the names of its lines."""
    body, left, height = "", 0, 0
    for lines, axes in charts:
        body += f'<g transform="translate({left})">{_drawn(lines, axes)}'
        for y, line in enumerate(lines, 1):
            name = _text(50, axes.height + 16 * y, line.name, "start", "")
            body += f'<g class="name" style="--h:{line.hue:.0f}">{name}</g>'
        body += "</g>"
        left, height = left + axes.width, max(height, axes.height + 16 * (len(lines) + 1))
    body = re.sub(r'class="(line|dot|name)" style="--h:(\d+)"', _fixed_colour, body)
    size = f'width="{left}" height="{height}" viewBox="0 0 {left} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{FILE_STYLE}</style>{body}</svg>\n'


def _fixed_colour(found: re.Match[str]) -> str:
    """The colour of a light page, written out: few viewers of files know CSS variables."""
    rgb = colorsys.hls_to_rgb(int(found[2]) / 360, 0.42, 0.62)
    colour = "#" + "".join(f"{round(255 * value):02x}" for value in rgb)
    return f'class="{found[1]}" style="{"stroke" if found[1] == "line" else "fill"}:{colour}"'


def _drawn(lines: Sequence[Line], axes: Axes) -> Markup:
    points = [(x, y) for line in lines for x, y in line.points if y is not None]
    xs = [x for x, _ in points] + [edge for start, end, _ in axes.bands for edge in (start, end)] or [0.0, 1.0]
    if axes.labels:
        xs = [-0.4, len(axes.labels) - 0.6]
    frame = _Frame(axes, (min(xs), max(xs)), _y_range([y for _, y in points], axes.y_range))
    body = [*_bands(frame), *_grid(frame), *(part for line in lines for part in _curve(frame, line))]
    return Markup("").join(body)


class _Frame:
    """Maps data to the drawing area."""

    def __init__(self, axes: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.axes, self.x, self.y = axes, x if x[1] > x[0] else (x[0], x[0] + 1), y
        widest = max(len(_short(value)) for value in ticks(*self.y, count=_y_count(axes)))
        self.left, self.right = 30 + LETTER * widest, axes.width - 16
        self.top, self.bottom = (26 if axes.bands else 12), axes.height - 40

    def at_x(self, value: float) -> float:
        return self.left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def at_y(self, value: float) -> float:
        share = (value - self.y[0]) / (self.y[1] - self.y[0])
        return self.bottom - min(1.0, max(0.0, share)) * (self.bottom - self.top)


def _y_range(values: Sequence[float], given: tuple[float, float] | None) -> tuple[float, float]:
    if given:
        return given
    low, high = min([0.0, *values]), max([0.0, *values])
    return (low * 1.05, high * 1.05) if high > low else (low, low + 1)


def _y_count(axes: Axes) -> int:
    return 5 if axes.height > 200 else 3


def _bands(frame: _Frame) -> list[Markup]:
    parts = []
    for number, (start, end, label) in enumerate(frame.axes.bands):
        x0, x1 = frame.at_x(start), frame.at_x(end)
        parts.append(
            Markup('<rect class="band{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>').format(
                number % 2, x0, frame.top, x1 - x0, frame.bottom - frame.top
            )
        )
        room = (x1 - x0) / LETTER
        text = label if len(label) <= room else label.split()[0] if len(label.split()[0]) <= room else ""
        parts.append(_text((x0 + x1) / 2, frame.top - 8, text, "middle"))
    return parts


def _grid(frame: _Frame) -> list[Markup]:
    axes, parts = frame.axes, []
    for value in ticks(*frame.y, count=_y_count(axes)):
        y = frame.at_y(value)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(frame.left, y, frame.right))
        parts.append(_text(frame.left - 6, y + 4, _short(value), "end"))
    every = max(
        1,
        math.ceil(
            len(axes.labels) * (max(map(len, axes.labels), default=1) + 1.5) * LETTER / (frame.right - frame.left)
        ),
    )
    named = [(float(i), name) for i, name in enumerate(axes.labels) if i % every == 0]
    for value, name in named or [(v, _short(v)) for v in ticks(*frame.x, count=5 if axes.width > 300 else 4)]:
        x = frame.at_x(value)
        parts.append(Markup('<path class="axis" d="M{:.1f} {}v4"/>').format(x, frame.bottom))
        parts.append(_text(x, frame.bottom + 17, name, "middle"))
    parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(frame.left, frame.bottom, frame.right))
    parts.append(_text((frame.left + frame.right) / 2, axes.height - 5, axes.x, "middle", "label"))
    middle = (frame.top + frame.bottom) / 2
    parts.append(
        Markup(
            '<text class="label" text-anchor="middle" transform="translate(12 {:.1f}) rotate(-90)">{}</text>'
        ).format(middle, axes.y)
    )
    return parts


def _curve(frame: _Frame, line: Line) -> list[Markup]:
    path, pen = [], "M"
    for x, y in line.points:
        if y is None:
            pen = "M"
            continue
        path.append(f"{pen}{frame.at_x(x):.1f} {frame.at_y(y):.1f}")
        pen = "L"
    dash = Markup(' stroke-dasharray="{}"').format(line.dash) if line.dash else ""
    parts = [Markup('<path class="line" style="--h:{:.0f}"{} d="{}"/>').format(line.hue, dash, "".join(path))]
    if line.marks:
        parts += [
            DOT.format(line.hue, frame.at_x(x), frame.at_y(y), line.name, y) for x, y in line.points if y is not None
        ]
    return parts


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(text)
    )


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
