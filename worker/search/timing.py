"""Time and energy of layers and steps in arrays: the formulas of `app.domain.roofline` for many assignments at once.

With a latency table the time is an estimate, see `worker.search.tabled`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain.cost import TABLE_BYTES
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.roofline import crossings, mac_pj, weight_rate
from app.domain.space import FLOAT_BITS
from worker.search.tabled import TableTimes, standing

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

_BITS = 33


@dataclass(frozen=True)
class Ops:
    """Layers, then steps: which sites each reads (ops, sites), which it writes (-1: none), windows and positions."""

    reads: Bools
    out_site: Ints
    kernel: Floats
    positions: Floats


@dataclass(frozen=True)
class Asked:
    """What n assignments ask: columns per output, outputs and MACs (n, ops), weight bits (n, layers), activation bits
    (n, sites), channels kept (n, groups)."""

    columns: Floats
    outs: Floats
    macs: Floats
    weight_bits: Floats
    activation_bits: Floats
    kept: Floats


class OpTimes:
    """Times every operation of one graph on one device; `widths` are the weight and activation bits that occur."""

    def __init__(self, graph: ModelGraph, device: DeviceProfile, ops: Ops, widths: tuple[set[int], set[int]]) -> None:
        self._graph, self._device, self._ops = graph, device, ops
        self._layers = len(graph.layers)
        self._table = None if device.table is None else TableTimes(graph, device.table, standing(*widths))
        items = graph.ops
        self._steps = np.arange(len(items)) >= self._layers
        self._kinds = sorted({item.kind for item in items})
        self._kind: Ints = np.array([self._kinds.index(item.kind) for item in items], dtype=np.intp)
        self._first = self._read_first()
        self._looked_up = np.array([item.table > 0 for item in graph.steps], float)
        self._depthwise = np.array([item.kind == "depthwise" for item in items])
        self._multiple = np.array([device.channel_multiple_for(bits) for bits in range(_BITS)], float)
        self._falls = np.array([item.kind in device.fallback.ops for item in items])
        moves = crossings(graph, device)
        self._crossing_ms = np.array([moves.get(item.name, 0) for item in items]) * device.fallback.boundary_us / 1e3
        self._tabulate(widths[0] | widths[1] | {FLOAT_BITS}, widths[1] | {FLOAT_BITS})

    def _read_first(self) -> Ints:
        """Return the site whose bits an operation computes in: its first input, else its output (-1: float)."""
        site = {item.id: index for index, item in enumerate(self._graph.activations)}
        names = [layer.input for layer in self._graph.layers]
        found: Ints = self._ops.out_site.copy()
        found[: self._layers] = [site[name] for name in names]
        for index, step in enumerate(self._graph.steps, self._layers):
            if step.inputs:
                found[index] = site[step.inputs[0]]
        return found

    def _tabulate(self, weights: set[int], activations: set[int]) -> None:
        """Note MACs per millisecond and picojoules per MAC of every pair of bits."""
        self._rate = np.ones((len(self._kinds), _BITS, _BITS))
        self._pj = np.zeros((_BITS, _BITS))
        for w in weights:
            for a in activations:
                entry = self._device.throughput(w, a)
                self._rate[:, w, a] = [entry.rate(kind) / 1e3 for kind in self._kinds]
                self._pj[w, a] = mac_pj((w, a), self._device)

    def of(self, asked: Asked, sizes: Floats, stored: Floats) -> tuple[Floats, Floats]:
        """Return milliseconds and millijoules per operation: (n, ops) each. `sizes` are bytes of activations
        (n, sites), `stored` those of the layers' weights (n, layers)."""
        read, written = self._bits(asked)
        weight_bits = np.hstack([asked.weight_bits.astype(np.intp), read[:, self._layers :]])
        elements = asked.outs * self._ops.positions
        moved, weights = self._bytes(elements, written, sizes, stored)
        modelled = self._modelled(asked, (weight_bits, read), (moved, weights))
        modelled += self._boundaries(asked, written, elements)
        host = asked.macs / (self._device.fallback.gmacs * 1e6) + self._crossing_ms
        latency = np.where(self._falls, host, modelled)
        if self._table is not None:
            latency = self._table.of(asked.kept, weight_bits, read, written)
        power = self._device.power
        joules = self._pj[weight_bits, read] * asked.macs + power.pj_per_byte * moved + power.weight_pj * weights
        return latency, joules * 1e-9 + power.idle_mw * latency * 1e-3

    def _bits(self, asked: Asked) -> tuple[Ints, Ints]:
        """Return the bits each operation reads first (what it writes, where it reads nothing) and those it writes."""
        written = np.where(self._ops.out_site >= 0, asked.activation_bits[:, self._ops.out_site], FLOAT_BITS)
        read = np.where(self._first >= 0, asked.activation_bits[:, self._first], FLOAT_BITS)
        return read.astype(np.intp), written.astype(np.intp)

    def _bytes(self, elements: Floats, written: Ints, sizes: Floats, stored: Floats) -> tuple[Floats, Floats]:
        """Return the bytes of activations and of weights that each operation moves."""
        site = self._ops.out_site
        own = np.ceil(elements * written / 8)
        out = np.where(self._steps, own, np.where(site >= 0, sizes[:, site], 0.0))
        looked_up = elements[:, self._layers :] * self._looked_up * TABLE_BYTES
        return sizes @ self._ops.reads.T.astype(float) + out, np.hstack([stored, looked_up])

    def _modelled(self, asked: Asked, bits: tuple[Ints, Ints], moved: tuple[Floats, Floats]) -> Floats:
        device, over = self._device, self._device.overheads
        multiple = np.where(self._steps, 1.0, self._multiple[bits[0]])
        rows = np.ceil(asked.outs / multiple) * multiple
        columns = np.ceil(np.maximum(asked.columns, 1.0) / multiple) * multiple
        columns = np.where(self._depthwise, 1.0, columns)
        macs = rows * columns * self._ops.kernel * self._ops.positions
        compute = macs / self._rate[self._kind, bits[0], bits[1]]
        waiting = moved[0] / (device.activation_pool.gbps * 1e6) + moved[1] / weight_rate(device)
        requant = np.where(self._steps, 0.0, rows * self._ops.positions) * over.requant_ns_per_element * 1e-6
        found: Floats = np.maximum(compute, waiting) + requant + over.per_layer_us / 1e3
        return found

    def _boundaries(self, asked: Asked, written: Ints, elements: Floats) -> Floats:
        """Return the time spent where an operation writes other bits than it reads."""
        over = self._device.overheads
        if not over.boundary_us and not over.boundary_ns_per_element:
            return np.zeros_like(elements)
        differs = asked.activation_bits[:, None, :] != written[:, :, None]
        converts = (differs & self._ops.reads).any(axis=2)
        time: Floats = over.boundary_us / 1e3 + elements * over.boundary_ns_per_element * 1e-6
        return np.where(converts, time, 0.0)
