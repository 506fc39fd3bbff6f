"""Times from a latency table in arrays: an estimate, exact for integer networks whose activations all have 8 bits.

Which kernels run between two operations depends on the bits of both and of what else reads the tensor, so the kernels
of the network with 8 bits everywhere stand for all, laid out as those of the unpruned network are: each layer in the
arithmetic of its own bits, and a Clip behind each tensor below 8 bits. What a search allocates so is counted exactly
before it is accepted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from app.domain.graph import Layer, ModelGraph, Step, Width
from app.domain.kernels import FLOAT_BITS, arithmetic, kernels_by_operation
from app.domain.latency import LAYERS, LatencyTable, Work
from app.domain.space import Assignment

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
_WHOLE = (8, 16, FLOAT_BITS)


def reference(graph: ModelGraph, keep: Any) -> Assignment:
    """Return the assignment that stands for all: 8 bits, float outputs."""
    bits = {item.id: FLOAT_BITS if item.role == "output" else 8 for item in graph.activations}
    return Assignment(keep, {layer.name: 8 for layer in graph.layers}, bits)


def input_works(graph: ModelGraph) -> tuple[Work, ...]:
    """Return the kernels that run for the network's inputs."""
    return kernels_by_operation(graph, reference(graph, {item.id: item.channels for item in graph.groups}))[""]


class _Many(np.ndarray[Any, Any]):
    """Channel counts of many assignments at once; a question about them is answered for the first, the unpruned one."""

    def __bool__(self) -> bool:
        return bool(np.asarray(self).flat[0])


class TableTimes:
    """Asks one table for the operations of one graph."""

    def __init__(self, graph: ModelGraph, table: LatencyTable) -> None:
        self._graph, self._table = graph, table
        self._whole = {group.id: group.channels for group in graph.groups}

    def of(self, kept: Floats, weight_bits: Ints, read: Ints, written: Ints) -> Floats:
        """Return milliseconds per operation (n, ops) from channels kept (n, groups) and bits (n, ops)."""
        rows = {name: np.append(full, kept[:, index]) for index, (name, full) in enumerate(self._whole.items())}
        keep: Any = {name: column.view(_Many) for name, column in rows.items()}
        works = kernels_by_operation(self._graph, reference(self._graph, keep))
        weight_bits, read, written = (np.vstack([item[:1], item]) for item in (weight_bits, read, written))
        found = np.zeros(read.shape)
        for index, item in enumerate(self._graph.ops):
            bits = np.stack([weight_bits[:, index], read[:, index], written[:, index]], axis=1)
            for work in works[item.name]:
                own = isinstance(item, Layer) and work.op in LAYERS
                found[:, index] += self._layer(cast("Layer", item), work, bits) if own else self._ms(work)
            if item.output is not None and not _passes(item):
                clip = Work("clip", "int8", 1, _width(item).kept(keep), 1, item.positions)
                found[:, index] += np.where(np.isin(bits[:, 2], _WHOLE), 0.0, self._ms(clip))
        return found[1:]

    def _ms(self, work: Work) -> Any:
        return np.asarray(self._table.kernel_ms(work))

    def _layer(self, layer: Layer, work: Work, bits: Ints) -> Floats:
        """Return a layer's own kernel in the arithmetic of each row's bits."""
        found = np.zeros(len(bits))
        precisions = np.array([arithmetic(layer.kind, *(int(b) for b in row)) for row in bits])
        for name in set(precisions.tolist()):
            found = np.where(precisions == name, self._ms(replace(work, precision=name)), found)
        return found


def _passes(item: Layer | Step) -> bool:
    """Tell whether an operation's result lies on its input's grid."""
    return isinstance(item, Step) and item.output in item.inputs


def _width(item: Layer | Step) -> Width:
    return item.width if isinstance(item, Step) else item.out_width
