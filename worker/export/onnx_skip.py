"""The gated network as an ONNX file for one row at a time, in which filters that are off are not computed.

A gate's mask becomes the indices of the filters that run; the layer that makes them and those that read them gather
their weights by these indices, so that ONNX Runtime convolves over fewer channels:

    index = Compress(0 .. filters - 1, mask),  W_made = Gather(W, index, rows),  W_read = Gather(W, index, columns)

Codes, scales and biases are those of the masked file, sums of integers do not depend on their order, and at least one
filter always runs: both files answer alike. What is saved in arithmetic may cost more in gathering: weights that are
not constant are laid out anew for every row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, fx, nn

from app.domain.opsets import DEFAULT
from app.domain.space import FLOAT_BITS
from worker.export.onnx_gates import GateWriter
from worker.export.onnx_qdq import QdqWriter
from worker.graph.extents import BATCH, holds_batch
from worker.graph.ops import op_of
from worker.graph.ops.parametric import CONVOLUTIONS
from worker.graph.ops.table import module_of
from worker.graph.sites import quantizer_sites
from worker.quant.gates import StoredGate
from worker.quant.network import CompressedNetwork

CHANNELWISE = frozenset(
    {"relu", "clamp", "mean", "flatten", *(f"{kind}_pool{rank}d" for kind in ("max", "avg") for rank in (1, 2, 3))}
)
"""Ops that keep channels apart and make zeros of zeros: what is left out in front of them is zero behind them."""


class NothingToSkip(ValueError):
    """A network without gates, or without one whose filters can be left out."""


@dataclass(frozen=True)
class Skip:
    """A gated site whose filters can be left out: the layer that makes them, and by layer that reads them how many
    columns each filter has there; `narrow` are the nodes between, which carry the filters that run alone."""

    site: str
    made: str
    read: Mapping[str, int]
    narrow: frozenset[str]


def write_skipping(net: CompressedNetwork, saturating: bool = False, opset: int = DEFAULT) -> bytes:
    """Return the serialized model for batch 1; equal networks give equal bytes. Raises NothingToSkip."""
    if not net.gates:
        raise NothingToSkip("the network has no gates: every filter always runs")
    found = skips(net)
    if not found:
        raise NothingToSkip("no gated layer is a plain one whose filters plain layers alone read")
    return SkippingWriter(net, found, saturating, opset).write()


def skips(net: CompressedNetwork) -> dict[str, Skip]:
    """Return the gated sites whose filters can be left out; the others' are put to zero."""
    heads = {site.id: site.head for site in quantizer_sites(net.module).sites}
    nodes = {node.name: node for node in net.module.graph.nodes}
    found = {site: _skip(net.module, nodes[site], heads[site], gate) for site, gate in net.gates.items()}
    return {site: item for site, item in found.items() if item is not None}


def _skip(module: fx.GraphModule, site: fx.Node, head: str, gate: StoredGate) -> Skip | None:
    """Return how the filters of a site are left out, or None where something else than plain layers reads them."""
    made = next(node for node in module.graph.nodes if node.name == head)
    if gate.axis != 1 or not _is_plain(module, made):
        return None
    read: dict[str, int] = {}
    narrow = {site.name}
    waiting = [site]
    while waiting:
        for user in waiting.pop().users:
            if _is_plain(module, user):
                leaf: Any = module_of(module, user)
                read[user.name] = leaf.weight.shape[1] // len(gate.owner)
            elif _is_channelwise(module, user):
                narrow.add(user.name)
                waiting.append(user)
            else:
                return None
    return Skip(site.name, head, read, frozenset(narrow))


