"""What ONNX Resize does along one dimension: which entries it picks, or how it weighs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worker.graph.ops.table import OnnxCall, refuse


@dataclass(frozen=True)
class Along:
    """Interpolation along one dimension of an extent: entries by `index` [size], or `weights` [size, extent]."""

    extent: int
    index: Tensor | None
    weights: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def size(self) -> int:
        """Return the extent of the result."""
        return len(self.weights if self.index is None else self.index)

    def is_nothing(self) -> bool:
        """Tell whether the dimension stays as it is."""
        if self.index is not None:
            return torch.equal(self.index, torch.arange(self.extent))
        return self.size == self.extent and torch.equal(self.weights, torch.eye(self.extent))


def along_onnx(call: OnnxCall, extent: int, size: int, factor: float) -> Along:
    """Return what a Resize node does along a dimension (ONNX operator Resize, in float32 as runtimes compute it)."""
    mode, attributes = call.attributes.get("mode", "nearest"), call.attributes
    if attributes.get("antialias", 0) and factor < 1:
        raise refuse(call.name, "Resize with antialiasing")
    places = _places(call, extent, size, factor)
    rounding = attributes.get("nearest_mode", "round_prefer_floor")
    coefficient, outside = float(attributes.get("cubic_coeff_a", -0.75)), attributes.get("exclude_outside", 0)
    if mode == "nearest" and attributes.get("coordinate_transformation_mode") == "half_pixel_symmetric":
        raise refuse(call.name, "nearest Resize by half_pixel_symmetric: ties depend on a runtime's rounding")
    if mode == "nearest" and rounding.startswith("round") and _close_calls(call, places, factor):
        raise refuse(call.name, f"nearest Resize from {extent} to {size}: ties depend on a runtime's rounding")
    if mode == "nearest" and rounding in _ROUNDED:
        return Along(extent, _ROUNDED[rounding](places).long().clamp(0, extent - 1))
    if mode == "linear" and not outside:
        return Along(extent, None, _linear(places.clamp(0, extent - 1), extent))
    if mode == "cubic":
        return Along(extent, None, _cubic(places, extent, coefficient, bool(outside)))
    raise refuse(call.name, f"Resize with mode {mode!r} and {rounding!r}")


_ROUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _close_calls(call: OnnxCall, places: Tensor, factor: float) -> bool:
    """Tell whether some place lies halfway between entries but for rounding: the factor has no short binary form."""
    inexact = (torch.tensor(factor, dtype=torch.float32).item() * 1024) % 1 != 0
    from_centre = (places - places.floor() - 0.5).abs()
    close = bool((from_centre <= 1e-6 * places.abs().clamp(min=1)).any())
    return inexact and close and call.attributes.get("coordinate_transformation_mode") != "align_corners"


def _places(call: OnnxCall, extent: int, size: int, factor: float) -> Tensor:
    """Return, for each output, its place among the inputs."""
    kind = call.attributes.get("coordinate_transformation_mode", "half_pixel")
    steps, scale = torch.arange(size, dtype=torch.float32), torch.tensor(factor, dtype=torch.float32)
    if factor == 1 and size == extent:
        return steps
    if kind == "half_pixel" or (kind == "pytorch_half_pixel" and size > 1):
        return (steps + 0.5) / scale - 0.5
    if kind == "pytorch_half_pixel" or (kind == "align_corners" and size == 1):
        return torch.zeros(size)
    if kind == "align_corners":
        return steps * (extent - 1) / (size - 1)
    if kind == "asymmetric":
        return steps / scale
    if kind == "half_pixel_symmetric":
        shift = extent / 2 * (1 - size / (scale * extent))
        return shift + (steps + 0.5) / scale - 0.5
    raise refuse(call.name, f"Resize by {kind}")


def _linear(places: Tensor, extent: int) -> Tensor:
    low = places.floor().long()
    share = (places - low)[:, None]
    rows = torch.eye(extent)
    return rows[low] * (1 - share) + rows[(low + 1).clamp(max=extent - 1)] * share


def _cubic(places: Tensor, extent: int, a: float, exclude: bool) -> Tensor:
    """Return cubic convolution weights (Keys 1981); entries outside repeat the border, or count for nothing."""
    low = places.floor()
    found = torch.zeros(len(places), extent)
    for tap in (-1, 0, 1, 2):
        at = low + tap
        weight = _keys((places - at).abs(), a)
        if exclude:
            weight = torch.where((at < 0) | (at >= extent), torch.zeros(()), weight)
        found += torch.eye(extent)[at.long().clamp(0, extent - 1)] * weight[:, None]
    return found / found.sum(1, keepdim=True) if exclude else found


def _keys(x: Tensor, a: float) -> Tensor:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros(())))
