"""Tensor by tensor: does an exported ONNX file hold what the simulation used?

The weights are asked of ONNX Runtime itself, behind the file's own unpacking and dequantizing nodes; scales, zero
points and clipping codes are read from the nodes. Outputs alone would not do: a wrong scale of one channel seldom moves
an arg-max.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from worker.export.agreement import sqnr_db
from worker.export.checkpoint import dequantized
from worker.export.onnx_qdq import UNPACKER_BYTES, container_of
from worker.export.packing import packed_bytes
from worker.graph.extents import inputs_of, shapes_of
from worker.graph.leaves import Recurrent
from worker.graph.ops.parametric import as_stored
from worker.graph.ops.recurrent import SUFFIXES, TO_ONNX, gates
from worker.hardware.measure import fed, open_session
from worker.quant.grids import ActivationGrid
from worker.quant.layer import QuantizedLayer
from worker.quant.network import CompressedNetwork

Arrays = dict[str, NDArray[Any]]
HEADER_BYTES = 40  # dims, type and lengths of an initializer of five dimensions
_ULPS = (1e-5, 1e-6)  # biases lie on the accumulator's int32 grid, as the simulation rounds them; products differ a bit


def differences(model: bytes, net: CompressedNetwork) -> list[str]:
    """Return what in the file differs from the network, in words (nothing: all tensors agree)."""
    proto = onnx.load_from_string(model)
    found = [_grid_difference(proto, site, grid) for site, grid in net.grids.items()]
    weights, biases = _weights(net), _biases(net)
    names = [*(f"{name}.weight" for name in weights), *biases]
    read = {name for node in proto.graph.node for name in node.input}
    missing = [name for name in names if name not in read]
    if missing:
        return [f"no node reads {name}" for name in missing]
    values = evaluate(proto, names, [item.example().numpy() for item in inputs_of(net.module)])
    found += [_difference(values[f"{name}.weight"], weight, f"{name}: weights") for name, weight in weights.items()]
    found += [_difference(values[name], bias, f"{name}: biases", _ULPS) for name, bias in biases.items()]
    return [text for text in found if text]


def opset_of(model: bytes) -> int:
    """Return the opset of ONNX's own operators that a file declares."""
    return max(int(item.version) for item in onnx.load_from_string(model).opset_import if not item.domain)


