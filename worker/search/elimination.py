"""The least of a sum of tables, one coordinate at a time (bucket elimination; Dechter 1999, algorithm elim-opt).

Where a bucket would be too large it is split (mini-buckets; Dechter and Rish 2003): what comes out is then a bound
below the least, and the state found need not be the one that reaches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from worker.search.compiled import Floats, Ints
from worker.search.factors import Scope

MAX_BUCKET = 60_000


@dataclass
class _Node:
    """One (mini-)bucket: eliminates `coordinate` from tables and from what its `children` send."""

    coordinate: int
    scope: Scope
    tables: list[int] = field(default_factory=list)
    children: list[int] = field(default_factory=list)
    parent: int = -1

    @property
    def rest(self) -> Scope:
        """Return what its message is a table over."""
        return tuple(index for index in self.scope if index != self.coordinate)


class Elimination:
    """An order and a tree for tables over `scopes`, planned once, run for many values."""

    def __init__(self, sizes: Ints, scopes: Sequence[Scope]) -> None:
        self._sizes, self._scopes = sizes, scopes
        self._nodes: list[_Node] = []
        self._plan()
        self._sent: list[Floats] = []
        self._full: list[Floats] = []

    def _plan(self) -> None:
        pending: list[tuple[Scope, int, int]] = [(scope, index, -1) for index, scope in enumerate(self._scopes)]
        left = {index for scope in self._scopes for index in scope}
        around = {v: {u for scope in self._scopes if v in scope for u in scope} for v in left}
        weight = np.log(np.maximum(self._sizes, 1))
        while left:
            chosen = min(sorted(left), key=lambda v: float(sum(weight[u] for u in around[v])))
            left.discard(chosen)
            near = around.pop(chosen) - {chosen}
            for u in near:
                around[u] = (around[u] | near) - {chosen}
            mine = [item for item in pending if chosen in item[0]]
            pending = [item for item in pending if chosen not in item[0]]
            pending += [(self._nodes[node].rest, -1, node) for node in self._split(chosen, mine)]
        self.roots = [node for _, _, node in pending if node >= 0]

    def _split(self, coordinate: int, items: list[tuple[Scope, int, int]]) -> list[int]:
        """Put what a coordinate is in into as few nodes as the largest table allows; return the nodes."""
        made: list[int] = []
        for scope, table, child in sorted(items, key=lambda item: -len(item[0])):
            for number in made:
                union = tuple(sorted({*self._nodes[number].scope, *scope}))
                if np.prod(self._sizes[list(union)], dtype=float) <= MAX_BUCKET:
                    break
            else:
                union, number = tuple(sorted(scope)), len(self._nodes)
                self._nodes.append(_Node(coordinate, union))
                made.append(number)
            node = self._nodes[number]
            node.scope = union
            if child >= 0:
                node.children.append(child)
                self._nodes[child].parent = number
            else:
                node.tables.append(table)
        return made

    def least(self, tables: Sequence[Floats], state: Ints) -> tuple[float, Ints]:
        """Return the least sum (or a bound below it) and a state; coordinates in no table stay as in `state`."""
        self._sent, self._full = [], []
        for node in self._nodes:
            total = np.zeros(tuple(self._sizes[list(node.scope)]))
            for index in node.tables:
                total += self._spread(tables[index], self._scopes[index], node.scope)
            for child in node.children:
                total += self._spread(self._sent[child], self._nodes[child].rest, node.scope)
            self._full.append(total)
            self._sent.append(total.min(axis=node.scope.index(node.coordinate)))
        found = state.copy()
        for node, total in zip(reversed(self._nodes), reversed(self._full), strict=True):
            at = tuple(slice(None) if index == node.coordinate else int(found[index]) for index in node.scope)
            found[node.coordinate] = int(total[at].argmin())
        return float(sum(float(self._sent[node]) for node in self.roots)), found

    def marginals(self) -> dict[int, Floats]:
        """Return, for what was run last, a bound below the sum with a coordinate fixed to each of its choices."""
        whole = float(sum(float(self._sent[node]) for node in self.roots))
        down: list[Floats] = [np.zeros(0)] * len(self._nodes)
        found: dict[int, Floats] = {}
        for number in reversed(range(len(self._nodes))):
            node = self._nodes[number]
            total = self._full[number]
            if node.parent < 0:
                total = total + (whole - float(self._sent[number]))
            else:
                above = self._nodes[node.parent]
                rest = self._spread(self._sent[number], node.rest, above.scope)
                own = down[node.parent] - rest
                gone = tuple(axis for axis, index in enumerate(above.scope) if index not in node.rest)
                total = total + self._spread(own.min(axis=gone), node.rest, node.scope)
            down[number] = total
            axis = node.scope.index(node.coordinate)
            least = total.min(axis=tuple(other for other in range(total.ndim) if other != axis))
            found[node.coordinate] = np.maximum(found.get(node.coordinate, -np.inf), least)
        return found

    def _spread(self, table: Floats, scope: Scope, over: Scope) -> Floats:
        """Lay a table over `scope` (sorted) out for broadcasting over a larger one."""
        return table.reshape([int(self._sizes[index]) if index in scope else 1 for index in over])
