"""Element-wise functions of one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from worker.graph.build import Builder, Value
from worker.graph.errors import NetworkRefused
from worker.graph.ops.table import Flow, Grid, OnnxCall, Op, ReadAten, ReadOnnx, Write, Writer, register, scalar


def _read_onnx(target: Callable[..., Tensor]) -> ReadOnnx:
    def read(builder: Builder, call: OnnxCall) -> Value:
        return builder.call(target, call.value(0), name=call.name)

    return read


def _read_aten(target: Callable[..., Tensor]) -> ReadAten:
    def read(builder: Builder, name: str, args: list[Any]) -> Value:
        return builder.call(target, args[0], name=name)

    return read


def _write(op_type: str, **attributes: Any) -> Write:
    def write(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
        return writer.emit(op_type, inputs[:1], node.name, **attributes)

    return write


def _simple(name: str, target: Callable[..., Tensor], onnx_type: str, grid: Grid, unsigned: bool = False) -> None:
    aten: dict[str, ReadAten] = {
        f"aten.{name}.default": _read_aten(target),
        f"aten.{name}_.default": _read_aten(target),
    }
    register(Op(name, target, Flow.same, grid, _write(onnx_type), {onnx_type: _read_onnx(target)}, aten, unsigned))


def _clamp(builder: Builder, value: Value, low: float, high: float, name: str) -> Value:
    if low == 0.0 and math.isinf(high):
        return builder.call(torch.relu, value, name=name)
    return builder.call(torch.clamp, value, name=name, min=low, max=high)


def _read_clip(builder: Builder, call: OnnxCall) -> Value:
    bounds = []
    for index, (attribute, default) in enumerate((("min", -math.inf), ("max", math.inf)), start=1):
        found = call.constant(index)
        bounds.append(scalar(found) if found is not None else float(call.attributes.get(attribute, default)))
    return _clamp(builder, call.value(0), bounds[0], bounds[1], call.name)


def _aten_clamp(builder: Builder, name: str, args: list[Any]) -> Value:
    low = -math.inf if len(args) < 2 or args[1] is None else scalar(args[1])
    high = math.inf if len(args) < 3 or args[2] is None else scalar(args[2])
    return _clamp(builder, args[0], low, high, name)


def _aten_hardtanh(builder: Builder, name: str, args: list[Any]) -> Value:
    bounds = [*args[1:3], *(-1.0, 1.0)[len(args[1:3]) :]]
    return _clamp(builder, args[0], scalar(bounds[0]), scalar(bounds[1]), name)


def _write_clamp(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    bounds = []
    for key in ("min", "max"):
        value = float(node.kwargs[key])  # type: ignore[arg-type]
        bounds.append("" if math.isinf(value) else writer.scalar(value, f"{node.name}_{key}"))
    return writer.emit("Clip", [inputs[0], *bounds], node.name)


def _read_leaky(builder: Builder, call: OnnxCall) -> Value:
    slope = float(call.attributes.get("alpha", 0.01))
    return builder.call(F.leaky_relu, call.value(0), name=call.name, negative_slope=slope)


def _aten_leaky(builder: Builder, name: str, args: list[Any]) -> Value:
    return builder.call(F.leaky_relu, args[0], name=name, negative_slope=scalar(args[1]) if len(args) > 1 else 0.01)


def _write_leaky(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    return writer.emit("LeakyRelu", inputs[:1], node.name, alpha=float(node.kwargs["negative_slope"]))  # type: ignore[arg-type]


def _write_silu(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    gate = writer.emit("Sigmoid", inputs[:1], f"{node.name}_gate")
    return writer.emit("Mul", [inputs[0], gate], node.name)


def _read_softmax(builder: Builder, call: OnnxCall) -> Value:
    rank = len(builder.shape(call.value(0)))
    axis = int(call.attributes.get("axis", -1 if call.opset >= 13 else 1))
    if call.opset < 13 and axis % rank != rank - 1:
        raise NetworkRefused("unsupported-operator", f"Softmax {call.name!r} over several axes (before opset 13)")
    return builder.call(torch.softmax, call.value(0), name=call.name, dim=axis)


def _aten_softmax(builder: Builder, name: str, args: list[Any]) -> Value:
    return builder.call(torch.softmax, args[0], name=name, dim=int(args[1]))


def _write_softmax(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    return writer.emit("Softmax", inputs[:1], node.name, axis=node.kwargs["dim"])


def _read_hardsigmoid(builder: Builder, call: OnnxCall) -> Value:
    alpha, beta = float(call.attributes.get("alpha", 0.2)), float(call.attributes.get("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return builder.call(F.hardsigmoid, call.value(0), name=call.name)
    scaled = builder.call(torch.mul, call.value(0), torch.tensor(alpha), name=f"{call.name}_scaled")
    shifted = builder.call(torch.add, scaled, torch.tensor(beta), name=f"{call.name}_shifted")
    return builder.call(torch.clamp, shifted, name=call.name, min=0.0, max=1.0)


def _gelu(builder: Builder, value: Value, approximate: Any, name: str) -> Value:
    return builder.call(F.gelu, value, name=name, approximate=str(approximate))


def _write_gelu(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    return writer.emit("Gelu", inputs[:1], node.name, approximate=node.kwargs.get("approximate", "none"))


def _read_identity(builder: Builder, call: OnnxCall) -> Value:
    return call.value(0)


def _aten_identity(builder: Builder, name: str, args: list[Any]) -> Value:
    value: Value = args[0]
    return value


_simple("relu", torch.relu, "Relu", Grid.fuse, unsigned=True)
_simple("sigmoid", torch.sigmoid, "Sigmoid", Grid.new, unsigned=True)
_simple("tanh", torch.tanh, "Tanh", Grid.new)
_simple("hardswish", F.hardswish, "HardSwish", Grid.new)
register(
    Op(
        "gelu",
        F.gelu,
        Flow.same,
        Grid.new,
        _write_gelu,
        {
            "Gelu": lambda builder, call: _gelu(
                builder, call.value(0), call.attributes.get("approximate", "none"), call.name
            )
        },
        {"aten.gelu.default": lambda b, n, a: _gelu(b, a[0], a[1] if len(a) > 1 else "none", n)},
    )
)
register(
    Op(
        "hardsigmoid",
        F.hardsigmoid,
        Flow.same,
        Grid.new,
        _write("HardSigmoid", alpha=1 / 6, beta=0.5),
        {"HardSigmoid": _read_hardsigmoid},
        {"aten.hardsigmoid.default": _read_aten(F.hardsigmoid)},
        unsigned=True,
    )
)
register(
    Op(
        "silu",
        F.silu,
        Flow.same,
        Grid.new,
        _write_silu,
        {},
        {"aten.silu.default": _read_aten(F.silu), "aten.silu_.default": _read_aten(F.silu)},
    )
)
register(
    Op(
        "clamp",
        torch.clamp,
        Flow.same,
        Grid.fuse,
        _write_clamp,
        {"Clip": _read_clip},
        {
            "aten.clamp.default": _aten_clamp,
            "aten.clamp_.default": _aten_clamp,
            "aten.hardtanh.default": _aten_hardtanh,
            "aten.hardtanh_.default": _aten_hardtanh,
            "aten.relu6.default": lambda b, n, a: _clamp(b, a[0], 0.0, 6.0, n),
        },
    )
)
register(
    Op(
        "leaky_relu",
        F.leaky_relu,
        Flow.same,
        Grid.new,
        _write_leaky,
        {"LeakyRelu": _read_leaky},
        {"aten.leaky_relu.default": _aten_leaky, "aten.leaky_relu_.default": _aten_leaky},
    )
)
register(
    Op(
        "softmax",
        torch.softmax,
        Flow.freeze,
        Grid.new,
        _write_softmax,
        {"Softmax": _read_softmax, "Identity": _read_identity, "Dropout": _read_identity},
        {
            "aten.softmax.int": _aten_softmax,
            "aten._softmax.default": _aten_softmax,
            "aten.dropout.default": _aten_identity,
            "aten.dropout_.default": _aten_identity,
            "aten.clone.default": _aten_identity,
            "aten.contiguous.default": _aten_identity,
            "aten.detach.default": _aten_identity,
            "aten.alias.default": _aten_identity,
        },
        unsigned=True,
    )
)
