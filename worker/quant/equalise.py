"""Cross-layer equalisation: channels scaled so that one weight scale per tensor suits them all.

relu(s x) = s relu(x) for s > 0, so that a layer's output channels can be divided by s when the next layer's input
channels are multiplied by it: the network stays the same function. s = sqrt(r1 * r2) / r2 makes the largest weights of
both alike, r1 and r2 (Nagel et al. 2019, section 4.1, equation 11). Only where each layer has one scale per tensor does
that help: a device with scales per channel equalises by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.graph.groups import weighted_layers
from worker.graph.ops.parametric import CONVOLUTIONS
from worker.graph.ops.pooling import AVG_POOLS, MAX_POOLS
from worker.graph.ops.table import module_of

HOMOGENEOUS = frozenset({torch.relu, *MAX_POOLS, *AVG_POOLS})
"""Functions f with f(s x) = s f(x) for s > 0, channel by channel."""
ROUNDS = 20
SETTLED = 1e-4
_LAYERS = (*CONVOLUTIONS, nn.Linear)


def equalised(module: fx.GraphModule) -> fx.GraphModule | None:
    """Return a copy with equalised weights that computes the same function, or None where no two layers can be."""
    nodes = list(pairs(module))
    if not nodes:
        return None
    found = copy.deepcopy(module)
    layers = [(module_of(found, one), module_of(found, other)) for one, other in nodes]
    with torch.no_grad():
        for _ in range(ROUNDS):
            if max([_equalise(one, other) for one, other in layers]) < SETTLED:
                break
    return found


def pairs(module: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Return (layer, next layer) wherever nothing but homogeneous functions lies between them, and nothing else reads
    what lies there."""
    for node in weighted_layers(module):
        other, _ = follows(module, node, HOMOGENEOUS)
        if other is not None:
            yield node, other


def follows(
    module: fx.GraphModule, node: fx.Node, passing: Collection[Any]
) -> tuple[fx.Node | None, tuple[fx.Node, ...]]:
    """Return the one layer that alone reads a layer's channels, through functions among `passing`, and these; None
    where there is no such layer."""
    end, between = node, []
    while len(end.users) == 1:
        (follower,) = end.users
        if follower.op == "call_function" and follower.target in passing:
            between.append(follower)
            end = follower
            continue
        if follower.op == "call_module" and _joins(module_of(module, node), module_of(module, follower)):
            return follower, tuple(between)
        break
    return None, ()


def _joins(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether the output channels of one layer are the input channels of another, one by one."""
    if not isinstance(one, _LAYERS) or not isinstance(other, _LAYERS):
        return False
    return isinstance(one, nn.Linear) == isinstance(other, nn.Linear) and (_is_depthwise(other) or _groups(other) == 1)


def _groups(leaf: Any) -> int:
    return int(getattr(leaf, "groups", 1))


def _is_depthwise(leaf: Any) -> bool:
    return _groups(leaf) > 1 and _groups(leaf) == leaf.in_channels == leaf.out_channels


def _equalise(one: Any, other: Any) -> float:
    """Scale both layers in place; return the largest change of a channel's scale, as a ratio less 1."""
    here = one.weight.abs().flatten(1).amax(1)
    inward = other.weight if _is_depthwise(other) else other.weight.transpose(0, 1)
    there = inward.abs().flatten(1).amax(1)
    usable = (here > 0) & (there > 0)
    scale = torch.where(usable, (here / there).sqrt(), 1.0)
    one.weight /= _by_row(scale, one.weight)
    for name in ("bias", "bn_beta", "bn_gamma"):
        if getattr(one, name, None) is not None:
            setattr(one, name, _like(getattr(one, name), getattr(one, name) / scale))
    other.weight *= _by_row(scale, other.weight) if _is_depthwise(other) else _by_row(scale, inward).transpose(0, 1)
    return float((torch.maximum(scale, 1 / scale) - 1).max())


def _by_row(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (weight.dim() - 1))


def _like(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
