"""Relaxed quantization (Louizos et al. 2019, "Relaxed Quantization for Discretized Neural Networks"; below: RQ).

A value x gets logistic noise of standard deviation parameter sigma and falls on a point k of an integer grid of step
`scale` with the probability of the interval around it (eqs 2-4), truncated to a few points around x (eqs 6-7). In
training a sample is drawn from the concrete relaxation of that categorical (eq 5, Gumbel-softmax) or, straight
through, its largest category; in evaluation it is nearest rounding (Algorithm 2). Noise is dimensionless here:
kappa = sigma / scale. Zero is a grid point (beta = 0).

Where training starts from a network that is rounded already, noise that stays wide undoes it: at kappa = 1/3 a third of
the weights leave their codes in each sample, and a network that lives with that is not the one that is evaluated. So
what kappa may be falls along the training (`Fading`), and the last part of it samples nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from worker.quant.grids import ActivationGrid, weight_limit
from worker.quant.layer import QuantizedLayer

KAPPA_RANGE = (0.05, 1.0)
"""Below, gradients die; above, the sample is mostly noise."""
WIDE_KAPPA = 1 / 3
"""Wide noise, at which the mean of the categorical follows the value with a slope near 1 inside the grid."""
MAX_DELTA = 6.0
CHUNK = 1 << 16
"""Values per step on a processor: what a step needs stays in its cache."""
_ROUNDING = 1e-4  # kappa = exp(log kappa): delta * kappa = 1 must mean one point, not two
_TINY = 2.0**-26
_REACH = 80.0  # e^80 is a float32

Noise = Callable[[int, int], list[Tensor]]


@dataclass(frozen=True)
class IntegerGrid:
    """The integers from `low` (at most 0) to `high` (at least 0)."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not self.low <= 0 <= self.high or self.low == self.high:
            raise ValueError(f"a grid from {self.low} to {self.high} holds no zero, or nothing else")

    @classmethod
    def of_weights(cls, bits: int) -> IntegerGrid:
        """Return the symmetric grid of weights."""
        return cls(-weight_limit(bits), weight_limit(bits))

    @classmethod
    def of_activations(cls, grid: ActivationGrid) -> IntegerGrid:
        """Return an activation grid's integers, its zero point subtracted."""
        return cls(-grid.zero_point, grid.levels - grid.zero_point)


@dataclass(frozen=True)
class Relaxation:
    """How samples are drawn.

    `delta`: a local grid reaches so many sigma to each side. `temperature`: of the concrete relaxation; higher ones
    pull samples to the middle of the local grid. `kappa`: the noise to begin with, in steps. `straight_through`:
    samples lie on the grid, gradients are those of the relaxation. `powers`: scales are powers of two. Where nothing is
    `drawn`, a sample is nearest rounding, with the gradient of the categorical's mean (temperature 1).
    """

    delta: float = 3.0
    temperature: float = 1.0
    kappa: float = WIDE_KAPPA
    straight_through: bool = False
    powers: bool = False
    drawn: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.delta <= MAX_DELTA or not self.temperature > 0:
            raise ValueError(f"delta {self.delta} is not in (0, {MAX_DELTA:g}], or temperature {self.temperature} <= 0")
        if not KAPPA_RANGE[0] <= self.kappa <= KAPPA_RANGE[1]:
            raise ValueError(f"kappa {self.kappa} is not in {KAPPA_RANGE}")


@dataclass(frozen=True)
class Fading:
    """How noise goes over a training, its share running from 0 to 1.

    The most that kappa may be falls on a straight line from where it begins to the floor of `KAPPA_RANGE`; in the last
    share `settled` nothing is drawn.
    """

    settled: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.settled <= 1:
            raise ValueError(f"a share of {self.settled} of the training can't be settled: no noise in what is left")

    def ceiling(self, share: float, kappa: float) -> float | None:
        """Return the most that the noise may be, `kappa` at first; None: nothing is drawn any more."""
        noisy = 1 - self.settled
        if share >= noisy:
            return None
        return kappa + (KAPPA_RANGE[0] - kappa) * share / noisy


