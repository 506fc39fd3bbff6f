"""Coordinate descent on the Lagrangian: the loss plus a price on every limit, minimised block by block, exactly.

Every limit is a row whose cost is a sum over operations (layers and steps) and activations: peak activation bytes
become one row per set of activations alive together, a time that depends on whether the weights fit a cache two rows.
Blocks of one colour share no operation or activation, so all of them move at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from app.domain.budget import Budget
from worker.search.compiled import ADDITIVE, Bools, CompiledCosts, Floats, Ints
from worker.search.sensitivity import SensitivityTable

PEAK = "peak_activation_bytes"
TIMED = ("latency_ms", "energy_mj")
_TILT = 1e-9  # of two choices with equal loss, prefer the less compressed one
_ILLEGAL = 1e30  # finite, so that multiplying it by "not touched" gives 0
_TIGHTEN = 1e-12  # keeps sums of floats, added in another order, inside the limit


class Descent:
    """The problem for one budget and one table: rows of limits, losses, colours, and the block moves."""

    def __init__(
        self, costs: CompiledCosts, budget: Budget, table: SensitivityTable, multipliers: Mapping[str, float]
    ) -> None:
        self.costs = costs
        limited = [metric for metric in ADDITIVE if metric in budget.limits and self._may_break(metric, budget)]
        rows = [(metric, row) for metric in limited for row in costs.rows_of(metric)]
        self.metrics = tuple(row for _, row in rows)
        self.live = self._crowded(budget)
        limits = [budget.limits[metric] - costs.overhead.get(row, 0.0) for metric, row in rows]
        limits += [budget.limits[PEAK]] * len(self.live) if len(self.live) else []
        self.limits = np.maximum(np.array(limits, float), 1e-12)
        summed = [metric in TIMED for metric, _ in rows] + [False] * len(self.live)
        self._ceilings = 1.0 - _TIGHTEN * np.array(summed, float)
        self._op_rows = len(self.metrics)
        self.losses = self._losses(table, multipliers)
        self._columns = np.arange(len(costs.coordinates))
        self._traffic = any(metric in limited for metric in TIMED)
        self._touch()
        self.group_colours = _colours(self._group_conflicts, costs.sizes)
        self.site_ops = self._site_touch()
        self.site_colours = _colours(self.site_ops, np.full(costs.sites, 2))

    def _may_break(self, metric: str, budget: Budget) -> bool:
        """Tell whether a limit is any: the widest state breaks it, or (times) another may cost more than that one."""
        top = self.costs.costs(np.zeros((1, len(self.costs.coordinates)), dtype=np.intp))[metric][0]
        return metric in TIMED or bool(top > budget.limits[metric])

    def _crowded(self, budget: Budget) -> Floats:
        """Return the sets of buffers alive together that are too large where nothing is compressed."""
        if PEAK not in budget.limits:
            return np.zeros((0, len(self.costs.buffer_site)))
        live = self.costs.live_sets()
        widest = self.costs.values(np.zeros((1, len(self.costs.coordinates)), dtype=np.intp))
        sizes: Bools = live @ self.costs.buffer_bytes(widest)[0] > budget.limits[PEAK]
        return live[sizes]

    @property
    def rows(self) -> int:
        """Return the number of limits that may be broken (one per set of live buffers for the peak)."""
        return len(self.limits)

    def _losses(self, table: SensitivityTable, multipliers: Mapping[str, float]) -> Floats:
        """Return (coordinates, depth) losses, infinite beyond a coordinate's last choice."""
        losses = losses_of(self.costs, table, multipliers)
        finite = np.where(np.isfinite(losses), losses, 0.0)
        self.scale = float(finite.max(axis=1).sum()) or 1.0
        self.plain_losses = losses
        tilted: Floats = losses + _TILT * self.scale * np.arange(self.costs.choices.shape[1])
        return tilted

    def _touch(self) -> None:
        """Note which operations and activations each group changes: what it is charged for, and can't share."""
        c = self.costs
        acts: Bools = c.act.T > 0
        ops: Bools = ((c.ins + c.outs) > 0).T
        if self._traffic:
            ops = ops | (acts.astype(float) @ c.reads.T > 0) | (acts[:, c.out_site] & (c.out_site >= 0))
        self.group_ops, self._group_acts = ops.astype(float), acts.astype(float)
        self._group_conflicts: Bools = np.concatenate([ops, acts], axis=1) if len(self.live) else ops

    def _site_touch(self) -> Bools:
        """Return which operations' costs an activation's bits change: its readers, and with traffic its producer."""
        c, sites = self.costs, np.arange(self.costs.sites)[:, None]
        touched: Bools = c.reads.T | (c.out_site == sites)
        if not self._traffic:
            touched = np.zeros((c.sites, c.ops), dtype=np.bool_)
            touched[:, : c.layers] = c.in_site == sites
        return touched

    def ratios(self, states: Ints) -> Floats:
        """Return cost / limit of every row for states (n, coordinates): (n, rows). Kept when at most 1."""
        values = self.costs.values(states)
        ops = self.costs.op_costs(values, self.metrics).sum(axis=1)
        live = self.costs.buffer_bytes(values) @ self.live.T if len(self.live) else np.zeros((len(states), 0))
        found: Floats = np.concatenate([ops, live], axis=1) / self.limits
        return found

    def op_rows(self, values: Floats) -> Floats:
        """Return each operation's part of the ratios of the rows that sum over operations: (n, ops, rows).

        Times that are only estimates count as nothing.
        """
        found: Floats = self.costs.op_costs(values, self.metrics) / self.limits[: self._op_rows]
        return found if self.costs.is_exact else found * np.array([name not in TIMED for name in self.metrics])

    def fits(self, ratios: Floats) -> Bools:
        """Tell for each state's ratios whether every limit is kept."""
        kept: Bools = ratios <= self._ceilings
        found: Bools = np.logical_and.reduce(kept, axis=-1, dtype=np.bool_)
        return found

    def loss(self, states: Ints) -> Floats:
        """Return the table's loss of states (n, coordinates), without the base."""
        total: Floats = self.losses[self._columns, states].sum(axis=1)
        return total

    def descend(self, start: Ints, prices: Floats, sweeps: int = 12) -> Ints:
        """Return a state that no block move improves under `prices` (rows,), each in loss per limit."""
        state, priced = start.copy(), prices / self.limits
        for _ in range(sweeps):
            before = state.copy()
            for sites in self._site_blocks:
                self._move_sites(state, sites, priced)
            for groups in self._group_blocks:
                self._move_groups(state, groups, priced)
            if (before == state).all():
                break
        return state

    @cached_property
    def _group_blocks(self) -> list[_Block]:
        return [
            self._block(colour, int(self.costs.sizes[colour].max()), (self.group_ops[colour], self._group_acts[colour]))
            for colour in self.group_colours
        ]

    @cached_property
    def _site_blocks(self) -> list[_SiteBlock]:
        return [self._site_block(colour) for colour in self.site_colours]

    def _block(self, columns: Ints, depth: int, touched: tuple[Floats, Floats]) -> _Block:
        levels = np.minimum(np.arange(depth)[:, None], self.costs.sizes[columns] - 1)
        values = self.costs.choices[columns, levels]
        return _Block(columns, np.arange(len(columns)), values, self.losses[columns, :depth].T, *touched)

    def _site_block(self, colour: Ints) -> _SiteBlock:
        """Lay out the choices of activations beside those of the layers that read them."""
        c, first = self.costs, self.costs.groups + self.costs.layers
        reading = np.flatnonzero(np.isin(c.in_site, colour))
        depth = int(c.sizes[first + colour].max())
        wide = int(c.sizes[c.groups + reading].max()) if len(reading) else 1
        own = np.eye(c.sites)[colour]
        sites = self._block(first + colour, depth, (self.site_ops[colour].astype(float), own))
        weights = self._block(c.groups + reading, wide, (np.zeros((0, 0)), np.zeros((0, 0))))
        legal = c.legal[reading, :wide, :depth].transpose(2, 1, 0)
        return _SiteBlock(sites, weights, first + c.in_site[reading], reading, legal)

    def _values_of(self, state: Ints, times: int) -> Floats:
        """Return a state's values, repeated: (times, coordinates)."""
        return np.repeat(self.costs.choices[self._columns, state][None], times, axis=0)

    def _penalties(self, values: Floats, prices: Floats) -> tuple[Floats, Floats | None]:
        """Return the priced cost per operation (n, ops) and, where buffers are limited, per activation (n, sites)."""
        ops = self.costs.op_costs(values, self.metrics) @ prices[: self._op_rows]
        if not len(self.live):
            return ops, None
        priced = self.costs.buffer_bytes(values) * (prices[self._op_rows :] @ self.live)
        sites = np.arange(self.costs.sites)[None, :] == self.costs.buffer_site[:, None]
        return ops, priced @ sites.astype(float)

    def _move_groups(self, state: Ints, block: _Block, prices: Floats) -> None:
        values = self._values_of(state, len(block.values))
        values[:, block.columns] = block.values
        ops, acts = self._penalties(values, prices)
        self._take(state, block, block.scores(ops, acts))

    def _move_sites(self, state: Ints, block: _SiteBlock, prices: Floats) -> None:
        """Choose the bits of activations together with the weight bits of the layers that read them."""
        depth, wide = len(block.sites.values), len(block.weights.values)
        values = self._values_of(state, depth * wide)
        values[:, block.sites.columns] = np.repeat(block.sites.values, wide, axis=0)
        values[:, block.weights.columns] = np.tile(block.weights.values, (depth, 1))
        ops, acts = self._penalties(values, prices)
        own, choice = block.best_weights(ops.reshape(depth, wide, -1))
        alone = None if acts is None else acts.reshape(depth, wide, -1)[:, 0]
        self._take(state, block.sites, block.sites.scores(own, alone))
        state[block.weights.columns] = choice[state[block.read], block.weights.order]

    def _take(self, state: Ints, block: _Block, scores: Floats) -> None:
        """Move each column to its best level (scores: (depth, columns)) unless the current one is as good."""
        best, current = scores.argmin(axis=0), state[block.columns]
        better = scores[best, block.order] < scores[current, block.order] - 1e-12 * self.scale
        state[block.columns] = np.where(better, best, current)


