"""A compressed network that can be trained: float master weights and learned grids behind quantizers.

The canonical graph is run node by node as in the simulation, with gradients. What a method adds are the quantizers: one
module per layer for its weights, one per quantizer site, and whatever else changes a value behind a node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from worker.graph.extents import outputs_of
from worker.graph.operands import last_uses, operands
from worker.graph.ops.parametric import CONVOLUTIONS
from worker.graph.sites import quantizer_sites
from worker.quant.compressor import bias_on_grid, within_accumulator
from worker.quant.gates import readers
from worker.quant.grids import ActivationGrid
from worker.quant.layer import QuantizedLayer, is_float
from worker.quant.network import CompressedNetwork
from worker.quant.rebias import own_leaves

TRAINABLE = (*CONVOLUTIONS, nn.Linear)
"""Leaves whose weights are trained; those of others (recurrent, transposed) stay as the search left them."""


class WeightQuantizer(Protocol):
    """A module that takes a layer's master weight [out, in / groups, *kernel] to what the layer computes with."""

    def __call__(self, weight: Tensor) -> Tensor: ...

    def integers(self, weight: Tensor) -> Tensor:
        """Return the integers (as float) that the hard network stores."""
        ...

    @property
    def scale(self) -> Tensor:
        """Return the float32 scales, [out] or [1]."""
        ...


class SiteQuantizer(Protocol):
    """A module that takes a value behind a node to the grid that is stored for it."""

    def __call__(self, value: Tensor) -> Tensor: ...

    def grid(self) -> ActivationGrid:
        """Return the hard grid."""
        ...


class Quantizers(Protocol):
    """What a method puts into a network."""

    def weight(self, layer: QuantizedLayer) -> nn.Module:
        """Return a `WeightQuantizer` that starts from a layer's stored scales."""
        ...

    def site(self, grid: ActivationGrid) -> nn.Module:
        """Return a `SiteQuantizer` that starts from a grid."""
        ...


