"""Draws one SVG per load: latency by percentile, a line per system.

The horizontal axis is that of HdrHistogram's plotters: every further nine takes the same width. The vertical axis is
logarithmic if the latencies span decades, and linear from 0 otherwise, so that heights compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from figures import Row

# More lines cannot be told apart.
LINES_MAX = 8
# Range of the horizontal axis, in nines: at least to 99.99 %, at most to 99.9999 %.
NINES_MIN, NINES_MAX = 4, 6
# The axis is logarithmic if the highest latency is this multiple of the lowest median.
LOG_SPAN_MIN = 30.0
# A logarithmic axis starts at most this factor below the lowest median; smaller latencies are drawn at its foot.
BELOW_MEDIAN_MAX = 10.0
# Grid lines of a linear axis, at most.
STEPS_MAX = 8
# Size and plot area, in pixels. The legend is below the plot, so that it covers no line.
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 960, 80, 920, 56, 452
LEGEND_TOP, LEGEND_ROW, LEGEND_COLUMNS = 512, 20, 2
# The palette of Okabe and Ito, distinguishable with colour blindness. Without its yellow, which is too light on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7f7f7f")


@dataclass(frozen=True)
class Line:
    """A line of a plot: quantiles (below 1) and milliseconds, both ascending."""

    name: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """The vertical axis: range and grid lines in milliseconds."""

    low_ms: float
    high_ms: float
    grid_ms: tuple[float, ...]
    is_log: bool

    def y(self, ms: float) -> float:
        """Height of a latency, in pixels from the top."""
        if self.is_log:
            share = math.log(max(ms, self.low_ms) / self.low_ms) / math.log(self.high_ms / self.low_ms)
        else:
            share = ms / self.high_ms
        return BOTTOM - (BOTTOM - TOP) * share


def nines(quantile: float) -> float:
    """Number of nines: 1 for 0.9."""
    return -math.log10(1.0 - quantile)


def axis_of(lines: list[Line]) -> Axis:
    """The axis on which all lines fit."""
    highest = max((ms for line in lines for _, ms in line.points), default=0.0)
    medians = [ms for line in lines for ms in [median_ms(line)] if ms > 0]
    if medians and highest / min(medians) >= LOG_SPAN_MIN:
        lowest = min(ms for line in lines for _, ms in line.points if ms > 0)
        return log_axis(max(lowest, min(medians) / BELOW_MEDIAN_MAX), highest)
    return linear_axis(highest)


def median_ms(line: Line) -> float:
    """Latency at the median; 0 if the line has no points."""
    return next((ms for quantile, ms in line.points if quantile >= 0.5), 0.0)


def log_axis(lowest: float, highest: float) -> Axis:
    """Grid lines at 1, 2 and 5 times the powers of ten, from the last below the range to the first above it."""
    decades = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    ticks = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    first = max(at for at, ms in enumerate(ticks) if ms <= lowest)
    last = max(min(at for at, ms in enumerate(ticks) if ms >= highest), first + 1)
    return Axis(ticks[first], ticks[last], tuple(ticks[first:last + 1]), is_log=True)


def linear_axis(highest: float) -> Axis:
    """From 0, with a step of 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return Axis(0.0, 1.0, (0.0, 1.0), is_log=False)
    decade = 10.0 ** math.floor(math.log10(highest / STEPS_MAX))
    step = next(factor * decade for factor in (1, 2, 5, 10) if highest / (factor * decade) <= STEPS_MAX)
    steps = math.ceil(highest / step)
    return Axis(0.0, steps * step, tuple(at * step for at in range(steps + 1)), is_log=False)


