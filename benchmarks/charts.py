"""Line charts as SVG text: a handful of series over a logarithmic axis, no library needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 56, 150, 34, 48
COLOURS = ("#0b5fff", "#d9480f", "#2b8a3e", "#862e9c", "#5c940d", "#c2255c", "#495057", "#e8a200")


@dataclass(frozen=True)
class Line:
    """One series: points (x, y, spread of y); `stepped` holds each y until the next x."""

    name: str
    points: Sequence[tuple[float, float, float]]
    stepped: bool = False


@dataclass(frozen=True)
class Axes:
    """Titles, the ticks of x (powers of two, drawn on a logarithmic scale), and the range of y in per cent."""

    title: str
    x_title: str
    y_title: str
    x_ticks: Sequence[float]
    y_range: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the picture's coordinates of a point."""
        low, high = math.log2(self.x_ticks[0]), math.log2(self.x_ticks[-1])
        across = (math.log2(x) - low) / (high - low)
        up = (y - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def chart(axes: Axes, lines: Sequence[Line]) -> str:
    """Return the SVG text of a chart."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="{escape(axes.title)}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(WIDTH / 2 - RIGHT / 2, 20, axes.title, "middle", "bold"),
        *_grid(axes),
    ]
    for index, line in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        parts += _line(axes, line, colour)
        y = TOP + 16 + 18 * index
        parts.append(f'<circle cx="{WIDTH - RIGHT + 18}" cy="{y - 4}" r="5" fill="{colour}"/>')
        parts.append(_text(WIDTH - RIGHT + 30, y, line.name))
    return "\n".join([*parts, "</svg>", ""])


def _grid(axes: Axes) -> list[str]:
    """Return the lines and labels behind the data."""
    parts, (low, high) = [], axes.y_range
    for tick in axes.x_ticks:
        x, bottom = axes.place(tick, low)
        parts.append(f'<path d="M{x:.1f} {bottom:.1f}V{TOP}" stroke="#e3e6ea"/>')
        parts.append(_text(x, bottom + 18, f"1/{round(1 / tick)}", "middle"))
    step = 10 if high - low > 30 else 5 if high - low > 12 else 1
    for value in range(math.ceil(low / step) * step, math.floor(high) + 1, step):
        x, y = axes.place(axes.x_ticks[0], value)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{WIDTH - RIGHT}" stroke="#e3e6ea"/>')
        parts.append(_text(x - 8, y + 4, str(value), "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, axes.x_title, "middle"))
    parts.append(f'<g transform="rotate(-90)">{_text(-HEIGHT / 2, 16, axes.y_title, "middle")}</g>')
    return parts


def _line(axes: Axes, line: Line, colour: str) -> list[str]:
    """Return one series: its path, its points, and a bar of the spread at each."""
    points, parts, path = sorted(line.points), [], ""
    for x, y, spread in points:
        px, py = axes.place(x, _inside(axes, y))
        path += f"H{px:.1f}V{py:.1f}" if path and line.stepped else f"{'L' if path else 'M'}{px:.1f} {py:.1f}"
        low, high = (axes.place(x, _inside(axes, y + sign * spread))[1] for sign in (-1, 1))
        if spread:
            parts.append(f'<path d="M{px:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>')
    if line.stepped and path:
        path += f"H{WIDTH - RIGHT}"
    return [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>' if path else "", *parts]


def _inside(axes: Axes, y: float) -> float:
    return min(axes.y_range[1], max(axes.y_range[0], y))


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="#1f2933">'
        f"{escape(text)}</text>"
    )
