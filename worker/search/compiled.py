"""The cost formulas of `app.domain.cost`, compiled once into arrays so that many assignments are counted at a time.

A state is one choice index per coordinate. Coordinates are the channel groups, then the layers (weight bits), then the
activations, each in the picture's order. `values` below means choices rather than indices: channel counts and bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.cost import BIAS_BYTES, SCALE_BYTES
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph, Width
from app.domain.space import Assignment, SearchSpace

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

ADDITIVE = ("macs", "bops", "weight_bytes", "latency_ms", "energy_mj")
_WIDEST_BITS = 33
_KINDS = ("conv", "depthwise", "linear")


@dataclass(frozen=True)
class Coordinate:
    """One dimension of the search: kind (keep, weight, activation), name, and choices from the largest down."""

    kind: str
    name: str
    choices: tuple[int, ...]


class CompiledCosts:
    """Counts states of one (graph, space, device) in batches; figures equal `app.domain.cost.count`."""

    def __init__(self, graph: ModelGraph, space: SearchSpace, device: DeviceProfile) -> None:
        self.graph, self.space, self.device = graph, space, device
        self.coordinates = (
            *(Coordinate("keep", group.id, space.keep[group.id]) for group in graph.groups),
            *(Coordinate("weight", layer.name, space.weight_bits[layer.name]) for layer in graph.layers),
            *(Coordinate("activation", item.id, space.activation_bits[item.id]) for item in graph.activations),
        )
        self.groups, self.layers, self.sites = len(graph.groups), len(graph.layers), len(graph.activations)
        self.sizes: Ints = np.array([len(item.choices) for item in self.coordinates], dtype=np.intp)
        depth = int(self.sizes.max())
        self.choices: Floats = np.array(
            [[*item.choices, *[item.choices[-1]] * (depth - len(item.choices))] for item in self.coordinates], float
        )
        self._compile_layers()
        self._compile_device()
        self.legal = self._legal_pairs()

    def _compile_layers(self) -> None:
        layers, activations = self.graph.layers, self.graph.activations
        site = {item.id: index for index, item in enumerate(activations)}
        self.ins, self._ins_fixed = self._widths(layer.in_width for layer in layers)
        self.outs, self._outs_fixed = self._widths(layer.out_width for layer in layers)
        self.act, self._act_fixed = self._widths(item.width for item in activations)
        self.in_site: Ints = np.array([site[layer.input] for layer in layers], dtype=np.intp)
        self.out_site: Ints = np.array([-1 if x.output is None else site[x.output] for x in layers], dtype=np.intp)
        self._has_out = (self.out_site >= 0).astype(float)
        self._kernel = np.array([layer.kernel_size for layer in layers], float)
        self._positions = np.array([layer.positions for layer in layers], float)
        self._grouped = np.array([layer.groups > 1 or layer.kind == "depthwise" for layer in layers])
        self._per_group = np.array([layer.weight_shape[1] for layer in layers], float)
        self._depthwise = np.array([layer.kind == "depthwise" for layer in layers])
        self._bias = np.array([BIAS_BYTES * layer.bias for layer in layers], float)
        self._act_positions = np.array([item.positions for item in activations], float)
        self._kind: Ints = np.array([_KINDS.index(layer.kind) for layer in layers], dtype=np.intp)

    def _compile_device(self) -> None:
        device = self.device
        self._per_channel = np.array([layer.kind in device.per_channel_weights for layer in self.graph.layers])
        self._stored = np.array([device.stored_bits(bits) for bits in range(_WIDEST_BITS)], float)
        self._multiple = np.array([device.channel_multiple_for(bits) for bits in range(_WIDEST_BITS)], float)
        self._rate = np.ones((len(_KINDS), _WIDEST_BITS, _WIDEST_BITS))
        self._pj = np.zeros((_WIDEST_BITS, _WIDEST_BITS))
        weight_bits = sorted({bits for item in self.space.weight_bits.values() for bits in item})
        for a in sorted({bits for item in self.space.activation_bits.values() for bits in item}):
            for w in weight_bits:
                entry = device.throughput(w, a)
                self._rate[:, w, a] = [entry.rate(kind) for kind in _KINDS]
                self._pj[w, a] = device.power.pj_per_mac.get(f"{w}x{a}", 0.0)
        self._bandwidth = min(device.activation_pool.gbps, device.weight_store.gbps) * 1e9
        self.overhead = {"latency_ms": device.overheads.per_inference_us / 1e3}

    def _legal_pairs(self) -> Bools:
        """Return which (weight choice, input activation choice) each layer accepts: (layers, depth, depth)."""
        depth = self.choices.shape[1]
        legal = np.zeros((self.layers, depth, depth), dtype=np.bool_)
        for index, layer in enumerate(self.graph.layers):
            for w, weight in enumerate(self.space.weight_bits[layer.name]):
                for a, activation in enumerate(self.space.activation_bits[layer.input]):
                    legal[index, w, a] = (weight, activation) in self.space.pairs[layer.name]
        return legal

    def _widths(self, widths: Iterable[Width]) -> tuple[Floats, Floats]:
        """Return columns per kept channel as (widths, groups), and the fixed columns."""
        row = {group.id: index for index, group in enumerate(self.graph.groups)}
        items = list(widths)
        terms = np.zeros((len(items), self.groups))
        for index, width in enumerate(items):
            for group, columns in width.terms:
                terms[index, row[group]] += columns
        return terms, np.array([width.fixed for width in items], float)

    def values(self, states: Ints) -> Floats:
        """Return channel counts and bits of states: (n, coordinates)."""
        return self.choices[np.arange(len(self.coordinates)), states]

    def state(self, assignment: Assignment) -> Ints:
        """Return the choice indices of an assignment. Raises ValueError for a choice outside the space."""
        parts = {"keep": assignment.keep, "weight": assignment.weight_bits, "activation": assignment.activation_bits}
        found = [item.choices.index(parts[item.kind][item.name]) for item in self.coordinates]
        return np.array(found, dtype=np.intp)

    def assignment(self, state: Ints) -> Assignment:
        """Return the assignment of one state."""
        parts: dict[str, dict[str, int]] = {"keep": {}, "weight": {}, "activation": {}}
        for item, index in zip(self.coordinates, state, strict=True):
            parts[item.kind][item.name] = item.choices[int(index)]
        return Assignment(parts["keep"], parts["weight"], parts["activation"])

    def is_legal(self, states: Ints) -> Bools:
        """Tell for each state (n, coordinates) whether every layer's bit pair is legal."""
        weights = states[:, self.groups : self.groups + self.layers]
        inputs = states[:, self.groups + self.layers :][:, self.in_site]
        accepted = self.legal[np.arange(self.layers), weights, inputs]
        found: Bools = np.logical_and.reduce(accepted, axis=1, dtype=np.bool_)
        return found

    def activation_bytes(self, values: Floats) -> Floats:
        """Return the bytes of every activation: (n, activations)."""
        kept, bits = values[:, : self.groups], values[:, self.groups + self.layers :]
        elements = (kept @ self.act.T + self._act_fixed) * self._act_positions
        found: Floats = np.ceil(elements * bits / 8)
        return found

    def layer_costs(self, values: Floats, metrics: Sequence[str]) -> Floats:
        """Return additive metrics per layer: (n, layers, metrics). Overheads per inference are not in it."""
        kept = values[:, : self.groups]
        bits = values[:, self.groups : self.groups + self.layers]
        inputs = values[:, self.groups + self.layers :][:, self.in_site]
        ins, outs = kept @ self.ins.T + self._ins_fixed, kept @ self.outs.T + self._outs_fixed
        columns = np.where(self._grouped, self._per_group, ins)
        weights = outs * columns * self._kernel
        macs = weights * self._positions
        needed: dict[str, Any] = {"macs": macs, "bops": macs * bits * inputs if "bops" in metrics else None}
        if any(metric in metrics for metric in ("weight_bytes", "latency_ms", "energy_mj")):
            pair = (bits.astype(np.intp), inputs.astype(np.intp))
            needed["weight_bytes"] = self._weight_bytes(weights, outs, pair[0])
            if "latency_ms" in metrics or "energy_mj" in metrics:
                moved = needed["weight_bytes"] + self._traffic(values)
                needed["latency_ms"] = self._latency(outs, columns, pair, moved)
                needed["energy_mj"] = (self._pj[pair] * macs + self.device.power.pj_per_byte * moved) * 1e-9
        return np.stack([needed[metric] for metric in metrics], axis=2) if metrics else np.zeros((*macs.shape, 0))

    def _weight_bytes(self, weights: Floats, outs: Floats, bits: Ints) -> Floats:
        scales = np.where(bits >= 32, 0.0, np.where(self._per_channel, outs, 1.0)) * SCALE_BYTES
        found: Floats = np.ceil(weights * self._stored[bits] / 8) + scales + outs * self._bias
        return found

    def _traffic(self, values: Floats) -> Floats:
        """Return the activation bytes each layer reads and writes: (n, layers)."""
        sizes = self.activation_bytes(values)
        found: Floats = sizes[:, self.in_site] + sizes[:, self.out_site] * self._has_out
        return found

    def _latency(self, outs: Floats, columns: Floats, pair: tuple[Ints, Ints], moved: Floats) -> Floats:
        multiple, over = self._multiple[pair[0]], self.device.overheads
        rows = np.ceil(outs / multiple) * multiple
        padded = np.where(self._depthwise, 1.0, np.ceil(np.maximum(columns, 1.0) / multiple) * multiple)
        compute = rows * padded * self._kernel * self._positions / self._rate[self._kind, pair[0], pair[1]]
        requant = rows * self._positions * over.requant_ns_per_element * 1e-9
        busy: Floats = np.maximum(compute, moved / self._bandwidth) + requant
        return busy * 1e3 + over.per_layer_us / 1e3

    def live_sets(self) -> Floats:
        """Return which activations are alive together: (steps, activations) of 0/1, dominated steps left out."""
        spans = [(item.first_step, item.last_step) for item in self.graph.activations]
        sets = {frozenset(i for i, (a, b) in enumerate(spans) if a <= start <= b) for start, _ in spans}
        maximal = [item for item in sets if not any(item < other for other in sets)]
        rows = [[float(index in item) for index in range(self.sites)] for item in sorted(maximal, key=sorted)]
        return np.array(rows)

    def costs(self, states: Ints) -> dict[str, Floats]:
        """Return every metric of `app.domain.cost` for states (n, coordinates): arrays (n,)."""
        values = self.values(states)
        sums = self.layer_costs(values, ADDITIVE).sum(axis=1)
        found = {metric: sums[:, index] + self.overhead.get(metric, 0.0) for index, metric in enumerate(ADDITIVE)}
        found["peak_activation_bytes"] = (self.activation_bytes(values) @ self.live_sets().T).max(axis=1)
        return found
