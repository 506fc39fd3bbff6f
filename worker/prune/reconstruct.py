"""Least-squares reconstruction: refit a layer's weights on the inputs it still has.

W' = argmin ||Y - W' X'||^2 + damp * tr-normalised ||W' - W_kept||^2, from Gram matrices of sampled input patches
(He et al. 2017, eq. 6, and Frantar & Alistarh 2022 use the same normal equations). Means are removed first, so that the
bias absorbs what the weights cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worker.graph.ops.parametric import TRANSPOSED

DAMP = 0.01
Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's inputs x [d] and targets y [o], means removed.

    `gram` [d, d] = E[x x^T], `cross` [o, d] = E[y x^T]; for layers in g groups (depthwise: g channels) one more leading
    dimension: [g, d, d] and [g, o / g, d]. `mean_x` [d] (or [g, d]) and `mean_y` [o].
    """

    gram: Tensor
    cross: Tensor
    mean_x: Tensor
    mean_y: Tensor


def sample_positions(sizes: Sequence[int], count: int, seed: int) -> Tensor:
    """Return at most `count` flat output positions (int64), drawn without repetition, sorted."""
    total = math.prod(sizes)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[: min(count, total)].sort().values


def patches(leaf: nn.Module, x: Tensor, positions: Tensor, decode: Decode | None = None) -> Tensor:
    """Return what a layer sees at sampled output positions.

    Linear: [n * p, in] from x [n, ..., in], positions counted over the axes between (tokens). Convolution over any
    number of axes: [n * p, in * k], with k the kernel's size; in groups (depthwise included):
    [n * p, groups, in / groups * k], laid out group after group, as the products that follow read it. A transposed
    convolution is the linear map from the inputs that reach an output position, one per tap of its kernel, to that
    output: the same patches, zero where no input reaches.

    Where x holds codes `decode` makes values of those that are picked.
    """
    layer: Any = leaf
    if isinstance(leaf, nn.Linear):
        tokens = _tokens(x, positions)
        return tokens if decode is None else decode(tokens)
    taps = _reaching if isinstance(leaf, TRANSPOSED) else _taps
    index, inside = taps(layer, x.shape[2:], positions)
    places = x.flatten(2).transpose(1, 2)  # [n, places, c]: a view of a channels-last tensor
    picked = places.index_select(1, index.reshape(-1)).reshape(len(x), *index.shape, x.shape[1])
    picked = picked if decode is None else decode(picked)
    if not bool(inside.all()):
        picked = picked.mul_(inside[..., None])
    rows = len(x) * len(positions)
    if layer.groups == 1:
        return picked.transpose(2, 3).reshape(rows, -1)
    by_group = picked.reshape(rows, index.shape[1], layer.groups, -1).permute(2, 0, 3, 1)
    return by_group.reshape(layer.groups, rows, -1).contiguous().transpose(0, 1)


