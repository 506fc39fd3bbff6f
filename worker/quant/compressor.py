"""From an assignment to a network: slice, refit, round and re-centre layer by layer in one pass over calibration data.

Layers are handled in execution order, each on what the already compressed ones before it really produce:
1. channels are removed (importance), the kept weights refitted by least squares onto the float outputs;
2. weights are rounded with error feedback below 8 bits, to the nearest integer otherwise;
3. each output channel's mean and variance are matched to the float network's: BatchNorm re-estimation, for networks
   whose BatchNorm is folded; the mean alone is the empirical bias correction of Nagel et al. 2019, section 4.2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from app.domain.device import DeviceProfile
from app.domain.graph import Layer, ModelGraph
from app.domain.space import Assignment
from worker.graph.leaves import Recurrent
from worker.graph.ops.parametric import as_stored, rows_first
from worker.graph.ops.recurrent import matrices, with_matrices
from worker.graph.slicing import Slicer
from worker.prune.reconstruct import DAMP, Moments, moments, patches, refit, std_mean
from worker.quant.grids import ActivationGrid, GridRules, powers_above, round_weight, weight_scales
from worker.quant.integer import Codes
from worker.quant.layer import QuantizedLayer, is_float
from worker.quant.network import CompressedNetwork
from worker.quant.reference import FloatReference, LayerReference
from worker.quant.rounding import Rounded, Scales, round_to_outputs
from worker.quant.simulation import Simulation
from worker.quant.walk import Value, Walk

Repair = Literal["sequential", "fast", "none"]
Kept = Mapping[str, tuple[int, ...]]
Rounder = Callable[[Tensor, Tensor, int, Tensor, Scales], Rounded]
"""Rounds weights [o, d] below 8 bits by scales [o], bits and input Gram matrix [d, d], as `round_to_outputs` does."""
REPAIRS: tuple[Repair, ...] = ("sequential", "fast")
MAX_FEEDBACK = 2304
FAST_PICTURES = 128
SHRINK = 2.0
"""Damping of a refit with as many rows as unknowns: next to nothing is learned where there are fewer."""
VARIANCE_RATIO = (0.5, 2.0)
BIAS_CODES = 2**30
"""The largest code a bias gets: half of int32, the rest is left to the products it is added to."""


@dataclass(frozen=True)
class _Fitted:
    """Weights [o, d] on their grid, scales [o], integers, before the bias."""

    integers: Tensor | None
    scale: Tensor | None
    weight: Tensor


class Compressor:
    """Turns assignments into compressed networks; equal assignments give equal networks."""

    def __init__(
        self,
        slicer: Slicer,
        graph: ModelGraph,
        reference: FloatReference,
        device: DeviceProfile,
        fast_pictures: int = FAST_PICTURES,
    ) -> None:
        self.slicer = slicer
        self.graph = graph
        self.reference = reference
        self.device = device
        self.rules = GridRules.of(device)
        self.fast_pictures = fast_pictures
        self.rounder: Rounder = round_to_outputs

    def compress(
        self, assignment: Assignment, repair: Repair = "sequential", kept: Kept | None = None
    ) -> CompressedNetwork:
        """Return the network of an assignment. "sequential" refits each layer on its real inputs, "fast" from the
        float network's cached moments with fewer pictures, "none" only slices and rounds. `kept` names the channels
        that stay, by group, where it is not to be the most important ones."""
        job = self.job(assignment, repair) if kept is None else Job(self, assignment, dict(kept), repair)
        Simulation(job, before=job.before).advance(Walk(self.looked_at(repair)))
        return CompressedNetwork(job.module, job.layers, job.grids, self.graph.input_shape, assignment, job.kept)

    def rounding_by(self, rounder: Rounder) -> Compressor:
        """Return one that differs in how it rounds weights below 8 bits."""
        other = copy.copy(self)
        other.rounder = rounder
        return other

    def job(self, assignment: Assignment, repair: Repair) -> Job:
        """Return the pass that compresses an assignment, ahead of its first layer."""
        return Job(self, assignment, self.reference.scores.kept(assignment.keep), repair)

    def looked_at(self, repair: Repair) -> tuple[Tensor, ...]:
        """Return the calibration rows that a repair runs over, one tensor per network input."""
        few = repair == "fast" and self.reference.in_order
        return tuple(item[: self.fast_pictures] if few else item for item in self.reference.inputs)


class Job:
    """The state of one compression pass: `module` and `layers` are complete up to the layer it has come to."""

    def __init__(
        self, owner: Compressor, assignment: Assignment, kept: dict[str, tuple[int, ...]], repair: Repair
    ) -> None:
        self.owner = owner
        self.repair = repair
        self.assignment = assignment
        self.kept = kept
        self.module = owner.slicer.sliced(kept)
        self.layers: dict[str, QuantizedLayer] = {}
        self.grids = {
            site: owner.reference.observers[site].grid(bits, owner.rules)
            for site, bits in assignment.activation_bits.items()
            if not is_float(bits)
        }

    def take(self, other: Job, nodes: Collection[str]) -> None:
        """Take over what another pass made of the layers at some nodes, where both assignments ask for the same."""
        for node in self.module.graph.nodes:
            if node.op == "call_module" and node.name in nodes:
                self.module._modules[str(node.target)] = other.module._modules[str(node.target)]
        self.layers |= {name: layer for name, layer in other.layers.items() if node_of(name) in nodes}

    def before(self, node: fx.Node, source: Value) -> None:
        leaf: Any = self.module.get_submodule(node.name)
        layer = self.owner.graph.layer.get(node.name)
        if isinstance(leaf, Recurrent):
            self._recurrent(node.name, leaf)
        if layer is None:
            return
        float_reference = self.owner.reference.layers[node.name]
        rows, columns = self.owner.slicer.columns(node.name, self.kept)
        inputs = picked(leaf, source, float_reference.positions)
        prior = _matrix(leaf, float_reference.grouped)
        if self.repair == "none":
            fitted, bias = self._round(layer, prior, None), leaf.bias.detach()
        else:
            targets = _targets(float_reference, rows, len(inputs))
            stats = self._stats(float_reference, inputs, targets, (rows, columns))
            weight = (
                refit(stats, prior, self._damp(float_reference, inputs)) if self._changed(layer, columns) else prior
            )
            fitted, bias = _match(self._round(layer, weight, stats.gram), inputs, targets, self._rescales(layer))
        self._install(layer, leaf, fitted, bias)

    def _recurrent(self, name: str, leaf: Recurrent) -> None:
        """Round the matrices of an LSTM or GRU, row by row; its biases stay float.

        There is nothing to refit: no channel is removed there, and each step reads what the step before it made.
        """
        rounded: dict[str, Tensor] = {}
        for which, (weight, bias) in matrices(leaf).items():
            layer = self.owner.graph.layer[f"{name}.{which}"]
            fitted = self._round(layer, weight, None)
            rounded[which] = fitted.weight
            self.layers[layer.name] = self._stored(layer, fitted, weight.shape, bias)
        with_matrices(leaf, rounded)

    def _changed(self, layer: Layer, columns: Tensor) -> bool:
        """Tell whether a refit can help: inputs were removed or carry errors."""
        full = layer.in_width.kept({group.id: group.channels for group in self.owner.graph.groups})
        return len(columns) < full or self.repair == "sequential"

    def _damp(self, ref: LayerReference, inputs: Tensor) -> float:
        """Return the refit's damping: more, the fewer rows there are for each weight that is fitted."""
        rows = len(inputs) if self.repair == "sequential" else len(ref.outputs)
        return DAMP + SHRINK * inputs.shape[-1] / rows

    def _stats(self, ref: LayerReference, inputs: Tensor, targets: Tensor, index: tuple[Tensor, Tensor]) -> Moments:
        if self.repair == "sequential":
            return moments(inputs, targets)
        rows, columns = index
        if ref.grouped:  # whole groups are removed
            size = ref.stats.cross.shape[1]
            left = rows[::size] // size
            return Moments(ref.stats.gram[left], ref.stats.cross[left], ref.stats.mean_x[left], ref.stats.mean_y[rows])
        spread = _spread(columns, inputs.shape[1])
        return Moments(
            ref.stats.gram[spread][:, spread],
            ref.stats.cross[rows][:, spread],
            ref.stats.mean_x[spread],
            ref.stats.mean_y[rows],
        )

    def _round(self, layer: Layer, weight: Tensor, gram: Tensor | None) -> _Fitted:
        bits = self.assignment.weight_bits[layer.name]
        flat = weight.reshape(-1, weight.shape[-1])
        if is_float(bits):
            return _Fitted(None, None, flat)
        per_channel, powers = self._per_channel(layer), self.owner.rules.powers
        scale = weight_scales(flat, bits, per_channel, self.owner.rules).expand(len(flat)).contiguous()
        if gram is not None and weight.dim() == 2 and bits < 8 and weight.shape[1] <= MAX_FEEDBACK:
            found = self.owner.rounder(weight, scale, bits, gram, Scales(per_channel, powers))
            integers, scale = found.integers, found.scale
        else:
            integers = round_weight(flat, scale, bits)
        return _Fitted(integers, scale, integers * scale[:, None])

    def _per_channel(self, layer: Layer) -> bool:
        return layer.kind in self.owner.device.per_channel_weights

    def _rescales(self, layer: Layer) -> bool:
        """Tell whether the device lets each output channel's scale be anything."""
        return self._per_channel(layer) and not self.owner.rules.powers

    def _install(self, layer: Layer, leaf: Any, fitted: _Fitted, bias: Tensor) -> None:
        fitted = self._within_accumulator(layer, fitted, bias)
        shape = rows_first(leaf).shape
        weight = as_stored(leaf, fitted.weight.reshape(shape)).contiguous()
        if fitted.scale is not None:
            bias = bias_on_grid(bias, fitted.scale, self.grids.get(layer.input))
        if weight.dim() == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        leaf.weight = nn.Parameter(weight, requires_grad=False)
        leaf.bias = nn.Parameter(bias.clone(), requires_grad=False)
        self.layers[layer.name] = self._stored(layer, fitted, shape, bias)

    def _stored(self, layer: Layer, fitted: _Fitted, shape: torch.Size, bias: Tensor) -> QuantizedLayer:
        bits = self.assignment.weight_bits[layer.name]
        return QuantizedLayer(
            layer.name,
            bits,
            bias.numpy().astype(np.float32),
            None if fitted.integers is None else _integers(fitted.integers.reshape(shape), bits),
            None if fitted.scale is None else self._scales(layer, fitted.scale),
            fitted.weight.reshape(shape).numpy().copy() if fitted.integers is None else None,
        )

    def _scales(self, layer: Layer, scale: Tensor) -> np.ndarray[Any, Any]:
        """Return the scales as they are stored: one per output channel, or the one for all."""
        return (scale if self._per_channel(layer) else scale[:1]).numpy().astype(np.float32)

    def _within_accumulator(self, layer: Layer, fitted: _Fitted, bias: Tensor) -> _Fitted:
        """Coarsen the weights of channels whose bias int32 could not hold at scale_x * scale_w.

        Those are channels with next to no weights, whose scale is next to nothing: their bias is all they give.
        """
        grid = self.grids.get(layer.input)
        if grid is None or fitted.scale is None:
            return fitted
        stored = fitted.scale if self._per_channel(layer) else fitted.scale[:1]
        scale = within_accumulator(stored, bias, grid, self.owner.rules.powers).expand(len(bias))
        if torch.equal(scale, fitted.scale):
            return fitted
        integers = (fitted.weight / scale[:, None]).round()
        return _Fitted(integers, scale, integers * scale[:, None])


