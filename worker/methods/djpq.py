"""Joint pruning and quantization by gradients (DJPQ: Wang, Lu and Blankevoort 2020, arXiv 2007.10463; US12131258B2).

Channels carry gates of a variational information bottleneck (VIBNet: Dai et al. 2018): z = mu + sigma * noise, whose
signal-to-noise ratio alpha = mu^2 / sigma^2 says whether a channel is worth its noise. Weights and activations carry
quantizers with a learned step d, maximum q_m and exponent t (in the form of GETA, which follows DJPQ):

    u(x) = min(|x|, q_m)^t,   x_q = sgn(x) * d * round(u / d),   bits = log2(q_m^t / d + 1) (+ 1 for a sign)

There is no inverse map: the mapped values lie on d * Z, and integers times d are what is deployed. Gates and quantizers
share one cost of the whole network (`worker.methods.relaxed_costs`). Weight decay must touch neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from app.domain.space import FLOAT_BITS
from worker.methods.straight_rounding import Curve, How, mapped, rounded
from worker.quant.grids import ActivationGrid, powers_above, weight_limit
from worker.quant.layer import QuantizedLayer

UNSIGNED, SIGNED = 0.0, 128 / 255
"""The share of an activation's codes (without that of 0) that lie below 0: none, or half (128 of the 255 at 8 bits)."""
MEAN, LOG_VARIANCE = 1.0, -9.0
LOG_THRESHOLD = math.log(1e-3)
TINY = 1e-12


class ChannelGate(nn.Module):
    """One factor per channel of a channel group, shared by all its members.

    In training the factors are drawn anew per sample; in evaluation they are mu for the channels kept, 0 for others.
    `settle` fixes which are kept and ends the noise, so that the rest can be fine-tuned. `log_threshold` is that of the
    signal-to-noise ratio (VIBNet: 0), `multiple` the device's for numbers of channels. VIBNet starts mu and rho with
    a `jitter` of 0.01; a network that is trained already starts from itself without.
    """

    kept: Tensor
    settled: Tensor

    def __init__(
        self, channels: int, log_threshold: float = LOG_THRESHOLD, multiple: int = 1, jitter: float = 0.0
    ) -> None:
        super().__init__()
        self.log_threshold, self.multiple = log_threshold, multiple
        self.mean = nn.Parameter(MEAN + jitter * torch.randn(channels))
        self.log_variance = nn.Parameter(LOG_VARIANCE + jitter * torch.randn(channels))
        self.register_buffer("kept", torch.ones(channels, dtype=torch.bool))
        self.register_buffer("settled", torch.tensor(False))

    def forward(self, x: Tensor, axis: int = 1) -> Tensor:
        """Return x [n, ...] with its channels along `axis` multiplied by the factors of this call."""
        return gated(x, self.values(len(x)), axis)

    def values(self, samples: int) -> Tensor:
        """Return factors [samples, channels], or [1, channels] where there is no noise.

        Draw them once per forward pass where a group has several members (a residual sum has one gate).
        """
        if self.training and not self.settled:
            noise = torch.randn(samples, len(self.mean), dtype=self.mean.dtype, device=self.mean.device)
            return self.mean + (0.5 * self.log_variance).exp() * noise
        return (self.mean * self.mask())[None]

    def kl(self) -> Tensor:
        """Return the divergence from the prior in nats, summed over channels (see `gate_kl`)."""
        return gate_kl(self.mean, self.log_variance).sum()

    def log_snr(self) -> Tensor:
        """Return log alpha [channels]."""
        return log_snr(self.mean, self.log_variance)

    def keep_set(self) -> Tensor:
        """Return the indices of the channels that stay, ascending."""
        if self.settled:
            return self.kept.nonzero().flatten()
        return keep_set(self.log_snr().detach(), self.log_threshold, self.multiple)

    def mask(self) -> Tensor:
        """Return which channels stay [channels]."""
        if self.settled:
            return self.kept
        return torch.zeros_like(self.kept).index_fill(0, self.keep_set(), True)

    def width(self, temperature: float = 1.0) -> Tensor:
        """Return how many channels stay: the hard count forward, the sigmoids' sum backward."""
        count = self.mask().sum().to(self.mean.dtype)
        if self.settled:
            return count
        pruned = pruned_fraction(self.log_snr(), self.log_threshold, temperature)
        return straight_through((1 - pruned) * len(self.mean), count)

    @torch.no_grad()
    def settle(self, kept: Sequence[int] | Tensor | None = None) -> None:
        """Fix the channels that stay (default: the keep set) and draw no more noise."""
        indices = self.keep_set() if kept is None else torch.as_tensor(kept, dtype=torch.int64)
        self.kept.zero_()[indices] = True
        self.settled.fill_(True)


