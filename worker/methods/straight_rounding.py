"""Rounding with straight-through gradients for what is rounded and for the grid: step, maximum and exponent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TINY = 1e-12


@dataclass(frozen=True)
class Curve:
    """Step d, maximum q_m and exponent t (None: 1) of a quantizer, as tensors that broadcast with what it rounds."""

    step: Tensor
    top: Tensor
    exponent: Tensor | None = None

    def highest(self) -> Tensor:
        """Return q_m^t, what the maximum is mapped to."""
        return self.top if self.exponent is None else self.top**self.exponent


@dataclass(frozen=True)
class How:
    """How far the range reaches below 0, as a multiple of q_m (1 where there is an exponent); the factor on the
    gradients of the grid; and whether the gradient of x passes as if the map had slope 1."""

    reach: float = 1.0
    slope: float = 1.0
    smooth: bool = True


def rounded(x: Tensor, curve: Curve, how: How = How()) -> Tensor:
    """Return x on a grid, with straight-through gradients (see `Rounding`)."""
    found: Tensor = Rounding.apply(x, curve.step, curve.top, curve.exponent, how)  # type: ignore[no-untyped-call]
    return found


def mapped(x: Tensor, curve: Curve, reach: float) -> Tensor:
    """Return sgn(x) * min(|x|, q_m)^t; without an exponent, x between -reach * q_m and q_m."""
    if curve.exponent is not None:
        return torch.minimum(x.abs(), curve.top).pow_(curve.exponent).mul_(x.sign())
    if curve.top.numel() > 1:
        return torch.maximum(torch.minimum(x, curve.top), -reach * curve.top)
    return x.clamp(float(-reach * curve.top), float(curve.top))  # with numbers for bounds it is twice as fast


class Rounding(torch.autograd.Function):
    """x_q = sgn(x) * d * round(u / d), u = min(|x|, q_m)^t, with the gradients of the straight-through estimator:

    d x_q / d d = sgn(x) (round(u / d) - u / d);  d x_q / d q_m = sgn(x) t q_m^(t-1) where |x| > q_m;
    d x_q / d t = sgn(x) u ln min(|x|, q_m), 0 at x = 0;  d x_q / d x = 1 (or t |x|^(t-1)) where |x| <= q_m.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, top: Tensor, exponent: Tensor | None, how: How) -> Tensor:
        """Round a tensor."""
        out = mapped(x, Curve(step, top, exponent), how.reach).div_(step).round_().mul_(step)
        ctx.how = how
        ctx.save_for_backward(x, out, step, top, exponent)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, step, maximum and exponent."""
        x, out, step, top, exponent = ctx.saved_tensors
        curve, how = Curve(step, top, exponent), ctx.how
        u = mapped(x, curve, how.reach)
        inner = unclipped(grad, x, (-how.reach * top, top))
        by_step = along(grad, out - u, step) / step
        # clipped values all lie at an end, so this adds up what the upper end stops, less `reach` times the lower's
        by_top, by_exponent = along(grad - inner, u, top) / curve.highest(), None
        if exponent is not None:
            by_top = by_top * exponent * top ** (exponent - 1)
            by_exponent = along(grad, torch.xlogy(u, torch.minimum(x.abs(), top)), exponent) * how.slope
            if not how.smooth:
                inner = inner * exponent * x.abs().clamp_min(TINY) ** (exponent - 1)
        return inner, by_step * how.slope, by_top * how.slope, by_exponent, None


def unclipped(grad: Tensor, x: Tensor, ends: tuple[Tensor, Tensor]) -> Tensor:
    """Return the gradient where x lies between two ends, both included, and 0 elsewhere."""
    low, high = ends
    if high.numel() > 1:
        return grad.masked_fill((x > high) | (x < low), 0.0)
    below, above = (torch.nextafter(end, end.new_tensor(way)) for end, way in ((low, -torch.inf), (high, torch.inf)))
    found: Tensor = torch.ops.aten.hardtanh_backward(grad, x, float(below), float(above))  # one pass in place of four
    return found


def along(one: Tensor, other: Tensor, like: Tensor) -> Tensor:
    """Return the sum of products, over what was broadcast from the shape of `like`."""
    return dot(one, other) if like.dim() == 0 else (one * other).sum_to_size(like.shape)


def dot(one: Tensor, other: Tensor) -> Tensor:
    """Return the sum of products of two tensors of one shape, without a third where both are laid out alike."""
    if one.dim() == 4 and not one.is_contiguous():
        one, other = one.permute(0, 2, 3, 1), other.permute(0, 2, 3, 1)
    return torch.dot(one.reshape(-1), other.reshape(-1))
