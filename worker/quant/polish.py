"""What is done to a search's best networks and would be too slow for every trial: each step kept only where it helps.

The steps, in order:
- "thorough": compress again from all calibration rows and `ROWS` times as many places in each layer;
- "redrawn-1", "redrawn-2": the same from other places (least squares and rounding hang on the sample they see);
- "bias": last, each output channel's mean over all places is moved to the float network's, layer by layer, on what the
  polished layers before it produce (empirical bias correction, Nagel et al. 2019, section 4.2).
Nothing is fitted on the rows that decide. Channels and bits stay, and so do all costs. A polished network is named by
its repair and the steps kept, "sequential+redrawn-1+bias", and made anew from that name: every step is seeded.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from app.domain.space import Assignment
from worker.quant.compressor import Compressor, bias_on_grid
from worker.quant.network import CompressedNetwork
from worker.quant.reference import FloatReference, Sampling
from worker.quant.steps import DRAWS
from worker.quant.walk import run

ROWS = 4
MEMORY = 512 << 20
"""What references to many rows may take together; beyond it one is held at a time."""


class Polisher:
    """Makes polished networks by name. `inputs`: all calibration rows, one tensor per network input."""

    def __init__(self, compressor: Compressor, folded: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        self._compressor, self._folded, self._inputs = compressor, folded, tuple(inputs)
        self._drawn: dict[int, Compressor] = {}

    def network(self, assignment: Assignment, base: CompressedNetwork, steps: Sequence[str]) -> CompressedNetwork:
        """Return a network after some steps; `base` is what they start from."""
        for step in steps:
            base = self._thorough(DRAWS[step]).compress(assignment) if step in DRAWS else self._bias_corrected(base)
        return base

    def _bytes(self, reference: FloatReference) -> int:
        """Return the memory that references take, once all of them are drawn."""
        parts = [part for item in reference.layers.values() for part in (item.stats.gram, item.outputs)]
        return len(DRAWS) * sum(part.numel() * part.element_size() for part in parts)

    def _bias_corrected(self, net: CompressedNetwork) -> CompressedNetwork:
        """Move each layer's mean outputs to the float network's, in execution order."""
        module, layers = _own_leaves(net), dict(net.layers)
        graph, slicer = self._compressor.graph, self._compressor.slicer
        inputs = self._thorough(0).reference.inputs

        def before(node: fx.Node, source: Tensor) -> None:
            if node.name not in layers:
                return
            leaf, stored = module.get_submodule(node.name), layers[node.name]
            wanted = self._means[node.name][slicer.columns(node.name, net.kept)[0]]
            bias = leaf.bias.detach() + wanted - _mean(leaf, leaf(source))
            if stored.weight_scale is not None:
                scale = torch.from_numpy(np.asarray(stored.weight_scale))
                bias = bias_on_grid(bias, scale, net.grids.get(graph.layer[node.name].input))
            leaf.bias = nn.Parameter(bias, requires_grad=False)
            layers[node.name] = replace(stored, bias=bias.numpy().astype(np.float32))

        def after(name: str, value: Tensor) -> Tensor:
            grid = net.grids.get(name)
            return value if grid is None else grid.fake_quantize_(value)

        run(module, *inputs, before=before, after=after)
        return CompressedNetwork(module, layers, net.grids, net.input_shape, net.assignment, net.kept)

    @functools.cached_property
    def _means(self) -> dict[str, Tensor]:
        """Return each layer's mean output per channel in the float network."""
        found: dict[str, Tensor] = {}

        def after(name: str, value: Tensor) -> Tensor:
            if name in self._thorough(0).reference.layers:
                found[name] = _mean(self._folded.get_submodule(name), value)
            return value

        run(self._folded, *self._thorough(0).reference.inputs, after=after)
        return found

    def _thorough(self, seed: int) -> Compressor:
        """Return a compressor that looks at many rows, drawn by a seed."""
        if seed not in self._drawn:
            own = self._compressor
            reference = FloatReference(self._folded, own.slicer.plan, self._inputs, sampling=Sampling(ROWS, seed))
            if self._bytes(reference) > MEMORY:
                self._drawn.clear()
            self._drawn[seed] = Compressor(own.slicer, own.graph, reference, own.device, own.fast_pictures)
        return self._drawn[seed]


def _mean(leaf: nn.Module, outputs: Tensor) -> Tensor:
    """Return the mean per channel [out] of a layer's outputs."""
    outputs = outputs.movedim(-1 if isinstance(leaf, nn.Linear) else 1, 0)
    return outputs.flatten(1).mean(1)


def _own_leaves(net: CompressedNetwork) -> Any:
    """Return the network's module with leaves of its own: new biases leave the old network as it is."""
    clone: Any = object.__new__(type(net.module))
    clone.__dict__.update(net.module.__dict__)
    clone._modules = {name: _own(leaf) for name, leaf in net.module.named_children()}
    return clone


def _own(leaf: nn.Module) -> nn.Module:
    found = copy.copy(leaf)
    found._parameters = dict(leaf._parameters)
    return found
