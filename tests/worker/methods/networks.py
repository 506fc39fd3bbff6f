"""A small residual network with gates and quantizers on it: masked in place, and made smaller for real."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.space import FLOAT_BITS, Assignment
from tests.worker.quant.digits import Digits, exported
from worker.export.checkpoint import write_checkpoint
from worker.export.recount import recount
from worker.graph.slicing import Slicer
from worker.methods.djpq import SIGNED, UNSIGNED, ChannelGate, LearnedQuantizer, fold_backward, gated
from worker.quant.layer import QuantizedLayer
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import Opened, open_network


@functools.cache
def opened() -> Opened:
    """Return the digits network, untrained, with biases that are not 0."""
    torch.manual_seed(0)
    net = Digits()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)  # type: ignore[arg-type]
    return open_network(exported(net, (1, 8, 8)), "pt2")


@dataclass(frozen=True)
class Gated:
    """The network with one gate per channel group, some of whose channels lie below the threshold."""

    opened: Opened
    gates: Mapping[str, ChannelGate]
    assignment: Assignment
    kept: Mapping[str, tuple[int, ...]]

    @property
    def graph(self) -> ModelGraph:
        return self.opened.graph

    def factors(self, layer: str) -> Tensor:
        """Return what a layer's outputs are multiplied by."""
        plan = self.opened.slicer.plan
        channels = torch.cat([self.gates[g.id].values(1)[0] if g.id in self.gates else torch.ones(g.channels)
                              for g in plan.groups])  # fmt: skip
        return channels[torch.from_numpy(plan.dims[(layer, "out")].channel)].detach()

    def masked(self, x: Tensor) -> Tensor:
        """Run the whole network with the gates on its layers' outputs."""
        return _Masked(self)(x)

    def pruned(self) -> fx.GraphModule:
        """Return the network with the factors folded in, less the channels that are removed."""
        folded = copy.deepcopy(self.opened.folded)
        for layer in self.graph.layers:
            leaf: Any = folded.get_submodule(layer.name)
            weight, bias = fold_backward(leaf.weight.detach(), leaf.bias.detach(), self.factors(layer.name))
            leaf.weight, leaf.bias = (nn.Parameter(item, requires_grad=False) for item in (weight, bias))
        return Slicer(folded, self.opened.slicer.plan).sliced(self.kept)

    def compressed(self) -> CompressedNetwork:
        """Return the pruned network with its weights and activations on learned grids."""
        module, layers = self.pruned(), {}
        for layer in self.graph.layers:
            leaf: Any = module.get_submodule(layer.name)
            weight, bits = leaf.weight.detach(), self.assignment.weight_bits[layer.name]
            quantizer = LearnedQuantizer(weight.flatten(1).abs().amax(1).reshape(-1, *[1] * (weight.dim() - 1)))
            quantizer.restrict(bits)
            codes, scale = quantizer.integers(weight).to(torch.int8).numpy(), quantizer.scale.numpy()
            leaf.weight = nn.Parameter(quantizer(weight).detach(), requires_grad=False)
            layers[layer.name] = QuantizedLayer(layer.name, bits, leaf.bias.detach().numpy(), codes, scale)
        grids = {item.id: _grid(bits, item.unsigned) for item in self.graph.activations
                 if (bits := self.assignment.activation_bits[item.id]) < FLOAT_BITS}  # fmt: skip
        shape = self.graph.input_shape
        return CompressedNetwork(module, layers, grids, shape, self.assignment, self.kept)


def _grid(bits: int, unsigned: bool) -> Any:
    quantizer = LearnedQuantizer(3.0, bits, UNSIGNED if unsigned else SIGNED)
    quantizer.restrict(bits)
    return quantizer.grid()


class _Masked(fx.Interpreter):
    def __init__(self, gated: Gated) -> None:
        super().__init__(gated.opened.folded)
        self._gated = gated

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name not in self._gated.graph.layer:
            return value
        return gated(value, self._gated.factors(n.name)[None])

    def __call__(self, x: Tensor) -> Tensor:
        return self.run(x)  # type: ignore[no-any-return]


def gated_digits(weight_bits: int, activation_bits: int) -> Gated:
    """Return the network with random factors; about a third of the channels of each group go."""
    network, generator = opened(), torch.Generator().manual_seed(1)
    gates = {}
    for group in network.graph.prunable:
        gates[group.id] = ChannelGate(group.channels, log_threshold=0.0).eval()
        with torch.no_grad():
            gates[group.id].mean.copy_(torch.rand(group.channels, generator=generator) + 0.5)
            gates[group.id].mean[::2] *= -1
            gates[group.id].log_variance.copy_(torch.randn(group.channels, generator=generator) * 2 - 1)
    kept = {name: tuple(gate.keep_set().tolist()) for name, gate in gates.items()}
    fixed = {"input": 8, "output": FLOAT_BITS}
    assignment = Assignment(
        {group.id: len(kept.get(group.id, range(group.channels))) for group in network.graph.groups},
        {layer.name: weight_bits for layer in network.graph.layers},
        {item.id: fixed.get(item.role, activation_bits) for item in network.graph.activations},
    )
    return Gated(network, gates, assignment, kept)


def recounted(gated: Gated, device: DeviceProfile) -> dict[str, int]:
    """Return what the exported checkpoint's own tensors come to."""
    return recount(write_checkpoint(gated.compressed(), {}), device).totals()
