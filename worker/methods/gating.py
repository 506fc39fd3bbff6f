"""Channel gates that look at the input (Bejnordi, Blankevoort and Welling 2020, arXiv 1907.06627; US20200372361A1).

A small network reads the mean of a block's input and decides per sample which filters inside the block are computed:

    s = mean over positions of x,  pi = W_2 relu(norm(W_1 s)),  g = 1[pi + logit(noise) > 0] (training), 1[pi > 0]

with the gradient of sigmoid((pi + logit(noise)) / tau); P(g = 1) = sigmoid(pi) for every temperature. The loss is
L = task + gamma * batch-shaping (`worker.methods.batch_shaping`) + lambda * expected number of active filters. Gates
skip arithmetic, not weights; a limit on time binds the 95th percentile over samples, not the mean.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.domain.graph import ModelGraph
from worker.quant.gates import ALWAYS_ON, pooled

HIDDEN = 16
TEMPERATURE = 2 / 3
START = 2.5
"""The last layer's bias at first: sigmoid(2.5) = 92 % of the filters are on."""


class FilterGate(nn.Module):
    """Decides from a block's input [n, channels, ...] which of its inner filters run: 1 or 0, [n, filters].

    `block` filters share a gate: runtimes skip whole groups (8 or 16 fill a vector). `margin` keeps on in evaluation
    what lies a little below 0: a gate that is close would flip once the network is quantized. `owner` [filters] is the
    gate of each filter, -1 for those that are always on.
    """

    owner: Tensor

    def __init__(self, channels: int, filters: int, block: int = 1, hidden: int = HIDDEN, margin: float = 0.0) -> None:
        super().__init__()
        self.margin = margin
        self.squeeze, self.norm = nn.Linear(channels, hidden), nn.BatchNorm1d(hidden)
        self.excite = nn.Linear(hidden, math.ceil(filters / block))
        nn.init.constant_(self.excite.bias, START)
        self.register_buffer("owner", torch.arange(filters) // block)

    @property
    def gates(self) -> int:
        """Return the number of gates."""
        return len(self.excite.bias)

    def logits(self, x: Tensor, axis: int = 1) -> Tensor:
        """Return pi [n, gates] for a block's input with its channels along `axis`."""
        found: Tensor = self.excite(F.relu(self.norm(self.squeeze(pooled(x, axis)))))
        return found

    def decide(self, logits: Tensor) -> Tensor:
        """Return 1 for gates that are on, 0 for others [n, gates]: drawn in training, deterministic in evaluation."""
        if self.training:
            return binary_gumbel(logits)
        return (logits > -self.margin).to(logits.dtype)

    def spread(self, gates: Tensor) -> Tensor:
        """Return the gates [n, gates] of every filter [n, filters]."""
        return torch.cat([gates, gates.new_ones(len(gates), 1)], 1)[:, self.owner]

    def forward(self, x: Tensor, axis: int = 1) -> Tensor:
        """Return which filters run [n, filters]."""
        return self.spread(self.decide(self.logits(x, axis)))

    def tidied(self, found: Tidy) -> FilterGate:
        """Return a gate for the filters that `found` leaves; those (nearly) always on have no gate any more."""
        clone = copy.deepcopy(self)
        left = torch.tensor(found.gated, dtype=torch.int64)
        place = torch.full((self.gates + 1,), ALWAYS_ON)
        place[left] = torch.arange(len(left))
        clone.owner = place[self.owner][torch.tensor(self.filters_left(found), dtype=torch.int64)]
        clone.excite = _sliced(self.excite, rows=left)
        return clone

    def filters_left(self, found: Tidy) -> tuple[int, ...]:
        """Return the filters whose gates `found` does not remove, ascending."""
        gone = torch.tensor(found.removed, dtype=torch.int64)
        left = (~torch.isin(self.owner, gone)).nonzero().flatten()
        return tuple(left.tolist())


def binary_gumbel(logits: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return 1 where logit(noise) + pi > 0, else 0, with the gradient of sigmoid((pi + logit(noise)) / tau)."""
    noise = torch.rand_like(logits).clamp(1e-7, 1 - 1e-7)
    shifted = logits + torch.logit(noise)
    soft = torch.sigmoid(shifted / temperature)
    return (shifted > 0).to(logits.dtype) + (soft - soft.detach())


def expected_active(logits: Tensor, filters: Tensor | None = None) -> Tensor:
    """Return how many filters are on per sample, in the mean over a batch of pi [n, gates] (the L0 term of a block).

    `filters` [gates] are how many, or how many MACs, hang on each gate (default: one).
    """
    chances = torch.sigmoid(logits)
    return (chances if filters is None else chances * filters).sum(1).mean()


@dataclass(frozen=True)
class Schedule:
    """How the factors of the two losses go over training, its progress running from 0 to 1.

    `gamma` falls to 0 on a straight line until `shaped`. `sparsity` (lambda) is 0 until `warm`, then rises to its full
    value at `full`: without gates that hang on the input first, it would only prune.
    """

    gamma: float = 0.75
    shaped: float = 0.5
    sparsity: float = 1e-3
    warm: float = 0.1
    full: float = 0.5

    def at(self, progress: float) -> tuple[float, float]:
        """Return (gamma, lambda)."""
        left = max(0.0, 1 - progress / self.shaped)
        risen = min(1.0, max(0.0, (progress - self.warm) / (self.full - self.warm)))
        return self.gamma * left, self.sparsity * risen


@dataclass(frozen=True)
class GateCost:
    """Multiply-accumulates of a gated block per sample: what hangs on each filter, and what the gate itself takes."""

    per_filter: int
    overhead: int

    def macs(self, active: Tensor) -> Tensor:
        """Return MACs [n] for filters that run [n, filters] (or expected, for chances: differentiable)."""
        return active.sum(1) * self.per_filter + self.overhead


def gateable(graph: ModelGraph) -> tuple[str, ...]:
    """Return the channel groups whose filters a gate may skip: made by one layer, read by others, and not frozen.

    A group that a layer both makes and reads (a residual trunk, a depthwise layer) is part of what it is added to.
    """
    return tuple(
        group.id
        for group in graph.prunable
        if len(group.producers) == 1 and group.consumers and not _both(graph, group.id)
    )


def _both(graph: ModelGraph, group: str) -> bool:
    ends = [(dict(layer.in_width.terms), dict(layer.out_width.terms)) for layer in graph.layers]
    return any(group in ins and group in outs for ins, outs in ends)


def gate_cost(graph: ModelGraph, group: str, gates: int, hidden: int = HIDDEN) -> GateCost:
    """Return what a filter of a group costs where it is made and read, and what a gate at its producer's input costs.

    H W k^2 C_in + H' W' k^2 C_out per filter; C_in hidden + hidden gates + H W C_in for the gate, whose pooling adds up
    the H W positions of what the producer reads. Raises ValueError for a group that is not `gateable`.
    """
    if group not in gateable(graph):
        raise ValueError(f"the filters of {group!r} can't be gated")
    full = {item.id: item.channels for item in graph.groups}
    per_filter = 0
    for layer in graph.layers:
        ins, outs = layer.in_width.kept(full), layer.out_width.kept(full)
        macs = outs * layer.columns(ins) * layer.kernel_size * layer.positions
        share = dict(layer.out_width.terms).get(group, 0) / outs + dict(layer.in_width.terms).get(group, 0) / ins
        per_filter += round(macs * share)
    source = graph.activation[graph.layer[graph.group[group].producers[0]].input]
    channels = source.width.kept(full)
    return GateCost(per_filter, channels * hidden + hidden * gates + channels * source.positions)


@dataclass(frozen=True)
class Spread:
    """A cost over samples: its mean (for energy), 95th percentile (for limits on time) and largest value."""

    mean: float
    p95: float
    largest: float

    @classmethod
    def of(cls, costs: Tensor) -> Spread:
        """Return the spread of costs [n]; the percentile is one of them, the next one up."""
        values = costs.detach().double()
        p95 = torch.quantile(values, 0.95, interpolation="higher")
        return cls(float(values.mean()), float(p95), float(values.max()))


@dataclass(frozen=True)
class Tidy:
    """Gates by what a calibration set shows of them: (nearly) never on, depending on the input, (nearly) always on."""

    removed: tuple[int, ...]
    gated: tuple[int, ...]
    always: tuple[int, ...]


def tidy(rates: Tensor, rare: float = 0.01) -> Tidy:
    """Sort gates by the share of samples they are on for [gates]: below `rare`, between, above 1 - `rare`.

    Where that would remove all of them, the most frequent one stays.
    """
    on = rates.detach().double().tolist()
    top = max(range(len(on)), key=lambda index: on[index])
    removed = tuple(i for i, rate in enumerate(on) if rate < rare and not (i == top and max(on) < rare))
    always = tuple(i for i, rate in enumerate(on) if rate > 1 - rare)
    return Tidy(removed, tuple(i for i in range(len(on)) if i not in {*removed, *always}), always)


Activation = Callable[[Tensor], Tensor]


def masked(x: Tensor, layers: tuple[Any, Any], gates: Tensor, activation: Activation = F.relu) -> Tensor:
    """Return second(gates * activation(first(x))) for two layers with BatchNorm folded in: computes every filter."""
    first, second = layers
    inner = activation(first(x))
    found: Tensor = second(inner * gates.reshape(*gates.shape, *[1] * (inner.dim() - 2)))
    return found


@torch.no_grad()
def gathered(x: Tensor, layers: tuple[Any, Any], gates: Tensor, activation: Activation = F.relu) -> Tensor:
    """Return what `masked` does from the filters that are on alone, sample by sample: this is what saves arithmetic."""
    first, second = layers
    found = []
    for sample, gate in zip(x.split(1), gates, strict=True):
        active = gate.nonzero().flatten() if gate.any() else torch.zeros(1, dtype=torch.int64)
        inner = activation(_sliced(first, rows=active)(sample))
        found.append(_sliced(second, columns=active)(inner * gate[active[0]]))  # convolutions of nothing there are none
    return torch.cat(found)


def _sliced(layer: Any, rows: Tensor | None = None, columns: Tensor | None = None) -> Any:
    """Return a convolution or linear layer with some of its rows or columns, sharing what it can."""
    clone: Any = copy.copy(layer)
    clone._parameters = dict(layer._parameters)
    if rows is not None:
        clone.weight = nn.Parameter(layer.weight.detach()[rows])
        clone.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach()[rows])
    if columns is not None:
        clone.weight = nn.Parameter(layer.weight.detach()[:, columns])
    return clone
