"""High biases absorbed: what a channel never falls below is moved into the next layer's bias.

A channel that a BatchNorm leaves at beta with deviation |gamma| stays above c = max(0, beta - 3 |gamma|) but for one
value in 740, and relu(z) = relu(z - c) + c there. So c is taken from the layer's bias, and what the next layer makes of
a picture of c everywhere is added to its bias (Nagel et al. 2019, section 4.1.3). With no activation between, c = beta.
Activations then need less range, which one grid per tensor has to spread over all channels. The function stays the
same where no value lies below c and the next layer sees no zeros at the border; where it does, its mean stays.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from worker.graph.extents import shapes_of
from worker.graph.groups import weighted_layers
from worker.graph.ops.pooling import AVG_POOLS, MAX_POOLS
from worker.graph.ops.table import module_of
from worker.quant.equalise import follows

SIGMAS = 3.0
PASSING = frozenset({torch.relu, *MAX_POOLS, *AVG_POOLS, F.pad})
"""Functions f with f(x + c) = f(x) + f(c) channel by channel, for x >= 0 and a constant c >= 0."""


@dataclass(frozen=True)
class _Pair:
    """A layer, the next one, and what lies between."""

    one: fx.Node
    other: fx.Node
    between: tuple[fx.Node, ...]


def absorbed(module: fx.GraphModule, sigmas: float = SIGMAS) -> fx.GraphModule | None:
    """Return a copy of a BatchNorm-folded graph with high biases absorbed, or None where there are none.

    The layers' `bn_beta` follow.
    """
    found, shapes, changed = copy.deepcopy(module), shapes_of(module), False
    with torch.no_grad():
        for pair in _pairs(module):
            one, other = (module_of(found, node) for node in (pair.one, pair.other))
            amount = high_bias(one, pair.between, sigmas)
            if not bool((amount != 0).any()):
                continue
            shape = shapes[pair.one.name]
            _shift(one, "bias", -amount)
            _shift(one, "bn_beta", -amount)
            _shift(other, "bias", _response(amount, shape[2:], pair.between, other))
            changed = True
    return found if changed else None


def high_bias(layer: Any, between: Sequence[fx.Node], sigmas: float = SIGMAS) -> Tensor:
    """Return what each channel behind a layer's BatchNorm stays above [out]; its mean where no ReLU follows."""
    beta: Tensor = layer.bn_beta
    gamma: Tensor = layer.bn_gamma
    if not any(node.target is torch.relu for node in between):
        return beta.clone()
    return (beta - sigmas * gamma.abs()).clamp_min(0)


def _pairs(module: fx.GraphModule) -> Iterator[_Pair]:
    """Return the layers with a BatchNorm that another one alone follows, behind functions that constants pass.

    Pooling and padding change what they are given, so that they need a ReLU before them: values from 0 on.
    """
    for node in weighted_layers(module):
        leaf = module_of(module, node)
        if getattr(leaf, "bn_beta", None) is None:
            continue
        other, between = follows(module, node, PASSING)
        if other is None or any(_fills(item) for item in between):
            continue
        if not between or between[0].target is torch.relu:
            yield _Pair(node, other, between)


def _fills(node: fx.Node) -> bool:
    """Tell whether a node brings other constants than 0 into its values."""
    held = node.kwargs
    return node.target is F.pad and (held.get("mode", "constant") != "constant" or bool(held.get("value")))


def _response(amount: Tensor, sizes: Sequence[int], between: Sequence[fx.Node], layer: Any) -> Tensor:
    """Return the mean per channel [out] of what a layer makes of a picture of constants, without its bias.

    The mean counts the zeros that padding lets it see: it leaves the least squared error, and no mean error.
    """
    value = amount.reshape(1, -1, *[1] * len(sizes)).expand(1, -1, *sizes)
    for node in between:
        target: Any = node.target
        value = value if target is torch.relu else target(value, **node.kwargs)
    outputs = layer(value) - layer.bias.reshape(1, -1, *[1] * len(sizes))
    mean: Tensor = outputs.transpose(0, 1).flatten(1).mean(1)
    return mean


def _shift(layer: Any, name: str, amount: Tensor) -> None:
    held = getattr(layer, name, None)
    if held is not None:
        moved = held + amount
        setattr(layer, name, nn.Parameter(moved, requires_grad=False) if isinstance(held, nn.Parameter) else moved)
