"""Mean and second moment of a normal variable behind an activation: clipped in closed form, others by quadrature.

A BatchNorm's output is taken for normal with mean beta and standard deviation |gamma| (Nagel et al. 2019, section 4.2
and appendix C): that is all that bias correction without data knows. Everything is in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

POINTS = 721
"""Points of the quadrature, forty to a standard deviation: the trapezoidal rule. Against a normal density it converges
faster than any power for smooth functions, and unlike Gauss-Hermite's it takes kinks (hard swish) and steep places:
32 nodes of that are off by 3e-4 for the tanh of N(2, 2^2), and by 4e-3 for its hard swish."""


@dataclass(frozen=True)
class Moments:
    """Mean and variance per channel [channels], float64.

    `assumed` tells that the variance is a guess: operands were taken for independent. `estimated` that the mean is one:
    an activation was applied to such a value.
    """

    mean: Tensor
    variance: Tensor
    assumed: bool = False
    estimated: bool = False

    @property
    def deviation(self) -> Tensor:
        """Return the standard deviation [channels]."""
        return self.variance.clamp_min(0).sqrt()

    def picked(self, channels: Tensor) -> Moments:
        """Return those of some channels."""
        return replace(self, mean=self.mean[channels], variance=self.variance[channels])


def normal(beta: Tensor, gamma: Tensor) -> Moments:
    """Return the moments behind a BatchNorm with shift `beta` and scale `gamma`, whatever gamma's sign."""
    return Moments(beta.double(), gamma.double().square())


def clipped(mean: Tensor, deviation: Tensor, low: float = -math.inf, high: float = math.inf) -> tuple[Tensor, Tensor]:
    """Return mean and second moment of clip(z, low, high), z ~ N(mean, deviation^2), elementwise.

    With A = (low - mean) / s, B = (high - mean) / s:
    E = mean (P(B) - P(A)) + s (p(A) - p(B)) + low P(A) + high (1 - P(B)), and for the square
    (mean^2 + s^2) (P(B) - P(A)) + 2 mean s (p(A) - p(B)) + s^2 (A p(A) - B p(B)) + low^2 P(A) + high^2 (1 - P(B)).
    The sign of `deviation` has no meaning; 0 is a constant.
    """
    mean, spread = mean.double(), deviation.double().abs()
    divisor = spread.clamp_min(torch.finfo(torch.float64).tiny)
    a, b = (low - mean) / divisor, (high - mean) / divisor
    below, above, inside = _below(a), _below(-b), _between(a, b)
    slope = _density(a) - _density(b)
    first = mean * inside + spread * slope + _weighted(low, below) + _weighted(high, above)
    edges = _edge(a) - _edge(b)
    second = (mean.square() + spread.square()) * inside + 2 * mean * spread * slope + spread.square() * edges
    second = second + _weighted(low * low, below) + _weighted(high * high, above)
    fixed = mean.clamp(low, high)
    return torch.where(spread > 0, first, fixed), torch.where(spread > 0, second, fixed.square())


def through_clip(source: Moments, low: float = -math.inf, high: float = math.inf) -> Moments:
    """Return the moments behind a clamp; `through_clip(z, 0.0)` is ReLU."""
    return _moments(clipped(source.mean, source.deviation, low, high), source)


def through_slope(source: Moments, slope: Tensor | float) -> Moments:
    """Return the moments behind max(z, 0) + slope min(z, 0): leaky ReLU, PReLU."""
    above = clipped(source.mean, source.deviation, 0.0)
    below = clipped(-source.mean, source.deviation, 0.0)
    factor = torch.as_tensor(slope, dtype=torch.float64)
    found = above[0] - factor * below[0], above[1] + factor.square() * below[1]
    return _moments(found, source)


def through(source: Moments, function: Callable[[Tensor], Tensor]) -> Moments:
    """Return the moments behind any elementwise function, by quadrature."""
    points, weights = _quadrature()
    values = function(source.mean[:, None] + source.deviation[:, None] * points)
    return _moments((values @ weights, values.square() @ weights), source)


@functools.cache
def _quadrature() -> tuple[Tensor, Tensor]:
    points = torch.linspace(-9, 9, POINTS, dtype=torch.float64)
    weights = _density(points)
    return points, weights / weights.sum()


def _moments(found: tuple[Tensor, Tensor], source: Moments) -> Moments:
    first, second = found
    variance = (second - first.square()).clamp_min(0)
    return Moments(first, variance, source.assumed, source.estimated or source.assumed)


def _below(x: Tensor) -> Tensor:
    """Return the normal distribution function, exact in its lower tail."""
    tail: Tensor = torch.special.erfc(-x / math.sqrt(2))
    return 0.5 * tail


def _between(a: Tensor, b: Tensor) -> Tensor:
    """Return P(b) - P(a) without cancellation where both lie in the upper tail."""
    return torch.where(a > 0, _below(-a) - _below(-b), _below(b) - _below(a))


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)


def _edge(x: Tensor) -> Tensor:
    """Return x p(x), which is 0 at both infinities."""
    return torch.where(torch.isinf(x), 0.0, x) * _density(x)


def _weighted(end: float, chance: Tensor) -> Tensor:
    """Return end * chance, 0 at an infinite end that is never reached."""
    return torch.zeros_like(chance) if math.isinf(end) else end * chance
