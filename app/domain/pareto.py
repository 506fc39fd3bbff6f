"""Pareto fronts: which points no other point beats on every axis."""

from __future__ import annotations

import itertools
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


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Return the volume dominated by `points` up to `reference`, for any number of axes (all minimised).

    The last axis is cut into slabs, each as large as the lower-dimensional volume of the points below it.
    """
    inside = [point for point in points if all(x < limit for x, limit in zip(point, reference, strict=True))]
    inside = [inside[index] for index in front(inside)]
    if len(reference) == 1:
        return max((reference[0] - point[0] for point in inside), default=0.0)
    cuts = sorted({point[-1] for point in inside})
    volume = 0.0
    for low, high in itertools.pairwise([*cuts, reference[-1]]):
        below = [point[:-1] for point in inside if point[-1] <= low]
        volume += (high - low) * hypervolume(below, reference[:-1])
    return volume
