"""The compressed checkpoint: integers packed at their true width, a graph, a manifest; no pickle, no user class.

The format is described in docs/checkpoint-format.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.domain.space import FLOAT_BITS, Assignment
from worker.export.archive import CheckpointRefused, Tensors, read_archive, write_archive
from worker.export.gates_json import check_places, gate_record, gate_tensors, read_gates
from worker.export.graph_json import decode, encode, other_tensors
from worker.export.packing import is_sparser, pack, pack_sparse, unpack, unpack_sparse
from worker.graph.extents import inputs_of
from worker.quant.grids import ActivationGrid
from worker.quant.layer import QuantizedLayer
from worker.quant.network import CompressedNetwork

FORMAT, VERSION, GATED = "tightfit-checkpoint", 3, 4
_EXTRA = re.compile(r"\.(weight|bias|running_mean|running_var|value|index)\Z")


Mode = Literal["fake-quantized", "dequantized"]


class CompressedModule(nn.Module):
    """A compressed network as a torch module: normalised float pictures (N, ...) in, network outputs out.

    In mode `fake-quantized` it computes what the exported integers compute: weights are dequantised, activations
    rounded to their grids, without gradients. In mode `dequantized` it is `graph` alone: the same weights, activations
    left in float; its parameters are frozen until `requires_grad_`. `network` holds the integers, scales and grids,
    `manifest` the record the checkpoint was written with.
    """

    def __init__(self, network: CompressedNetwork, manifest: Mapping[str, Any], mode: Mode = "fake-quantized") -> None:
        super().__init__()
        self.graph = network.module
        self.network = network
        self.manifest = dict(manifest)
        self.mode = mode

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run a batch."""
        run = self.graph if self.mode == "dequantized" else self.network.forward
        found: Tensor | tuple[Tensor, ...] = run(*inputs)
        return found


def load(path: str | Path, mode: Mode = "fake-quantized") -> nn.Module:
    """Return the network in a checkpoint file, ready to run. Raises CheckpointRefused for an unsound file and
    ValueError for a mode that there is not, or that a network with gates has not."""
    if mode not in get_args(Mode):
        raise ValueError(f"mode {mode!r} is none of {get_args(Mode)}")
    data = Path(path).read_bytes()
    network, manifest = read_checkpoint(data)
    if network.gates and mode == "dequantized":
        raise ValueError("a network with channel gates answers in mode 'fake-quantized' alone")
    return CompressedModule(network, manifest, mode).eval()


def write_checkpoint(net: CompressedNetwork, manifest: Mapping[str, Any]) -> bytes:
    """Return the checkpoint file; equal networks and manifests give equal bytes."""
    tensors: Tensors = {name: tensor.numpy() for name, tensor in other_tensors(net.module).items()}
    for layer in net.layers.values():
        tensors.update(_layer_tensors(layer))
    tensors.update(gate_tensors(net.gates))
    graph: dict[str, Any] = {
        "format": FORMAT,
        "version": GATED if net.gates else VERSION,
        "input_shape": list(net.input_shape),
        "nodes": encode(net.module),
        "layers": {layer.name: _layer_record(layer) for layer in net.layers.values()},
        "grids": {site: _grid_record(grid) for site, grid in net.grids.items()},
        "kept": {group: [int(index) for index in kept] for group, kept in net.kept.items()},
        "assignment": net.assignment.to_json(),
    }
    if net.gates:
        graph["gates"] = {site: gate_record(gate) for site, gate in net.gates.items()}
    return write_archive(tensors, graph, manifest)


def read_checkpoint(data: bytes) -> tuple[CompressedNetwork, dict[str, Any]]:
    """Return the network and its manifest. Raises CheckpointRefused for anything but a sound checkpoint."""
    tensors, graph, manifest = read_archive(data)
    if graph.get("format") != FORMAT or graph.get("version") != (GATED if "gates" in graph else VERSION):
        raise CheckpointRefused(f"not a {FORMAT} of version {VERSION}, or {GATED} with gates", "unrecognised-format")
    try:
        return _network(tensors, graph), manifest
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        if isinstance(error, CheckpointRefused):
            raise
        raise CheckpointRefused(f"the checkpoint is not sound: {error!r}", "invalid-graph") from error