def oversized(model: bytes, net: CompressedNetwork) -> list[str]:
    """Return the layers whose integers take more bytes in the file than their bits and an unpacking subgraph would."""
    held = {item.name: item.ByteSize() for item in onnx.load_from_string(model).graph.initializer}
    found = []
    for layer in net.layers.values():
        if layer.weight_int is not None:
            size, stored = int(layer.weight_int.size), held.get(f"{layer.name}.w")
            codes = packed_bytes(size, layer.bits) if layer.bits < 8 else -(-layer.bits // 8) * size
            if stored is None or stored > codes + UNPACKER_BYTES + HEADER_BYTES + len(layer.name):
                found.append(f"{layer.name}: {size} weights of {layer.bits} bits take {stored} bytes in the ONNX file")
    return found


def _weights(net: CompressedNetwork) -> Arrays:
    """Return each layer's weight as the ONNX node that reads it wants it laid out."""
    ranks = {name: len(shape) for name, shape in shapes_of(net.module).items()}
    found = {}
    for layer in net.layers.values():
        node, leaf = _leaf(net, layer)
        weight = torch.from_numpy(dequantized(layer))
        if isinstance(leaf, Recurrent):
            weight = gates(weight, TO_ONNX[leaf.cell])
        elif isinstance(leaf, nn.Linear) and ranks[node] != 2:
            weight = weight.t()
        else:
            weight = as_stored(leaf, weight)
        found[layer.name] = weight.numpy()
    return found


def _biases(net: CompressedNetwork) -> Arrays:
    """Return the biases by the names of their tensors; a recurrent layer holds all of its own in one."""
    found: Arrays = {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for layer in net.layers.values():
        node, leaf = _leaf(net, layer)
        if isinstance(leaf, Recurrent):
            bias = gates(torch.from_numpy(layer.bias), TO_ONNX[leaf.cell])
            parts.setdefault(node, {})[layer.name.removeprefix(f"{node}.")] = bias
        else:
            found[f"{layer.name}.bias"] = layer.bias
    for node, held in parts.items():
        ends = SUFFIXES[: len(held) // 2]
        rows = [torch.cat([held[f"weight_ih_l0{end}"], held[f"weight_hh_l0{end}"]]) for end in ends]
        found[f"{node}.b"] = torch.stack(rows).numpy()
    return found


def _leaf(net: CompressedNetwork, layer: QuantizedLayer) -> tuple[str, Any]:
    node = layer.name.split(".")[0]
    return node, net.module.get_submodule(node)


def evaluate(proto: Any, names: list[str], inputs: Sequence[NDArray[Any]]) -> Arrays:
    """Return inner float values of a model on some rows, computed without any graph optimisation."""
    opened = onnx.ModelProto()
    opened.CopyFrom(proto)
    held = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer if item.name in names}
    asked = [name for name in names if name not in held]
    taken = {output.name for output in opened.graph.output}
    opened.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in asked if name not in taken
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run(asked, fed(session, inputs)) if asked else []
    return {**held, **dict(zip(asked, values, strict=True))}


def site_sqnr(model: bytes, net: CompressedNetwork, inputs: Sequence[torch.Tensor]) -> dict[str, float]:
    """Return, per quantizer site, how closely the runtime's codes follow the simulation's, in decibels.

    The codes come from the graph as the runtime optimises it: taken apart, it would compute in float.
    """
    simulated: Arrays = {}

    def seen(name: str, value: torch.Tensor) -> torch.Tensor:
        simulated[name] = value.numpy().copy()
        return value

    net.follow(*inputs, seen=seen)
    codes = _codes(model, net, [item.numpy() for item in inputs])
    return {site: sqnr_db(simulated[site], _real(net.grids[site], codes[site])) for site in simulated if site in codes}


@dataclass(frozen=True)
class Deviation:
    """What a kernel of the runtime does otherwise than the simulation: the share of a site's codes that differ, and by
    how many steps of its grid at most."""

    share: float
    steps: int


def site_deviations(model: bytes, net: CompressedNetwork, inputs: Sequence[torch.Tensor]) -> dict[str, Deviation]:
    """Return, per quantizer site, what its kernel alone does otherwise.

    The simulation goes on from the runtime's codes: a difference does not spread to later sites, as in `site_sqnr`.
    """
    codes, found = _codes(model, net, [item.numpy() for item in inputs]), {}

    def seen(site: str, value: torch.Tensor) -> torch.Tensor:
        if site not in codes:
            return value
        grid = net.grids[site]
        units = torch.div(value, grid.scale).round_().numpy()
        apart = np.abs(units - (codes[site].astype(np.float32) - grid.zero_point))
        found[site] = Deviation(float((apart > 0).mean()), int(apart.max(initial=0)))
        return torch.from_numpy(_real(grid, codes[site]))

    net.follow(*inputs, seen=seen)
    return found


def _codes(model: bytes, net: CompressedNetwork, inputs: Sequence[NDArray[Any]]) -> Arrays:
    """Return what each site's DequantizeLinear reads."""
    proto = onnx.load_from_string(model)
    reads = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    names = {site: reads[f"{site}.dq"] for site in net.grids if f"{site}.dq" in reads}
    for site, name in names.items():
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(container_of(net.grids[site])))
        proto.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    session = open_session(proto.SerializeToString())
    values = session.run(list(names.values()), fed(session, inputs)) if names else []
    return dict(zip(names, values, strict=True))


def _real(grid: ActivationGrid, codes: NDArray[Any]) -> NDArray[np.float32]:
    return (codes.astype(np.float32) - np.float32(grid.zero_point)) * np.float32(grid.scale)


def fused_ops(model: bytes) -> dict[str, int]:
    """Return how often each op type occurs in the graph that ONNX Runtime makes of a model for this processor."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    return dict(sorted(Counter(node.op_type for node in graph.node).items()))


def _difference(found: NDArray[Any], wanted: NDArray[Any], what: str, within: tuple[float, float] = (0.0, 0.0)) -> str:
    same = found.shape == wanted.shape and np.allclose(found, wanted, rtol=within[0], atol=within[1])
    return "" if same else f"{what} differ"


def _grid_difference(proto: Any, site: str, grid: ActivationGrid) -> str:
    """Compare scale, zero point and largest code of every quantizer of a site."""
    constants = {item.name: item for item in proto.graph.initializer}
    nodes = {node.output[0]: node for node in proto.graph.node}
    quantize, dequantize = nodes.get(f"{site}.codes"), nodes.get(f"{site}.dq")
    if quantize is None or dequantize is None:
        return f"{site}: not quantized"
    for node in (quantize, dequantize):
        scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
        if scale != np.float32(grid.scale) or zero != grid.zero_point:
            return f"{site}: grid {float(scale)}, {int(zero)} differs from {grid.scale}, {grid.zero_point}"
    clip = nodes.get(f"{site}.clipped")
    largest = np.iinfo(zero.dtype).max
    if clip is not None:
        largest = int(numpy_helper.to_array(constants[clip.input[2]]))
    return "" if largest <= grid.levels else f"{site}: codes reach {largest}, not {grid.levels}"
