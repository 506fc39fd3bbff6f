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

import numpy as np
import torch
from torch import Tensor, fx, nn

from app.domain.device import DeviceProfile
from app.domain.space import FLOAT_BITS
from worker.export.archive import Tensors, read_archive
from worker.export.checkpoint import read_checkpoint
from worker.export.packing import packed_bytes, sparse_bytes
from worker.graph.extents import inputs_of
from worker.graph.leaves import Recurrent
from worker.graph.operands import operands
from worker.graph.ops import Grid, op_of
from worker.graph.ops.table import module_of
from worker.quant.layer import QuantizedLayer
from worker.quant.network import CompressedNetwork

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WORD = 4  # bytes of a scale or a bias
FORMS = {"float": "", "packed": ".packed", "sparse": ".sparse"}
"""How a layer's weights may be stored, and how the tensor's name ends then."""
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *TRANSPOSED, Recurrent)


@dataclass(frozen=True)
class LayerCount:
    """One layer as stored: shape, bits of weights and of the activation it reads, MACs, BOPs and bytes.

    `weight_bytes` is what a device stores, every integer at its width; `stored_bytes` what the file's tensors really
    take in their `form` (packed, sparse or float); `zeros` how many of the integers are zero (of a float layer none).
    """

    name: str
    shape: tuple[int, ...]
    weight_bits: int
    input_bits: int
    macs: int
    bops: int
    weight_bytes: int
    stored_bytes: int
    form: str
    zeros: int

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON."""
        return {**asdict(self), "shape": list(self.shape)}


@dataclass(frozen=True)
class Recount:
    """All layers in execution order; `tensor_bytes` is what the file's tensors really take, `table_bytes` what its
    embedding tables take, `gate_bytes` what its channel gates do. MACs and BOPs are those of all filters."""

    layers: tuple[LayerCount, ...]
    tensor_bytes: int
    table_bytes: int = 0
    gate_bytes: int = 0

    def totals(self) -> dict[str, int]:
        """Return macs, bops and weight_bytes of the whole network at batch 1."""
        return {
            "macs": sum(layer.macs for layer in self.layers),
            "bops": sum(layer.bops for layer in self.layers),
            "weight_bytes": self.table_bytes + self.gate_bytes + sum(layer.weight_bytes for layer in self.layers),
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
            held = (*_bytes(name, tensors, math.prod(shape), bits, device), _zeros(network.layers[name]))
            rows.append(LayerCount(name, shape, bits, read, macs, macs * bits * read, *held))
    taken = {name: tensor.nbytes for name, tensor in tensors.items()}
    gates = sum(size for name, size in taken.items() if ".gate." in name)
    return Recount(tuple(rows), sum(taken.values()), _table_bytes(module), gates)


def needless(found: Recount, network: CompressedNetwork) -> list[str]:
    """Return the layers whose integers, those of `network`, are not stored in the shorter of their two forms."""
    told = []
    for layer in found.layers:
        own = network.layers[layer.name]
        if own.weight_int is None or own.weight_scale is None:
            continue
        size, nonzero = own.weight_int.size, int(np.count_nonzero(own.weight_int))
        least = min(packed_bytes(size, own.bits), sparse_bytes(size, nonzero, own.bits))
        least += WORD * (own.bias.size + own.weight_scale.size)
        if layer.stored_bytes != least:
            told.append(f"{layer.name}: {layer.stored_bytes} bytes stored, {least} would do")
    return told


def _table_bytes(module: fx.GraphModule) -> int:
    """Return the bytes of the embedding tables that the checkpoint's graph looks up."""
    leaves = (module_of(module, node) for node in module.graph.nodes if node.op == "call_module")
    return sum(leaf.weight.nbytes for leaf in leaves if isinstance(leaf, nn.Embedding))


def _bytes(name: str, tensors: Tensors, count: int, bits: int, device: DeviceProfile) -> tuple[int, int, str]:
    """Return the bytes that a device stores of a layer, those that the file's tensors take, and their form."""
    rest = sum(tensors[key].nbytes for key in (f"{name}.bias", f"{name}.weight.scale") if key in tensors)
    (form,) = (form for form, end in FORMS.items() if f"{name}.weight{end}" in tensors)
    taken = tensors[f"{name}.weight{FORMS[form]}"].nbytes
    is_as_stored = form == "packed" and device.stored_bits(bits) == bits
    return (taken if is_as_stored else math.ceil(count * device.stored_bits(bits) / 8)) + rest, taken + rest, form


def _zeros(layer: QuantizedLayer) -> int:
    return 0 if layer.weight_int is None else int(np.count_nonzero(layer.weight_int == 0))


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
