"""Removing channels for real: sliced copies made in milliseconds from a float original that is kept."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from worker.graph.groups import ChannelPlan, norm_nodes

Kept = Mapping[str, Sequence[int] | Tensor]


class Slicer:
    """Holds the float network and its channel plan; `sliced` returns smaller networks that share nothing mutable."""

    def __init__(self, module: fx.GraphModule, plan: ChannelPlan) -> None:
        self.module = module
        self.plan = plan
        self._norms = [node.name for node in norm_nodes(module)]

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
        clone._buffers = dict(self.module._buffers)
        clone._modules = {name: self._leaf(name, leaf, mask) for name, leaf in self.module.named_children()}
        return clone

    def _leaf(self, name: str, leaf: nn.Module, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> nn.Module:
        if name in self._norms:
            return _sliced_norm(leaf, self.plan.dims[(name, "value")].kept(mask))
        rows = self.plan.dims[(name, "out")].kept(mask)
        columns = self.plan.dims[(name, "in")].kept(mask)
        return _sliced_layer(leaf, rows, columns)


def _shallow(leaf: nn.Module) -> Any:
    """Copy a leaf without copying its tensors."""
    clone: Any = copy.copy(leaf)
    clone._parameters = dict(leaf._parameters)
    clone._buffers = dict(leaf._buffers)
    return clone


def _sliced_layer(leaf: nn.Module, rows: Tensor, columns: Tensor) -> nn.Module:
    clone = _shallow(leaf)
    weight: Tensor = clone.weight.detach()[rows]
    depthwise = getattr(clone, "groups", 1) > 1 and clone.groups == clone.out_channels == clone.in_channels
    if getattr(clone, "groups", 1) == 1:
        weight = weight[:, columns]
    clone.weight = nn.Parameter(weight, requires_grad=False)
    clone.bias = nn.Parameter(clone.bias.detach()[rows], requires_grad=False)
    for vector in ("bn_beta", "bn_gamma"):
        if hasattr(clone, vector):
            setattr(clone, vector, getattr(clone, vector)[rows])
    if isinstance(clone, nn.Linear):
        clone.out_features, clone.in_features = weight.shape
        return clone
    clone.out_channels = len(rows)
    clone.in_channels = len(columns)
    if depthwise:
        clone.groups = len(rows)
    return clone  # type: ignore[no-any-return]


def _sliced_norm(leaf: nn.Module, channels: Tensor) -> nn.Module:
    clone = _shallow(leaf)
    for name in ("weight", "bias"):
        setattr(clone, name, nn.Parameter(getattr(clone, name).detach()[channels], requires_grad=False))
    for name in ("running_mean", "running_var"):
        setattr(clone, name, getattr(clone, name)[channels])
    clone.num_features = len(channels)
    return clone  # type: ignore[no-any-return]
