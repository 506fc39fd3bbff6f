"""Pareto fronts: which points no other point beats on every axis."""

from __future__ import annotations

from collections.abc import Sequence


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Tell whether `a` is at least as small as `b` on every axis and smaller on one (minimisation)."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of the non-dominated points, sorted by the first axis; of equal points the first is kept."""
    order = sorted(range(len(points)), key=lambda index: (*points[index], index))
    kept: list[int] = []
    for index in order:
        point = points[index]
        if not any(tuple(points[k]) == tuple(point) or dominates(points[k], point) for k in kept):
            kept.append(index)
    return kept


def hypervolume_2d(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Return the area dominated by `points` up to `reference` (both axes minimised)."""
    area, right = 0.0, reference[0]
    inside = [point for point in points if point[0] < reference[0] and point[1] < reference[1]]
    for x, y in sorted((inside[index] for index in front(inside)), reverse=True):
        area += (right - x) * (reference[1] - y)
        right = x
    return area