class TrainableNetwork(nn.Module):
    """A compressed network with a method's quantizers, whose dequantised weights become the master weights.

    `hard` returns it as it is stored. In training mode quantizers may draw noise; in evaluation mode the outputs are
    those of the hard network but for the order of sums and the rounding of biases. Stored gates stay as they are.
    """

    def __init__(self, start: CompressedNetwork, quantizers: Quantizers) -> None:
        super().__init__()
        self._start = start
        self._last = last_uses(start.module)
        self._nodes = [node for node in start.module.graph.nodes if node.op != "output"]
        self._fixed = dict(start.module.named_children())
        self._leaves: dict[str, nn.Module] = {}
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        self.weight_quantizers, self.sites = nn.ModuleDict(), nn.ModuleDict()
        self._reads = readers(start.gates)
        self._masks: dict[str, Tensor] = {}
        of = quantizer_sites(start.module).of
        self._inputs = {node.name: of.get(operands(node)[0].name) for node in self._nodes if node.op == "call_module"}
        for node in self._nodes:
            self._take(node, quantizers)
        for site, grid in start.grids.items():
            if not is_float(grid.bits):
                self.sites[key_of(site)] = quantizers.site(grid)

    def _take(self, node: fx.Node, quantizers: Quantizers) -> None:
        if node.op != "call_module" or node.name not in self._start.layers:
            return
        found = self._start.module.get_submodule(str(node.target))
        if not isinstance(found, TRAINABLE):
            return
        leaf: Any = found
        stored, key = self._start.layers[node.name], key_of(node.name)
        self._leaves[node.name] = leaf
        self.weights[key] = nn.Parameter(leaf.weight.detach().clone())
        self.biases[key] = nn.Parameter(torch.from_numpy(np.array(stored.bias)))
        if stored.weight_int is not None:
            self.weight_quantizers[key] = quantizers.weight(stored)

    @property
    def origin(self) -> CompressedNetwork:
        """Return the network that training began with."""
        return self._start

    @property
    def trained(self) -> tuple[str, ...]:
        """Return the layers whose weights are trained, in execution order."""
        return tuple(self._leaves)

    def quantizer(self, layer: str) -> Any:
        """Return a layer's weight quantizer (None: its weights stay float)."""
        key = key_of(layer)
        return self.weight_quantizers[key] if key in self.weight_quantizers else None  # noqa: SIM401 - no get

    def site(self, name: str) -> Any:
        """Return the quantizer of a site (None: it stays float)."""
        key = key_of(name)
        return self.sites[key] if key in self.sites else None  # noqa: SIM401 - no get

    def weight(self, layer: str) -> nn.Parameter:
        """Return a layer's master weight."""
        found: nn.Parameter = self.weights[key_of(layer)]
        return found

    def bias(self, layer: str) -> nn.Parameter:
        """Return a layer's bias."""
        found: nn.Parameter = self.biases[key_of(layer)]
        return found

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for a batch of normalised inputs."""
        values: dict[str, Any] = {}
        given = iter(inputs)
        self._masks = {}
        for node in self._nodes:
            value = self._value(node, values, given)
            values[node.name] = value if node.op == "get_attr" else self._behind(node.name, value)
            for gone in self._last.get(node.name, ()):
                del values[gone]
        return tuple(values[node.name] for node in outputs_of(self._start.module))

    def _value(self, node: fx.Node, values: Mapping[str, Any], given: Iterator[Tensor]) -> Any:
        if node.op == "placeholder":
            return next(given)
        if node.op == "get_attr":
            return getattr(self._start.module, str(node.target))
        if node.op == "call_module":
            return self._leaf(node, values[operands(node)[0].name])
        return node.target(*fx.node.map_arg(node.args, lambda item: values[item.name]), **node.kwargs)  # type: ignore[operator]

    def _leaf(self, node: fx.Node, source: Tensor) -> Tensor:
        leaf, key = self._leaves.get(node.name), key_of(node.name)
        if leaf is None:
            found: Tensor = self._fixed[str(node.target)](source)
            return found
        weight, bias = self.weights[key], self.biases[key]
        if key in self.weight_quantizers:
            weight = self.weight_quantizers[key](weight)
            bias = self._bias(node.name, bias)
        result: Tensor = functional_call(leaf, {"weight": weight, "bias": bias}, (source,))
        return result

    def _bias(self, layer: str, bias: Tensor) -> Tensor:
        """Return a bias on the accumulator's grid: few bits make it so coarse that training has to know."""
        grid = self._grid(self._inputs[layer])
        scale = self.quantizer(layer).scale.detach().float()
        return bias + (bias_on_grid(bias.detach(), scale.expand(len(bias)), grid) - bias.detach())

    def _grid(self, site: str | None) -> ActivationGrid | None:
        """Return a site's grid as it is now."""
        learned = None if site is None else self.site(site)
        return self._start.grids.get(site or "") if learned is None else learned.grid()

    def _behind(self, name: str, value: Tensor) -> Tensor:
        """Return a node's value as later nodes read it."""
        site = self.site(name)
        found: Tensor = value if site is None else site(value)
        if name in self._masks:
            found = self._start.gates[name].apply(found, self._masks[name])
        for gated in self._reads.get(name, ()):
            self._masks[gated] = self._mask(gated, found)
        return found

    def _mask(self, site: str, value: Tensor) -> Tensor:
        """Return which filters run [n, filters] behind a gated site, by the value that its gate reads."""
        return self._start.gates[site].mask(value)

    def hard(self) -> CompressedNetwork:
        """Return the network as it is stored: integers, scales, biases on the accumulator's grid, activation grids."""
        start = self._start
        grids = {name: self._grid(name) or grid for name, grid in start.grids.items()}
        module, layers = own_leaves(start), dict(start.layers)
        with torch.no_grad():
            for name in self._leaves:
                leaf: Any = module.get_submodule(name)
                layers[name], weight = self._stored(name, self._grid(self._inputs[name]))
                leaf.weight = nn.Parameter(weight, requires_grad=False)
                leaf.bias = nn.Parameter(torch.from_numpy(np.array(layers[name].bias)), requires_grad=False)
        return replace(start, module=module, layers=layers, grids=grids)

    def _stored(self, name: str, grid: ActivationGrid | None) -> tuple[QuantizedLayer, Tensor]:
        """Return a layer as it is stored, and its weight as the hard network computes with it."""
        stored, key = self._start.layers[name], key_of(name)
        weight, bias, quantizer = self.weights[key].detach(), self.biases[key].detach(), self.quantizer(name)
        if quantizer is None:
            return replace(stored, bias=bias.numpy(), weight_float=weight.numpy()), weight
        integers, scale = quantizer.integers(weight), quantizer.scale.detach().float()
        found = as_stored(stored, integers, scale, bias, grid)
        return found, _column(found.weight_scale, weight) * torch.from_numpy(np.array(found.weight_int)).float()


def key_of(name: str) -> str:
    """Return a node's name as a module may be called: torch reserves points, and its own attributes' names."""
    return "n_" + name.replace(".", "__")


def _column(scale: Any, weight: Tensor) -> Tensor:
    """Return scales, [out] or [1], so that they broadcast with a weight [out, ...]."""
    return torch.as_tensor(np.array(scale)).reshape(-1, *[1] * (weight.dim() - 1))


def as_stored(
    like: QuantizedLayer, codes: Tensor, scale: Tensor, bias: Tensor, grid: ActivationGrid | None
) -> QuantizedLayer:
    """Return a layer of the bits of another one: integers (as float), scales [out] or [1], and a bias that is put on
    the accumulator's grid behind the activation grid that the layer reads from.

    A scale at which int32 could not hold the bias is raised to a power of two, which every device takes: such channels
    have next to no weights.
    """
    if grid is not None:
        raised = within_accumulator(scale, bias, grid, powers=True)
        codes = torch.where(_column(raised > scale, codes), (codes * _column(scale / raised, codes)).round(), codes)
        scale = raised
    bias = bias_on_grid(bias, scale.expand(len(bias)), grid)
    integers = codes.numpy().astype(np.int8 if like.bits <= 8 else np.int16)
    return replace(like, bias=bias.numpy(), weight_int=integers, weight_scale=scale.numpy())
