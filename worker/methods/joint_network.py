"""A network whose channels and bits are trained with its weights: gates on channel groups, learned quantizers.

A group has one gate, whose factors are drawn once per forward pass for all its members. It acts on what its layers
give, so that its mean can be folded into their rows. Groups, layers and sites that leave no choice stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from app.domain.graph import ChannelGroup, ModelGraph
from app.domain.space import FLOAT_BITS, SearchSpace
from worker.graph.groups import ChannelPlan
from worker.methods.djpq import ChannelGate, LearnedQuantizer, gated, nearest_width
from worker.methods.gated_widths import GatedWidths, chain, plain
from worker.methods.hardening import Learned
from worker.methods.relaxed_costs import Real, Soft
from worker.methods.trainable import TrainableNetwork, key_of
from worker.quant.grids import ActivationGrid
from worker.quant.layer import QuantizedLayer
from worker.quant.network import CompressedNetwork

LOG_VARIANCE = -7.0
"""Where gates begin, noise of 3 per cent: from VIBNet's -9 a channel needs more steps to fall than a search trains, and
at -5 the noise undoes coarse grids."""
TEMPERATURE = 2.0
"""That of soft counts of channels: at 1 a limit would hardly reach channels that lie far above the threshold."""
EXPONENT = math.log(2)
"""The bound of an exponent's logarithm, either way: a limit alone would drive it on until maxima vanish."""


@dataclass(frozen=True)
class JointSetting:
    """How a joint network is made: the gates' log threshold, whether fixed grids have power-of-two steps, and whether
    gates choose the widths, where legal ones are twice one another; else steps are learned."""

    log_threshold: float = 0.0
    powers: bool = False
    gates: bool = False


Widths = LearnedQuantizer | GatedWidths


class Learning:
    """Makes quantizers whose widths are learned (see `worker.methods.trainable.Quantizers`)."""

    def __init__(self, powers: bool) -> None:
        self._powers = powers

    def weight(self, layer: QuantizedLayer) -> nn.Module:
        """Return a layer's quantizer, from its stored scales."""
        return LearnedQuantizer.of_layer(layer)

    def site(self, grid: ActivationGrid) -> nn.Module:
        """Return a site's quantizer, from its grid."""
        return LearnedQuantizer.of_grid(grid, self._powers)


