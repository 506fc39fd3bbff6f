"""Uses of operations on several values: arithmetic with broadcasting, comparisons, choices, concatenation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

from tests.worker.graph.contracts.uses import AtenUse, Held, OnnxUse, Pair, aten, floats, normal

node = helper.make_node
Two = Callable[[Tensor, Tensor], Tensor]
COMPARED: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "eq": torch.eq,
    "ne": torch.ne,
    "gt": torch.gt,
    "lt": torch.lt,
    "ge": torch.ge,
    "le": torch.le,
}


def _pair(name: str, function: Two, frozen: str = "") -> AtenUse:
    return AtenUse(name, function=Pair(function), frozen=frozen)


def _compared(name: str) -> tuple[AtenUse, AtenUse]:
    compare = COMPARED[name]
    whole = Pair(lambda x, y: torch.where(compare(x.floor(), y.floor()), x, y * 2))
    return (
        AtenUse(f"{name} of values", function=whole),
        AtenUse(f"{name} of a number", function=lambda x: torch.where(compare(x.floor(), 0), x, x * 2)),
    )


ATEN: tuple[AtenUse, ...] = (
    _pair("add", lambda x, y: x + y),
    _pair("add in place", lambda x, y: (x * 1.0).add_(y)),
    AtenUse("add a number", function=lambda x: x + 2),
    AtenUse("add a number, Scalar", function=aten("add.Scalar", 2.5)),
    AtenUse("add a number, Scalar in place", function=lambda x: aten("add_.Scalar", 2.5)(x * 1.0)),
    _pair("add scaled", lambda x, y: torch.add(x, y, alpha=2)),
    AtenUse("add a scaled number", function=aten("add.Scalar", 2.5, 3)),
    AtenUse("add a vector per channel", function=Held(lambda x, c: x + c, floats(6, 1, 1))),
    AtenUse("add a picture", function=Held(lambda x, c: x + c, floats(1, 6, 8, 8))),
    AtenUse("add a row of positions", function=Held(lambda x, c: x + c, floats(8))),
    _pair("sub", lambda x, y: x - y),
    _pair("sub in place", lambda x, y: (x * 1.0).sub_(y)),
    _pair("sub scaled", lambda x, y: torch.sub(x, y, alpha=0.5)),
    AtenUse("sub a number, Scalar", function=aten("sub.Scalar", 2.5)),
    AtenUse("sub a number, Scalar in place", function=lambda x: aten("sub_.Scalar", 2.5)(x * 1.0)),
    AtenUse("number minus value", function=lambda x: 1.0 - x),
    AtenUse("number minus value, Scalar", function=aten("rsub.Scalar", 1.5)),
    AtenUse("number minus scaled value", function=aten("rsub.Scalar", 1.5, 2)),
    _pair("turned subtraction", lambda x, y: torch.rsub(x, y)),
    _pair("mul", lambda x, y: x * y),
    _pair("mul in place", lambda x, y: (x * 1.0).mul_(y)),
    AtenUse("mul by a number, Scalar", function=aten("mul.Scalar", 2.5)),
    AtenUse("mul by a number, Scalar in place", function=lambda x: aten("mul_.Scalar", 2.5)(x * 1.0)),
    _pair("mul by a gate per channel", lambda x, y: x * y.mean((2, 3), keepdim=True).sigmoid()),
    _pair("mul by a single map", lambda x, y: x * y.mean(1, keepdim=True)),
    AtenUse("mul by one channel", function=Pair(lambda x, y: x * y, channels=1)),
    _pair("div", lambda x, y: x / (y.abs() + 1)),
    _pair("div in place", lambda x, y: (x * 1.0).div_(y.abs() + 1)),
    AtenUse("div by a number, Scalar", function=aten("div.Scalar", 2.5)),
    AtenUse("div by a number, Scalar in place", function=lambda x: aten("div_.Scalar", 2.5)(x * 1.0)),
    AtenUse("div, floor", function=lambda x: torch.div(x * 9, 4.0, rounding_mode="floor")),
    AtenUse("div, trunc", function=lambda x: torch.div(x * 9, 4.0, rounding_mode="trunc")),
    AtenUse("div, floor, in place", function=lambda x: (x * 9).div_(4.0, rounding_mode="floor")),
    _pair("minimum", torch.minimum),
    _pair("maximum", torch.maximum),
    _pair("min of two", torch.min),
    _pair("max of two", torch.max),
    *(use for name in COMPARED for use in _compared(name)),
    _pair("and", lambda x, y: torch.where(torch.logical_and(x > 0, y > 0), x, y)),
    _pair("or", lambda x, y: torch.where(torch.logical_or(x > 0, y > 0), x, y)),
    _pair("and of bits", lambda x, y: torch.where((x > 0) & (y > 0), x, y)),
    _pair("or of bits", lambda x, y: torch.where((x > 0) | (y > 0), x, y)),
    AtenUse("zeros alike", function=lambda x: torch.cat([torch.zeros_like(x[:, :2]), x], 1)),
    AtenUse("ones alike", function=lambda x: x + torch.ones_like(x)),
    AtenUse("new zeros", function=lambda x: torch.cat([x.new_zeros(x.shape[0], 2, 8, 8), x], 1)),
    AtenUse("new ones", function=lambda x: x + x.new_ones(8)),
    AtenUse("newly filled", function=lambda x: x + x.new_full((6, 1, 1), 0.5)),
    _pair("and of bits, by name", lambda x, y: torch.where(torch.bitwise_and(x > 0, y > 0), x, y)),
    _pair("or of bits, by name", lambda x, y: torch.where(torch.bitwise_or(x > 0, y > 0), x, y)),
    AtenUse("masked fill", function=lambda x: x.masked_fill(x > 0.3, -1.0)),
    AtenUse("masked fill in place", function=lambda x: (x * 1.0).masked_fill_(x > 0.3, -1.0)),
    AtenUse("masked fill by a value", function=Held(lambda x, c: x.masked_fill(x > 0.3, c), torch.tensor(0.7))),
    AtenUse(
        "masked fill by a value in place",
        function=Held(lambda x, c: (x * 1).masked_fill_(x > 0.3, c), torch.tensor(0.7)),
    ),
    AtenUse("where by a constant mask", function=Held(lambda x, m: torch.where(m, x, x * 3), floats(8, 8) > 0)),
    _pair("concat", lambda x, y: torch.cat([x, y, x], 1)),
    _pair("concat, outer", lambda x, y: torch.concat([x, y], 1)),
    _pair("concat of positions", lambda x, y: torch.cat([x, y], -1)),
    AtenUse(
        "concat with a constant",
        function=Held(lambda x, c: torch.cat([x, c.expand(x.shape[0], -1, -1, -1)], 1), floats(1, 2, 8, 8)),
    ),
    AtenUse(
        "class token",
        (5, 6),
        True,
        function=Held(lambda x, c: torch.cat([c.expand(x.shape[0], -1, -1), x], 1), floats(1, 1, 6)),
        frozen="",
    ),
)


def _two(op: str, since: int = 11, **attributes: Any) -> OnnxUse:
    """Return a use with a second convolution's value as the other operand."""
    nodes = [node("Conv", ["y", "v"], ["w"], name="other"), node(op, ["y", "w"], ["z"], **attributes)]
    return OnnxUse(f"{op} of two values", nodes=nodes, held={"v": normal(6, 6, 1, 1)}, since=since)


