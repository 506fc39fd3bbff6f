"""The whole front as a search's goal: where its trials go, how much it covers, which of its points are handed on.

The budget is the outer bound. Between what each chosen cost can come down to and its limit lie targets, evenly spaced
in the cost's logarithm; every trial is allocated for one of them. A batch goes where the loss falls most from a target
to the next looser ones, for each trial that was spent there in vain. Losses count as 1 - exp(-KL): 0 for the float
network's own outputs, near 1 for noise, so that the volume a front covers needs no reference point.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from app.domain import pareto
from app.domain.budget import Budget
from app.domain.cost import Costs, count
from app.domain.floor import least
from worker.search.rows import Goal
from worker.search.sensitivity import SensitivityTable, reference
from worker.search.solver import Solver

MOST_LEVELS = {1: 12, 2: 4}
_PER_OCTAVE = 2.0
_ROOM = 1e-9


@dataclass(frozen=True)
class Span:
    """The range of one cost that a front reaches over, in the metric's unit."""

    metric: str
    low: float
    high: float

    @property
    def octaves(self) -> float:
        """Return how often the range doubles."""
        return math.log2(self.high / self.low) if self.high > self.low > 0 else 0.0

    def place(self, value: float) -> float:
        """Return where a cost lies, from 0 at the low end to 1 at the high one, evenly in its logarithm."""
        if self.octaves == 0:
            return 0.0 if value <= self.high * (1 + _ROOM) else 1.0 + value / self.high
        return max(0.0, math.log2(max(value, self.low) / self.low) / self.octaves)

    def values(self, most: int) -> list[float]:
        """Return levels from the high end down, two an octave where `most` allows."""
        steps = min(most, max(2, round(_PER_OCTAVE * self.octaves) + 1)) - 1 if self.octaves else 0
        return [self.high * 2 ** (-self.octaves * step / max(1, steps)) for step in range(steps + 1)]


@dataclass(frozen=True)
class Tried:
    """One finished trial: its loss (KL in nats; infinite: failed), costs, and the target it was allocated for."""

    loss: float
    costs: Costs
    target: int | None = None


class Frontier:
    """The targets of a search for a front; target 0 is the whole budget, those that follow spread ever finer."""

    def __init__(self, budget: Budget, spans: Sequence[Span]) -> None:
        self.spans = tuple(spans)
        levels = [span.values(MOST_LEVELS[len(self.spans)]) for span in self.spans]
        found = list(itertools.product(*(range(len(values)) for values in levels)))
        places = [[level / max(1, len(v) - 1) for level, v in zip(item, levels, strict=True)] for item in found]
        self._levels = [found[index] for index in spread(places, len(found))]
        limits = [
            {span.metric: values[level] for span, values, level in zip(self.spans, levels, item, strict=True)}
            for item in self._levels
        ]
        self.targets: tuple[Budget, ...] = tuple(Budget({**budget.limits, **item}) for item in limits)
        self._budget = budget

    @cached_property
    def _looser(self) -> list[list[int]]:
        """Return by target those that are one level looser on one cost."""
        index = {item: number for number, item in enumerate(self._levels)}
        steps = [[(*item[:a], item[a] - 1, *item[a + 1 :]) for a in range(len(item))] for item in self._levels]
        return [[index[item] for item in near if item in index] for near in steps]

    def aims(self, tried: Sequence[Tried], batch: int, among: Sequence[int]) -> tuple[int, ...]:
        """Return the targets of the next `batch` trials, out of `among`, after those in `tried` (in their order)."""
        best, vain = self._standing(tried)
        gains = {k: max(0.0, best[k] - min((best[near] for near in self._looser[k]), default=0.0)) for k in among}
        found: list[int] = []
        for _ in range(batch):
            aim = max(among, key=lambda k: (gains[k] / (1 + vain[k]), -vain[k], -k))
            vain[aim] += 1
            found.append(aim)
        return tuple(found)

    def _standing(self, tried: Sequence[Tried]) -> tuple[list[float], list[int]]:
        """Return by target the least loss inside it, and how many of its trials since changed nothing of that."""
        best, vain = [1.0] * len(self.targets), [0] * len(self.targets)
        for item in tried:
            loss = share(item.loss)
            improved = [k for k, t in enumerate(self.targets) if loss < best[k] and t.is_met(item.costs)]
            for k in improved:
                best[k] = loss
            if item.target is not None:
                vain[item.target] = 0 if item.target in improved else vain[item.target] + 1
        return best, vain

    def least(self, tried: Sequence[Tried]) -> list[float | None]:
        """Return by target the least loss (KL in nats) of the trials inside it, None where there is none."""
        inside = [[item.loss for item in tried if target.is_met(item.costs)] for target in self.targets]
        return [min((loss for loss in losses if math.isfinite(loss)), default=None) for losses in inside]

    def point(self, item: Tried) -> tuple[float, ...]:
        """Return a trial as a point: its loss and its costs, each from 0 (best) to 1."""
        return share(item.loss), *(span.place(item.costs.value(span.metric)) for span in self.spans)

    def volume(self, tried: Sequence[Tried]) -> float:
        """Return the share of the space of loss and costs (in octaves) that the trials inside the budget cover."""
        points = [self.point(item) for item in tried if self._budget.is_met(item.costs)]
        return pareto.hypervolume(points, (1.0,) * (1 + len(self.spans)))


def span_of(metric: str, goal: Goal, solver: Solver, table: SensitivityTable) -> Span:
    """Return how far a cost can go: from the least that could be found up to its limit, or to nothing compressed."""
    bound = least(goal.graph, goal.space, goal.device).value(metric)
    cheapest = solver.least_violating(Budget({metric: max(bound, _ROOM)}), table)
    top = count(goal.graph, reference(goal.graph, goal.space), goal.device).value(metric)
    low = count(goal.graph, cheapest, goal.device).value(metric)
    high = min(top, goal.budget.limits.get(metric, math.inf))
    return Span(metric, min(low, high), high)


def share(loss: float) -> float:
    """Return a KL divergence (nats) on a scale from 0 to 1."""
    return 1.0 - math.exp(-max(0.0, loss))


def spread(points: Sequence[Sequence[float]], count: int) -> list[int]:
    """Return the indices of `count` points far from each other: the first, then always the one farthest from those."""
    left, found = dict.fromkeys(range(len(points)), math.inf), list[int]()
    while left and len(found) < count:
        chosen = max(left, key=lambda index: (left[index], -index))
        found.append(chosen)
        del left[chosen]
        left = {index: min(gap, math.dist(points[index], points[chosen])) for index, gap in left.items()}
    return found
