"""Uses of pooling, resizing and reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper
from torch.nn import functional as F

from tests.worker.graph.contracts.uses import AtenUse, OnnxUse, aten

node = helper.make_node
OVER = "reduces over channels"
SHAPES: dict[int, tuple[int, ...]] = {1: (6, 9), 2: (6, 9, 8), 3: (6, 5, 6, 4)}
Pool = Callable[..., Any]
MAX: dict[int, Pool] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG: dict[int, Pool] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE_AVG: dict[int, Pool] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
ADAPTIVE_MAX: dict[int, Pool] = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
INNER = ("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _pools(rank: int) -> tuple[AtenUse, ...]:
    shape = SHAPES[rank]
    return (
        AtenUse(f"max pool {rank}d", shape, function=lambda x: MAX[rank](x, 3, 2, 1)),
        AtenUse(f"max pool {rank}d, dilated", shape, function=lambda x: MAX[rank](x, 2, 1, 0, 2)),
        AtenUse(f"max pool {rank}d, ceil", shape, function=lambda x: MAX[rank](x, 2, 2, ceil_mode=True)),
        AtenUse(f"average pool {rank}d", shape, function=lambda x: AVG[rank](x, 3, 2, 1)),
        AtenUse(
            f"average pool {rank}d, pads not counted", shape, function=lambda x: AVG[rank](x, 3, 2, 1, False, False)
        ),
        AtenUse(f"adaptive average {rank}d to one", shape, function=lambda x: ADAPTIVE_AVG[rank](x, 1)),
        AtenUse(f"adaptive average {rank}d, uneven", shape, function=lambda x: ADAPTIVE_AVG[rank](x, 2)),
        AtenUse(f"adaptive max {rank}d to one", shape, function=lambda x: ADAPTIVE_MAX[rank](x, 1)),
        AtenUse(f"adaptive max {rank}d, uneven", shape, function=lambda x: ADAPTIVE_MAX[rank](x, 2)),
        AtenUse(f"nearest {rank}d", shape, function=lambda x: F.interpolate(x, scale_factor=2)),
        AtenUse(f"nearest {rank}d to a size", shape, function=lambda x: F.interpolate(x, size=(7,) * rank)),
        AtenUse(
            f"nearest exact {rank}d", shape, function=lambda x: F.interpolate(x, size=(7,) * rank, mode="nearest-exact")
        ),
        AtenUse(f"linear {rank}d", shape, function=lambda x: F.interpolate(x, scale_factor=2, mode=LINEAR[rank])),
        AtenUse(
            f"linear {rank}d by odd factors",
            shape,
            function=lambda x: F.interpolate(x, scale_factor=1.7, mode=LINEAR[rank]),
        ),
    )


def _inner(target: str, rank: int, *more: Any) -> AtenUse:
    """Return a use of an interpolation as decomposed programs call it."""
    return AtenUse(target, SHAPES[rank], function=aten(target, [7] * rank, *more))


ATEN: tuple[AtenUse, ...] = (
    *(_inner(f"upsample_nearest{rank}d.default", rank) for rank in (1, 2, 3)),
    *(_inner(f"_upsample_nearest_exact{rank}d.default", rank) for rank in (1, 2, 3)),
    *(_inner(f"upsample_{LINEAR[rank]}{rank}d.default", rank, False) for rank in (1, 2, 3)),
    *(
        _inner(f"{name}.default", 2, False)
        for name in ("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
    ),
    AtenUse("antialiased bicubic", function=lambda x: F.interpolate(x, size=(4, 5), mode="bicubic", antialias=True)),
    AtenUse("any", function=lambda x: x * (x > 1.5).any(dim=(2, 3), keepdim=True)),
    *(use for rank in (1, 2, 3) for use in _pools(rank)),
    AtenUse(
        "max pool, inner", function=lambda x: aten("max_pool2d_with_indices.default", [3, 3], [2, 2], [1, 1])(x)[0]
    ),
    AtenUse(
        "max pool 3d, inner", (6, 5, 6, 4), function=lambda x: aten("max_pool3d_with_indices.default", [2, 2, 2])(x)[0]
    ),
    AtenUse("max pool 1d with indices", (6, 9), function=lambda x: F.max_pool1d(x, 2, return_indices=True)[0]),
    AtenUse("average pool, ceil", function=lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True)),
    AtenUse("average pool with a divisor", function=lambda x: F.avg_pool2d(x, 2, divisor_override=3)),
    AtenUse("power pool", function=lambda x: F.lp_pool2d(x, 2.0, 2)),
    AtenUse("adaptive average that divides", function=lambda x: F.adaptive_avg_pool2d(x, (4, 2))),
    AtenUse("adaptive average of one axis", function=lambda x: F.adaptive_avg_pool2d(x, (None, 1))),
    AtenUse("adaptive max that divides", function=lambda x: F.adaptive_max_pool2d(x, (4, 2))),
    AtenUse("adaptive average, inner", function=aten("_adaptive_avg_pool2d.default", [3, 5])),
    AtenUse("adaptive average 3d, inner", (6, 5, 6, 4), function=aten("_adaptive_avg_pool3d.default", [2, 3, 1])),
    AtenUse("mean over positions", function=lambda x: x.mean((2, 3))),
    AtenUse("mean over channels", function=lambda x: x.mean(1, keepdim=True) + x, frozen=OVER),
    AtenUse("mean over all but the batch", function=lambda x: x * x.mean((1, 2, 3), keepdim=True), frozen=OVER),
    AtenUse("sum", function=lambda x: x.sum(-1)),
    AtenUse("maxima", function=lambda x: x.amax((2, 3), keepdim=True)),
    AtenUse("minima", function=lambda x: x.amin(2)),
    AtenUse("max along an axis", function=lambda x: x.max(2).values),
    AtenUse("min along an axis", function=lambda x: x.min(-1, keepdim=True).values),
    AtenUse("log of summed exponentials", function=lambda x: x.logsumexp((2, 3))),
    AtenUse("summed up", function=lambda x: x.cumsum(2)),
    AtenUse("summed up over channels", function=lambda x: x.cumsum(1), frozen="sums up channels"),
    AtenUse("place of the largest", (6,), function=lambda x: x.argmax(1), frozen=OVER),
    AtenUse("place of the smallest", function=lambda x: x.argmin(1, keepdim=True), frozen=OVER),
    AtenUse("bicubic", function=lambda x: F.interpolate(x, scale_factor=2, mode="bicubic")),
    AtenUse("bicubic, corners", function=lambda x: F.interpolate(x, size=(11, 5), mode="bicubic", align_corners=True)),
    AtenUse(
        "bilinear, corners", function=lambda x: F.interpolate(x, size=(11, 5), mode="bilinear", align_corners=True)
    ),
    AtenUse("bilinear, smaller", function=lambda x: F.interpolate(x, size=(3, 5), mode="bilinear")),
    AtenUse("nearest by odd factors", function=lambda x: F.interpolate(x, scale_factor=1.7)),
    AtenUse("nearest, by a seventh", (6, 14, 14), function=lambda x: F.interpolate(x, size=(2, 4))),
    AtenUse("nearest, to where entries meet", (6, 20, 21), function=lambda x: F.interpolate(x, size=(24, 6))),
    AtenUse("nearest, many times", (6, 2, 3), function=lambda x: F.interpolate(x, size=(82, 3))),
    AtenUse("nearest, thrice and half", function=lambda x: F.interpolate(x, scale_factor=(3.0, 0.5))),
    AtenUse("nearest exact, twice", function=lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact")),
    AtenUse("antialiased", function=lambda x: F.interpolate(x, size=(4, 5), mode="bilinear", antialias=True)),
    AtenUse("nothing resized", function=lambda x: F.interpolate(x, scale_factor=1) * 2),
)


def _onnx(name: str, op: str, *held: Any, **how: Any) -> OnnxUse:
    options = {key: how.pop(key) for key in ("since", "until", "frozen", "shape") if key in how}
    names = ["" if item is None else f"c{index}" for index, item in enumerate(held)]
    constants = {name: item for name, item in zip(names, held, strict=True) if name}
    return OnnxUse(name, nodes=[node(op, ["y", *names], ["z"], **how)], held=constants, **options)


def _reduced(op: str, change: int) -> tuple[OnnxUse, ...]:
    """Return uses of a reduction before and after the opset at which its axes became an input."""
    axes = np.array([2, 3])
    return (
        _onnx(f"{op}, attribute", op, axes=[2, -1], until=change - 1),
        _onnx(f"{op}, attribute, dropped", op, axes=[-1], keepdims=0, until=change - 1),
        _onnx(f"{op}, input", op, axes, since=change),
        _onnx(f"{op}, input, dropped", op, axes[:1], keepdims=0, since=change),
        _onnx(f"{op} of nothing", op, np.array([], dtype=np.int64), noop_with_empty_axes=1, since=change),
    )


def _resize(name: str, scales: Any = None, sizes: Any = None, **how: Any) -> OnnxUse:
    factors = None if scales is None else np.array(scales, dtype=np.float32)
    extents = None if sizes is None else np.array(sizes, dtype=np.int64)
    held = (None, factors) if extents is None else (None, None, extents)
    return _onnx(f"Resize {name}", "Resize", *held, **{"since": 13, **how})


ONNX: tuple[OnnxUse, ...] = (
    _onnx("MaxPool", "MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    _onnx("MaxPool, one-sided", "MaxPool", kernel_shape=[2, 3], strides=[2, 1], pads=[0, 1, 1, 0]),
    _onnx("MaxPool, ceil", "MaxPool", kernel_shape=[2, 2], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1),
    _onnx("MaxPool, dilated", "MaxPool", kernel_shape=[2, 2], dilations=[2, 2], storage_order=1),
    _onnx("MaxPool 1d", "MaxPool", kernel_shape=[3], strides=[2], shape=(6, 9)),
    _onnx("MaxPool 3d", "MaxPool", kernel_shape=[2, 2, 2], strides=[2, 2, 2], shape=(6, 5, 6, 4)),
    _onnx("MaxPool, same", "MaxPool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    _onnx("AveragePool", "AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    _onnx("AveragePool, counted", "AveragePool", kernel_shape=[3, 3], pads=[1, 0, 0, 1], count_include_pad=1),
    _onnx("AveragePool, one-sided", "AveragePool", kernel_shape=[3, 3], pads=[0, 0, 1, 1]),
    _onnx("AveragePool, same", "AveragePool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    _onnx("AveragePool, ceil", "AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, since=19),
    _onnx("AveragePool 1d", "AveragePool", kernel_shape=[3], strides=[2], shape=(6, 9)),
    _onnx("AveragePool 3d", "AveragePool", kernel_shape=[2, 2, 2], strides=[2, 2, 2], shape=(6, 5, 6, 4)),
    _onnx("GlobalAveragePool", "GlobalAveragePool"),
    _onnx("GlobalAveragePool 1d", "GlobalAveragePool", shape=(6, 9)),
    _onnx("GlobalMaxPool", "GlobalMaxPool"),
    *(use for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2") for use in _reduced(op, 18)),
    *(use for op in ("ReduceSumSquare", "ReduceLogSumExp") for use in _reduced(op, 18)[:4]),
    *_reduced("ReduceSum", 13),
    _onnx("ReduceMean over channels", "ReduceMean", np.array([1]), since=18, frozen=OVER),
    _onnx("ArgMax", "ArgMax", axis=1, keepdims=0, frozen=OVER),
    _onnx("ArgMin", "ArgMin", axis=-1, keepdims=1, frozen="network output"),
    _onnx("CumSum", "CumSum", np.int64(2)),
    _onnx("CumSum, backwards", "CumSum", np.int64(-1), reverse=1),
    _resize("nearest, asymmetric", [1, 1, 2, 2], coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    _resize("nearest, as by default", [1, 1, 2, 3]),
    _resize("nearest, odd factors", [1, 1, 1.6, 0.6]),
    _resize("nearest, ceil", [1, 1, 1.6, 0.7], nearest_mode="ceil"),
    _resize(
        "nearest, prefer ceil, corners",
        [1, 1, 1.6, 0.7],
        nearest_mode="round_prefer_ceil",
        coordinate_transformation_mode="align_corners",
    ),
    _resize("linear", [1, 1, 2, 2], mode="linear"),
    _resize("linear, pytorch", [1, 1, 2, 2], mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    _resize("linear, corners", [1, 1, 2, 3], mode="linear", coordinate_transformation_mode="align_corners"),
    _resize("linear, asymmetric", [1, 1, 2, 2], mode="linear", coordinate_transformation_mode="asymmetric"),
    _resize("linear, odd factors", [1, 1, 1.3, 0.6], mode="linear"),
    _resize("linear of sequences", [1, 1, 2], mode="linear", shape=(6, 9)),
    _resize("cubic", [1, 1, 2, 2], mode="cubic"),
    _resize("cubic, other coefficient", [1, 1, 2, 2], mode="cubic", cubic_coeff_a=-0.5),
    _resize("cubic, excluded", [1, 1, 2, 1.5], mode="cubic", exclude_outside=1),
    _resize("of chosen axes", [2, 2], axes=[2, 3], mode="linear", since=18),
    _resize("of chosen axes to sizes", None, [5, 12], axes=[-2, -1], mode="linear", since=18),
)