def half_width(kappa: float, delta: float) -> int:
    """Return how many points a local grid has to each side of its centre: ceil(delta sigma / scale), at least 1."""
    return max(1, math.ceil(delta * kappa - _ROUNDING))


def interval_probabilities(x: Tensor, scale: Tensor, points: Tensor, cdf: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the categorical [..., points] as it is defined (RQ eqs 2-4), for any noise by its distribution function.

    `points` are neighbouring integers. Far from zero differences of `cdf` vanish: `log_probabilities` is the form to
    compute with. Uniform noise of width `scale` gives stochastic rounding.
    """
    away = points * scale - x[..., None]
    mass = cdf(away + scale / 2) - cdf(away - scale / 2)
    return mass / mass.sum(-1, keepdim=True)


def log_probabilities(
    x: Tensor, scale: Tensor, kappa: Tensor, grid: IntegerGrid, reach: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return log probabilities [..., points] under logistic noise, and the integers they belong to.

    `scale` broadcasts against x. `reach` limits the grid to so many points on each side of the nearest one (RQ eqs
    6-7); integers outside `grid` have probability 0. The log domain is finite at any distance:
    S(b) - S(a) = S(b) S(-a) (1 - e^(a - b)), and b - a is the same for all points.
    """
    units = (x / scale)[..., None]
    points = torch.arange(grid.low, grid.high + 1, dtype=x.dtype, device=x.device).expand(*x.shape, -1)
    if reach is not None:
        offsets = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        points = units.detach().round().clamp(grid.low, grid.high) + offsets
    log = nn.functional.logsigmoid((points + 0.5 - units) / kappa)
    log = log + nn.functional.logsigmoid((units - points + 0.5) / kappa)
    log = log.masked_fill((points < grid.low) | (points > grid.high), -math.inf)
    return log.log_softmax(-1), points


def expectation(x: Tensor, scale: Tensor, kappa: Tensor, grid: IntegerGrid, reach: int | None = None) -> Tensor:
    """Return the mean of the categorical, in units of x: what stochastic rounding by it gives on average."""
    log, points = log_probabilities(x, scale, kappa, grid, reach)
    return scale * (log.exp() * points).sum(-1)


def sample(
    x: Tensor,
    scale: Tensor,
    kappa: Tensor,
    grid: IntegerGrid,
    how: Relaxation = Relaxation(),
    uniform: Tensor | None = None,
) -> Tensor:
    """Return a sample for every value: concrete (RQ eq 5) or, straight through, a grid point; in units of x.

    `scale` [1] or [len(x)], `kappa` a scalar tensor in `KAPPA_RANGE`; gradients go to x and to both. `uniform`
    [2 half_width + 1, *x.shape], in (0, 1), is the noise; without it noise is drawn by torch's seed.
    """
    reach = half_width(float(kappa.detach()), how.delta)
    last = x.dim() > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()  # channels, in memory
    values = x.movedim(1, -1) if last else x.contiguous()
    given = uniform.movedim(2, -1) if last and uniform is not None else uniform
    noise = _given(given) if given is not None else _drawn(2 * reach + 1, values) if how.drawn else None
    sampled: Tensor = _Sample.apply(values, scale, kappa, _Form(grid, how, reach), noise)  # type: ignore[no-untyped-call]
    return sampled.movedim(-1, 1) if last else sampled


@dataclass(frozen=True)
class _Form:
    grid: IntegerGrid
    how: Relaxation
    reach: int


class _Sample(torch.autograd.Function):
    """Samples and, in the same pass, their derivatives by value, scale and kappa: three numbers per value to keep."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, kappa: Tensor, form: _Form, noise: Noise | None) -> Tensor:
        column = scale.reshape(-1, *[1] * (x.dim() - 1))
        units = (x / column).reshape(-1)
        value, slope, noisy = (torch.empty_like(units) for _ in range(3))
        size = CHUNK if x.device.type == "cpu" else max(1, len(units))
        for start in range(0, len(units), size):
            part = slice(start, min(start + size, len(units)))
            drawn = None if noise is None else noise(start, part.stop)
            value[part], slope[part], noisy[part] = _local(units[part], float(kappa), form, drawn)
            # scale * value(x / scale), derived by scale
            units[part].mul_(slope[part]).neg_().add_(value[part])
        ctx.save_for_backward(slope.view_as(x), units.view(len(scale), -1), noisy.view(len(scale), -1), scale)
        return value.view_as(x).mul_(column)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        slope, by_scale, noisy, scale = ctx.saved_tensors
        rows = grad.reshape(len(scale), -1)
        to_scale = torch.linalg.vecdot(rows, by_scale)
        to_kappa = torch.linalg.vecdot(rows, noisy) @ scale
        return grad * slope, to_scale, to_kappa, None, None


def _given(uniform: Tensor) -> Noise:
    rows = uniform.flatten(1)

    def noise(start: int, stop: int) -> list[Tensor]:
        return list(rows[:, start:stop].log().neg_().unbind())

    return noise


def _drawn(points: int, like: Tensor) -> Noise:
    """Return noise that is drawn: spacings of sorted uniform numbers instead of exponentials.

    Gumbel noise is -log of exponentials, and softmax does not see a common factor of those. Divided by their sum they
    are the spacings of points - 1 uniform numbers: no logarithm, and one number less per value.
    """
    stream = np.random.SFC64(int(torch.randint(2**62, (1,)))) if like.device.type == "cpu" else None

    def noise(start: int, stop: int) -> list[Tensor]:
        rows = list(_uniform(stream, (points - 1, stop - start), like).unbind())
        for last in range(points - 2, 0, -1):
            for first in range(last):
                low = torch.minimum(rows[first], rows[first + 1])
                torch.maximum(rows[first], rows[first + 1], out=rows[first + 1])
                rows[first] = low
        gaps = [rows[0], *(high - low for low, high in pairwise(rows)), 1 - rows[-1]]
        return [gap.clamp_min_(_TINY) for gap in gaps]

    return noise


def _uniform(stream: np.random.SFC64 | None, shape: tuple[int, int], like: Tensor) -> Tensor:
    """Return uniform numbers; on a processor from NumPy's raw bits, at half the time of torch's generator."""
    if stream is None:
        return torch.rand(shape, dtype=like.dtype, device=like.device)
    count = shape[0] * shape[1]
    bits = torch.from_numpy(stream.random_raw(-(-count // 2)).view(np.int32))[:count]
    return bits.to(like.dtype).mul_(2.0**-32).add_(0.5).view(shape)


def _local(units: Tensor, kappa: float, form: _Form, noise: list[Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return samples of values in steps, and their derivatives by value and by kappa; without noise nearest rounding
    and the derivatives of the mean.

    The probability of a point at distance d = (k - u) / kappa is proportional to 1 / (cosh(1 / (2 kappa)) + cosh d):
    the form of `log_probabilities`, multiplied out. All points share one exponential, and with 1 / exponential noise in
    place of e^Gumbel there is no other at temperature 1.
    """
    centre = units.round().clamp_(form.grid.low, form.grid.high)
    limit = _REACH - form.reach / kappa  # further out the proportions of the points don't change
    gap = torch.sub(centre, units).div_(kappa).clamp_(-limit, limit)
    up = gap.exp()
    around = (gap, up, up.reciprocal())
    points = [_point(around, offset, kappa) for offset in range(-form.reach, form.reach + 1)]
    for index, point in enumerate(points):
        if noise is not None:
            point.weight.div_(noise[index])
        if index != form.reach:
            point.weight.mul_(_inside(centre, index - form.reach, form.grid))
    hard = _largest(points, form.reach) if form.how.straight_through and noise is not None else None
    temperature = form.how.temperature if noise is not None else 1.0
    _sharpen(points, temperature)
    mean, slope, noisy = _moments(points, form.reach)
    rate = 1 / (temperature * kappa)
    value = centre if noise is None else centre.add_(mean if hard is None else hard)
    return value, slope.mul_(rate), noisy.mul_(rate)


@dataclass(frozen=True)
class _Point:
    """One offset: unnormalised probabilities, and the derivatives of their logarithm by u and kappa (times kappa)."""

    weight: Tensor
    by_value: Tensor
    by_kappa: Tensor


def _point(around: tuple[Tensor, Tensor, Tensor], offset: int, kappa: float) -> _Point:
    gap, up, down = around
    half, away = 0.5 / kappa, offset / kappa
    rise, fall = up * (0.5 * math.exp(away)), down * (0.5 * math.exp(-away))
    weight = torch.add(rise, fall).add_(math.cosh(half)).reciprocal_()
    by_value = rise.sub_(fall).mul_(weight)
    by_kappa = torch.add(gap, away, out=fall).mul_(by_value).add_(weight, alpha=half * math.sinh(half))
    return _Point(weight, by_value, by_kappa)


def _inside(centre: Tensor, offset: int, grid: IntegerGrid) -> Tensor:
    """Return 1 where centre + offset lies on the grid and 0 elsewhere (all are integers; quicker than a comparison)."""
    room = (grid.high + 1 - offset) - centre if offset > 0 else centre - (grid.low - 1 - offset)
    return room.clamp_(0, 1)


def _largest(points: list[_Point], reach: int) -> Tensor:
    """Return the offset of the largest category (in floats: masks of booleans are thirty times slower)."""
    top = points[0].weight.clone()
    found, larger = torch.full_like(top, -reach), torch.empty_like(top)
    for offset, point in enumerate(points[1:], 1 - reach):
        torch.gt(point.weight, top, out=larger)
        found.addcmul_(larger, offset - found)
        torch.maximum(top, point.weight, out=top)
    return found


def _sharpen(points: list[_Point], temperature: float) -> None:
    """Raise weights to 1 / temperature, relative to the largest, so that none overflows."""
    if temperature == 1:
        return
    top = points[0].weight.clone()
    for point in points[1:]:
        torch.maximum(top, point.weight, out=top)
    for point in points:
        point.weight.div_(top).pow_(1 / temperature)


def _moments(points: list[_Point], reach: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean offset under the weights, and its covariances with both derivatives."""
    total, mean, value, value_offset, noise, noise_offset = (torch.zeros_like(points[0].weight) for _ in range(6))
    for offset, point in enumerate(points, -reach):
        total.add_(point.weight)
        mean.add_(point.weight, alpha=offset)
        for derivative, plain, weighted in (
            (point.by_value, value, value_offset),
            (point.by_kappa, noise, noise_offset),
        ):
            plain.add_(derivative.mul_(point.weight))
            weighted.add_(derivative, alpha=offset)
    share = total.reciprocal_()
    mean.mul_(share)
    slope = value_offset.addcmul_(mean, value, value=-1).mul_(share)
    noisy = noise_offset.addcmul_(mean, noise, value=-1).mul_(share)
    return mean, slope, noisy


class RelaxedQuantizer(nn.Module):
    """A quantizer whose scales and noise are learned: samples in training, the hard grid in evaluation.

    `scale` [1], or [out] for one per output channel (the paper has one per tensor), float32, positive. Noise stays as
    wide as it is learned until a training tells how much of it is done (`at`).
    """

    log_scale: nn.Parameter
    log_kappa: nn.Parameter

    def __init__(
        self,
        scale: Tensor,
        bits: int,
        grid: IntegerGrid,
        how: Relaxation = Relaxation(),
        fading: Fading = Fading(),
    ) -> None:
        super().__init__()
        if grid.high - grid.low >= 2**bits:
            raise ValueError(f"integers from {grid.low} to {grid.high} don't fit into {bits} bits")
        if scale.dim() != 1 or not bool((scale > 0).all()):
            raise ValueError("scales are one dimension of positive numbers")
        self.bits, self.range, self.how, self._fading = bits, grid, how, fading
        self._ceiling: float | None = KAPPA_RANGE[1]
        self._began = scale.detach().float().clone()
        self.log_scale = nn.Parameter(self._began.log())
        self.log_kappa = nn.Parameter(torch.tensor(math.log(how.kappa)))

    @classmethod
    def of_weights(
        cls, scale: Tensor, bits: int, how: Relaxation = Relaxation(), fading: Fading = Fading()
    ) -> RelaxedQuantizer:
        """Return a quantizer on the symmetric grid of weights."""
        return cls(scale, bits, IntegerGrid.of_weights(bits), how, fading)

    @classmethod
    def of_activations(
        cls, grid: ActivationGrid, how: Relaxation = Relaxation(), fading: Fading = Fading()
    ) -> RelaxedQuantizer:
        """Return a quantizer that begins at a calibrated grid."""
        return cls(torch.tensor([grid.scale]), grid.bits, IntegerGrid.of_activations(grid), how, fading)

    @property
    def scale(self) -> Tensor:
        """Return the scales, float32: those of the exported grid."""
        return self.learned_scale().detach()

    @property
    def kappa(self) -> float:
        """Return the noise in steps."""
        return float(self.log_kappa.detach().exp())

    def at(self, share: float) -> None:
        """Take the noise to where it is once a share of the training is done."""
        self._ceiling = self._fading.ceiling(share, self.how.kappa)

    def forward(self, x: Tensor) -> Tensor:
        """Return x relaxed (training: a new sample each time) or rounded (evaluation, and training that has settled).

        Settled, gradients are those of wide noise: of the little that is left there would be next to none.
        """
        if not self.training:
            return self.hard(x)
        if self._ceiling is None:
            wide = self.log_scale.new_tensor(WIDE_KAPPA)
            return sample(x, self.learned_scale(), wide, self.range, replace(self.how, drawn=False))
        with torch.no_grad():  # kept in range here: a clamp inside the graph would hold it at a limit for good
            self.log_kappa.clamp_(math.log(KAPPA_RANGE[0]), math.log(self._ceiling))
        return sample(x, self.learned_scale(), self.log_kappa.exp(), self.range, self.how)

    def hard(self, x: Tensor) -> Tensor:
        """Return x rounded to the grid (RQ Algorithm 2), bit-identical to `ActivationGrid.fake_quantize`."""
        return self.integers(x).mul_(self._column(x))

    def integers(self, x: Tensor) -> Tensor:
        """Return the integers (as float) that x is rounded to, halves to even; without the zero point."""
        return torch.div(x.detach(), self._column(x)).round_().clamp_(self.range.low, self.range.high)

    def grid(self) -> ActivationGrid:
        """Return an activation's grid as it is stored."""
        return ActivationGrid(float(self.scale), -self.range.low, self.bits)

    def _column(self, x: Tensor) -> Tensor:
        return self.scale.reshape(-1, *[1] * (x.dim() - 1))

    def learned_scale(self) -> Tensor:
        """Return the scales with their gradient; straight through the rounding to powers of two.

        Untrained they are to the bit those that were given: the exponential of a logarithm would not be.
        """
        if not self.how.powers:
            return self._began * (self.log_scale - self._began.log()).exp()
        exact = torch.exp2((self.log_scale.detach() / math.log(2)).round())
        return exact * (self.log_scale - self.log_scale.detach()).exp()


class RelaxedQuantization:
    """Makes the quantizers of a network that is trained with relaxed ones."""

    def __init__(self, how: Relaxation = Relaxation(), fading: Fading = Fading()) -> None:
        self._how, self._fading = how, fading

    def weight(self, layer: QuantizedLayer) -> nn.Module:
        """Return a layer's quantizer, from its stored scales."""
        scale = torch.from_numpy(np.array(layer.weight_scale))
        return RelaxedQuantizer.of_weights(scale, layer.bits, self._how, self._fading)

    def site(self, grid: ActivationGrid) -> nn.Module:
        """Return a site's quantizer, from its grid."""
        return RelaxedQuantizer.of_activations(grid, self._how, self._fading)
