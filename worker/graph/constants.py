"""What removed channels leave behind: constants, folded into the layers that read them where that is exact.

A channel whose producers' weights are all zero still carries their bias through BatchNorm and activations: a constant.
A layer that sees the same number at every position adds W[:, c] * constant to its output, which is as well added to its
bias. Where a layer pads with zeros, or the constant differs from place to place, it can't be: such a channel counts as
zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.graph.extents import inputs_of
from worker.graph.groups import FIXED, ChannelPlan, Mask, weighted_layers
from worker.graph.leaves import Recurrent
from worker.graph.operands import operands
from worker.graph.ops.parametric import CONVOLUTIONS, WEIGHTED
from worker.graph.ops.table import module_of

ROUNDING = 1e-6


class RemovedConstants:
    """For each layer, what each of its input columns adds to its outputs once it is removed: [out, in] (or None)."""

    def __init__(self, module: fx.GraphModule, plan: ChannelPlan) -> None:
        values = _Emptied(module, plan).values()
        self._plan = plan
        self._added: Mapping[str, Tensor | None] = {
            node.name: _added(module_of(module, node), values[operands(node)[0].name])
            for node in weighted_layers(module)
        }

    def shift(self, layer: str, mask: Mask) -> Tensor | None:
        """Return what the bias of a layer's kept rows [kept] gains when all that `mask` leaves out is removed."""
        added = self._added.get(layer)
        if added is None:
            return None
        gone = torch.from_numpy(~mask[self._plan.dims[(layer, "in")].channel])
        rows = self._plan.dims[(layer, "out")].kept(mask)
        return added[rows][:, gone].sum(1) if bool(gone.any()) else None


def _added(leaf: nn.Module, value: Tensor) -> Tensor | None:
    """Return W summed over the kernel times each column's constant, 0 where there is none that folds."""
    layer: Any = leaf
    is_conv = isinstance(leaf, CONVOLUTIONS)
    if not is_conv and not isinstance(leaf, nn.Linear):
        return None  # a transposed convolution adds another number of taps at each position
    if is_conv and (layer.groups > 1 or any(layer.padding)):
        return None  # groups go as a whole, and padding makes the border another sum
    columns = value.movedim(1 if is_conv else -1, 0).flatten(1)
    low, high = columns.aminmax(dim=1)
    # a kernel may round one position differently from the next; never true for NaN
    uniform = high - low <= ROUNDING * torch.maximum(low.abs(), high.abs())
    constant = torch.where(uniform, (low + high) / 2, 0.0)
    if not bool(constant.any()):
        return None
    weight: Tensor = layer.weight.detach()
    return (weight.flatten(2).sum(2) if is_conv else weight) * constant


class _Emptied(fx.Interpreter):
    """Runs the network at batch 1 with every removable channel emptied; what isn't a known constant is NaN.

    NaN spreads through arithmetic by itself. Truth values and integers can't hold it: what depends on them is NaN too.
    """

    def __init__(self, module: fx.GraphModule, plan: ChannelPlan) -> None:
        super().__init__(module)
        self._plan = plan
        self._frozen = _frozen_channels(plan)
        self._unknown: set[str] = set()
        self._found: dict[str, Tensor] = {}

    def values(self) -> dict[str, Tensor]:
        """Return every node's value."""
        with torch.no_grad():
            self.run(*(_unknown(item.example()) for item in inputs_of(self.module)))  # type: ignore[arg-type]
        return self._found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op != "output":
            value = self._settled(n, value)
            self._found[n.name] = value
        return value

    def _settled(self, node: fx.Node, value: Tensor) -> Tensor:
        """Return a node's value with what is not known marked."""
        leaf = module_of(self.module, node) if node.op == "call_module" else None
        if isinstance(leaf, WEIGHTED):
            return self._filled(node, value, leaf.bias)  # type: ignore[arg-type]
        if isinstance(leaf, nn.Embedding):
            return self._filled(node, value, torch.zeros(leaf.embedding_dim))
        tainted = any(source.name in self._unknown for source in operands(node)) or node.op == "placeholder"
        if value.is_floating_point():
            return torch.full_like(value, torch.nan) if tainted or isinstance(leaf, Recurrent) else value
        if tainted or any(bool(self._found[source.name].isnan().any()) for source in operands(node)):
            self._unknown.add(node.name)
        return value

    def _filled(self, node: fx.Node, value: Tensor, bias: Tensor | None) -> Tensor:
        """Return a layer's output when the rows of removable channels are zero: their bias, NaN for all others."""
        dim = self._plan.dims[(node.name, "param" if (node.name, "param") in self._plan.dims else "out")]
        rows = torch.zeros(len(dim.channel)) if bias is None else bias.detach().clone()
        rows[torch.from_numpy(self._frozen[dim.channel])] = torch.nan
        axis = value.dim() - 1 if isinstance(module_of(self.module, node), nn.Linear | nn.Embedding) else 1
        sizes = [1] * value.dim()
        sizes[axis] = -1
        return rows.reshape(sizes).expand(value.shape).clone()


def _unknown(example: Tensor) -> Tensor:
    return torch.full_like(example, torch.nan) if example.is_floating_point() else example


def _frozen_channels(plan: ChannelPlan) -> Mask:
    """Return, over all channels of a plan, which are never removed (the last entry, `FIXED`, is one)."""
    kept: dict[str, list[int]] = {group.id: [] for group in plan.groups if group.frozen is None}
    frozen = plan.mask(kept)
    assert frozen[FIXED]
    return frozen
