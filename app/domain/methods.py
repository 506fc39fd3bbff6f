"""The methods that a search may apply to its best networks after the polish: names, papers, parameters.

Torch-free, so that a request is checked where no torch is. What they do is in `worker.methods`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

TRAINED = "trained/"
"""How the repair of a network begins that training made: the SHA-256 of its checkpoint follows."""


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    `epochs` passes over at most `rows` calibration rows in batches of `batch`, with Adam at `rate`, falling to nothing
    along half a cosine. The loss is the divergence from the float network's answers; of it `labels` is given to the
    cross entropy with the labels, where there are some. Pictures are shifted by up to `shift` pixels, and mirrored with
    `mirror`. After `max_wall_s` seconds no further epoch is begun.
    """

    epochs: int = 5
    rows: int = 15_000
    batch: int = 64
    rate: float = 3e-3
    labels: float = 0.0
    shift: int = 3
    mirror: bool = False
    max_wall_s: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class StraightThrough:
    """Quantization-aware training with straight-through rounding and learned steps; the control of all others."""

    name: ClassVar[str] = "straight-through"
    paper: ClassVar[str] = "Esser et al. 2020, Learned Step Size Quantization"
    training: Training = Training()


@dataclass(frozen=True)
class RelaxedQuantization:
    """Training through a relaxed, noisy rounding that hardens to the nearest code.

    `temperature` is that of the concrete distribution; `noise` the noise it begins with, in steps, which falls to a
    twentieth of a step; with `straight` codes are drawn hard on the way forward. The last share `settled` of the
    training rounds to the nearest code, as the network does that is kept.
    """

    name: ClassVar[str] = "relaxed-quantization"
    paper: ClassVar[str] = "Louizos et al. 2019, Relaxed Quantization for Discretized Neural Networks"
    training: Training = Training()
    temperature: float = 1.0
    noise: float = 0.2
    straight: bool = True
    settled: float = 0.5


@dataclass(frozen=True)
class LearnedThresholds:
    """Weights below a learned threshold become zero, down to a share `density` of all that are quantized.

    The first share `pruning` of the epochs prunes, the rest trains what is left. Weights live or die in blocks of
    `outs` output channels by `ins` neighbouring input channels (0: all); with `keep` at most so many of each block live
    (`ins` 4 and `keep` 2: the 2:4 pattern). With `cut` channels that have no weight left are removed.
    """

    name: ClassVar[str] = "learned-thresholds"
    paper: ClassVar[str] = "Azarian et al. 2020, Learned Threshold Pruning"
    training: Training = Training()
    density: float = 0.2
    pruning: float = 0.4
    outs: int = 1
    ins: int = 1
    keep: int | None = None
    cut: bool = True


Start = Literal["candidate", "float"]
Widths = Literal["learned", "gates"]


@dataclass(frozen=True)
class JointPruning:
    """Channels and bits learned together by gradients under the budget's limits, then fixed inside all of them.

    It starts from the network the search found, or from the float network at its widest bits (`start`). The `joint`
    share of the epochs trains gates on channels and the widths of weights and activations beside the weights, both at
    `structure_rate`: `gamma` weighs the gates' divergence in nats, a channel falls below a signal-to-noise ratio of
    `threshold`, limits are penalties of an augmented Lagrangian with `kappa`. The other epochs train the hard network:
    what was learned, or the candidate's channels and bits where the loss on calibration rows is less with them.
    `widths` are learned as steps of grids, or chosen by gates that switch bits on and off (van Baalen et al. 2020).
    """

    name: ClassVar[str] = "djpq"
    paper: ClassVar[str] = "Wang et al. 2020, Differentiable Joint Pruning and Quantization for Hardware Efficiency"
    training: Training = Training()
    start: Start = "candidate"
    joint: float = 0.25
    gamma: float = 1e-5
    threshold: float = 1.0
    kappa: float = 5.0
    structure_rate: float = 3e-3
    widths: Widths = "learned"


GateStart = Literal["all", "important"]


