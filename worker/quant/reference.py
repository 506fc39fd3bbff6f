"""What the float network does on the calibration rows: the targets every repair aims at."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.graph.extents import BATCH, shapes_of
from worker.graph.groups import ChannelPlan, weighted_layers
from worker.graph.ops.parametric import rows_first
from worker.graph.ops.table import module_of
from worker.graph.sites import quantizer_sites
from worker.prune.importance import ChannelScores
from worker.prune.reconstruct import Moments, merged, moments, output_sizes, patches, rows_at, sample_positions
from worker.quant.observers import SiteObserver
from worker.quant.walk import run

ROWS = 8192
GROUPED_ROWS = 2048  # a depthwise channel has only a kernel to fit
ROW_VALUES = 1 << 23  # inputs looked at per layer
ROW_PRODUCTS = 1 << 32  # multiplications the moments of one layer may cost
MEMORY = 256 << 20


@dataclass(frozen=True)
class LayerReference:
    """One layer in the float network: sampled output positions, moments of inputs and outputs there, output rows.

    `grouped` tells that inputs and moments carry a leading dimension of groups (depthwise: channels).
    """

    positions: Tensor
    stats: Moments
    outputs: Tensor
    grouped: bool


@dataclass(frozen=True)
class Sampling:
    """How many times the usual places each layer is looked at, and the seed that draws them."""

    rows: int = 1
    seed: int = 0


class FloatReference:
    """Runs the float network once over the calibration rows and keeps what repairs need.

    `inputs` holds one tensor per network input. The rows stream through in batches: grids, moments and importances are
    those of all rows, in memory that doesn't grow with them. Repairs run over the rows of the first batch,
    which is what `inputs` and the layers' output rows keep; `in_order` tells that every layer sees the rows one behind
    the other, so that the first rows of its samples belong to the first of the inputs. Else there is one batch.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        plan: ChannelPlan,
        inputs: Sequence[Tensor],
        memory: int = MEMORY,
        sampling: Sampling = Sampling(),
    ) -> None:
        self.module, self.sampling = module, sampling
        count = fitting(module, len(inputs[0]), memory)
        self.inputs = tuple(item[:count] for item in inputs)
        self.layers: dict[str, LayerReference] = {}
        self.scores = ChannelScores(plan)
        self._leading = {name: shape[:1] == (BATCH,) for name, shape in shapes_of(module, BATCH).items()}
        self._rows: dict[str, int] = {}
        self._pending: dict[str, tuple[Tensor, Tensor]] = {}
        self._weighted = {node.name for node in weighted_layers(module)}
        self.in_order = all(self._leading[name] for name in self._weighted)
        batches = list(zip(*(item.split(count) for item in inputs), strict=True)) if self.in_order else [self.inputs]
        sites = quantizer_sites(module).sites
        self.observers = {site.id: SiteObserver(site, len(batches)) for site in sites}
        for batch in batches:
            run(module, *batch, before=self._before, after=self._after)
        for name, layer in self.layers.items():
            self._score(name, layer.stats)

    def _before(self, node: fx.Node, source: Tensor) -> None:
        if node.name not in self._weighted:
            return
        leaf: Any = module_of(self.module, node)
        sizes = source.shape[1:-1] if isinstance(leaf, nn.Linear) else output_sizes(leaf, source.shape[2:])
        positions = self._positions(node.name, sizes)
        self._pending[node.name] = (positions, patches(leaf, source, positions))

    def _positions(self, name: str, sizes: Sequence[int]) -> Tensor:
        """Return sampled places between the rows and the channels; all of them where rows don't come first."""
        limit = self.sampling.rows * row_limit(self.module.get_submodule(name))
        count = max(1, limit // len(self.inputs[0]))
        if not self._leading[name]:
            count = math.prod(sizes)
        return sample_positions(sizes, count, zlib.crc32(name.encode()) + self.sampling.seed)

    def _after(self, name: str, value: Tensor) -> Tensor:
        if name in self._pending:
            self._finish(name, value)
        if name in self.observers:
            self.observers[name].observe(value)
        return value

    def _finish(self, name: str, value: Tensor) -> None:
        positions, inputs = self._pending.pop(name)
        leaf: Any = self.module.get_submodule(name)
        outputs = rows_at(value, positions, isinstance(leaf, nn.Linear)).clone()
        stats, seen = moments(inputs, outputs), self._rows.get(name, 0)
        self._rows[name] = seen + len(outputs)
        if seen:
            known = self.layers[name]
            self.layers[name] = replace(known, stats=merged(known.stats, seen, stats, len(outputs)))
        else:
            self.layers[name] = LayerReference(positions, stats, outputs, inputs.dim() == 3)

    def _score(self, name: str, stats: Moments) -> None:
        weight = rows_first(self.module.get_submodule(name))
        kernel = weight[0, 0].numel()
        self.scores.add(name, stats, weight.reshape(weight.shape[0], -1, kernel))


def row_limit(leaf: nn.Module) -> int:
    """Return how many rows (output positions) a layer is looked at: fewer the wider it is, yet two per unknown."""
    layer: Any = leaf
    groups = getattr(leaf, "groups", 1)
    outs: int = layer.out_features if isinstance(leaf, nn.Linear) else layer.out_channels
    unknowns = int(layer.weight.numel()) // outs
    values, products = groups * unknowns, unknowns * (groups * unknowns + outs)
    affordable = min(ROW_VALUES // values, ROW_PRODUCTS // products)
    return min(GROUPED_ROWS if groups > 1 else ROWS, max(affordable, 2 * unknowns))


def fitting(module: fx.GraphModule, rows: int, memory: int = MEMORY) -> int:
    """Return how many of so many rows keep the largest activation within the memory share (at least 16)."""
    shapes = shapes_of(module)
    largest = max(4 * torch.Size(shape).numel() for shape in shapes.values())
    return max(16, min(rows, memory // largest))
