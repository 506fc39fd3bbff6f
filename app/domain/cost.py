"""What an assignment costs: MACs, BOPs, weight bytes, peak activation bytes, latency and energy.

Pure functions of (graph, assignment, device). BOPs = MACs x weight bits x activation bits of the producer, the network
input counted at the device's input width (Bayesian Bits and DJPQ count so). Channels are padded to the device's
multiple for time, never for MACs, BOPs or bytes. Steps between the layers take time and energy; only embedding tables,
which stay float32, add to the weight bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from app.domain.device import DeviceProfile
from app.domain.graph import Activation, Layer, ModelGraph, Step
from app.domain.latency import padded
from app.domain.roofline import (
    Load,
    Parts,
    Setting,
    added,
    energy_mj,
    fixed_ms,
    setting,
    streamed_ms,
    time_of,
)
from app.domain.space import FLOAT_BITS, Assignment

Metric = Literal["macs", "bops", "weight_bytes", "peak_activation_bytes", "latency_ms", "energy_mj"]
METRICS: tuple[Metric, ...] = get_args(Metric)

SCALE_BYTES = 4
BIAS_BYTES = 4
TABLE_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class OpCost:
    """What layers and steps have in common: stored bytes, modelled time in parts (milliseconds), energy."""

    name: str
    kind: str
    weight_bytes: int
    parts: Parts
    energy_mj: float

    @property
    def latency_ms(self) -> float:
        """Return the sum of the parts."""
        return self.parts.total


@dataclass(frozen=True, kw_only=True)
class LayerCost(OpCost):
    """Cost of one layer: also widths after removal, bits of its operands, MACs and BOPs."""

    in_channels: int
    out_channels: int
    weight_bits: int
    input_bits: int
    macs: int
    bops: int


@dataclass(frozen=True, kw_only=True)
class StepCost(OpCost):
    """Cost of one step between the layers: also the elements of its result; the bytes are those of its table."""

    elements: int


@dataclass(frozen=True)
class Costs:
    """Cost of a whole network at batch 1."""

    macs: int
    bops: int
    weight_bytes: int
    peak_activation_bytes: int
    latency_ms: float
    energy_mj: float

    def value(self, metric: str) -> float:
        """Return one metric by name."""
        return float(getattr(self, metric))

    def to_json(self) -> dict[str, float]:
        """Return every metric by name."""
        return {metric: getattr(self, metric) for metric in METRICS}

    @classmethod
    def from_json(cls, data: Mapping[str, float]) -> Costs:
        """Rebuild what `to_json` wrote."""
        return cls(**{metric: data[metric] for metric in METRICS})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Breakdown:
    """The cost of every layer and step; `network` is the time that belongs to none of them."""

    layers: tuple[LayerCost, ...]
    steps: tuple[StepCost, ...]
    network: Parts

    @property
    def ops(self) -> tuple[OpCost, ...]:
        """Return layers and steps."""
        return (*self.layers, *self.steps)

    @property
    def parts(self) -> Parts:
        """Return the whole network's time by cause; its total is the latency."""
        return added((self.network, *(item.parts for item in self.ops)))


def count(graph: ModelGraph, assignment: Assignment, device: DeviceProfile) -> Costs:
    """Count everything for one assignment."""
    found = breakdown(graph, assignment, device)
    waiting = device.power.idle_mw * found.network.total * 1e-3
    return Costs(
        macs=sum(layer.macs for layer in found.layers),
        bops=sum(layer.bops for layer in found.layers),
        weight_bytes=sum(op.weight_bytes for op in found.ops),
        peak_activation_bytes=peak_activation_bytes(graph, assignment),
        latency_ms=found.network.total + sum(op.latency_ms for op in found.ops),
        energy_mj=waiting + sum(op.energy_mj for op in found.ops),
    )


def breakdown(graph: ModelGraph, assignment: Assignment, device: DeviceProfile) -> Breakdown:
    """Count every layer and step, each with its time in parts."""
    around = setting(graph, assignment, device)
    layers = tuple(layer_cost(graph, layer, assignment, device, around) for layer in graph.layers)
    steps = tuple(step_cost(graph, step, assignment, device, around) for step in graph.steps)
    streamed = streamed_ms(sum(layer.weight_bytes for layer in layers), device)
    return Breakdown(layers, steps, Parts(memory=streamed, overhead=fixed_ms(device, around.kernels.get("", ()))))


def layer_costs(graph: ModelGraph, assignment: Assignment, device: DeviceProfile) -> tuple[LayerCost, ...]:
    """Return the cost of each layer in execution order."""
    return breakdown(graph, assignment, device).layers


