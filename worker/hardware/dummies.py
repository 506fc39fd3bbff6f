"""Files with the kernels an assignment asks for and weights of no meaning: timed in place of files that take a search.

They go through the exporter that users' files go through, so they run the same kernels; values do not change times.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from app.domain.space import Assignment
from worker.export.onnx_qdq import write_qdq
from worker.graph.ops.table import module_of
from worker.hardware.measuring import Bench
from worker.quant.grids import ActivationGrid
from worker.quant.layer import QuantizedLayer, is_float
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import Opened

RANGE = 4.0


def dummy_bench(id: str, network: Opened, assignment: Assignment, saturating: bool = False) -> Bench:
    """Return what to measure for an assignment of a network without recurrent layers."""
    ports = network.graph.inputs
    inputs = tuple(((1, *port.shape), port.dtype.replace("bfloat16", "float32")) for port in ports)
    return Bench(id, dummy_file(network, assignment, saturating), inputs)


def dummy_file(network: Opened, assignment: Assignment, saturating: bool = False) -> bytes:
    """Return the exported file: the first channels of each group kept, weights rounded to their largest magnitude."""
    kept = {group: tuple(range(count)) for group, count in assignment.keep.items()}
    module = network.slicer.sliced(kept)
    at = {node.name: node for node in module.graph.nodes}
    layers = {}
    for layer in network.graph.layers:
        leaf: Any = module_of(module, at[layer.name])
        weight, bias = leaf.weight.detach().numpy(), leaf.bias.detach().numpy()
        layers[layer.name] = _rounded(layer.name, assignment.weight_bits[layer.name], weight, bias)
    grids = {
        item.id: _grid(assignment.activation_bits[item.id], item.unsigned)
        for item in network.graph.activations
        if not is_float(assignment.activation_bits[item.id])
    }
    net = CompressedNetwork(module, layers, grids, network.graph.input_shape, assignment)
    return write_qdq(net, saturating)


def _rounded(name: str, bits: int, weight: Any, bias: Any) -> QuantizedLayer:
    if is_float(bits):
        return QuantizedLayer(name, bits, bias, weight_float=weight)
    limit = (1 << (bits - 1)) - 1
    scale = float(np.abs(weight).max()) / limit + 1e-12
    integers = np.rint(weight / scale).astype(np.int8 if bits <= 8 else np.int16)
    integers.reshape(-1)[:2] = limit  # two large neighbours, as almost every trained layer of 8 bits has them
    return QuantizedLayer(name, bits, bias, integers, np.full(weight.shape[0], scale, np.float32))


def _grid(bits: int, unsigned: bool) -> ActivationGrid:
    return ActivationGrid(float(np.float32(RANGE / (1 << bits))), 0 if unsigned else 1 << (bits - 1), bits)
