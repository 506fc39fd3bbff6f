"""Least-squares reconstruction: refit a layer's weights on the inputs it still has.

W' = argmin ||Y - W' X'||^2 + damp * tr-normalised ||W' - W_kept||^2, from Gram matrices of sampled input patches
(He et al. 2017, eq. 6, and Frantar & Alistarh 2022 use the same normal equations). Means are removed first, so that the
bias absorbs what the weights cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DAMP = 0.01


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's inputs x [d] and targets y [o], means removed.

    `gram` [d, d] = E[x x^T], `cross` [o, d] = E[y x^T]; for depthwise layers one more leading channel dimension:
    [c, k, k] and [c, 1, k]. `mean_x` [d] (or [c, k]) and `mean_y` [o].
    """

    gram: Tensor
    cross: Tensor
    mean_x: Tensor
    mean_y: Tensor


def sample_positions(sizes: tuple[int, ...], count: int, seed: int) -> Tensor:
    """Return at most `count` flat output positions (int64), drawn without repetition, sorted."""
    total = 1
    for size in sizes:
        total *= size
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[: min(count, total)].sort().values


def patches(leaf: nn.Module, x: Tensor, positions: Tensor) -> Tensor:
    """Return what a layer sees at sampled output positions.

    Linear: [n, in] from x [n, in] (tokens are flattened to rows). Convolution: [n * p, in * k]; depthwise:
    [n * p, in, k] with k the kernel's size.
    """
    layer: Any = leaf
    if isinstance(leaf, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    if x.dim() == 3:
        return _patches_2d(_as_2d(layer), x.unsqueeze(2), positions)
    return _patches_2d((layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups), x, positions)


Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


def _as_2d(layer: Any) -> Geometry:
    return (
        (1, *layer.kernel_size),
        (1, *layer.stride),
        (0, *layer.padding),
        (1, *layer.dilation),
        layer.groups,
    )


def _patches_2d(geometry: Geometry, x: Tensor, positions: Tensor) -> Tensor:
    kernel, stride, padding, dilation, groups = geometry
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    height, width = x.shape[2:]
    columns = (width - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    rows = torch.div(positions, columns, rounding_mode="floor") * stride[0]
    cols = positions % columns * stride[1]
    dy = torch.arange(kernel[0]) * dilation[0]
    dx = torch.arange(kernel[1]) * dilation[1]
    index = (rows[:, None, None] + dy[None, :, None]) * width + cols[:, None, None] + dx[None, None, :]
    picked = x.reshape(*x.shape[:2], height * width)[:, :, index.reshape(-1)]  # [n, c, p * k]
    picked = picked.reshape(x.shape[0], x.shape[1], len(positions), kernel[0] * kernel[1]).permute(0, 2, 1, 3)
    flat = picked.reshape(-1, x.shape[1], kernel[0] * kernel[1])
    return flat if groups > 1 else flat.reshape(flat.shape[0], -1)


def rows_at(y: Tensor, positions: Tensor, linear: bool) -> Tensor:
    """Return a layer's outputs [rows, out] at the same places as `patches`."""
    if linear:
        return y.reshape(-1, y.shape[-1])
    return y.flatten(2)[:, :, positions].permute(0, 2, 1).reshape(-1, y.shape[1])


def moments(x: Tensor, y: Tensor) -> Moments:
    """Return the moments of sampled inputs [r, d] (or [r, c, k] for depthwise) and targets [r, o]."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    if x.dim() == 2:
        return Moments(x.T @ x / len(x), y.T @ x / len(x), mean_x, mean_y)
    by_channel = x.permute(1, 2, 0)  # [c, k, r]
    gram = by_channel @ by_channel.transpose(1, 2) / x.shape[0]
    cross = (y.T.unsqueeze(1) @ by_channel.transpose(1, 2)) / x.shape[0]
    return Moments(gram, cross, mean_x, mean_y)


def refit(stats: Moments, prior: Tensor, damp: float = DAMP) -> Tensor:
    """Return weights [o, d] (or [c, 1, k]) minimising the squared error, damped towards `prior` of that shape."""
    dims = stats.gram.shape[-1]
    ridge = damp * stats.gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-8)
    eye = torch.eye(dims)
    gram = stats.gram + ridge[..., None, None] * eye
    cross = stats.cross + ridge[..., None, None] * prior if stats.gram.dim() == 3 else stats.cross + ridge * prior
    solved: Tensor = torch.linalg.solve(gram, cross.transpose(-1, -2))
    return solved.transpose(-1, -2)


def refit_bias(stats: Moments, weight: Tensor) -> Tensor:
    """Return the bias [o] that makes the mean output equal the mean target for weights [o, d] or [c, 1, k]."""
    if weight.dim() == 3:
        return stats.mean_y - (weight.squeeze(1) * stats.mean_x).sum(-1)
    return stats.mean_y - weight @ stats.mean_x
