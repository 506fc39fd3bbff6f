"""Several series over one time axis as SVG text: a strip for each, from zero to its own largest value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, STRIP, GAP, LEFT, RIGHT, TOP = 760, 56, 22, 150, 70, 40


@dataclass(frozen=True)
class Strip:
    """A series: its title, and points (x, y) in the order of x."""

    title: str
    points: Sequence[tuple[float, float]]


def strips(title: str, series: Sequence[Strip]) -> str:
    """Return the SVG text of a figure."""
    height = TOP + (STRIP + GAP) * len(series) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="{escape(title)}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-weight="bold" fill="#1f2933">{escape(title)}</text>',
    ]
    for index, item in enumerate(series):
        parts += _strip(item, TOP + (STRIP + GAP) * index)
    return "\n".join([*parts, "</svg>", ""])


def _strip(item: Strip, top: float) -> list[str]:
    most = max(y for _, y in item.points) or 1.0
    end = item.points[-1][0] or 1.0
    path = " ".join(
        f"{'L' if number else 'M'}{LEFT + x / end * (WIDTH - LEFT - RIGHT):.1f} {top + STRIP * (1 - y / most):.1f}"
        for number, (x, y) in enumerate(item.points)
    )
    return [
        f'<path d="M{LEFT} {top + STRIP}H{WIDTH - RIGHT}" stroke="#c9ced6"/>',
        f'<path d="{path}" fill="none" stroke="#0b5fff" stroke-width="1.5"/>',
        f'<text x="{LEFT - 8}" y="{top + STRIP}" text-anchor="end" fill="#1f2933">{escape(item.title)}</text>',
        f'<text x="{WIDTH - RIGHT + 6}" y="{top + 10}" fill="#1f2933">{most:.0f}</text>',
    ]
