"""Which channels matter: activation variance times the squared weights that read it.

Removing a channel whose mean its consumers absorb costs them var(x_c) * ||W[:, c]||^2 of output energy (the identity
behind He et al. 2017); the score of a channel is that sum over all its consumers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from worker.graph.groups import ChannelPlan


class ChannelScores:
    """Accumulates one score per channel of every group."""

    def __init__(self, plan: ChannelPlan) -> None:
        self.plan = plan
        self._scores = np.zeros(plan.total)

    def add(self, layer: str, variance: Tensor, weight: Tensor) -> None:
        """Add a consumer: `variance` [columns, k] of its inputs, `weight` [out, columns / groups, k]."""
        groups = variance.shape[0] // weight.shape[1]
        energy = weight.square().reshape(groups, -1, *weight.shape[1:]).sum(1).reshape(variance.shape)
        channel = self.plan.dims[(layer, "in")].channel
        np.add.at(self._scores, channel, (energy * variance).sum(-1).double().numpy())

    def kept(self, keep: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Return per group the indices of the `keep[group]` best channels, ascending (ties: the lower index)."""
        found = {}
        for group in self.plan.groups:
            start = self.plan.offsets[group.id]
            scores = self._scores[start : start + group.channels]
            order = np.argsort(-scores, kind="stable")[: keep[group.id]]
            found[group.id] = tuple(int(index) for index in np.sort(order))
        return found

    def of(self, group: str) -> Tensor:
        """Return the scores [channels] of one group."""
        size = next(item.channels for item in self.plan.groups if item.id == group)
        return torch.from_numpy(self._scores[self.plan.offsets[group] : self.plan.offsets[group] + size].copy())