def losses_of(costs: CompiledCosts, table: SensitivityTable, multipliers: Mapping[str, float]) -> Floats:
    """Return what a table says of every choice, (coordinates, depth), infinite beyond a coordinate's last one.

    `multipliers` scale single dimensions, by "kind:name".
    """
    losses: Floats = np.full(costs.choices.shape, np.inf)
    for index, item in enumerate(costs.coordinates):
        factor = multipliers.get(f"{item.kind}:{item.name}", 1.0)
        losses[index, : len(item.choices)] = [
            factor * table.increment(item.kind, item.name, value) for value in item.choices
        ]
    return losses


@dataclass(frozen=True)
class _Block:
    """Coordinates that move at once: what they may become, (levels, columns), with the losses of that.

    `ops` and `acts` say whose costs each column changes: (columns, operations) and (columns, activations).
    """

    columns: Ints
    order: Ints
    values: Floats
    losses: Floats
    ops: Floats
    acts: Floats

    def scores(self, ops: Floats, acts: Floats | None) -> Floats:
        """Return priced costs plus losses, (levels, columns), from those per operation and per activation."""
        found: Floats = ops @ self.ops.T
        if acts is not None:
            found += acts @ self.acts.T
        found += self.losses
        return found


@dataclass(frozen=True)
class _SiteBlock:
    """Activations that move at once, with the weights of the layers that read them.

    `read` are the coordinates of what each of those layers reads, `reading` the layers, and `legal` tells which weight
    choices each accepts: (levels of the activation, levels of the weights, layers).
    """

    sites: _Block
    weights: _Block
    read: Ints
    reading: Ints
    legal: Bools

    def best_weights(self, grid: Floats) -> tuple[Floats, Ints]:
        """Return the priced costs with each reading layer at its best legal weights, and which those are.

        `grid` holds them for all choices: (levels of the activation, levels of the weights, operations).
        """
        scores = np.where(self.legal, grid[:, :, self.reading] + self.weights.losses[None], _ILLEGAL)
        own = grid[:, 0].copy()
        own[:, self.reading] = scores.min(axis=1)
        return own, scores.argmin(axis=1)


def _colours(touches: Bools, sizes: Ints) -> list[Ints]:
    """Return classes of rows that share nothing they touch; rows with a single choice are left out."""
    colours: list[tuple[list[int], Bools]] = []
    for row in _movable(touches, sizes):
        for members, taken in colours:
            if not (taken & touches[row]).any():
                members.append(row)
                taken |= touches[row]
                break
        else:
            colours.append(([row], touches[row].copy()))
    return [np.array(members, dtype=np.intp) for members, _ in colours]


def _movable(touches: Bools, sizes: Ints) -> Iterable[int]:
    return (row for row in range(len(touches)) if sizes[row] > 1)
