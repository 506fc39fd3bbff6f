"""Sensitivities: what one change alone costs in loss, measured by probes and kept as an additive table.

A probe changes one thing of a reference network (full width, the widest legal bits) and is measured after repair by
its KL divergence to the float outputs: of the proxies compared, the one that ranks assignments best without labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import isotonic_regression

from app.domain.graph import ModelGraph
from app.domain.space import Assignment, SearchSpace

Kind = Literal["base", "keep", "weight", "activation"]
KINDS: tuple[Kind, ...] = ("keep", "weight", "activation")
Curve = Mapping[int, float]


@dataclass(frozen=True)
class Probe:
    """One measurement to make: `name` (group, layer or activation) set to `value`, all else as in the reference."""

    kind: Kind
    name: str
    value: int
    assignment: Assignment

    @property
    def key(self) -> str:
        """Name the probe uniquely within its search."""
        return f"{self.kind}:{self.name}:{self.value}"


def reference(graph: ModelGraph, space: SearchSpace) -> Assignment:
    """Return the assignment that probes start from: full width, the most bits that make legal pairs.

    Activations are widened first; where the widest weights are then illegal, the layer takes the widest legal ones.
    """
    activations = {item.id: space.activation_bits[item.id][0] for item in graph.activations}
    weights = {}
    for layer in graph.layers:
        options = space.weight_bits[layer.name]
        legal = [w for w in options if (w, activations[layer.input]) in space.pairs[layer.name]]
        weights[layer.name] = (legal or options)[0]
    return Assignment({group.id: space.keep[group.id][0] for group in graph.groups}, weights, activations)


def probes(graph: ModelGraph, space: SearchSpace, max_probes: int | None = None) -> list[Probe]:
    """Return the reference probe, then one probe per change of one choice.

    With `max_probes` the list is thinned evenly: each dimension keeps its cheapest level first, then its middle, then
    the quarters; the table interpolates what is left out. The order is that of the layers the probes change first, so
    that an evaluator goes through what comes before them once.
    """
    base, steps = reference(graph, space), _first_steps(graph)
    ranked = [
        (rank, order, Probe(kind, name, value, _changed(base, kind, name, value)))
        for order, (kind, name, choices) in enumerate(dimensions(space))
        for rank, value in enumerate(_by_priority([value for value in choices if value != part_of(base, kind)[name]]))
    ]
    ranked.sort(key=lambda item: item[:2])
    kept = ranked if max_probes is None else ranked[: max(0, max_probes - 1)]
    kept.sort(key=lambda item: (steps[item[2].kind, item[2].name], item[1], -item[2].value))
    return [Probe("base", "", 0, base), *(probe for _, _, probe in kept)]


@dataclass(frozen=True)
class SensitivityTable:
    """Additive model of the loss: `base` plus one increment per choice, by kind, name and value (never negative)."""

    base: float
    curves: Mapping[str, Mapping[str, Curve]]

    def loss(self, assignment: Assignment) -> float:
        """Return the predicted loss (KL in nats) of an assignment."""
        return self.base + sum(self.increment(*item) for item in _items(assignment))

    def increment(self, kind: str, name: str, value: int) -> float:
        """Return what one choice adds to the loss; 0 for a choice the table does not know (the float baseline)."""
        return self.curves[kind].get(name, {}).get(value, 0.0)

    def spread(self, kind: str, name: str) -> float:
        """Return the largest increment of one dimension: how much it can matter."""
        return max(self.curves[kind].get(name, {}).values(), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON (values as text keys)."""
        curves = {
            kind: {name: {str(value): loss for value, loss in curve.items()} for name, curve in by_name.items()}
            for kind, by_name in self.curves.items()
        }
        return {"base": self.base, "curves": curves}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SensitivityTable:
        """Rebuild what `to_json` wrote."""
        curves = {
            kind: {name: {int(value): loss for value, loss in curve.items()} for name, curve in by_name.items()}
            for kind, by_name in data["curves"].items()
        }
        return cls(data["base"], curves)


