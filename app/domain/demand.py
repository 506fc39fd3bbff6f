"""Latency limits that only a measurement can show to be kept, and what follows from measurements for a search.

A search allocates on modelled milliseconds. Where its limit demands measured evidence, files are timed on the device
beside the float file, in the same interleaved rounds, and the model is corrected: `aim` is the modelled limit that
corresponds to the measured one.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from app.domain.device import DeviceProfile, Pair
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, SearchSpace, widest

HOST_PROFILE = "onnxruntime-cpu"
WIDEST = 100.0
MARGIN = 0.03  # a file must be this much below its limit, so that it keeps the limit when it is timed again
NARROW = 0.01  # and by this much in each of two sessions
NEAREST, NEARNESS = 6, 0.05
SLOPES = (0.2, 2.5)
FLOAT_MULTIPLE = 2  # below 16 channels ONNX Runtime's float kernels take any number; what more costs is timed
LADDER = (1.0, 0.5, 0.25, 0.125)
STATS: Mapping[str, str] = {"min": "min_ms", "p50": "median_ms", "p95": "p95_ms"}

Stat = Literal["min", "p50", "p95"]


@dataclass(frozen=True)
class Demand:
    """One measured latency limit: milliseconds (`max`), or a share of the float or W8A8 file's measured latency."""

    max: float | None = None
    relative: float | None = None
    relative_to: Literal["float", "w8a8"] = "float"
    stat: Stat = "min"

    @property
    def is_relative(self) -> bool:
        """Tell whether the limit is a share of another file's latency."""
        return self.max is None


@dataclass(frozen=True)
class Timing:
    """One file's measured latency beside the modelled one; `beside` is the float file's in the same rounds.

    Both mappings hold min_ms, median_ms, p95_ms (milliseconds, batch 1) and runs.
    """

    digest: str
    modelled_ms: float
    latency: Mapping[str, float]
    beside: Mapping[str, float]

    def ms(self, stat: str = "min") -> float:
        """Return one figure in milliseconds."""
        return float(self.latency[STATS[stat]])

    def share(self, stat: str = "min") -> float:
        """Return the figure as a share of the float file's in the same rounds: what a busy machine changes least."""
        return self.ms(stat) / float(self.beside[STATS[stat]])


@dataclass(frozen=True)
class Standard:
    """What timings are held against: the demand, and the float file's and the reference file's timings."""

    demand: Demand
    float_file: Timing
    reference: Timing

    @property
    def limit_ms(self) -> float:
        """Return the limit in milliseconds."""
        if self.demand.max is not None:
            return self.demand.max
        assert self.demand.relative is not None, "a demand is absolute or relative"
        return self.demand.relative * self.value_ms(self.reference)

    def value_ms(self, timing: Timing) -> float:
        """Return a timing's figure, under a relative limit as if the float file had run as fast as when first timed."""
        stat = self.demand.stat
        return timing.share(stat) * self.float_file.ms(stat) if self.demand.is_relative else timing.ms(stat)

    def keeps(self, timing: Timing) -> bool:
        """Tell whether a timing keeps the limit narrowly: what a second session must confirm."""
        return self.value_ms(timing) <= self.limit_ms * (1 - NARROW)

    def is_met(self, timing: Timing) -> bool:
        """Tell whether a timing keeps the limit with the margin."""
        return self.value_ms(timing) <= self.limit_ms * (1 - MARGIN)

    def line(self, timings: Iterable[Timing]) -> Line:
        """Return log measured over log modelled, fitted to the timings nearest to the limit, the nearer the closer."""
        goal = math.log(self.limit_ms)
        points = [(math.log(item.modelled_ms), math.log(self.value_ms(item)), item.digest) for item in timings]
        near = sorted(points, key=lambda point: (abs(point[1] - goal), point[2]))[:NEAREST]
        weights = [1 / (NEARNESS + abs(y - goal)) for _, y, _ in near]
        return _fitted([point[0] for point in near], [point[1] for point in near], weights)

    def aim_ms(self, timings: Iterable[Timing]) -> float:
        """Return the modelled limit at which the measured one, less its margin, is expected to be kept."""
        return self.line(timings).modelled_ms(self.limit_ms * (1 - MARGIN))


@dataclass(frozen=True)
class Line:
    """log(measured) = offset + slope * log(modelled), in milliseconds."""

    offset: float
    slope: float

    def measured_ms(self, modelled_ms: float) -> float:
        """Return the latency to expect of a modelled one."""
        return math.exp(self.offset + self.slope * math.log(modelled_ms))

    def modelled_ms(self, measured_ms: float) -> float:
        """Return the modelled latency to aim at for a measured one."""
        return math.exp((math.log(measured_ms) - self.offset) / self.slope)


