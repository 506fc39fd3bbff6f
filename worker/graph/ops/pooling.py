"""Pooling and spatial means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from worker.graph.build import Builder, Value
from worker.graph.errors import NetworkRefused
from worker.graph.ops.parametric import pad_node
from worker.graph.ops.table import Flow, Grid, OnnxCall, Op, Writer, register


def _window(call: OnnxCall) -> tuple[dict[str, Any], list[int]]:
    attributes = call.attributes
    kernel = [int(k) for k in attributes["kernel_shape"]]
    if len(kernel) != 2 or attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise NetworkRefused("unsupported-operator", f"{call.op_type} {call.name!r}: only explicit 2-D windows")
    options = {
        "kernel_size": tuple(kernel),
        "stride": tuple(int(s) for s in attributes.get("strides", [1, 1])),
        "ceil_mode": bool(attributes.get("ceil_mode", 0)),
    }
    return options, [int(p) for p in attributes.get("pads", [0] * 4)]


def _read_maxpool(builder: Builder, call: OnnxCall) -> Value:
    options, pads = _window(call)
    if pads[:2] != pads[2:]:
        raise NetworkRefused("unsupported-operator", f"MaxPool {call.name!r} with one-sided padding")
    dilation = tuple(int(d) for d in call.attributes.get("dilations", [1, 1]))
    return builder.call(
        F.max_pool2d, call.value(0), name=call.name, padding=tuple(pads[:2]), dilation=dilation, **options
    )


def _read_avgpool(builder: Builder, call: OnnxCall) -> Value:
    options, pads = _window(call)
    if any(int(d) != 1 for d in call.attributes.get("dilations", [])):
        raise NetworkRefused("unsupported-operator", f"AveragePool {call.name!r} with dilation")
    value, counted = call.value(0), bool(call.attributes.get("count_include_pad", 0))
    if pads[:2] != pads[2:]:
        if not counted:
            raise NetworkRefused("unsupported-operator", f"AveragePool {call.name!r} with one-sided padding")
        value, pads = pad_node(builder, value, pads[:2], pads[2:], call.name), [0] * 4
    padding = tuple(pads[:2])
    return builder.call(F.avg_pool2d, value, name=call.name, padding=padding, count_include_pad=counted, **options)


def mean(builder: Builder, value: Value, name: str, dims: Sequence[int], keepdim: bool) -> Value:
    """Add a mean over dimensions (made non-negative)."""
    rank = len(builder.shape(value))
    found = tuple(sorted(d % rank for d in dims))
    if 0 in found:
        raise NetworkRefused("unsupported-operator", f"{name!r}: a mean over the batch")
    return builder.call(torch.mean, value, name=name, dim=found, keepdim=keepdim)


def _read_global_average(builder: Builder, call: OnnxCall) -> Value:
    value = call.value(0)
    return mean(builder, value, call.name, range(2, len(builder.shape(value))), True)


def _read_reduce_mean(builder: Builder, call: OnnxCall) -> Value:
    axes = call.ints(1, "axes")
    if not axes:
        raise NetworkRefused("unsupported-operator", f"ReduceMean {call.name!r} over every axis")
    return mean(builder, call.value(0), call.name, axes, bool(call.attributes.get("keepdims", 1)))


def _two(value: Any) -> tuple[int, int]:
    items = list(value) if isinstance(value, list | tuple) else [value]
    return (int(items[0]), int(items[-1]))


def _aten_maxpool(builder: Builder, name: str, args: list[Any]) -> Value:
    value, kernel, stride, padding, dilation, ceil = (*args, *[None, 0, 1, False][len(args) - 2 :])[:6]
    options = {"kernel_size": _two(kernel), "stride": _two(stride or kernel), "padding": _two(padding)}
    return builder.call(F.max_pool2d, value, name=name, dilation=_two(dilation), ceil_mode=bool(ceil), **options)


def _aten_avgpool(builder: Builder, name: str, args: list[Any]) -> Value:
    if len(args) > 6 and args[6] is not None:
        raise NetworkRefused("unsupported-operator", f"{name!r}: average pooling with a divisor of its own")
    value, kernel, stride, padding, ceil, counted = (*args, *[None, 0, False, True][len(args) - 2 :])[:6]
    options = {"kernel_size": _two(kernel), "stride": _two(stride or kernel), "padding": _two(padding)}
    return builder.call(
        F.avg_pool2d, value, name=name, ceil_mode=bool(ceil), count_include_pad=bool(counted), **options
    )


def _aten_adaptive(builder: Builder, name: str, args: list[Any]) -> Value:
    size = _two(args[1])
    height, width = builder.shape(args[0])[-2:]
    if size == (1, 1):
        return mean(builder, args[0], name, (2, 3), True)
    if height % size[0] or width % size[1]:
        raise NetworkRefused("unsupported-operator", f"{name!r}: adaptive pooling of {height}x{width} to {size}")
    kernel = (height // size[0], width // size[1])
    return builder.call(
        F.avg_pool2d,
        args[0],
        name=name,
        kernel_size=kernel,
        stride=kernel,
        padding=(0, 0),
        ceil_mode=False,
        count_include_pad=True,
    )


def _aten_mean(builder: Builder, name: str, args: list[Any]) -> Value:
    if len(args) < 2 or not args[1]:
        raise NetworkRefused("unsupported-operator", f"{name!r}: mean over every axis")
    return mean(builder, args[0], name, args[1], bool(args[2]) if len(args) > 2 else False)


def _write_maxpool(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    k: Any = node.kwargs
    return writer.emit(
        "MaxPool",
        inputs,
        node.name,
        kernel_shape=list(k["kernel_size"]),
        strides=list(k["stride"]),
        pads=list(k["padding"]) * 2,
        dilations=list(k["dilation"]),
        ceil_mode=int(k["ceil_mode"]),
    )


def _write_avgpool(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    k: Any = node.kwargs
    return writer.emit(
        "AveragePool",
        inputs,
        node.name,
        kernel_shape=list(k["kernel_size"]),
        strides=list(k["stride"]),
        pads=list(k["padding"]) * 2,
        ceil_mode=int(k["ceil_mode"]),
        count_include_pad=int(k["count_include_pad"]),
    )


def _write_mean(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    """Write a spatial mean as GlobalAveragePool (which runtimes quantize), any other as ReduceMean."""
    dims, keepdim = list(node.kwargs["dim"]), bool(node.kwargs["keepdim"])  # type: ignore[arg-type]
    if dims == [2, 3] and writer.rank(node.args[0]) == 4:
        pooled = writer.emit("GlobalAveragePool", inputs, node.name if keepdim else f"{node.name}_pool")
        return pooled if keepdim else writer.emit("Flatten", [pooled], node.name, axis=1)
    axes = writer.integers(dims, f"{node.name}_axes")
    return writer.emit("ReduceMean", [inputs[0], axes], node.name, keepdims=int(keepdim))


register(
    Op(
        "max_pool2d",
        F.max_pool2d,
        Flow.same,
        Grid.keep,
        _write_maxpool,
        {"MaxPool": _read_maxpool},
        {"aten.max_pool2d.default": _aten_maxpool},
    )
)
register(
    Op(
        "avg_pool2d",
        F.avg_pool2d,
        Flow.same,
        Grid.new,
        _write_avgpool,
        {"AveragePool": _read_avgpool},
        {"aten.avg_pool2d.default": _aten_avgpool, "aten.adaptive_avg_pool2d.default": _aten_adaptive},
    )
)
register(
    Op(
        "mean",
        torch.mean,
        Flow.same,
        Grid.new,
        _write_mean,
        {"GlobalAveragePool": _read_global_average, "ReduceMean": _read_reduce_mean},
        {"aten.mean.dim": _aten_mean},
    )
)
