"""Functions of the canonical graph that torch has no single name for."""

from __future__ import annotations

import torch
from torch import Tensor


def expand_batch(constant: Tensor, like: Tensor, dim: int) -> Tensor:
    """Repeat a constant along `dim` (extent 1) as often as `like` has entries along its first dimension."""
    sizes = [-1] * constant.dim()
    sizes[dim] = like.shape[0]
    return constant.expand(sizes)


def cast(x: Tensor, dtype: str) -> Tensor:
    """Convert numbers to a dtype given by name."""
    return x.to(getattr(torch, dtype))
