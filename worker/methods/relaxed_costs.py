"""What a network costs while channels and bits are still real numbers: differentiable, and exact where they are whole.

MACs and BOPs are products of channels and bits: for whole ones, what `app.domain.cost` counts. Stored bytes follow
straight lines between a layer's legal widths; they are rounded up forward, straight-through backward. The peak is the
largest sum of live buffers. Times and energies have padding, roofs and tables in them: they are counted at the nearest
assignment, and secants to its neighbours lead away from there. Sums are float64, exact for counts up to 2^53.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from app.domain.cost import BIAS_BYTES, SCALE_BYTES, TABLE_BYTES, count
from app.domain.device import DeviceProfile
from app.domain.graph import Layer, ModelGraph, Width
from app.domain.space import FLOAT_BITS, Assignment, SearchSpace
from worker.methods.djpq import straight_through
from worker.search.compiled import CompiledCosts, Floats, Ints

Real = float | Tensor
TINY = 1e-12


@dataclass(frozen=True)
class Soft:
    """Real-valued choices, float64, in the picture's order: channels kept [groups], bits of weights [layers] and of
    activations [activations]."""

    keep: Tensor
    weight_bits: Tensor
    activation_bits: Tensor

    @classmethod
    def of(
        cls,
        graph: ModelGraph,
        keep: Mapping[str, Real],
        weight_bits: Mapping[str, Real],
        activation_bits: Mapping[str, Real],
    ) -> Soft:
        """Gather choices by name; plain numbers stand for what is not trained."""
        return cls(
            _gathered(keep[group.id] for group in graph.groups),
            _gathered(weight_bits[layer.name] for layer in graph.layers),
            _gathered(activation_bits[item.id] for item in graph.activations),
        )

    @classmethod
    def at(cls, graph: ModelGraph, assignment: Assignment) -> Soft:
        """Return the choices of an assignment."""
        return cls.of(graph, assignment.keep, assignment.weight_bits, assignment.activation_bits)

    def flat(self) -> Tensor:
        """Return all choices in one row: groups, layers, activations."""
        return torch.cat([self.keep, self.weight_bits, self.activation_bits])


def _gathered(values: Iterable[Real]) -> Tensor:
    items = [torch.as_tensor(value, dtype=torch.float64) for value in values]
    return torch.stack(items) if items else _row([])


class RelaxedCosts:
    """Counts real-valued choices for one (graph, device, space); the space tells which widths are legal."""

    def __init__(self, graph: ModelGraph, device: DeviceProfile, space: SearchSpace) -> None:
        self.graph, self.device, self.space = graph, device, space
        self._layers = _Layers.of(graph, device, space)
        self._buffers = _Buffers.of(graph)
        self._tables = _widths(graph, (step.width for step in graph.steps))
        self._table_bytes = _row(step.table * TABLE_BYTES for step in graph.steps)

    def costs(self, soft: Soft, metrics: Iterable[str]) -> dict[str, Tensor]:
        """Return metrics of `app.domain.cost` by name: float64 numbers with gradients. Raises KeyError for others."""
        counted: dict[str, Callable[[Soft], Tensor]] = {
            "macs": lambda soft: self._layers.macs(soft).sum(),
            "bops": lambda soft: self._layers.bops(soft).sum(),
            "weight_bytes": self._weight_bytes,
            "peak_activation_bytes": self._buffers.peak,
            "latency_ms": lambda soft: self._secants.cost(soft, "latency_ms"),
            "energy_mj": lambda soft: self._secants.cost(soft, "energy_mj"),
        }
        return {name: counted[name](soft) for name in metrics}

    def _weight_bytes(self, soft: Soft) -> Tensor:
        looked_up = (self._tables.kept(soft.keep) * self._table_bytes).sum()
        return self._layers.weight_bytes(soft).sum() + looked_up

    @cached_property
    def _secants(self) -> Secants:
        return Secants(self.graph, self.device, self.space)


@dataclass(frozen=True)
class _Widths:
    """Widths as functions of the channels kept: columns per channel (widths, groups), and fixed columns."""

    terms: Tensor
    fixed: Tensor

    def kept(self, keep: Tensor) -> Tensor:
        return self.fixed + self.terms @ keep


def _widths(graph: ModelGraph, widths: Iterable[Width]) -> _Widths:
    column = {group.id: index for index, group in enumerate(graph.groups)}
    items = list(widths)
    terms = torch.zeros(len(items), len(column), dtype=torch.float64)
    for row, width in enumerate(items):
        for group, columns in width.terms:
            terms[row, column[group]] += columns
    return _Widths(terms, _row(width.fixed for width in items))


def _row(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


@dataclass(frozen=True)
class _Layers:
    """Every layer as a row. `stored` and `scaled` hold, by width from 0 to 32, bits per weight and scales per row."""

    ins: _Widths
    outs: _Widths
    source: Tensor
    columns: Tensor
    grouped: Tensor
    kernel: Tensor
    positions: Tensor
    bias: Tensor
    per_channel: Tensor
    stored: Tensor
    scaled: Tensor

    @classmethod
    def of(cls, graph: ModelGraph, device: DeviceProfile, space: SearchSpace) -> _Layers:
        site = {item.id: index for index, item in enumerate(graph.activations)}
        layers = graph.layers

        def drawn(value: Callable[[int], float]) -> Tensor:
            rows = [_straight(space.weight_bits[layer.name], value) for layer in layers]
            return torch.from_numpy(np.array(rows).reshape(len(layers), FLOAT_BITS + 1))

        return cls(
            ins=_widths(graph, (layer.in_width for layer in layers)),
            outs=_widths(graph, (layer.out_width for layer in layers)),
            source=torch.tensor([site[layer.input] for layer in layers], dtype=torch.int64),
            columns=_row(layer.weight_shape[1] for layer in layers),
            grouped=torch.tensor([_is_grouped(layer) for layer in layers], dtype=torch.bool),
            kernel=_row(layer.kernel_size for layer in layers),
            positions=_row(layer.positions for layer in layers),
            bias=_row(BIAS_BYTES * layer.bias for layer in layers),
            per_channel=torch.tensor([layer.kind in device.per_channel_weights for layer in layers], dtype=torch.bool),
            stored=drawn(device.stored_bits),
            scaled=drawn(lambda bits: float(bits < FLOAT_BITS)),
        )

    def weights(self, soft: Soft) -> Tensor:
        """Return weights per layer: a depthwise layer, or one in groups, counts its channels once."""
        columns = torch.where(self.grouped, self.columns, self.ins.kept(soft.keep))
        return self.outs.kept(soft.keep) * columns * self.kernel

    def macs(self, soft: Soft) -> Tensor:
        """Return multiply-accumulates per layer."""
        return self.weights(soft) * self.positions

    def bops(self, soft: Soft) -> Tensor:
        """Return MACs x weight bits x bits of the activation that is read, per layer."""
        return self.macs(soft) * soft.weight_bits * soft.activation_bits[self.source]

    def weight_bytes(self, soft: Soft) -> Tensor:
        """Return the bytes of packed integers, scales and bias per layer."""
        outs = self.outs.kept(soft.keep)
        packed = _ceiling(self.weights(soft) * _between(self.stored, soft.weight_bits) / 8)
        scales = torch.where(self.per_channel, outs, 1.0) * _between(self.scaled, soft.weight_bits)
        return packed + scales * SCALE_BYTES + outs * self.bias


def _is_grouped(layer: Layer) -> bool:
    return layer.groups > 1 or layer.kind == "depthwise"


def _straight(legal: Iterable[int], value: Callable[[int], float]) -> Floats:
    """Return values by width, 0 to 32: those of legal widths and of float, on straight lines between."""
    known = sorted({*legal, FLOAT_BITS})
    found: Floats = np.interp(np.arange(FLOAT_BITS + 1), known, [value(bits) for bits in known])
    return found


def _between(table: Tensor, bits: Tensor) -> Tensor:
    """Return entries of a table (rows, widths) at real-valued widths [rows], on straight lines between whole ones."""
    low = bits.detach().clamp(0, FLOAT_BITS - 1).floor()
    index = low.to(torch.int64)[:, None]
    below, above = table.gather(1, index)[:, 0], table.gather(1, index + 1)[:, 0]
    return below + (above - below) * (bits - low)


def _ceiling(values: Tensor) -> Tensor:
    return straight_through(values, values.detach().ceil())


@dataclass(frozen=True)
class _Buffers:
    """Every tensor in memory as a row; `live` (steps, buffers) tells with 1 which are alive together."""

    widths: _Widths
    site: Tensor
    positions: Tensor
    live: Tensor

    @classmethod
    def of(cls, graph: ModelGraph) -> _Buffers:
        site, items = {item.id: index for index, item in enumerate(graph.activations)}, graph.tensors
        starts = sorted({item.first_step for item in items})
        live = [[float(item.first_step <= start <= item.last_step) for item in items] for start in starts]
        return cls(
            _widths(graph, (item.width for item in items)),
            torch.tensor([site[item.activation] for item in items], dtype=torch.int64),
            _row(item.positions for item in items),
            torch.tensor(live, dtype=torch.float64),
        )

    def peak(self, soft: Soft) -> Tensor:
        elements = self.widths.kept(soft.keep) * self.positions
        return (self.live @ _ceiling(elements * soft.activation_bits[self.site] / 8)).amax()


class Secants:
    """Any metric as a plane through the nearest assignment and its neighbours, one per choice.

    At a choice's own values the neighbour is the cheaper one. Planes are kept until the nearest assignment changes.
    """

    def __init__(self, graph: ModelGraph, device: DeviceProfile, space: SearchSpace) -> None:
        self._graph, self._device = graph, device
        self._costs = CompiledCosts(graph, space, device)
        self._planes: dict[tuple[str, bytes, bytes], tuple[float, Floats]] = {}
        self._last: bytes = b""

    def cost(self, soft: Soft, metric: str) -> Tensor:
        """Return the metric's plane at real-valued choices."""
        values = soft.flat()
        state, aside = self._nearest(values.detach().numpy())
        height, slopes = self._plane(metric, state, aside)
        places = self._costs.values(state[None])[0]
        return height + (torch.from_numpy(slopes) * (values - torch.from_numpy(places))).sum()

    def _nearest(self, values: Floats) -> tuple[Ints, Ints]:
        """Return the index of the nearest choice and of its neighbour on the value's side, per coordinate."""
        choices, sizes = self._costs.choices, self._costs.sizes
        state: Ints = np.abs(choices - values[:, None]).argmin(axis=1)
        wider = values > choices[np.arange(len(state)), state]
        aside: Ints = np.where(wider, state - 1, state + 1)
        aside = np.where((aside < 0) | (aside >= sizes), 2 * state - aside, aside)
        return state, np.clip(aside, 0, sizes - 1)

    def _plane(self, metric: str, state: Ints, aside: Ints) -> tuple[float, Floats]:
        key = (metric, state.tobytes(), aside.tobytes())
        if state.tobytes() != self._last:
            self._planes.clear()
            self._last = state.tobytes()
        if key not in self._planes:
            assignment = self._costs.assignment(state)
            height = count(self._graph, assignment, self._device).value(metric)
            self._planes[key] = height, self._slopes(metric, state, aside)
        return self._planes[key]

    def _slopes(self, metric: str, state: Ints, aside: Ints) -> Floats:
        moved = np.repeat(state[None], len(state) + 1, axis=0)
        moved[np.arange(len(state)), np.arange(len(state))] = aside
        found = self._costs.costs(moved)[metric]
        rows = np.arange(len(state))
        run = self._costs.choices[rows, aside] - self._costs.choices[rows, state]
        slopes: Floats = np.divide(found[:-1] - found[-1], run, out=np.zeros(len(state)), where=run != 0)
        return slopes


