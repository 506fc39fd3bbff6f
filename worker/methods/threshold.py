"""Learned threshold pruning (Azarian et al. 2020, "Learned Threshold Pruning"; below: LTP).

Each layer has a threshold tau for the squares of its weights. In training a weight counts by a sigmoid of how far its
square is above tau; the threshold is learned from the loss and from the soft number of weights that are left (eq 6).
In evaluation weights with w^2 <= tau are zero. Two gradients are left out on purpose: dv/dw is the gate alone (eq 14),
and the soft count does not pull at weights; both would push weights out of the sigmoid's slope, where thresholds learn.
That is what a detached square comes to, without a gradient function of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SOFTNESS = 0.1
"""Temperatures in units of the variance of magnitudes (LTP eq 15: T0)."""
START = 0.01
"""Thresholds to begin with, in units of the mean square: next to nothing is below."""
HALVINGS = 200


@dataclass(frozen=True)
class Pattern:
    """Which weights live or die together.

    Weights [out, in, *kernel] are cut, at each place of the kernel, into blocks of `outs` output channels and `ins`
    neighbouring input channels; `ins` 0: all inputs at all places. Without `keep` a block lives or dies as a whole, by
    the mean of its squares. With it, at most so many weights of each block live, and those by their own squares (N:M).
    """

    outs: int = 1
    ins: int = 1
    keep: int | None = None

    def __post_init__(self) -> None:
        if self.outs < 1 or self.ins < 0 or (self.keep is not None and self.keep < 1):
            raise ValueError(f"no pattern: {self}")

    def blocks(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Return values [out, in, *kernel] as [blocks, size]; blocks at the edges are filled up."""
        cut = self._cut(values)
        rows, _, columns = cut.shape
        ins = self.ins or columns
        cut = F.pad(cut, (0, -columns % ins, 0, 0, 0, -rows % self.outs), value=fill)
        tiles = cut.reshape(-1, self.outs, cut.shape[1], cut.shape[2] // ins, ins)
        return tiles.permute(0, 2, 3, 1, 4).reshape(-1, self.outs * ins)

    def unblocked(self, blocks: Tensor, like: Tensor) -> Tensor:
        """Return blocks [blocks, size] as values in the shape of `like`."""
        rows, places, columns = self._cut(like).shape
        ins = self.ins or columns
        tiles = blocks.reshape(-(-rows // self.outs), places, -(-columns // ins), self.outs, ins)
        cut = tiles.permute(0, 3, 1, 2, 4).reshape(-1, places, tiles.shape[2] * ins)[:rows, :, :columns]
        if not self.ins:
            return cut.reshape(like.shape)
        return cut.movedim(1, 2).reshape(like.shape)

    def _cut(self, values: Tensor) -> Tensor:
        """Return [out, places, in], or [out, 1, in * places] where a block takes all."""
        flat = values.reshape(len(values), 1 if values.dim() < 2 else values.shape[1], -1)
        return flat.movedim(1, 2) if self.ins else flat.reshape(len(values), 1, -1)


ELEMENT = Pattern()
CHANNEL = Pattern(ins=0)
"""Whole output channels."""
TWO_OF_FOUR = Pattern(ins=4, keep=2)


def squares(weight: Tensor, pattern: Pattern = ELEMENT) -> Tensor:
    """Return what thresholds are compared with, in the shape of the weight: squares, or their means over blocks.

    Without gradient: see the module's text.
    """
    found = weight.detach().square()
    if pattern.keep is not None or (pattern.outs, pattern.ins) == (1, 1):
        return found
    real = pattern.blocks(torch.ones_like(found)).sum(-1, keepdim=True)
    means = pattern.blocks(found).sum(-1, keepdim=True) / real
    return pattern.unblocked(means.expand(-1, pattern.outs * (pattern.ins or _per_row(weight))), weight)


def contenders(weight: Tensor, pattern: Pattern) -> Tensor:
    """Return which weights are among the `keep` largest of their block (all, where the pattern has no such limit)."""
    if pattern.keep is None:
        return torch.ones_like(weight, dtype=torch.bool)
    blocks = pattern.blocks(weight.detach().square(), -1.0)
    order = blocks.argsort(dim=-1, descending=True, stable=True)
    chosen = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, order[:, : pattern.keep], True)
    return pattern.unblocked(chosen, weight)


def floors(weight: Tensor, pattern: Pattern) -> Tensor | None:
    """Return the least threshold of each weight that N:M asks for: between the last that may live and the next.

    Without gradient, and -inf in blocks with room for all their weights; None where that is every block.
    """
    if pattern.keep is None or pattern.keep >= pattern.outs * (pattern.ins or _per_row(weight)):
        return None
    blocks = pattern.blocks(weight.detach().square(), -math.inf)
    ranked = blocks.sort(-1, descending=True).values[:, pattern.keep - 1 : pattern.keep + 1]
    return pattern.unblocked(ranked.mean(-1, keepdim=True).expand_as(blocks), weight)


def temperature(weight: Tensor, pattern: Pattern = ELEMENT, softness: float = SOFTNESS) -> Tensor:
    """Return T = T0 Var(|w|) (LTP eq 15), of roots of mean squares where the pattern has blocks; without gradient."""
    magnitudes = squares(weight, pattern).sqrt()
    return (softness * magnitudes.var(correction=0)).clamp_min(torch.finfo(weight.dtype).tiny)


def soft_gate(squared: Tensor, tau: Tensor, temperature: Tensor) -> Tensor:
    """Return s = sigmoid((w^2 - tau) / T)."""
    return torch.sigmoid((squared - tau) / temperature)


def soft_weight(weight: Tensor, gate: Tensor) -> Tensor:
    """Return v = w s with dv/dw = s (LTP eq 14): the gate comes from `squares`, which pass no gradient."""
    return weight * gate


def soft_count(gate: Tensor) -> Tensor:
    """Return the soft number of weights that are left (LTP eq 6), with a gradient for the threshold alone."""
    return gate.sum()


class ThresholdedWeight(nn.Module):
    """One layer's threshold: tau = mean(w^2) softplus(rho), so that a factor on the weights changes no mask.

    A weight [out, in, *kernel] comes out softly gated in training and with hard zeros in evaluation; after `freeze`,
    in both with the zeros of that moment.
    """

    frozen: Tensor | None

    def __init__(self, pattern: Pattern = ELEMENT, softness: float = SOFTNESS, start: float = START) -> None:
        super().__init__()
        if not softness > 0 or not start > 0:
            raise ValueError(f"softness {softness} and start {start} are positive numbers")
        self.pattern, self.softness = pattern, softness
        self.rho = nn.Parameter(torch.tensor(math.log(math.expm1(start))))
        self.register_buffer("frozen", None)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, pruned."""
        if self.frozen is None and self.training:
            return soft_weight(weight, self.gate(weight))
        return weight * self.mask(weight)

    def tau(self, weight: Tensor) -> Tensor:
        """Return the threshold for squares, with its gradient."""
        return weight.detach().square().mean() * F.softplus(self.rho)

    def gate(self, weight: Tensor) -> Tensor:
        """Return the soft gates, in the shape of the weight."""
        tau, least = self.tau(weight), floors(weight, self.pattern)
        tau = tau if least is None else torch.maximum(tau, least)
        return soft_gate(squares(weight, self.pattern), tau, temperature(weight, self.pattern, self.softness))

    def count(self, weight: Tensor) -> Tensor:
        """Return the soft number of weights that are left."""
        return soft_count(self.gate(weight))

    @torch.no_grad()
    def mask(self, weight: Tensor, multiplier: float = 1.0) -> Tensor:
        """Return which weights live, bool; with the threshold multiplied, unless they are frozen."""
        if self.frozen is not None:
            return self.frozen
        return self.standings(weight) > multiplier * self.tau(weight)

    @torch.no_grad()
    def standings(self, weight: Tensor) -> Tensor:
        """Return what the threshold is compared with; -1 for weights that the pattern leaves no room for."""
        found = squares(weight, self.pattern)
        return found if self.pattern.keep is None else found.where(contenders(weight, self.pattern), -1.0)

    def density(self, weight: Tensor) -> float:
        """Return the share of weights that live."""
        return float(self.mask(weight).float().mean())

    @torch.no_grad()
    def gap(self, weight: Tensor) -> float:
        """Return how far soft and hard weights are apart, as a share of the hard ones' length: a sign of health."""
        hard = weight * self.mask(weight)
        return float((soft_weight(weight, self.gate(weight)) - hard).norm() / hard.norm().clamp_min(1e-30))

    @torch.no_grad()
    def multiply(self, factor: float) -> None:
        """Multiply the threshold; it is learned on from there."""
        wanted = factor * F.softplus(self.rho)
        self.rho.copy_(wanted + torch.log(-torch.expm1(-wanted)))  # softplus's inverse, without overflow

    def freeze(self, weight: Tensor, multiplier: float = 1.0) -> None:
        """Keep the mask of this moment; what lives is trained on without the gate."""
        self.frozen = self.mask(weight, multiplier)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        frozen = state_dict.get(f"{prefix}frozen")  # torch does not load into a buffer that is None
        self.frozen = None if frozen is None else frozen.clone()
        super()._load_from_state_dict(state_dict, prefix, *args)


@dataclass(frozen=True)
class Thresholded:
    """A layer's threshold with its weight, and what one weight costs (any unit: bytes, sparse MACs)."""

    threshold: ThresholdedWeight
    weight: Tensor
    cost: float = 1.0


def sparsity_loss(layers: Sequence[Thresholded]) -> Tensor:
    """Return the cost of the weights that are softly left, as a share of all: sum c_l L0_l / sum c_l N_l.

    Multiply by lambda, of order 1, and add to the loss (LTP: L + lambda sum L0).
    """
    total = sum(layer.cost * layer.weight.numel() for layer in layers)
    return torch.stack([layer.cost * layer.threshold.count(layer.weight) for layer in layers]).sum() / total


def multiplier_for_density(target: float, layers: Sequence[Thresholded]) -> float:
    """Return the least common multiplier of thresholds that leaves at most a share `target` of all weights.

    That is exactly floor(target * weights), but for ties: equal squares, and blocks, live or die together.
    """
    standings = [(layer.threshold.standings(layer.weight), layer.threshold.tau(layer.weight)) for layer in layers]
    total = sum(found.numel() for found, _ in standings)

    @torch.no_grad()
    def left(multiplier: float) -> float:
        return float(sum(int((found > multiplier * tau).sum()) for found, tau in standings))

    return least_multiplier(left, math.floor(target * total + 1e-9))


def least_multiplier(cost: Callable[[float], float], limit: float) -> float:
    """Return the least multiplier of thresholds whose cost keeps the limit, by bisection: costs fall as it grows.

    Raises ValueError where none does.
    """
    if cost(0.0) <= limit:
        return 0.0
    low, high = 0.0, 1.0
    while cost(high) > limit:
        low, high = high, high * 4
        if not math.isfinite(high):
            raise ValueError(f"no threshold brings the cost to {limit}")
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if cost(middle) > limit else (low, middle)
    return high


def dead_channels(mask: Tensor) -> Tensor:
    """Return which output channels [out] of a mask [out, ...] have no weight left: structural pruning takes them."""
    return ~mask.reshape(len(mask), -1).any(1)


@dataclass(frozen=True)
class SparseForm:
    """How weights are best stored, and the bits that takes (scales and biases aside)."""

    name: str
    bits: int


def dense_bits(numel: int, bits: int) -> int:
    """Return the bits of all weights, zeros included."""
    return numel * bits


def bitmask_bits(numel: int, left: int, bits: int) -> int:
    """Return the bits of one bit per weight and the values of those that are left: pays below density 1 - 1 / bits."""
    return left * bits + numel


def index_bits(mask: Tensor, bits: int, index: int = 4) -> int:
    """Return the bits of relative indices: each value behind the number of zeros since the last one stored.

    Where more zeros follow each other than an index holds, a zero is stored (Han et al. 2016, figure 2).
    """
    places = mask.reshape(-1).nonzero().reshape(-1)
    zeros = torch.diff(places, prepend=places.new_full((1,), -1)) - 1
    padding = int((zeros >> index).sum())
    return (len(places) + padding) * (bits + index)


def n_of_m_bits(shape: Sequence[int], pattern: Pattern, bits: int) -> int:
    """Return the bits of an N:M pattern: N values and their places in every block, whether or not all are left."""
    assert pattern.keep is not None, "a pattern that limits how many weights of a block live"
    blocks, size = pattern.blocks(torch.empty(tuple(shape), device="meta")).shape
    return blocks * min(pattern.keep, size) * (bits + max(1, math.ceil(math.log2(size))))


def smallest_form(mask: Tensor, bits: int, pattern: Pattern = ELEMENT) -> SparseForm:
    """Return the form that stores a layer's survivors in the fewest bits; the plainest among equals."""
    forms = [
        SparseForm("dense", dense_bits(mask.numel(), bits)),
        SparseForm("bitmask", bitmask_bits(mask.numel(), int(mask.sum()), bits)),
        SparseForm("index", index_bits(mask, bits)),
    ]
    if pattern.keep is not None:
        forms.append(SparseForm("n-of-m", n_of_m_bits(mask.shape, pattern, bits)))
    return min(forms, key=lambda form: form.bits)


def _per_row(weight: Tensor) -> int:
    return weight[0].numel()