class JointNetwork(TrainableNetwork):
    """A compressed network with gates on the channels that it still has."""

    def __init__(
        self, start: CompressedNetwork, plan: ChannelPlan, graph: ModelGraph, space: SearchSpace, how: JointSetting
    ) -> None:
        super().__init__(start, Learning(how.powers))
        self.start, self.graph, self.space = start, graph, space
        self.channels = {group.id: tuple(start.kept.get(group.id, range(group.channels))) for group in graph.groups}
        self._gated = [group.id for group in graph.groups if self._is_free(group)]
        self.gates = nn.ModuleList([ChannelGate(len(self.channels[name]), how.log_threshold) for name in self._gated])
        for gate in self.gates:
            nn.init.constant_(gate.log_variance, LOG_VARIANCE)  # type: ignore[arg-type]
        self._owners = self._columns(plan)
        self._drawn = torch.ones(1, 1)
        self._bounds = self._choices(how.gates)
        self.leeway = math.inf
        """How far, in log2, a width may lie from the nearest legal one."""

    def _is_free(self, group: ChannelGroup) -> bool:
        """Tell whether a group may lose channels: it leaves a choice, and all that give it are trained."""
        options = [count for count in self.space.keep[group.id] if count < len(self.channels[group.id])]
        return bool(options) and bool(group.producers) and set(group.producers) <= set(self.trained)

    def _columns(self, plan: ChannelPlan) -> dict[str, Tensor]:
        """Return by layer which of the drawn factors each of its output columns is multiplied by (the last is 1)."""
        place = torch.full((plan.total + 1,), sum(len(self.channels[name]) for name in self._gated))
        taken = 0
        for name in self._gated:
            mine = self.channels[name]
            place[plan.offsets[name] + torch.tensor(mine)] = torch.arange(taken, taken + len(mine))
            taken += len(mine)
        mask, found = plan.mask(self.channels), {}
        for layer in self.trained:
            dim = plan.dims[(layer, "out")]
            owners = place[torch.from_numpy(dim.channel)[dim.kept(mask)]]
            if bool((owners < taken).any()):
                found[layer] = owners
        self._axes = {layer: plan.dims[(layer, "value")].axis for layer in found}
        return found

    def _choices(self, gates: bool) -> dict[str, tuple[Widths, int, int]]:
        """Return quantizers whose width is learned with its bounds; the width of others is fixed to what it is."""
        found, bits = {}, self.start.assignment
        for kind, legal, now in (
            ("weight", self.space.weight_bits, bits.weight_bits),
            ("site", self.space.activation_bits, bits.activation_bits),
        ):
            for name, widths in legal.items():
                quantizer = self.quantizer(name) if kind == "weight" else self.site(name)
                integers = [width for width in widths if width < FLOAT_BITS]
                if quantizer is not None and len(integers) > 1:
                    nested = chain(integers) if gates else ()
                    learned = self._gate(kind, name, nested) if len(nested) > 1 else quantizer
                    found[f"{kind}:{name}"] = (learned, min(integers), max(integers))
                elif quantizer is not None:
                    quantizer.restrict(now[name])
        return found

    def _gate(self, kind: str, name: str, widths: tuple[int, ...]) -> GatedWidths:
        """Put gates in the place of a weight's or a site's quantizer."""
        if kind == "weight":
            made = GatedWidths.of_layer(self.start.layers[name], widths)
            self.weight_quantizers[key_of(name)] = made
            return made
        made = GatedWidths.of_grid(self.start.grids[name], widths)
        self.sites[key_of(name)] = made
        return made

    def plain_quantizer(self, layer: str) -> LearnedQuantizer | None:
        """Return a layer's quantizer, one whose width can be fixed at any legal one."""
        return plain(self.quantizer(layer))

    def plain_site(self, name: str) -> LearnedQuantizer | None:
        """Return a site's quantizer, one whose width can be fixed at any legal one."""
        return plain(self.site(name))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for a batch of normalised inputs; each gate's factors are drawn once."""
        if self.training:
            self.project()
        self._drawn = self.factors(len(inputs[0]))
        return super().forward(*inputs)

    def factors(self, samples: int = 1) -> Tensor:
        """Return the factors of all gated channels and, last, the 1 of the others: [samples or 1, channels + 1]."""
        drawn = [gate.values(samples) for gate in self.gates]  # type: ignore[operator]
        return torch.cat([*drawn, torch.ones(len(drawn[0]) if drawn else 1, 1)], 1)

    def row_factors(self, layer: str) -> Tensor | None:
        """Return what a layer's rows are multiplied by when gates are folded in, before any are removed [out]."""
        if layer not in self._owners:
            return None
        means = torch.cat([*(gate.mean.detach() for gate in self._by_group().values()), torch.ones(1)])
        return means[self._owners[layer]]

    def _leaf(self, node: fx.Node, source: Tensor) -> Tensor:
        found, owners = super()._leaf(node, source), self._owners.get(node.name)
        return found if owners is None else gated(found, self._drawn, self._axes[node.name], owners)

    def _bias(self, layer: str, bias: Tensor) -> Tensor:
        """Return the bias as it is: the accumulator's grid moves while widths are learned."""
        return bias

    @torch.no_grad()
    def project(self) -> None:
        """Move learned exponents and widths into their bounds, and within the leeway of legal widths."""
        for key, (quantizer, narrowest, widest) in self._bounds.items():
            if isinstance(quantizer, GatedWidths):
                continue
            quantizer.log_exponent.clamp_(-EXPONENT, EXPONENT)
            quantizer.project(narrowest, widest)
            if math.isfinite(self.leeway):
                legal = nearest_width(quantizer.bits().item(), self._legal(key))
                quantizer.project(legal * 2**-self.leeway, legal * 2**self.leeway)

    def _legal(self, key: str) -> list[int]:
        kind, name = key.split(":", 1)
        widths = (self.space.weight_bits if kind == "weight" else self.space.activation_bits)[name]
        return [width for width in widths if width < FLOAT_BITS]

    def kl(self) -> Tensor:
        """Return the gates' divergence in nats, summed over channels."""
        return sum((gate.kl() for gate in self.gates), torch.zeros(()))  # type: ignore[operator]

    def soft(self) -> Soft:
        """Return channels and bits as real numbers, for costs."""
        keep: dict[str, Real] = {name: float(len(kept)) for name, kept in self.channels.items()}
        keep |= {name: gate.width(TEMPERATURE) for name, gate in self._by_group().items()}
        bits = self.start.assignment
        return Soft.of(
            self.graph,
            keep,
            {**bits.weight_bits, **{name: item.bits(by_top=False) for name, item in self._learned("weight").items()}},
            {**bits.activation_bits, **{name: item.bits(by_top=False) for name, item in self._learned("site").items()}},
        )

    @torch.no_grad()
    def learned(self) -> Learned:
        """Return what training came to. Margins are of the channels that the start still has."""
        return Learned(
            {name: gate.log_snr().detach() - gate.log_threshold for name, gate in self._by_group().items()},
            {name: item.bits().item() for name, item in self._learned("weight").items()},
            {name: item.bits().item() for name, item in self._learned("site").items()},
        )

    def _by_group(self) -> Mapping[str, Any]:
        return dict(zip(self._gated, self.gates, strict=True))

    def _learned(self, kind: str) -> dict[str, Widths]:
        prefix = f"{kind}:"
        return {key.removeprefix(prefix): item[0] for key, item in self._bounds.items() if key.startswith(prefix)}

    def narrowed(self) -> SearchSpace:
        """Return the space that is left: no channel comes back, and what was not learned stays."""
        learned, bits = self.learned(), self.start.assignment
        return SearchSpace(
            {name: self._counts(name) for name in self.space.keep},
            {name: widths if name in learned.weight_bits else (bits.weight_bits[name],)
             for name, widths in self.space.weight_bits.items()},
            {name: widths if name in learned.activation_bits else (bits.activation_bits[name],)
             for name, widths in self.space.activation_bits.items()},
            self.space.pairs,
        )  # fmt: skip

    def _counts(self, group: str) -> tuple[int, ...]:
        most = len(self.channels[group])
        return tuple(count for count in self.space.keep[group] if count <= most) if group in self._gated else (most,)
