"""Removing channels for real: sliced copies made in milliseconds from a float original that is kept."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from worker.graph.constants import RemovedConstants
from worker.graph.groups import ChannelPlan, Mask
from worker.graph.operands import operands
from worker.graph.ops import op_of

Kept = Mapping[str, Sequence[int] | Tensor]


class Slicer:
    """Holds the float network and its channel plan; `sliced` returns smaller networks that share nothing mutable.

    What removed channels leave behind as constants is folded into their readers' biases (`worker.graph.constants`).
    """

    def __init__(self, module: fx.GraphModule, plan: ChannelPlan) -> None:
        self.module = module
        self.plan = plan
        self._leaves = {str(node.target): node for node in module.graph.nodes if node.op == "call_module"}
        self._constants = {str(node.target): node for node in module.graph.nodes if node.op == "get_attr"}

    def columns(self, layer: str, kept: Kept) -> tuple[Tensor, Tensor]:
        """Return the kept output rows and input columns of a layer (int64 indices)."""
        mask = self.plan.mask(kept)
        return self.plan.dims[(layer, "out")].kept(mask), self.plan.dims[(layer, "in")].kept(mask)

    def sliced(self, kept: Kept) -> fx.GraphModule:
        """Return a new network that keeps, per channel group, the given channel indices (absent groups keep all)."""
        mask = self.plan.mask(kept)
        # the generated forward is shared: compiling a new GraphModule would cost more than the slicing itself
        clone: fx.GraphModule = object.__new__(type(self.module))
        clone.__dict__.update(self.module.__dict__)
        clone._buffers = {name: self._constant(name, buffer, mask) for name, buffer in self.module._buffers.items()}
        clone._modules = {name: self._leaf(name, leaf, mask) for name, leaf in self.module.named_children()}
        return clone

    def _constant(self, name: str, buffer: Tensor | None, mask: Mask) -> Tensor | None:
        node = self._constants.get(name)
        if node is None or buffer is None or buffer.dim() == 0:
            return buffer
        dim = self.plan.dims[(node.name, "value")]
        columns = dim.kept(mask)
        return buffer if len(columns) == buffer.shape[dim.axis] else buffer.index_select(dim.axis, columns)

    def _leaf(self, name: str, leaf: nn.Module, mask: Mask) -> Any:
        node = self._leaves[name]
        op = op_of(self.module, node)
        assert op is not None and op.leaf is not None
        clone = _shallow(leaf)
        op.leaf.cut(clone, NodeCut(self.plan, node, mask))
        shift = self._removed.shift(node.name, mask)
        if shift is not None:
            clone.bias = nn.Parameter(clone.bias.detach() + shift, requires_grad=False)
        return clone

    @functools.cached_property
    def _removed(self) -> RemovedConstants:
        return RemovedConstants(self.module, self.plan)


class NodeCut:
    """What the plan says about one leaf under a mask."""

    def __init__(self, plan: ChannelPlan, node: fx.Node, mask: Mask) -> None:
        self._plan, self._node, self._mask = plan, node, mask

    def kept(self, side: Any) -> Tensor:
        """Return the kept columns of one side of the leaf."""
        return self._plan.dims[(self._node.name, side)].kept(self._mask)

    def axis(self) -> int:
        """Return the channel axis of the leaf's value."""
        return self._plan.dims[(self._node.name, "value")].axis

    def source(self) -> tuple[int, Tensor]:
        """Return channel axis and kept columns of the value the leaf reads."""
        dim = self._plan.dims[(operands(self._node)[0].name, "value")]
        return dim.axis, dim.kept(self._mask)


def _shallow(leaf: nn.Module) -> Any:
    """Copy a leaf without copying its tensors."""
    clone: Any = copy.copy(leaf)
    clone._parameters = dict(leaf._parameters)
    clone._buffers = dict(leaf._buffers)
    return clone