def _held(name: str, op: str, inputs: Sequence[str], since: int = 11, **held: Any) -> OnnxUse:
    return OnnxUse(name, nodes=[node(op, list(inputs), ["z"])], held=held, since=since)


def _truth(op: str, since: int = 11) -> OnnxUse:
    nodes = [
        node("Greater", ["y", "c"], ["g"]),
        node("Less", ["y", "d"], ["l"]),
        node(op, ["g", "l"], ["t"]),
        node("Where", ["t", "y", "c"], ["z"]),
    ]
    return OnnxUse(op, nodes=nodes, held={"c": np.float32(0.1), "d": np.float32(0.5)}, since=since)


def _comparison(op: str, since: int = 11) -> OnnxUse:
    nodes: list[onnx.NodeProto] = [
        node("Floor", ["y"], ["f"]),
        node(op, ["f", "c"], ["t"]),
        node("Cast", ["t"], ["k"], to=1),
        node("Mul", ["k", "y"], ["z"]),
    ]
    return OnnxUse(op, nodes=nodes, held={"c": np.float32(0)}, since=since)


ONNX: tuple[OnnxUse, ...] = (
    *(_two(op) for op in ("Add", "Sub", "Mul", "Min", "Max", "Sum", "Mean")),
    _two("Concat", axis=1),
    _two("Concat", axis=-1),
    _held("Add a column", "Add", ["y", "c"], c=normal(6, 1, 1)),
    _held("Sub from a number", "Sub", ["c", "y"], c=np.float32(1)),
    _held("Div by a vector", "Div", ["y", "c"], c=np.abs(normal(6, 1, 1)) + 1),
    _held("Sum of three", "Sum", ["y", "c", "y"], c=normal(6, 1, 1)),
    _held("Sum of one", "Sum", ["y"]),
    _held("Max with a number", "Max", ["y", "c"], c=np.float32(0.2)),
    _held("Mean of three", "Mean", ["y", "c", "y"], c=normal(6, 1, 1)),
    *(_comparison(op) for op in ("Greater", "Less")),
    *(_comparison(op, 12) for op in ("GreaterOrEqual", "LessOrEqual")),
    _comparison("Equal"),
    *(_truth(op) for op in ("And", "Or")),
    OnnxUse(
        "Where by a constant mask",
        nodes=[node("Where", ["m", "y", "c"], ["z"])],
        held={"m": normal(8, 8) > 0, "c": np.float32(2)},
    ),
    OnnxUse(
        "Add of a row behind a product",
        (5, 6),
        True,
        nodes=[node("MatMul", ["y", "m"], ["p"]), node("Add", ["r", "p"], ["z"])],
        held={"m": normal(6, 4), "r": normal(4)},
    ),
    OnnxUse(
        "Add of a column behind a product",
        (5, 6),
        True,
        nodes=[node("MatMul", ["y", "m"], ["p"]), node("Add", ["p", "c"], ["z"])],
        held={"m": normal(6, 4), "c": normal(5, 1)},
    ),
)
