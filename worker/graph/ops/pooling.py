"""Pooling by windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.ops.joins import concat
from worker.graph.ops.moves import cut_out
from worker.graph.ops.parametric import pad_node, window_pads
from worker.graph.ops.reductions import reduce
from worker.graph.ops.resampling import Along
from worker.graph.ops.resizing import resample
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
MAX_WINDOWS = 32
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
    if max(attributes.get("dilations", [1])) > 1 and attributes.get("auto_pad", "NOTSET").startswith("SAME"):
        raise refuse(call.name, "a dilated window with auto_pad: runtimes do not agree on its size")
    steps = {"stride": options["stride"], "dilation": attributes.get("dilations", [1] * len(kernel))}
    return options, window_pads(call, sizes, kernel, steps, -1)


def _read_maxpool(builder: Builder, call: OnnxCall) -> Value:
    if call.outputs > 1:
        raise refuse(call.name, "MaxPool with indices")
    options, pads = _window(builder, call)
    rank = len(pads) // 2
    value, begin, end = call.value(0), pads[:rank], pads[rank:]
    dilation = tuple(int(d) for d in call.attributes.get("dilations", [1] * rank))
    if begin != end or any(2 * p > k for p, k in zip(begin, options["kernel_size"], strict=True)):
        if options["ceil_mode"]:
            end = _ceiled(builder.shape(value)[2:], (begin, end), {**options, "dilation": dilation})
        # a window never prefers the smallest float to what it really covers
        value, begin = pad_node(builder, value, begin, end, call.name, LOWEST), [0] * rank
        options["ceil_mode"] = False
    return builder.call(MAX_POOLS[rank - 1], value, name=call.name, padding=tuple(begin), dilation=dilation, **options)


def _ceiled(sizes: Sequence[int], pads: tuple[list[int], list[int]], options: dict[str, Any]) -> list[int]:
    """Return end pads that make `ceil_mode`'s windows fit exactly: none begins behind the values themselves."""
    found = []
    for axis, (size, begin, end) in enumerate(zip(sizes, *pads, strict=True)):
        stride, extent = options["stride"][axis], (options["kernel_size"][axis] - 1) * options["dilation"][axis] + 1
        last = -(-(size + begin + end - extent) // stride) * stride
        if last >= size + begin:
            last -= stride
        found.append(last + extent - size - begin)
    return found


def _read_avgpool(builder: Builder, call: OnnxCall) -> Value:
    options, pads = _window(builder, call)
    rank = len(pads) // 2
    if any(int(d) != 1 for d in call.attributes.get("dilations", [])):
        raise refuse(call.name, "AveragePool with dilation")
    value, counted = call.value(0), bool(call.attributes.get("count_include_pad", 0))
    if pads[:rank] != pads[rank:] or any(2 * p > k for p, k in zip(pads, options["kernel_size"], strict=False)):
        return _one_sided(builder, value, (pads, counted, options), call.name)
    return builder.call(
        AVG_POOLS[rank - 1], value, name=call.name, padding=tuple(pads[:rank]), count_include_pad=counted, **options
    )


def _one_sided(builder: Builder, value: fx.Node, how: tuple[list[int], bool, dict[str, Any]], name: str) -> Value:
    """Add an average of explicitly padded values; where pads don't count, times window size over what counts."""
    pads, counted, options = how
    rank = len(pads) // 2
    if options["ceil_mode"]:
        raise refuse(name, "AveragePool with one-sided or wide padding and ceil_mode")
    options = {**options, "padding": (0,) * rank, "count_include_pad": True}
    begin, end = pads[:rank], pads[rank:]
    padded = pad_node(builder, value, begin, end, name)
    found = builder.call(AVG_POOLS[rank - 1], padded, name=name, **options)
    if counted:
        return found
    sides = [size for pair in reversed(list(zip(begin, end, strict=True))) for size in pair]
    ones = F.pad(torch.ones(1, 1, *builder.shape(value)[2:]), sides)
    return builder.call(torch.mul, found, 1 / AVG_POOLS[rank - 1](ones, **options), name=f"{name}_counted")


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
        divisor = call.get("divisor_override")
        counted = bool(call.get("count_include_pad", True)) or divisor is not None
        options = {**_aten_window(call, rank), "count_include_pad": counted}
        if divisor is None:
            return builder.call(AVG_POOLS[rank - 1], call.node(), name=call.name, **options)
        if options["ceil_mode"]:
            raise refuse(call.name, "average pooling with ceil_mode and a divisor of its own")
        average = builder.call(AVG_POOLS[rank - 1], call.node(), name=f"{call.name}_average", **options)
        factor = torch.tensor(math.prod(options["kernel_size"]) / int(divisor))
        return builder.call(torch.mul, average, factor, name=call.name)

    return read


def _aten_adaptive(rank: int, pools: Sequence[Callable[..., Tensor]], whole: Callable[..., Tensor]) -> ReadAten:
    """Return the reader of an adaptive pool: a reduction where all is pooled, a plain pool where the sizes divide."""

    def read(builder: Builder, call: AtenCall) -> Values:
        value, shape = call.node(), builder.shape(call.node())[-rank:]
        size = tuple(n if s is None else s for n, s in zip(shape, _sizes(call.get("output_size"), rank), strict=True))
        pooled: Value
        if set(size) == {1}:
            pooled = reduce(builder, whole, value, (range(-rank, 0), True), call.name)
        elif any(n % s for n, s in zip(shape, size, strict=True)):
            uneven = _uneven_average if pools is AVG_POOLS else _uneven_max
            pooled = uneven(builder, value, list(zip(shape, size, strict=True)), call.name)
        else:
            kernel = tuple(n // s for n, s in zip(shape, size, strict=True))
            options: dict[str, Any] = {"kernel_size": kernel, "stride": kernel, "padding": (0,) * rank}
            options["ceil_mode"] = False
            extra = {"count_include_pad": True} if pools is AVG_POOLS else {"dilation": (1,) * rank}
            pooled = builder.call(pools[rank - 1], value, name=call.name, **options, **extra)
        return [pooled, None] if pools is MAX_POOLS else pooled

    return read


def _bounds(extent: int, size: int) -> list[tuple[int, int]]:
    """Return the windows of adaptive pooling: they overlap or differ in size where the sizes don't divide."""
    return [(i * extent // size, -(-(i + 1) * extent // size)) for i in range(size)]


def _uneven_average(builder: Builder, value: fx.Node, sizes: Sequence[tuple[int, int]], name: str) -> Value:
    """Add averages over windows of several sizes, as weights along each dimension."""
    parts = []
    for extent, size in sizes:
        weights = torch.zeros(size, extent)
        for row, (start, stop) in zip(weights, _bounds(extent, size), strict=True):
            row[start:stop] = 1 / (stop - start)
        parts.append(Along(extent, None, weights))
    return resample(builder, value, parts, name)


def _uneven_max(builder: Builder, value: fx.Node, sizes: Sequence[tuple[int, int]], name: str) -> Value:
    """Add maxima over windows of several sizes, window by window along each dimension."""
    if max(size for _, size in sizes) > MAX_WINDOWS:
        raise refuse(name, f"uneven maxima of more than {MAX_WINDOWS} windows")
    found: Any = value
    for dim, (extent, size) in enumerate(sizes, start=builder.rank(value) - len(sizes)):
        pieces = []
        for index, (start, stop) in enumerate(_bounds(extent, size)):
            piece: Any = cut_out(builder, found, (dim, start, stop, 1), f"{name}_{dim}_{index}")
            pieces.append(reduce(builder, torch.amax, piece, ([dim], True), f"{name}_{dim}_{index}_max"))
        found = concat(builder, pieces, dim, f"{name}_{dim}")
    return found  # type: ignore[no-any-return]


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


for _rank in (1, 2, 3):
    _max = {f"aten.max_pool{_rank}d{suffix}.default": _aten_maxpool(_rank) for suffix in ("", "_with_indices")}
    _max[f"aten.adaptive_max_pool{_rank}d.default"] = _aten_adaptive(_rank, MAX_POOLS, torch.amax)
    _avg = {f"aten.avg_pool{_rank}d.default": _aten_avgpool(_rank)}
    for _mark in ("", "_") if _rank > 1 else ("",):
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
