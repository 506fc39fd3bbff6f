"""What the float network does on the calibration pictures: the targets every repair aims at."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.graph.extents import shapes_of
from worker.graph.groups import ChannelPlan, weighted_layers
from worker.graph.ops.table import module_of
from worker.graph.sites import quantizer_sites
from worker.prune.importance import ChannelScores
from worker.prune.reconstruct import Moments, moments, patches, rows_at, sample_positions
from worker.quant.network import run
from worker.quant.observers import SiteObserver

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


class FloatReference:
    """Runs the float network once over the calibration pictures and keeps what repairs need."""

    def __init__(self, module: fx.GraphModule, plan: ChannelPlan, pictures: Tensor) -> None:
        self.module = module
        self.pictures = pictures[: fitting(module, pictures)]
        self.layers: dict[str, LayerReference] = {}
        self.observers = {site.id: SiteObserver(site, 1) for site in quantizer_sites(module).sites}
        self.scores = ChannelScores(plan)
        self._shapes = shapes_of(module)
        self._pending: dict[str, tuple[Tensor, Tensor]] = {}
        self._weighted = {node.name for node in weighted_layers(module)}
        run(module, self.pictures, before=self._before, after=self._after)

    def _before(self, node: fx.Node, source: Tensor) -> None:
        if node.name not in self._weighted:
            return
        positions = self._positions(node.name)
        self._pending[node.name] = (positions, patches(module_of(self.module, node), source, positions))

    def _positions(self, name: str) -> Tensor:
        sizes = self._shapes[name][2:]
        count = max(1, row_limit(self.module.get_submodule(name)) // len(self.pictures))
        return sample_positions(sizes, count, zlib.crc32(name.encode())) if sizes else torch.zeros(1, dtype=torch.int64)

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
        stats = moments(inputs, outputs)
        self.layers[name] = LayerReference(positions, stats, outputs, inputs.dim() == 3)
        variance = stats.gram.diagonal(dim1=-2, dim2=-1)
        kernel = leaf.weight[0, 0].numel()
        weight = leaf.weight.detach().reshape(leaf.weight.shape[0], -1, kernel)
        self.scores.add(name, variance.reshape(-1, kernel), weight)


def row_limit(leaf: nn.Module) -> int:
    """Return how many rows (output positions) a layer is looked at: fewer the wider it is, yet two per unknown."""
    layer: Any = leaf
    groups = getattr(leaf, "groups", 1)
    outs: int = layer.out_features if isinstance(leaf, nn.Linear) else layer.out_channels
    unknowns = int(layer.weight.numel()) // outs
    values, products = groups * unknowns, unknowns * (groups * unknowns + outs)
    affordable = min(ROW_VALUES // values, ROW_PRODUCTS // products)
    return min(GROUPED_ROWS if groups > 1 else ROWS, max(affordable, 2 * unknowns))


def fitting(module: fx.GraphModule, pictures: Tensor) -> int:
    """Return how many pictures keep the largest activation within the memory share (at least 16)."""
    shapes = shapes_of(module)
    largest = max(4 * torch.Size(shape).numel() for shape in shapes.values())
    return max(16, min(len(pictures), MEMORY // largest))
