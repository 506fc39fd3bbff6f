"""Batch-shaping (Bejnordi, Blankevoort and Welling 2020, arXiv 1907.06627; US20200372361A1): gates that depend on x.

The loss is the Cramer-von Mises distance between what a gate gives over a batch and a Beta prior. With x_(1) <= ... <=
x_(N) and the empirical distribution e_i = i / (N + 1):

    L = 1/N sum (e_i - I_x(i)(a, b))^2,    d L / d x_(i) = -2/N (e_i - I_x(i)(a, b)) pdf(x_(i))

I is the regularised incomplete beta function. For samples of the prior its expectation is 1 / (6 (N + 1)).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

PRIOR = (0.6, 0.4)
DENSITIES = (1e-3, 100.0)
"""What densities are clipped to in the gradient: at 0 and 1 that of the prior is infinite."""
_TERMS = 200
_CLOSE = 1e-14
_TINY = 1e-300


def beta_cdf(x: Tensor, a: float, b: float) -> Tensor:
    """Return the regularised incomplete beta function I_x(a, b) for x in [0, 1], float64.

    By its continued fraction, on the side where that converges fast: I_x(a, b) = 1 - I_1-x(b, a).
    """
    x = x.double()
    turned = x > (a + 1) / (a + b + 2)
    near = torch.where(turned, 1 - x, x)
    first = torch.where(turned, torch.full_like(x, b), torch.full_like(x, a))
    factor = _power(x, a, b) / first
    part = factor * _fraction(near, first, a + b - first)
    return torch.where(turned, 1 - part, part)


def beta_pdf(x: Tensor, a: float, b: float) -> Tensor:
    """Return the density of Beta(a, b), float64; infinite at an end where its exponent is negative."""
    x = x.double()
    return torch.exp(torch.xlogy(a - 1, x) + torch.special.xlog1py(b - 1, -x) - _log_beta(a, b))


def _power(x: Tensor, a: float, b: float) -> Tensor:
    """Return x^a (1 - x)^b / B(a, b)."""
    return x**a * (1 - x) ** b * math.exp(-_log_beta(a, b))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _fraction(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the continued fraction of the incomplete beta function, by the modified method of Lentz."""
    c, d = torch.ones_like(x), _inverse(1 - (a + b) * x / (a + 1))
    found = d.clone()
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = _inverse(1 + term * d), 1 + term / c
            c = torch.where(c.abs() < _TINY, torch.full_like(c, _TINY), c)
            found *= c * d
        if bool(((c * d - 1).abs() < _CLOSE).all()):
            break
    return found


def _inverse(value: Tensor) -> Tensor:
    return 1 / torch.where(value.abs() < _TINY, torch.full_like(value, _TINY), value)


class CramerVonMises(torch.autograd.Function):
    """The distance of each channel's values [n, channels] in (0, 1) from Beta(a, b), averaged over channels."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, a: float, b: float) -> Tensor:
        """Return the mean distance."""
        ordered, order = values.detach().double().sort(dim=0)
        count = len(values)
        ranks = torch.arange(1, count + 1, dtype=torch.float64, device=values.device)[:, None] / (count + 1)
        excess = beta_cdf(ordered, a, b) - ranks
        ctx.prior, ctx.dtype = (a, b), values.dtype
        ctx.save_for_backward(ordered, order, excess)
        return excess.square().mean().to(values.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient, carried back through the sort."""
        ordered, order, excess = ctx.saved_tensors
        slope = 2 * excess * beta_pdf(ordered, *ctx.prior).clamp(*DENSITIES) / excess.numel()
        found = torch.empty_like(slope).scatter_(0, order, slope)
        return (found * grad).to(ctx.dtype), None, None


def batch_shaping(values: Tensor, prior: tuple[float, float] = PRIOR, past: Tensor | None = None) -> Tensor:
    """Return the distance of soft gates [n, channels] in (0, 1) from Beta(a, b), averaged over channels.

    Give them before they are made 0 or 1: ties break the empirical distribution. `past` [m, channels] are values of
    earlier batches, which count but get no gradient: below about 128 rows the distribution is mostly noise.
    """
    rows = values if past is None else torch.cat([past.detach().to(values.dtype), values])
    found: Tensor = CramerVonMises.apply(rows, *prior)  # type: ignore[no-untyped-call]
    return found


class BatchShaping(nn.Module):
    """The loss for one gate's channels, over the latest `capacity` rows: those of this batch and what came before."""

    past: Tensor
    held: Tensor

    def __init__(self, channels: int, capacity: int = 256, prior: tuple[float, float] = PRIOR) -> None:
        super().__init__()
        self.prior = prior
        self.register_buffer("past", torch.zeros(capacity, channels))
        self.register_buffer("held", torch.tensor(0))

    def forward(self, values: Tensor) -> Tensor:
        """Return the loss of soft gates [n, channels], which are remembered in training."""
        room = max(0, len(self.past) - len(values))
        before = self.past[: int(self.held)][-room:] if room else self.past[:0]
        loss = batch_shaping(values, self.prior, before)
        if self.training:
            self._remember(values.detach())
        return loss

    def _remember(self, values: Tensor) -> None:
        """Append rows; the oldest go where there is no more room."""
        rows = torch.cat([self.past[: int(self.held)], values.to(self.past.dtype)])[-len(self.past) :]
        self.past[: len(rows)] = rows
        self.held.fill_(len(rows))
