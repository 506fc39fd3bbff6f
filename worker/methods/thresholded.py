"""Learned threshold pruning of a candidate's weights, behind their quantizers (Azarian et al. 2020).

The density is a hard target: an augmented Lagrangian on the soft count draws it along a falling line, on which a common
factor on all thresholds holds it behind each epoch; at the end of pruning it is met exactly, the masks are frozen, and
what is left trains on. Zeros stay zeros in the integers; the checkpoint stores a layer sparse where that is shorter.
Channels without a weight are cut away in the end, so that the network's own assignment has fewer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from app.domain import methods as domain
from worker.methods.cut import without_dead_channels
from worker.methods.protocol import Epoch, Subject
from worker.methods.quantized import QuantizedStage
from worker.methods.straight import StraightThrough
from worker.methods.threshold import Pattern, Thresholded, ThresholdedWeight, multiplier_for_density, sparsity_loss
from worker.quant.grids import ActivationGrid
from worker.quant.layer import QuantizedLayer
from worker.quant.network import CompressedNetwork

STIFFNESS = 2.0
"""How hard the Lagrangian pulls at a density above its target: kappa, on the logarithm of their ratio."""


class PrunedQuantizer(nn.Module):
    """A layer's threshold in front of its quantizer (see `worker.methods.trainable.WeightQuantizer`)."""

    def __init__(self, threshold: ThresholdedWeight, quantizer: Any) -> None:
        super().__init__()
        self.threshold, self.quantizer = threshold, quantizer

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, pruned and rounded."""
        found: Tensor = self.quantizer(self.threshold(weight))
        return found

    def integers(self, weight: Tensor) -> Tensor:
        """Return the integers of a weight, zeros where it is pruned."""
        found: Tensor = self.quantizer.integers(weight * self.threshold.mask(weight))
        return found

    @property
    def scale(self) -> Tensor:
        """The quantizer's scales."""
        found: Tensor = self.quantizer.scale
        return found


class ThresholdQuantizers:
    """Makes quantizers with thresholds; activations are rounded straight through."""

    def __init__(self, pattern: Pattern, powers: bool) -> None:
        self._pattern, self._straight = pattern, StraightThrough(powers)

    def weight(self, layer: QuantizedLayer) -> nn.Module:
        """Return a layer's quantizer with a threshold of its own."""
        return PrunedQuantizer(ThresholdedWeight(self._pattern), self._straight.weight(layer))

    def site(self, grid: ActivationGrid) -> nn.Module:
        """Return a site's quantizer."""
        return self._straight.site(grid)


class ThresholdStage(QuantizedStage):
    """Prunes to a density, then trains what is left."""

    def __init__(self, subject: Subject, method: domain.LearnedThresholds) -> None:
        pattern = Pattern(method.outs, method.ins, method.keep)
        quantizers = ThresholdQuantizers(pattern, subject.powers)
        super().__init__(subject, quantizers, method.training, self._penalty)
        self._subject, self._density, self._cuts = subject, method.density, method.cut
        self._pruning = max(1, math.ceil(method.pruning * method.training.epochs))
        self._network.register_buffer("multiplier", torch.zeros(()))

    def fit(self) -> Epoch:
        """Train one epoch; behind the last one of pruning the masks are frozen. Raises LossNotFinite."""
        found = super().fit()
        if found.number < self._pruning:
            self._follow(found.number / self._pruning)
        elif found.number == self._pruning:
            self.freeze()
        return found

    def finish(self) -> CompressedNetwork:
        """Return the network as it is stored, less the channels that are dead."""
        made = super().finish()
        return without_dead_channels(made, self._subject) if self._cuts else made

    @property
    def _multiplier(self) -> Tensor:
        found: Tensor = self._network.get_buffer("multiplier")
        return found

    def _layers(self) -> list[Thresholded]:
        pairs = [(self._network.quantizer(name), self._network.weight(name)) for name in self._network.trained]
        return [Thresholded(quantizer.threshold, weight) for quantizer, weight in pairs if quantizer is not None]

    def _excess(self, share: float) -> Tensor:
        """Return the logarithm of the soft density over where it should be by now: the target's power of the share."""
        return sparsity_loss(self._layers()).log() - share * math.log(self._density)

    def _penalty(self, share: float) -> Tensor | None:
        """Return the Lagrangian's term at a share of all training; nothing once masks are frozen."""
        at = share * self._epochs / self._pruning
        if at >= 1:
            return None
        excess = self._excess(at)
        return self._multiplier * excess.clamp_min(0.0) + 0.5 * STIFFNESS * excess.clamp_min(0.0).square()

    def _follow(self, share: float) -> None:
        """Bring the density onto its line where it lags: layers keep the thresholds' ratios that they have learned."""
        excess = self._excess(share).detach()
        self._multiplier.copy_((self._multiplier + STIFFNESS * excess).clamp_min(0.0))
        layers = self._layers()
        factor = multiplier_for_density(self._density**share, layers)
        for layer in layers:
            layer.threshold.multiply(max(1.0, factor))

    def freeze(self) -> None:
        """Meet the density exactly by a common factor on the thresholds; what is zero now stays so."""
        layers = self._layers()
        factor = multiplier_for_density(self._density, layers)
        for layer in layers:
            layer.threshold.freeze(layer.weight, factor)
