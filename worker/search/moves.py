"""Local moves: the best assignments found, changed in a few places, the most promising change measured next.

An allocation trusts the table everywhere; near an assignment that was measured only the differences need trusting. A
move's loss is predicted as its parent's measured loss plus what the corrected table says of the places that change, so
what the table gets wrong about all the others cancels.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from app.domain.budget import Budget
from app.domain.cost import count
from app.domain.space import Assignment
from worker.search.compiled import CompiledCosts, Floats, Ints
from worker.search.descent import losses_of
from worker.search.refit import Observation
from worker.search.sensitivity import SensitivityTable

_DRAWN = 4000
_PLACES = 4
_LEVELS = (-2, -1, 1, 2)
_COUNTED = 64
"""How many of the most promising moves are counted exactly before a round of drawing is given up."""


@dataclass(frozen=True)
class Moves:
    """Moves around `parents` inside `budget`, judged by `table`."""

    costs: CompiledCosts
    budget: Budget
    table: SensitivityTable
    parents: Sequence[Observation]

    @cached_property
    def _states(self) -> Ints:
        """The parents as states: (parents, coordinates)."""
        return np.array([self.costs.state(item.assignment) for item in self.parents], dtype=np.intp)

    def best(self, known: Set[str], seed: int) -> Assignment | None:
        """Return the most promising of the moves drawn from `seed` whose digest is not in `known`, or None."""
        drawn, origins = self._drawn(np.random.default_rng(seed))
        drawn, origins = self._inside(drawn, origins)
        promise = self._predicted(drawn, origins)
        for index in np.argsort(promise, kind="stable")[:_COUNTED]:
            assignment = self.costs.assignment(drawn[index])
            if assignment.digest not in known and self._is_met(assignment):
                return assignment
        return None

    def _drawn(self, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Return states (n, coordinates), each a parent with 1 to `_PLACES` choices changed, and their parents."""
        movable = np.flatnonzero(self.costs.sizes > 1)
        origins = rng.integers(len(self.parents), size=_DRAWN)
        states = self._states[origins]
        places = rng.integers(1, 1 + min(_PLACES, len(movable)), size=_DRAWN)
        for turn in range(int(places.max())):
            rows = np.flatnonzero(places > turn)
            columns = rng.choice(movable, size=len(rows))
            moved = states[rows, columns] + rng.choice(_LEVELS, size=len(rows))
            states[rows, columns] = np.clip(moved, 0, self.costs.sizes[columns] - 1)
        return states, origins

    def _inside(self, states: Ints, origins: Ints) -> tuple[Ints, Ints]:
        """Return the distinct legal states whose (with a latency table: estimated) costs keep every limit."""
        _, first = np.unique(states, axis=0, return_index=True)
        states, origins = states[first], origins[first]
        costs = self.costs.costs(states)
        kept = self.costs.is_legal(states)
        for metric, limit in self.budget.limits.items():
            kept &= costs[metric] <= limit
        return states[kept], origins[kept]

    def _predicted(self, states: Ints, origins: Ints) -> Floats:
        """Return the loss expected of each state (n,)."""
        losses = losses_of(self.costs, self.table, {})
        columns = np.arange(losses.shape[0])
        measured = np.array([item.loss for item in self.parents])
        offsets = measured - losses[columns, self._states].sum(axis=1)
        found: Floats = losses[columns, states].sum(axis=1) + offsets[origins]
        return found

    def _is_met(self, assignment: Assignment) -> bool:
        return self.budget.is_met(count(self.costs.graph, assignment, self.costs.device))
