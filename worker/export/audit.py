"""Tensor by tensor: does an exported ONNX file hold what the simulation used?

The weights are asked of ONNX Runtime itself, behind the file's own unpacking and dequantizing nodes; scales, zero
points and clipping codes are read from the nodes. Outputs alone would not do: a wrong scale of one channel seldom moves
an arg-max.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from worker.export.agreement import sqnr_db
from worker.export.checkpoint import dequantized
from worker.quant.grids import ActivationGrid
from worker.quant.network import CompressedNetwork, QuantizedLayer, run

Arrays = dict[str, NDArray[Any]]


def differences(model: bytes, net: CompressedNetwork) -> list[str]:
    """Return what in the file differs from the network, in words (nothing: all tensors agree)."""
    proto = onnx.load_from_string(model)
    found = [_grid_difference(proto, site, grid) for site, grid in net.grids.items()]
    names = [f"{name}.{kind}" for name in net.layers for kind in ("weight", "bias")]
    read = {name for node in proto.graph.node for name in node.input}
    missing = [name for name in names if name not in read]
    if missing:
        return [f"no node reads {name}" for name in missing]
    values = evaluate(proto, names, np.zeros((1, *net.input_shape), np.float32))
    found += [_layer_difference(layer, values) for layer in net.layers.values()]
    return [text for text in found if text]


def evaluate(proto: Any, names: list[str], pictures: NDArray[np.float32]) -> Arrays:
    """Return inner float values of a model on some pictures, computed without any graph optimisation."""
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
    values = session.run(asked, {session.get_inputs()[0].name: pictures}) if asked else []
    return {**held, **dict(zip(asked, values, strict=True))}


def site_sqnr(model: bytes, net: CompressedNetwork, pictures: NDArray[np.float32]) -> dict[str, float]:
    """Return, per quantizer site, how closely the file's values follow the simulation's, in decibels."""
    proto = onnx.load_from_string(model)
    simulated: Arrays = {}

    def after(name: str, value: torch.Tensor) -> torch.Tensor:
        if name in net.grids:
            value = net.grids[name].fake_quantize_(value)
            simulated[name] = value.numpy().copy()
        return value

    run(net.module, torch.from_numpy(pictures), after=after)
    values = evaluate(proto, [f"{site}.dq" for site in simulated], pictures)
    return {site: sqnr_db(value, values[f"{site}.dq"]) for site, value in simulated.items()}


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


def _layer_difference(layer: QuantizedLayer, values: Mapping[str, NDArray[Any]]) -> str:
    weight, wanted = values[f"{layer.name}.weight"], dequantized(layer)
    if weight.shape != wanted.shape or not np.array_equal(weight, wanted):
        return f"{layer.name}: weights differ"
    bias = values[f"{layer.name}.bias"]
    # the bias is stored on the accumulator's int32 grid, as the simulation rounds it; float32 products differ by an ulp
    if bias.shape != layer.bias.shape or not np.allclose(bias, layer.bias, rtol=1e-5, atol=1e-6):
        return f"{layer.name}: biases differ"
    return ""


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
