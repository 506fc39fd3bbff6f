"""Bits switched on and off by gates: Bayesian Bits (van Baalen et al. 2020), which is the bit mask of US12131258B2.

A value is rounded to the coarsest grid, what is left to the next, and so on, each step 1 / (2^b + 1) of the one before:

    x_q = z_2 (x_2 + z_4 (e_4 + z_8 (e_8 + z_16 e_16))),   s_2 = range / (2^2 - 1),   s_2b = s_b / (2^b + 1)

With the gates up to b on and the others off that is rounding to b bits at once (the grids are nested). The gates are
hard concrete variables (Louizos et al. 2018); z_2 prunes, one gate per output channel of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from worker.methods.djpq import SIGNED, TINY, UNSIGNED, straight_through
from worker.methods.straight_rounding import dot, unclipped
from worker.quant.grids import ActivationGrid, weight_limit
from worker.quant.layer import QuantizedLayer

WIDTHS = (2, 4, 8, 16)
TEMPERATURE, UPPER, LOWER = 2 / 3, 1.1, -0.1
START = 6.0
OFF = 0.34
"""A gate is on in evaluation where the probability that it is 0 lies below this."""
_SHIFT = TEMPERATURE * math.log(-LOWER / UPPER)
_EDGE = 1e-7
"""The ends of a symmetric range lie half-way between two integers of every grid; this much decides for one."""


def drawn(phi: Tensor) -> Tensor:
    """Return hard concrete variables in [0, 1] for gates with parameters phi, differentiable."""
    noise = torch.rand_like(phi).clamp(1e-6, 1 - 1e-6)
    stretched: Tensor = torch.sigmoid((torch.logit(noise) + phi) / TEMPERATURE) * (UPPER - LOWER) + LOWER
    return stretched.clamp(0.0, 1.0)


def chance_on(phi: Tensor) -> Tensor:
    """Return the probability that a gate isn't 0: sigmoid(phi - tau log(-gamma / zeta))."""
    return torch.sigmoid(phi - _SHIFT)


def is_on(phi: Tensor) -> Tensor:
    """Return which gates are on in evaluation: those with phi > -0.9353."""
    return torch.sigmoid(_SHIFT - phi) < OFF


