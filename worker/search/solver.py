"""The allocation: the assignment with the least predicted loss that keeps every limit at once.

Prices on the limits (a Lagrangian) are found by bisection for one limit and by multiplicative updates for several;
coordinate descent minimises under given prices; swaps then close the gap that prices alone leave. Where nothing is
found so, the cheapest assignment is improved greedily: a feasible answer exists whenever that one is feasible. Where
times are only estimates (a latency table), an answer that the exact count refuses tightens the limits for the next try.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from app.domain.budget import Budget
from app.domain.cost import count
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, SearchSpace
from worker.search.compiled import CompiledCosts, Floats, Ints
from worker.search.descent import TIMED, Descent
from worker.search.proof import Allocation
from worker.search.prover import Prover
from worker.search.sensitivity import SensitivityTable
from worker.search.swaps import improve

_BISECTIONS = 11
_UPDATES = 14
_POLISHED = 3
_CORRECTIONS = 5
_CAUTION = 0.998


class Solver:
    """Allocates for one (graph, space, device); compiled once, asked often."""

    def __init__(self, graph: ModelGraph, space: SearchSpace, device: DeviceProfile) -> None:
        self._graph, self._device = graph, device
        self.costs = CompiledCosts(graph, space, device)

    def solve(
        self, budget: Budget, table: SensitivityTable, multipliers: Mapping[str, float] | None = None
    ) -> Assignment | None:
        """Return the allocation for `budget`, or None where no feasible assignment was found.

        `multipliers` scale the losses of single dimensions, by "kind:name" (kind: keep, weight or activation).
        """
        asked = budget
        for _ in range(1 if self.costs.is_exact else _CORRECTIONS):
            states = self._states(asked, table, multipliers or {})
            for assignment in map(self.costs.assignment, states):
                if budget.is_met(count(self._graph, assignment, self._device)):
                    return assignment
            if not states:
                break
            asked = self._corrected(asked, budget, states[0])
        return None

    def prove(
        self,
        budget: Budget,
        table: SensitivityTable,
        multipliers: Mapping[str, float] | None = None,
        *,
        within_s: float = 10.0,
        gap: float = 0.005,
    ) -> Allocation:
        """Return an allocation at least as good as `solve`'s and how far from the best it can be at most.

        Ends when the gap is at most `gap` (0: the optimum), or after about `within_s` seconds. Limits on times that a
        latency table estimates bind the allocation, but not the bound.
        """
        start = time.monotonic()
        found = self.solve(budget, table, multipliers)

        def keeps(state: Ints) -> bool:
            legal = bool(self.costs.is_legal(state[None])[0])
            return legal and budget.is_met(count(self._graph, self.costs.assignment(state), self._device))

        known = None if found is None else self.costs.state(found)
        descent = Descent(self.costs, budget, table, multipliers or {})
        return Prover(descent, table, keeps, known, (start, within_s)).prove(gap)

    def _states(self, budget: Budget, table: SensitivityTable, multipliers: Mapping[str, float]) -> list[Ints]:
        """Return the states that seem to keep `budget`, least loss first."""
        descent = Descent(self.costs, budget, table, multipliers)
        found = _explore(descent) or _from_the_bottom(descent)
        polished = [improve(descent, state) for state in found[:_POLISHED]]
        return sorted(polished, key=lambda item: float(descent.loss(item[None])[0]))

    def _corrected(self, asked: Budget, budget: Budget, state: Ints) -> Budget:
        """Return limits on estimates that make up for what the exact count of `state` shows them to leave out."""
        exact = count(self._graph, self.costs.assignment(state), self._device)
        guessed = self.costs.costs(state[None])
        limits = {
            metric: min(asked.limits[metric], limit * float(guessed[metric][0]) / max(exact.value(metric), 1e-12))
            for metric, limit in budget.limits.items()
        }
        return Budget({metric: limit * _CAUTION if metric in TIMED else limit for metric, limit in limits.items()})

    def least_violating(self, budget: Budget, table: SensitivityTable) -> Assignment:
        """Return an assignment that breaks the limits as little as the descent can manage."""
        descent = Descent(self.costs, budget, table, {})
        return self.costs.assignment(_least_violating(descent))


def allocate(
    graph: ModelGraph,
    space: SearchSpace,
    device: DeviceProfile,
    budget: Budget,
    table: SensitivityTable,
    multipliers: Mapping[str, float] | None = None,
) -> Assignment | None:
    """Solve once; see `Solver.solve`. Keep a `Solver` where many budgets or tables are tried."""
    return Solver(graph, space, device).solve(budget, table, multipliers)


def cheapest_state(descent: Descent) -> Ints:
    """Return the fewest channels and bits, with bit pairs made legal at the cheapest activation bits."""
    state = descent.costs.sizes - 1
    return descent.descend(state, np.full(max(descent.rows, 1), 1e9 * descent.scale)[: descent.rows], sweeps=1)


def _explore(descent: Descent) -> list[Ints]:
    """Return feasible states found by moving the prices, best first."""
    pool: dict[bytes, tuple[float, Ints]] = {}
    widest = np.zeros_like(descent.costs.sizes)
    free = descent.descend(widest, np.zeros(descent.rows))
    if _note(descent, free, pool):
        return [free]
    if descent.rows == 1:
        for start in (free, descent.costs.sizes - 1):
            _bisect(descent, np.ones(1), start, pool)
    else:
        prices = _bisect(descent, np.ones(descent.rows), free, pool)
        _bisect(descent, _balance(descent, prices, pool), free, pool)
    return [state for _, state in sorted(pool.values(), key=lambda item: item[0])]


def _note(descent: Descent, state: Ints, pool: dict[bytes, tuple[float, Ints]]) -> bool:
    """Keep a feasible state; tell whether it is one."""
    feasible = bool(descent.fits(descent.ratios(state[None]))[0]) and bool(descent.costs.is_legal(state[None])[0])
    if feasible:
        pool[state.tobytes()] = (float(descent.loss(state[None])[0]), state)
    return feasible


def _bisect(descent: Descent, direction: Floats, start: Ints, pool: dict[bytes, tuple[float, Ints]]) -> Floats:
    """Scale `direction` by bisection to the lowest prices that keep every limit; return those prices."""
    direction = direction / direction.max()
    low, high = np.log(descent.scale) - 14.0, np.log(descent.scale) + 6.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        state = descent.descend(start, direction * np.exp(middle))
        if _note(descent, state, pool):
            high = middle
        else:
            low = middle
    prices: Floats = direction * np.exp(high)
    return prices


def _balance(descent: Descent, prices: Floats, pool: dict[bytes, tuple[float, Ints]]) -> Floats:
    """Raise the prices of broken limits and lower those of kept ones until they settle; return the last prices."""
    state = descent.costs.sizes - 1
    for step in range(_UPDATES):
        state = descent.descend(state, prices)
        _note(descent, state, pool)
        ratios = np.clip(descent.ratios(state[None])[0], 0.05, 20.0)
        prices = np.maximum(prices * ratios ** (2.0 / (1.0 + step / 4)), 1e-12 * descent.scale)
    return prices


def _from_the_bottom(descent: Descent) -> list[Ints]:
    """Return the cheapest states: where a limit lies exactly on the floor, only the exact count can accept one."""
    states = (descent.costs.sizes - 1, cheapest_state(descent), _least_violating(descent))
    return [state for state in states if descent.costs.is_legal(state[None])[0]]


def _least_violating(descent: Descent) -> Ints:
    """Push on the broken limits alone until they stop giving way; return the state with the least excess."""
    best = state = cheapest_state(descent)
    prices = np.full(descent.rows, 1e3 * descent.scale)
    for _ in range(_UPDATES):
        ratios = descent.ratios(state[None])[0]
        prices = np.where(ratios > 1, prices * 4, prices)
        state = descent.descend(state, prices)
        best = min(best, state, key=lambda item: _excess(descent, item))
    return best


def _excess(descent: Descent, state: Ints) -> float:
    return float(np.maximum(descent.ratios(state[None])[0] - 1, 0).sum())
