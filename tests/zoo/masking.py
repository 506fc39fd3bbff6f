"""The yardstick for slicing: the whole network with what is removed set to zero, made without the code under test.

Of each removed channel the producers' weights are zero; its bias stays, so that it is a constant further down. A reader
that can't have that constant folded into its bias (zero padding, transposed, or not the same everywhere) has its column
set to zero as well.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from tests.zoo import Entry
from worker.graph.groups import ChannelPlan, weighted_layers
from worker.graph.operands import operands

Kept = Mapping[str, Sequence[int]]
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def masked(module: fx.GraphModule, plan: ChannelPlan, kept: Kept, entry: Entry) -> fx.GraphModule:
    """Return a copy with removed channels emptied."""
    network = copy.deepcopy(module)
    gone = {key: torch.from_numpy(~plan.mask(kept)[dim.channel]) for key, dim in plan.dims.items()}
    for name, leaf in network.named_children():
        if isinstance(leaf, nn.Embedding):
            leaf.weight.data[:, gone[(name, "param")]] = 0
    for node in weighted_layers(network):
        _rows(network.get_submodule(str(node.target)), gone[(node.name, "out")])
    seen = [_seen(network, entry.inputs(2, seed)) for seed in (11, 12)]
    for node in weighted_layers(network):
        leaf, columns = network.get_submodule(str(node.target)), gone[(node.name, "in")]
        values = torch.cat([run[node.name] for run in seen])
        foldable = _is_constant(values, leaf) & _takes_constants(leaf)
        _columns(leaf, columns & ~foldable)
    return network


def _rows(leaf: Any, gone: Tensor) -> None:
    if isinstance(leaf, TRANSPOSED):  # [in, out / groups, *kernel]: group g holds outputs g * k to g * k + k - 1
        size, ins = leaf.weight.shape[1], leaf.weight.shape[0] // leaf.groups
        for row in torch.nonzero(gone).flatten().tolist():
            group = row // size
            leaf.weight.data[group * ins : (group + 1) * ins, row % size] = 0
    else:
        leaf.weight.data[gone] = 0


def _columns(leaf: Any, gone: Tensor) -> None:
    if getattr(leaf, "groups", 1) > 1:
        return  # whole groups: the rows that read them are gone too
    if isinstance(leaf, TRANSPOSED):
        leaf.weight.data[gone] = 0
    else:
        leaf.weight.data[:, gone] = 0


def _takes_constants(leaf: Any) -> bool:
    if isinstance(leaf, nn.Linear):
        return True
    return not isinstance(leaf, TRANSPOSED) and not any(leaf.padding)


def _is_constant(values: Tensor, leaf: nn.Module) -> Tensor:
    """Tell for each column of a layer's input whether it is one number, over batches, pictures and positions."""
    columns = values.movedim(-1 if isinstance(leaf, nn.Linear) else 1, 0).flatten(1)
    return columns.amax(1) - columns.amin(1) < 1e-6 * columns.abs().amax(1).clamp_min(1e-3)


def _seen(network: fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return what each layer reads."""
    found: dict[str, Tensor] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            found[n.name] = super().run_node(n)
            return found[n.name]

    with torch.no_grad():
        Watch(network).run(*inputs)
    return {node.name: found[operands(node)[0].name] for node in weighted_layers(network)}
