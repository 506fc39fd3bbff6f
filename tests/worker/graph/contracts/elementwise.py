"""Uses of element-wise functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional as F

from tests.worker.graph.contracts.uses import AtenUse, Held, OnnxUse, aten, floats, normal

node = helper.make_node
POSITIVE = ("log", "sqrt", "rsqrt", "reciprocal")
INSIDE = ("asin", "acos", "atanh")
UNARY = (
    *("relu", "sigmoid", "abs", "exp", "sqrt", "softplus", "tanh", "hardswish", "erf", "neg", "log", "reciprocal"),
    *("mish", "selu", "sin", "cos", "sign", "floor", "hardsigmoid", "silu", "rsqrt"),
)
IN_PLACE = (
    *("relu", "sigmoid", "abs", "exp", "sqrt", "tanh", "hardswish", "erf", "neg", "log", "reciprocal", "mish"),
    *("selu", "sin", "cos", "sign", "floor", "hardsigmoid", "silu", "leaky_relu", "elu", "hardtanh", "relu6"),
)


def _safe(name: str, value: Tensor) -> Tensor:
    """Return the value, moved into the function's domain."""
    if name in POSITIVE:
        return value.abs() + 0.5
    return torch.sigmoid(value) * 0.9 if name in INSIDE else value


def _unary(name: str) -> AtenUse:
    return AtenUse(name, function=lambda x: aten(f"{name}.default")(_safe(name, x)))


def _in_place(name: str) -> AtenUse:
    return AtenUse(f"{name}_", function=lambda x: aten(f"{name}_.default")(_safe(name, x) * 1.0))


ATEN: tuple[AtenUse, ...] = (
    *(_unary(name) for name in UNARY),
    *(_in_place(name) for name in IN_PLACE),
    AtenUse("softsign", function=F.softsign),
    AtenUse("trunc", function=lambda x: torch.trunc(x * 3)),
    AtenUse("trunc in place", function=lambda x: (x * 3).trunc_()),
    AtenUse("gelu", function=F.gelu),
    AtenUse("gelu by tanh", function=lambda x: F.gelu(x, approximate="tanh")),
    AtenUse("leaky relu", function=lambda x: F.leaky_relu(x, 0.2)),
    AtenUse("elu", function=lambda x: F.elu(x, 0.7)),
    AtenUse("clamp, both bounds", function=lambda x: torch.clamp(x, -0.3, 0.4)),
    AtenUse("clamp, in place", function=lambda x: (x * 1.0).clamp_(-0.3, 0.4)),
    AtenUse("clip", function=aten("clip.default", -0.3, 0.4)),
    AtenUse("clamp, lower", function=aten("clamp_min.default", 0.1)),
    AtenUse("clamp, upper", function=aten("clamp_max.default", 0.1)),
    AtenUse("hardtanh", function=lambda x: F.hardtanh(x, -0.2, 0.6)),
    AtenUse("relu6", function=F.relu6),
    AtenUse("power", function=lambda x: x**3),
    AtenUse("square root by power", function=lambda x: (x.abs() + 0.1) ** 0.5),
    AtenUse("square", function=aten("square.default")),
    AtenUse("softmax over channels", function=lambda x: x.softmax(1), frozen="normalises over channels"),
    AtenUse("softmax over positions", function=lambda x: x.softmax(-1)),
    AtenUse("softmax, inner", function=aten("_softmax.default", 2, False)),
    AtenUse("log softmax", function=lambda x: x.log_softmax(1), frozen="normalises over channels"),
    AtenUse("log softmax, inner", function=aten("_log_softmax.default", -1, False)),
    AtenUse("cast to float", function=lambda x: x.to(torch.float32) * 2),
    AtenUse("cast to int and back", function=lambda x: x.to(torch.int64).to(torch.float32)),
    AtenUse("cast to double and back", function=lambda x: (x.to(torch.float64) * 2).to(torch.float32)),
    AtenUse("cast, copied", function=aten("_to_copy.default", dtype=torch.float32)),
    AtenUse("truth to float", function=lambda x: (x > 0).float() * x),
    AtenUse("not", function=lambda x: torch.where(torch.logical_not(x > 0), x, x * 2)),
    AtenUse("not, in place", function=lambda x: torch.where((x > 0).logical_not_(), x, x * 2)),
    AtenUse("dropouts", function=lambda x: F.alpha_dropout(F.dropout2d(F.dropout(x, 0.5, False), 0.5, False), 0.5)),
    AtenUse("clone and contiguous", function=lambda x: x.permute(0, 2, 3, 1).contiguous().clone().permute(0, 3, 1, 2)),
    AtenUse("detach", function=lambda x: x.detach() * 2),
    AtenUse("prelu, one slope", function=nn.PReLU()),
    AtenUse("prelu, a slope per channel", function=Held(lambda x, s: F.prelu(x, s), floats(6))),
    AtenUse("prelu over tokens", (5, 6), function=Held(lambda x, s: F.prelu(x, s), floats(5))),
    AtenUse("prelu, inner", function=Held(lambda x, s: aten("_prelu_kernel.default", s)(x), floats(6, 1, 1))),
)


