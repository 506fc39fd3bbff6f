"""Pooling, interpolation, and reductions over dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.extents import holds_batch
from worker.graph.ops.parametric import pad_node, window_pads
from worker.graph.ops.table import (
    AtenCall,
    Grid,
    OnnxCall,
    Op,
    ReadAten,
    ReadOnnx,
    Values,
    Write,
    Writer,
    refuse,
    register,
)

MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
AVG_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
LOWEST = float(torch.finfo(torch.float32).min)


def _window(builder: Builder, call: OnnxCall) -> tuple[dict[str, Any], list[int]]:
    attributes = call.attributes
    kernel = tuple(int(k) for k in attributes["kernel_shape"])
    sizes = builder.shape(call.value(0))[2:]
    if not 1 <= len(kernel) <= 3 or len(kernel) != len(sizes):
        raise refuse(call.name, f"{call.op_type} with a window of {len(kernel)} dimensions")
    options = {
        "kernel_size": kernel,
        "stride": tuple(int(s) for s in attributes.get("strides", [1] * len(kernel))),
        "ceil_mode": bool(attributes.get("ceil_mode", 0)),
    }
    steps = {"stride": options["stride"], "dilation": attributes.get("dilations", [1] * len(kernel))}
    return options, window_pads(call, sizes, kernel, steps)


def _read_maxpool(builder: Builder, call: OnnxCall) -> Value:
    if call.outputs > 1:
        raise refuse(call.name, "MaxPool with indices")
    options, pads = _window(builder, call)
    rank = len(pads) // 2
    value, begin = call.value(0), pads[:rank]
    if begin != pads[rank:] or any(2 * p > k for p, k in zip(begin, options["kernel_size"], strict=True)):
        # a window never prefers the smallest float to what it really covers
        value, begin = pad_node(builder, value, begin, pads[rank:], call.name, LOWEST), [0] * rank
    dilation = tuple(int(d) for d in call.attributes.get("dilations", [1] * rank))
    return builder.call(MAX_POOLS[rank - 1], value, name=call.name, padding=tuple(begin), dilation=dilation, **options)


def _read_avgpool(builder: Builder, call: OnnxCall) -> Value:
    options, pads = _window(builder, call)
    rank = len(pads) // 2
    if any(int(d) != 1 for d in call.attributes.get("dilations", [])):
        raise refuse(call.name, "AveragePool with dilation")
    value, counted = call.value(0), bool(call.attributes.get("count_include_pad", 0))
    if pads[:rank] != pads[rank:]:
        if not counted:
            raise refuse(call.name, "AveragePool with one-sided padding that is not counted")
        value, pads = pad_node(builder, value, pads[:rank], pads[rank:], call.name), [0] * 2 * rank
    return builder.call(
        AVG_POOLS[rank - 1], value, name=call.name, padding=tuple(pads[:rank]), count_include_pad=counted, **options
    )


def reduce(
    builder: Builder, target: Callable[..., Tensor], value: fx.Node, axes: tuple[Sequence[int], bool], name: str
) -> Value:
    """Add a reduction over (dimensions, kept?) (dimensions made non-negative)."""
    shape = builder.shape(value)
    dims = tuple(sorted(dim % len(shape) for dim in axes[0]))
    if any(holds_batch(shape[dim]) for dim in dims):
        raise refuse(name, "a reduction over the batch")
    return builder.call(target, value, name=name, dim=dims, keepdim=axes[1]) if dims else value


def _read_global(target: Callable[..., Tensor]) -> ReadOnnx:
    def read(builder: Builder, call: OnnxCall) -> Value:
        value = call.value(0)
        return reduce(builder, target, value, (range(2, builder.rank(value)), True), call.name)

    return read


def _read_reduce(target: Callable[..., Tensor]) -> ReadOnnx:
    def read(builder: Builder, call: OnnxCall) -> Value:
        axes, value = call.ints(1, "axes"), call.value(0)
        if not axes:
            if call.attributes.get("noop_with_empty_axes", 0):
                return value
            raise refuse(call.name, f"{call.op_type} over every axis")
        return reduce(builder, target, value, (axes, bool(call.attributes.get("keepdims", 1))), call.name)

    return read


def _read_l2(builder: Builder, call: OnnxCall) -> Value:
    square = builder.call(torch.pow, call.value(0), name=f"{call.name}_square", exponent=2.0)
    axes = call.ints(1, "axes") or []
    total = reduce(builder, torch.sum, square, (axes, bool(call.attributes.get("keepdims", 1))), f"{call.name}_sum")
    return builder.call(torch.sqrt, total, name=call.name)


def _sizes(value: Any, rank: int) -> tuple[int, ...]:
    items = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(int(item) for item in (items * rank if len(items) == 1 else items))


def _aten_window(call: AtenCall, rank: int) -> dict[str, Any]:
    kernel = call.get("kernel_size")
    options: dict[str, Any] = {
        "kernel_size": _sizes(kernel, rank),
        "stride": _sizes(call.get("stride") or kernel, rank),
        "padding": _sizes(call.get("padding", 0), rank),
        "ceil_mode": bool(call.get("ceil_mode", False)),
    }
    return options


def _aten_maxpool(rank: int) -> ReadAten:
    def read(builder: Builder, call: AtenCall) -> Values:
        options = {**_aten_window(call, rank), "dilation": _sizes(call.get("dilation", 1), rank)}
        pooled = builder.call(MAX_POOLS[rank - 1], call.node(), name=call.name, **options)
        return [pooled, None] if "with_indices" in call.target else pooled

    return read


def _aten_avgpool(rank: int) -> ReadAten:
    def read(builder: Builder, call: AtenCall) -> Value:
        if call.get("divisor_override") is not None:
            raise refuse(call.name, "average pooling with a divisor of its own")
        counted = bool(call.inputs.get("count_include_pad", True))
        options = {**_aten_window(call, rank), "count_include_pad": counted}
        return builder.call(AVG_POOLS[rank - 1], call.node(), name=call.name, **options)

    return read


def _aten_adaptive(rank: int, pools: Sequence[Callable[..., Tensor]], whole: Callable[..., Tensor]) -> ReadAten:
    """Return the reader of an adaptive pool: a plain pool where the sizes divide, a reduction where all is pooled."""

    def read(builder: Builder, call: AtenCall) -> Values:
        value, shape = call.node(), builder.shape(call.node())[-rank:]
        size = tuple(n if s is None else s for n, s in zip(shape, _sizes(call.get("output_size"), rank), strict=True))
        pooled: Value
        if set(size) == {1}:
            pooled = reduce(builder, whole, value, (range(-rank, 0), True), call.name)
        elif any(n % s for n, s in zip(shape, size, strict=True)):
            raise refuse(call.name, f"adaptive pooling of {list(shape)} to {list(size)}")
        else:
            kernel = tuple(n // s for n, s in zip(shape, size, strict=True))
            options: dict[str, Any] = {"kernel_size": kernel, "stride": kernel, "padding": (0,) * rank}
            options["ceil_mode"] = False
            extra = {"count_include_pad": True} if pools is AVG_POOLS else {"dilation": (1,) * rank}
            pooled = builder.call(pools[rank - 1], value, name=call.name, **options, **extra)
        return [pooled, None] if pools is MAX_POOLS else pooled

    return read


def _aten_reduce(target: Callable[..., Tensor]) -> ReadAten:
    def read(builder: Builder, call: AtenCall) -> Value:
        dims = call.get("dim")
        if dims is None or dims == []:
            raise refuse(call.name, f"{call.target} over every axis")
        dims = dims if isinstance(dims, list | tuple) else [dims]
        return reduce(builder, target, call.node(), (dims, bool(call.get("keepdim", False))), call.name)

    return read


def _write_pool(op_type: str) -> Write:
    def write(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
        k: Any = node.kwargs
        extra = (
            {"dilations": list(k["dilation"])}
            if op_type == "MaxPool"
            else {"count_include_pad": int(k["count_include_pad"])}
        )
        return writer.emit(
            op_type,
            inputs,
            node.name,
            kernel_shape=list(k["kernel_size"]),
            strides=list(k["stride"]),
            pads=list(k["padding"]) * 2,
            ceil_mode=int(k["ceil_mode"]),
            **extra,
        )

    return write


def _write_reduce(op_type: str, pooled: str | None = None) -> Write:
    """Return the writer of a reduction: over exactly the spatial dimensions as global pooling, else by its axes."""

    def write(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
        dims, keepdim = list(node.kwargs["dim"]), bool(node.kwargs["keepdim"])  # type: ignore[arg-type]
        if pooled and dims == [2, 3] and writer.rank(node.args[0]) == 4:
            found = writer.emit(pooled, inputs, node.name if keepdim else f"{node.name}_pool")
            return found if keepdim else writer.emit("Flatten", [found], node.name, axis=1)
        axes = writer.integers(dims, f"{node.name}_axes")
        return writer.emit(op_type, [inputs[0], axes], node.name, keepdims=int(keepdim))

    return write


_MODES = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _interpolate(builder: Builder, value: fx.Node, size: Sequence[int], how: tuple[str, bool], name: str) -> Value:
    """Add an interpolation of the spatial dimensions to a fixed size; `how` is (mode, align_corners)."""
    mode, corners = how
    align = None if mode == "nearest" else corners
    sizes = tuple(int(s) for s in size)
    if sizes == tuple(builder.shape(value)[2:]):
        return value
    return builder.call(F.interpolate, value, name=name, size=sizes, mode=mode, align_corners=align)


def _read_resize(builder: Builder, call: OnnxCall) -> Value:
    value, attributes = call.value(0), call.attributes
    shape = builder.shape(value)
    scales = call.constant(1 if call.op_type == "Upsample" else 2)
    sizes = call.constant(3)
    if sizes is not None and sizes.numel():
        target = [int(s) for s in sizes.tolist()]
    elif scales is not None and scales.numel():
        target = [int(n * f) for n, f in zip(shape, scales.tolist(), strict=True)]
    else:
        raise refuse(call.name, "Resize without constant sizes")
    if attributes.get("axes") or target[1] != shape[1]:
        raise refuse(call.name, "Resize of chosen axes, of batch or of channels")
    return _interpolate(builder, value, target[2:], _resize_mode(call, len(shape) - 2), call.name)


def _resize_mode(call: OnnxCall, rank: int) -> tuple[str, bool]:
    mode = call.attributes.get("mode", "nearest")
    place = call.attributes.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        rounding = call.attributes.get("nearest_mode", "round_prefer_floor")
        if (place, rounding) not in (("asymmetric", "floor"),):
            raise refuse(call.name, f"nearest Resize by {place}, {rounding}")
        return "nearest", False
    if mode == "linear" and place in ("half_pixel", "pytorch_half_pixel", "align_corners") and rank in _LINEAR:
        return _LINEAR[rank], place == "align_corners"
    if mode == "cubic" and call.attributes.get("cubic_coeff_a", -0.75) == -0.75 and rank == 2:
        return "bicubic", place == "align_corners"
    raise refuse(call.name, f"Resize with mode {mode!r} and {place!r}")


def _aten_resize(mode: str) -> ReadAten:
    def read(builder: Builder, call: AtenCall) -> Value:
        value = call.node("input" if "input" in call.inputs else "self")
        shape = builder.shape(value)[2:]
        size, factors = call.get("output_size"), call.get("scale_factors")
        if size is None:
            size = [int(n * f) for n, f in zip(shape, factors, strict=True)]
        return _interpolate(builder, value, size, (mode, bool(call.get("align_corners", False))), call.name)

    return read


def _write_resize(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    mode, corners = str(node.kwargs["mode"]), node.kwargs["align_corners"]
    sizes: Any = node.kwargs["size"]
    attributes: dict[str, Any] = {"mode": _MODES[mode], "coordinate_transformation_mode": "pytorch_half_pixel"}
    if mode == "nearest":
        attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    elif corners:
        attributes["coordinate_transformation_mode"] = "align_corners"
    if mode == "bicubic":
        attributes["cubic_coeff_a"] = -0.75
    scales = [out / n for out, n in zip(sizes, writer.shape(node.args[0])[2:], strict=True)]
    factors = writer.constant(torch.tensor([1.0, 1.0, *scales]), f"{node.name}_scales")
    return writer.emit("Resize", [inputs[0], "", factors], node.name, **attributes)


for _rank in (1, 2, 3):
    _max = {f"aten.max_pool{_rank}d{suffix}.default": _aten_maxpool(_rank) for suffix in ("", "_with_indices")}
    _max[f"aten.adaptive_max_pool{_rank}d.default"] = _aten_adaptive(_rank, MAX_POOLS, torch.amax)
    _avg = {f"aten.avg_pool{_rank}d.default": _aten_avgpool(_rank)}
    for _mark in ("", "_"):
        _avg[f"aten.{_mark}adaptive_avg_pool{_rank}d.default"] = _aten_adaptive(_rank, AVG_POOLS, torch.mean)
    _onnx: tuple[dict[str, ReadOnnx], ...] = (
        ({"MaxPool": _read_maxpool}, {"AveragePool": _read_avgpool}) if _rank == 2 else ({}, {})
    )
    register(
        Op(
            f"max_pool{_rank}d",
            MAX_POOLS[_rank - 1],
            flows.spatial,
            Grid.keep,
            _write_pool("MaxPool"),
            _onnx[0],
            _max,
        )
    )
    register(
        Op(
            f"avg_pool{_rank}d",
            AVG_POOLS[_rank - 1],
            flows.spatial,
            Grid.new,
            _write_pool("AveragePool"),
            _onnx[1],
            _avg,
        )
    )
for _name, _target, _type, _pooled, _atens in (
    ("mean", torch.mean, "ReduceMean", "GlobalAveragePool", ("mean.dim",)),
    ("sum", torch.sum, "ReduceSum", None, ("sum.dim_IntList",)),
    ("amax", torch.amax, "ReduceMax", "GlobalMaxPool", ("amax.default",)),
    ("amin", torch.amin, "ReduceMin", None, ("amin.default",)),
):
    _readers: dict[str, ReadOnnx] = {_type: _read_reduce(_target)}
    if _pooled:
        _readers[_pooled] = _read_global(_target)
    if _name == "sum":
        _readers["ReduceL2"] = _read_l2
    register(
        Op(
            _name,
            _target,
            flows.reduce,
            Grid.new,
            _write_reduce(_type, _pooled),
            _readers,
            {f"aten.{item}": _aten_reduce(_target) for item in _atens},
        )
    )
register(
    Op(
        "resize",
        F.interpolate,
        flows.spatial,
        Grid.new,
        _write_resize,
        {"Resize": _read_resize, "Upsample": _read_resize},
        {
            **{
                f"aten.upsample_nearest{rank}d.{kind}": _aten_resize("nearest")
                for rank in (1, 2, 3)
                for kind in ("vec", "default")
            },
            **{
                f"aten.upsample_{mode}{rank}d.{kind}": _aten_resize(mode)
                for rank, mode in _LINEAR.items()
                for kind in ("vec", "default")
            },
            **{f"aten.upsample_bicubic2d.{kind}": _aten_resize("bicubic") for kind in ("vec", "default")},
        },
    )
)
