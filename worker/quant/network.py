"""The simulated network: sliced, quantized, runnable in torch, and exactly what is exported."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from app.domain.space import Assignment
from worker.quant.gates import StoredGate
from worker.quant.grids import ActivationGrid
from worker.quant.layer import QuantizedLayer
from worker.quant.simulation import Simulation
from worker.quant.walk import AfterNode, Value, Walk, moved


@dataclass(frozen=True)
class CompressedNetwork:
    """A sliced network whose weights are dequantised integers, with the grids of its activations.

    `module` is the canonical graph; `grids` maps quantizer sites (node names) to grids; sites without an entry stay
    float. `input_shape` is without the batch. `gates` by site say which filters of a group run for which input: the
    others are zeros behind the site's quantizer.
    """

    module: fx.GraphModule
    layers: Mapping[str, QuantizedLayer]
    grids: Mapping[str, ActivationGrid]
    input_shape: tuple[int, ...]
    assignment: Assignment
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    gates: Mapping[str, StoredGate] = field(default_factory=dict)

    def forward(self, *inputs: Value) -> Any:
        """Return the simulation's outputs for a batch of normalised inputs: a tensor, or a tuple of several."""
        return self.follow(*inputs)

    def encoded(self, *inputs: Tensor) -> tuple[Value, ...]:
        """Return a batch as it lies on the grids of the inputs: `forward` takes that in its place."""
        return self._simulation.encoded(inputs)

    def on(self, device: torch.device) -> CompressedNetwork:
        """Return the network as it runs on a device: itself on the CPU."""
        return self if device.type == "cpu" else replace(self, module=moved(self.module, device))

    def follow(self, *inputs: Value, seen: AfterNode | None = None) -> Any:
        """Run a batch; `seen(site, value)` is shown what stands behind each quantizer or gate and hands it on."""
        walk = Walk(inputs)
        self._simulation.advance(walk, seen)
        return walk.outputs(self.module)

    def masks(self, *inputs: Value) -> dict[str, Tensor]:
        """Return by gated site which filters run [n, filters] for a batch, as truth values."""
        walk = Walk(inputs)
        self._simulation.advance(walk)
        return walk.masks

    @functools.cached_property
    def _simulation(self) -> Simulation:
        return Simulation(self, gates=self.gates)

    def input_scale(self, site: str) -> float | None:
        """Return the scale of the grid a layer reads from, or None where it is float."""
        grid = self.grids.get(site)
        return None if grid is None else grid.scale