@dataclass(frozen=True)
class ChannelGating:
    """Small networks that look at the input and decide which filters of a layer run.

    Groups that one layer makes and others read get gates, one per `block` filters. They are steered to leave a share
    `macs` of the network's multiply-accumulates in the mean, and at most `p95` at the 95th percentile over inputs.

    With `start` "all" nearly every filter runs at first and the share comes down until `ramp` of the epochs are done;
    with "important" training begins at the network pruned to that share, what is pruned away being off. The first share
    `alone` of the epochs trains gates at `gate_rate` with the weights frozen, the last share `settled` trains without
    the gates' noise. `gamma` weighs the batch-shaping loss, which fades until `shaped`; without it gates hardly hang on
    the input. Gates that are on for fewer than a share `rare` of the calibration rows go with their filters, those off
    for fewer go alone.
    """

    name: ClassVar[str] = "channel-gating"
    paper: ClassVar[str] = "Bejnordi et al. 2020, Batch-Shaping for Learning Conditional Channel Gated Networks"
    training: Training = Training()
    macs: float = 0.6
    p95: float | None = None
    block: int = 1
    gamma: float = 0.75
    alone: float = 0.0
    settled: float = 1.0
    gate_rate: float = 2e-3
    rare: float = 0.01
    start: GateStart = "important"
    ramp: float = 0.5
    shaped: float = 0.5


@dataclass(frozen=True)
class BiasCorrection:
    """Mean errors of replaced weights are taken out of the biases. Nothing is trained.

    `mode` says where means come from: "analytic", the BatchNorms' shifts and scales; "local", the float network's
    values on at most `rows` calibration rows; "sequential", on them too, each layer behind the corrected ones before
    it. With `padding_aware` the analytic means know that kernels see zeros at the border.
    """

    name: ClassVar[str] = "bias-correction"
    paper: ClassVar[str] = "Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction"
    mode: Literal["analytic", "local", "sequential"] = "sequential"
    padding_aware: bool = True
    rows: int = 2048


@dataclass(frozen=True)
class RelaxedRounding:
    """Weights below 8 bits are rounded anew from the float network, each layer for its own outputs on calibration rows.

    Weights, scales and noise of a layer are learned in `steps` steps of Adam at `rate` (in quantization steps) through
    the relaxed rounding, `noise` at first, from at most `rows` rows. No labels, no training of the network.
    """

    name: ClassVar[str] = "relaxed-rounding"
    paper: ClassVar[str] = RelaxedQuantization.paper
    steps: int = 1500
    rate: float = 0.02
    noise: float = 1 / 3
    rows: int = 2048
    seed: int = 0


Method = (
    StraightThrough
    | RelaxedQuantization
    | LearnedThresholds
    | JointPruning
    | ChannelGating
    | BiasCorrection
    | RelaxedRounding
)
METHODS: Mapping[str, type[Method]] = {
    kind.name: kind
    for kind in (
        StraightThrough,
        RelaxedQuantization,
        LearnedThresholds,
        JointPruning,
        ChannelGating,
        BiasCorrection,
        RelaxedRounding,
    )
}


def method_of(data: Mapping[str, Any]) -> Method:
    """Return the method that a request names: {"name", "training": {...} where it trains, and its own parameters}.

    Raises KeyError for a name that there is not, TypeError for parameters that it lacks.
    """
    kind: Any = METHODS[data["name"]]
    own = {key: value for key, value in data.items() if key != "name"}
    if is_trained(kind):
        own["training"] = Training(**own.get("training") or {})
    found: Method = kind(**own)
    return found


def is_trained(kind: type[Method]) -> bool:
    """Tell whether a method trains, and so has the parameters of `Training`."""
    return any(item.name == "training" for item in fields(kind))


def wall_s(method: Method) -> float | None:
    """Return the seconds after which a method begins no further epoch, or None where nothing limits it."""
    training: Training | None = getattr(method, "training", None)
    return None if training is None else training.max_wall_s


def to_json(method: Method) -> dict[str, Any]:
    """Return a method as a request names it."""
    return {"name": method.name, **asdict(method)}
