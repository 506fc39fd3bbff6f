"""Latency tables: milliseconds of one kernel, learnt from measurements on a device, and of a network made of kernels.

A table is data: it is stored in a device profile and evaluated without the libraries that fitted it. Times grow, never
fall, with every extent of a kernel, so that bounds on costs stay bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)

BLOCK, QUAD, OCTET = 16, 4, 8
"""Channels of a float block and of one integer vector; what channel counts must divide by for the fast kernels."""
CACHE_BYTES = 1 << 20
LAYERS = ("conv", "depthwise", "linear", "grouped")


@dataclass(frozen=True)
class Work:
    """What one kernel does at batch 1: the key a latency table is asked with.

    `op` is a layer kind (conv, depthwise, linear) or the op table's name of a step; `precision` is "float", "int8",
    "uint8" (8 bits on both sides; see `as_run`) or "int16" (what the runtime computes in). `ins` and `outs` are
    channels (columns of a linear layer), `kernel` the product of the kernel's extents or a step's window, `positions`
    the output positions, `stride` the product of the strides.
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
    """Fitted coefficients by kernel class, the whole-network correction, error bars, and how it was measured.

    `coefficients` holds milliseconds per unit of each feature (`variants`); `correction` a slope per precision and
    "overhead_ms" per inference; `errors` the relative error that nine of ten predictions stay below ("all", and by
    class of network); `saturating` whether the device's rules are (`DeviceProfile.saturating_pairs`).
    """

    coefficients: Mapping[str, Mapping[str, float]]
    correction: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    saturating: bool = False

    def kernel_ms(self, work: Work) -> float:
        """Return one kernel's milliseconds within a network.

        Grows with `ins` and `outs` as long as they stay in one class of alignment (multiples of 16, of 4, others).
        """
        work = as_run(work, self.saturating)
        total = 0.0
        for key, weight, features in variants(work):
            row = self.coefficients.get(key) or self._fallback(work)
            total = total + weight * sum(row.get(name, 0.0) * value for name, value in features.items())
        return total * self.correction.get(work.precision, 1.0)

    @property
    def overhead_ms(self) -> float:
        """Milliseconds per inference besides the kernels."""
        return self.correction.get("overhead_ms", 0.0)

    @property
    def error_p90(self) -> float | None:
        """The relative error that nine of ten predictions of whole networks stay below; None: never checked."""
        return self.errors.get("all")

    def network_ms(self, works: Iterable[Work]) -> float:
        """Return a network's milliseconds from its kernels."""
        return self.overhead_ms + sum(self.kernel_ms(work) for work in works)

    def covers(self, work: Work) -> bool:
        """Tell whether kernels of this class were measured; others are estimated by the mean of their like."""
        return all(key in self.coefficients for key, weight, _ in variants(as_run(work, self.saturating)) if weight)

    def missing(self, works: Iterable[Work]) -> tuple[str, ...]:
        """Return the classes of kernels that are estimated, not measured, sorted."""
        run = (as_run(work, self.saturating) for work in works)
        keys = {key for work in run for key, weight, _ in variants(work) if weight}
        return tuple(sorted(keys - self.coefficients.keys()))

    def _fallback(self, work: Work) -> Mapping[str, float]:
        """Return coefficients for a class never measured: per feature the mean over the classes alike."""
        alike = [key for key in self.coefficients if _is_layer(key) == (work.op in LAYERS)]
        same = [key for key in alike if key.split(".")[1] == work.precision] or alike
        found: dict[str, float] = {}
        for key in same:
            for name, value in self.coefficients[key].items():
                found[name] = found.get(name, 0.0) + value / len(same)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyTable:
        """Rebuild what `to_json` wrote."""
        coefficients, correction, errors = data["coefficients"], data["correction"], data["errors"]
        saturating = data.get("saturating", True)  # older tables were all fitted so
        return cls(coefficients, correction, errors, data["conditions"], saturating)


def as_run(work: Work, saturating: bool) -> Work:
    """Return a kernel as a device runs it: "uint8" is a kernel of its own only where pairs of products saturate."""
    return work if saturating or work.precision != "uint8" else replace(work, precision="int8")


def _is_layer(key: str) -> bool:
    return key.split(".")[0] in LAYERS


