"""A stored channel gate: which filters of a group run, decided per sample from what the group's layer reads.

It is the evaluated form of `worker.methods.gating.FilterGate`, its norm folded in, and it stays float:

    s = mean over positions of x,  pi = W_2 relu(W_1 s + b_1) + b_2,  g = 1[pi >= 0]

Where no filter is always on, the gate with the largest pi is: a runtime that skips has something left to compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from worker.quant.integer import Codes

Array = NDArray[np.float32]
ALWAYS_ON = -1


@dataclass(frozen=True)
class StoredGate:
    """The gate of one channel group.

    `reads` is the node whose value, with its channels along `read_axis`, decides. `squeeze` [hidden, channels] and
    `excite` [gates, hidden] with their biases are float32; `owner` [filters] is each filter's gate, -1 for those that
    are always on. `axis` is where the filters lie in the gated value.
    """

    group: str
    reads: str
    squeeze: Array
    squeeze_bias: Array
    excite: Array
    excite_bias: Array
    owner: tuple[int, ...]
    read_axis: int = 1
    axis: int = 1

    @property
    def keeps_one(self) -> bool:
        """Tell whether the largest logit counts as on, since no filter is always."""
        return ALWAYS_ON not in self.owner

    @property
    def bytes(self) -> int:
        """Return what its weights take in memory: float32."""
        return 4 * sum(item.size for item in (self.squeeze, self.squeeze_bias, self.excite, self.excite_bias))

    @property
    def macs(self) -> int:
        """Return the multiply-accumulates of its two layers; pooling adds one addition per value that it reads."""
        return int(self.squeeze.size + self.excite.size)

    def logits(self, x: Tensor) -> Tensor:
        """Return pi [n, gates] for a batch of what it reads."""
        squeeze, shift, excite, bias = (
            torch.from_numpy(item).to(x.device)
            for item in (self.squeeze, self.squeeze_bias, self.excite, self.excite_bias)
        )
        return F.linear(F.relu(F.linear(pooled(x, self.read_axis), squeeze, shift)), excite, bias)

    def mask(self, x: Tensor) -> Tensor:
        """Return which filters run [n, filters], as truth values."""
        on = decided(self.logits(x), self.keeps_one)
        on = torch.cat([on, on.new_ones(len(on), 1)], 1)
        return on[:, torch.tensor(self.owner, device=on.device)]

    def apply(self, value: Any, mask: Tensor) -> Any:
        """Return a value, real or codes, with zeros where filters do not run; the grid's zero is exact."""
        raw = value.raw if isinstance(value, Codes) else value
        shape = [1] * raw.dim()
        shape[0], shape[self.axis] = mask.shape
        kept = mask.reshape(shape)
        if isinstance(value, Codes):
            zero = torch.tensor(value.grid.zero_point, dtype=raw.dtype, device=raw.device)
            return Codes(torch.where(kept, raw, zero), value.grid)
        return value * kept.to(value.dtype)


def pooled(x: Tensor, axis: int = 1) -> Tensor:
    """Return the mean over all positions [n, channels] of a value with its channels along `axis`."""
    others = [dim for dim in range(1, x.dim()) if dim != axis % x.dim()]
    return x.mean(others) if others else x


def decided(logits: Tensor, keeps_one: bool) -> Tensor:
    """Return which gates are on [n, gates], as truth values; with `keeps_one` the one with the largest logit is."""
    if not keeps_one or not logits.shape[1]:
        return logits >= 0
    return logits >= logits.amax(1, keepdim=True).clamp_max(0)


def readers(gates: Mapping[str, StoredGate]) -> dict[str, list[str]]:
    """Return the gated sites by the node whose value decides on them."""
    found: dict[str, list[str]] = {}
    for site, gate in gates.items():
        found.setdefault(gate.reads, []).append(site)
    return found
