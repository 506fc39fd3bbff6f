"""Channel groups by label propagation: which channels must be removed together.

Each activation carries one integer label per channel. Convolutions and linear layers create new labels, element-wise
joins unite those of their operands, concatenation chains them, flatten repeats each H*W times; network outputs and any
op with unknown flow freeze the labels they touch. Labels united with each other and met at the same places form one
channel group (the dependency idea of Torch-Pruning, Fang et al. 2023, without a graph rebuild per change).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from app.domain.graph import ChannelGroup, Width
from worker.graph.ops import Flow, op_of
from worker.graph.ops.table import module_of
from worker.graph.rewrite import NORMS, WEIGHTED
from worker.graph.write_onnx import operands, shapes_of

Side = Literal["out", "in", "value"]
Labels = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Dim:
    """One prunable tensor dimension: for each of its columns the channel it belongs to.

    `channel` indexes all channels of all groups (group by group); `width` says the same for costs.
    """

    channel: Labels
    width: Width

    def kept(self, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> Tensor:
        """Return the indices of the columns left under a mask over all channels (int64 tensor)."""
        return torch.from_numpy(np.flatnonzero(mask[self.channel]))


@dataclass(frozen=True)
class ChannelPlan:
    """Channel groups and, for each layer's `out` and `in` side and each node's `value`, the dimension's columns."""

    groups: tuple[ChannelGroup, ...]
    dims: Mapping[tuple[str, Side], Dim]
    offsets: Mapping[str, int]
    total: int

    def mask(self, kept: Mapping[str, Sequence[int] | Tensor]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return the mask over all channels for kept channel indices per group (absent groups keep everything)."""
        mask = np.ones(self.total, dtype=np.bool_)
        for group in self.groups:
            if group.id in kept:
                start = self.offsets[group.id]
                mask[start : start + group.channels] = False
                mask[start + np.asarray(kept[group.id], dtype=np.int64)] = True
        return mask


def channel_plan(module: fx.GraphModule, input_shape: Sequence[int]) -> ChannelPlan:
    """Return the channel groups of a BatchNorm-folded canonical graph. `input_shape` is without the batch."""
    flow = _Flow(module, input_shape)
    flow.run()
    return flow.plan()


class _Flow:
    """One pass of label propagation with a union-find over labels."""

    def __init__(self, module: fx.GraphModule, input_shape: Sequence[int]) -> None:
        self.module = module
        self.shapes = shapes_of(module, input_shape)
        self.parent: list[int] = []
        self.frozen: dict[int, str] = {}
        self.values: dict[str, Labels] = {}
        self.met: dict[tuple[str, Side], Labels] = {}

    def run(self) -> None:
        for node in self.module.graph.nodes:
            if node.op == "output":
                self._pin(self.values[node.args[0].name], "network output")
            elif node.op == "get_attr":
                continue
            else:
                self.values[node.name] = self._labels(node)
                self.met[(node.name, "value")] = self.values[node.name]

    def _labels(self, node: fx.Node) -> Labels:
        if node.op == "placeholder":
            return self._fresh(self._channels(node), "network input")
        op = op_of(self.module, node)
        assert op is not None
        sources = [source for source in operands(node) if source.op != "get_attr"]
        constants = [source for source in operands(node) if source.op == "get_attr"]
        handler = getattr(self, f"_{op.flow.value}")
        if op.flow is not Flow.freeze and any(getattr(self.module, str(c.target)).numel() > 1 for c in constants):
            return self._freeze_all(node, sources, "combined with a constant tensor")
        labels: Labels = handler(node, sources)
        return labels

    def _produce(self, node: fx.Node, sources: list[fx.Node]) -> Labels:
        leaf: Any = module_of(self.module, node)
        inputs = self.values[sources[0].name]
        outs = leaf.weight.shape[0]
        groups = getattr(leaf, "groups", 1)
        if isinstance(leaf, nn.Linear) and len(self.shapes[node.name]) != 2:
            self._pin(inputs, "linear layer over tokens")
            self.met[(node.name, "in")] = self._fresh(leaf.in_features, "linear layer over tokens")
            self.met[(node.name, "out")] = self._fresh(outs, "linear layer over tokens")
            return self._fresh(self._channels(node), "linear layer over tokens")
        self.met[(node.name, "in")] = inputs
        if groups > 1 and groups == outs == len(inputs):
            self.met[(node.name, "out")] = inputs
            return inputs
        if groups > 1:
            self._pin(inputs, "grouped convolution")
        labels = self._fresh(outs, "grouped convolution" if groups > 1 else None)
        self.met[(node.name, "out")] = labels
        return labels

    def _same(self, node: fx.Node, sources: list[fx.Node]) -> Labels:
        labels = self.values[sources[0].name]
        reduced: Any = node.kwargs.get("dim", ())  # a mean over channels may leave as many rows as there were channels
        if len(labels) != self._channels(node) or 1 in reduced:
            return self._freeze_all(node, sources, f"{node.name} changes the channel dimension")
        return labels

    def _join(self, node: fx.Node, sources: list[fx.Node]) -> Labels:
        wide = [self.values[s.name] for s in sources if len(self.values[s.name]) == self._channels(node)]
        ranks = {len(self.shapes[s.name]) for s in sources if len(self.shapes[s.name]) > 1}
        if len(ranks) > 1 or len(wide) < len(sources):
            return self._freeze_all(node, sources, f"{node.name} broadcasts over channels")
        for other in wide[1:]:
            self._unite(wide[0], other)
        return wide[0]

    def _concat(self, node: fx.Node, sources: list[fx.Node]) -> Labels:
        parts = [self.values[source.name] for source in sources]
        rank = len(self.shapes[node.name])
        dim: Any = node.kwargs["dim"]
        if dim % rank == 1:
            return np.concatenate(parts)
        for other in parts[1:]:
            self._unite(parts[0], other)
        return parts[0]

    def _flatten(self, node: fx.Node, sources: list[fx.Node]) -> Labels:
        labels = self.values[sources[0].name]
        return np.repeat(labels, self._channels(node) // len(labels))

    def _freeze(self, node: fx.Node, sources: list[fx.Node]) -> Labels:
        return self._freeze_all(node, sources, f"channels can't be followed through {node.name}")

    def _freeze_all(self, node: fx.Node, sources: list[fx.Node], reason: str) -> Labels:
        for source in sources:
            self._pin(self.values[source.name], reason)
        return self._fresh(self._channels(node), reason)

    def _channels(self, node: fx.Node) -> int:
        shape = self.shapes[node.name]
        return shape[1] if len(shape) > 1 else 1

    def _fresh(self, count: int, frozen: str | None = None) -> Labels:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        labels = np.arange(start, start + count, dtype=np.int64)
        if frozen is not None:
            self._pin(labels, frozen)
        return labels

    def _find(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def _unite(self, left: Labels, right: Labels) -> None:
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = self._find(a), self._find(b)
            if a != b:
                low, high = min(a, b), max(a, b)
                self.parent[high] = low
                if high in self.frozen:
                    self.frozen.setdefault(low, self.frozen[high])

    def _pin(self, labels: Labels, reason: str) -> None:
        for label in labels.tolist():
            self.frozen.setdefault(self._find(label), reason)

    def plan(self) -> ChannelPlan:
        """Gather united labels that occur at the same places into groups."""
        roots = {key: np.array([self._find(i) for i in labels.tolist()]) for key, labels in self.met.items()}
        places: dict[int, dict[tuple[str, Side], int]] = {}
        for key, labels in roots.items():
            for label in labels.tolist():
                counts = places.setdefault(label, {})
                counts[key] = counts.get(key, 0) + 1
        members: dict[Any, list[int]] = {}
        for label in sorted(places):
            signature = (self.frozen.get(label), tuple(sorted(places[label].items())))
            members.setdefault(signature, []).append(label)
        return self._assemble(roots, list(members.items()))

    def _assemble(self, roots: dict[tuple[str, Side], Labels], members: list[tuple[Any, list[int]]]) -> ChannelPlan:
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
        dims = {key: _dim(labels.tolist(), index, owner, sizes) for key, labels in roots.items()}
        return ChannelPlan(tuple(groups), dims, offsets, total)

    def _group(self, keys: list[tuple[str, Side]], channels: int, frozen: str | None, taken: set[str]) -> ChannelGroup:
        producers = self._named(keys, "out")
        consumers = tuple(name for name in self._named(keys, "in") if name not in producers)
        base = next(iter(producers), None) or next(self._order(name for name, _ in keys))
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        return ChannelGroup(name, channels, producers, consumers, frozen)

    def _named(self, keys: list[tuple[str, Side]], side: Side) -> tuple[str, ...]:
        return tuple(self._order(name for name, found in keys if found == side))

    def _order(self, names: Any) -> Any:
        position = {node.name: step for step, node in enumerate(self.module.graph.nodes)}
        return iter(sorted(set(names), key=position.__getitem__))


def _dim(labels: list[int], index: dict[int, int], owner: dict[int, str], sizes: dict[str, int]) -> Dim:
    counts: dict[str, int] = {}
    for label in labels:
        counts[owner[label]] = counts.get(owner[label], 0) + 1
    terms = tuple((group, count // sizes[group]) for group, count in counts.items())
    return Dim(np.array([index[label] for label in labels], dtype=np.int64), Width(terms))


def weighted_layers(module: fx.GraphModule) -> list[fx.Node]:
    """Return the nodes that call a convolution or linear layer, in execution order."""
    return [n for n in module.graph.nodes if n.op == "call_module" and isinstance(module_of(module, n), WEIGHTED)]


def norm_nodes(module: fx.GraphModule) -> list[fx.Node]:
    """Return the nodes that call a BatchNorm that could not be folded."""
    return [n for n in module.graph.nodes if n.op == "call_module" and isinstance(module_of(module, n), NORMS)]
