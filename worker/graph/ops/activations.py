"""Element-wise functions of one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.functions import cast
from worker.graph.leaves import vector
from worker.graph.ops.table import (
    AtenCall,
    Cut,
    Grid,
    Leaf,
    OnnxCall,
    Op,
    Options,
    ReadAten,
    ReadOnnx,
    Tensors,
    Write,
    Writer,
    module_of,
    refuse,
    register,
    scalar,
)


def _read_onnx(target: Callable[..., Tensor]) -> ReadOnnx:
    def read(builder: Builder, call: OnnxCall) -> Value:
        return builder.call(target, call.value(0), name=call.name)

    return read


def _read_aten(target: Callable[..., Tensor]) -> ReadAten:
    def read(builder: Builder, call: AtenCall) -> Value:
        return builder.call(target, call.node(), name=call.name)

    return read


def _write(op_type: str, **attributes: Any) -> Write:
    def write(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
        return writer.emit(op_type, inputs[:1], node.name, **attributes)

    return write


def _in_place(name: str) -> tuple[str, ...]:
    """Return the aten targets of a function and of its in-place form."""
    return f"aten.{name}.default", f"aten.{name}_.default"


def _simple(name: str, target: Callable[..., Tensor], onnx_type: str, **more: Any) -> None:
    """Enter a function without arguments; `more` may hold `grid`, `unsigned` and the `aten` targets."""
    aten = {item: _read_aten(target) for item in more.pop("aten", _in_place(name))}
    grid = more.pop("grid", Grid.new)
    register(Op(name, target, flows.keep, grid, _write(onnx_type), {onnx_type: _read_onnx(target)}, aten, **more))


def clamp(builder: Builder, value: Value, low: float, high: float, name: str) -> Value:
    """Add a clamp (a ReLU where that is what it is)."""
    if low == 0.0 and math.isinf(high):
        return builder.call(torch.relu, value, name=name)
    return builder.call(torch.clamp, value, name=name, min=low, max=high)


def _read_clip(builder: Builder, call: OnnxCall) -> Value:
    bounds = []
    for index, (attribute, default) in enumerate((("min", -math.inf), ("max", math.inf)), start=1):
        found = call.constant(index)
        bounds.append(scalar(found) if found is not None else float(call.attributes.get(attribute, default)))
    return clamp(builder, call.value(0), bounds[0], bounds[1], call.name)


def _bounded(low: tuple[str, float], high: tuple[str, float]) -> ReadAten:
    """Return the reader of a clamp whose bounds are arguments of these names and defaults."""

    def read(builder: Builder, call: AtenCall) -> Value:
        least, most = (scalar(call.get(*bound)) for bound in (low, high))
        return clamp(builder, call.node(), least, most, call.name)

    return read


def _write_clamp(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    bounds = []
    for key in ("min", "max"):
        value = float(node.kwargs[key])  # type: ignore[arg-type]
        bounds.append("" if math.isinf(value) else writer.scalar(value, f"{node.name}_{key}"))
    return writer.emit("Clip", [inputs[0], *bounds], node.name)


def _leaky(builder: Builder, value: fx.Node, slope: Any, name: str) -> Value:
    return builder.call(F.leaky_relu, value, name=name, negative_slope=scalar(slope))


def _elu(builder: Builder, value: fx.Node, alpha: Any, name: str) -> Value:
    return builder.call(F.elu, value, name=name, alpha=scalar(alpha))


def _aten_elu(builder: Builder, call: AtenCall) -> Value:
    if scalar(call.get("scale", 1)) != 1.0 or scalar(call.get("input_scale", 1)) != 1.0:
        raise refuse(call.name, "ELU with scales of its own")
    return _elu(builder, call.node(), call.get("alpha", 1.0), call.name)


def _write_with(op_type: str, attribute: str, key: str) -> Write:
    """Return the writer of an op with one float attribute taken from a keyword."""

    def write(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
        return writer.emit(op_type, inputs[:1], node.name, **{attribute: float(node.kwargs[key])})  # type: ignore[arg-type]

    return write


def _write_silu(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    gate = writer.emit("Sigmoid", inputs[:1], f"{node.name}_gate")
    return writer.emit("Mul", [inputs[0], gate], node.name)


def _write_rsqrt(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    root = writer.emit("Sqrt", inputs[:1], f"{node.name}_root")
    return writer.emit("Reciprocal", [root], node.name)


def _write_trunc(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    size = writer.emit("Floor", [writer.emit("Abs", inputs[:1], f"{node.name}_abs")], f"{node.name}_size")
    return writer.emit("Mul", [writer.emit("Sign", inputs[:1], f"{node.name}_sign"), size], node.name)


def _read_softmax(builder: Builder, call: OnnxCall) -> Value:
    rank = builder.rank(call.value(0))
    axis = int(call.attributes.get("axis", -1 if call.opset >= 13 else 1))
    if call.opset < 13 and axis % rank != rank - 1:
        raise refuse(call.name, "Softmax over several axes (before opset 13)")
    return _softmax(builder, call.value(0), axis, call.name, call.op_type == "LogSoftmax")


def _softmax(builder: Builder, value: fx.Node, dim: int, name: str, log: bool) -> Value:
    if dim % builder.rank(value) == 0:
        raise refuse(name, "softmax over the batch")
    return builder.call(torch.log_softmax if log else torch.softmax, value, name=name, dim=dim)


def _aten_softmax(builder: Builder, call: AtenCall) -> Value:
    return _softmax(builder, call.node(), int(call.get("dim")), call.name, "log" in call.target)


def _write_softmax(op_type: str) -> Write:
    def write(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
        return writer.emit(op_type, inputs[:1], node.name, axis=node.kwargs["dim"])

    return write


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


def _power(builder: Builder, value: fx.Node, exponent: Any, name: str) -> Value:
    return builder.call(torch.pow, value, name=name, exponent=scalar(exponent))


def _read_pow(builder: Builder, call: OnnxCall) -> Value:
    exponent = call.constant(1)
    if exponent is None or exponent.numel() != 1:
        raise refuse(call.name, "Pow with other than one constant exponent")
    return _power(builder, call.value(0), exponent, call.name)


def _write_pow(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    exponent = writer.scalar(float(node.kwargs["exponent"]), f"{node.name}_exponent")  # type: ignore[arg-type]
    return writer.emit("Pow", [inputs[0], exponent], node.name)


def _read_identity(builder: Builder, call: OnnxCall) -> Value:
    return call.value(0)


def _read_dropout(builder: Builder, call: OnnxCall) -> Value:
    training = call.constant(2)
    if training is not None and bool(training):
        raise refuse(call.name, "Dropout in training mode; export model.eval()")
    return call.value(0)


def _aten_identity(builder: Builder, call: AtenCall) -> Value:
    if call.get("train", False):
        raise refuse(call.name, f"{call.target} in training mode; export model.eval()")
    return call.node(next(key for key in ("self", "input") if key in call.inputs))


_ONNX_DTYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64}


def convert(builder: Builder, value: fx.Node, dtype: torch.dtype | None, name: str) -> fx.Node:
    """Add a conversion; everything floating is float32 here, so between floats there is none."""
    if dtype is None or dtype == builder.dtype(value) or (dtype.is_floating_point and _is_float(builder, value)):
        return value
    wanted = torch.float32 if dtype.is_floating_point else dtype
    return builder.call(cast, value, name=name, dtype=str(wanted).removeprefix("torch."))


def _is_float(builder: Builder, value: fx.Node) -> bool:
    return builder.dtype(value).is_floating_point


def _read_cast(builder: Builder, call: OnnxCall) -> Value:
    dtype = _ONNX_DTYPES.get(int(call.attributes["to"]))
    if dtype is None:
        raise refuse(call.name, f"Cast to type {call.attributes['to']}")
    return convert(builder, call.value(0), dtype, call.name)


def _aten_cast(builder: Builder, call: AtenCall) -> Value:
    return convert(builder, call.node(), call.get("dtype"), call.name)


def _write_cast(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    dtype = getattr(torch, str(node.kwargs["dtype"]))
    return writer.emit("Cast", inputs[:1], node.name, to={v: k for k, v in _ONNX_DTYPES.items()}[dtype])


def _prelu(builder: Builder, value: fx.Node, slope: Tensor | None, name: str) -> Value:
    shape = builder.shape(value)
    if slope is None or slope.numel() not in (1, shape[1] if len(shape) > 1 else 1):
        raise refuse(name, "PReLU with other than one slope, or one per channel")
    leaf = nn.PReLU(slope.numel())
    leaf.weight = vector(slope, slope, 0.25)
    return builder.module(name, leaf, value)


def _read_prelu(builder: Builder, call: OnnxCall) -> Value:
    slope = call.constant(1)
    rank = builder.rank(call.value(0))
    # ONNX broadcasts from the right: a slope per channel has the shape (C, 1, ..., 1)
    if slope is not None and slope.numel() > 1 and (slope.dim() < rank - 1 or slope.numel() != slope.shape[1 - rank]):
        raise refuse(call.name, "PReLU with other than one slope, or one per channel")
    return _prelu(builder, call.value(0), slope, call.module_name)


def _write_prelu(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    sizes = [-1, *[1] * (writer.rank(node) - 2)]
    return writer.emit(
        "PRelu", [inputs[0], writer.constant(leaf.weight.detach().reshape(sizes), f"{node.name}.slope")], node.name
    )


def _cut_prelu(leaf: Any, cut: Cut) -> None:
    if leaf.num_parameters > 1:
        leaf.weight = nn.Parameter(leaf.weight.detach()[cut.kept("param")], requires_grad=False)
        leaf.num_parameters = len(leaf.weight)


def _make_prelu(options: Options, tensors: Tensors) -> nn.Module:
    leaf = nn.PReLU(tensors["weight"].numel())
    leaf.weight = vector(tensors["weight"], tensors["weight"], 0.25)
    return leaf


_simple("relu", torch.relu, "Relu", grid=Grid.fuse, unsigned=True)
_simple("sigmoid", torch.sigmoid, "Sigmoid", unsigned=True)
_simple("abs", torch.abs, "Abs", unsigned=True)
_simple("exp", torch.exp, "Exp", unsigned=True)
_simple("sqrt", torch.sqrt, "Sqrt", unsigned=True)
_simple("softplus", F.softplus, "Softplus", unsigned=True, aten=("aten.softplus.default",))
_simple("softsign", F.softsign, "Softsign", aten=())
for _name, _target, _type in (
    ("tanh", torch.tanh, "Tanh"),
    ("hardswish", F.hardswish, "HardSwish"),
    ("erf", torch.erf, "Erf"),
    ("neg", torch.neg, "Neg"),
    ("log", torch.log, "Log"),
    ("reciprocal", torch.reciprocal, "Reciprocal"),
    ("mish", F.mish, "Mish"),
    ("selu", torch.selu, "Selu"),
    ("sin", torch.sin, "Sin"),
    ("cos", torch.cos, "Cos"),
    ("sign", torch.sign, "Sign"),
    ("floor", torch.floor, "Floor"),
):
    _simple(_name, _target, _type)
_simple("logical_not", torch.logical_not, "Not", grid=Grid.none)
register(
    Op(
        "gelu",
        F.gelu,
        flows.keep,
        Grid.new,
        _write_gelu,
        {"Gelu": lambda b, call: _gelu(b, call.value(0), call.attributes.get("approximate", "none"), call.name)},
        {"aten.gelu.default": lambda b, call: _gelu(b, call.node(), call.get("approximate", "none"), call.name)},
    )
)
register(
    Op(
        "hardsigmoid",
        F.hardsigmoid,
        flows.keep,
        Grid.new,
        _write("HardSigmoid", alpha=1 / 6, beta=0.5),
        {"HardSigmoid": _read_hardsigmoid},
        {f"aten.hardsigmoid{mark}.default": _read_aten(F.hardsigmoid) for mark in ("", "_")},
        unsigned=True,
    )
)
register(
    Op(
        "silu",
        F.silu,
        flows.keep,
        Grid.new,
        _write_silu,
        aten={f"aten.silu{mark}.default": _read_aten(F.silu) for mark in ("", "_")},
    )
)
register(
    Op(
        "rsqrt",
        torch.rsqrt,
        flows.keep,
        Grid.new,
        _write_rsqrt,
        aten={"aten.rsqrt.default": _read_aten(torch.rsqrt)},
        unsigned=True,
    )
)
register(
    Op(
        "trunc",
        torch.trunc,
        flows.keep,
        Grid.new,
        _write_trunc,
        aten={f"aten.{name}.default": _read_aten(torch.trunc) for name in ("trunc", "trunc_")},
    )
)
register(
    Op(
        "clamp",
        torch.clamp,
        flows.keep,
        Grid.fuse,
        _write_clamp,
        {"Clip": _read_clip},
        {
            **{
                f"aten.{name}.default": _bounded(("min", -math.inf), ("max", math.inf))
                for name in ("clamp", "clamp_", "clip")
            },
            "aten.clamp_min.default": _bounded(("min", -math.inf), ("", math.inf)),
            "aten.clamp_max.default": _bounded(("", -math.inf), ("max", math.inf)),
            **{f"aten.hardtanh{mark}.default": _bounded(("min_val", -1.0), ("max_val", 1.0)) for mark in ("", "_")},
            **{f"aten.relu6{mark}.default": _bounded(("", 0.0), ("", 6.0)) for mark in ("", "_")},
        },
    )
)
register(
    Op(
        "leaky_relu",
        F.leaky_relu,
        flows.keep,
        Grid.new,
        _write_with("LeakyRelu", "alpha", "negative_slope"),
        {"LeakyRelu": lambda b, call: _leaky(b, call.value(0), call.attributes.get("alpha", 0.01), call.name)},
        {
            f"aten.leaky_relu{mark}.default": lambda b, call: _leaky(
                b, call.node(), call.get("negative_slope", 0.01), call.name
            )
            for mark in ("", "_")
        },
    )
)
register(
    Op(
        "elu",
        F.elu,
        flows.keep,
        Grid.new,
        _write_with("Elu", "alpha", "alpha"),
        {"Elu": lambda b, call: _elu(b, call.value(0), call.attributes.get("alpha", 1.0), call.name)},
        {f"aten.elu{mark}.default": _aten_elu for mark in ("", "_")},
    )
)
register(
    Op(
        "pow",
        torch.pow,
        flows.keep,
        Grid.new,
        _write_pow,
        {"Pow": _read_pow},
        {
            "aten.pow.Tensor_Scalar": lambda b, call: _power(b, call.node(), call.get("exponent"), call.name),
            "aten.square.default": lambda b, call: _power(b, call.node(), 2.0, call.name),
        },
    )
)
register(
    Op(
        "softmax",
        torch.softmax,
        flows.over,
        Grid.new,
        _write_softmax("Softmax"),
        {"Softmax": _read_softmax},
        {"aten.softmax.int": _aten_softmax, "aten._softmax.default": _aten_softmax},
        unsigned=True,
    )
)
register(
    Op(
        "log_softmax",
        torch.log_softmax,
        flows.over,
        Grid.new,
        _write_softmax("LogSoftmax"),
        {"LogSoftmax": _read_softmax},
        {"aten.log_softmax.int": _aten_softmax, "aten._log_softmax.default": _aten_softmax},
    )
)
register(
    Op(
        "cast",
        cast,
        flows.keep,
        Grid.new,
        _write_cast,
        {"Cast": _read_cast, "Identity": _read_identity, "Dropout": _read_dropout},
        {
            **{f"aten.{name}": _aten_cast for name in ("to.dtype", "_to_copy.default")},
            **{
                f"aten.{name}.default": _aten_identity
                for name in (
                    "dropout",
                    "feature_dropout",
                    "alpha_dropout",
                    "clone",
                    "contiguous",
                    "detach",
                )
            },
        },
    )
)
register(
    Op(
        "prelu",
        nn.PReLU,
        flows.prelu,
        Grid.new,
        _write_prelu,
        {"PRelu": _read_prelu},
        {
            f"aten.{name}.default": lambda b, call: _prelu(b, call.node(), call.constant("weight"), call.name)
            for name in ("prelu", "_prelu_kernel")
        },
        leaf=Leaf(_cut_prelu, _make_prelu, tensors=("weight",)),
    )
)
