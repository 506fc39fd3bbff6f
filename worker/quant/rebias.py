"""New biases for a compressed network: its layers' mean outputs moved to the float network's, on the same rows."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from app.domain.graph import ModelGraph
from worker.quant.compressor import bias_on_grid
from worker.quant.gates import readers
from worker.quant.grids import ActivationGrid
from worker.quant.network import CompressedNetwork
from worker.quant.walk import run


def mean_output(leaf: nn.Module, outputs: Tensor) -> Tensor:
    """Return the mean per channel [out] of a layer's outputs over rows and places."""
    outputs = outputs.movedim(-1 if isinstance(leaf, nn.Linear) else 1, 0)
    return outputs.flatten(1).mean(1)


def layer_means(
    module: fx.GraphModule,
    layers: Collection[str],
    inputs: Sequence[Tensor],
    grids: Mapping[str, ActivationGrid] | None = None,
) -> dict[str, Tensor]:
    """Return the mean output per channel of some layers of a network; of a compressed one with its grids."""
    found: dict[str, Tensor] = {}

    def after(name: str, value: Tensor) -> Tensor:
        if name in layers:
            found[name] = mean_output(module.get_submodule(name), value)
        grid = (grids or {}).get(name)
        return value if grid is None else grid.fake_quantize(value)

    run(module, *inputs, after=after)
    return found


def matched(
    net: CompressedNetwork, graph: ModelGraph, wanted: Mapping[str, Tensor], inputs: Sequence[Tensor]
) -> CompressedNetwork:
    """Move layers' mean outputs to those `wanted` [kept out], each on what the corrected layers before it make.

    Empirical bias correction, sequential: what drifts in one layer is taken back in the next (Nagel et al. 2019,
    appendix D). A layer that is not among `wanted` stays. Behind gates layers see zeros where filters do not run.
    """
    module, layers = own_leaves(net), dict(net.layers)
    reads, masks = readers(net.gates), dict[str, Tensor]()

    def before(node: fx.Node, source: Tensor) -> None:
        if node.name not in layers or node.name not in wanted:
            return
        leaf = module.get_submodule(node.name)
        bias = leaf.bias.detach() + wanted[node.name] - mean_output(leaf, leaf(source))
        _install(net, graph, (module, layers), (node.name, bias))

    def after(name: str, value: Tensor) -> Tensor:
        grid = net.grids.get(name)
        value = value if grid is None else grid.fake_quantize_(value)
        if name in masks:
            value = net.gates[name].apply(value, masks[name])
        masks.update({site: net.gates[site].mask(value) for site in reads.get(name, ())})
        return value

    run(module, *inputs, before=before, after=after)
    return replace(net, module=module, layers=layers)


def rebiased(net: CompressedNetwork, graph: ModelGraph, biases: Mapping[str, Tensor]) -> CompressedNetwork:
    """Return a network with other biases [kept out], on the grids of the layers' accumulators."""
    module, layers = own_leaves(net), dict(net.layers)
    for item in biases.items():
        _install(net, graph, (module, layers), item)
    return replace(net, module=module, layers=layers)


def _install(net: CompressedNetwork, graph: ModelGraph, place: tuple[Any, dict[str, Any]], item: Any) -> None:
    (module, layers), (name, bias) = place, item
    stored, bias = layers[name], bias.float()
    if stored.weight_scale is not None:
        scale = torch.from_numpy(np.asarray(stored.weight_scale))
        bias = bias_on_grid(bias, scale, net.grids.get(graph.layer[name].input))
    module.get_submodule(name).bias = nn.Parameter(bias, requires_grad=False)
    layers[name] = replace(stored, bias=bias.numpy().astype(np.float32))


def own_leaves(net: CompressedNetwork) -> Any:
    """Return the network's module with leaves of its own: new biases leave the old network as it is."""
    clone: Any = object.__new__(type(net.module))
    clone.__dict__.update(net.module.__dict__)
    clone._modules = {name: _own(leaf) for name, leaf in net.module.named_children()}
    return clone


def _own(leaf: nn.Module) -> nn.Module:
    found = copy.copy(leaf)
    found._parameters = dict(leaf._parameters)
    return found


def biases_of(net: CompressedNetwork, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the stored biases of some layers."""
    return {name: torch.from_numpy(np.array(net.layers[name].bias)) for name in names}