def build_table(
    graph: ModelGraph, space: SearchSpace, measured: Mapping[str, float | None], max_probes: int | None = None
) -> SensitivityTable:
    """Return the table of measured probes: `measured` maps `Probe.key` to the loss (None: the probe failed).

    Losses are made monotone (more compression never costs less), missing levels are interpolated in the square root of
    the loss, and a dimension without any measurement takes the median of its kind.
    """
    known: dict[tuple[str, str], dict[int, float]] = {}
    base_loss = measured.get("base::0") or 0.0
    for probe in probes(graph, space, max_probes)[1:]:
        loss = measured.get(probe.key)
        if loss is not None and np.isfinite(loss):
            known.setdefault((probe.kind, probe.name), {})[probe.value] = max(0.0, loss - base_loss)
    base = reference(graph, space)
    curves: dict[str, dict[str, Curve]] = {kind: {} for kind in KINDS}
    for kind, name, choices in dimensions(space):
        points = {part_of(base, kind)[name]: 0.0, **known.get((kind, name), {})}
        if len(points) == 1 and len(choices) > 1:
            points |= _typical(kind, choices, known)
        curves[kind][name] = monotone(choices, _interpolated(choices, points))
    return SensitivityTable(base_loss, curves)


def monotone(choices: Sequence[int], losses: Sequence[float]) -> dict[int, float]:
    """Return the isotonic regression of `losses` over `choices` given from the largest down, shifted to start at 0."""
    fitted = isotonic_regression(np.asarray(losses, dtype=float)).x
    return {choice: float(max(0.0, value - fitted[0])) for choice, value in zip(choices, fitted, strict=True)}


def _interpolated(choices: Sequence[int], points: Mapping[int, float]) -> list[float]:
    """Fill missing levels: the root of a KL divergence grows about linearly with the size of a perturbation."""
    values = np.array(sorted(points), dtype=float)
    roots = np.sqrt([points[int(value)] for value in values])
    return [float(root**2) for root in np.interp(np.array(choices, dtype=float), values, roots)]


def _typical(
    kind: str, choices: Sequence[int], known: Mapping[tuple[str, str], Mapping[int, float]]
) -> dict[int, float]:
    """Return the median worst loss of the same kind's measured dimensions, put at the cheapest level."""
    worst = [max(curve.values()) for (other, _), curve in known.items() if other == kind and curve]
    return {choices[-1]: float(np.median(worst)) if worst else 0.0}


def dimensions(space: SearchSpace) -> Iterator[tuple[Kind, str, tuple[int, ...]]]:
    """Return every choice to be made: its kind, its name and its options from the largest down."""
    for kind, options in zip(KINDS, (space.keep, space.weight_bits, space.activation_bits), strict=True):
        for name, choices in options.items():
            yield kind, name, choices


def _items(assignment: Assignment) -> Iterator[tuple[Kind, str, int]]:
    for kind in KINDS:
        for name, value in part_of(assignment, kind).items():
            yield kind, name, value


def part_of(assignment: Assignment, kind: str) -> Mapping[str, int]:
    """Return what an assignment chooses of one kind, by name."""
    if kind == "keep":
        return assignment.keep
    return assignment.weight_bits if kind == "weight" else assignment.activation_bits


def _changed(base: Assignment, kind: Kind, name: str, value: int) -> Assignment:
    return Assignment(
        keep={**base.keep, name: value} if kind == "keep" else base.keep,
        weight_bits={**base.weight_bits, name: value} if kind == "weight" else base.weight_bits,
        activation_bits={**base.activation_bits, name: value} if kind == "activation" else base.activation_bits,
    )


def _first_steps(graph: ModelGraph) -> dict[tuple[str, str], int]:
    """Return by choice (kind, name) the step of the first layer it has a say in."""
    found = {("weight", layer.name): layer.step for layer in graph.layers}
    found |= {("activation", item.id): item.first_step for item in graph.activations}
    for group in graph.groups:
        members = {*group.producers, *group.consumers}
        found["keep", group.id] = min((layer.step for layer in graph.layers if layer.name in members), default=0)
    return found


def _by_priority(levels: list[int]) -> list[int]:
    """Order levels (largest first) by worth: the cheapest, then the middles of what lies between."""
    if not levels:
        return []
    order, spans = [levels[-1]], [levels[:-1]]
    while spans:
        span = spans.pop(0)
        if span:
            middle = len(span) // 2
            order.append(span[middle])
            spans += [span[:middle], span[middle + 1 :]]
    return order