def _fitted(xs: Sequence[float], ys: Sequence[float], weights: Sequence[float]) -> Line:
    """Return the weighted least squares line; its slope stays within `SLOPES`, 1 where one point gives none."""
    total = sum(weights)
    x = sum(w * value for w, value in zip(weights, xs, strict=True)) / total
    y = sum(w * value for w, value in zip(weights, ys, strict=True)) / total
    spread = sum(w * (value - x) ** 2 for w, value in zip(weights, xs, strict=True))
    shared = sum(w * (a - x) * (b - y) for w, a, b in zip(weights, xs, ys, strict=True))
    slope = 1.0 if spread < 1e-9 * total else min(max(shared / spread, SLOPES[0]), SLOPES[1])
    return Line(y - slope * x, slope)


def demand_of(request: Mapping[str, Any]) -> Demand | None:
    """Return the measured latency limit of a request (None: it has none)."""
    for item in request.get("limits") or ():
        if item.get("evidence") == "measured":
            base: Literal["float", "w8a8"] = "w8a8" if item.get("relative_to", "w8a8") == "w8a8" else "float"
            return Demand(item.get("max"), item.get("relative"), base, item.get("stat") or "min")
    return None


def is_host(device_name: str) -> bool:
    """Tell whether a profile stands for the machine the worker runs on: the built-in one, or one derived from it."""
    return device_name == HOST_PROFILE or device_name.startswith(f"{HOST_PROFILE}-")


def ladder(graph: ModelGraph, space: SearchSpace, bits: Pair) -> tuple[Assignment, ...]:
    """Return uniform assignments with `bits` (weight, activation), from full to an eighth of the width, to correct a
    model by."""
    whole, found = widest(graph, bits[1]), {}
    weights = dict.fromkeys(whole.weight_bits, bits[0])
    for ratio in LADDER:
        keep = {
            group.id: min(space.keep[group.id], key=lambda count, full=group.channels: abs(count - ratio * full))  # type: ignore[misc]
            for group in graph.groups
        }
        item = Assignment(keep, weights, whole.activation_bits)
        found[item.digest] = item
    return tuple(found.values())


def integers_slower_by(floats: Sequence[Timing], integers: Sequence[Timing]) -> float:
    """Return the geometric mean of integer time / float time over networks of equal widths (above 1: slower)."""
    pairs = zip(floats, integers, strict=True)
    return math.exp(statistics.fmean(math.log(eight.share() / whole.share()) for whole, eight in pairs))


def width_at(points: Sequence[tuple[float, float]], limit_ms: float) -> float:
    """Return the width at which networks take `limit_ms`: (width, milliseconds) of one ladder, interpolated between
    neighbours on logarithmic scales, the outermost two carried on, to `WIDEST` at most (tiny networks of every width
    take the same time)."""
    if len(points) < 2:
        return points[0][0] if points[0][1] <= limit_ms else 0.0
    logs = sorted((math.log(width), math.log(time)) for width, time in points)
    target = math.log(limit_ms)
    pairs = list(itertools.pairwise(logs))
    low, high = next((pair for pair in pairs if pair[1][1] >= target), pairs[-1])
    rise = max(high[1] - low[1], 1e-9)
    return math.exp(min(low[0] + (target - low[1]) / rise * (high[0] - low[0]), math.log(WIDEST)))


def float_only(device: DeviceProfile) -> DeviceProfile:
    """Return the device as one that runs floats alone: for searches where 8 bits were measured to be slower."""
    return replace(
        device,
        pairs={"default": ((32, 32),)},
        input_bits=32,
        output_bits=32,
        channel_multiple={"default": FLOAT_MULTIPLE},
    )


def narrow_pair(device: DeviceProfile) -> Pair | None:
    """Return the widest legal pair of weights below 8 bits on 8-bit activations (None: there is none).

    ONNX Runtime may run it faster than 8 x 8 bits, whose products need care on some processors.
    """
    return max((pair for pairs in device.pairs.values() for pair in pairs if pair[0] < 8 == pair[1]), default=None)


def narrow_only(device: DeviceProfile) -> DeviceProfile:
    """Return the device without pairs of 8-bit weights on 8-bit activations, where others are left."""
    kept = {kind: tuple(pair for pair in pairs if pair != (8, 8)) for kind, pairs in device.pairs.items()}
    return replace(device, pairs={kind: pairs or device.pairs[kind] for kind, pairs in kept.items()})


def runs_floats(device: DeviceProfile) -> bool:
    """Tell whether the device computes float layers."""
    return any(entry.weight_bits >= 32 and entry.activation_bits >= 32 for entry in device.compute)
