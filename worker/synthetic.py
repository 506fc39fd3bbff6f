"""Inputs for a network whose user has no data: noise, fitted to the means and deviations that its BatchNorms hold.

A BatchNorm knows how its channels were spread over the training data: beta and |gamma|. Noise is moved by gradients
until the network's layers see such values again (distilled data: Cai et al. 2020, ZeroQ, equation 3). Grids, repairs
and fidelity are then looked at on these inputs, none of which anybody has ever seen: how right the answers are, they
can't tell. Inputs are taken for normalised, mean 0 and deviation 1 per channel. Without BatchNorms they stay noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from worker.data import DatasetRefused, Role, RoleData
from worker.graph.extents import InputSpec, inputs_of, shapes_of
from worker.graph.groups import weighted_layers
from worker.graph.ops.parametric import rows_first
from worker.graph.ops.table import module_of

ROWS: dict[Role, int] = {"calibration": 64, "evaluation": 64, "holdout": 64}
STEPS = 40
RATE = 0.1
FIT_MACS = 300e9
"""What fitting may cost beside the forward passes of a search; fewer steps where a network costs more."""
PASSES = 3
"""A step's forward and backward pass in forward passes."""
COARSEST = 4


def synthetic(folded: fx.GraphModule, seed: int = 0) -> dict[Role, RoleData]:
    """Return inputs for all roles, each drawn and fitted by itself, and no labels.

    Equal networks and seeds give equal inputs. Raises DatasetRefused for inputs that are ids: noise says nothing there.
    """
    specs = inputs_of(folded)
    ids = [spec.name for spec in specs if not spec.dtype.is_floating_point]
    if ids:
        raise DatasetRefused(f"{ids} are ids: no data can be drawn for them", slug="calibration-required")
    steps = min(STEPS, int(FIT_MACS / (PASSES * max(1, _macs(folded)) * sum(ROWS.values()))))
    found: dict[Role, RoleData] = {}
    for number, (role, rows) in enumerate(ROWS.items()):
        generator = torch.Generator().manual_seed(seed * len(ROWS) + number)
        drawn = [_noise(spec, rows, generator) for spec in specs]
        found[role] = RoleData(tuple(_fitted(folded, drawn, steps)))
    return found


def _macs(folded: fx.GraphModule) -> int:
    """Return the multiplications that one row costs."""
    shapes = shapes_of(folded)
    total = 0
    for node in weighted_layers(folded):
        leaf = module_of(folded, node)
        outs = rows_first(leaf).shape[0]
        total += leaf.get_parameter("weight").numel() * (math.prod(shapes[node.name]) // outs)
    return total


def _noise(spec: InputSpec, rows: int, generator: torch.Generator) -> Tensor:
    """Return normal noise; of pictures, coarse and fine structure in equal shares, as pictures have it."""
    fine = torch.randn(rows, *spec.shape, generator=generator)
    if len(spec.shape) != 3 or min(spec.shape[1:]) < 2 * COARSEST:
        return fine
    total, scale = fine, 2
    while min(spec.shape[1:]) // scale >= COARSEST:
        coarse = torch.randn(rows, spec.shape[0], *(size // scale for size in spec.shape[1:]), generator=generator)
        total = total + F.interpolate(coarse, size=spec.shape[1:], mode="bilinear", align_corners=False)
        scale *= 2
    whole = total / total.std((0, 2, 3), keepdim=True)
    return whole.contiguous(memory_format=torch.channels_last)


def _fitted(folded: fx.GraphModule, drawn: Sequence[Tensor], steps: int) -> list[Tensor]:
    """Return inputs moved until the layers' means and deviations are those of their BatchNorms."""
    inputs = [item.clone().requires_grad_() for item in drawn]
    optimizer = torch.optim.Adam(inputs, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(steps):
        strangeness = _Strangeness(folded)
        with torch.enable_grad():
            strangeness.run(*inputs)
            if not strangeness.terms:
                break
            loss = torch.stack([*strangeness.terms, *(_distance(item, 0.0, 1.0) for item in inputs)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return [item.detach() for item in inputs]


class _Strangeness(fx.Interpreter):
    """Runs a BatchNorm-folded network and notes how far its layers' outputs are from what their BatchNorms hold."""

    def __init__(self, folded: fx.GraphModule) -> None:
        super().__init__(folded)
        self._folded = folded
        self.terms: list[Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        leaf = module_of(self._folded, n) if n.op == "call_module" else None
        if getattr(leaf, "bn_beta", None) is not None:
            beta, gamma = (getattr(leaf, name).detach() for name in ("bn_beta", "bn_gamma"))
            self.terms.append(_distance(value, beta, gamma.abs()))
        return value


def _distance(value: Tensor, mean: Tensor | float, deviation: Tensor | float) -> Tensor:
    """Return the squared distance of means and deviations per channel from those wanted, over the wanted variance."""
    channels = value.transpose(0, 1).flatten(1)
    wrong = (channels.mean(1) - mean).square() + (channels.std(1) - deviation).square()
    scale = torch.as_tensor(deviation).square().mean().clamp_min(1e-12)
    return wrong.mean() / scale
