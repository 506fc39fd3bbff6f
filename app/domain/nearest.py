"""Limits that can't be kept together: the nearest budget that can, and a proof where there is one.

For any prices on the limits, the sum over operations of the least priced cost among an operation's own choices lies
below the priced costs of every assignment (Lagrangian duality; operations taken apart can only cost less). A sum above
the priced limits therefore proves that no assignment keeps them all. Prices between 0 and 1 are the duals of the sum of
relative excesses, so that the same prices lead to the assignment that breaks the limits least.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from app.domain.cost import Costs, OpCost, count
from app.domain.device import DeviceProfile
from app.domain.floor import Choices, choices
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, SearchSpace, cheapest

PEAK = "peak_activation_bytes"
_TIMED = ("latency_ms", "energy_mj")
_ROUNDS = 24
_SURE = 1e-9


@dataclass(frozen=True)
class Nearest:
    """The assignment found to break the limits least: what it costs, its sum of relative excesses.

    `conflicting` names the limits that provably can't be kept together; empty where that is not proven.
    """

    assignment: Assignment
    costs: Costs
    excess: float
    conflicting: tuple[str, ...] = ()


def nearest(graph: ModelGraph, space: SearchSpace, device: DeviceProfile, limits: Mapping[str, float]) -> Nearest:
    """Return the assignment nearest to `limits` (by metric, absolute); ends at the first that keeps them all."""
    problem = _Problem(graph, space, device, limits)
    prices = dict.fromkeys(limits, 1.0)
    best = problem.counted(cheapest_legal(graph, space))
    proof: tuple[str, ...] = ()
    for turn in range(_ROUNDS):
        if best.excess <= 0:
            break
        if not proof and problem.below(prices) > _SURE:
            proof = problem.needed(prices)
        found = problem.counted(problem.choose(prices))
        best = min(best, found, key=lambda item: item.excess)
        for metric, limit in problem.limits.items():
            step = max(-1.0, min(1.0, found.costs.value(metric) / limit - 1))
            prices[metric] = max(0.0, min(1.0, prices[metric] + step / (1 + turn / 2)))
    return Nearest(best.assignment, best.costs, best.excess, proof if best.excess > 0 else ())


def cheapest_legal(graph: ModelGraph, space: SearchSpace) -> Assignment:
    """Return the fewest channels and activation bits, with the fewest weight bits that are legal beside them."""
    bottom = cheapest(graph, space)
    bits = {
        layer.name: min(w for w, a in space.pairs[layer.name] if a == bottom.activation_bits[layer.input])
        for layer in graph.layers
    }
    return Assignment(bottom.keep, bits, bottom.activation_bits)


class _Problem:
    def __init__(
        self, graph: ModelGraph, space: SearchSpace, device: DeviceProfile, limits: Mapping[str, float]
    ) -> None:
        self._graph, self._space, self._device = graph, space, device
        self.limits = {metric: max(limit, 1e-12) for metric, limit in limits.items()}
        self._choices: Choices = choices(graph, space, device)
        timed = () if device.table is None else _TIMED  # a table's times are not those of the choices
        self.summed = [metric for metric in limits if metric != PEAK and metric not in timed]
        self._readers: dict[str, list[int]] = {item.id: [] for item in graph.activations}
        for index, layer in enumerate(graph.layers):
            self._readers[layer.input].append(index)

    def counted(self, assignment: Assignment) -> Nearest:
        costs = count(self._graph, assignment, self._device)
        return Nearest(assignment, costs, sum(max(0.0, costs.value(m) / x - 1) for m, x in self.limits.items()))

    def below(self, prices: Mapping[str, float]) -> float:
        """Return a bound below the priced excess of every assignment."""
        fixed = self._choices.fixed_ms
        around = {"latency_ms": fixed, "energy_mj": self._choices.device.power.idle_mw * fixed * 1e-3}
        total = sum(prices[m] * (around.get(m, 0.0) / self.limits[m] - 1) for m in self.summed)
        return total + sum(min(self._priced(item, prices) for item in options) for options in self._choices.ops)

    def needed(self, prices: Mapping[str, float]) -> tuple[str, ...]:
        """Return limits that prices prove not to be kept together, without those the proof can do without."""
        left = {metric: price for metric, price in prices.items() if metric in self.summed}
        for metric in sorted(left, key=lambda metric: left[metric]):
            fewer = {**left, metric: 0.0}
            if self.below(fewer) > _SURE:
                left = fewer
        return tuple(metric for metric, price in left.items() if price > 0)

    def choose(self, prices: Mapping[str, float]) -> Assignment:
        """Return an assignment that costs little at `prices`: an activation's bits with those of its readers."""
        bottom = cheapest(self._graph, self._space)
        activations, weights = dict(bottom.activation_bits), dict(bottom.weight_bits)
        for item in self._graph.activations:
            scored = []
            for bits in self._space.activation_bits[item.id]:
                picked = [self._weight(index, bits, prices) for index in self._readers[item.id]]
                size = item.width.kept(bottom.keep) * item.positions * bits / 8
                score = sum(cost for cost, _ in picked) + self._steps(item.id, bits, prices)
                score += prices.get(PEAK, 0.0) * size / self.limits.get(PEAK, math.inf)
                scored.append((score, bits, [width for _, width in picked]))
            _, activations[item.id], widths = min(scored)
            names = [self._graph.layers[index].name for index in self._readers[item.id]]
            weights.update(zip(names, widths, strict=True))
        return Assignment(bottom.keep, weights, activations)

    def _weight(self, index: int, bits: int, prices: Mapping[str, float]) -> tuple[float, int]:
        """Return the least priced cost of a layer that reads `bits`, and the weight bits it takes."""
        options = (item for item in self._choices.layers[index] if item.input_bits == bits)
        return min((self._priced(item, prices), item.weight_bits) for item in options)

    def _steps(self, site: str, bits: int, prices: Mapping[str, float]) -> float:
        place = self._space.activation_bits[site].index(bits)
        own: Iterable[OpCost] = (
            options[place] for name, options in zip(self._choices.sites, self._choices.steps, strict=True)
            if name == site
        )  # fmt: skip
        return sum(self._priced(item, prices) for item in own)

    def _priced(self, item: OpCost, prices: Mapping[str, float]) -> float:
        return sum(prices[m] * getattr(item, m, 0) / self.limits[m] for m in self.summed if prices[m] > 0)