def gate_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return 1/2 log(1 + mu^2 / sigma^2): the divergence in nats after the prior's variance is eliminated.

    Its gradients are mu / (mu^2 + sigma^2) and, with respect to log sigma^2, -1/2 mu^2 / (mu^2 + sigma^2).
    """
    return 0.5 * torch.log1p(mean.square() * torch.exp(-log_variance))


def log_snr(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return log alpha = log(mu^2 / sigma^2), finite and with a finite gradient at mu = 0."""
    return torch.log(mean.square() + TINY) - log_variance


def keep_set(log_snr: Tensor, log_threshold: float, multiple: int = 1) -> Tensor:
    """Return the channels whose alpha exceeds the threshold, ascending: at least one, in number a multiple.

    What the multiple adds are the best of the others; where channels run out, all stay. Of equals the first stay.
    """
    wanted = max(1, int((log_snr > log_threshold).sum()))
    count = min(len(log_snr), -(-wanted // multiple) * multiple)
    return torch.sort(log_snr, descending=True, stable=True).indices[:count].sort().values


def pruned_fraction(log_snr: Tensor, log_threshold: float, temperature: float = 1.0) -> Tensor:
    """Return the soft share of channels below the threshold: the mean of sigmoid((log alpha_th - log alpha) / tau)."""
    return torch.sigmoid((log_threshold - log_snr) / temperature).mean()


def gated(x: Tensor, values: Tensor, axis: int = 1, owner: Tensor | None = None) -> Tensor:
    """Return x [n, ...] times factors [n or 1, channels] along `axis`.

    `owner` names the channel of each column where these differ: behind a flatten each channel owns H * W columns.
    """
    columns = values if owner is None else values[:, owner]
    shape = [1] * x.dim()
    shape[0], shape[axis] = columns.shape
    return x * columns.reshape(shape)


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """Return `hard` with the gradient of `soft`."""
    return hard.detach() + (soft - soft.detach())


def fold_backward(weight: Tensor, bias: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights [out, ...] and bias [out] of a layer with its outputs' factors folded in.

    Exact for any factors where they act on what the layer gives, and for positive ones behind a ReLU: fold |mu|
    backwards and its sign forwards, since padding with zeros sees neither. The factors of removed channels are 0: with
    its bias left, a channel would go on as a constant.
    """
    return weight * mean.reshape(-1, *[1] * (weight.dim() - 1)), bias * mean


def fold_forward(weight: Tensor, mean: Tensor) -> Tensor:
    """Return weights [out, columns, ...] of a layer that reads columns times `mean` [columns], for any factors."""
    return weight * mean.reshape(1, -1, *[1] * (weight.dim() - 2))


def fold_integers(integers: Tensor, scale: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers [out, ...] and scales [out] of a quantized weight with its outputs' factors folded in.

    Exact, on devices with a scale per channel. On others the folded weight needs a grid of its own.
    """
    return integers * mean.sign().reshape(-1, *[1] * (integers.dim() - 1)), scale * mean.abs()


def ends_of(below: float | None, bits: int) -> tuple[int, int]:
    """Return how many integers of a grid lie below 0 and above: as many of a weight's (None), else by their share."""
    if below is None:
        return weight_limit(bits), weight_limit(bits)
    all_but_zero = 2**bits - 1
    under = min(round(below * all_but_zero), all_but_zero - 1)
    return under, all_but_zero - under


def width_of(below: float | None, under: int, over: int) -> int:
    """Return the bits that integers of -under to over need: 1 + ceil(log2(K + 1)) for a weight's of -K to K."""
    return over.bit_length() + 1 if below is None else (under + over).bit_length()


def nearest_width(bits: float, legal: Sequence[int]) -> int:
    """Return the legal width nearest on the scale of log2 (with powers of two: 2^round(log2 b)); of two, the wider."""
    return min(legal, key=lambda width: (abs(math.log2(width) - math.log2(bits)), -width))


class LearnedQuantizer(nn.Module):
    """Rounds a tensor to a grid whose step, maximum and exponent are learned, in the log domain.

    `top` is the maximum to start from: a number, or a tensor that broadcasts with what is rounded (one per channel).
    `below` is None for weights, which alone have an exponent, else the share of an activation's codes below 0; its
    range reaches as far below 0 as they do. Widths are learned until `restrict` fixes one; from then on the step
    follows from maximum and exponent. `powers`: fixed grids have a step that is a power of two. `smooth` passes
    gradients as if the map were x itself, which is safer than its slope t|x|^(t-1): that explodes at 0 for t < 1.
    `lsq` divides the grid's gradients as LSQ does: not beside a cost whose gradients come whole, which would alone
    decide where the grid goes.
    """

    fixed: Tensor

    def __init__(
        self,
        top: Tensor | float,
        bits: int = 8,
        below: float | None = None,
        powers: bool = False,
        smooth: bool = True,
        lsq: bool = False,
    ) -> None:
        super().__init__()
        self.below, self.powers, self.smooth, self.lsq = below, powers, smooth, lsq
        self.log_top = nn.Parameter(torch.as_tensor(top, dtype=torch.float32).clamp_min(TINY).log())
        self.log_step = nn.Parameter(self.log_top.detach() - self._span(bits))
        self.log_exponent = nn.Parameter(torch.zeros(()), requires_grad=below is None)
        self.register_buffer("fixed", torch.tensor(0))

    @classmethod
    def of_layer(cls, layer: QuantizedLayer, powers: bool = False) -> LearnedQuantizer:
        """Return a weight's quantizer that starts from stored scales. Raises ValueError for a float layer."""
        if layer.weight_scale is None or layer.weight_int is None:
            raise ValueError(f"{layer.name} has no scales")
        scale = torch.from_numpy(np.array(layer.weight_scale)) * weight_limit(layer.bits)
        shape = [-1, *[1] * (layer.weight_int.ndim - 1)] if scale.numel() > 1 else []
        return cls(scale.reshape(shape), layer.bits, powers=powers)

    @classmethod
    def of_grid(cls, grid: ActivationGrid, powers: bool = False) -> LearnedQuantizer:
        """Return an activation's quantizer that starts from a grid, zero point and all."""
        under = min(grid.zero_point, grid.levels - 1)
        return cls(grid.scale * (grid.levels - under), grid.bits, under / grid.levels, powers)

    def forward(self, x: Tensor) -> Tensor:
        """Return x on the grid; its gradients are those of the straight-through estimator (see `Rounding`)."""
        if self.is_float:
            return x
        curve = self.curve()
        return rounded(x, curve, How(self._reach, self._slope(x, curve) if self.lsq else 1.0, self.smooth))

    def _slope(self, x: Tensor, curve: Curve) -> float:
        """Return the factor of Esser et al. 2020, section 2.2: one over the root of elements times (K + 1)."""
        elements = x.numel() if self.below is None else x[0].numel()
        return 1 / math.sqrt(elements * (self._largest(curve) + 1))

    @property
    def is_float(self) -> bool:
        """Tell whether values pass as they are."""
        return int(self.fixed) >= FLOAT_BITS

    @property
    def _reach(self) -> float:
        """How far the range reaches below 0, as a multiple of the maximum."""
        if self.below is None or not self.fixed:
            return 1.0 if self.below is None else self.below / (1 - self.below)
        under, over = ends_of(self.below, int(self.fixed))
        return under / over

    def _span(self, bits: float) -> float:
        """Return log(q_m^t / d) for a width that isn't fixed."""
        if self.below is None:
            return math.log(2 ** (bits - 1) - 1)
        return math.log((2**bits - 1) * (1 - self.below))

    def curve(self) -> Curve:
        """Return step, maximum and exponent as they are now, differentiable."""
        top = self.log_top.exp()
        exponent = self.log_exponent.exp() if self.log_exponent.requires_grad or self.log_exponent != 0 else None
        if not self.fixed:
            return Curve(self.log_step.exp(), top, exponent)
        over = ends_of(self.below, int(self.fixed))[1]
        step = (top if exponent is None else top**exponent) / over
        if self.powers:
            step = straight_through(step, powers_above(step))
            top = step * over if exponent is None else (step * over) ** (1 / exponent)
        return Curve(step, top, exponent)

    def bits(self, by_top: bool = True) -> Tensor:
        """Return the real-valued width, the mean over channels: log2(q_m^t / d + 1) + 1 for a weight.

        Of an activation, the logarithm of the number of codes. With `by_top` False its gradients are those of the step
        alone: a cost then coarsens the grid and leaves its range to the loss.
        """
        if self.fixed:
            return self.fixed.to(self.log_top.dtype)
        highest = self.log_exponent.exp() * self.log_top
        ratio = torch.exp((highest if by_top else highest.detach()) - self.log_step)
        if self.below is None:
            return torch.log2(ratio + 1).mean() + 1
        return torch.log2(ratio * (1 + self._reach) + 1).mean()

    def deploy_bits(self) -> int:
        """Return the width that the integers really need: never that of rounding `bits()`."""
        if self.is_float:
            return FLOAT_BITS
        over = self._largest(self.curve())
        return width_of(self.below, round(over * self._reach), over)

    @torch.no_grad()
    def _largest(self, curve: Curve) -> int:
        """Return the largest integer of a grid of this quantizer."""
        return int((curve.highest() / curve.step).max().round())

    @torch.no_grad()
    def project(self, narrowest: float, widest: float) -> None:
        """Move the step to where the width lies within bounds, after an optimizer's step."""
        mapped_top = self.log_exponent.exp() * self.log_top
        finest, coarsest = (mapped_top - self._span(bits) for bits in (widest, narrowest))
        self.log_step.copy_(torch.minimum(torch.maximum(self.log_step, finest), coarsest))

    @torch.no_grad()
    def restrict(self, bits: int) -> None:
        """Fix the width, 32 for float; maximum and exponent go on training, the step follows from them."""
        self.fixed.fill_(bits)
        if bits < FLOAT_BITS:
            self.log_step.copy_(self.log_exponent.exp() * self.log_top - self._span(bits))

    @torch.no_grad()
    def integers(self, weight: Tensor) -> Tensor:
        """Return the integers (as float) of a weight. Times `scale` they are what `forward` gives, to the bit."""
        curve = self.curve()
        return torch.round(mapped(weight, curve, self._reach) / curve.step)

    @property
    def scale(self) -> Tensor:
        """The steps as they are stored, float32 [out] or [1]."""
        return self.curve().step.detach().reshape(-1).float()

    def grid(self) -> ActivationGrid:
        """Return the grid of codes of an activation whose width is fixed: what `forward` does, to the bit.

        Raises ValueError for anything else.
        """
        bits = int(self.fixed)
        if not 0 < bits < FLOAT_BITS or self.below is None:
            raise ValueError("only an activation of a fixed width has a grid of codes")
        return ActivationGrid(self.scale.item(), ends_of(self.below, bits)[0], bits)
