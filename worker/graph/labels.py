"""Channel labels: which channel every element of every value belongs to, found by running the graph on labels.

A label tensor is an int64 tensor that broadcasts to its value's shape at batch 1 (extent 1 wherever nothing varies).
Convolutions and linear layers create labels, operations that move data are simply executed on them, element-wise ones
unite those of their operands, and whatever mixes channels pins them: pinned channels stay. (The dependency idea of
Torch-Pruning, Fang et al. 2023, without a graph rebuild per change.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx

from worker.graph.errors import NetworkRefused
from worker.graph.extents import outputs_of, shapes_of
from worker.graph.operands import operands

Side = Literal["out", "in", "param", "value"]
MAX_LABELS = 1 << 23
NOTHING = 0
"""The label of values without channels: positions, attention scores of a single head, constants of one element."""


def thin(labels: Tensor) -> Tensor:
    """Return labels with extent 1 along every axis on which they don't vary."""
    for axis in range(labels.dim()):
        first = labels.narrow(axis, 0, 1)
        if labels.shape[axis] > 1 and (labels.stride(axis) == 0 or bool((labels == first).all())):
            labels = first
    return labels


def varying(labels: Tensor) -> list[int]:
    """Return the axes along which labels vary."""
    return [axis for axis, extent in enumerate(thin(labels).shape) if extent > 1]


def _check_few(count: int) -> None:
    """Refuse what would need more labels than memory should hold: they are per element where channels are reshaped."""
    if count > MAX_LABELS:
        raise NetworkRefused("model-too-large", f"{count} elements to label by channel; at most {MAX_LABELS} are")


