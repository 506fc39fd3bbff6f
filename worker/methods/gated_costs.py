"""What gates leave of a network's arithmetic, sample by sample, and what they cost themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from app.domain.cost import count
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph, Width
from app.domain.latency import Work
from app.domain.roofline import Load, energy_mj, time_of
from app.domain.space import FLOAT_BITS
from worker.data import RoleData
from worker.methods.gating import Spread
from worker.quant.gates import StoredGate
from worker.quant.network import CompressedNetwork

BATCH = 256
BYTES = 4
Counts = Mapping[str, int | Tensor]
"""How many channels of each group run: a number, or one per sample [n]."""


@dataclass(frozen=True)
class GatedCosts:
    """MACs of a network per sample, whose groups run some of their filters; gates count theirs and what they pool.

    `dense` is what the network needs without gates. `kept` are the channels that each group has; `bits` by layer the
    product of its weights' and its inputs' bits, for BOPs; gates compute in float32.
    """

    graph: ModelGraph
    kept: Mapping[str, int]
    overhead: int
    bits: Mapping[str, int]

    @classmethod
    def of(cls, graph: ModelGraph, network: CompressedNetwork) -> GatedCosts:
        """Return the costs of a network with its gates."""
        kept, overhead = dict(network.assignment.keep), 0
        for gate in network.gates.values():
            source = graph.activation[graph.layer[graph.group[gate.group].producers[0]].input]
            overhead += gate.macs + source.width.kept(kept) * source.positions
        chosen = network.assignment
        bits = {
            layer.name: chosen.weight_bits[layer.name] * chosen.activation_bits[layer.input] for layer in graph.layers
        }
        return cls(graph, kept, overhead, bits)

    @property
    def dense(self) -> int:
        """MACs where every filter runs and nothing decides."""
        return int(self._layers(self.kept))

    def macs(self, active: Counts) -> Tensor:
        """Return MACs [n] where `active` filters run [n] of some groups, gates included (differentiable)."""
        return torch.as_tensor(self._layers({**self.kept, **active}) + self.overhead)

    def bops(self, active: Counts) -> Tensor:
        """Return BOPs [n] where `active` filters run [n] of some groups, gates included."""
        return torch.as_tensor(self._layers({**self.kept, **active}, self.bits) + self.overhead * FLOAT_BITS**2)

    def _layers(self, counts: Counts, factors: Mapping[str, int] | None = None) -> int | Tensor:
        total: int | Tensor = 0
        for layer in self.graph.layers:
            outs, ins = _columns(layer.out_width, counts), _columns(layer.in_width, counts)
            grouped = layer.groups > 1 or layer.kind == "depthwise"
            factor = 1 if factors is None else factors[layer.name]
            total += outs * (layer.weight_shape[1] if grouped else ins) * (layer.kernel_size * layer.positions * factor)
        return total


def _columns(width: Width, counts: Counts) -> int | Tensor:
    return width.fixed + sum(counts[group] * columns for group, columns in width.terms)


def running(network: CompressedNetwork, rows: RoleData) -> dict[str, Tensor]:
    """Return by gated group how many filters run for each row [n]."""
    found: dict[str, list[Tensor]] = {gate.group: [] for gate in network.gates.values()}
    for inputs in rows.batches(BATCH):
        for site, mask in network.masks(*inputs).items():
            found[network.gates[site].group].append(mask.sum(1).double())
    return {group: torch.cat(parts) for group, parts in found.items()}


def spread_of(network: CompressedNetwork, costs: GatedCosts, rows: RoleData) -> Spread:
    """Return the spread of a network's MACs over rows."""
    return Spread.of(costs.macs(running(network, rows)).expand(len(rows)))


def spreads(network: CompressedNetwork, graph: ModelGraph, rows: RoleData) -> dict[str, Spread]:
    """Return the spread over rows of what gates change from one to the next: MACs and BOPs."""
    costs, active = GatedCosts.of(graph, network), running(network, rows)
    found = {"macs": costs.macs(active), "bops": costs.bops(active)}
    return {metric: Spread.of(values.expand(len(rows))) for metric, values in found.items()}


def limited(network: CompressedNetwork, graph: ModelGraph, device: DeviceProfile, rows: RoleData) -> dict[str, float]:
    """Return the costs of a gated network that limits bind, by metric.

    MACs and BOPs at the 95th percentile over rows. Weights and activations are stored whole, and time and energy are
    those of all filters, which the files compute or gather; what the gates take themselves comes on top.
    """
    whole, own = count(graph, network.assignment, device), _own(network, graph, device)
    found = {metric: whole.value(metric) + own[metric] for metric in own}
    tails = {metric: spread.p95 for metric, spread in spreads(network, graph, rows).items()}
    return {"peak_activation_bytes": float(whole.peak_activation_bytes), **found, **tails}


def _own(network: CompressedNetwork, graph: ModelGraph, device: DeviceProfile) -> dict[str, float]:
    """Return what gates take beside the filters: bytes, modelled milliseconds and millijoules."""
    found = {"weight_bytes": 0.0, "latency_ms": 0.0, "energy_mj": 0.0}
    for gate in network.gates.values():
        found["weight_bytes"] += gate.bytes
        source = graph.activation[graph.layer[graph.group[gate.group].producers[0]].input]
        for load in loads(gate, source.positions):
            took = time_of(load, device).total
            found["latency_ms"] += took
            found["energy_mj"] += energy_mj(load, took, device)
    return found


def loads(gate: StoredGate, positions: int) -> tuple[Load, ...]:
    """Return what a gate asks of a device: the mean over `positions` and two layers, in float32."""
    (hidden, channels), gates = gate.squeeze.shape, len(gate.excite_bias)
    moved = BYTES * channels * (positions + 1)
    pooling = _load("mean", channels * positions, moved, 0, Work("mean", "float", channels, channels, positions))
    layers = [
        _load("linear", ins * outs, BYTES * (ins + outs), BYTES * outs * (ins + 1), Work("linear", "float", ins, outs))
        for ins, outs in ((channels, hidden), (hidden, gates))
    ]
    return (pooling, *layers)


def _load(kind: str, macs: int, moved: int, stored: int, work: Work) -> Load:
    return Load(kind, (FLOAT_BITS, FLOAT_BITS), macs, macs, moved, stored, works=(work,))