@dataclass(frozen=True)
class AugmentedLagrangian:
    """Limits as penalties on c = log(cost / limit): the sum of psi max(0, c) + kappa / 2 max(0, c)^2 over limits.

    `multipliers` psi start at 0 and grow by kappa c per epoch, never below 0. The first `warm_up` epochs go without.
    """

    limits: Mapping[str, float]
    kappa: float = 1.0
    warm_up: int = 1
    epoch: int = 0
    multipliers: Mapping[str, float] = field(default_factory=dict)

    def excess(self, costs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return c by limit: positive where it is broken."""
        return {name: torch.log(costs[name].clamp_min(TINY) / limit) for name, limit in self.limits.items()}

    def penalty(self, costs: Mapping[str, Tensor]) -> Tensor:
        """Return the penalty of real-valued costs, differentiable (0 in the warm-up)."""
        total = torch.zeros((), dtype=torch.float64)
        for name, excess in self.excess(costs).items() if self.epoch >= self.warm_up else ():
            over = excess.clamp_min(0.0)
            total = total + self.multipliers.get(name, 0.0) * over + 0.5 * self.kappa * over.square()
        return total

    def after(self, costs: Mapping[str, Tensor]) -> AugmentedLagrangian:
        """Return what the next epoch goes by, given the costs this one ended with."""
        grown = dict(self.multipliers)
        for name, excess in self.excess(costs).items() if self.epoch >= self.warm_up else ():
            grown[name] = max(0.0, grown.get(name, 0.0) + self.kappa * excess.item())
        return replace(self, epoch=self.epoch + 1, multipliers=grown)