def _onnx(op: str, since: int = 11, frozen: str = "", **attributes: Any) -> OnnxUse:
    label = ", ".join(f"{key} {item}" for key, item in attributes.items())
    return OnnxUse(f"{op} {label}".strip(), nodes=[node(op, ["y"], ["z"], **attributes)], since=since, frozen=frozen)


def _of_positive(op: str, since: int = 11) -> OnnxUse:
    nodes = [node("Abs", ["y"], ["s"]), node("Add", ["s", "half"], ["d"]), node(op, ["d"], ["z"])]
    return OnnxUse(op, nodes=nodes, held={"half": np.float32(0.5)}, since=since)


ONNX: tuple[OnnxUse, ...] = (
    *(
        _onnx(op)
        for op in ("Abs", "Cos", "Erf", "Exp", "Floor", "Neg", "Relu", "Selu", "Sigmoid", "Sign", "Sin", "Softplus")
    ),
    *(_onnx(op) for op in ("Softsign", "Tanh")),
    *(_of_positive(op) for op in ("Log", "Reciprocal", "Sqrt")),
    _onnx("HardSwish", 14),
    _onnx("Mish", 18),
    _onnx("Gelu", 20),
    _onnx("Gelu", 20, approximate="tanh"),
    _onnx("Elu"),
    _onnx("Elu", alpha=0.4),
    _onnx("LeakyRelu"),
    _onnx("LeakyRelu", alpha=0.3),
    _onnx("HardSigmoid"),
    _onnx("HardSigmoid", alpha=1 / 6, beta=0.5),
    _onnx("HardSigmoid", alpha=0.4, beta=0.1),
    _onnx("Identity"),
    _onnx("Softmax", 13, "normalises over channels", axis=1),
    _onnx("Softmax", 13),
    _onnx("LogSoftmax", 13, "normalises over channels", axis=1),
    OnnxUse("Softmax, last axis, old", nodes=[node("Softmax", ["y"], ["z"], axis=3)], until=12),
    OnnxUse("Softmax of a row, old", (6,), nodes=[node("Softmax", ["y"], ["z"])], until=12, frozen="normalises"),
    OnnxUse("Clip", nodes=[node("Clip", ["y", "lo", "hi"], ["z"])], held={"lo": np.float32(-0.3), "hi": np.float32(1)}),
    OnnxUse("Clip, upper", nodes=[node("Clip", ["y", "", "hi"], ["z"])], held={"hi": np.float32(0.2)}),
    OnnxUse("Clip, lower", nodes=[node("Clip", ["y", "lo"], ["z"])], held={"lo": np.float32(0.2)}),
    OnnxUse("Clip, no bounds", nodes=[node("Clip", ["y"], ["z"])]),
    OnnxUse("Pow", nodes=[node("Pow", ["y", "e"], ["z"])], held={"e": np.float32(2)}, since=12),
    OnnxUse("Pow by an integer", nodes=[node("Pow", ["y", "e"], ["z"])], held={"e": np.int64(3)}, since=12),
    OnnxUse(
        "Cast there and back",
        nodes=[node("Cast", ["y"], ["i"], to=7), node("Cast", ["i"], ["z"], to=1)],
    ),
    OnnxUse(
        "Not",
        nodes=[
            node("Greater", ["y", "o"], ["g"]),
            node("Not", ["g"], ["n"]),
            node("Where", ["n", "y", "o"], ["z"]),
        ],
        held={"o": np.float32(0.1)},
    ),
    OnnxUse("Dropout, old", nodes=[node("Dropout", ["y"], ["z"], ratio=0.3)], until=11),
    OnnxUse("Dropout", nodes=[node("Dropout", ["y", "r"], ["z"])], held={"r": np.float32(0.3)}, since=12),
    OnnxUse("PRelu, one slope", nodes=[node("PRelu", ["y", "s"], ["z"])], held={"s": normal(1)}),
    OnnxUse("PRelu, a slope per channel", nodes=[node("PRelu", ["y", "s"], ["z"])], held={"s": normal(6, 1, 1)}),
)
