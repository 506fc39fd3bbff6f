"""What an assignment costs: MACs, BOPs, weight bytes, peak activation bytes, latency and energy.

Pure functions of (graph, assignment, device). BOPs = MACs x weight bits x activation bits of the producer, the network
input counted at the device's input width (Bayesian Bits and DJPQ count so). Channels are padded to the device's
multiple for time, never for MACs, BOPs or bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from app.domain.device import DeviceProfile
from app.domain.graph import Activation, Layer, ModelGraph
from app.domain.space import Assignment

Metric = Literal["macs", "bops", "weight_bytes", "peak_activation_bytes", "latency_ms", "energy_mj"]
METRICS: tuple[Metric, ...] = get_args(Metric)

SCALE_BYTES = 4
BIAS_BYTES = 4


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer: widths after removal, bits of its operands, MACs, BOPs, stored bytes, modelled time."""

    name: str
    in_channels: int
    out_channels: int
    weight_bits: int
    input_bits: int
    macs: int
    bops: int
    weight_bytes: int
    latency_ms: float
    energy_mj: float


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


def count(graph: ModelGraph, assignment: Assignment, device: DeviceProfile) -> Costs:
    """Count everything for one assignment."""
    layers = layer_costs(graph, assignment, device)
    overhead_ms = device.overheads.per_inference_us / 1e3
    return Costs(
        macs=sum(layer.macs for layer in layers),
        bops=sum(layer.bops for layer in layers),
        weight_bytes=sum(layer.weight_bytes for layer in layers),
        peak_activation_bytes=peak_activation_bytes(graph, assignment),
        latency_ms=overhead_ms + sum(layer.latency_ms for layer in layers),
        energy_mj=sum(layer.energy_mj for layer in layers),
    )


def layer_costs(graph: ModelGraph, assignment: Assignment, device: DeviceProfile) -> tuple[LayerCost, ...]:
    """Return the cost of each layer in execution order."""
    return tuple(layer_cost(graph, layer, assignment, device) for layer in graph.layers)


def layer_cost(graph: ModelGraph, layer: Layer, assignment: Assignment, device: DeviceProfile) -> LayerCost:
    """Count one layer under an assignment."""
    outs, ins = layer.out_width.kept(assignment.keep), layer.in_width.kept(assignment.keep)
    w, a = assignment.weight_bits[layer.name], assignment.activation_bits[layer.input]
    per_output = layer.kernel_size * layer.columns(ins)
    macs = outs * per_output * layer.positions
    stored = weight_bytes(outs * per_output, outs, w, layer, device)
    source = graph.activation[layer.input]
    moved = stored + activation_bytes(source, assignment)
    if layer.output is not None:
        moved += activation_bytes(graph.activation[layer.output], assignment)
    return LayerCost(
        name=layer.name,
        in_channels=ins,
        out_channels=outs,
        weight_bits=w,
        input_bits=a,
        macs=macs,
        bops=macs * w * a,
        weight_bytes=stored,
        latency_ms=_latency_ms(layer, (ins, outs), (w, a), moved, device),
        energy_mj=(device.power.pj_per_mac.get(f"{w}x{a}", 0.0) * macs + device.power.pj_per_byte * moved) * 1e-9,
    )


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
    """Return the largest sum of live activations over the execution order (skip tensors stay alive)."""
    change: dict[int, int] = {}
    for activation in graph.activations:
        size = activation_bytes(activation, assignment)
        change[activation.first_step] = change.get(activation.first_step, 0) + size
        change[activation.last_step + 1] = change.get(activation.last_step + 1, 0) - size
    live = peak = 0
    for step in sorted(change):
        live += change[step]
        peak = max(peak, live)
    return peak


def padded(channels: int, multiple: int) -> int:
    """Round a channel count up to the device's multiple."""
    return -(-channels // multiple) * multiple


def _latency_ms(
    layer: Layer, channels: tuple[int, int], bits: tuple[int, int], moved: int, device: DeviceProfile
) -> float:
    """Roofline: the slower of padded MACs at the reached rate and bytes at the bandwidth, plus the layer's overhead."""
    ins, outs = channels
    multiple = device.channel_multiple_for(bits[0])
    rows = padded(outs, multiple)
    columns = 1 if layer.kind == "depthwise" else padded(max(1, layer.columns(ins)), multiple)
    compute_s = rows * columns * layer.kernel_size * layer.positions / device.throughput(*bits).rate(layer.kind)
    bandwidth = min(device.activation_pool.gbps, device.weight_store.gbps) * 1e9
    requant_s = rows * layer.positions * device.overheads.requant_ns_per_element * 1e-9
    return (max(compute_s, moved / bandwidth) + requant_s) * 1e3 + device.overheads.per_layer_us / 1e3


def reference_costs(graph: ModelGraph, device: DeviceProfile, references: Mapping[str, Assignment]) -> dict[str, Costs]:
    """Count several named assignments at once (the float baseline and W8A8, say)."""
    return {name: count(graph, assignment, device) for name, assignment in references.items()}