def _network(tensors: Tensors, graph: Mapping[str, Any]) -> CompressedNetwork:
    left = dict(tensors)
    layers = {name: _layer(name, record, left) for name, record in graph["layers"].items()}
    gates = read_gates(graph.get("gates", {}), left)
    floats = {name: torch.from_numpy(left.pop(name).copy()) for name in list(left) if _EXTRA.search(name)}
    if left:
        raise CheckpointRefused(f"tensors {sorted(left)[:4]} belong to nothing in the graph", "invalid-tensor")
    for layer in layers.values():
        floats[f"{layer.name}.weight"] = torch.from_numpy(dequantized(layer))
        floats[f"{layer.name}.bias"] = torch.from_numpy(layer.bias.copy())
    network = CompressedNetwork(
        module=decode(graph["nodes"], floats),
        layers=layers,
        grids={site: _grid(record) for site, record in graph["grids"].items()},
        input_shape=tuple(int(extent) for extent in graph["input_shape"]),
        assignment=Assignment.from_json(graph["assignment"]),
        kept={group: tuple(int(index) for index in kept) for group, kept in graph["kept"].items()},
        gates=gates,
    )
    check_places(gates, network.module)
    network.forward(*(item.example() for item in inputs_of(network.module)))  # shapes that don't fit each other raise
    return network


def dequantized(layer: QuantizedLayer) -> NDArray[np.float32]:
    """Return a layer's weight as float32: integers times the scale of their output channel."""
    if layer.weight_int is None or layer.weight_scale is None:
        assert layer.weight_float is not None, f"layer {layer.name} has no weight"
        return np.ascontiguousarray(layer.weight_float, np.float32)
    column = layer.weight_scale.reshape(-1, *[1] * (layer.weight_int.ndim - 1))
    return layer.weight_int.astype(np.float32) * column.astype(np.float32)


def _layer_tensors(layer: QuantizedLayer) -> Tensors:
    tensors: Tensors = {f"{layer.name}.bias": layer.bias.astype(np.float32)}
    if layer.weight_int is None or layer.weight_scale is None:
        return {**tensors, f"{layer.name}.weight": dequantized(layer)}
    tensors[f"{layer.name}.weight.scale"] = layer.weight_scale.astype(np.float32).reshape(-1)
    if is_sparser(layer.weight_int, layer.bits):
        return {**tensors, f"{layer.name}.weight.sparse": pack_sparse(layer.weight_int, layer.bits)}
    return {**tensors, f"{layer.name}.weight.packed": pack(layer.weight_int, layer.bits)}


def _layer_record(layer: QuantizedLayer) -> dict[str, Any]:
    weight = layer.weight_float if layer.weight_int is None else layer.weight_int
    assert weight is not None
    return {"bits": layer.bits, "shape": [int(extent) for extent in weight.shape]}


def _layer(name: str, record: Mapping[str, Any], left: Tensors) -> QuantizedLayer:
    bits, shape = int(record["bits"]), tuple(int(extent) for extent in record["shape"])
    bias = _floats(left.pop(f"{name}.bias"), (shape[0],))
    if bits >= FLOAT_BITS:
        return QuantizedLayer(name, bits, bias, weight_float=_floats(left.pop(f"{name}.weight"), shape))
    scale = left.pop(f"{name}.weight.scale")
    scale = _floats(scale, (1,) if scale.shape == (1,) else (shape[0],))
    return QuantizedLayer(name, bits, bias, _integers(name, bits, shape, left), scale)


def _integers(name: str, bits: int, shape: tuple[int, ...], left: Tensors) -> NDArray[Any]:
    """Return a layer's integers from the form they are stored in: there is one for each network, the shorter."""
    is_sparse = f"{name}.weight.sparse" in left
    if is_sparse:
        found = unpack_sparse(left.pop(f"{name}.weight.sparse"), bits, shape)
    else:
        found = unpack(left.pop(f"{name}.weight.packed"), bits, shape)
    if is_sparser(found, bits) != is_sparse:
        raise CheckpointRefused(f"{name}: integers in the longer of their two forms", "invalid-tensor")
    return found


def _floats(tensor: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if tensor.dtype != np.float32 or tensor.shape != shape or not np.isfinite(tensor).all():
        raise CheckpointRefused(f"a tensor of {tensor.dtype} {tensor.shape}, not float32 {shape}", "invalid-tensor")
    return tensor


def _grid_record(grid: ActivationGrid) -> dict[str, Any]:
    return {"scale": float(grid.scale), "zero_point": int(grid.zero_point), "bits": int(grid.bits)}


def _grid(record: Mapping[str, Any]) -> ActivationGrid:
    grid = ActivationGrid(float(record["scale"]), int(record["zero_point"]), int(record["bits"]))
    if not (
        np.isfinite(grid.scale) and grid.scale > 0 and 2 <= grid.bits <= 16 and 0 <= grid.zero_point <= grid.levels
    ):
        raise CheckpointRefused(f"grid {record}", "invalid-graph")
    return grid
