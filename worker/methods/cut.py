"""Cutting away channels that have no weight left, so that zeros buy channels.

A channel is dead where every layer that makes it has nothing but zeros in its row: it is a constant then, the bias
behind its activation. It is removed for real, and what it gave to the layers that read it goes into their biases, by
the means of their outputs on rows (empirical bias correction, Nagel et al. 2019, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.domain.cost import count
from app.domain.space import Assignment, is_legal
from worker.methods.protocol import Subject
from worker.methods.threshold import dead_channels
from worker.methods.trainable import TRAINABLE
from worker.quant.layer import QuantizedLayer
from worker.quant.network import CompressedNetwork
from worker.quant.rebias import layer_means, matched, own_leaves

ROWS = 512
Kept = Mapping[str, tuple[int, ...]]


def without_dead_channels(net: CompressedNetwork, subject: Subject) -> CompressedNetwork:
    """Return a network less its dead channels, as far as counts of channels are legal; itself where none can go.

    Networks with gates, or with layers that are no convolution or linear layer, stay as they are.
    """
    kept = _left(net, subject) if _is_plain(net) else None
    if kept is None:
        return net
    assignment = replace(net.assignment, keep={**net.assignment.keep, **{name: len(ids) for name, ids in kept.items()}})
    legal = is_legal(subject.graph, subject.space, assignment, subject.device)
    if not legal or not subject.budget.is_met(count(subject.graph, assignment, subject.device)):
        return net
    return _corrected(_cut(net, subject, assignment, {**net.kept, **kept}), net, subject)


def _is_plain(net: CompressedNetwork) -> bool:
    leaves = dict(net.module.named_children())
    return not net.gates and all(name in leaves and isinstance(leaves[name], TRAINABLE) for name in net.layers)


def _left(net: CompressedNetwork, subject: Subject) -> Kept | None:
    """Return the channels that stay, by group, of those groups that lose some; None where no group does."""
    plan = subject.compressor.slicer.plan
    alive = np.zeros(plan.total + 1, dtype=np.bool_)
    for name, layer in net.layers.items():
        rows = subject.compressor.slicer.columns(name, net.kept)[0].numpy()
        codes = layer.weight_float if layer.weight_int is None else layer.weight_int
        alive[plan.dims[(name, "out")].channel[rows]] |= ~dead_channels(torch.from_numpy(codes != 0)).numpy()
    found = {}
    for group in subject.graph.prunable:
        now = net.kept.get(group.id, tuple(range(group.channels)))
        chosen = _chosen(now, alive[plan.offsets[group.id] :], subject.space.keep[group.id])
        if len(chosen) < len(now):
            found[group.id] = chosen
    return found or None


def _chosen(now: tuple[int, ...], alive: Any, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return the living channels, and dead ones up to the next legal count: the first of them."""
    living = [index for index in now if alive[index]]
    wanted = min((count for count in counts if len(living) <= count <= len(now)), default=len(now))
    dead = [index for index in now if not alive[index]]
    return tuple(sorted(living + dead[: wanted - len(living)]))


def _cut(net: CompressedNetwork, subject: Subject, assignment: Assignment, kept: Kept) -> CompressedNetwork:
    """Return the network of fewer channels, weights and biases as they were."""
    base = subject.compressor.compress(assignment, "none", kept)
    module, layers = own_leaves(base), {}
    for name, layer in net.layers.items():
        old: Any = net.module.get_submodule(name)
        leaf: Any = module.get_submodule(name)
        places = _places(name, net, subject, kept)
        picked = _picker(places, getattr(old, "groups", 1) > 1)
        layers[name] = _layer(layer, picked, places[0])
        leaf.weight = nn.Parameter(picked(old.weight.detach()), requires_grad=False)
        leaf.bias = nn.Parameter(torch.from_numpy(np.array(layers[name].bias)), requires_grad=False)
    return replace(base, module=module, layers=layers, grids=net.grids)


def _places(name: str, net: CompressedNetwork, subject: Subject, kept: Kept) -> tuple[Tensor, Tensor]:
    """Return where a layer's rows and columns that stay lie among those there are."""
    columns = subject.compressor.slicer.columns
    pairs = zip(columns(name, net.kept), columns(name, kept), strict=True)
    rows, inputs = (torch.searchsorted(now, then) for now, then in pairs)
    return rows, inputs


def _picker(places: tuple[Tensor, Tensor], grouped: bool) -> Callable[[Tensor], Tensor]:
    """Return what picks those out of weights [out, in / groups, *kernel]; groups go whole, with their rows."""
    rows, columns = places
    return lambda weight: weight[rows] if grouped else weight[rows][:, columns]


def _layer(layer: QuantizedLayer, picked: Callable[[Tensor], Tensor], rows: Tensor) -> QuantizedLayer:
    """Return a layer of fewer rows and columns."""
    codes, weights, scale = layer.weight_int, layer.weight_float, layer.weight_scale
    return replace(
        layer,
        bias=layer.bias[rows.numpy()],
        weight_int=None if codes is None else picked(torch.from_numpy(codes)).numpy(),
        weight_float=None if weights is None else picked(torch.from_numpy(weights)).numpy(),
        weight_scale=scale if scale is None or len(scale) == 1 else scale[rows.numpy()],
    )


def _corrected(made: CompressedNetwork, net: CompressedNetwork, subject: Subject) -> CompressedNetwork:
    """Return the smaller network with the mean outputs that the whole one's layers have."""
    inputs = subject.rows.head(ROWS).inputs
    means = layer_means(net.module, net.layers, inputs, net.grids)
    wanted = {name: mean[_places(name, net, subject, made.kept)[0]] for name, mean in means.items()}
    return matched(made, subject.graph, wanted, inputs)
