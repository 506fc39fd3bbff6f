"""The cost formulas of `app.domain.cost`, compiled once into arrays so that many assignments are counted at a time.

A state is one choice index per coordinate. Coordinates are the channel groups, then the layers (weight bits), then the
activations, each in the picture's order. `values` below means choices rather than indices: channel counts and bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain.cost import BIAS_BYTES, SCALE_BYTES, TABLE_BYTES
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph, Width
from app.domain.roofline import fixed_ms
from app.domain.space import Assignment, SearchSpace
from worker.search.sensitivity import part_of
from worker.search.tabled import input_works, standing
from worker.search.timing import Asked, Ops, OpTimes

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

ADDITIVE = ("macs", "bops", "weight_bytes", "latency_ms", "energy_mj")
STREAMED = {"latency_ms": "streamed_latency_ms", "energy_mj": "streamed_energy_mj"}
"""With a weight cache, a time is the larger of two sums: the plain one, and this one, which streams every weight and
takes the time that the cache saves off as (negative) overhead."""
_TIMED = frozenset({"latency_ms", "energy_mj", *STREAMED.values()})
_WIDEST_BITS = 33


@dataclass(frozen=True)
class Coordinate:
    """One dimension of the search: kind (keep, weight, activation), name, and choices from the largest down."""

    kind: str
    name: str
    choices: tuple[int, ...]


class CompiledCosts:
    """Counts states of one (graph, space, device) in batches; figures equal `app.domain.cost.count`.

    With a latency table, times and energies are estimates (`is_exact` is False): see `worker.search.tabled`.
    """

    def __init__(self, graph: ModelGraph, space: SearchSpace, device: DeviceProfile) -> None:
        self.graph, self.space, self.device = graph, space, device
        self.is_exact = device.table is None
        self.coordinates = (
            *(Coordinate("keep", group.id, space.keep[group.id]) for group in graph.groups),
            *(Coordinate("weight", layer.name, space.weight_bits[layer.name]) for layer in graph.layers),
            *(Coordinate("activation", item.id, space.activation_bits[item.id]) for item in graph.activations),
        )
        self.groups, self.layers, self.sites = len(graph.groups), len(graph.layers), len(graph.activations)
        self.ops = self.layers + len(graph.steps)
        self.sizes: Ints = np.array([len(item.choices) for item in self.coordinates], dtype=np.intp)
        depth = int(self.sizes.max())
        self.choices: Floats = np.array(
            [[*item.choices, *[item.choices[-1]] * (depth - len(item.choices))] for item in self.coordinates], float
        )
        self._compile_ops()
        self._compile_device()
        self.legal = self._legal_pairs()

    def _compile_ops(self) -> None:
        """Lay out layers, then steps, as rows: widths, operands, and what a device's times depend on."""
        layers, steps, activations = self.graph.layers, self.graph.steps, self.graph.activations
        site = {item.id: index for index, item in enumerate(activations)}
        self.ins, self._ins_fixed = self._widths([*(x.in_width for x in layers), *([Width()] * len(steps))])
        self.outs, self._outs_fixed = self._widths(item.out_width for item in layers)
        step_outs, step_fixed = self._widths(item.width for item in steps)
        self.outs, self._outs_fixed = np.vstack([self.outs, step_outs]), np.append(self._outs_fixed, step_fixed)
        self.act, self._act_fixed = self._widths(item.width for item in activations)
        self.in_site: Ints = np.array([site[layer.input] for layer in layers], dtype=np.intp)
        self.out_site: Ints = np.array(
            [-1 if x.output is None else site[x.output] for x in self.graph.ops], dtype=np.intp
        )
        self.reads: Bools = np.zeros((self.ops, self.sites), dtype=np.bool_)
        self.reads[np.arange(self.layers), self.in_site] = True
        for index, step in enumerate(steps):
            self.reads[self.layers + index, [site[name] for name in step.inputs]] = True
        windows = [*(x.kernel_size for x in layers), *(x.window for x in steps)]
        self._kernel: Floats = np.array(windows, float)
        self._positions: Floats = np.array([item.positions for item in self.graph.ops], float)
        self._work: Floats = self._kernel * self._positions
        self._input_bits: Ints = self.groups + self.layers + self.in_site
        fixed = [1 if x.kind == "depthwise" else x.weight_shape[1] for x in layers] + [1] * len(steps)
        grouped = [x.groups > 1 or x.kind == "depthwise" for x in layers] + [True] * len(steps)
        self._grouped, self._per_group = np.array(grouped), np.array(fixed, float)
        self._bias = np.array([BIAS_BYTES * layer.bias for layer in layers], float)
        self._tables = np.array([step.table * TABLE_BYTES for step in steps], float)
        self._act_positions = np.array([item.positions for item in activations], float)
        self.buffer_terms, self._buf_fixed = self._widths(item.width for item in self.graph.tensors)
        self._buf_positions = np.array([item.positions for item in self.graph.tensors], float)
        self.buffer_site: Ints = np.array([site[item.activation] for item in self.graph.tensors], dtype=np.intp)

    def _compile_device(self) -> None:
        device = self.device
        self._per_channel = np.array([layer.kind in device.per_channel_weights for layer in self.graph.layers])
        self._stored = np.array([device.stored_bits(bits) for bits in range(_WIDEST_BITS)], float)
        widths = {bits for item in self.space.activation_bits.values() for bits in item}
        weights = {bits for item in self.space.weight_bits.values() for bits in item}
        rows = Ops(self.reads, self.out_site, self._kernel, self._positions)
        self._times = OpTimes(self.graph, device, rows, (weights, widths))
        works = input_works(self.graph, standing(weights, widths)) if device.table else ()
        fixed, store = fixed_ms(device, works), device.weight_store
        idle = device.power.idle_mw * 1e-3
        self.overhead = {"latency_ms": fixed, "energy_mj": idle * fixed}
        self.has_cache = store.cache_bytes > 0 and device.table is None
        self._stream_ms = 1 / (store.gbps * 1e6)
        saved = store.cache_bytes * self._stream_ms
        self.overhead["streamed_latency_ms"] = fixed - saved
        self.overhead["streamed_energy_mj"] = idle * (fixed - saved)

    def rows_of(self, metric: str) -> tuple[str, ...]:
        """Return the sums that must all stay below a limit on `metric` for it to be kept."""
        return (metric, STREAMED[metric]) if self.has_cache and metric in STREAMED else (metric,)

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
        found = [item.choices.index(part_of(assignment, item.kind)[item.name]) for item in self.coordinates]
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

    def buffer_bytes(self, values: Floats) -> Floats:
        """Return the bytes of every buffer: (n, buffers)."""
        kept, bits = values[:, : self.groups], values[:, self.groups + self.layers :][:, self.buffer_site]
        elements = (kept @ self.buffer_terms.T + self._buf_fixed) * self._buf_positions
        found: Floats = np.ceil(elements * bits / 8)
        return found

    def op_costs(self, values: Floats, metrics: Sequence[str]) -> Floats:
        """Return additive metrics per layer and step: (n, ops, metrics). Overheads per inference are not in it."""
        kept = values[:, : self.groups]
        bits = values[:, self.groups : self.groups + self.layers]
        ins, outs = kept @ self.ins.T + self._ins_fixed, kept @ self.outs.T + self._outs_fixed
        columns = np.where(self._grouped, self._per_group, ins)
        macs = outs * columns * self._work
        layers = macs[:, : self.layers]
        found: Floats = np.zeros((*macs.shape, len(metrics)))
        for index, metric in enumerate(metrics):
            if metric == "macs":
                found[:, : self.layers, index] = layers
            elif metric == "bops":
                found[:, : self.layers, index] = layers * bits * values[:, self._input_bits]
        if "weight_bytes" in metrics or not _TIMED.isdisjoint(metrics):
            stored = self._weight_bytes(layers / self._positions[: self.layers], outs, bits.astype(np.intp))
            needed = {"weight_bytes": np.hstack([stored, outs[:, self.layers :] * self._tables])}
            if not _TIMED.isdisjoint(metrics):
                sizes = self.activation_bytes(values)
                needed |= self._timed(Asked(columns, outs, macs, bits, values[:, -self.sites :], kept), sizes, stored)
            for index, metric in enumerate(metrics):
                if metric in needed:
                    found[:, :, index] = needed[metric]
        return found

    def _of_layers(self, values: Floats) -> Floats:
        """Return values per layer, followed by zeros for the steps."""
        return np.hstack([values, np.zeros((len(values), self.ops - self.layers))])

    def _weight_bytes(self, weights: Floats, outs: Floats, bits: Ints) -> Floats:
        rows = outs[:, : self.layers]
        scales = np.where(bits >= 32, 0.0, np.where(self._per_channel, rows, 1.0)) * SCALE_BYTES
        found: Floats = np.ceil(weights * self._stored[bits] / 8) + scales + rows * self._bias
        return found

    def _timed(self, asked: Asked, sizes: Floats, stored: Floats) -> dict[str, Floats]:
        """Return latency and energy per operation, plain and with every weight streamed."""
        latency, energy = self._times.of(asked, sizes, stored)
        streamed = self._of_layers(stored * self._stream_ms)
        idle = self.device.power.idle_mw * 1e-3
        return {
            "latency_ms": latency,
            "energy_mj": energy,
            "streamed_latency_ms": latency + streamed,
            "streamed_energy_mj": energy + idle * streamed,
        }

    def live_sets(self) -> Floats:
        """Return which buffers are alive together: (steps, buffers) of 0/1, dominated steps left out."""
        spans = [(item.first_step, item.last_step) for item in self.graph.tensors]
        sets = {frozenset(i for i, (a, b) in enumerate(spans) if a <= start <= b) for start, _ in spans}
        maximal = [item for item in sets if not any(item < other for other in sets)]
        rows = [[float(index in item) for index in range(len(spans))] for item in sorted(maximal, key=sorted)]
        return np.array(rows)

    def costs(self, states: Ints) -> dict[str, Floats]:
        """Return every metric of `app.domain.cost` for states (n, coordinates): arrays (n,)."""
        values = self.values(states)
        names = [*ADDITIVE, *STREAMED.values()]
        sums = self.op_costs(values, names).sum(axis=1)
        total = {name: sums[:, index] + self.overhead.get(name, 0.0) for index, name in enumerate(names)}
        found = {metric: np.max([total[row] for row in self.rows_of(metric)], axis=0) for metric in ADDITIVE}
        found["peak_activation_bytes"] = (self.buffer_bytes(values) @ self.live_sets().T).max(axis=1)
        return found