def _tokens(x: Tensor, positions: Tensor) -> Tensor:
    """Return rows [n * p, features] of x [n, ..., features] at positions over the axes between."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    return flat.index_select(1, positions).reshape(-1, x.shape[-1])


def output_sizes(layer: Any, sizes: Sequence[int]) -> list[int]:
    """Return the spatial extents of a convolution's output (transposed ones included) for those of its input."""
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    steps = zip(sizes, layer.padding, reach, layer.stride, strict=True)
    extra = getattr(layer, "output_padding", None)
    if isinstance(layer, TRANSPOSED) and extra is not None:
        return [(n - 1) * s - 2 * p + r + e for (n, p, r, s), e in zip(steps, extra, strict=True)]
    return [(n + 2 * p - r) // s + 1 for n, p, r, s in steps]


def _taps(layer: Any, sizes: Sequence[int], positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return for output positions [p] and kernel taps [k] the flat input places [p, k], and which lie inside."""
    outs = output_sizes(layer, sizes)
    taps = torch.unravel_index(torch.arange(math.prod(layer.kernel_size)), layer.kernel_size)
    index = torch.zeros(len(positions), len(taps[0]), dtype=torch.int64)
    inside = torch.ones_like(index, dtype=torch.bool)
    for axis, start in enumerate(torch.unravel_index(positions, outs)):
        origin = start * layer.stride[axis] - layer.padding[axis]
        place = origin[:, None] + taps[axis][None] * layer.dilation[axis]
        inside &= (place >= 0) & (place < sizes[axis])
        index = index * sizes[axis] + place.clamp(0, sizes[axis] - 1)
    return index, inside


def _reaching(layer: Any, sizes: Sequence[int], positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same of a transposed convolution: tap k of output o comes from input (o + padding - k * d) / stride,
    where that is a whole number inside the input."""
    outs = output_sizes(layer, sizes)
    taps = torch.unravel_index(torch.arange(math.prod(layer.kernel_size)), layer.kernel_size)
    index = torch.zeros(len(positions), len(taps[0]), dtype=torch.int64)
    inside = torch.ones_like(index, dtype=torch.bool)
    for axis, end in enumerate(torch.unravel_index(positions, outs)):
        scaled = (end + layer.padding[axis])[:, None] - taps[axis][None] * layer.dilation[axis]
        place = scaled.div(layer.stride[axis], rounding_mode="floor")
        inside &= (scaled % layer.stride[axis] == 0) & (place >= 0) & (place < sizes[axis])
        index = index * sizes[axis] + place.clamp(0, sizes[axis] - 1)
    return index, inside


def rows_at(y: Tensor, positions: Tensor, linear: bool) -> Tensor:
    """Return a layer's outputs [rows, out] at the same places as `patches`."""
    if linear:
        return _tokens(y, positions)
    return y.flatten(2)[:, :, positions].permute(0, 2, 1).reshape(-1, y.shape[1])


def moments(x: Tensor, y: Tensor) -> Moments:
    """Return the moments of sampled inputs [r, d] (or [r, g, d] for g groups) and targets [r, o]."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    if x.dim() == 2:
        return Moments(x.T @ x / len(x), y.T @ x / len(x), mean_x, mean_y)
    by_group = x.transpose(0, 1)  # [g, r, d]
    gram = by_group.transpose(1, 2) @ by_group / len(x)
    cross = y.T.reshape(x.shape[1], -1, len(x)) @ by_group / len(x)
    return Moments(gram, cross, mean_x, mean_y)


def merged(one: Moments, rows: int, other: Moments, more: int) -> Moments:
    """Return the moments of `rows` and `more` rows together (Chan, Golub, LeVeque 1979, eq. 2.1)."""
    share = more / (rows + more)
    far_x, far_y = other.mean_x - one.mean_x, other.mean_y - one.mean_y
    apart = share * (1 - share)
    gram = torch.lerp(one.gram, other.gram, share) + apart * far_x[..., :, None] * far_x[..., None, :]
    by_group = far_y.reshape(one.cross.shape[:-1])
    cross = torch.lerp(one.cross, other.cross, share) + apart * by_group[..., :, None] * far_x[..., None, :]
    return Moments(gram, cross, one.mean_x + share * far_x, one.mean_y + share * far_y)


def std_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return standard deviation and mean [d] over the rows of x [r, d]; torch's own is ten times slower that way."""
    mean = x.mean(0)
    return ((x - mean).square_().sum(0) / (len(x) - 1)).sqrt_(), mean


def refit(stats: Moments, prior: Tensor, damp: float = DAMP) -> Tensor:
    """Return weights [o, d] (or [g, o / g, d]) minimising the squared error, damped towards `prior` of that shape."""
    dims = stats.gram.shape[-1]
    ridge = damp * stats.gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-8)
    eye = torch.eye(dims)
    gram = stats.gram + ridge[..., None, None] * eye
    cross = stats.cross + ridge[..., None, None] * prior if stats.gram.dim() == 3 else stats.cross + ridge * prior
    solved: Tensor = torch.linalg.solve(gram, cross.transpose(-1, -2))
    return solved.transpose(-1, -2)