def render(title: str, lines: list[Line]) -> str:
    """The SVG text of a plot."""
    axis = axis_of(lines)
    most_nines = max((nines(quantile) for line in lines for quantile, _ in line.points), default=0.0)
    # A hundredth of a nine is rounding.
    width_nines = min(max(math.ceil(most_nines - 0.01), NINES_MIN), NINES_MAX)
    height = LEGEND_TOP + LEGEND_ROW * math.ceil(len(lines) / LEGEND_COLUMNS) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#222">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="32" font-size="17" font-weight="bold">{escape(title)}</text>',
        *vertical_axis(axis),
        *horizontal_axis(width_nines),
    ]
    for line, colour in zip(lines, COLOURS):
        parts.append(polyline(line, colour, axis, width_nines))
    parts += legend(lines)
    return "\n".join([*parts, "</svg>\n"])


def vertical_axis(axis: Axis) -> list[str]:
    """Horizontal grid lines with their latencies."""
    middle = (TOP + BOTTOM) / 2
    scale = "latency, ms (log scale)" if axis.is_log else "latency, ms"
    parts = [
        f'<text x="22" y="{middle}" text-anchor="middle" transform="rotate(-90 22 {middle})">{scale}</text>'
    ]
    for ms in axis.grid_ms:
        y, colour = axis.y(ms), "#222" if ms == axis.grid_ms[0] else "#ddd"
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="{colour}"/>'
            f'<text x="{LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end">{ms:.12g}</text>'
        )
    return parts


def horizontal_axis(width_nines: int) -> list[str]:
    """Vertical grid lines with their percentiles."""
    parts = [f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 40}" text-anchor="middle">percentile</text>']
    for at in range(width_nines + 1):
        x, colour = x_of(at, width_nines), "#222" if at == 0 else "#ddd"
        label = ("0 %", "90 %", "99 %")[at] if at < 3 else f"99.{'9' * (at - 2)} %"
        parts.append(
            f'<path d="M{x:.1f} {TOP}V{BOTTOM}" stroke="{colour}"/>'
            f'<text x="{x:.1f}" y="{BOTTOM + 20}" text-anchor="middle">{label}</text>'
        )
    return parts


def x_of(nines_of_point: float, width_nines: int) -> float:
    """Horizontal position of a number of nines, in pixels."""
    return LEFT + (RIGHT - LEFT) * nines_of_point / width_nines


def polyline(line: Line, colour: str, axis: Axis, width_nines: int) -> str:
    """The line, up to the last nine of the axis."""
    points = " ".join(
        f"{min(x_of(nines(quantile), width_nines), RIGHT):.1f},{axis.y(ms):.1f}"
        for quantile, ms in line.points
        if nines(quantile) <= width_nines + 0.01
    )
    return f'<polyline fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round" points="{points}"/>'


def legend(lines: list[Line]) -> list[str]:
    """Names of the lines in columns below the plot."""
    parts = []
    for at, (line, colour) in enumerate(zip(lines, COLOURS)):
        x = LEFT + (RIGHT - LEFT) // LEGEND_COLUMNS * (at % LEGEND_COLUMNS)
        y = LEGEND_TOP + LEGEND_ROW * (at // LEGEND_COLUMNS)
        parts.append(
            f'<path d="M{x} {y}h24" stroke="{colour}" stroke-width="3"/>'
            f'<text x="{x + 32}" y="{y + 4.5}">{escape(line.name)}</text>'
        )
    return parts


def draw(result: dict) -> dict[str, str]:
    """The plots of all loads with latencies, by file name."""
    pictures = {}
    for load in result["loads"]:
        rows = [Row.from_json(row) for row in load["rows"]]
        # Peers first, then as many variants of tickcast as fit: a plot without peers would compare nothing.
        rows.sort(key=lambda row: row.is_tickcast)
        lines = [Line(row.name, row.latency_curve) for row in rows if row.latency_curve][:LINES_MAX]
        if lines:
            pictures[f"{load['name']}.svg"] = render(f"{load['name']}: latency by percentile", lines)
    return pictures


def existing(folder: Path) -> list[str]:
    """Names of the plots that an earlier report left beside it."""
    return sorted(path.name for path in (folder / "plots").glob("*.svg"))
