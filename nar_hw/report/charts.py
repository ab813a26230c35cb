"""Geometry of the charts: numbers in, coordinates out. The template turns a `Chart` into inline SVG and does nothing else.

Coordinates are pixels of the chart's viewBox, y downwards.
"""

import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH = 460.0
"""Narrow, so that the labels stay readable when a phone scales the chart down."""
LEFT, RIGHT, TOP, BOTTOM = 52.0, 16.0, 38.0, 46.0
DIGIT = 6.5
"""Width of a character of a tick's label, at most."""
MANY = 5_000
"""Points of a cloud from which on it is drawn in whole pixels."""


class Point(NamedTuple):
    """A value to draw, with the text shown when it is pointed at."""

    x: float
    y: float
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that share a look."""

    label: str
    points: tuple[Point, ...]
    kind: str
    """CSS class of its colour."""
    shape: str | None = "circle"
    """Of the marks: dot, circle, diamond, star; cloud for many points in one path, without titles; None for no marks."""
    line: bool = False
    legend: bool = True


@dataclass(frozen=True, kw_only=True)
class Guide:
    """A straight reference line between two points in data units."""

    start: tuple[float, float]
    end: tuple[float, float]
    kind: str
    label: str = ""
    """Written at the end, outside the plotted area where the end is its upper edge."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One drawn point."""

    x: float
    y: float
    shape: str
    kind: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """One drawn line; ``points`` as SVG wants them."""

    points: str
    kind: str
    label: str = ""
    x: float = 0.0
    y: float = 0.0
    anchor: str = "start"


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Everything that the template needs to draw one chart."""

    name: str
    title: str
    summary: str
    """What the chart shows, in words, for who cannot see it."""
    x_label: str
    y_label: str
    height: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    guides: tuple[Line, ...]
    lines: tuple[Line, ...]
    clouds: tuple[Line, ...]
    marks: tuple[Mark, ...]
    legend: tuple[Series, ...]
    note: str = ""
    """What the legend does not say."""
    tips: bool = False
    """Show the title of a mark beside it when it is pointed at or has the focus; for charts of a few points."""
    width: float = WIDTH
    left: float
    """LEFT, or what the labels of the y axis need."""
    top: float = TOP

    @property
    def right(self) -> float:
        """The right edge of the plotted area."""
        return self.width - RIGHT

    @property
    def bottom(self) -> float:
        """The lower edge of the plotted area."""
        return self.height - BOTTOM


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers that cover [low, high]: steps of 1, 2 or 5 times a power of ten."""
    if not math.isfinite(high - low):
        raise ValueError(f"an axis needs finite limits, but got [{low}, {high}]")
    if high - low <= max(1e-9 * max(abs(low), abs(high)), sys.float_info.min):
        margin = abs(low) * 0.05 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= 0.75 * raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """``values`` with as many decimals as their step needs."""
    step = min((b - a for a, b in itertools.pairwise(values)), default=abs(values[0]) or 1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals > 6 or max(map(abs, values)) >= 1e6:
        return [f"{value:.3g}" for value in values]
    return [f"{value:.{decimals}f}" for value in values]


def chart(
    name: str,
    title: str,
    summary: str,
    series: Iterable[Series],
    *,
    x_label: str,
    y_label: str,
    guides: Iterable[Guide] = (),
    note: str = "",
    height: float = 300.0,
    square: bool = False,
    whole_x: bool = False,
    tips: bool = False,
) -> Chart:
    """Lay out a chart of ``series``, which must hold at least one point.

    Args:
        name: unique on the page; becomes the id of the chart.
        title: heading. summary: the chart in words.
        series: drawn in order, the last on top.
        x_label, y_label: quantity and unit of the axes.
        guides: reference lines; they widen the axes where they reach further than the points.
        note: shown below the legend.
        height: of the viewBox in pixels.
        square: both axes get the same range.
        whole_x: the x axis counts (epochs): no fractions on it.
        tips: see `Chart.tips`.
    """
    series = [item for item in series if item.points]
    guides = list(guides)
    ends = [end for guide in guides for end in (guide.start, guide.end)]
    xs = [point.x for item in series for point in item.points] + [x for x, _ in ends if math.isfinite(x)]
    ys = [point.y for item in series for point in item.points] + [y for _, y in ends if math.isfinite(y)]
    if square:
        xs = ys = xs + ys
    x_values = nice_ticks(min(xs), max(xs), 6)
    y_values = x_values if square else nice_ticks(min(ys), max(ys), 5)
    x_range, y_range = (x_values[0], x_values[-1]), (y_values[0], y_values[-1])
    if whole_x:
        first, last = math.floor(min(xs)), math.ceil(max(xs))
        x_range = (float(first), float(max(last, first + 1)))
        x_values = sorted({float(round(value)) for value in x_values if first <= round(value) <= x_range[1]} | {x_range[0]})

    y_labels = tick_labels(y_values)
    left = max(LEFT, 12 + DIGIT * max(map(len, y_labels)))

    def place_x(value: float) -> float:
        return round(left + _share(value, x_range) * (WIDTH - left - RIGHT), 2)

    def place_y(value: float) -> float:
        return round(height - BOTTOM - _share(value, y_range) * (height - BOTTOM - TOP), 2)

    def path(points: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{place_x(x):g},{place_y(y):g}" for x, y in points)

    def cloud(points: Iterable[Point]) -> str:
        # Points that nobody can tell apart are drawn once: in half pixels, of many in whole ones.
        points = list(points)
        grain = 2 if len(points) < MANY else 1
        places = dict.fromkeys(
            (round(grain * place_x(point.x)) / grain, round(grain * place_y(point.y)) / grain) for point in points
        )
        return "".join(f"M{x:g} {y:g}h0" for x, y in places)

    def guide_line(guide: Guide) -> Line:
        x, y = place_x(guide.end[0]), place_y(guide.end[1])
        room = x > left + 110
        return Line(
            points=path((guide.start, guide.end)),
            kind=guide.kind,
            label=guide.label,
            x=x - 5 if room else x + 5,
            y=y - 6,
            anchor="end" if room else "start",
        )

    return Chart(
        name=name,
        title=title,
        summary=summary,
        x_label=x_label,
        y_label=y_label,
        height=height,
        x_ticks=tuple(Tick(at=place_x(v), label=t) for v, t in zip(x_values, tick_labels(x_values), strict=True)),
        y_ticks=tuple(Tick(at=place_y(v), label=t) for v, t in zip(y_values, y_labels, strict=True)),
        guides=tuple(map(guide_line, guides)),
        lines=tuple(
            Line(points=path((point.x, point.y) for point in item.points), kind=item.kind) for item in series if item.line
        ),
        clouds=tuple(Line(points=cloud(item.points), kind=item.kind) for item in series if item.shape == "cloud"),
        marks=tuple(
            Mark(x=place_x(point.x), y=place_y(point.y), shape=str(item.shape), kind=item.kind, title=point.title)
            for item in series
            if item.shape not in (None, "cloud")
            for point in item.points
        ),
        legend=tuple(item for item in series if item.legend),
        note=note,
        tips=tips,
        left=left,
    )


def _share(value: float, limits: tuple[float, float]) -> float:
    """Where ``value`` lies between ``limits``, from 0 to 1; outside, infinity included, at the nearer end."""
    return min(max((value - limits[0]) / (limits[1] - limits[0]), 0.0), 1.0)


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The centred moving mean over ``window`` values (fewer at the ends)."""
    half = window // 2
    means = []
    for index in range(len(values)):
        near = values[max(0, index - half) : index + half + 1]
        means.append(sum(near) / len(near))
    return means
