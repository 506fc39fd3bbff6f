"""Channel gates in an ONNX file: every filter is computed, and what a gate leaves out is put to zero behind it.

Between QuantizeLinear and DequantizeLinear a Where puts the zero point in place of codes, so that the layers on both
sides still fuse into integer kernels; a value that stays float is multiplied by its mask. Nothing is skipped: the file
answers as a gated network does and takes a little longer than one without gates.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from worker.graph.write_onnx import OnnxWriter
from worker.quant.gates import ALWAYS_ON, StoredGate, readers


class GateWriter:
    """Writes what gates decide and applies it."""

    def __init__(self, writer: OnnxWriter, gates: Mapping[str, StoredGate]) -> None:
        self._writer, self._gates, self._reads = writer, gates, readers(gates)
        self.masks: dict[str, str] = {}

    def decide(self, node: str, value: str, rank: int) -> None:
        """Write the gates that read a node's value: their masks [n, filters], laid along the axis that they act on."""
        for site in self._reads.get(node, ()):
            self.masks[site] = self._mask(site, value, rank)

    def masked(self, node: str, value: str, zero: str | None = None) -> str:
        """Return a node's value, or its codes with their `zero`, behind its gate; itself where none stands."""
        if node not in self.masks:
            return value
        rank = self._writer.rank(self._node(node))
        axes = [dim for dim in range(1, rank) if dim != self._gates[node].axis % rank]
        mask = self.masks[node]
        if axes:
            mask = self._writer.emit("Unsqueeze", [mask, self._axes(axes, f"{node}.gate.axes")], f"{node}.gate.laid")
        if zero is not None:
            return self._writer.emit("Where", [mask, value, zero], f"{node}.gated")
        factors = self._writer.emit("Cast", [mask], f"{node}.gate.factors", to=1)
        return self._writer.emit("Mul", [value, factors], f"{node}.gated")

    def widened(self, gate: StoredGate, pooled: str) -> str:
        """Return the means [n, channels] that a gate reads, of every channel."""
        return pooled

    def _node(self, name: str) -> object:
        return next(node for node in self._writer.module.graph.nodes if node.name == name)

    def _axes(self, axes: list[int], name: str) -> str:
        return self._writer.integers(axes, name)

    def _mask(self, site: str, value: str, rank: int) -> str:
        gate, name, emit = self._gates[site], f"{site}.gate", self._writer.emit
        constant = self._writer.constant
        axes = [dim for dim in range(1, rank) if dim != gate.read_axis % rank]
        if axes:
            value = emit("ReduceMean", [value, self._axes(axes, f"{name}.places")], f"{name}.pooled", keepdims=0)
        value = self.widened(gate, value)
        squeeze = [value, constant(gate.squeeze.T, f"{name}.squeeze"), constant(gate.squeeze_bias, f"{name}.squeeze.b")]
        hidden = emit("Relu", [emit("Gemm", squeeze, f"{name}.squeezed")], f"{name}.hidden")
        excite = [hidden, constant(gate.excite.T, f"{name}.excite"), constant(gate.excite_bias, f"{name}.excite.b")]
        logits = emit("Gemm", excite, f"{name}.logits")
        least = constant(np.zeros((), np.float32), f"{name}.least")
        if gate.keeps_one:
            largest = emit("ReduceMax", [logits, self._axes([1], f"{name}.gates")], f"{name}.largest", keepdims=1)
            least = emit("Min", [largest, least], f"{name}.floor")
        on = emit("GreaterOrEqual", [logits, least], f"{name}.on")
        return self._spread(gate, on, name)

    def _spread(self, gate: StoredGate, on: str, name: str) -> str:
        """Return the gates of every filter; those that are always on read a last column of ones."""
        owner = np.array(gate.owner, np.int64)
        if np.array_equal(owner, np.arange(len(gate.excite_bias))):
            return on
        place = self._writer.constant(np.maximum(owner, 0), f"{name}.owner")
        found = self._writer.emit("Gather", [on, place], f"{name}.each", axis=1)
        if ALWAYS_ON not in gate.owner:
            return found
        always = self._writer.constant((owner == ALWAYS_ON)[None], f"{name}.always")
        return self._writer.emit("Or", [found, always], f"{name}.mask")
