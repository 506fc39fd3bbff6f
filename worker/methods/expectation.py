"""What a layer's outputs are on average, given the means of its input channels: the expected error of a replacement.

y = W * x + b has the mean W * E[x] + b. Where W is replaced by W~ (rounded, pruned, of lower rank, whatever), the mean
error of the outputs is (W~ - W) * E[x], which the bias takes back (US 11604987 B2; Nagel et al. 2019, section 4.2).

At the border of a zero-padded picture a tap of the kernel sees zeros. `tap_shares` counts how often it sees the
picture: a 3 x 3 kernel over height H misses it with its outer rows at one of H places. The paper's plain form counts
every tap whole, which at 8 x 8 may come to the wrong sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from worker.graph.ops.parametric import TRANSPOSED, rows_first
from worker.methods.statistics import Moments


def tap_shares(leaf: nn.Module, sizes: Sequence[int], padding_aware: bool = True) -> Tensor:
    """Return, for each tap of a kernel, the share of output places to which it brings an input [*kernel], float64.

    `sizes` are the input's spatial extents. Not `padding_aware`: as if the input went on for ever.
    """
    layer: Any = leaf
    shares = torch.ones((), dtype=torch.float64)
    if isinstance(leaf, nn.Linear):
        return shares
    for axis, size in enumerate(sizes):
        own = _axis_shares(layer, axis, size) if padding_aware else _endless(layer, axis)
        shares = shares[..., None] * own
    return shares


def _axis_shares(layer: Any, axis: int, size: int) -> Tensor:
    kernel, stride, dilation = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
    padding, more = layer.padding[axis], getattr(layer, "output_padding", (0,) * (axis + 1))[axis]
    reach = dilation * (kernel - 1)
    if isinstance(layer, TRANSPOSED):
        outs: int = (size - 1) * stride - 2 * padding + reach + more + 1
        walked, limit = size, outs
    else:
        outs = (size + 2 * padding - reach - 1) // stride + 1
        walked, limit = outs, size
    places = stride * torch.arange(walked)[:, None] + dilation * torch.arange(kernel) - padding
    inside: Tensor = (places >= 0) & (places < limit)
    return inside.sum(0).double() / outs


def _endless(layer: Any, axis: int) -> Tensor:
    kernel, stride = int(layer.kernel_size[axis]), int(layer.stride[axis])
    return torch.full((kernel,), 1 / stride if isinstance(layer, TRANSPOSED) else 1.0, dtype=torch.float64)


def summed(weight: Tensor, shares: Tensor) -> Tensor:
    """Return a weight [out, in / groups, *kernel] added up over its taps by their shares [out, in / groups]."""
    return (weight.double() * shares).flatten(2).sum(2) if weight.dim() > 2 else weight.double()


def mean_response(weight: Tensor, means: Tensor, groups: int = 1, shares: Tensor | None = None) -> Tensor:
    """Return W * E[x] [out]: `weight` [out, in / groups, *kernel], `means` [in]; without `shares` every tap counts."""
    every = torch.ones(weight.shape[2:], dtype=torch.float64)
    matrix = summed(weight, every if shares is None else shares)
    by_group = matrix.reshape(groups, -1, matrix.shape[1])
    return (by_group @ means.double().reshape(groups, -1, 1)).reshape(-1)


def expected_error(
    weight: Tensor, replaced: Tensor, means: Tensor, groups: int = 1, shares: Tensor | None = None
) -> Tensor:
    """Return E[y~ - y] [out] of a weight's replacement, both [out, in / groups, *kernel].

    A pruned input channel is a column of zeros in `replaced`: its correction is the channel's mean in its stead.
    """
    return mean_response(replaced.double() - weight.double(), means, groups, shares)


def corrected(bias: Tensor, error: Tensor) -> Tensor:
    """Return the bias less an error of the mean output, in the bias's dtype; an error of 0 leaves every bit."""
    return (bias.double() - error).to(bias.dtype)


def response_of(leaf: nn.Module, source: Moments, shares: Tensor) -> Moments:
    """Return the moments of a layer's outputs. The variance takes inputs for independent of each other."""
    layer: Any = leaf
    weight, groups = rows_first(leaf), getattr(layer, "groups", 1)
    mean = mean_response(weight, source.mean, groups, shares)
    if layer.bias is not None:
        mean = mean + layer.bias.detach().double()
    variance = mean_response(weight.double().square(), source.variance, groups, shares)
    return Moments(mean, variance, True, source.estimated)
