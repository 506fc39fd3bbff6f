"""From a good allocation to a proven one: bound, fix, and let HiGHS decide, within a time."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from worker.search.compiled import Ints
from worker.search.descent import Descent
from worker.search.program import MAX_COLUMNS, Program
from worker.search.proof import Allocation, Dual
from worker.search.sensitivity import SensitivityTable
from worker.search.swaps import improve

_IMPROVED = 4
_RETRIES = 30
_SHARE = 0.5
_OVERSHOOT = 0.6  # HiGHS looks at its clock late
_SLACK = 1e-9


class Prover:
    """One problem (budget, table) to prove: `keeps` counts a state exactly."""

    def __init__(
        self,
        descent: Descent,
        table: SensitivityTable,
        keeps: Callable[[Ints], bool],
        known: Ints | None,
        clock: tuple[float, float],
    ) -> None:
        self._descent, self._table, self._keeps = descent, table, keeps
        self._start, self._seconds = clock
        self._best, self._loss = known, np.inf
        if known is not None:
            self._loss = self._of(known)

    def prove(self, gap: float) -> Allocation:
        """Return the best allocation found, and the bound; ends when the gap is at most `gap` or the time is over."""
        dual = Dual(self._descent)
        dual.climb(self._aim(gap), self._start + _SHARE * self._seconds)
        bound = np.inf if dual.bound > dual.most else dual.bound
        if bound < self._aim(gap):
            self._recover(list(dual.states.values()))
        if bound < self._aim(gap) and self._left > 0:
            bound = max(bound, self._decide(dual, gap))
        return self._allocation(bound)

    @property
    def _left(self) -> float:
        return self._start + self._seconds - time.monotonic()

    def _aim(self, gap: float) -> float:
        return self._loss - max(gap * self._loss, _SLACK * self._descent.scale) if self._best is not None else np.inf

    def _of(self, state: Ints) -> float:
        return float(self._descent.plain_losses[np.arange(len(state)), state].sum())

    def _take(self, state: Ints) -> None:
        if self._of(state) < self._loss and self._keeps(state):
            self._best, self._loss = state, self._of(state)

    def _recover(self, states: list[Ints]) -> None:
        """Improve the feasible states that prices led to."""
        descent = self._descent
        many = np.array(states)
        fitting = many[descent.fits(descent.ratios(many)) & descent.costs.is_legal(many)]
        for state in sorted(fitting, key=self._of)[:_IMPROVED]:
            if self._left < _SHARE * self._seconds:
                return
            self._take(improve(descent, state))

    def _decide(self, dual: Dual, gap: float) -> float:
        """Run HiGHS on the open choices; return the bound it proves.

        What it calls feasible within its tolerance but the exact count refuses is forbidden, and it is asked again.
        """
        options = dual.open_choices(self._loss)
        if not options.any(axis=1).all():
            return self._loss
        program = Program(self._descent, dual.factors, options)
        bound = dual.bound
        for _ in range(_RETRIES if program.columns <= MAX_COLUMNS else 0):
            if self._left <= 0.05:
                break
            answer = program.solve(self._left * _OVERSHOOT, gap)
            # a closed choice costs at least the loss known before the run
            bound = max(bound, min(answer.bound, self._loss))
            if answer.state is None:
                break
            before = self._best
            self._take(answer.state)
            exact = self._best is not before or self._keeps(answer.state)
            if exact or not program.forbid(answer.state):
                break
        return bound

    def _allocation(self, bound: float) -> Allocation:
        base = self._table.base
        if self._best is None:
            return Allocation(None, np.inf, base + bound, np.inf)
        below = min(bound, self._loss)
        gap = max(0.0, self._loss - below) / self._loss if self._loss > _SLACK * self._descent.scale else 0.0
        assignment = self._descent.costs.assignment(self._best)
        return Allocation(assignment, base + self._loss, base + below, gap)
