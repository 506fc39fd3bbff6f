"""The grids of a candidate as an encodings file, for tools that quantize the pruned float ONNX file themselves.

The layout is AIMET's "encoding format specification", version 1.0.0, which AIMET writes by default (qualcomm/aimet,
Docs/quantsim/encoding_spec.rst, section 3): lists of {name, bw, dtype, enc_type, is_sym, offset, scale}, offset and
scale one number per tensor or per output channel. With q in [0, 2^bw - 1] a value is (q + offset) * scale, so the
smallest and largest are min = offset * scale and max = (2^bw - 1 + offset) * scale. Weights are symmetric: offset
-2^(bw - 1), of whose grid the lowest code is never used here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from torch import Tensor, fx, nn

from app.domain.opsets import DEFAULT
from worker.graph.ops.parametric import TRANSPOSED
from worker.graph.sites import quantizer_sites
from worker.graph.write_onnx import OnnxWriter
from worker.quant.grids import ActivationGrid
from worker.quant.layer import QuantizedLayer, is_float
from worker.quant.network import CompressedNetwork

VERSION = "1.0.0"
SCHEME = "post_training_tf_enhanced"  # AIMET's name for ranges that minimise the squared error


@dataclass(frozen=True)
class Order:
    """A weight's tensor in the file, and the order its rows (gates of a recurrent layer) have there."""

    tensor: str
    parts: Sequence[int] | None = None


class NamedWriter(OnnxWriter):
    """Writes a float file and notes what its tensors are called: `values` by node, `weights` by layer."""

    def __init__(self, module: fx.GraphModule, opset: int = DEFAULT) -> None:
        super().__init__(module, opset)
        self.values: dict[str, str] = {}
        self.weights: dict[str, Order] = {}

    def weight(self, layer: str, tensor: Tensor, axis: int = 0) -> str:
        """Add a layer's weight and note its name."""
        self.weights[layer] = Order(super().weight(layer, tensor, axis))
        return self.weights[layer].tensor

    def matrix(self, layer: str, tensor: Tensor, order: Sequence[int]) -> str:
        """Add a recurrent layer's matrix and note its name and order."""
        self.weights[layer] = Order(super().matrix(layer, tensor, order), tuple(order))
        return self.weights[layer].tensor

    def produced(self, node: str, value: str) -> str:
        """Note what a node's value is called."""
        self.values[node] = value
        return value


def encodings_json(net: CompressedNetwork, names: NamedWriter) -> bytes:
    """Return the encodings of a compressed network under the names of its pruned float file's tensors.

    Tensors that stay float have none. Neither has the weight of a transposed convolution in groups: its output channels
    lie along two axes of the ONNX tensor, which the layout can't tell.
    """
    weights = _weights(net, names)
    document = {
        "version": VERSION,
        "activation_encodings": _activations(net, names.values),
        "param_encodings": weights,
        "quantizer_args": _arguments(net, weights),
        "excluded_layers": sorted(name for name, layer in net.layers.items() if is_float(layer.bits)),
    }
    return json.dumps(document, indent=1, allow_nan=False).encode()


def unsound(encodings: bytes, model: bytes, net: CompressedNetwork) -> list[str]:
    """Return what is wrong with encodings beside the ONNX file they are meant for, in words (nothing: they fit it)."""
    document, graph = json.loads(encodings), onnx.load_from_string(model).graph
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    values = {item.name for item in graph.input} | {name for node in graph.node for name in node.output}
    found = [f"no tensor {x['name']!r}" for x in document["activation_encodings"] if x["name"] not in values]
    for item in document["param_encodings"]:
        sizes = {len(item["scale"]), len(item["offset"])}
        if item["name"] not in shapes or len(sizes) > 1 or not sizes <= {1, *shapes[item["name"]]}:
            found.append(f"{item['name']!r} is no weight of {sorted(sizes)} channels")
    grids = {(grid.bits, -grid.zero_point, float(np.float32(grid.scale))) for grid in net.grids.values()}
    told = {(item["bw"], item["offset"][0], item["scale"][0]) for item in document["activation_encodings"]}
    if told != {item for item in grids if not is_float(item[0])}:
        found.append("the activations' encodings are not the network's grids")
    scales = Counter((item["bw"], tuple(sorted(item["scale"]))) for item in document["param_encodings"])
    if scales != Counter(_scales(layer) for layer in _encodable(net)):
        found.append("the weights' encodings are not the network's scales")
    return found


def _scales(layer: QuantizedLayer) -> tuple[int, tuple[float, ...]]:
    assert layer.weight_scale is not None
    return layer.bits, tuple(sorted(float(item) for item in layer.weight_scale))


def _encodable(net: CompressedNetwork) -> list[QuantizedLayer]:
    """Return the layers whose weights have encodings."""
    layers = [layer for layer in net.layers.values() if layer.weight_scale is not None]
    return [layer for layer in layers if not _has_two_axes(net.module, layer.name)]


def _activations(net: CompressedNetwork, values: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one encoding per tensor that lies on a grid, in execution order: all that pass a quantizer's grid on."""
    of = quantizer_sites(net.module).of
    found: dict[str, ActivationGrid] = {}
    for node in net.module.graph.nodes:
        grid = net.grids.get(of.get(node.name, ""))
        if grid is not None and not is_float(grid.bits):
            found.setdefault(values[node.name], grid)
    return [_activation(name, grid) for name, grid in found.items()]


def _activation(name: str, grid: ActivationGrid) -> dict[str, Any]:
    is_symmetric = grid.zero_point == 1 << (grid.bits - 1)
    return _encoding(name, grid.bits, is_symmetric, [-grid.zero_point], [float(np.float32(grid.scale))])


def _weights(net: CompressedNetwork, names: NamedWriter) -> list[dict[str, Any]]:
    found = []
    for layer in _encodable(net):
        assert layer.weight_scale is not None
        order, scale = names.weights[layer.name], layer.weight_scale
        if order.parts is not None and len(scale) > 1:
            gates = np.split(scale, len(order.parts))
            scale = np.concatenate([gates[index] for index in order.parts])
        offsets = [-(1 << (layer.bits - 1))] * len(scale)
        found.append(_encoding(order.tensor, layer.bits, True, offsets, [float(item) for item in scale]))
    return found


def _has_two_axes(module: nn.Module, layer: str) -> bool:
    leaf: Any = dict(module.named_children()).get(layer)
    return isinstance(leaf, TRANSPOSED) and int(getattr(leaf, "groups", 1)) > 1


def _encoding(name: str, bits: int, is_sym: bool, offset: list[int], scale: list[float]) -> dict[str, Any]:
    kind = "PER_CHANNEL" if len(scale) > 1 else "PER_TENSOR"
    return {
        "name": name,
        "bw": bits,
        "dtype": "INT",
        "enc_type": kind,
        "is_sym": is_sym,
        "offset": offset,
        "scale": scale,
    }


def _arguments(net: CompressedNetwork, weights: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what AIMET notes of how encodings were made; where bits are mixed, the widest."""
    grids = [grid.bits for grid in net.grids.values() if not is_float(grid.bits)]
    return {
        "activation_bitwidth": max(grids, default=32),
        "dtype": "int",
        "is_symmetric": True,
        "param_bitwidth": max((item["bw"] for item in weights), default=32),
        "per_channel_quantization": any(item["enc_type"] == "PER_CHANNEL" for item in weights),
        "quant_scheme": SCHEME,
    }