def padded(channels: Number, multiple: int) -> Number:
    """Round channels up to a multiple (of a device or of a vector)."""
    return -(-channels // multiple) * multiple


def is_blocked(work: Work) -> bool:
    """Tell whether a layer runs on the runtime's fast kernels for whole vectors of channels (integers if arrays).

    Integer convolutions want multiples of 4 and at least 16 results, float ones multiples of 4 of at least 16 inputs,
    depthwise ones multiples of 16 (integers) or 4 (float).
    """
    if work.op == "depthwise":
        return work.outs % (BLOCK if work.precision == "int8" else QUAD) == 0
    if work.precision == "int8":
        return (work.ins % QUAD == 0) & (work.outs % QUAD == 0) & (work.outs >= BLOCK)
    return (work.ins % QUAD == 0) & (work.ins >= BLOCK)


def variants(work: Work) -> tuple[tuple[str, float, dict[str, float]], ...]:
    """Return the classes a kernel may fall in: name, 1 where it does (0 where not), features.

    Exactly one weight is 1 for numbers; for arrays the weights select by element.
    """
    base = f"{work.op}.{work.precision}"
    if work.op not in LAYERS:
        elements = work.outs * work.positions
        features = {"calls": 1.0, "elements": elements, "reads": elements * work.kernel}
        return ((base, 1.0, {**features, "spilled": spilled(work, elements)}),)
    if work.op == "linear":
        features = _products(work, work.ins * 1.0, padded(work.outs, BLOCK))
        return ((base, 1.0, features),)
    shape = "depthwise" if work.op == "depthwise" else "pointwise" if work.kernel == 1 else "window"
    if work.precision == "uint8":
        return (
            (f"{base}.{shape}", 1.0, _products(work, padded(work.ins * work.kernel, QUAD), padded(work.outs, BLOCK))),
        )
    blocked = is_blocked(work) * 1.0
    if work.op == "depthwise":
        return (
            (f"{base}.blocked", blocked, _depthwise(work, padded(work.outs, BLOCK))),
            (f"{base}.odd", 1.0 - blocked, _depthwise(work, work.outs)),
        )
    if work.precision == "int8":
        return (
            (f"{base}.{shape}.blocked", blocked, _products(work, work.ins * work.kernel, padded(work.outs, BLOCK))),
            (
                f"{base}.{shape}.odd",
                1.0 - blocked,
                _products(work, padded(work.ins * work.kernel, QUAD), padded(work.outs, BLOCK)),
            ),
        )
    direct = (work.ins < BLOCK) * 1.0
    return (
        (f"{base}.{shape}.direct", direct, _products(work, work.ins * work.kernel, padded(work.outs, BLOCK))),
        (
            f"{base}.{shape}.blocked",
            blocked,
            _products(work, padded(work.ins, BLOCK) * work.kernel, padded(work.outs, BLOCK)),
        ),
        (
            f"{base}.{shape}.odd",
            1.0 - direct - blocked,
            _products(work, work.ins * work.kernel, padded(work.outs, QUAD)),
        ),
    )


def spilled(work: Work, elements: float) -> float:
    """Return the bytes of activations beyond what stays in a core's cache between kernels."""
    excess = elements * (4 if work.precision == "float" else 1) - CACHE_BYTES
    return excess * (excess > 0)


def _products(work: Work, depth: float, outs: float) -> dict[str, float]:
    weights = depth * outs
    return {
        "calls": 1.0,
        "macs": weights * work.positions,
        "strided_reads": depth * work.positions * (work.stride > 1),
        "edge_macs": weights * work.positions**0.5,
        "weights": weights,
        "reads": depth * work.positions,
        "elements": outs * work.positions,
        "positions": 1.0 * work.kernel * work.positions,
        "spilled": spilled(work, (work.ins * work.stride + work.outs) * work.positions),
    }


def _depthwise(work: Work, outs: float) -> dict[str, float]:
    return {
        "calls": 1.0,
        "macs": outs * work.kernel * work.positions,
        "strided_macs": outs * work.kernel * work.positions * (work.stride > 1),
        "elements": outs * work.positions,
        "edge_macs": outs * work.kernel * work.positions**0.5,
        "positions": 1.0 * work.kernel * work.positions,
        "spilled": spilled(work, (work.stride + 1) * work.outs * work.positions),
        "rest": (work.outs % OCTET) * work.kernel * work.positions,
    }
