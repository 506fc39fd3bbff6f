"""Local improvement of a feasible state: fill the slack that is left, then trade one choice against another."""

from __future__ import annotations

import numpy as np

from worker.search.compiled import Bools, Floats, Ints
from worker.search.descent import Descent

_ROUNDS = 60
_TRIED = 48
_COUPLING = 0.02  # a pair's cost is predicted by adding two single changes; neighbours make up for this much


def improve(descent: Descent, state: Ints) -> Ints:
    """Return a state at least as good as the feasible `state`: no single change and no tried pair improves it."""
    for _ in range(_ROUNDS):
        variants = _single_changes(descent, state)
        ratios = descent.ratios(variants)
        gains = descent.loss(variants) - descent.loss(state[None])[0]
        legal = descent.costs.is_legal(variants)
        better = np.flatnonzero(legal & descent.fits(ratios) & (gains < -1e-12 * descent.scale))
        if len(better):
            state = variants[better[gains[better].argmin()]]
            continue
        found = _best_swap(descent, state, variants, (ratios, gains))
        if found is None:
            break
        state = found
    return state


def _single_changes(descent: Descent, state: Ints) -> Ints:
    """Return every state that differs from `state` in one coordinate."""
    sizes = descent.costs.sizes
    columns = np.repeat(np.arange(len(sizes)), sizes)
    levels = np.concatenate([np.arange(size) for size in sizes])
    differs = levels != state[columns]
    variants = np.repeat(state[None, :], int(differs.sum()), axis=0)
    variants[np.arange(len(variants)), columns[differs]] = levels[differs]
    return variants


def _best_swap(descent: Descent, state: Ints, variants: Ints, measured: tuple[Floats, Floats]) -> Ints | None:
    """Return the best feasible state two changes away, among the pairs that look best, or None."""
    ratios, gains = measured
    base = descent.ratios(state[None])[0]
    ups, downs = np.flatnonzero(gains < 0), np.flatnonzero((gains >= 0) & (ratios < base).any(axis=1))
    if not len(ups) or not len(downs):
        return None
    gain = gains[ups][:, None] + gains[downs][None, :]
    hopeful: Bools = gain < -1e-12 * descent.scale
    for row in range(descent.rows):
        predicted = ratios[ups, row][:, None] + ratios[downs, row][None, :] - base[row]
        hopeful &= predicted <= 1 + _COUPLING
    first, second = np.nonzero(hopeful)
    order = np.argsort(gain[first, second], kind="stable")[:_TRIED]
    return _best_of(descent, state, _merged(state, variants[ups[first[order]]], variants[downs[second[order]]]))


def _merged(state: Ints, one: Ints, other: Ints) -> Ints:
    """Apply both changes; where they meet in one coordinate, the first."""
    return np.where(one != state, one, other)


def _best_of(descent: Descent, state: Ints, candidates: Ints) -> Ints | None:
    if not len(candidates):
        return None
    losses = descent.loss(candidates)
    good = descent.fits(descent.ratios(candidates)) & descent.costs.is_legal(candidates)
    good &= losses < descent.loss(state[None])[0] - 1e-12 * descent.scale
    if not good.any():
        return None
    found: Ints = candidates[np.where(good, losses, np.inf).argmin()]
    return found
