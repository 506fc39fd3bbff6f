"""The compressed network as an ONNX file in QDQ form that ONNX Runtime fuses into integer kernels.

Weights are int8 constants; 4-bit ones are stored as INT4 and cast, other widths below 8 bits as a packed bit stream
that a small constant subgraph unpacks. The runtime folds both at load: the file is small, the kernels are those of
int8, the results bit-identical. Below 8 bits an integer Clip stands *between* QuantizeLinear and DequantizeLinear:
there it leaves the fusion into QLinearConv and QLinearAdd alone, where a float Clip would break it. So a ReLU or clamp
in front of a quantizer is not written either but becomes the bounds of the integer Clip: rounding is monotonic, hence
Q(min(x, c)) = min(Q(x), Q(c)) exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from app.domain.opsets import DEFAULT, check_opset
from app.domain.space import FLOAT_BITS
from worker.export.onnx_gates import GateWriter
from worker.export.packing import pack, packed_bytes
from worker.export.saturation import may_saturate
from worker.graph.operands import operands
from worker.graph.ops.parametric import TRANSPOSED
from worker.graph.ops.table import module_of
from worker.graph.sites import quantizer_sites
from worker.graph.write_onnx import OnnxWriter
from worker.quant.grids import ActivationGrid
from worker.quant.layer import QuantizedLayer
from worker.quant.network import CompressedNetwork

INT32_MAX = 2**31 - 1
LARGE = 3e38
GROUP = 8  # so many codes of b bits fill b whole bytes
INT4_SINCE = 21
UNPACKER_BYTES = 770  # what the unpacking nodes of one layer take in the file


def write_qdq(net: CompressedNetwork, saturating: bool = False, opset: int = DEFAULT) -> bytes:
    """Return the serialized QDQ model with a dynamic batch; equal networks give equal bytes.

    Where pairs of products are `saturating` on the device, layers that could are written with unsigned weights. Raises
    OpsetTooLow for numbers of more than 8 bits at an opset that has none.
    """
    check_opset(opset, {*(layer.bits for layer in net.layers.values()), *(grid.bits for grid in net.grids.values())})
    return QdqWriter(net, saturating, opset).write()


class QdqWriter(OnnxWriter):
    """Adds quantizers at the sites and stores weights as integers."""

    def __init__(self, net: CompressedNetwork, saturating: bool = False, opset: int = DEFAULT) -> None:
        super().__init__(net.module, opset)
        self._saturating = saturating
        self._net = net
        self._sites = quantizer_sites(net.module)
        self._by_name = {node.name: node for node in net.module.graph.nodes}
        self._shared: dict[str, str] = {}
        self._grids: dict[str, tuple[str, str]] = {}
        self._gates = self.gate_writer()

    def gate_writer(self) -> GateWriter:
        """Return what writes the network's gates."""
        return GateWriter(self, self._net.gates)

    def emit(self, op_type: str, inputs: Sequence[str], name: str, *, output: int = 0, **attributes: Any) -> str:
        """Add a node without a name of its own: in a small network the names would outweigh the weights."""
        result = super().emit(op_type, inputs, name, output=output, **attributes)
        self.nodes[-1].ClearField("name")
        return result

    def constant(self, tensor: Tensor | NDArray[Any], name: str) -> str:
        """Add an initializer and return its name; a scalar stays a scalar (QLinearAdd fuses with no other)."""
        if isinstance(tensor, np.ndarray) and tensor.ndim == 0:
            return self.initializer(numpy_helper.from_array(tensor, name))
        return super().constant(tensor, name)

    def weight(self, layer: str, tensor: Tensor, axis: int = 0) -> str:
        """Return the weight of a layer, dequantized per output channel.

        In front of a float input the constants are multiplied out: the runtime folds that, but no DequantizeLinear. So
        they are in a product of wider than 8-bit activations, see `_would_be_narrowed`. A transposed convolution in
        groups has its output channels along two axes, which no DequantizeLinear can scale: it is dequantized outputs
        first and then turned.
        """
        quantized = self._net.layers[layer]
        if quantized.bits >= FLOAT_BITS:
            return super().weight(layer, tensor, axis)
        leaf: Any = module_of(self.module, self._by_name[layer])
        groups: int = getattr(leaf, "groups", 1)
        grouped = isinstance(leaf, TRANSPOSED) and groups > 1
        ints, name = integers(quantized), f"{layer}.weight"
        if axis == 1 and not grouped:
            ints = ints.swapaxes(0, 1)
        apart = self.input_grid(layer) is None or self._would_be_narrowed(layer)
        make = self._multiplied if apart else self._dequantized
        if not grouped:
            return make(quantized, ints, name, axis)
        return self._turned(make(quantized, ints, f"{layer}.rows", 0), ints.shape, groups, name)

    def matrix(self, layer: str, tensor: Tensor, order: Sequence[int]) -> str:
        """Return a recurrent layer's matrix, its constants multiplied out: LSTM and GRU compute in float."""
        quantized = self._net.layers[layer]
        if quantized.bits >= FLOAT_BITS:
            parts = tensor.chunk(len(order))
            return self.constant(torch.cat([parts[index] for index in order]), f"{layer}.weight")
        ints = _reordered(integers(quantized), order)
        turned = replace(quantized, weight_int=ints, weight_scale=_reordered(per_channel(quantized), order))
        return self._multiplied(turned, ints, f"{layer}.weight", 0)

    def per_output(self, layer: str, values: NDArray[Any], name: str) -> str:
        """Add a constant that holds one value for each of a layer's outputs along its first axis that is not of extent
        one."""
        return self.constant(values, name)

    def _multiplied(self, quantized: QuantizedLayer, ints: NDArray[Any], name: str, axis: int) -> str:
        """Return codes times scales, as a product of constants."""
        layer = quantized.name
        values = self.emit("Cast", [self._codes(layer, ints, quantized.bits, 0)], f"{layer}.wide", to=TensorProto.FLOAT)
        column = per_channel(quantized).reshape([-1 if index == axis else 1 for index in range(ints.ndim)])
        return self.emit("Mul", [values, self.per_output(layer, column, f"{layer}.w.scale")], name)

    def _dequantized(self, quantized: QuantizedLayer, ints: NDArray[Any], name: str, axis: int) -> str:
        layer, scale = quantized.name, per_channel(quantized)
        zero = 128 if self._saturating and self._may_saturate(layer, quantized) else 0
        codes = self._codes(layer, ints, quantized.bits, zero)
        zeros = np.full(scale.shape, zero, np.uint8 if zero else code_type(quantized.bits))
        parts = ((scale, f"{layer}.w.scale"), (zeros, f"{layer}.w.zero"))
        operands_ = [codes, *(self.per_output(layer, *part) for part in parts)]
        return self.emit("DequantizeLinear", operands_, name, axis=axis)

    def _turned(self, value: str, shape: Sequence[int], groups: int, name: str) -> str:
        """Return a weight [out, in / groups, *kernel] as ConvTranspose takes it: [in, out / groups, *kernel]."""
        outs, ins, *kernel = shape
        apart = self.integers([groups, outs // groups, ins, *kernel], f"{value}.apart")
        split = self.emit("Reshape", [value, apart], f"{value}.split")
        turned = self.emit("Transpose", [split], f"{value}.turned", perm=[0, 2, 1, *range(3, 3 + len(kernel))])
        sizes = self.integers([groups * ins, outs // groups, *kernel], f"{value}.sizes")
        return self.emit("Reshape", [turned, sizes], name)

    def bias(self, layer: str, tensor: Tensor) -> str:
        """Return the bias: int32 at scale s_x * s_w where both operands are integers, else float32.

        Where that scale is too fine for int32 (16-bit operands) it is doubled until the codes fit: a float bias would
        be quantized by ONNX Runtime itself, at s_x * s_w and past its range.
        """
        grid = self.input_grid(layer)
        quantized = self._net.layers[layer]
        if grid is None or quantized.bits >= FLOAT_BITS:
            return self.per_output(layer, tensor.numpy(), f"{layer}.bias")
        scale = np.float32(grid.scale) * per_channel(quantized)
        values = tensor.numpy().astype(np.float64)
        excess = max(1.0, float(np.max(np.abs(values / scale)) / INT32_MAX))
        scale = (scale * 2.0 ** math.ceil(math.log2(excess))).astype(np.float32)
        codes = np.rint(values / scale)
        inputs = [
            self.per_output(layer, codes.astype(np.int32), f"{layer}.b"),
            self.per_output(layer, scale, f"{layer}.b.scale"),
            self.per_output(layer, np.zeros(scale.shape, np.int32), f"{layer}.b.zero"),
        ]
        return self.emit("DequantizeLinear", inputs, f"{layer}.bias", axis=0)

    def produced(self, node: str, value: str) -> str:
        """Quantize at a site; behind one, repeat the site's grid (exact, and what lets pooling and flatten fuse)."""
        found = self._quantized(node, value)
        self._gates.decide(node, found, self.rank(self._by_name[node]))
        return found

    def _quantized(self, node: str, value: str) -> str:
        site = self._sites.of.get(node)
        grid = self._grid(site)
        if site is None or grid is None:
            return self._gates.masked(node, value)
        scale, zero = self._grid_constants(site, grid)
        codes = self.emit("QuantizeLinear", [value, scale, zero], f"{node}.codes")
        if node == site:
            codes = self._clip(node, codes, self._bounds(node, grid))
            codes = self._gates.masked(node, codes, zero)
        return self.emit("DequantizeLinear", [codes, scale, zero], f"{node}.dq")

    def input_grid(self, layer: str) -> ActivationGrid | None:
        """Return the grid of a layer's input activation (None: it is float)."""
        source = operands(self._by_name[layer])[0]
        return self._grid(self._sites.of.get(source.name))

    def _node(self, node: fx.Node, values: dict[str, str]) -> str:
        if self._is_absorbed(node):
            return values[operands(node)[0].name]
        if self._would_be_quantized(node):
            source = operands(node)[0].name
            limits = [self._shared_constant(f"limit{sign}", np.float32(sign * LARGE)) for sign in (-1, 1)]
            values = {**values, source: self.emit("Clip", [values[source], *limits], f"{node.name}.kept_float")}
        return super()._node(node, values)

    def _would_be_quantized(self, node: fx.Node) -> bool:
        """Tell whether ONNX Runtime would put integers where floats are meant: it does between Q and DQ.

        It would quantize a float layer by itself. A softmax would become QLinearSoftmax, which multiplies by the whole
        part of 1 / scale (at 4 bits up to 6 % too little) and takes four times as long. A Clip that clips nothing in
        front keeps it from doing so.
        """
        if node.target is torch.softmax:
            grids = [self._grid(self._sites.of.get(item.name)) for item in (node, operands(node)[0])]
            return all(grid is not None and grid.bits <= 8 for grid in grids)
        layer = self._net.layers.get(node.name)
        return layer is not None and layer.bits >= FLOAT_BITS and self.input_grid(node.name) is not None

    def _would_be_narrowed(self, layer: str) -> bool:
        """Tell whether ONNX Runtime would round a layer's activations of more than 8 bits to 8 by itself.

        They count as floats, and of a MatMul of floats with a dequantized weight it makes MatMulNBits, which takes its
        operand apart into blocks of 8 bits.
        """
        grid, node = self.input_grid(layer), self._by_name[layer]
        is_product = isinstance(module_of(self.module, node), nn.Linear) and self.rank(node) != 2
        return is_product and grid is not None and grid.bits > 8

    def _is_absorbed(self, node: fx.Node) -> bool:
        """Tell whether a node is a ReLU or clamp that the integer Clip behind it makes superfluous."""
        is_bound = node.op == "call_function" and node.target in (torch.relu, torch.clamp)
        return is_bound and self._sites.of.get(node.name) == node.name and self._grid(node.name) is not None

    def _bounds(self, name: str, grid: ActivationGrid) -> tuple[int, int]:
        """Return the smallest and largest code that may stand behind a site's quantizer."""
        low, high = 0, (1 << grid.bits) - 1
        node = self._by_name[name]
        if not self._is_absorbed(node):
            return low, high
        least, most = value_bounds(node)
        return max(low, code_of(least, grid)), min(high, code_of(most, grid))

    def _clip(self, name: str, codes: str, bounds: tuple[int, int]) -> str:
        container = container_of(self._net.grids[name])
        if bounds == (0, np.iinfo(container).max):
            return codes
        limits = [self._shared_constant(f"{container.__name__}_{bound}", container(bound)) for bound in bounds]
        return self.emit("Clip", [codes, *limits], f"{name}.clipped")

    def _codes(self, layer: str, ints: NDArray[Any], bits: int, zero: int) -> str:
        """Return the integers: int8 (int16 above 8 bits; uint8 with zero point 128), packed where that is smaller."""
        name = f"{layer}.w"
        if zero:
            return self.constant((ints.astype(np.int16) + zero).astype(np.uint8), name)
        if bits == 4 and self.opset >= INT4_SINCE:
            return self.emit("Cast", [self.initializer(int4_tensor(name, ints))], f"{name}8", to=TensorProto.INT8)
        if bits < 8 and ints.size - packed_bytes(ints.size, bits) > UNPACKER_BYTES:
            return self._unpacked(name, ints, bits)
        return self.constant(ints.astype(code_type(bits)), name)

    def _unpacked(self, name: str, ints: NDArray[Any], bits: int) -> str:
        """Emit the constant subgraph that unpacks a bit stream: each code lies in at most two neighbouring bytes."""
        stream = pack(ints, bits)
        packed = self.constant(
            np.concatenate([stream, np.zeros(-stream.size % bits, np.uint8)]).reshape(-1, bits), name
        )
        wide = self.emit("Cast", [packed], f"{name}1", to=TensorProto.INT32)
        first, shift = np.arange(GROUP) * bits // 8, np.arange(GROUP) * bits % 8
        low = self._scaled(f"{name}2", wide, ("Div", bits), first, 1 << shift)
        # of a code that ends inside its first byte the second adds a multiple of 2^bits
        high = self._scaled(f"{name}3", wide, ("Mul", bits), np.minimum(first + 1, bits - 1), 1 << (8 - shift))
        size = self._shared_constant(f"size{bits}", np.int32(1 << bits))
        codes = self.emit("Mod", [self.emit("Add", [low, high], f"{name}4"), size], f"{name}5")
        flat = self.emit("Reshape", [codes, self._shared_constant("flat", np.array([-1]))], f"{name}6")
        if ints.size % GROUP:
            start = self._shared_constant("start", np.array([0]))
            flat = self.emit("Slice", [flat, start, self.integers([ints.size], f"{name}.stop")], f"{name}7")
        shaped = self.emit("Reshape", [flat, self.integers(ints.shape, f"{name}.shape")], f"{name}8")
        offset = self._shared_constant(f"offset{bits}", np.int32(1 << (bits - 1)))
        return self.emit("Cast", [self.emit("Sub", [shaped, offset], f"{name}9")], f"{name}10", to=TensorProto.INT8)

    def _scaled(self, name: str, wide: str, key: tuple[str, int], columns: NDArray[Any], factors: NDArray[Any]) -> str:
        """Pick bytes of each group and divide or multiply them; in int32, for not every runtime wraps shifted bytes."""
        op_type, bits = key
        index = self._shared_constant(f"byte{op_type}{bits}", columns.astype(np.int64))
        factor = self._shared_constant(f"by{op_type}{bits}", factors.astype(np.int32))
        return self.emit(op_type, [self.emit("Gather", [wide, index], f"{name}g", axis=1), factor], name)

    def _shared_constant(self, label: str, value: Any) -> str:
        if label not in self._shared:
            self._shared[label] = self.constant(np.asarray(value), f"shared.{label}")
        return self._shared[label]

    def saturating_layers(self) -> tuple[str, ...]:
        """Return the layers whose pairs of products may leave int16."""
        return tuple(name for name, quantized in self._net.layers.items() if self._may_saturate(name, quantized))

    def _may_saturate(self, layer: str, quantized: QuantizedLayer) -> bool:
        grid = self.input_grid(layer)
        if grid is None or grid.bits > 8 or quantized.bits != 8:
            return False
        leaf: Any = module_of(self.module, self._by_name[layer])
        groups = getattr(leaf, "groups", 1)
        depthwise = groups > 1 and groups == leaf.in_channels == leaf.out_channels
        return may_saturate(integers(quantized), (1 << grid.bits) - 1, depthwise)

    def _grid(self, site: str | None) -> ActivationGrid | None:
        grid = None if site is None else self._net.grids.get(site)
        return None if grid is None or grid.bits >= FLOAT_BITS else grid

    def _grid_constants(self, site: str, grid: ActivationGrid) -> tuple[str, str]:
        if site not in self._grids:
            scale = self.constant(np.array(grid.scale, np.float32), f"{site}.scale")
            self._grids[site] = (
                scale,
                self.constant(np.array(grid.zero_point, container_of(grid)), f"{site}.zero"),
            )
        return self._grids[site]


def _reordered(values: NDArray[Any], order: Sequence[int]) -> NDArray[Any]:
    """Return values with the parts of their rows (gates) in another order."""
    parts = np.split(values, len(order))
    return np.concatenate([parts[index] for index in order])


def integers(quantized: QuantizedLayer) -> NDArray[Any]:
    """Return a quantized layer's integers (out, in / groups, *kernel)."""
    assert quantized.weight_int is not None, f"layer {quantized.name} is float"
    return np.asarray(quantized.weight_int)


def code_type(bits: int) -> type[np.int8] | type[np.int16]:
    """Return the signed numpy type that holds integers of so many bits."""
    return np.int8 if bits <= 8 else np.int16


def per_channel(quantized: QuantizedLayer) -> NDArray[np.float32]:
    """Return one float32 scale per output channel."""
    scale = np.asarray(quantized.weight_scale, np.float32).reshape(-1)
    return np.array(np.broadcast_to(scale, (integers(quantized).shape[0],)))


def value_bounds(node: fx.Node) -> tuple[float, float]:
    """Return the least and the largest value behind a ReLU or clamp."""
    if node.target is torch.relu:
        return 0.0, math.inf
    kwargs: Mapping[str, Any] = node.kwargs
    return float(kwargs["min"]), float(kwargs["max"])


def code_of(value: float, grid: ActivationGrid) -> int:
    """Return the code QuantizeLinear gives a value, saturated to its container."""
    ratio = np.float32(value) / np.float32(grid.scale)
    return int(np.clip(np.rint(ratio) + grid.zero_point, 0, np.iinfo(container_of(grid)).max))


def container_of(grid: ActivationGrid) -> type[np.uint8] | type[np.uint16]:
    """Return the unsigned numpy type that holds a grid's codes."""
    return np.uint8 if grid.bits <= 8 else np.uint16


def int4_tensor(name: str, ints: NDArray[Any]) -> Any:
    """Return an INT4 initializer: two's complement, the first of two values in the low nibble."""
    nibbles = (ints.reshape(-1).astype(np.int8).view(np.uint8) & 0xF).astype(np.uint8)
    even = np.concatenate([nibbles, np.zeros(nibbles.size % 2, np.uint8)])
    return helper.make_tensor(name, TensorProto.INT4, _dims(ints.shape), (even[0::2] | even[1::2] << 4).tobytes(), True)


def _dims(shape: Sequence[int]) -> list[int]:
    return [int(extent) for extent in shape]
