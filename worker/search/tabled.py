"""Times from a latency table in arrays: an estimate, exact for integer networks whose activations all have 8 bits, and
for float networks but for the reordering of narrow tensors.

Which kernels run between two operations depends on the bits of both and of what else reads the tensor, so the kernels
of the network with 8 bits everywhere (32 where a space holds floats alone) stand for all, laid out as those of the
unpruned network are: each layer in the arithmetic of its own bits, and a Clip behind each tensor below 8 bits. What a
search allocates so is counted exactly before it is accepted.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.graph import Layer, ModelGraph, Step, Width
from app.domain.kernels import arithmetic, kernels_by_operation
from app.domain.latency import LAYERS, LatencyTable, Work
from app.domain.space import FLOAT_BITS, Assignment

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
_WHOLE = (8, 16, FLOAT_BITS)
_CELLS = 1 << 18  # a layer's times are looked up where so many hold every pair of its channel counts


def standing(weights: Set[int], activations: Set[int]) -> int:
    """Return the bits that stand for all of a space with these widths."""
    return FLOAT_BITS if weights | activations == {FLOAT_BITS} else 8


def reference(graph: ModelGraph, keep: Any, bits: int = 8) -> Assignment:
    """Return the assignment that stands for all: `bits` everywhere, float outputs."""
    written = {item.id: FLOAT_BITS if item.role == "output" else bits for item in graph.activations}
    return Assignment(keep, {layer.name: bits for layer in graph.layers}, written)


def input_works(graph: ModelGraph, bits: int = 8) -> tuple[Work, ...]:
    """Return the kernels that run for the network's inputs."""
    return kernels_by_operation(graph, reference(graph, {item.id: item.channels for item in graph.groups}, bits))[""]


class _Many(np.ndarray[Any, Any]):
    """Channel counts of many assignments at once; a question about them is answered for the first, the unpruned one."""

    def __bool__(self) -> bool:
        return bool(np.asarray(self).flat[0])


class TableTimes:
    """Asks one table for the operations of one graph.

    Which kernels run is found out once. Times of kernels between layers are linear in their channels, and channels in
    those that the groups keep; only the layers' own kernels are asked for again, small ones for all their channel
    counts at once.
    """

    def __init__(self, graph: ModelGraph, table: LatencyTable, bits: int = 8) -> None:
        self._graph, self._table = graph, table
        self._grids: dict[tuple[str, str], Floats] = {}
        groups = [group.id for group in graph.groups]
        # rows: the unpruned network (which the layouts are those of), none kept, then one channel of one group each
        rows = np.vstack(
            [[float(group.channels) for group in graph.groups], np.zeros(len(groups)), np.eye(len(groups))]
        )
        keep: Any = {name: rows[:, index].view(_Many) for index, name in enumerate(groups)}
        works = kernels_by_operation(graph, reference(graph, keep, bits))
        self._float = bits >= FLOAT_BITS
        self._own: dict[int, tuple[Work, Floats, Floats]] = {}
        self._moving, self._clips = (
            np.zeros((len(graph.ops), len(groups) + 1)),
            np.zeros((len(graph.ops), len(groups) + 1)),
        )
        for index, item in enumerate(graph.ops):
            for work in works[item.name]:
                if isinstance(item, Layer) and work.op in LAYERS:
                    self._own[index] = (work, _linear(work.ins, len(groups)), _linear(work.outs, len(groups)))
                else:
                    self._moving[index] += self._line(work, len(groups))
            if item.output is not None and not _passes(item):
                clip = Work("clip", "int8", 1, _width(item).kept(keep), 1, item.positions)
                self._clips[index] = self._line(clip, len(groups))

    def of(self, kept: Floats, weight_bits: Ints, read: Ints, written: Ints) -> Floats:
        """Return milliseconds per operation (n, ops) from channels kept (n, groups) and bits (n, ops)."""
        ones = np.hstack([np.ones((len(kept), 1)), kept])
        clipped = np.where(np.isin(written, _WHOLE), 0.0, ones @ self._clips.T)
        found: Floats = ones @ self._moving.T + clipped
        for index, (work, ins, outs) in self._own.items():
            channels = (ones @ ins, ones @ outs)
            layer = self._graph.layers[index]
            if self._float:
                found[:, index] += self._kernel(layer, (work, "float"), channels)
            else:
                bits = (weight_bits[:, index], read[:, index], written[:, index])
                found[:, index] += self._layer(layer, work, channels, bits)
        return found

    def _line(self, work: Work, groups: int) -> Floats:
        """Return a kernel's time as milliseconds without any channel, and per channel of each group."""
        base = float(self._table.kernel_ms(replace(work, outs=0.0)))
        slope = float(self._table.kernel_ms(replace(work, outs=1.0))) - base
        line = slope * _linear(work.outs, groups)
        line[0] += base
        return line

    def _layer(
        self, layer: Layer, work: Work, channels: tuple[Floats, Floats], bits: tuple[Ints, Ints, Ints]
    ) -> Floats:
        """Return a layer's own kernel in the arithmetic of each row's bits."""
        found = np.zeros(len(bits[0]))
        keys = (bits[0] * 64 + bits[1]) * 64 + bits[2]
        ways: dict[str, list[int]] = {}
        for key in np.unique(keys).tolist():
            ways.setdefault(arithmetic(layer.kind, key // 4096, key // 64 % 64, key % 64), []).append(key)
        for name, held in ways.items():
            times = self._kernel(layer, (work, name), channels)
            found = times if len(ways) == 1 else np.where(np.isin(keys, held), times, found)
        return found

    def _kernel(self, layer: Layer, way: tuple[Work, str], channels: tuple[Floats, Floats]) -> Floats:
        """Return the milliseconds of a layer's own kernel in an arithmetic at arrays of channels (inputs, results),
        looked up where the layer is small."""
        work, precision = way
        extents = (layer.weight_shape[1] * layer.groups + 1, layer.weight_shape[0] + 1)
        if extents[0] * extents[1] > _CELLS:
            return self._asked(work, precision, channels)
        if (layer.name, precision) not in self._grids:
            every = np.indices(extents).reshape(2, -1).astype(float)
            self._grids[layer.name, precision] = self._asked(work, precision, every).reshape(extents)
        found: Floats = self._grids[layer.name, precision][channels[0].astype(np.intp), channels[1].astype(np.intp)]
        return found

    def _asked(self, work: Work, precision: str, channels: Any) -> Floats:
        return np.asarray(self._table.kernel_ms(replace(work, precision=precision, ins=channels[0], outs=channels[1])))


def _linear(channels: Any, groups: int) -> Floats:
    """Return fixed channels, and channels per kept one of each group, from what the rows of the constructor give."""
    given = np.broadcast_to(np.asarray(channels, float), groups + 2)
    return np.append(given[1], given[2:] - given[1])


def _passes(item: Layer | Step) -> bool:
    """Tell whether an operation's result lies on its input's grid."""
    return isinstance(item, Step) and item.output in item.inputs


def _width(item: Layer | Step) -> Width:
    return item.width if isinstance(item, Step) else item.out_width
