"""Quantizers with straight-through gradients and learned steps (LSQ, Esser et al. 2020, equations 1 to 5).

The plainest way to train a quantized network: the control that every other method is held against.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from worker.quant.grids import ActivationGrid, weight_limit
from worker.quant.layer import QuantizedLayer


class _Scaled(torch.autograd.Function):
    """Gradient of a step, divided by the root of how much hangs on it (LSQ, section 2.2)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, step: Tensor, factor: float) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return step.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None  # type: ignore[attr-defined]


def rounded(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes straight through."""
    return x + (x.round() - x).detach()


class StepQuantizer(nn.Module):
    """x to step * clamp(round(x / step), low, high); the step is learned in its logarithm."""

    def __init__(self, scale: Tensor, low: int, high: int, powers: bool = False) -> None:
        super().__init__()
        self.log_step = nn.Parameter(scale.clone().float().clamp_min(1e-12).log())
        self.low, self.high, self._powers = low, high, powers

    @property
    def scale(self) -> Tensor:
        """The step as it is stored, float32; a power of two where the device wants one."""
        exponent = self.log_step / math.log(2.0)
        return torch.exp2(rounded(exponent)) if self._powers else self.log_step.exp()

    def _step(self, x: Tensor) -> Tensor:
        scale: Tensor = _Scaled.apply(self.scale, 1 / math.sqrt(x.numel() / self.log_step.numel() * self.high))  # type: ignore[no-untyped-call]
        return scale.reshape(-1, *[1] * (x.dim() - 1)) if scale.numel() > 1 else scale

    def forward(self, x: Tensor) -> Tensor:
        """Return x on the grid."""
        step = self._step(x)
        return rounded((x / step).clamp(self.low, self.high)) * step

    def integers(self, weight: Tensor) -> Tensor:
        """Return the integers of a weight."""
        scale = self.scale.detach()
        return (weight / scale.reshape(-1, *[1] * (weight.dim() - 1))).round().clamp(self.low, self.high)


class StepGrid(StepQuantizer):
    """An activation's quantizer: one step, a fixed zero point."""

    def __init__(self, grid: ActivationGrid, powers: bool = False) -> None:
        super().__init__(torch.tensor([grid.scale]), -grid.zero_point, grid.levels - grid.zero_point, powers)
        self._grid = grid

    def grid(self) -> ActivationGrid:
        """Return the grid as it is stored."""
        return ActivationGrid(float(self.scale.detach()), self._grid.zero_point, self._grid.bits)


class StraightThrough:
    """Makes the quantizers of a network that is trained with straight-through rounding."""

    def __init__(self, powers: bool = False) -> None:
        self._powers = powers

    def weight(self, layer: QuantizedLayer) -> nn.Module:
        """Return a layer's quantizer, from its stored scales."""
        limit = weight_limit(layer.bits)
        return StepQuantizer(torch.from_numpy(np.array(layer.weight_scale)), -limit, limit, self._powers)

    def site(self, grid: ActivationGrid) -> nn.Module:
        """Return a site's quantizer, from its grid."""
        return StepGrid(grid, self._powers)