def _is_plain(module: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node is a convolution in one group or a linear layer of rows: outputs first, channels second."""
    leaf: Any = module_of(module, node) if node.op == "call_module" else None
    return isinstance(leaf, (nn.Linear, *CONVOLUTIONS)) and getattr(leaf, "groups", 1) == 1


def _is_channelwise(module: fx.GraphModule, node: fx.Node) -> bool:
    op = op_of(module, node)
    if op is None or op.name not in CHANNELWISE:
        return False
    if op.name == "clamp":
        return float(node.kwargs["min"]) <= 0 <= float(node.kwargs["max"])  # type: ignore[arg-type]
    return op.name != "mean" or 1 not in node.kwargs["dim"]  # type: ignore[operator]


class SkippingWriter(QdqWriter):
    """Gathers the weights of layers around gates."""

    def __init__(self, net: CompressedNetwork, found: Mapping[str, Skip], saturating: bool, opset: int) -> None:
        self._made = {item.made: item for item in found.values()}
        self._read = {name: (item, columns) for item in found.values() for name, columns in item.read.items()}
        self._skips = found
        super().__init__(net, saturating, opset)

    def gate_writer(self) -> GateWriter:
        """Return what writes the network's gates, and the indices of the filters that run."""
        self._skipping = SkippingGates(self, self._net.gates, self._skips)
        return self._skipping

    def sizes(self, value: Tensor) -> list[int | str | None]:
        """Return the extents of an input or output at batch 1."""
        return [extent // BATCH if holds_batch(extent) else extent for extent in value.shape]

    def weight(self, layer: str, tensor: Tensor, axis: int = 0) -> str:
        """Return a layer's weight, of the filters that run alone."""
        found = super().weight(layer, tensor, axis)
        return self._chosen(layer, found) if self._net.layers[layer].bits >= FLOAT_BITS else found

    def per_output(self, layer: str, values: NDArray[Any], name: str) -> str:
        """Add constants of a layer's outputs and return those of outputs that run."""
        found = super().per_output(layer, values, name)
        return self._rows(layer, found)

    def _codes(self, layer: str, ints: NDArray[Any], bits: int, zero: int) -> str:
        return self._chosen(layer, super()._codes(layer, ints, bits, zero))

    def _chosen(self, layer: str, weight: str) -> str:
        found = self._rows(layer, weight)
        if layer not in self._read:
            return found
        item, columns = self._read[layer]
        index = self._skipping.columns(item.site, columns)
        return self.emit("Gather", [found, index], f"{layer}.read", axis=1)

    def _rows(self, layer: str, values: str) -> str:
        if layer not in self._made:
            return values
        index = self._skipping.columns(self._made[layer].site, 1)
        return self.emit("Gather", [values, index], f"{values}.made", axis=0)

    def _model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        self.nodes = without_unread(fused(self.nodes, {*self._made, *self._read}), outputs)
        read = {name for node in self.nodes for name in node.input}
        self.initializers = [item for item in self.initializers if item.name in read]
        return super()._model(outputs)


def fused(nodes: Sequence[onnx.NodeProto], layers: Collection[str]) -> list[onnx.NodeProto]:
    """Return nodes with the convolutions of some layers between integers written as QLinearConv.

    ONNX Runtime makes them itself of convolutions whose scales are constants, and leaves others in floats.
    """
    makers = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    places: dict[str, onnx.NodeProto] = {}
    for node in nodes:
        if node.op_type != "Conv" or node.output[0] not in layers:
            continue
        sources, behind = [makers.get(name) for name in node.input], readers[node.output[0]]
        between = all(_is(item, "DequantizeLinear") for item in sources)
        if between and len(behind) == 1 and _is(behind[0], "QuantizeLinear"):
            places[behind[0].output[0]] = _joined(node, sources, behind[0])
    return [places.get(node.output[0], node) for node in nodes]


def _is(node: onnx.NodeProto | None, op_type: str) -> bool:
    return node is not None and node.op_type == op_type


def _joined(conv: onnx.NodeProto, sources: Sequence[Any], quantizer: onnx.NodeProto) -> onnx.NodeProto:
    """Return the QLinearConv of a convolution between dequantizers and a quantizer."""
    value, weight, *bias = sources
    inputs = [*value.input, *weight.input, *quantizer.input[1:], *(item.input[0] for item in bias)]
    made = helper.make_node("QLinearConv", inputs, list(quantizer.output))
    made.attribute.extend(conv.attribute)
    return made


def without_unread(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """Return the nodes that lead to some outputs, in their order."""
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            found.append(node)
    return found[::-1]


class SkippingGates(GateWriter):
    """Gates whose masks become indices where filters are left out."""

    def __init__(self, writer: QdqWriter, gates: Mapping[str, StoredGate], found: Mapping[str, Skip]) -> None:
        super().__init__(writer, gates)
        self._skips = found
        self._narrow = {node: item.site for item in found.values() for node in item.narrow}
        self._indices: dict[tuple[str, int], str] = {}

    def masked(self, node: str, value: str, zero: str | None = None) -> str:
        """Return a value behind its gate: itself where the filters that are off were not computed."""
        return value if node in self._skips else super().masked(node, value, zero)

    def columns(self, site: str, each: int) -> str:
        """Return the indices of the columns that run, where every filter has `each` neighbouring ones."""
        if (site, each) not in self._indices:
            count, name, emit = len(self._gates[site].owner), f"{site}.gate", self._writer.emit
            mask = self.masks[site]
            if each > 1:
                owner = self._writer.integers(np.repeat(np.arange(count), each).tolist(), f"{name}.columns")
                mask = emit("Gather", [mask, owner], f"{name}.wide", axis=1)
            flat = emit("Reshape", [mask, self._writer.integers([-1], f"{name}.flat")], f"{name}.row")
            places = self._writer.integers(range(count * each), f"{name}.range")
            self._indices[site, each] = emit("Compress", [places, flat], f"{name}.running", axis=0)
        return self._indices[site, each]

    def widened(self, gate: StoredGate, pooled: str) -> str:
        """Return the means that a gate reads with zeros for filters that do not run in front of it."""
        site = self._narrow.get(gate.reads)
        if site is None:
            return pooled
        channels, name = gate.squeeze.shape[1], f"{site}.gate"
        zeros = self._writer.constant(np.zeros((1, channels), np.float32), f"{name}.none")
        index = self.columns(site, channels // len(self._gates[site].owner))
        row = self._writer.emit("Unsqueeze", [index, self._writer.integers([0], f"{name}.first")], f"{name}.places")
        return self._writer.emit("ScatterElements", [zeros, row, pooled], f"{name}.widened", axis=1)
