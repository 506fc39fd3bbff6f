"""Learn from trials: correct the additive table where measured assignments cost more or less than it said.

Bayesian linear regression of the residual on which choices were made. The prior trusts the table: a choice's correction
is about as large as its increment, alike for all levels of one dimension. Trials far above the best one count for
little, so interactions are absorbed as they are near the best assignments found. Draws from the posterior (Thompson
sampling) give different plausible tables, hence different allocations to try.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.domain.space import Assignment, SearchSpace
from worker.search.compiled import Floats
from worker.search.sensitivity import KINDS, Curve, SensitivityTable, dimensions, monotone, part_of

_DOUBT = 0.8  # prior standard deviation of a correction, as a share of the increment
_ALIKE = 0.6  # prior correlation between the levels of one dimension
_NOISE = 0.05  # measurement noise, as a share of the loss
_FAR = 0.5  # extra noise per nat away from the best trial


@dataclass(frozen=True)
class Observation:
    """One measured assignment and its loss (KL in nats)."""

    assignment: Assignment
    loss: float


class Posterior:
    """The table's corrections after some observations; `mean` and `draw` return corrected tables."""

    def __init__(
        self,
        space: SearchSpace,
        table: SensitivityTable,
        observations: Sequence[Observation],
        near: float | None = None,
    ) -> None:
        """Learn from `observations`, most from those whose loss is about `near` (default: the least of them)."""
        self._table = table
        self._dimensions = list(dimensions(space))
        self._columns = [(kind, name, value) for kind, name, choices in self._dimensions for value in choices[1:]]
        losses = np.array([item.loss for item in observations])
        self._features, predicted = self._laid_out(observations)
        self._residual = losses - predicted
        best = near if near is not None else losses.min() if len(losses) else 1.0
        self._noise: Floats = (_NOISE * losses + _FAR * np.abs(losses - best)) ** 2 + 1e-12
        self._root = self._prior_root(best)
        self._gain = self._root @ self._gained(self._features @ self._root)

    def _gained(self, weighted: Floats) -> Floats:
        """Return the matrix (terms, observations) that turns surprises into the terms' corrections.

        Of two equal forms, Z'(ZZ' + N)^-1 and (Z'N^-1 Z + I)^-1 Z'N^-1, the one with the smaller matrix to invert: what
        a thousand trials teach costs no more per trial than what a hundred do.
        """
        count, terms = weighted.shape
        if count <= terms:
            found: Floats = weighted.T @ np.linalg.inv(weighted @ weighted.T + np.diag(self._noise))
            return found
        scaled: Floats = weighted.T / self._noise
        return np.linalg.solve(scaled @ weighted + np.eye(terms), scaled).astype(np.float64)

    def _laid_out(self, observations: Sequence[Observation]) -> tuple[Floats, Floats]:
        """Return which choices each observation made, (observations, columns + 1), and what the table says of it.

        The last column is an intercept. Sums go in the space's order: how an assignment is written changes nothing.
        """
        features, total = [], np.zeros(len(observations))
        for kind, name, choices in self._dimensions:
            values = np.array([part_of(item.assignment, kind)[name] for item in observations])
            features.append(values[:, None] == np.array(choices[1:], dtype=values.dtype))
            curve = self._table.curves[kind].get(name, {})
            total += [curve.get(value, 0.0) for value in values.tolist()]
        ones = np.ones((len(observations), 1))
        return np.concatenate([*features, ones], axis=1, dtype=np.float64), self._table.base + total

    def _prior_root(self, best: float) -> Floats:
        """Return R with R R^T = the prior covariance: own terms, one shared term per dimension, the intercept."""
        deviations = np.array([self._table.increment(*column) for column in self._columns])
        deviations = _DOUBT * deviations + 0.01 * best
        dimensions = {key: index for index, key in enumerate(dict.fromkeys(c[:2] for c in self._columns))}
        shared = np.zeros((len(self._columns), len(dimensions)))
        for row, (kind, name, _) in enumerate(self._columns):
            shared[row, dimensions[kind, name]] = deviations[row] * np.sqrt(_ALIKE)
        root = np.concatenate([np.diag(deviations * np.sqrt(1 - _ALIKE)), shared], axis=1)
        width = root.shape[1]
        padded = np.zeros((len(self._columns) + 1, width + 1))
        padded[:-1, :width], padded[-1, -1] = root, best
        return padded

    def mean(self) -> SensitivityTable:
        """Return the most plausible table."""
        return self._corrected(self._gain @ self._residual)

    def draw(self, seed: int) -> SensitivityTable:
        """Return one plausible table, drawn by Matheron's rule (a prior draw moved towards the observations)."""
        rng = np.random.default_rng(seed)
        prior = self._root @ rng.standard_normal(self._root.shape[1])
        noise = np.sqrt(self._noise) * rng.standard_normal(len(self._noise))
        surprise = self._residual - self._features @ prior - noise
        return self._corrected(prior + self._gain @ surprise)

    def _corrected(self, corrections: Floats) -> SensitivityTable:
        by_choice = dict(zip(self._columns, corrections[:-1], strict=True))
        curves: dict[str, dict[str, Curve]] = {kind: {} for kind in KINDS}
        for kind, name, choices in self._dimensions:
            losses = [
                self._table.increment(kind, name, value) + by_choice.get((kind, name, value), 0.0) for value in choices
            ]
            curves[kind][name] = monotone(choices, [losses[0], *np.maximum(losses[1:], 0.0)])
        return SensitivityTable(max(0.0, self._table.base + float(corrections[-1])), curves)