class BitGatedQuantizer(nn.Module):
    """Rounds a tensor to a width that gates choose among `widths`, each twice the one before.

    `top` is the range's end to start from: learned, in the log domain. `below` is None for weights, which may have
    gates for their `channels`; an activation's codes lie below 0 by none or by half. In training gates are drawn until
    `settle` fixes them; then, and in evaluation, x is rounded at once.
    """

    settled: Tensor
    allowed: Tensor

    def __init__(
        self,
        top: float,
        below: float | None = None,
        widths: Sequence[int] = WIDTHS,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        if below not in (None, UNSIGNED, SIGNED):
            raise ValueError(f"the grids of several widths share a zero only at one end or in the middle, not {below}")
        if any(after != 2 * before for before, after in pairwise(widths)):
            raise ValueError(f"each width must be twice the one before: {tuple(widths)}")
        self.below, self.widths, self.nest = below, tuple(widths), Nest(below, tuple(widths))
        self.log_top = nn.Parameter(torch.tensor(math.log(max(top, TINY))))
        self.phi = nn.Parameter(torch.full((len(widths) - 1,), START))
        self.channel_phi = None if channels is None else nn.Parameter(torch.full((channels,), START))
        self.register_buffer("settled", torch.tensor(False))
        self.register_buffer("allowed", torch.ones(len(widths) - 1, dtype=torch.bool))

    @classmethod
    def of_layer(cls, layer: QuantizedLayer, widths: Sequence[int] = WIDTHS, prunes: bool = False) -> Self:
        """Return a weight's quantizer that starts from the largest of its stored scales; `prunes` gates its channels.

        Raises ValueError for a float layer.
        """
        if layer.weight_scale is None:
            raise ValueError(f"{layer.name} has no scales")
        top = float(layer.weight_scale.max()) * weight_limit(layer.bits)
        return cls(top, None, widths, len(layer.bias) if prunes else None)

    @classmethod
    def of_grid(cls, grid: ActivationGrid, widths: Sequence[int] = WIDTHS) -> Self:
        """Return an activation's quantizer whose range holds that of a grid."""
        far = max(grid.zero_point, grid.levels - grid.zero_point)
        return cls(grid.scale * far, UNSIGNED if grid.zero_point == 0 else SIGNED, widths)

    def forward(self, x: Tensor) -> Tensor:
        """Return x rounded to the width that is drawn (training) or chosen, straight-through for x and the range."""
        if self.training and not self.settled:
            return self._spread(nested(x, self.log_top.exp(), drawn(self.phi), self.nest), drawn)
        return self._spread(self._direct(x), lambda phi: is_on(phi).to(x.dtype))

    def _spread(self, values: Tensor, gate: Callable[[Tensor], Tensor]) -> Tensor:
        """Multiply by the gates of the channels."""
        if self.channel_phi is None:
            return values
        return values * gate(self.channel_phi).reshape(-1, *[1] * (values.dim() - 1))

    def _direct(self, x: Tensor) -> Tensor:
        step = self.step()
        low, high = self._codes()
        return round_through(x / step).clamp(low, high) * step

    def _codes(self) -> tuple[int, int]:
        over = 2 ** self.deploy_bits() - 1 if self.below == UNSIGNED else weight_limit(self.deploy_bits())
        return {None: -over, UNSIGNED: 0}.get(self.below, -over - 1), over

    def chosen(self) -> Tensor:
        """Return which of the gates behind the first width are on in evaluation: none behind one that is off."""
        return self.allowed if self.settled else is_on(self.phi).long().cumprod(0).bool()

    def deploy_bits(self) -> int:
        """Return the width that the gates choose."""
        return self.widths[int(self.chosen().sum())]

    def step(self) -> Tensor:
        """Return the step of the width that the gates choose."""
        found: Tensor = self.nest.step(self.log_top.exp(), self.deploy_bits())
        return found

    def bits(self) -> Tensor:
        """Return the expected width of what isn't pruned: exact where every gate is surely on or off."""
        first = torch.tensor(float(self.widths[0]), dtype=self.phi.dtype)
        if self.settled:
            return torch.full_like(first, float(self.deploy_bits()))
        more = torch.tensor([b - a for a, b in pairwise(self.widths)], dtype=self.phi.dtype)
        return first + (more * chance_on(self.phi).cumprod(0)).sum()

    def kept_fraction(self) -> Tensor:
        """Return the expected share of channels that are not pruned; their hard share forward."""
        if self.channel_phi is None:
            return torch.ones((), dtype=self.phi.dtype)
        hard = is_on(self.channel_phi).to(self.phi.dtype).mean()
        return straight_through(chance_on(self.channel_phi).mean(), hard)

    def keep_set(self) -> Tensor:
        """Return the channels that stay, ascending: the likeliest one where all gates are off."""
        if self.channel_phi is None:
            raise ValueError("no gates for channels")
        on = is_on(self.channel_phi)
        return (on if on.any() else self.channel_phi == self.channel_phi.max()).nonzero().flatten()

    def penalty(self, share: float) -> Tensor:
        """Return share * sum over widths b of b * product of chances up to b; share: the layer's part of all MACs."""
        first = 1.0 if self.channel_phi is None else chance_on(self.channel_phi).mean()
        chances = torch.cat([torch.ones(1, dtype=self.phi.dtype), chance_on(self.phi)]).cumprod(0)
        return share * first * (chances * torch.tensor(self.widths, dtype=self.phi.dtype)).sum()

    @torch.no_grad()
    def settle(self, bits: int | None = None) -> None:
        """Fix the gates of the widths, at those chosen or at a width; what is left trains without noise."""
        chosen = self.chosen() if bits is None else torch.tensor([width <= bits for width in self.widths[1:]])
        self.allowed.copy_(chosen)
        self.settled.fill_(True)

    @torch.no_grad()
    def integers(self, weight: Tensor) -> Tensor:
        """Return the integers (as float) of a weight, those of pruned rows 0; times `scale` they are evaluated."""
        codes = (weight / self.step()).round().clamp(*self._codes())
        return self._spread(codes, lambda phi: is_on(phi).to(weight.dtype))

    @property
    def scale(self) -> Tensor:
        """The step as it is stored, float32 [1]."""
        return self.step().detach().reshape(1).float()

    def grid(self) -> ActivationGrid:
        """Return the grid of codes of an activation in evaluation."""
        return ActivationGrid(self.scale.item(), -self._codes()[0], self.deploy_bits())


@dataclass(frozen=True)
class Nest:
    """Where a nested rounding's codes lie (see `BitGatedQuantizer`), and its widths, coarsest first."""

    below: float | None
    widths: tuple[int, ...]

    def ends(self, top: float) -> tuple[float, float]:
        """Return the ends of the range."""
        if self.below == UNSIGNED:
            return 0.0, top
        return -top * (1 - _EDGE if self.below is None else 1 + _EDGE), top * (1 - _EDGE)

    def step(self, top: Any, bits: int) -> Any:
        """Return the step of one width, of the same kind (number or tensor) as `top`."""
        return top * ((1 if self.below == UNSIGNED else 2) / (2**bits - 1))


def nested(x: Tensor, top: Tensor, gates: Tensor, nest: Nest) -> Tensor:
    """Return x rounded step by step, each rest multiplied by the `gates` [widths - 1] up to it (see `Nested`)."""
    found: Tensor = Nested.apply(x, top, gates.cumprod(0), nest)  # type: ignore[no-untyped-call]
    return found


class Nested(torch.autograd.Function):
    """x_q = sum over i of P_i r_i: the rounded rests r_i of x, times the products P_i of gates (P_0 = 1).

    With v_0 the clipped x and v_i+1 = v_i - r_i what is left after step i, that is v_0 - sum of (P_i - P_i+1) v_i+1;
    with straight-through rounding d x_q / d x = 1 inside the range, d x_q / d P_i = v_i - v_i+1 and
    d x_q / d s_i = -(P_i - P_i+1) v_i+1 / s_i. Every step is a fixed share of the range.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: Tensor, products: Tensor, nest: Nest) -> Tensor:
        """Round a tensor; `products` [widths - 1] are P_1 and the following."""
        rest = x.clamp(*nest.ends(float(top)))
        out = rest.clone()
        for bits, weight in zip(nest.widths, _differences(products), strict=True):
            _take_off(rest, nest.step(float(top), bits))
            out.sub_(rest, alpha=weight)
        ctx.nest = nest
        ctx.save_for_backward(x, top, products)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, of the range's end and of the products."""
        x, top, products = ctx.saved_tensors
        nest: Nest = ctx.nest
        low, high = nest.ends(float(top))
        rest = x.clamp(low, high)
        inner = unclipped(grad, x, (top.new_tensor(low), top.new_tensor(high)))
        by_top = dot(grad - inner, rest) / top  # clipped values lie at an end
        along = [dot(grad, rest)]
        for bits, weight in zip(nest.widths, _differences(products), strict=True):
            _take_off(rest, nest.step(float(top), bits))
            along.append(dot(grad, rest))
            by_top = by_top - weight * along[-1] / top
        by_product = torch.stack(along[1:-1]) - torch.stack(along[2:]) if len(products) else torch.zeros_like(products)
        return inner, by_top, by_product, None


def _differences(products: Tensor) -> list[float]:
    """Return P_i - P_i+1, from P_0 = 1 to the 0 behind the last."""
    found = [1.0, *products.tolist(), 0.0]
    return [before - after for before, after in pairwise(found)]


def _take_off(rest: Tensor, step: float) -> None:
    """Leave of values what rounding them to a step leaves."""
    rest.sub_(torch.div(rest, step).round_(), alpha=step)


def round_through(x: Tensor) -> Tensor:
    """Return x rounded half to even, with the gradient of x."""
    found: Tensor = _Through.apply(x)  # type: ignore[no-untyped-call]
    return found


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad
