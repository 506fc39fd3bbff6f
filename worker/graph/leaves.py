"""Leaves of the canonical graph that are not torch's own: operations whose sizes change when channels are removed.

Holding such sizes on a leaf, as weights are held, keeps the graph and its compiled forward the same for every pruned
version of a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Reshape(nn.Module):
    """`x.reshape(sizes)`; the one entry of -1 is the dimension that holds the batch."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Reshape a batch."""
        return x.reshape(self.sizes)


class Slice(nn.Module):
    """`x[start:stop:step]` along one dimension; start and stop are not negative."""

    def __init__(self, dim: int, start: int, stop: int, step: int = 1) -> None:
        super().__init__()
        self.dim, self.start, self.stop, self.step = dim, start, stop, step

    def forward(self, x: Tensor) -> Tensor:
        """Cut a piece out of a batch."""
        index: list[Any] = [slice(None)] * self.dim
        return x[(*index, slice(self.start, self.stop, self.step))]


class Take(nn.Module):
    """The entries `index` (int64, one dimension) along one dimension."""

    index: Tensor

    def __init__(self, dim: int, index: Tensor) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index", index.long().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Pick entries of a batch."""
        return x.index_select(self.dim, self.index)


class Expand(nn.Module):
    """`x.expand(sizes)`; -1 leaves a dimension as it is."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Repeat dimensions of extent one."""
        return x.expand(self.sizes)


class ChannelPad(nn.Module):
    """Zeros (or `value`) before and behind the channels (dimension 1)."""

    def __init__(self, before: int, behind: int, value: float) -> None:
        super().__init__()
        self.before, self.behind, self.value = before, behind, value

    def forward(self, x: Tensor) -> Tensor:
        """Pad a batch."""
        sides = [0, 0] * (x.dim() - 2) + [self.before, self.behind]
        return nn.functional.pad(x, sides, value=self.value)


class Recurrent(nn.Module):
    """One layer of an LSTM or GRU from a zero state; `part` names the result: "sequence" or (of an LSTM) "cell".

    Sequences are (T, N, features), or (N, T, features) where `batch_first`; cell states are (directions, N, hidden).
    The last hidden states need no part: the sequence holds them.
    """

    def __init__(self, core: nn.LSTM | nn.GRU, part: str) -> None:
        super().__init__()
        self.core, self.part = core, part

    @property
    def cell(self) -> str:
        """ "LSTM" or "GRU"."""
        return type(self.core).__name__

    @property
    def batch_first(self) -> bool:
        """Tell whether sequences come as (N, T, features)."""
        return bool(self.core.batch_first)

    def forward(self, x: Tensor) -> Tensor:
        """Run a batch of sequences."""
        sequence: Tensor
        if x.is_meta:  # for shapes alone one step is enough: there torch walks over all of them, 10 ms each
            axis = 1 if self.batch_first else 0
            sequence, state = self.core(x.narrow(axis, 0, min(1, x.shape[axis])))
            sizes = [*sequence.shape[:axis], x.shape[axis], *sequence.shape[axis + 1 :]]
            return sequence.new_empty(sizes) if self.part == "sequence" else state[1]
        sequence, state = self.core(x)
        return sequence if self.part == "sequence" else state[1]


def vector(item: Tensor | None, like: Tensor, fill: float) -> nn.Parameter:
    """Return a float32 parameter vector, or `fill` in the size of `like` where there is none."""
    found = torch.full_like(like, fill) if item is None else item.detach()
    return nn.Parameter(found.float().reshape(-1).clone())
