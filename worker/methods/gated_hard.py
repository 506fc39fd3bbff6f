"""From trained gates to stored ones: brought to the share that was asked for, then tidied.

Gates meet their share of the MACs exactly on calibration rows by one shift of all logits. Those that are next to never
on go with their filters, whose mean is added to the biases behind them; those that are next to always on go alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from app.domain import methods as domain
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, is_legal
from worker.data import RoleData
from worker.export.checkpoint import dequantized
from worker.graph.groups import Columns
from worker.graph.labels import Side
from worker.methods.gated_costs import GatedCosts, limited, spreads
from worker.methods.gating import Tidy, tidy
from worker.methods.protocol import NothingLegal, Subject
from worker.methods.trainable import TRAINABLE
from worker.quant.compressor import bias_on_grid
from worker.quant.gates import ALWAYS_ON, StoredGate
from worker.quant.layer import QuantizedLayer
from worker.quant.network import CompressedNetwork
from worker.quant.rebias import own_leaves

ROWS = 1024
BATCH = 256
FARTHEST = 4.0
STEPS = 8


def tidied(network: CompressedNetwork, subject: Subject, method: domain.ChannelGating) -> CompressedNetwork:
    """Return a trained network with its gates shifted and tidied. Raises NothingLegal where a limit has no room."""
    rows = subject.rows.head(ROWS)
    dense = GatedCosts.of(subject.graph, network).dense
    most, tails = method.macs * dense, dict(subject.budget.limits)
    if method.p95 is not None:
        tails["macs"] = min(method.p95 * dense, tails.get("macs", math.inf))
    shifted = at_most(network, subject.graph, rows, most, tails)
    seen = Seen.of(shifted, rows)
    found = {site: tidy(_rates(gate, seen.rates[site]), method.rare) for site, gate in shifted.gates.items()}
    small = without(shifted, subject, _legal(shifted, subject, found, seen), seen)
    small = at_most(small, subject.graph, rows, most, tails) if small.gates else small
    _check(small, subject, rows)
    return small


def _rates(gate: StoredGate, filters: Tensor) -> Tensor:
    """Return how often each gate is on [gates], from how often its filters are."""
    return torch.stack([filters[gate.owner.index(index)] for index in range(len(gate.excite_bias))])


def _legal(network: CompressedNetwork, subject: Subject, found: Mapping[str, Tidy], seen: Seen) -> Mapping[str, Tidy]:
    """Return what is tidied, with the most frequent of what would be removed left in where the device or the space
    wants more channels."""
    settled = {}
    for site, item in found.items():
        gate, removed = network.gates[site], list(item.removed)
        removed.sort(key=_rates(gate, seen.rates[site]).tolist().__getitem__)
        while removed and len(_left(gate, removed)) not in subject.space.keep[gate.group]:
            removed.pop()
        back = set(item.removed) - set(removed)
        settled[site] = Tidy(tuple(sorted(removed)), tuple(sorted({*item.gated, *back})), item.always)
    if is_legal(subject.graph, subject.space, _assignment(network, settled), subject.device):
        return settled
    return {site: Tidy((), tuple(sorted({*item.gated, *item.removed})), item.always) for site, item in settled.items()}


def _left(gate: StoredGate, removed: Collection[int]) -> list[int]:
    """Return the filters whose gates are not removed."""
    return [index for index, owner in enumerate(gate.owner) if owner not in removed]


def _assignment(network: CompressedNetwork, found: Mapping[str, Tidy]) -> Assignment:
    gates = network.gates
    keep = {gates[site].group: len(_left(gates[site], item.removed)) for site, item in found.items()}
    return replace(network.assignment, keep={**network.assignment.keep, **keep})


def at_most(
    network: CompressedNetwork, graph: ModelGraph, rows: RoleData, most: float, tails: Mapping[str, float] = {}
) -> CompressedNetwork:
    """Return a network whose gates, by one shift of all logits, leave at most so many MACs in the mean over rows, and
    MACs and BOPs within `tails` at the 95th percentile, as far as a shift can."""
    low, high = -FARTHEST, FARTHEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        found = spreads(shifted_by(network, middle), graph, rows)
        fits = found["macs"].mean <= most and all(
            spread.p95 <= tails.get(metric, math.inf) for metric, spread in found.items()
        )
        low, high = (middle, high) if fits else (low, middle)
    return shifted_by(network, low)


def shifted_by(network: CompressedNetwork, shift: float) -> CompressedNetwork:
    """Return a network with all its gates' logits moved."""
    gates = {
        site: replace(gate, excite_bias=gate.excite_bias + np.float32(shift)) for site, gate in network.gates.items()
    }
    return replace(network, gates=gates)


@dataclass(frozen=True)
class Seen:
    """What calibration rows show behind each gated site: how often each filter runs, and its mean value, zeros counted
    [filters]."""

    rates: Mapping[str, Tensor]
    means: Mapping[str, Tensor]

    @classmethod
    def of(cls, network: CompressedNetwork, rows: RoleData) -> Seen:
        """Look at some rows."""
        rates: dict[str, list[Tensor]] = {site: [] for site in network.gates}
        means: dict[str, list[Tensor]] = {site: [] for site in network.gates}

        def note(site: str, value: Tensor) -> Tensor:
            if site in network.gates:
                columns = value.movedim(network.gates[site].axis, 1).flatten(2)
                means[site].append(columns.mean(2) if columns.dim() == 3 else columns)
            return value

        for inputs in rows.batches(BATCH):
            network.follow(*inputs, seen=note)
            for site, mask in network.masks(*inputs).items():
                rates[site].append(mask.double())
        found = [{site: torch.cat(item).mean(0) for site, item in each.items()} for each in (rates, means)]
        return cls(*found)


