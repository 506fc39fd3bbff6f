"""Latency tables: milliseconds of one kernel, learnt from measurements on a device, and of a network made of kernels.

A table is data: it is stored in a device profile and evaluated without the libraries that fitted it. Times grow, never
fall, with every extent of a kernel, so that bounds on costs stay bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Work:
    """What one kernel does at batch 1: the key a latency table is asked with.

    `op` is a layer kind (conv, depthwise, linear) or the op table's name of a step; `precision` is "float", "int8" or
    "int16" (what the runtime computes in). `ins` and `outs` are channels (columns of a linear layer), `kernel` the
    product of the kernel's extents or a step's window, `positions` the output positions, `stride` the product of the
    strides.
    """

    op: str
    precision: str
    ins: float
    outs: float
    kernel: int = 1
    positions: int = 1
    stride: int = 1

    @property
    def macs(self) -> float:
        """Multiply-accumulates (elements times window for a step)."""
        return self.outs * self.ins * self.kernel * self.positions


@dataclass(frozen=True)
class LatencyTable:
    """Fitted coefficients by kernel class, the whole-network correction, error bars, and how it was measured."""

    coefficients: Mapping[str, Mapping[str, float]]
    correction: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyTable:
        """Rebuild what `to_json` wrote."""
        return cls(data["coefficients"], data["correction"], data["errors"], data["conditions"])
