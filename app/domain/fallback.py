"""Operations whose time is a guess: the device's host runs them, or no kernel like theirs was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.kernels import kernels_by_operation
from app.domain.space import Assignment, widest


def fallen_back(graph: ModelGraph, device: DeviceProfile, assignment: Assignment | None = None) -> tuple[str, ...]:
    """Return the layers and steps, in execution order, that fall back under an assignment (None: everything at 8 bits).

    An operation falls back when the profile says that a host runs its kind, or when the profile's latency table has no
    measured kernel of its class, so that the mean of others stands in.
    """
    table, hosted = device.table, device.fallback.ops
    works = {} if table is None else kernels_by_operation(graph, assignment or widest(graph, 8))
    return tuple(
        item.name
        for item in sorted(graph.ops, key=lambda item: item.step)
        if item.kind in hosted
        or (table is not None and not all(table.covers(work) for work in works.get(item.name, ())))
    )


def cautions(is_stale: bool, names: Sequence[str], noted: Sequence[str] = ()) -> dict[str, Any]:
    """Return what figures can't be trusted in, as JSON: `warnings`, and the operations whose time is a guess.

    profile-stale: what was measured with the profile lies far from what it says. latency-fallback: some fall back.
    `noted` are warnings that were found elsewhere.
    """
    held = (("profile-stale", is_stale), ("latency-fallback", bool(names)))
    return {"warnings": [name for name, holds in held if holds] + list(noted), "fallback_operations": list(names)}
