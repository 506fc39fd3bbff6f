"""The integer program over the choices that a bound leaves open, for HiGHS (scipy.optimize.milp)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from worker.search.compiled import Bools, Floats, Ints
from worker.search.descent import Descent
from worker.search.factors import Factor, Factors

MAX_COLUMNS = 400_000
_INFEASIBLE = 2


@dataclass(frozen=True)
class Answer:
    """A state (None where none was found), and a bound below the loss of every state the program allows.

    The bound is infinite where the program has no solution.
    """

    state: Ints | None
    bound: float


class Program:
    """One-hot columns for open choices, joint columns for each factor's choices, a row per limit."""

    def __init__(self, descent: Descent, parts: Factors, open_choices: Bools) -> None:
        self._descent, self._open = descent, open_choices
        self._first: dict[tuple[int, int], int] = {}
        self._losses: list[float] = []
        for index, size in enumerate(descent.costs.sizes):
            for choice in np.flatnonzero(open_choices[index, :size]):
                self._first[index, int(choice)] = len(self._losses)
                self._losses.append(float(descent.plain_losses[index, choice]))
        self.choices = len(self._losses)
        self.columns = self.choices
        self._entries: list[tuple[Ints, Ints, Floats]] = []
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._limits: list[tuple[Ints, Ints, Floats]] = []
        self._one_each()
        self._legal()
        for part in parts.parts:
            self._joint(part)
        self._end(parts)

    def _row(self, columns: Sequence[int], values: Sequence[float], bounds: tuple[float, float]) -> None:
        rows = np.full(len(columns), len(self._lower), dtype=np.intp)
        self._entries.append((rows, np.array(columns, dtype=np.intp), np.array(values, float)))
        self._lower.append(bounds[0])
        self._upper.append(bounds[1])

    def _one_each(self) -> None:
        for index in range(len(self._descent.costs.sizes)):
            columns = self._columns(index)
            self._row(columns, [1.0] * len(columns), (1.0, 1.0))

    def _columns(self, index: int) -> list[int]:
        return [self._first[index, int(choice)] for choice in np.flatnonzero(self._open[index])
                if (index, int(choice)) in self._first]  # fmt: skip

    def _legal(self) -> None:
        """Forbid pairs of bits that a layer does not accept."""
        costs = self._descent.costs
        for layer in range(costs.layers):
            weight = costs.groups + layer
            site = costs.groups + costs.layers + int(costs.in_site[layer])
            for w, a in np.argwhere(~costs.legal[layer]):
                if (weight, int(w)) in self._first and (site, int(a)) in self._first:
                    pair = [self._first[weight, int(w)], self._first[site, int(a)]]
                    self._row(pair, [1.0, 1.0], (0.0, 1.0))

    def _joint(self, part: Factor) -> None:
        """Add a column per joint choice, tied to the one-hot columns; its costs enter the limits."""
        inside = [np.flatnonzero(self._open[index, : self._descent.costs.sizes[index]]) for index in part.scope]
        table = part.table[np.ix_(*inside)]
        flat = table.reshape(-1, table.shape[-1])
        if len(part.scope) == 1:
            columns = np.array([self._first[part.scope[0], int(choice)] for choice in inside[0]], dtype=np.intp)
        else:
            columns = np.arange(self.columns, self.columns + len(flat), dtype=np.intp)
            self.columns += len(flat)
            digits = np.indices(table.shape[:-1]).reshape(len(part.scope), -1)
            for axis, index in enumerate(part.scope):
                for position, choice in enumerate(inside[axis]):
                    mine = columns[digits[axis] == position].tolist()
                    self._row([*mine, self._first[index, int(choice)]], [1.0] * len(mine) + [-1.0], (0.0, 0.0))
        for column, row in enumerate(part.rows):
            self._limits.append((np.full(len(flat), row, dtype=np.intp), columns, flat[:, column]))

    def _end(self, parts: Factors) -> None:
        count = len(self._lower)
        entries = [*self._entries, *((rows + count, columns, values) for rows, columns, values in self._limits)]
        rows, columns, values = (np.concatenate(item) for item in zip(*entries, strict=True))
        self._lower += [-np.inf] * self._descent.rows
        self._upper += list(1.0 - parts.constant)
        shape = (len(self._lower), self.columns)
        self._matrix = sparse.csr_matrix((values, (rows, columns)), shape=shape)

    def forbid(self, state: Ints) -> bool:
        """Exclude one state (it keeps the limits only within HiGHS' tolerance); tell whether it was among the open."""
        columns = [self._first.get((index, int(choice)), -1) for index, choice in enumerate(state)]
        if min(columns) < 0:
            return False
        row = sparse.csr_matrix(([1.0] * len(columns), ([0] * len(columns), columns)), shape=(1, self.columns))
        self._matrix = sparse.vstack([self._matrix, row]).tocsr()
        self._lower.append(-np.inf)
        self._upper.append(len(columns) - 1.0)
        return True

    def solve(self, seconds: float, gap: float) -> Answer:
        """Run HiGHS for `seconds` or until `gap` (relative, on the losses) is proven."""
        cost = np.append(np.array(self._losses), np.zeros(self.columns - self.choices))
        scale = max(float(cost.max(initial=0.0)), 1e-12)
        whole = np.append(np.ones(self.choices), np.zeros(self.columns - self.choices))
        rules = LinearConstraint(self._matrix, self._lower, self._upper)
        options = {"time_limit": max(seconds, 0.05), "mip_rel_gap": gap}
        found = milp(cost / scale, integrality=whole, bounds=Bounds(0.0, 1.0), constraints=rules, options=options)
        if found.status == _INFEASIBLE:
            return Answer(None, np.inf)
        below = found.mip_dual_bound
        bound = -np.inf if below is None or not np.isfinite(below) else float(below) * scale
        return Answer(None if found.x is None else self._state(found.x), bound)

    def _state(self, solution: Floats) -> Ints:
        state: Ints = np.zeros_like(self._descent.costs.sizes)
        best = np.full(len(state), -1.0)
        for (index, choice), column in self._first.items():
            if solution[column] > best[index]:
                best[index], state[index] = solution[column], choice
        return state
