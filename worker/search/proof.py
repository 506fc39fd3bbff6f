"""What no allocation can beat: a bound below the loss of every assignment inside a budget, and often the optimum.

Prices on the limits turn the problem into a sum of small tables whose least is found exactly (`elimination`); that sum
is below every allocation's loss for any prices (Lagrangian duality), so the prices are raised as long as it grows, by a
cutting-plane model inside a trust region. Choices whose own bound lies above the best known loss are dropped
(reduced-cost fixing), and HiGHS decides among those left, all limits together, on one-hot choices and joint choices
of each operation's coordinates.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from app.domain.space import Assignment
from worker.search.compiled import Bools, Floats, Ints
from worker.search.descent import Descent
from worker.search.elimination import Elimination
from worker.search.factors import Factors, Scope, factors

_ROUNDS = 120
_CUTS = 80
_STARTS = 2.0 ** np.arange(-9, 4, 2)
_SETTLED = 1e-4
_TINY = 1e-9
_ROUNDING = 1e-13  # of prices: where a limit lies exactly on the floor they grow without end


@dataclass(frozen=True)
class Allocation:
    """An assignment, its predicted loss, and a bound that no assignment inside the budget can be below.

    Where none is known the loss is infinite; where there provably is none, the bound is infinite too. `gap` is the
    part of the loss above the table's base that is not proven necessary: (loss - bound) / (loss - base), at least 0.
    """

    assignment: Assignment | None
    loss: float
    bound: float
    gap: float


class Dual:
    """The Lagrangian bound of one problem."""

    def __init__(self, descent: Descent) -> None:
        self.descent, self.costs = descent, descent.costs
        self.factors: Factors = factors(descent)
        self._loss: list[tuple[Scope, Floats]] = [*_losses(descent), *_illegal(descent)]
        scopes = [*(scope for scope, _ in self._loss), *(part.scope for part in self.factors.parts)]
        self._elimination = Elimination(self.costs.sizes, scopes)
        single = self.costs.sizes == 1
        self.fixed_loss = float(descent.plain_losses[single, 0].sum())
        self.bound, self.prices = -np.inf, np.zeros(descent.rows)
        self.states: dict[bytes, Ints] = {}

    def at(self, prices: Floats) -> tuple[float, Floats]:
        """Return the bound at `prices` (rows,), in loss per limit, and by how much its state breaks each limit."""
        tables = [table for _, table in self._loss]
        tables += [part.table @ prices[part.rows] for part in self.factors.parts]
        least, state = self._elimination.least(tables, np.zeros_like(self.costs.sizes))
        excess = self.factors.constant - 1.0
        for part in self.factors.parts:
            excess[part.rows] += part.table[tuple(state[list(part.scope)])]
        value = least + self._shift(prices)
        self.states[state.tobytes()] = state
        if value > self.bound:
            self.bound, self.prices = value, prices
        return value, excess

    def _shift(self, prices: Floats) -> float:
        """Return what the bound adds to the least sum of tables, less what rounding may have added to that."""
        rounding = _ROUNDING * float(prices.sum())
        return self.fixed_loss + float(prices @ (self.factors.constant - 1.0)) - rounding

    def climb(self, aim: float, until: float) -> None:
        """Raise the prices until the bound reaches `aim`, stops growing, or the clock shows `until`."""
        rows = self.descent.rows
        cuts = [(np.zeros(rows), *self.at(np.zeros(rows)))]
        for start in _STARTS * self.descent.scale if rows else ():
            prices = np.full(rows, start / rows)
            cuts.append((prices, *self.at(prices)))
            if self.bound >= aim or time.monotonic() > until:
                return
        reach = np.maximum(self.prices, self.descent.scale * 1e-3)
        for _ in range(_ROUNDS if rows else 0):
            prices, hoped = _next_prices(cuts[-_CUTS:], self.prices, reach)
            before = self.bound
            cuts.append((prices, *self.at(prices)))
            if self.bound >= aim or time.monotonic() > until or self.bound > self.most:
                return
            if hoped - before <= _SETTLED * max(abs(before), _TINY) and (reach >= self.prices).all():
                return
            gained = self.bound - before
            grown = gained > 0.1 * (hoped - before)
            reach = np.maximum(reach * (2.0 if grown else 0.5), self.descent.scale * 1e-7)
            if not grown and hoped - self.bound <= _SETTLED * max(abs(self.bound), _TINY):
                reach = np.maximum(reach, 4 * self.prices)

    @property
    def most(self) -> float:
        """Return a loss that no assignment exceeds: a bound above it proves that none keeps the limits."""
        finite = np.where(np.isfinite(self.descent.plain_losses), self.descent.plain_losses, 0.0)
        return float(finite.max(axis=1).sum()) * (1 + _TINY) + _TINY

    def open_choices(self, below: float) -> Bools:
        """Return which choices (coordinates, depth) an assignment with less loss than `below` may take."""
        found: Bools = np.isfinite(self.descent.plain_losses)
        self.at(self.prices)
        shift = self._shift(self.prices)
        for index, least in self._elimination.marginals().items():
            found[index, : len(least)] &= least + shift <= below + _TINY * self.descent.scale
        return found


def _losses(descent: Descent) -> list[tuple[Scope, Floats]]:
    sizes = descent.costs.sizes
    return [((index,), descent.plain_losses[index, : sizes[index]]) for index in map(int, np.flatnonzero(sizes > 1))]


def _illegal(descent: Descent) -> list[tuple[Scope, Floats]]:
    """Return, for layers that do not accept every pair of bits, a table that is huge where they do not."""
    costs, found = descent.costs, []
    for layer in range(costs.layers):
        pair = (costs.groups + layer, costs.groups + costs.layers + int(costs.in_site[layer]))
        legal = costs.legal[layer, : costs.sizes[pair[0]], : costs.sizes[pair[1]]]
        if not legal.all():
            scope = tuple(index for index in pair if costs.sizes[index] > 1)
            table = np.where(legal, 0.0, 1e12 * descent.scale)
            found.append((scope, table.reshape([int(costs.sizes[index]) for index in scope])))
    return found


def _next_prices(cuts: list[tuple[Floats, float, Floats]], centre: Floats, reach: Floats) -> tuple[Floats, float]:
    """Return where the model (the least of all cuts) is largest inside the trust region, and its value there."""
    points = np.array([prices for prices, _, _ in cuts])
    values = np.array([value for _, value, _ in cuts])
    slopes = np.array([slope for _, _, slope in cuts])
    unit = max(float(np.abs(values).max()), _TINY)
    left = np.hstack([-slopes, np.ones((len(cuts), 1))])
    right = (values - (slopes * points).sum(axis=1)) / unit
    bounds = [*zip(np.maximum(centre - reach, 0.0) / unit, (centre + reach) / unit, strict=True), (None, None)]
    found = linprog(np.append(np.zeros(len(centre)), -1.0), A_ub=left, b_ub=right, bounds=bounds, method="highs")
    if found.x is None:
        return centre * 1.01, float(values.max())
    return np.maximum(found.x[:-1], 0.0) * unit, float(found.x[-1]) * unit