def layer_cost(
    graph: ModelGraph, layer: Layer, assignment: Assignment, device: DeviceProfile, around: Setting
) -> LayerCost:
    """Count one layer under an assignment."""
    outs, ins = layer.out_width.kept(assignment.keep), layer.in_width.kept(assignment.keep)
    w, a = assignment.weight_bits[layer.name], assignment.activation_bits[layer.input]
    columns = layer.columns(ins)
    macs = outs * columns * layer.kernel_size * layer.positions
    stored = weight_bytes(outs * columns * layer.kernel_size, outs, w, layer, device)
    rows, padded_columns = padded_channels(layer, (columns, outs), device.channel_multiple_for(w))
    moved = activation_bytes(graph.activation[layer.input], assignment)
    written = FLOAT_BITS
    if layer.output is not None:
        moved += activation_bytes(graph.activation[layer.output], assignment)
        written = assignment.activation_bits[layer.output]
    load = Load(
        kind=layer.kind,
        bits=(w, a),
        macs=macs,
        padded_macs=rows * padded_columns * layer.kernel_size * layer.positions,
        activation_bytes=moved,
        weight_bytes=stored,
        requantized=outs * layer.positions,
        padded_requantized=rows * layer.positions,
        converted=outs * layer.positions if written != a else None,
        crossings=around.crossings.get(layer.name, 0),
        works=around.kernels.get(layer.name, ()),
    )
    parts = time_of(load, device)
    return LayerCost(
        name=layer.name,
        kind=layer.kind,
        in_channels=ins,
        out_channels=outs,
        weight_bits=w,
        input_bits=a,
        macs=macs,
        bops=macs * w * a,
        weight_bytes=stored,
        parts=parts,
        energy_mj=energy_mj(load, parts.total, device),
    )


def step_cost(
    graph: ModelGraph, step: Step, assignment: Assignment, device: DeviceProfile, around: Setting
) -> StepCost:
    """Count one step: its elements times its window, and the bytes it reads and writes; a step is never padded."""
    outs = step.width.kept(assignment.keep)
    elements = outs * step.positions
    read = [assignment.activation_bits[name] for name in step.inputs]
    written = FLOAT_BITS if step.output is None else assignment.activation_bits[step.output]
    width = read[0] if read else written
    moved = math.ceil(elements * written / 8)
    moved += sum(activation_bytes(graph.activation[name], assignment) for name in step.inputs)
    load = Load(
        kind=step.kind,
        bits=(width, width),
        macs=elements * step.window,
        padded_macs=elements * step.window,
        activation_bytes=moved,
        weight_bytes=elements * TABLE_BYTES if step.table else 0,
        converted=elements if any(bits != written for bits in read) else None,
        crossings=around.crossings.get(step.name, 0),
        works=around.kernels.get(step.name, ()),
    )
    parts = time_of(load, device)
    return StepCost(
        name=step.name,
        kind=step.kind,
        elements=elements,
        weight_bytes=step.table * outs * TABLE_BYTES,
        parts=parts,
        energy_mj=energy_mj(load, parts.total, device),
    )


def padded_channels(layer: Layer, channels: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return (outputs, columns per output) as the device computes them, from (columns per output, outputs)."""
    columns, outs = channels
    return padded(outs, multiple), 1 if layer.kind == "depthwise" else padded(max(1, columns), multiple)


def weight_bytes(weights: int, outs: int, bits: int, layer: Layer, device: DeviceProfile) -> int:
    """Return the stored bytes of a layer: packed integers, one float32 scale per channel (or tensor), int32 bias.

    A float layer (32 bits) has no scales.
    """
    scales = 0 if bits >= 32 else (outs if layer.kind in device.per_channel_weights else 1)
    bias = outs * BIAS_BYTES if layer.bias else 0
    return math.ceil(weights * device.stored_bits(bits) / 8) + scales * SCALE_BYTES + bias


def activation_bytes(activation: Activation, assignment: Assignment) -> int:
    """Return the bytes of one activation at batch 1, packed at its bit-width."""
    elements = activation.width.kept(assignment.keep) * activation.positions
    return math.ceil(elements * assignment.activation_bits[activation.id] / 8)


def peak_activation_bytes(graph: ModelGraph, assignment: Assignment) -> int:
    """Return the largest sum of live buffers over the execution order (skip tensors stay alive)."""
    change: dict[int, int] = {}
    for buffer in graph.tensors:
        elements = buffer.width.kept(assignment.keep) * buffer.positions
        size = math.ceil(elements * assignment.activation_bits[buffer.activation] / 8)
        change[buffer.first_step] = change.get(buffer.first_step, 0) + size
        change[buffer.last_step + 1] = change.get(buffer.last_step + 1, 0) - size
    live = peak = 0
    for step in sorted(change):
        live += change[step]
        peak = max(peak, live)
    return peak


def reference_costs(graph: ModelGraph, device: DeviceProfile, references: Mapping[str, Assignment]) -> dict[str, Costs]:
    """Count several named assignments at once (the float baseline and W8A8, say)."""
    return {name: count(graph, assignment, device) for name, assignment in references.items()}
