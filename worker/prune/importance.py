"""Which channels matter: the output energy that consumers lose without them, after a refit on what is left.

Without a refit, a channel whose mean its consumers absorb costs them var(x_c) * ||W[:, c]||^2 (the identity behind He
et al. 2017). Where the consumer is refitted by least squares on the channels left, removing the block c of its inputs
costs tr(W_c ((G^-1)_cc)^-1 W_c^T), G their Gram matrix (Optimal Brain Surgeon, Hassibi & Stork 1993, eq. 5, for
blocks). The cheapest channel of a group goes first, the consumers are refitted, and so on: so every group has one
order, and keeping more channels keeps a superset. Each consumer's loss counts as a share of its output energy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.domain.graph import ChannelGroup
from worker.graph.groups import ChannelPlan
from worker.prune.reconstruct import Moments

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]
Costs = np.ndarray[tuple[int], np.dtype[np.float64]]

MAX_COLUMNS = 2304
STEPS = 64
RIDGE = 0.01
TINY = 1e-12


@dataclass(frozen=True)
class _Consumer:
    """A layer that reads channels: its Gram matrix [d, d] (or per group), weights [o, d], and its columns' channels."""

    moments: Moments
    weight: Tensor
    channel: Indices


class ChannelScores:
    """Gathers the consumers of every group and tells in which order its channels are given up."""

    def __init__(self, plan: ChannelPlan) -> None:
        self.plan = plan
        self._consumers: dict[str, _Consumer] = {}
        self._order: dict[str, Indices] = {}

    def add(self, layer: str, moments: Moments, weight: Tensor) -> None:
        """Add a consumer: the moments of its inputs, its weights [out, columns / groups, k]."""
        channel = np.repeat(np.asarray(self.plan.dims[(layer, "in")].channel), weight.shape[2])
        self._consumers[layer] = _Consumer(moments, weight.flatten(1), channel)
        self._order.clear()

    def kept(self, keep: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Return per group the indices of the `keep[group]` best channels, ascending (ties: the lower index)."""
        found = {}
        for group in self.plan.groups:
            count = keep[group.id]
            if count >= group.channels:
                found[group.id] = tuple(range(group.channels))
                continue
            if group.id not in self._order:
                self._order[group.id] = self._removed(group)
            best = np.sort(self._order[group.id][group.channels - count :])
            found[group.id] = tuple(int(index) for index in best)
        return found

    def _removed(self, group: ChannelGroup) -> Indices:
        """Return a group's channels in the order in which they are given up."""
        start = self.plan.offsets[group.id]
        fixed, readers = np.zeros(group.channels), []
        for consumer in self._consumers.values():
            own = (consumer.channel >= start) & (consumer.channel < start + group.channels)
            if own.any():
                owner = np.where(own, consumer.channel - start, -1)
                reader = _Reader.of(consumer, owner, group.channels)
                if reader is None:
                    fixed += _energy(consumer, owner, group.channels)
                else:
                    readers.append(reader)
        return _eliminated(fixed, readers)


class _Reader:
    """A consumer in the course of elimination: weights refitted to what is left, and its inverse Gram matrix."""

    def __init__(self, consumer: _Consumer, columns: Tensor) -> None:
        gram = consumer.moments.gram.double()
        self.columns, self.weight = columns, consumer.weight.double()
        self.total = max(float(((self.weight @ gram) * self.weight).sum()), TINY)
        ridge = RIDGE * gram.diagonal().mean().clamp_min(TINY)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + ridge * torch.eye(len(gram)).double()))

    @classmethod
    def of(cls, consumer: _Consumer, owner: Indices, count: int) -> _Reader | None:
        """Return the reader for a group of `count` channels, given whose each column is (-1: another group's).

        None where there is nothing to refit (layers in groups), where channels own unequal numbers of columns, and
        where there are too many.
        """
        shares = np.bincount(owner[owner >= 0], minlength=count)
        if consumer.moments.gram.dim() == 3 or len(owner) > MAX_COLUMNS or len(set(shares)) > 1:
            return None
        order = np.argsort(owner, kind="stable")[len(owner) - int(shares.sum()) :]
        return cls(consumer, torch.from_numpy(order.reshape(count, -1)))

    def costs(self, alive: Tensor) -> Costs:
        """Return for channels still there [a] the share of the output energy that is lost without each."""
        columns = self.columns[alive]
        blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
        weights = self.weight[:, columns].permute(1, 2, 0)
        lost: Tensor = (weights * torch.linalg.solve(blocks, weights)).sum((1, 2)) / self.total
        found: Costs = lost.numpy()
        return found

    def remove(self, channels: Tensor) -> None:
        """Refit to what is left without some channels."""
        gone = self.columns[channels].reshape(-1)
        across = self.inverse[gone]
        solved = torch.linalg.solve(across[:, gone], across)
        self.weight = self.weight - self.weight[:, gone] @ solved
        self.inverse = self.inverse - across.T @ solved


def _eliminated(fixed: Costs, readers: list[_Reader]) -> Indices:
    """Return channels in the order in which the cheapest goes, in `STEPS` rounds at most; of equals the last first."""
    alive = np.arange(len(fixed))
    order: list[int] = []
    at_once = -(-len(fixed) // STEPS)
    while len(alive):
        cost = fixed[alive].copy()
        for reader in readers:
            cost += reader.costs(torch.from_numpy(alive))
        gone = alive[::-1][np.argsort(cost[::-1], kind="stable")[:at_once]]
        order.extend(gone)
        alive = np.setdiff1d(alive, gone)
        for reader in readers:
            reader.remove(torch.from_numpy(gone.copy()))
    return np.array(order, dtype=np.int64)


def _energy(consumer: _Consumer, owner: Indices, count: int) -> Costs:
    """Return per channel the share of a consumer's output energy that is lost without a refit."""
    variance = consumer.moments.gram.diagonal(dim1=-2, dim2=-1)
    by_group = consumer.weight.reshape(variance.shape[0] if variance.dim() == 2 else 1, -1, consumer.weight.shape[1])
    lost = (by_group.square().sum(1) * variance.reshape(len(by_group), -1)).reshape(-1).double().numpy()
    found = np.zeros(count)
    np.add.at(found, owner[owner >= 0], (lost / max(lost.sum(), TINY))[owner >= 0])
    return found
