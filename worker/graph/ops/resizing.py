"""Interpolation: torch's own where it means the same, else exact selections or matrices of weights per dimension.

Every interpolation here is separable: along each spatial dimension an output is a weighted sum of inputs. What torch
has no name for (factors that don't divide, other coefficients, antialiasing) is written as those weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.leaves import Take
from worker.graph.ops.resampling import Along, along_onnx
from worker.graph.ops.table import (
    AtenCall,
    Grid,
    OnnxCall,
    Op,
    ReadAten,
    Writer,
    refuse,
    register,
)

_MODES = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
MAX_EXTENT = 1 << 14


def interpolate(builder: Builder, value: fx.Node, size: Sequence[int], how: tuple[str, bool], name: str) -> Value:
    """Add torch's interpolation of the spatial dimensions to a fixed size; `how` is (mode, align_corners).

    Which entry is nearest hangs on a runtime's rounding but for whole factors, and halves, quarters, ...: else entries
    are listed, as torch picks them.
    """
    mode, corners = how
    align = None if mode == "nearest" else corners
    sizes, shape = tuple(int(s) for s in size), builder.shape(value)[2:]
    if sizes == tuple(shape):
        return value
    if mode == "nearest" and not all(_is_exact(*pair) for pair in zip(shape, sizes, strict=True)):
        if max(sizes) > MAX_EXTENT:
            raise refuse(name, f"an interpolation to {list(sizes)}")
        parts = [Along(n, _nearest(n, m)) for n, m in zip(shape, sizes, strict=True)]
        return resample(builder, value, parts, name)
    return builder.call(F.interpolate, value, name=name, size=sizes, mode=mode, align_corners=align)


def _is_exact(extent: int, size: int) -> bool:
    """Tell whether every runtime picks the same nearest entries: the factor is exact, and torch's rounding harmless."""
    if max(extent, size) > MAX_EXTENT or (size % extent and (extent % size or (extent // size).bit_count() > 1)):
        return False
    return torch.equal(_nearest(extent, size), torch.arange(size) * extent // size)


def _nearest(extent: int, size: int) -> Tensor:
    """Return the entries that torch's nearest interpolation picks."""
    return F.interpolate(torch.arange(extent, dtype=torch.float32).reshape(1, 1, -1), size=size).reshape(-1).long()


def resample(builder: Builder, value: fx.Node, parts: Sequence[Along], name: str) -> Value:
    """Add the interpolation that `parts` describe, one per spatial dimension."""
    rank = builder.rank(value)
    found: Any = value
    for dim, along in enumerate(parts, start=2):
        if along.is_nothing():
            continue
        if along.index is not None:
            found = builder.module(f"{name}_{dim}", Take(dim, along.index), found)
        elif dim == rank - 1:
            found = builder.call(torch.matmul, found, along.weights.t().contiguous(), name=f"{name}_{dim}")
        else:
            found = _turned_product(builder, found, along.weights, dim, f"{name}_{dim}")
    return found  # type: ignore[no-any-return]


def _turned_product(builder: Builder, value: fx.Node, weights: Tensor, dim: int, name: str) -> fx.Node:
    """Multiply along a dimension that is not the last: it is second last, or brought there and back."""
    rank = builder.rank(value)
    order = [*(axis for axis in range(rank) if axis not in (dim, rank - 1)), dim, rank - 1]
    if order == list(range(rank)):
        return builder.call(torch.matmul, weights, value, name=name)
    there = builder.call(torch.permute, value, name=f"{name}_there", dims=tuple(order))
    product = builder.call(torch.matmul, weights, there, name=name)
    return builder.call(torch.permute, product, name=f"{name}_back", dims=tuple(order.index(a) for a in range(rank)))


def _read_resize(builder: Builder, call: OnnxCall) -> Value:
    value = call.value(0)
    spatial = builder.shape(value)[2:]
    factors = _factors(builder, call)
    parts = [along_onnx(call, extent, *factor) for extent, factor in zip(spatial, factors, strict=True)]
    size = [part.size for part in parts]
    for mode in _torch_modes(call, len(spatial)):
        if all(_same(part, *_of_torch(extent, part.size, mode)) for extent, part in zip(spatial, parts, strict=True)):
            return interpolate(builder, value, size, mode, call.name)
    return resample(builder, value, parts, call.name)


def _factors(builder: Builder, call: OnnxCall) -> list[tuple[int, float]]:
    """Return (size, factor) per spatial dimension. Raises NetworkRefused where batch or channels would change."""
    shape = builder.shape(call.value(0))
    scales, sizes = call.constant(2), call.constant(3)
    axes = [int(axis) % len(shape) for axis in call.attributes.get("axes") or range(len(shape))]
    if call.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise refuse(call.name, "Resize that keeps the aspect ratio")
    found = [(extent, 1.0) for extent in shape]
    if sizes is not None and sizes.numel() == len(axes):
        for axis, size in zip(axes, sizes.tolist(), strict=True):
            found[axis] = (int(size), int(size) / shape[axis])
    elif scales is not None and scales.numel() == len(axes):
        for axis, factor in zip(axes, scales.float(), strict=True):
            found[axis] = (int(shape[axis] * factor), float(factor))
    else:
        raise refuse(call.name, "Resize without constant sizes")
    if any(size not in (extent, builder.batch) for (size, _), extent in zip(found[:1], shape, strict=False)):
        raise refuse(call.name, "Resize of the batch")
    if found[1][0] != shape[1]:
        raise refuse(call.name, "Resize of channels")
    if any(size < 1 for size, _ in found[2:]) or max(size for size, _ in found[2:]) > MAX_EXTENT:
        raise refuse(call.name, f"Resize to {[size for size, _ in found[2:]]}")
    return found[2:]


def _torch_modes(call: OnnxCall, rank: int) -> list[tuple[str, bool]]:
    """Return the interpolations of torch, (mode, align_corners), that may mean the same."""
    mode = call.attributes.get("mode", "nearest")
    if mode == "nearest":
        return [("nearest", False)]
    if mode == "linear" and rank in _LINEAR:
        return [(_LINEAR[rank], False), (_LINEAR[rank], True)]
    return [("bicubic", False), ("bicubic", True)] if mode == "cubic" and rank == 2 else []


def _of_torch(extent: int, size: int, how: tuple[str, bool]) -> tuple[Tensor | None, Tensor]:
    """Return what torch's interpolation of one dimension does: the indices it picks, or its weights."""
    mode, corners = how
    if mode == "nearest":
        return _nearest(extent, size), torch.empty(0)
    plain = "bicubic" if mode == "bicubic" else "bilinear"
    eye = torch.eye(extent).reshape(1, 1, extent, extent)
    return None, F.interpolate(eye, size=(extent, size), mode=plain, align_corners=corners)[0, 0].t()


def _same(part: Along, index: Tensor | None, weights: Tensor) -> bool:
    if index is not None:
        return part.index is not None and torch.equal(part.index, index)
    return part.index is None and torch.allclose(part.weights, weights, rtol=0, atol=1e-6)


def _aten_resize(mode: str, kernel: str) -> ReadAten:
    """Return the reader of an aten interpolation; `kernel` is the target that interpolates one dimension likewise."""

    def read(builder: Builder, call: AtenCall) -> Value:
        value = call.node("input" if "input" in call.inputs else "self")
        shape = builder.shape(value)[2:]
        size, factors, corners = call.get("output_size"), _aten_factors(call), bool(call.get("align_corners", False))
        if size is None:
            size = [int(n * f) for n, f in zip(shape, factors or (), strict=True)]
        size = [int(extent) for extent in size]
        exact = factors is None or all(n * f == s for n, f, s in zip(shape, factors, size, strict=True))
        if (exact or corners) and not kernel.startswith("_"):
            return interpolate(builder, value, size, (mode, corners), call.name)
        held = [None] * len(shape) if factors is None else factors
        if max(size) > MAX_EXTENT:
            raise refuse(call.name, f"an interpolation to {size}")
        parts = [_along_aten(kernel, n, s, (corners, f)) for n, s, f in zip(shape, size, held, strict=True)]
        return resample(builder, value, parts, call.name)

    return read


def _aten_factors(call: AtenCall) -> list[float] | None:
    listed = call.get("scale_factors")
    single = [call.get(key) for key in ("scales", "scales_d", "scales_h", "scales_w") if key in call.inputs]
    found = listed if listed is not None else [item for item in single if item is not None]
    return [float(item) for item in found] or None


def _along_aten(kernel: str, extent: int, size: int, how: tuple[bool, float | None]) -> Along:
    """Return what an aten interpolation does along one dimension, found by applying it to single entries."""
    corners, factor = how
    called = getattr(torch.ops.aten, kernel).default
    if "nearest" in kernel:
        entries = torch.arange(extent, dtype=torch.float32).reshape(1, 1, -1)
        return Along(extent, called(entries, [size], factor).reshape(-1).long())
    eye = torch.eye(extent)
    if kernel.endswith("1d"):
        return Along(extent, None, called(eye[None], [size], corners, factor)[0].t())
    return Along(extent, None, called(eye[None, None], [extent, size], corners, None, factor)[0, 0].t())


def _write_resize(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    mode, corners = str(node.kwargs["mode"]), node.kwargs["align_corners"]
    sizes: Any = node.kwargs["size"]
    attributes: dict[str, Any] = {"mode": _MODES[mode], "coordinate_transformation_mode": "half_pixel"}
    if mode == "nearest":
        attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    elif corners:
        attributes["coordinate_transformation_mode"] = "align_corners"
    if mode == "bicubic":
        attributes["cubic_coeff_a"] = -0.75
    scales = [_factor(n, out) for out, n in zip(sizes, writer.shape(node.args[0])[2:], strict=True)]
    factors = writer.constant(torch.tensor([1.0, 1.0, *scales]), f"{node.name}_scales")
    return writer.emit("Resize", [inputs[0], "", factors], node.name, **attributes)


def _factor(extent: int, size: int) -> float:
    """Return the float32 factor whose product with the extent, cut to an integer, is the size."""
    factor = torch.tensor(size / extent)
    while int(factor * extent) < size:
        factor = torch.nextafter(factor, torch.tensor(2.0 * float(factor)))
    return float(factor)


_ATEN: dict[str, ReadAten] = {}
for _kind in ("vec", "default"):
    for _rank in (1, 2, 3):
        _ATEN[f"aten.upsample_nearest{_rank}d.{_kind}"] = _aten_resize("nearest", "upsample_nearest1d")
        _ATEN[f"aten._upsample_nearest_exact{_rank}d.{_kind}"] = _aten_resize("nearest", "_upsample_nearest_exact1d")
        _ATEN[f"aten.upsample_{_LINEAR[_rank]}{_rank}d.{_kind}"] = _aten_resize(_LINEAR[_rank], "upsample_linear1d")
    _ATEN[f"aten.upsample_bicubic2d.{_kind}"] = _aten_resize("bicubic", "upsample_bicubic2d")
    for _name in ("bilinear", "bicubic"):
        _ATEN[f"aten._upsample_{_name}2d_aa.{_kind}"] = _aten_resize(_name, f"_upsample_{_name}2d_aa")
register(Op("resize", F.interpolate, flows.spatial, Grid.new, _write_resize, {"Resize": _read_resize}, _ATEN))
