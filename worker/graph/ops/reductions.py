"""Reductions over dimensions: means, sums, extremes, norms, variances, running sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.extents import holds_batch
from worker.graph.ops.activations import convert
from worker.graph.ops.moves import flip
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

Axes = tuple[Sequence[int], bool]
"""Dimensions, and whether they stay with extent 1."""


def reduce(
    builder: Builder, target: Callable[..., Tensor], value: fx.Node, axes: tuple[Sequence[int], bool], name: str
) -> Value:
    """Add a reduction over (dimensions, kept?) (dimensions made non-negative)."""
    shape = builder.shape(value)
    dims = tuple(sorted(dim % len(shape) for dim in axes[0]))
    if any(holds_batch(shape[dim]) for dim in dims):
        raise refuse(name, "a reduction over the batch")
    return builder.call(target, value, name=name, dim=dims, keepdim=axes[1]) if dims else value


def norm(builder: Builder, value: fx.Node, order: float, axes: Axes, name: str) -> Value:
    """Add the vector norm of an order over (dimensions, kept?)."""
    size = builder.call(torch.abs, value, name=f"{name}_abs")
    if order == math.inf:
        return reduce(builder, torch.amax, size, axes, name)
    if order == 1:
        return reduce(builder, torch.sum, size, axes, name)
    if order <= 0:
        raise refuse(name, f"a norm of order {order}")
    power = builder.call(torch.pow, value if order == 2 else size, name=f"{name}_power", exponent=float(order))
    total = reduce(builder, torch.sum, power, axes, f"{name}_sum")
    if order == 2:
        return builder.call(torch.sqrt, total, name=name)
    return builder.call(torch.pow, total, name=name, exponent=1.0 / order)


def variance(builder: Builder, value: fx.Node, axes: Axes, correction: float, name: str) -> list[Value]:
    """Add variance and mean over (dimensions, kept?); the divisor is the count less `correction`."""
    count = math.prod(builder.shape(value)[dim] for dim in axes[0])
    mean = reduce(builder, torch.mean, value, (axes[0], True), f"{name}_mean")
    spread = builder.call(torch.sub, value, mean, name=f"{name}_spread")
    square = builder.call(torch.pow, spread, name=f"{name}_square", exponent=2.0)
    found = reduce(builder, torch.mean, square, axes, f"{name}_biased")
    if correction:
        if count <= correction:
            raise refuse(name, f"a variance of {count} values, corrected by {correction}")
        found = builder.call(torch.mul, found, torch.tensor(count / (count - correction)), name=name)
    return [found, mean if axes[1] else reduce(builder, torch.mean, value, axes, f"{name}_mean")]


def log_sum_exp(builder: Builder, value: fx.Node, axes: Axes, name: str) -> Value:
    """Add the logarithm of summed exponentials, shifted by the largest."""
    largest = reduce(builder, torch.amax, value, (axes[0], True), f"{name}_largest")
    shifted = builder.call(torch.sub, value, largest, name=f"{name}_shifted")
    powers = builder.call(torch.exp, shifted, name=f"{name}_exp")
    total = reduce(builder, torch.sum, powers, axes, f"{name}_sum")
    summed = builder.call(torch.log, total, name=f"{name}_log")
    back = largest if axes[1] else reduce(builder, torch.amax, value, axes, f"{name}_largest")
    return builder.call(torch.add, summed, back, name=name)


def _read_global(target: Callable[..., Tensor]) -> ReadOnnx:
    def read(builder: Builder, call: OnnxCall) -> Value:
        value = call.value(0)
        return reduce(builder, target, value, (range(2, builder.rank(value)), True), call.name)

    return read


def _axes(call: OnnxCall) -> Axes | None:
    """Return the axes of an ONNX reduction, or None where it does nothing."""
    axes, noop = call.ints(1, "axes"), call.attributes.get("noop_with_empty_axes", 0)
    keep = bool(call.attributes.get("keepdims", 1))
    if not axes and not noop:
        raise refuse(call.name, f"{call.op_type} over every axis")
    return (axes, keep) if axes else None


Reduction = Callable[[Builder, fx.Node, Axes, str], Value]


def _read_reduce(reduction: Reduction, alone: Callable[..., Tensor] | None = None) -> ReadOnnx:
    """Return the reader of a reduction; `alone` is what it does to elements when it reduces nothing."""

    def read(builder: Builder, call: OnnxCall) -> Value:
        axes, value = _axes(call), call.value(0)
        if axes is not None:
            return reduction(builder, value, axes, call.name)
        return value if alone is None else builder.call(alone, value, name=call.name)

    return read


def _plain(target: Callable[..., Tensor]) -> Reduction:
    return lambda builder, value, axes, name: reduce(builder, target, value, axes, name)


def _norm(order: float) -> Reduction:
    return lambda builder, value, axes, name: norm(builder, value, order, axes, name)


def _sum_square(builder: Builder, value: fx.Node, axes: Axes, name: str) -> Value:
    square = builder.call(torch.pow, value, name=f"{name}_square", exponent=2.0)
    return reduce(builder, torch.sum, square, axes, name)


def _aten_axes(builder: Builder, call: AtenCall) -> Axes:
    dims, rank = call.get("dim"), builder.rank(call.node())
    if dims is None or dims == []:
        raise refuse(call.name, f"{call.target} over every axis")
    listed = dims if isinstance(dims, list | tuple) else [dims]
    return [int(dim) % rank for dim in listed], bool(call.get("keepdim", False))


def _aten_reduce(reduction: Reduction) -> ReadAten:
    def read(builder: Builder, call: AtenCall) -> Value:
        return reduction(builder, call.node(), _aten_axes(builder, call), call.name)

    return read


def _aten_norm(builder: Builder, call: AtenCall) -> Value:
    order = call.get("ord", call.get("p", 2))
    return norm(builder, call.node(), float(order), _aten_axes(builder, call), call.name)


def _aten_variance(builder: Builder, call: AtenCall) -> Values:
    """Read var, std, var_mean and std_mean."""
    unbiased, correction = call.get("unbiased", True), call.inputs.get("correction")
    correction = float(correction) if correction is not None else float(bool(unbiased))
    found, mean = variance(builder, call.node(), _aten_axes(builder, call), correction, call.name)
    if "std" in call.target:
        found = builder.call(torch.sqrt, found, name=f"{call.name}_deviation")
    return [found, mean] if "_mean" in call.target else found


def _aten_extreme(values: Callable[..., Tensor], places: Callable[..., Tensor]) -> ReadAten:
    """Return the reader of max(dim) and min(dim): values and their places."""

    def read(builder: Builder, call: AtenCall) -> Values:
        axes = _aten_axes(builder, call)
        found = reduce(builder, values, call.node(), axes, call.name)
        return [found, place(builder, places, call.node(), (axes[0][0], axes[1]), f"{call.name}_places")]

    return read


def _aten_any(builder: Builder, call: AtenCall) -> Value:
    number = convert(builder, call.node(), torch.float32, f"{call.name}_number")
    found: Any = reduce(builder, torch.amax, number, _aten_axes(builder, call), f"{call.name}_largest")
    return convert(builder, found, torch.bool, call.name)


def place(
    builder: Builder, target: Callable[..., Tensor], value: fx.Node, axis: tuple[int, bool], name: str
) -> fx.Node:
    """Add the place of the largest or smallest entry along (dimension, kept?)."""
    dim = axis[0] % builder.rank(value)
    if holds_batch(builder.shape(value)[dim]):
        raise refuse(name, "a choice among the batch")
    return builder.call(target, value, name=name, dim=dim, keepdim=axis[1])


def _read_place(target: Callable[..., Tensor]) -> ReadOnnx:
    def read(builder: Builder, call: OnnxCall) -> Value:
        axis = int(call.attributes.get("axis", 0)), bool(call.attributes.get("keepdims", 1))
        return place(builder, target, call.value(0), axis, call.name)

    return read


def _aten_place(target: Callable[..., Tensor]) -> ReadAten:
    def read(builder: Builder, call: AtenCall) -> Value:
        axes = _aten_axes(builder, call)
        return place(builder, target, call.node(), (axes[0][0], axes[1]), call.name)

    return read


def _read_lp(builder: Builder, call: OnnxCall) -> Value:
    axis = int(call.attributes.get("axis", -1)) % builder.rank(call.value(0))
    size = norm(builder, call.value(0), int(call.attributes.get("p", 2)), ([axis], True), f"{call.name}_norm")
    return builder.call(torch.div, call.value(0), size, name=call.name)


def _running(builder: Builder, value: fx.Node, dim: int, name: str) -> fx.Node:
    dim %= builder.rank(value)
    if holds_batch(builder.shape(value)[dim]):
        raise refuse(name, "a running sum over the batch")
    return builder.call(torch.cumsum, value, name=name, dim=dim)


def _read_cumsum(builder: Builder, call: OnnxCall) -> Value:
    axis, value = call.constant(1), call.value(0)
    if axis is None:
        raise refuse(call.name, "CumSum without its axis")
    dim, turned = int(axis), call.attributes.get("reverse", 0)
    source: Any = flip(builder, value, [dim], f"{call.name}_turned") if turned else value
    total: Any = _running(builder, source, dim, call.name)
    if call.attributes.get("exclusive", 0):
        total = builder.call(torch.sub, total, source, name=f"{call.name}_before")
    return flip(builder, total, [dim], f"{call.name}_back") if turned else total


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


def _write_place(op_type: str) -> Write:
    def write(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
        k: Any = node.kwargs
        return writer.emit(op_type, inputs, node.name, axis=k["dim"], keepdims=int(k["keepdim"]))

    return write


def _write_cumsum(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    axis: Any = node.kwargs["dim"]
    return writer.emit("CumSum", [inputs[0], writer.constant(torch.tensor(axis), f"{node.name}_axis")], node.name)


_READERS: dict[str, dict[str, ReadOnnx]] = {
    "mean": {"GlobalAveragePool": _read_global(torch.mean)},
    "amax": {"GlobalMaxPool": _read_global(torch.amax)},
    "sum": {
        "ReduceL1": _read_reduce(_norm(1), torch.abs),
        "ReduceL2": _read_reduce(_norm(2), torch.abs),
        "ReduceSumSquare": _read_reduce(_sum_square, torch.square),
        "ReduceLogSumExp": _read_reduce(log_sum_exp),
        "LpNormalization": _read_lp,
    },
}
_ATENS: dict[str, dict[str, ReadAten]] = {
    "mean": {
        "aten.mean.dim": _aten_reduce(_plain(torch.mean)),
        **{
            f"aten.{name}.{kind}": _aten_variance
            for name in ("var", "std", "var_mean", "std_mean")
            for kind in ("dim", "correction")
        },
    },
    "sum": {
        "aten.sum.dim_IntList": _aten_reduce(_plain(torch.sum)),
        "aten.logsumexp.default": _aten_reduce(log_sum_exp),
        **{f"aten.{name}": _aten_norm for name in ("linalg_vector_norm.default", "norm.ScalarOpt_dim")},
    },
    "amax": {
        "aten.amax.default": _aten_reduce(_plain(torch.amax)),
        "aten.max.dim": _aten_extreme(torch.amax, torch.argmax),
        **{f"aten.any.{kind}": _aten_any for kind in ("dim", "dims")},
    },
    "amin": {
        "aten.amin.default": _aten_reduce(_plain(torch.amin)),
        "aten.min.dim": _aten_extreme(torch.amin, torch.argmin),
    },
}
_reduction: Callable[..., Tensor]
for _name, _reduction, _type, _pooled in (
    ("mean", torch.mean, "ReduceMean", "GlobalAveragePool"),
    ("sum", torch.sum, "ReduceSum", None),
    ("amax", torch.amax, "ReduceMax", "GlobalMaxPool"),
    ("amin", torch.amin, "ReduceMin", None),
):
    _readers = {_type: _read_reduce(_plain(_reduction)), **_READERS.get(_name, {})}
    register(Op(_name, _reduction, flows.reduce, Grid.new, _write_reduce(_type, _pooled), _readers, _ATENS[_name]))
for _name, _reduction, _type in (("argmax", torch.argmax, "ArgMax"), ("argmin", torch.argmin, "ArgMin")):
    register(
        Op(
            _name,
            _reduction,
            flows.reduce,
            Grid.none,
            _write_place(_type),
            {_type: _read_place(_reduction)},
            {f"aten.{_name}.default": _aten_place(_reduction)},
        )
    )
register(
    Op(
        "cumsum",
        torch.cumsum,
        flows.accumulate,
        Grid.new,
        _write_cumsum,
        {"CumSum": _read_cumsum},
        {"aten.cumsum.default": lambda b, call: _running(b, call.node(), int(call.get("dim")), call.name)},
    )
)