def without(network: CompressedNetwork, subject: Subject, found: Mapping[str, Tidy], seen: Seen) -> CompressedNetwork:
    """Return a network less the filters whose gates are removed and the gates of those that are always on."""
    gates = {site: _gate_left(gate, found[site]) for site, gate in network.gates.items()}
    left = {site: gate for site, gate in gates.items() if len(gate.excite_bias)}
    if not any(item.removed for item in found.values()):
        return replace(network, gates=left)
    kept = dict(network.kept)
    for site, gate in network.gates.items():
        before = network.kept.get(gate.group, tuple(range(len(gate.owner))))
        kept[gate.group] = tuple(before[index] for index in _left(gate, found[site].removed))
    cut = _Cut(network, subject, kept, {gate.group: seen.means[site] for site, gate in network.gates.items()})
    module, layers = cut.apply()
    assignment = _assignment(network, found)
    return replace(network, module=module, layers=layers, assignment=assignment, kept=kept, gates=left)


def _gate_left(gate: StoredGate, found: Tidy) -> StoredGate:
    place = {owner: index for index, owner in enumerate(found.gated)}
    owner = tuple(place.get(item, ALWAYS_ON) for item in gate.owner if item not in found.removed)
    rows = list(found.gated)
    return replace(gate, excite=gate.excite[rows], excite_bias=gate.excite_bias[rows], owner=owner)


class _Cut:
    """Takes channels out of a network that is quantized already: rows and columns of integers, means into biases."""

    def __init__(
        self,
        network: CompressedNetwork,
        subject: Subject,
        kept: Mapping[str, tuple[int, ...]],
        means: Mapping[str, Tensor],
    ) -> None:
        self._network, self._subject, self._kept, self._means = network, subject, kept, means
        self._plan = subject.compressor.slicer.plan
        self._masks = self._plan.mask(network.kept), self._plan.mask(kept)

    def apply(self) -> tuple[fx.GraphModule, dict[str, QuantizedLayer]]:
        """Return the module and the layers."""
        module, layers = own_leaves(self._network), dict(self._network.layers)
        smaller = self._subject.compressor.slicer.sliced(self._kept)
        own = {name for name, leaf in module.named_children() if isinstance(leaf, TRAINABLE) or name not in layers}
        for name in own:
            layer = layers.get(name)
            if layer is None:  # a norm or a slope that stands on its own
                module._modules[name] = smaller._modules[name]
                continue
            layers[name] = self._layer(layer)
            leaf: Any = copy.copy(smaller._modules[name])
            module._modules[name] = leaf
            leaf._parameters = dict(leaf._parameters)
            weight = torch.from_numpy(dequantized(layers[name]))
            if weight.dim() == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)
            leaf.weight = nn.Parameter(weight, requires_grad=False)
            leaf.bias = nn.Parameter(torch.from_numpy(layers[name].bias.copy()), requires_grad=False)
        return module, layers

    def _places(self, layer: str, side: Side) -> Tensor:
        """Return which of the rows or columns that a layer has stay."""
        dim = self._plan.dims[layer, side]
        return torch.searchsorted(dim.kept(self._masks[0]), dim.kept(self._masks[1]))

    def _layer(self, layer: QuantizedLayer) -> QuantizedLayer:
        rows, columns = self._places(layer.name, "out").numpy(), self._places(layer.name, "in").numpy()
        weights: Any = layer.weight_float if layer.weight_int is None else layer.weight_int
        if (len(rows), len(columns)) == weights.shape[:2] or weights.shape[1] == 1 < len(columns):
            return layer
        bias = (torch.from_numpy(layer.bias) + self._gone(layer)).numpy()[rows]
        cut = np.ascontiguousarray(weights[rows][:, columns])
        scale = layer.weight_scale
        if layer.weight_int is None or scale is None:
            return replace(layer, weight_float=cut, bias=bias)
        scale = scale[rows] if len(scale) == len(weights) else scale
        grid = self._network.grids.get(self._subject.graph.layer[layer.name].input)
        full = torch.from_numpy(np.array(np.broadcast_to(scale, (len(rows),))))
        bias = bias_on_grid(torch.from_numpy(bias), full, grid).numpy()
        return replace(layer, weight_int=cut, weight_scale=scale, bias=bias)

    def _gone(self, layer: QuantizedLayer) -> Tensor:
        """Return what the columns that go add to each output in the mean [out], padding aside."""
        dim = self._plan.dims[layer.name, "in"]
        before = dim.kept(self._masks[0])
        stays = torch.from_numpy(self._masks[1][dim.channel[before.numpy()]])
        weight = torch.from_numpy(dequantized(layer))
        weight = weight.reshape(*weight.shape[:2], -1).sum(2)
        return weight[:, ~stays] @ self._column_means(dim.channel[before.numpy()])[~stays]

    def _column_means(self, channels: Columns) -> Tensor:
        """Return the mean value of each of some channels (global indices), 0 where no gate stands."""
        found = torch.zeros(self._plan.total + 1)
        for group, means in self._means.items():
            own = self._network.kept.get(group, tuple(range(len(means))))
            found[self._plan.offsets[group] + torch.tensor(own)] = means.float()
        return found[torch.from_numpy(channels)]


def _check(network: CompressedNetwork, subject: Subject, rows: RoleData) -> None:
    """Raise NothingLegal where the network with its gates has no room in a limit."""
    for metric, value in limited(network, subject.graph, subject.device, rows).items():
        limit = subject.budget.limits.get(metric, math.inf)
        if value > limit:
            tail = " at the 95th percentile" if metric in ("macs", "bops") else ""
            raise NothingLegal(f"gates have no room in the limit on {metric}: {value:.6g}{tail}, at most {limit:.6g}")
