"""Channel groups: which channels must be removed together, gathered from label propagation (`worker.graph.labels`).

Labels tied to each other and met at the same places form one channel group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from app.domain.graph import ChannelGroup, Width
from worker.graph.labels import NOTHING, Side, Trace
from worker.graph.ops import op_of
from worker.graph.ops.parametric import WEIGHTED
from worker.graph.ops.table import module_of

Columns = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Key = tuple[str, Side]
FIXED = -1
"""Marks a column that belongs to no channel: it always stays."""


@dataclass(frozen=True)
class Dim:
    """One tensor dimension: for each of its columns the channel it belongs to.

    `channel` indexes all channels of all groups (group by group; `FIXED` for none); `width` says the same for costs;
    `axis` is the dimension's place in the tensor.
    """

    channel: Columns
    width: Width
    axis: int = 1

    def kept(self, mask: Mask) -> Tensor:
        """Return the indices of the columns left under a plan's mask (int64 tensor)."""
        return torch.from_numpy(np.flatnonzero(mask[self.channel]))


@dataclass(frozen=True)
class ChannelPlan:
    """Channel groups and the columns of each dimension.

    Dimensions are keyed by node and side: a layer's `out` and `in`, a leaf's or function's `param`, a node's `value`.
    """

    groups: tuple[ChannelGroup, ...]
    dims: Mapping[Key, Dim]
    offsets: Mapping[str, int]
    total: int

    def mask(self, kept: Mapping[str, Sequence[int] | Tensor]) -> Mask:
        """Return the mask over all channels (and one more entry, for `FIXED`) for kept channel indices per group.

        Groups that are absent keep everything.
        """
        mask = np.ones(self.total + 1, dtype=np.bool_)
        for group in self.groups:
            if group.id in kept:
                start = self.offsets[group.id]
                mask[start : start + group.channels] = False
                mask[start + np.asarray(kept[group.id], dtype=np.int64)] = True
        return mask


def channel_plan(module: fx.GraphModule) -> ChannelPlan:
    """Return the channel groups of a BatchNorm-folded canonical graph."""
    trace = Trace(module)
    trace.run(lambda node: _op(module, node).flow)
    return _Gathering(trace).plan()


def _op(module: fx.GraphModule, node: fx.Node) -> Any:
    op = op_of(module, node)
    assert op is not None, f"{node.name} is in no op table"
    return op


class _Gathering:
    """Makes groups of classes that were met at the same places."""

    def __init__(self, trace: Trace) -> None:
        self.module = trace.module
        self.frozen = trace.reasons()
        self.nothing = int(trace.classes[NOTHING])
        values: dict[Key, Tensor] = {(name, "value"): trace.column_classes(name) for name in trace.values}
        layers: dict[Key, Tensor] = {key: trace.classes[labels] for key, labels in trace.met.items()}
        self.roots: dict[Key, Columns] = {key: item.numpy() for key, item in {**layers, **values}.items()}
        self.axes = {key: trace.axis(key[0]) if key[1] == "value" else 0 for key in self.roots}
        self.position = {node.name: step for step, node in enumerate(self.module.graph.nodes)}

    def plan(self) -> ChannelPlan:
        """Return the plan: groups in the order of the smallest label."""
        places: dict[int, dict[Key, int]] = {}
        for key, labels in self.roots.items():
            found, counts = np.unique(labels[labels != self.nothing], return_counts=True)
            for label, count in zip(found.tolist(), counts.tolist(), strict=True):
                places.setdefault(label, {})[key] = count
        members: dict[Any, list[int]] = {}
        for label in sorted(places):
            if any(side != "value" for _, side in places[label]):
                signature = (self.frozen.get(label), tuple(sorted(places[label].items())))
                members.setdefault(signature, []).append(label)
        return self._assemble(list(members.items()))

    def _assemble(self, members: list[tuple[Any, list[int]]]) -> ChannelPlan:
        groups: list[ChannelGroup] = []
        offsets: dict[str, int] = {}
        index: dict[int, int] = {}
        owner: dict[int, str] = {}
        total = 0
        for (frozen, places), labels in members:
            group = self._group([key for key, _ in places], len(labels), frozen, set(offsets))
            groups.append(group)
            offsets[group.id] = total
            for label in labels:
                index[label], owner[label], total = total, group.id, total + 1
        sizes = {group.id: group.channels for group in groups}
        dims = {key: _dim(labels.tolist(), index, owner, sizes, self.axes[key]) for key, labels in self.roots.items()}
        return ChannelPlan(tuple(groups), dims, offsets, total)

    def _group(self, keys: list[Key], channels: int, frozen: str | None, taken: set[str]) -> ChannelGroup:
        producers = self._named(keys, "out")
        consumers = tuple(name for name in self._named(keys, "in") if name not in producers)
        base = next(iter(producers), None) or next(self._order(name for name, _ in keys))
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        return ChannelGroup(name, channels, producers, consumers, frozen)

    def _named(self, keys: list[Key], side: Side) -> tuple[str, ...]:
        return tuple(self._order(name for name, found in keys if found == side))

    def _order(self, names: Iterable[str]) -> Iterator[str]:
        # the matrices of a recurrent layer are called <node>.<matrix>
        return iter(sorted(set(names), key=lambda name: (self.position[name.split(".")[0]], name)))


def _dim(labels: list[int], index: dict[int, int], owner: dict[int, str], sizes: dict[str, int], axis: int) -> Dim:
    counts: dict[str, int] = {}
    for label in labels:
        if label in owner:
            counts[owner[label]] = counts.get(owner[label], 0) + 1
    terms = tuple((group, count // sizes[group]) for group, count in counts.items())
    fixed = len(labels) - sum(counts.values())
    channel = np.array([index.get(label, FIXED) for label in labels], dtype=np.int64)
    return Dim(channel, Width(terms, fixed), axis)


def weighted_layers(module: fx.GraphModule) -> list[fx.Node]:
    """Return the nodes that call a convolution or linear layer, in execution order."""
    return [n for n in module.graph.nodes if n.op == "call_module" and isinstance(module_of(module, n), WEIGHTED)]
