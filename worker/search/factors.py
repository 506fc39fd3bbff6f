"""Costs and losses of a problem as tables over the few coordinates that each of its parts depends on.

An operation's cost depends on the channel groups and bits around it, a buffer's size on one width and one bit-width.
Tabulated per joint choice, rounding up to bytes, padded channels and the larger of computing and waiting are plain
numbers, so that bounds and integer programs over the tables are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worker.search.compiled import CompiledCosts, Floats, Ints
from worker.search.descent import Descent

Scope = tuple[int, ...]
MAX_TABLE = 20_000
_GRID = 24_000
_ROWS = 128


@dataclass(frozen=True)
class Factor:
    """A table over `scope` (coordinates with a choice): costs / limits, one last axis for `rows`."""

    scope: Scope
    rows: Ints
    table: Floats


@dataclass(frozen=True)
class Factors:
    """All that the rows of limits sum up: factors, what does not change, and whether nothing had to be left out.

    Where `exact` is False, the factors are a bound below the costs: operations on very many groups count the ones that
    are left out at their fewest channels; times that are only estimates count as nothing.
    """

    parts: tuple[Factor, ...]
    constant: Floats
    exact: bool


def factors(descent: Descent) -> Factors:
    """Tabulate the rows of a problem."""
    costs = descent.costs
    asked = [*range(costs.ops)] if descent.metrics else []
    asked += [costs.ops + buffer for buffer in np.flatnonzero(descent.live.any(axis=0))]
    scopes = {item: _scope(descent, item) for item in asked}
    cut = {item: _shortened(costs, scope) for item, scope in scopes.items()}
    exact = costs.is_exact and all(cut[item] == scopes[item] for item in asked)
    constant, parts = np.zeros(descent.rows), []
    for batch in _batches(costs, cut):
        grid = _Grid(costs, batch)
        for item, (rows, values) in grid.tables(descent, [item for item in asked if item in batch.items]).items():
            scope = batch.items[item]
            if scope:
                parts.append(Factor(scope, rows, values))
            else:
                constant[rows] += values
    return Factors(_merged(costs, parts), constant, exact)


def _merged(costs: CompiledCosts, parts: Sequence[Factor]) -> tuple[Factor, ...]:
    """Add tables over fewer coordinates to one that has them all, where there is one."""
    made: list[Factor] = []
    for part in sorted(parts, key=lambda part: -len(part.scope)):
        home = next((i for i, other in enumerate(made) if set(part.scope) <= set(other.scope)), None)
        if home is None:
            made.append(part)
        else:
            made[home] = _added(costs, made[home], part)
    return tuple(made)


def _added(costs: CompiledCosts, wide: Factor, part: Factor) -> Factor:
    rows = np.union1d(wide.rows, part.rows)
    table = np.zeros((*wide.table.shape[:-1], len(rows)))
    table[..., np.searchsorted(rows, wide.rows)] += wide.table
    spread = [int(costs.sizes[index]) if index in part.scope else 1 for index in wide.scope]
    table[..., np.searchsorted(rows, part.rows)] += part.table.reshape((*spread, len(part.rows)))
    return Factor(wide.scope, rows, table)


def _scope(descent: Descent, item: int) -> Scope:
    """Return the coordinates with a choice that an operation's rows (or a buffer's size) depend on."""
    costs = descent.costs
    first = costs.groups + costs.layers
    if item >= costs.ops:
        buffer = item - costs.ops
        found = {*np.flatnonzero(costs.buffer_terms[buffer]), first + costs.buffer_site[buffer]}
    else:
        found = {*np.flatnonzero(descent.group_ops[:, item]), *(first + np.flatnonzero(descent.site_ops[:, item]))}
        if item < costs.layers:
            found.add(costs.groups + item)
    return tuple(sorted(int(index) for index in found if costs.sizes[index] > 1))


def _shortened(costs: CompiledCosts, scope: Scope) -> Scope:
    """Leave out groups, those with the most choices first, until a table over the rest is small enough."""
    kept = list(scope)
    while np.prod(costs.sizes[kept], dtype=float) > MAX_TABLE and any(index < costs.groups for index in kept):
        kept.remove(max((index for index in kept if index < costs.groups), key=lambda index: int(costs.sizes[index])))
    return tuple(kept)


class _Batch:
    """Items tabulated on one grid: every coordinate moves along one axis, those of one item along different ones."""

    def __init__(self) -> None:
        self.axis: dict[int, int] = {}
        self.lengths: list[int] = []
        self.items: dict[int, Scope] = {}

    def takes(self, item: int, scope: Scope, sizes: Ints) -> bool:
        """Add an item unless its coordinates share an axis or the grid would become too large."""
        taken = [self.axis[index] for index in scope if index in self.axis]
        if len(set(taken)) < len(taken):
            return False
        axis, lengths, used = dict(self.axis), list(self.lengths), set(taken)
        for index in sorted((index for index in scope if index not in axis), key=lambda index: -int(sizes[index])):
            free = [slot for slot in range(len(lengths)) if slot not in used] or [len(lengths)]
            slot = min(free, key=lambda slot: abs((lengths[slot] if slot < len(lengths) else 1) - int(sizes[index])))
            lengths += [1] * (slot + 1 - len(lengths))
            lengths[slot] = max(lengths[slot], int(sizes[index]))
            axis[index] = slot
            used.add(slot)
        if self.items and np.prod(lengths, dtype=float) > _GRID:
            return False
        self.axis, self.lengths = axis, lengths
        self.items[item] = scope
        return True


def _batches(costs: CompiledCosts, scopes: dict[int, Scope]) -> list[_Batch]:
    found: list[_Batch] = []
    for item, scope in scopes.items():
        if not any(batch.takes(item, scope, costs.sizes) for batch in found):
            found.append(_Batch())
            found[-1].takes(item, scope, costs.sizes)
    return found


class _Grid:
    """The states of one batch: every joint choice of its axes; what no item moves is at its least."""

    def __init__(self, costs: CompiledCosts, batch: _Batch) -> None:
        self._costs, self._batch = costs, batch
        self._shape = tuple(batch.lengths)
        count = int(np.prod(self._shape, dtype=np.intp))
        digits = np.indices(self._shape).reshape(len(self._shape), count)
        self._states = np.repeat((costs.sizes - 1)[None, :], count, axis=0)
        for index, axis in batch.axis.items():
            self._states[:, index] = np.minimum(digits[axis], costs.sizes[index] - 1)

    def tables(self, descent: Descent, items: Sequence[int]) -> dict[int, tuple[Ints, Floats]]:
        """Return by item its rows and its table (the item's scope, rows)."""
        costs = self._costs
        ops = np.array([item for item in items if item < costs.ops], dtype=np.intp)
        buffers = np.array([item - costs.ops for item in items if item >= costs.ops], dtype=np.intp)
        timed, sized = [], []
        for start in range(0, len(self._states), _ROWS):
            values = costs.values(self._states[start : start + _ROWS])
            timed.append(descent.op_rows(values)[:, ops] if len(ops) else np.zeros((len(values), 0, 0)))
            sized.append(costs.buffer_bytes(values)[:, buffers])
        by_op, by_buffer = np.concatenate(timed), np.concatenate(sized)
        found = {int(op): (np.arange(by_op.shape[2]), self._own(int(op), by_op[:, i])) for i, op in enumerate(ops)}
        for column, buffer in enumerate(buffers):
            live = np.flatnonzero(descent.live[:, buffer])
            table = self._own(costs.ops + int(buffer), by_buffer[:, column, None])
            rows = len(descent.metrics) + live
            found[costs.ops + int(buffer)] = (rows, table / descent.limits[rows])
        return found

    def _own(self, item: int, values: Floats) -> Floats:
        """Return the values (states, rows) over an item's own axes, in the order of its scope."""
        scope = self._batch.items[item]
        own = [self._batch.axis[index] for index in scope]
        box = values.reshape((*self._shape, values.shape[-1]))
        box = box[tuple(slice(None) if axis in own else -1 for axis in range(len(self._shape)))]
        order = [sorted(own).index(axis) for axis in own]
        table: Floats = box.transpose((*order, len(own)))
        return table[tuple(slice(0, int(self._costs.sizes[index])) for index in scope)]
