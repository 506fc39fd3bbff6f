"""Budgets: limits on what an assignment may cost, by how much one is broken, and whether any assignment can keep it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.domain.cost import METRICS, Costs, reference_costs
from app.domain.device import DeviceProfile, Evidence
from app.domain.floor import least
from app.domain.graph import ModelGraph
from app.domain.nearest import nearest
from app.domain.space import SearchSpace, widest

Origin = Literal["request", "device"]


@dataclass(frozen=True)
class Limit:
    """An upper bound on one metric: absolute (`max`), or relative to a reference network of the same graph."""

    metric: str
    max: float | None = None
    relative: float | None = None
    relative_to: Literal["w8a8", "float"] = "w8a8"


@dataclass(frozen=True)
class Budget:
    """Absolute limits by metric, in the metric's unit."""

    limits: Mapping[str, float]

    def violation(self, costs: Costs) -> float:
        """Return the sum over limits of the relative excess (0 when every limit is kept)."""
        return sum(self.violations(costs).values())

    def violations(self, costs: Costs) -> dict[str, float]:
        """Return by metric the relative excess max(0, value / limit - 1)."""
        return {
            metric: max(0.0, (costs.value(metric) - limit) / max(limit, 1e-12)) for metric, limit in self.limits.items()
        }

    def is_met(self, costs: Costs) -> bool:
        """Tell whether every limit is kept."""
        return all(costs.value(metric) <= limit for metric, limit in self.limits.items())


@dataclass(frozen=True)
class BudgetRow:
    """One line of the budget table: limit, value, slack = limit - value, and the evidence behind the value.

    `origin` tells whether the request asks for the limit or the device has no more room.
    """

    metric: str
    limit: float
    value: float
    evidence: Evidence
    met: bool
    origin: Origin = "request"
    latency: Mapping[str, Any] | None = None

    @property
    def slack(self) -> float:
        """Return how much of the limit is left (negative when broken)."""
        return self.limit - self.value

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON."""
        return {
            "metric": self.metric,
            "limit": self.limit,
            "value": self.value,
            "slack": self.slack,
            "evidence": self.evidence,
            "met": self.met,
            "origin": self.origin,
            **({} if self.latency is None else {"latency": dict(self.latency)}),
        }


@dataclass(frozen=True)
class Reach:
    """The smallest value each limited metric can reach, and which limits lie below it.

    `conflicting` names limits that can each be kept, but provably not together. `nearest` are limits that an assignment
    is known to keep, at least those asked for: None where nothing had to be looked for.
    """

    smallest: Mapping[str, float]
    unreachable: tuple[str, ...]
    conflicting: tuple[str, ...] = ()
    nearest: Mapping[str, float] | None = None

    @property
    def feasible(self) -> bool:
        """Tell whether nothing proves that the limits can't be kept."""
        return not self.binding

    @property
    def binding(self) -> tuple[str, ...]:
        """Return the limits that can't be kept: alone, or else together."""
        return self.unreachable or self.conflicting


def capacities(device: DeviceProfile) -> dict[str, float]:
    """Return the limits that a device sets by itself, in bytes by metric: the room in its pools."""
    rooms = {"peak_activation_bytes": device.activation_pool.bytes, "weight_bytes": device.weight_store.bytes}
    return {metric: float(room) for metric, room in rooms.items() if room is not None}


def resolve(limits: tuple[Limit, ...], graph: ModelGraph, device: DeviceProfile) -> Budget:
    """Turn limits into absolute figures, and add the device's own capacities. The tightest limit on a metric counts."""
    references = reference_costs(graph, device, {"w8a8": widest(graph, 8), "float": widest(graph, 32)})
    return resolved(limits, references, device)


def resolved(limits: tuple[Limit, ...], references: Mapping[str, Costs], device: DeviceProfile) -> Budget:
    """Return what `resolve` does, given the costs of the reference networks "w8a8" and "float"."""
    absolute: dict[str, float] = {}
    for limit in limits:
        value = _absolute(limit, references)
        absolute[limit.metric] = min(value, absolute.get(limit.metric, value))
    for metric, room in capacities(device).items():
        absolute[metric] = min(room, absolute.get(metric, room))
    return Budget(absolute)


def origin(metric: str, limit: float, device: DeviceProfile) -> Origin:
    """Tell whether a resolved limit is the device's own."""
    return "device" if capacities(device).get(metric) == limit else "request"


def reach(
    graph: ModelGraph, space: SearchSpace, device: DeviceProfile, budget: Budget, free: tuple[str, ...] = ()
) -> Reach:
    """Return a bound below what each limited metric can reach, and the limits that can't be kept, alone or together.

    Limits on `free` metrics are no ground to refuse anything.
    """
    floor = least(graph, space, device)
    smallest = {metric: floor.value(metric) for metric in budget.limits}
    asked = {metric: limit for metric, limit in budget.limits.items() if metric not in free}
    broken = tuple(metric for metric, limit in asked.items() if smallest[metric] > limit)
    found = nearest(graph, space, device, asked)
    if not broken and found.excess <= 0:
        return Reach(smallest, ())
    near = {m: max(limit, found.costs.value(m)) if m in asked else limit for m, limit in budget.limits.items()}
    return Reach(smallest, broken, () if broken else found.conflicting, near)


def counted_evidence(device: DeviceProfile) -> dict[str, Evidence]:
    """Return the evidence behind each metric as it is counted: times from a latency table are interpolated."""
    timed: Evidence = "modelled" if device.table is None else "interpolated"
    return {metric: timed if metric in ("latency_ms", "energy_mj") else "modelled" for metric in METRICS}


def table(
    budget: Budget,
    values: Mapping[str, float],
    evidence: Mapping[str, Evidence],
    device: DeviceProfile | None = None,
) -> tuple[BudgetRow, ...]:
    """Return the budget table for values counted or measured elsewhere (default evidence: modelled).

    With a `device`, rows tell whether the limit is its own, and evidence not given is that of its counted figures.
    """
    found = {**({} if device is None else counted_evidence(device)), **evidence}
    return tuple(
        BudgetRow(
            metric,
            limit,
            values[metric],
            found.get(metric, "modelled"),
            values[metric] <= limit,
            origin(metric, limit, device) if device else "request",
        )
        for metric, limit in budget.limits.items()
    )


def with_measured(rows: tuple[BudgetRow, ...], found: Mapping[str, Any] | None) -> tuple[BudgetRow, ...]:
    """Return a budget table whose latency row says what a limit that demands measurement came to.

    `found` holds value_ms, limit_ms, met, and under `measured` the figures: min_ms, median_ms, p95_ms, runs.
    """
    if found is None:
        return rows
    measured = BudgetRow(
        "latency_ms", found["limit_ms"], found["value_ms"], "measured", found["met"], "request", found["measured"]
    )
    return tuple(measured if row.metric == "latency_ms" else row for row in rows)


def _absolute(limit: Limit, references: Mapping[str, Costs]) -> float:
    if limit.relative is None:
        assert limit.max is not None, "a limit is absolute or relative"
        return limit.max
    scaled = limit.relative * references[limit.relative_to].value(limit.metric)
    return scaled if limit.max is None else min(limit.max, scaled)
