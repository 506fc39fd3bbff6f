"""A compressed network whose filters are gated while it is trained, and what its gates leave of the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from app.domain.graph import ModelGraph, Width
from worker.graph.groups import ChannelPlan
from worker.graph.operands import operands
from worker.graph.sites import quantizer_sites
from worker.methods.batch_shaping import BatchShaping
from worker.methods.gated_costs import GatedCosts
from worker.methods.gating import FilterGate, binary_gumbel, gateable
from worker.methods.protocol import NothingLegal, Subject
from worker.methods.straight import StraightThrough
from worker.methods.trainable import TRAINABLE, TrainableNetwork
from worker.quant.gates import StoredGate, decided
from worker.quant.network import CompressedNetwork

ROWS = 256
"""Over so many soft decisions, of this batch and those before it, their distribution is shaped."""


@dataclass(frozen=True)
class Place:
    """Where a group's gate stands: the node that it reads, the site that it acts on, and their channel axes."""

    group: str
    reads: str
    site: str
    read_axis: int
    axis: int
    channels: int
    filters: int


def places(network: CompressedNetwork, graph: ModelGraph, plan: ChannelPlan) -> tuple[Place, ...]:
    """Return where gates can stand: at groups whose filters are the channels of one site, between plain layers."""
    sites = {site.head: site.id for site in quantizer_sites(network.module).sites}
    nodes = {node.name: node for node in network.module.graph.nodes}
    mask, found = plan.mask(network.kept), []
    for group in gateable(graph):
        ends = (*graph.group[group].producers, *graph.group[group].consumers)
        if not all(name in nodes and _is_plain(network.module.get_submodule(name)) for name in ends):
            continue
        site, reads = sites.get(ends[0]), operands(nodes[ends[0]])[0].name
        value, read = plan.dims.get((site or "", "value")), plan.dims[reads, "value"]
        if site is None or value is None or value.width != Width(((group, 1),)):
            continue
        sizes = (len(read.kept(mask)), len(value.kept(mask)))
        found.append(Place(group, reads, site, read.axis, value.axis, *sizes))
    return tuple(found)


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, TRAINABLE) and getattr(leaf, "groups", 1) == 1


class GatedNetwork(TrainableNetwork):
    """A network with a gate at each place where `block` filters leave two gates or more.

    In training gates draw noise, unless they are `settled`; `logits` are those of the last batch. Raises NothingLegal
    where no place is left.
    """

    def __init__(self, subject: Subject, block: int) -> None:
        found = places(subject.network, subject.graph, subject.compressor.slicer.plan)
        self.places = {item.site: item for item in found if item.filters > block}
        if not self.places:
            raise NothingLegal(f"no layer has filters of its own that blocks of {block} could leave out")
        gates = {site: FilterGate(item.channels, item.filters, block) for site, item in self.places.items()}
        start = replace(subject.network, gates={site: stored(self.places[site], gate) for site, gate in gates.items()})
        super().__init__(start, StraightThrough(subject.powers))
        self.gates = nn.ModuleDict({_key(site): gate for site, gate in gates.items()})
        self.shapings = nn.ModuleDict({_key(site): BatchShaping(gate.gates, ROWS) for site, gate in gates.items()})
        self.costs = GatedCosts.of(subject.graph, start)
        self.settled = False
        self.logits: dict[str, Tensor] = {}

    def gate(self, site: str) -> Any:
        """Return a site's gate."""
        return self.gates[_key(site)]

    def _mask(self, site: str, value: Tensor) -> Tensor:
        gate = self.gate(site)
        logits = self.logits[site] = gate.logits(value, self.places[site].read_axis)
        if self.training and not self.settled:
            return gate.spread(binary_gumbel(logits))  # type: ignore[no-any-return]
        hard, soft = decided(logits, keeps_one=True).to(logits.dtype), torch.sigmoid(logits)
        return gate.spread(hard + (soft - soft.detach()))  # type: ignore[no-any-return]

    def shaping(self) -> Tensor:
        """Return the batch-shaping loss of the last batch, the mean over gates."""
        losses = [
            (self.shapings[_key(site)](torch.sigmoid(logits)), logits.shape[1]) for site, logits in self.logits.items()
        ]
        total: Tensor = sum((loss * count for loss, count in losses), torch.zeros(()))
        return total / sum(count for _, count in losses)

    def share(self) -> Tensor:
        """Return the share of the MACs that the last batch is expected to need."""
        active = {
            self.places[site].group: self.gate(site).spread(self._chances(logits)).sum(1)
            for site, logits in self.logits.items()
        }
        return self.costs.macs(active).mean() / self.costs.dense

    def _chances(self, logits: Tensor) -> Tensor:
        """Return how probably each gate is on: for sure or not at all once they are settled."""
        soft = torch.sigmoid(logits)
        return decided(logits, keeps_one=True).to(soft.dtype) + (soft - soft.detach()) if self.settled else soft

    def hard(self) -> CompressedNetwork:
        """Return the network as it is stored, its gates beside it."""
        gates = {site: stored(place, self.gate(site)) for site, place in self.places.items()}
        return replace(super().hard(), gates=gates)


@torch.no_grad()
def stored(place: Place, gate: FilterGate) -> StoredGate:
    """Return a gate as it is stored, its norm folded into the layer before it."""
    norm: Any = gate.norm
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    squeeze = gate.squeeze.weight * factor[:, None]
    shift = (gate.squeeze.bias - norm.running_mean) * factor + norm.bias
    parts = (squeeze, shift, gate.excite.weight, gate.excite.bias + gate.margin)
    w1, b1, w2, b2 = (item.detach().float().contiguous().numpy().copy() for item in parts)
    owner = tuple(gate.owner.tolist())
    return StoredGate(place.group, place.reads, w1, b1, w2, b2, owner, place.read_axis, place.axis)


def _key(site: str) -> str:
    return f"g_{site}"
