"""The arithmetic of an integer runtime, bit for bit: what ONNX Runtime's QLinearConv, QGemm and QLinearAdd compute.

Codes of 8 bits and their products are summed in float32 without loss (below 2^24), so a float convolution of codes is
the integer one. What is left to get right is where the runtime rounds: once, after a multiplication by one float32
ratio of scales. Doing it elsewhere gives another code now and then, and fifty layers make a different answer of that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn

from worker.graph.operands import operands
from worker.graph.ops.parametric import CONVOLUTIONS
from worker.graph.ops.table import module_of
from worker.graph.sites import Sites, quantizer_sites
from worker.quant.grids import ActivationGrid

if TYPE_CHECKING:
    from worker.quant.network import QuantizedLayer

Kernel = Callable[[Sequence[Tensor]], Tensor]
MAX_BITS = 8
CODES = 1 << MAX_BITS
INT32_MAX = 2**31 - 1


class Quantized(Protocol):
    """A network as far as it is compressed: a canonical graph, its stored layers, the grids of its sites."""

    @property
    def module(self) -> fx.GraphModule: ...

    @property
    def layers(self) -> Mapping[str, QuantizedLayer]: ...

    @property
    def grids(self) -> Mapping[str, ActivationGrid]: ...


def integer_kernels(net: Quantized, nodes: Iterable[fx.Node]) -> Mapping[str, Kernel]:
    """Return, for those of some nodes that the runtime computes in integers, how; by name.

    A kernel takes and gives real values that lie on the grids of its operands and of the site behind it.
    """
    sites = quantizer_sites(net.module)
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
        return _addition(grids[0], grids[1], grid)
    layer = net.layers.get(node.name)
    if node.op != "call_module" or layer is None or layer.weight_int is None or layer.bits > MAX_BITS:
        return None
    return _layer(module_of(net.module, node), layer, grids[0], grid)


def _narrow(grid: ActivationGrid | None) -> ActivationGrid | None:
    """Return a grid whose codes fit a byte; wider ones are computed in float."""
    return grid if grid is not None and grid.bits <= MAX_BITS else None


def _layer(leaf: nn.Module, layer: QuantizedLayer, source: ActivationGrid, grid: ActivationGrid) -> Kernel | None:
    """Return the kernel of a convolution or linear layer, or None where the runtime takes another way."""
    if not isinstance(leaf, (*CONVOLUTIONS, nn.Linear)):
        return None
    assert layer.weight_int is not None and layer.weight_scale is not None
    scales = np.broadcast_to(np.asarray(layer.weight_scale, np.float32).reshape(-1), (len(layer.weight_int),))
    step = np.float32(source.scale) * scales
    bias = np.rint(layer.bias.astype(np.float64) / step.astype(np.float64))
    if np.abs(bias).max(initial=0.0) > INT32_MAX:
        return None
    on_codes = _with(leaf, layer.weight_int, bias)
    return _Layer(on_codes, source, grid, torch.from_numpy((step / np.float32(grid.scale)).astype(np.float32)))


def _with(leaf: nn.Module, weight: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]) -> nn.Module:
    """Return a leaf that computes on codes."""
    clone: Any = copy.copy(leaf)
    codes = torch.from_numpy(weight.astype(np.float32))
    if codes.dim() == 4:
        codes = codes.contiguous(memory_format=torch.channels_last)
    parts = {"weight": codes, "bias": torch.from_numpy(bias.astype(np.float32))}
    clone._parameters = {name: nn.Parameter(part, requires_grad=False) for name, part in parts.items()}
    return clone  # type: ignore[no-any-return]


def _real(codes: Tensor, grid: ActivationGrid) -> Tensor:
    """Round sums in units of a grid's scale and return the real values; in place."""
    return codes.round_().clamp_(-grid.zero_point, grid.levels - grid.zero_point).mul_(grid.scale)


@dataclass(frozen=True)
class _Layer:
    """QLinearConv and QGemm: round(sum * (s_x * s_w / s_y))."""

    leaf: nn.Module
    source: ActivationGrid
    grid: ActivationGrid
    ratio: Tensor

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        sums: Tensor = self.leaf(torch.div(inputs[0], self.source.scale).round_())
        axis = sums.dim() - 1 if isinstance(self.leaf, nn.Linear) else 1
        sizes = [1] * sums.dim()
        sizes[axis] = -1
        return _real(sums.mul_(self.ratio.reshape(sizes)), self.grid)


@dataclass(frozen=True)
class _Add:
    """QLinearAdd, whose operands have so few codes that all sums are tabled: [left code * 256 + right code]."""

    left: ActivationGrid
    right: ActivationGrid
    sums: Tensor

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        index = torch.div(inputs[0], self.left.scale).round_().mul_(CODES)
        index.add_(torch.div(inputs[1], self.right.scale).round_())
        index.add_(self.left.zero_point * CODES + self.right.zero_point)
        return self.sums.take(index.long())


def _addition(left: ActivationGrid, right: ActivationGrid, grid: ActivationGrid) -> _Add:
    """Return the kernel round(a * r_a + (b * r_b + z)): fused multiplications, all zero points gathered in z."""
    ratio_a, ratio_b = (np.float32(item.scale) / np.float32(grid.scale) for item in (left, right))
    # a product of float32s is exact in float64: rounding after the sum is what a fused operation does
    gathered = np.float32(float(ratio_a) * left.zero_point + float(ratio_b * np.float32(right.zero_point)))
    fixed = np.float32(grid.zero_point - float(gathered))
    codes = np.arange(CODES, dtype=np.float64)
    inner = (codes * float(ratio_b) + float(fixed)).astype(np.float32)
    found = (codes[:, None] * float(ratio_a) + inner.astype(np.float64)).astype(np.float32)
    sums = np.clip(np.rint(found), 0, grid.levels) - np.float32(grid.zero_point)
    return _Add(left, right, torch.from_numpy((sums * np.float32(grid.scale)).astype(np.float32)))
