"""What an artefact costs, counted again from its own tensors: an independent check of `app.domain.cost`.

Nothing here looks at the picture of the network (`ModelGraph`) or at the assignment that was asked for: bytes come from
the checkpoint's tensors, MACs from weights times the output positions that a run of its graph shows, bits from the
grids it stores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from app.domain.device import DeviceProfile
from app.domain.space import FLOAT_BITS
from worker.export.archive import Tensors, read_archive
from worker.export.checkpoint import read_checkpoint
from worker.graph.extents import inputs_of
from worker.graph.leaves import Recurrent
from worker.graph.operands import operands
from worker.graph.ops import Grid, op_of
from worker.graph.ops.table import module_of

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *TRANSPOSED, Recurrent)


@dataclass(frozen=True)
class LayerCount:
    """One layer as stored: shape, bits of weights and of the activation it reads, MACs, BOPs and bytes."""

    name: str
    shape: tuple[int, ...]
    weight_bits: int
    input_bits: int
    macs: int
    bops: int
    weight_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON."""
        return {**asdict(self), "shape": list(self.shape)}


@dataclass(frozen=True)
class Recount:
    """All layers in execution order; `tensor_bytes` is what the file's tensors really take, `table_bytes` what its
    embedding tables take."""

    layers: tuple[LayerCount, ...]
    tensor_bytes: int
    table_bytes: int = 0

    def totals(self) -> dict[str, int]:
        """Return macs, bops and weight_bytes of the whole network at batch 1."""
        return {
            "macs": sum(layer.macs for layer in self.layers),
            "bops": sum(layer.bops for layer in self.layers),
            "weight_bytes": self.table_bytes + sum(layer.weight_bytes for layer in self.layers),
        }


def recount(checkpoint: bytes, device: DeviceProfile) -> Recount:
    """Count a checkpoint. Raises CheckpointRefused when it is unsound."""
    network, _ = read_checkpoint(checkpoint)
    tensors, graph, _ = read_archive(checkpoint)
    module = network.module
    positions = _positions(module)
    grids = {site: int(record["bits"]) for site, record in graph["grids"].items()}
    rows = []
    for node in module.graph.nodes:
        if node.op != "call_module" or not isinstance(module_of(module, node), WEIGHTED):
            continue
        read = _bits(module, operands(node)[0], grids)
        for name, record in graph["layers"].items():
            if name != node.name and not name.startswith(f"{node.name}."):
                continue
            bits, shape = int(record["bits"]), tuple(record["shape"])
            macs = math.prod(shape) * positions[node.name]
            stored = _bytes(name, tensors, math.prod(shape), bits, device)
            rows.append(LayerCount(name, shape, bits, read, macs, macs * bits * read, stored))
    return Recount(tuple(rows), sum(tensor.nbytes for tensor in tensors.values()), _table_bytes(module))


def _table_bytes(module: fx.GraphModule) -> int:
    """Return the bytes of the embedding tables that the checkpoint's graph looks up."""
    leaves = (module_of(module, node) for node in module.graph.nodes if node.op == "call_module")
    return sum(leaf.weight.nbytes for leaf in leaves if isinstance(leaf, nn.Embedding))


def _bytes(name: str, tensors: Tensors, count: int, bits: int, device: DeviceProfile) -> int:
    bias = tensors[f"{name}.bias"].nbytes
    if bits >= FLOAT_BITS:
        return math.ceil(count * device.stored_bits(bits) / 8) + bias
    weight = tensors[f"{name}.weight.packed"].nbytes
    if device.stored_bits(bits) != bits:
        weight = math.ceil(count * device.stored_bits(bits) / 8)
    return weight + tensors[f"{name}.weight.scale"].nbytes + bias


def _bits(module: fx.GraphModule, node: fx.Node, grids: Mapping[str, int]) -> int:
    """Return the bits of the grid a value lies on, followed back through what passes grids on."""
    while node.name not in grids:
        op = op_of(module, node)
        if op is None or op.grid is Grid.new:
            return FLOAT_BITS
        node = operands(node)[0]
    return grids[node.name]


def _positions(module: fx.GraphModule) -> dict[str, int]:
    """Run the graph on zeros and return, per leaf, how often its weights are used: outputs per channel; inputs per
    channel of a transposed convolution; steps of a recurrent layer."""
    found: dict[str, int] = {}

    def note(name: str, leaf: Any) -> Any:
        def hook(_: nn.Module, inputs: Any, output: Tensor) -> None:
            if isinstance(leaf, Recurrent):
                found[name] = inputs[0].shape[1 if leaf.batch_first else 0]
            elif isinstance(leaf, TRANSPOSED):
                found[name] = inputs[0].numel() // leaf.weight.shape[0]
            else:
                found[name] = output.numel() // leaf.weight.shape[0]

        return leaf.register_forward_hook(hook)

    handles = [note(name, leaf) for name, leaf in module.named_children() if isinstance(leaf, WEIGHTED)]
    with torch.no_grad():
        module(*(item.example() for item in inputs_of(module)))
    for handle in handles:
        handle.remove()
    return found