def within_accumulator(scale: Tensor, bias: Tensor, grid: ActivationGrid, powers: bool) -> Tensor:
    """Return scales [out] or [1], raised (`powers`: to a power of two) where int32 could not hold a bias [out]."""
    needed = (bias.abs().double() / (BIAS_CODES * grid.scale)).float()
    needed = needed if len(scale) == len(needed) else needed.amax(0, keepdim=True)
    return torch.where(needed > scale, powers_above(needed) if powers else needed, scale)


def bias_on_grid(bias: Tensor, scale: Tensor, grid: ActivationGrid | None) -> Tensor:
    """Round the bias to the int32 grid of the accumulator, scale_x * scale_w, as runtimes store it.

    Where int32 is too narrow for it (16-bit weights on 16-bit activations) it stays float, as in the export.
    """
    if grid is None:
        return bias
    step = scale.double() * grid.scale
    codes = torch.round(bias.double() / step)
    return (codes * step).float() if float(codes.abs().max()) < 2**31 else bias


def node_of(layer: str) -> str:
    """Return the node that computes a layer: matrices of a recurrent one are called <node>.<matrix>."""
    return layer.split(".")[0]


def picked(leaf: Any, source: Value, positions: Tensor) -> Tensor:
    """Return the real values that a layer sees at sampled positions (see `patches`)."""
    if isinstance(source, Codes):
        return patches(leaf, source.raw, positions, source.decode)
    return patches(leaf, source, positions)


