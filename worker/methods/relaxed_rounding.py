"""Rounding a layer from its inputs' Gram matrix alone, with weights, scales and noise learned by relaxed quantization.

Louizos et al. 2019 learn the grid with the network's loss; here each layer learns it on its own outputs, as AdaRound
(Nagel et al. 2020, eq. 21) learns which way to round, and so needs neither labels nor the other layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from worker.methods.relaxed import Relaxation, RelaxedQuantizer
from worker.quant.rounding import Rounded, Scales, damped, descended, round_to_outputs

LOOK_EVERY = 25


@dataclass(frozen=True)
class RoundingPlan:
    """How a layer's rounding is learned: so many steps of Adam at a rate (in quantization steps), annealed to 0."""

    steps: int = 1500
    rate: float = 0.02
    seed: int = 0
    how: Relaxation = field(default_factory=Relaxation)


def relaxed_rounding(
    weight: Tensor,
    scale: Tensor,
    bits: int,
    gram: Tensor,
    scales: Scales = Scales(),
    plan: RoundingPlan = RoundingPlan(),
) -> Rounded:
    """Return the rounding and scales that change a layer's outputs least: tr((W - W') G (W - W')^T), learned by RQ.

    As `round_to_outputs`: `weight` [o, d], `scale` [o], input Gram matrix `gram` [d, d]; or, in g groups, [g, o / g, d]
    and [g, d, d]; the integers come as [o, d]. It begins at nearest rounding and keeps the best rounding it passes, so
    that it is never worse. Without groups coordinate descent makes the last improvements, and error feedback's rounding
    is kept where it is better still: with few, strongly correlated inputs (a picture's own pixels) independent noise on
    each weight learns little.
    """
    learned = _LearnedRounding(weight, scale, bits, gram, (scales, plan))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(plan.seed)
        learned.run()
    if weight.dim() == 2:
        learned.keep(descended(weight, learned.best, bits, damped(gram), scales))
        learned.keep(round_to_outputs(weight, scale, bits, gram, scales))
    return learned.best


class _LearnedRounding:
    """Learns weights in steps, their scales and the noise from samples of the rounded layer."""

    def __init__(
        self, weight: Tensor, scale: Tensor, bits: int, gram: Tensor, options: tuple[Scales, RoundingPlan]
    ) -> None:
        self._scales, self._plan = options
        self._gram = damped(gram)
        self._weight, count = weight.detach(), scale.numel()
        how = replace(self._plan.how, powers=self._scales.powers)
        self._quantizer = RelaxedQuantizer.of_weights(scale if self._scales.per_channel else scale[:1], bits, how)
        self._latent = nn.Parameter(self._weight.reshape(count, -1) / scale[:, None])
        self.best = Rounded(torch.zeros_like(self._latent.detach()), scale)
        self._error = torch.full((count,), torch.inf)

    def run(self) -> None:
        """Learn; `best` is the best rounding on the way."""
        optimizer = torch.optim.Adam([self._latent, *self._quantizer.parameters()], self._plan.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, self._plan.steps))
        size = ((self._weight @ self._gram) * self._weight).sum().clamp_min(1e-30)
        for step in range(self._plan.steps):
            if step % LOOK_EVERY == 0:
                self._look()
            optimizer.zero_grad()
            off = self._sampled() - self._weight
            pull = off.detach() @ self._gram  # half the gradient of the error by `off`
            (2 / size * (off * pull).sum()).backward()
            optimizer.step()
            schedule.step()
        self._look()

    def _sampled(self) -> Tensor:
        """Return the rounded weights as a sample, in the shape of the weights."""
        scale = self._quantizer.learned_scale()[:, None]
        rounded: Tensor = self._quantizer(self._latent * scale)
        return rounded.reshape(self._weight.shape)

    @torch.no_grad()
    def _look(self) -> None:
        """Round hard, refit scales by least squares, and keep what is better than before."""
        integers = self._latent.round().clamp(self._quantizer.range.low, self._quantizer.range.high)
        self.keep(Rounded(integers, self._refitted(integers)))

    @torch.no_grad()
    def keep(self, found: Rounded) -> None:
        """Keep what is better than the best so far: per output channel, or altogether where they share a scale."""
        off = (found.integers * found.scale[:, None]).reshape(self._weight.shape) - self._weight
        error = self._shared(((off @ self._gram) * off).sum(-1).reshape(-1))
        better = error < self._error
        self._error = torch.where(better, error, self._error)
        self.best = Rounded(
            torch.where(better[:, None], found.integers, self.best.integers),
            torch.where(better, found.scale, self.best.scale),
        )

    def _refitted(self, integers: Tensor) -> Tensor:
        scale = self._quantizer.scale.expand(len(integers))
        if self._scales.powers:
            return scale
        shaped = integers.reshape(self._weight.shape)
        seen = shaped @ self._gram
        gain, energy = (self._shared((seen * item).sum(-1).reshape(-1)) for item in (self._weight, shaped))
        return torch.where((gain > 0) & (energy > 0), gain / energy.clamp_min(1e-30), scale)

    def _shared(self, rows: Tensor) -> Tensor:
        return rows if self._scales.per_channel else rows.sum().expand(len(rows))
