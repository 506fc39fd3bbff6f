"""The arithmetic of an integer runtime, bit for bit: what ONNX Runtime's QLinearConv, QGemm, MatMulIntegerToFloat and
QLinearAdd compute.

Values travel between kernels as codes, one byte each. Their products are summed by the processor's integer instructions
where those are exact (`exact_bytes`), else in float32, which loses nothing below 2^24. What is left to get right is
where the runtime rounds: once, after a multiplication by one float32 ratio of scales. Doing it elsewhere gives another
code now and then, and fifty layers make a different answer of that.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn

from worker.graph.operands import operands
from worker.graph.ops.parametric import CONVOLUTIONS
from worker.graph.ops.table import module_of
from worker.graph.sites import Sites, quantizer_sites
from worker.quant.grids import ActivationGrid
from worker.quant.layer import QuantizedLayer

MAX_BITS = 8
CACHED_VALUES = 1 << 20
INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Codes:
    """A tensor on a grid of at most 8 bits: `raw` uint8 [...], the integers that a runtime stores."""

    raw: Tensor
    grid: ActivationGrid

    def real(self) -> Tensor:
        """Return the float32 values that the codes stand for, in memory of their own."""
        return self.decode(self.raw)

    def decode(self, raw: Tensor) -> Tensor:
        """Return what codes of the same grid stand for."""
        units = raw.float()
        if self.grid.zero_point:
            units.sub_(self.grid.zero_point)
        return units.mul_(self.grid.scale)


Kernel = Callable[[Sequence[Codes]], Codes]
Sums = Callable[[Tensor], Tensor]


class Quantized(Protocol):
    """A network as far as it is compressed: a canonical graph, its stored layers, the grids of its sites."""

    @property
    def module(self) -> fx.GraphModule: ...

    @property
    def layers(self) -> Mapping[str, QuantizedLayer]: ...

    @property
    def grids(self) -> Mapping[str, ActivationGrid]: ...


def integer_kernels(net: Quantized, nodes: Iterable[fx.Node], sites: Sites | None = None) -> Mapping[str, Kernel]:
    """Return, for those of some nodes that the runtime computes in integers, how; by name.

    A kernel takes codes on the grids of its operands and gives codes on that of the site behind it.
    """
    sites = quantizer_sites(net.module) if sites is None else sites
    behind = {site.head: site.id for site in sites.sites}
    found: dict[str, Kernel] = {}
    for node in nodes:
        grid = _narrow(net.grids.get(behind.get(node.name, "")))
        kernel = None if grid is None else _kernel(net, sites, node, grid)
        if kernel is not None:
            found[node.name] = kernel
    return found


def _kernel(net: Quantized, sites: Sites, node: fx.Node, grid: ActivationGrid) -> Kernel | None:
    sources = [_narrow(net.grids.get(sites.of.get(source.name, ""))) for source in operands(node)]
    if any(source is None for source in sources):
        return None
    grids = [source for source in sources if source is not None]
    if node.op == "call_function" and node.target is torch.add and len(grids) == 2 and not node.kwargs:
        return addition(grids[0], grids[1], grid)
    layer = net.layers.get(node.name)
    if node.op != "call_module" or layer is None or layer.weight_int is None or layer.bits > MAX_BITS:
        return None
    return _layer(module_of(net.module, node), layer, grids[0], grid)


def _narrow(grid: ActivationGrid | None) -> ActivationGrid | None:
    """Return a grid whose codes fit a byte; wider ones are computed in float."""
    return grid if grid is not None and grid.bits <= MAX_BITS else None


def encode(values: Tensor, grid: ActivationGrid) -> Codes:
    """Return the codes of real values. Raises ArithmeticError for a value that is no number: no code stands for it."""
    total = values.sum()
    if bool(total.isnan()) and bool(values.isnan().any()):
        raise ArithmeticError("a value inside the network is not a number")
    return Codes(_bytes(torch.div(values, grid.scale), grid), grid)


def _bytes(units: Tensor, grid: ActivationGrid) -> Tensor:
    """Round values in units of a grid's scale to its codes; the argument is used up."""
    units.round_()
    if grid.zero_point:
        units.add_(grid.zero_point)
    return _narrowed(units.clamp_(0, grid.levels))


def _narrowed(codes: Tensor) -> Tensor:
    """Return whole numbers of 0 to 255 as bytes: by way of int16, for which processors have instructions."""
    return codes.to(torch.int16).to(torch.uint8)


def _layer(leaf: nn.Module, layer: QuantizedLayer, source: ActivationGrid, grid: ActivationGrid) -> Kernel | None:
    """Return the kernel of a convolution or linear layer, or None where the runtime takes another way."""
    if not isinstance(leaf, (*CONVOLUTIONS, nn.Linear)):
        return None
    assert layer.weight_int is not None and layer.weight_scale is not None
    scales = np.broadcast_to(np.asarray(layer.weight_scale, np.float32).reshape(-1), (len(layer.weight_int),))
    step = np.float32(source.scale) * scales
    bias = np.rint(layer.bias.astype(np.float64) / step.astype(np.float64))
    if not np.abs(bias).max(initial=0.0) <= INT32_MAX:
        return None
    device = next(leaf.parameters()).device
    codes, biases = (torch.from_numpy(item).to(device) for item in (layer.weight_int, bias.astype(np.float32)))
    ratio = torch.from_numpy((step / np.float32(grid.scale)).astype(np.float32)).to(device)
    sums = sums_of(leaf, codes, biases, source.zero_point)
    if not isinstance(leaf, nn.Linear):
        return _Layer(sums, grid, ratio.reshape(-1, *[1] * (codes.dim() - 2)))
    apart = sums_of(leaf, codes, torch.zeros_like(biases), source.zero_point)
    factor = torch.from_numpy(step).to(device)
    product = _Product(apart, grid, factor, biases * factor)
    return _Matrix(_Layer(sums, grid, ratio), product if leaf.bias is not None else _Layer(apart, grid, ratio))


def sums_of(leaf: nn.Module, weight: Tensor, bias: Tensor, zero_point: int) -> Sums:
    """Return how a leaf's sums over codes are computed."""
    if weight.device.type == "cpu" and weight.dtype == torch.int8 and exact_bytes():
        if isinstance(leaf, nn.Linear):
            return _byte_matrix(weight, bias, zero_point)
        if isinstance(leaf, nn.Conv2d):
            return _byte_convolution(leaf, weight, bias, zero_point)
    on_codes = _with(leaf, weight.float(), bias)
    return lambda raw: on_codes(raw.float().sub_(zero_point) if zero_point else raw.float())


def _with(leaf: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    """Return a leaf that computes on codes."""
    clone: Any = copy.copy(leaf)
    if weight.dim() == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    parts = {"weight": weight, "bias": bias}
    clone._parameters = {name: nn.Parameter(part, requires_grad=False) for name, part in parts.items()}
    return clone  # type: ignore[no-any-return]


def _byte_convolution(leaf: nn.Conv2d, weight: Tensor, bias: Tensor, zero_point: int) -> Sums:
    """Return a convolution of bytes whose sums [n, out, h, w] come as float32: all scales are 1."""
    place = list(leaf.stride), list(leaf.padding), list(leaf.dilation), leaf.groups
    ones, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int32)
    packed = torch.ops.onednn.qconv_prepack(weight.contiguous(), ones, 1.0, zero_point, *place, None)
    call = torch.ops.onednn.qconv2d_pointwise.default
    end: tuple[Any, ...] = 1.0, 0, torch.float32, "none", [], ""
    return lambda raw: call(raw, 1.0, zero_point, packed, ones, zeros, bias, *place, *end)


def _byte_matrix(weight: Tensor, bias: Tensor, zero_point: int) -> Sums:
    """Return a product of bytes [..., in] with a matrix [out, in] whose sums come as float32."""
    ones, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int32)
    packed = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
    call = torch.ops.onednn.qlinear_pointwise.default
    end: tuple[Any, ...] = 1.0, 0, torch.float32, "none", [], ""
    return lambda raw: call(raw, 1.0, zero_point, packed, ones, zeros, bias, *end)


def _few(raw: Tensor) -> int:
    """Return how many rows of a batch to compute at once, so that float32 sums of their size stay in the caches."""
    return max(1, CACHED_VALUES * len(raw) // max(1, raw.numel()))


@functools.cache
def exact_bytes() -> bool:
    """Tell whether this processor sums products of bytes exactly: without dot-product instructions (VNNI) pairs of
    products are saturated to 16 bits. Found out by trying the largest ones."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(192, 256, (2, 64, 5, 5), generator=generator).to(torch.uint8)
    weight = (torch.randint(0, 2, (32, 64, 3, 3), generator=generator) * 254 - 127).to(torch.int8)
    leaf, bias = nn.Conv2d(64, 32, 3, padding=1), torch.arange(32.0)
    try:
        matrix = _byte_matrix(weight[..., 1, 1], bias, 3)
        found = [_byte_convolution(leaf, weight, bias, 3)(raw), matrix(raw[..., 1, 1])]
    except (RuntimeError, AttributeError):  # this build of torch has no such operators
        return False
    units = raw.double() - 3
    wanted = [
        nn.functional.conv2d(units, weight.double(), bias.double(), padding=1),
        nn.functional.linear(units[..., 1, 1], weight[..., 1, 1].double(), bias.double()),
    ]
    return all(torch.equal(one, two.float()) for one, two in zip(found, wanted, strict=True))


@dataclass(frozen=True)
class _OnSums:
    """A kernel that puts a layer's integer sums on a grid, a few rows at a time."""

    sums: Sums
    grid: ActivationGrid

    def __call__(self, inputs: Sequence[Codes]) -> Codes:
        raw = inputs[0].raw
        return Codes(torch.cat([self._codes(part) for part in raw.split(_few(raw))]), self.grid)

    def _codes(self, raw: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class _Layer(_OnSums):
    """QLinearConv and QGemm: round(sum * (s_x * s_w / s_y))."""

    ratio: Tensor

    def _codes(self, raw: Tensor) -> Tensor:
        return _bytes(self.sums(raw).mul_(self.ratio), self.grid)


@dataclass(frozen=True)
class _Product(_OnSums):
    """MatMulIntegerToFloat, an addition and QuantizeLinear: round((sum * (s_x * s_w) + bias) / s_y)."""

    factor: Tensor
    bias: Tensor

    def _codes(self, raw: Tensor) -> Tensor:
        return _bytes(self.sums(raw).mul_(self.factor).add_(self.bias).div_(self.grid.scale), self.grid)


@dataclass(frozen=True)
class _Matrix:
    """A linear layer: a QGemm of rows [n, in], another kernel where there are more dimensions."""

    rows: Kernel
    product: Kernel

    def __call__(self, inputs: Sequence[Codes]) -> Codes:
        return (self.rows if inputs[0].raw.dim() == 2 else self.product)(inputs)


@dataclass(frozen=True)
class _Add:
    """QLinearAdd: round(a * r_a + (b * r_b + z)), fused multiplications on codes, all zero points gathered in z."""

    ratios: tuple[float, float]
    fixed: Tensor
    grid: ActivationGrid

    def __call__(self, inputs: Sequence[Codes]) -> Codes:
        left, right = (item.raw for item in inputs)
        if left.shape != right.shape:
            return Codes(self._codes(left, right), self.grid)
        parts = zip(left.split(_few(left)), right.split(_few(left)), strict=True)
        return Codes(torch.cat([self._codes(*pair) for pair in parts]), self.grid)

    def _codes(self, left: Tensor, right: Tensor) -> Tensor:
        fused = fused_multiply if fuses(left.device) else multiply_exactly
        inner = fused(self.fixed, right, self.ratios[1])
        codes = fused(inner, left, self.ratios[0]).round_().clamp_(0, self.grid.levels)
        return _narrowed(codes)


def addition(left: ActivationGrid, right: ActivationGrid, grid: ActivationGrid) -> Kernel:
    """Return the kernel of an addition."""
    ratio_a, ratio_b = (np.float32(item.scale) / np.float32(grid.scale) for item in (left, right))
    gathered = np.float32(float(ratio_a) * left.zero_point + float(ratio_b * np.float32(right.zero_point)))
    fixed = torch.tensor(np.float32(grid.zero_point - float(gathered)))
    return _Add((float(ratio_a), float(ratio_b)), fixed, grid)


def fused_multiply(added: Tensor, raw: Tensor, ratio: float) -> Tensor:
    """Return raw * ratio + added, rounded to float32 once: torch's addition is one instruction where there is such."""
    return torch.add(added, raw.float(), alpha=ratio)


def multiply_exactly(added: Tensor, raw: Tensor, ratio: float) -> Tensor:
    """Return the same on any processor: a product of float32s is exact in float64."""
    return (raw.double() * ratio + added.double()).float()


@functools.cache
def fuses(device: torch.device) -> bool:
    """Tell whether torch's scaled addition rounds once on a device: tried on all codes, whole vectors and rests."""
    raw = torch.arange(256).to(torch.uint8).to(device)
    for seed in range(64):
        ratio, added = (torch.rand(2, generator=torch.Generator().manual_seed(seed)) * 4 - 2).tolist()
        ratio, start = float(np.float32(ratio)), torch.tensor(added, device=device)
        for part in (raw, raw[: seed + 1]):
            if not torch.equal(fused_multiply(start, part, ratio), multiply_exactly(start, part, ratio)):
                return False
    return True