class Trace:
    """One pass of labels through a graph: values by node, what was united, what was pinned and why."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.shapes = shapes_of(module)
        self.values: dict[str, Tensor] = {}
        self.met: dict[tuple[str, Side], Tensor] = {}
        self._count = 1
        self._edges: list[Tensor] = []
        self._pins: list[tuple[Tensor, str]] = [(torch.tensor([NOTHING]), "carries no channels")]
        self._classes: Tensor | None = None

    def fresh(self, count: int, reason: str | None = None) -> Tensor:
        """Return new labels [count], pinned where a reason is given."""
        _check_few(self._count + count)
        labels = torch.arange(self._count, self._count + count)
        self._count += count
        self._classes = None
        if reason is not None:
            self.pin(labels, reason)
        return labels

    def nothing(self, node: fx.Node) -> Tensor:
        """Return the labels of a value without channels."""
        return torch.full([1] * len(self.shapes[node.name]), NOTHING)

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Tie labels element by element (shapes broadcast)."""
        operands = torch.broadcast_tensors(left, right)
        _check_few(operands[0].numel())
        pair = torch.stack([item.reshape(-1) for item in operands])
        pair = pair[:, pair[0] != pair[1]]
        if pair.shape[1]:
            self._edges.append(pair)
            self._classes = None

    def pin(self, labels: Tensor, reason: str) -> None:
        """Mark labels as not removable; the first reason is the one shown."""
        self._pins.append((labels.reshape(-1).unique(), reason))

    def stays(self, labels: Tensor) -> bool:
        """Tell whether labels are all pinned by now, each by itself."""
        return bool(torch.isin(labels, torch.cat([pinned for pinned, _ in self._pins])).all())

    def full(self, node: fx.Node) -> Tensor:
        """Return a node's labels in its value's full shape (a view, of which an op may make a copy)."""
        if self.values[node.name].numel() > 1:
            _check_few(math.prod(self.shapes[node.name]) // 2)
        return self.values[node.name].expand(self.shapes[node.name])

    def along(self, labels: Tensor, axis: int, extent: int) -> Tensor:
        """Return labels [extent] along one axis; what varies along others is tied together."""
        rows = labels.movedim(axis, 0).flatten(1) if labels.dim() > 1 else labels.reshape(-1, 1)
        if rows.shape[1] > 1:
            self.unite(rows[:, 1:], rows[:, :1])
        return rows[:, 0].expand(extent)

    def meet(self, name: str, side: Side, labels: Tensor) -> None:
        """Note labels [columns] of a layer's or leaf's dimension."""
        self.met[(name, side)] = labels

    def spread(self, node: fx.Node, labels: Tensor, axis: int) -> Tensor:
        """Return labels [extent] laid along one axis of a node's value."""
        sizes = [1] * len(self.shapes[node.name])
        sizes[axis] = len(labels)
        return labels.reshape(sizes)

    @property
    def classes(self) -> Tensor:
        """Return the class of every label: the smallest label it is tied to."""
        if self._classes is None:
            edges = torch.cat(self._edges, 1).numpy() if self._edges else np.zeros((2, 0), np.int64)
            shape = (self._count, self._count)
            graph = coo_array((np.ones(edges.shape[1], np.int8), (edges[0], edges[1])), shape=shape)
            _, found = connected_components(graph, directed=False)
            _, first = np.unique(found, return_index=True)
            self._classes = torch.from_numpy(first[found].astype(np.int64))
        return self._classes

    def reasons(self) -> dict[int, str]:
        """Return, by class, why it is pinned."""
        found: dict[int, str] = {}
        for labels, reason in (*self._pins[1:], self._pins[0]):  # that nothing is carried explains least
            for item in self.classes[labels].unique().tolist():
                found.setdefault(item, reason)
        return found

    def run(self, flow_of: Callable[[fx.Node], Flow]) -> None:
        """Send labels through the graph, then tie what would not leave a box behind."""
        outputs = {node.name for node in outputs_of(self.module)}
        for node in self.module.graph.nodes:
            if node.op == "output":
                continue
            labels = self._labels(node, flow_of)
            _check_few(labels.untyped_storage().nbytes() // labels.itemsize)
            self.values[node.name] = thin(labels)
            if node.name in outputs:
                self.pin(self.values[node.name], "network output")
        self._settle()

    def _labels(self, node: fx.Node, flow_of: Callable[[fx.Node], Flow]) -> Tensor:
        if node.op == "placeholder":
            return self._input(node)
        if node.op == "get_attr":
            shape = self.shapes[node.name]
            count = torch.Size(shape).numel()
            return self.nothing(node) if count == 1 else self.fresh(count).reshape(shape)
        return flow_of(node)(self, node, operands(node))

    def _input(self, node: fx.Node) -> Tensor:
        shape = self.shapes[node.name]
        if len(shape) < 2 or not node.meta.get("input_dtype", torch.float32).is_floating_point:
            return self.nothing(node)
        return self.spread(node, self.fresh(shape[1], "network input"), 1)

    def _settle(self) -> None:
        """Removal must leave every value a box: its classes may vary along one axis only.

        Where they vary along several, the second last is kept if the last is among them (heads of an attention),
        otherwise the longest (the channels inside each part of a shuffle).
        """
        for node in self.module.graph.nodes:
            if node.name not in self.values:
                continue
            found = thin(self.classes[self.values[node.name]])
            axes = varying(found)
            if len(axes) > 1:
                last = axes[-1] == found.dim() - 1
                keep = axes[-2] if last else max(axes, key=lambda axis: found.shape[axis])
                self.along(found, keep, found.shape[keep])

    def axis(self, name: str) -> int:
        """Return the axis of a value along which its classes vary (its channel axis; 1 where nothing varies)."""
        axes = varying(self.classes[self.values[name]])
        return axes[0] if axes else max(0, min(1, len(self.shapes[name]) - 1))

    def column_classes(self, name: str) -> Tensor:
        """Return the classes [extent] of a value along its channel axis."""
        axis = self.axis(name)
        labels = self.classes[self.values[name]]
        if labels.dim() == 0:
            return labels.reshape(1).clone()
        return self.along(thin(labels), axis, self.shapes[name][axis]).clone()


Flow = Callable[[Trace, fx.Node, Sequence[fx.Node]], Tensor]
"""How labels flow through an op: (trace, node, operands) -> labels of the node's value."""


def leaf_of(trace: Trace, node: fx.Node) -> Any:
    """Return the leaf a call_module node calls."""
    return trace.module.get_submodule(str(node.target))