def _matrix(leaf: Any, grouped: bool) -> Tensor:
    weight = rows_first(leaf)
    return weight.reshape(leaf.groups, -1, weight[0].numel()) if grouped else weight.reshape(weight.shape[0], -1)


def _targets(ref: LayerReference, rows: Tensor, count: int) -> Tensor:
    return ref.outputs[:count][:, rows]


def _spread(columns: Tensor, width: int) -> Tensor:
    """Return the matrix columns of kept input channels: each channel owns `width / len(columns)` of them."""
    kernel = width // len(columns)
    return (columns[:, None] * kernel + torch.arange(kernel)[None]).reshape(-1)


def _match(fitted: _Fitted, inputs: Tensor, targets: Tensor, rescales: bool) -> tuple[_Fitted, Tensor]:
    """Match each output channel's variance (through its scale) and mean (through the bias) to the targets.

    A device with one scale per tensor, or powers of two for scales, gets the mean alone.
    """
    if inputs.dim() == 3:
        by_group = fitted.weight.reshape(inputs.shape[1], -1, inputs.shape[2])
        outputs = (inputs.transpose(0, 1) @ by_group.transpose(1, 2)).transpose(0, 1).reshape(targets.shape)
    else:
        outputs = inputs @ fitted.weight.T
    (wanted, goal), (reached, mean) = std_mean(targets), std_mean(outputs)
    ratio = (wanted / reached.clamp_min(1e-8)).clamp(*VARIANCE_RATIO)
    ratio = torch.where((reached > 1e-6) & torch.tensor(rescales or fitted.scale is None), ratio, 1.0)
    bias = goal - mean * ratio
    if fitted.integers is None or fitted.scale is None:
        return _Fitted(None, None, fitted.weight * ratio[:, None]), bias
    scale = (fitted.scale * ratio).float()
    return _Fitted(fitted.integers, scale, fitted.integers * scale[:, None]), bias


def _integers(values: Tensor, bits: int) -> np.ndarray[Any, Any]:
    return values.numpy().astype(np.int8 if bits <= 8 else np.int16)
