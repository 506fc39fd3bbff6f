"""Integer grids: symmetric weights, unsigned activations (of a signed device too: see `GridRules`); rounded as ONNX
does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from app.domain.device import DeviceProfile

POWER_RATIOS = (1.0, 0.5, 0.25)
CLIP_RATIOS = tuple(ratio / 100 for ratio in (*range(100, 60, -4), *range(60, 19, -5)))


@dataclass(frozen=True)
class GridRules:
    """What a device asks of grids beyond their bits.

    `symmetric`: activations are signed integers without a zero point, here 2^(bits-1) in unsigned codes; a tensor that
    can't be negative uses half of them. `powers`: every scale is a power of two, so that requantising is a shift.
    """

    symmetric: bool = False
    powers: bool = False

    @classmethod
    def of(cls, device: DeviceProfile) -> GridRules:
        """Return a device's rules."""
        return cls(device.activation_scheme == "symmetric", device.scale == "power-of-two")


FREE = GridRules()


@dataclass(frozen=True)
class ActivationGrid:
    """q = clamp(round_half_even(x / scale) + zero_point, 0, 2^bits - 1); x ~ (q - zero_point) * scale.

    `scale` is a float32 value; `zero_point` is 0 for tensors that can't be negative, 2^(bits-1) on symmetric devices.
    """

    scale: float
    zero_point: int
    bits: int

    @property
    def levels(self) -> int:
        """Return the largest integer of the grid."""
        return int(2**self.bits - 1)

    def fake_quantize_(self, x: Tensor) -> Tensor:
        """Round a tensor to the grid in place and return it (bit-identical to Quantize- then DequantizeLinear)."""
        return self._settled(x.div_(self.scale))

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return a tensor rounded to the grid."""
        return self._settled(torch.div(x, self.scale))

    def _settled(self, units: Tensor) -> Tensor:
        return units.round_().clamp_(-self.zero_point, self.levels - self.zero_point).mul_(self.scale)


def weight_limit(bits: int) -> int:
    """Return the largest integer of a symmetric weight grid: 2^(bits-1) - 1."""
    return int(2 ** (bits - 1) - 1)


def weight_scales(weight: Tensor, bits: int, per_channel: bool = True, rules: GridRules = FREE) -> Tensor:
    """Return float32 scales [out] (or [1]) that minimise the squared rounding error over clipping ratios.

    `weight` is [out, ...]. Ties go to the widest range, so the error never exceeds that of the largest magnitude.
    """
    flat = weight.reshape(weight.shape[0], -1) if per_channel else weight.reshape(1, -1)
    top = flat.abs().amax(1, keepdim=True).clamp_min(1e-12)
    limit = weight_limit(bits)
    best_scale, best_error = top / limit, torch.full_like(top, torch.inf)
    for ratio in POWER_RATIOS if rules.powers else CLIP_RATIOS if bits < 8 else CLIP_RATIOS[:4]:
        scale = powers_above(top / limit) * ratio if rules.powers else top * ratio / limit
        error = ((flat / scale).round_().clamp_(-limit, limit).mul_(scale) - flat).square_().sum(1, keepdim=True)
        better = error < best_error
        best_scale, best_error = torch.where(better, scale, best_scale), torch.where(better, error, best_error)
    return best_scale.reshape(-1).float()


def round_weight(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the integers (as float) nearest to weight / scale on the symmetric grid."""
    limit = weight_limit(bits)
    shape = (-1, *[1] * (weight.dim() - 1))
    return (weight / scale.reshape(shape)).round_().clamp_(-limit, limit)


def powers_above(scale: Tensor) -> Tensor:
    """Return the smallest powers of two that are at least `scale`."""
    found: Tensor = torch.exp2(torch.ceil(torch.log2(scale) - 1e-6))
    return found


def activation_grid(samples: Tensor, bits: int, unsigned: bool, rules: GridRules = FREE) -> ActivationGrid:
    """Return the grid that minimises the squared error on `samples` (1-D), zero always on the grid.

    The range is shrunk from [min, max] by common ratios; below 8 bits clipping outliers pays, at 8 it seldom does.
    """
    low = 0.0 if unsigned else min(0.0, float(samples.min()))
    high = max(float(samples.max()), low + 1e-6, 1e-6)
    best, best_error = _grid(low, high, bits, rules), float("inf")
    for ratio in CLIP_RATIOS:
        grid = _grid(low * ratio, high * ratio, bits, rules)
        error = float((grid.fake_quantize_(samples.clone()) - samples).square_().mean())
        if error < best_error:
            best, best_error = grid, error
    return best


def _grid(low: float, high: float, bits: int, rules: GridRules) -> ActivationGrid:
    levels, middle = 2**bits - 1, 2 ** (bits - 1)
    step = max(high, -low) / (middle - 1) if rules.symmetric else (high - low) / levels
    scale = torch.tensor(step, dtype=torch.float32)
    if rules.powers:
        scale = powers_above(scale)
    zero_point = middle if rules.symmetric else min(levels, max(0, round(-low / float(scale))))
    return ActivationGrid(float(scale), zero_point, bits)
