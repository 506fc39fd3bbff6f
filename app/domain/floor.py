"""The least any assignment of a space can cost: a bound below every metric, whether or not one assignment reaches all.

Fewer channels never cost more at given bits, but fewer bits may: a boundary of precisions, a wider channel multiple, a
runtime that is slower at fewer bits. So every operation takes the cheapest of its own choices of bits, for each metric
by itself, boundaries left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from app.domain.cost import Costs, LayerCost, OpCost, StepCost, layer_cost, peak_activation_bytes, step_cost
from app.domain.device import DeviceProfile
from app.domain.graph import Layer, ModelGraph, Step
from app.domain.kernels import arithmetic, layer_work
from app.domain.latency import BLOCK, QUAD, LatencyTable, padded
from app.domain.roofline import Setting, crossings, fixed_ms, streamed_ms
from app.domain.space import FLOAT_BITS, Assignment, SearchSpace, cheapest


@dataclass(frozen=True)
class Choices:
    """What every operation costs under each of its own choices of bits, at the fewest channels and boundaries left out.

    Layers carry their pair; `steps` give the bits of `site` (the activation they compute in, None: none) one by one.
    `device` is the one that was counted for: without boundaries, a latency table, or, beside a table, idle power.
    """

    layers: tuple[tuple[LayerCost, ...], ...]
    steps: tuple[tuple[StepCost, ...], ...]
    sites: tuple[str | None, ...]
    device: DeviceProfile

    @property
    def ops(self) -> tuple[Sequence[OpCost], ...]:
        """Return the choices of layers and steps."""
        return (*self.layers, *self.steps)

    @property
    def stored(self) -> int:
        """Return the fewest bytes that the layers' weights can take."""
        return sum(min(item.weight_bytes for item in options) for options in self.layers)

    @property
    def fixed_ms(self) -> float:
        """Return the time that belongs to no operation, at least."""
        return fixed_ms(self.device) + streamed_ms(self.stored, self.device)


def choices(graph: ModelGraph, space: SearchSpace, device: DeviceProfile) -> Choices:
    """Count every operation of a network under each of its own choices."""
    bottom = cheapest(graph, space)
    over = replace(device.overheads, boundary_us=0.0, boundary_ns_per_element=0.0)
    plain = replace(device, overheads=over, table=None)
    if device.table is not None:
        plain = replace(plain, power=replace(device.power, idle_mw=0.0))
    around = Setting(crossings(graph, plain), {})
    return Choices(
        tuple(tuple(_layer_choices(graph, layer, (space, bottom), plain, around)) for layer in graph.layers),
        tuple(tuple(_step_choices(graph, step, (space, bottom), plain, around)) for step in graph.steps),
        tuple(_site(step) for step in graph.steps),
        plain,
    )


def least(graph: ModelGraph, space: SearchSpace, device: DeviceProfile) -> Costs:
    """Return a lower bound of each metric over all legal assignments of `space`."""
    bottom, found = cheapest(graph, space), choices(graph, space, device)
    latency = found.fixed_ms + sum(min(item.latency_ms for item in options) for options in found.ops)
    energy = found.device.power.idle_mw * found.fixed_ms * 1e-3
    energy += sum(min(item.energy_mj for item in options) for options in found.ops)
    if device.table is not None:
        latency = _tabled(graph, space, bottom, device.table)
        energy += device.power.idle_mw * latency * 1e-3
    return Costs(
        macs=sum(min(item.macs for item in options) for options in found.layers),
        bops=sum(min(item.bops for item in options) for options in found.layers),
        weight_bytes=found.stored + sum(options[0].weight_bytes for options in found.steps),
        peak_activation_bytes=peak_activation_bytes(graph, bottom),
        latency_ms=latency,
        energy_mj=energy,
    )


def _layer_choices(
    graph: ModelGraph,
    layer: Layer,
    choices: tuple[SearchSpace, Assignment],
    device: DeviceProfile,
    around: Setting,
) -> Iterable[LayerCost]:
    space, bottom = choices
    for w in space.weight_bits[layer.name]:
        for a in space.activation_bits[layer.input]:
            if (w, a) in space.pairs[layer.name]:
                yield layer_cost(graph, layer, _with(bottom, layer.input, a, {layer.name: w}), device, around)


def _step_choices(
    graph: ModelGraph,
    step: Step,
    choices: tuple[SearchSpace, Assignment],
    device: DeviceProfile,
    around: Setting,
) -> Iterable[StepCost]:
    space, bottom = choices
    site = _site(step)
    if site is None:
        yield step_cost(graph, step, bottom, device, around)
        return
    for a in space.activation_bits[site]:
        yield step_cost(graph, step, _with(bottom, site, a, {}), device, around)


def _site(step: Step) -> str | None:
    """Return the activation whose bits a step computes in: its first input, else its output."""
    return step.inputs[0] if step.inputs else step.output


def _tabled(graph: ModelGraph, space: SearchSpace, bottom: Assignment, table: LatencyTable) -> float:
    """Return a bound below a latency table's times: every layer's own kernel in its fastest arithmetic and alignment.

    Within an alignment times grow with the channels, so that the next multiples above the narrowest are tried.
    """
    total = table.overhead_ms
    for layer in graph.layers:
        ins, outs = layer.in_width.kept(bottom.keep), layer.out_width.kept(bottom.keep)
        written = (FLOAT_BITS,) if layer.output is None else space.activation_bits[layer.output]
        ways = {arithmetic(layer.kind, w, a, out) for w, a in space.pairs[layer.name] for out in written}
        works = (layer_work(layer, i, o, way) for way in ways for i in _aligned(ins) for o in _aligned(outs))
        total += min(table.kernel_ms(work) for work in works)
    return total


def _aligned(channels: int) -> set[int]:
    return {channels, padded(channels, QUAD), padded(channels, BLOCK), max(BLOCK, padded(channels, QUAD))}


def _with(bottom: Assignment, site: str, bits: int, weights: Mapping[str, int]) -> Assignment:
    return replace(
        bottom,
        activation_bits={**bottom.activation_bits, site: bits},
        weight_bits={**bottom.weight_bits, **weights},
    )
