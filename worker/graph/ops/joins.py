"""Element-wise operations of two tensors, and concatenation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.graph.build import Builder, Value
from worker.graph.errors import NetworkRefused
from worker.graph.ops.table import Flow, Grid, OnnxCall, Op, ReadAten, ReadOnnx, Write, Writer, register


def _read_onnx(target: Callable[..., Tensor]) -> ReadOnnx:
    def read(builder: Builder, call: OnnxCall) -> Value:
        left, right = call.inputs[:2]
        if left is None or right is None:
            raise NetworkRefused("invalid-graph", f"{call.op_type} {call.name!r} lacks an operand")
        if target is torch.add and _absorbed(builder, call):
            return left if isinstance(left, fx.Node) else right
        return builder.call(target, left, right, name=call.name)

    return read


def _absorbed(builder: Builder, call: OnnxCall) -> bool:
    """Take a constant vector added behind a bias-free linear layer as its bias (MatMul + Add in ONNX)."""
    left, right = call.inputs[:2]
    for node, constant, uses in ((left, right, call.input_uses[0]), (right, left, call.input_uses[1])):
        if not isinstance(node, fx.Node) or not isinstance(constant, Tensor) or node.op != "call_module" or uses != 1:
            continue
        leaf = builder.modules[str(node.target)]
        if isinstance(leaf, nn.Linear) and leaf.bias is None and _is_row(constant, leaf, len(builder.shape(node))):
            leaf.bias = nn.Parameter(constant.detach().float().reshape(-1).clone())
            with torch.no_grad():
                builder.example[node] = builder.example[node] + leaf.bias
            return True
    return False


def _is_row(constant: Tensor, leaf: nn.Linear, rank: int) -> bool:
    """Tell whether a constant adds one number per output feature, along the last of `rank` dimensions."""
    along_last = constant.numel() == constant.shape[-1:].numel() and constant.dim() <= rank
    return along_last and constant.numel() == leaf.out_features


def _read_aten(target: Callable[..., Tensor]) -> ReadAten:
    def read(builder: Builder, name: str, args: list[Any]) -> Value:
        if len(args) > 2 and args[2] not in (None, 1):
            raise NetworkRefused("unsupported-operator", f"{name!r}: add or sub with alpha")
        right = args[1] if isinstance(args[1], Tensor | fx.Node) else torch.tensor(float(args[1]))
        return builder.call(target, args[0], right, name=name)

    return read


def _write(op_type: str) -> Write:
    def write(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
        return writer.emit(op_type, inputs, node.name)

    return write


def _read_concat(builder: Builder, call: OnnxCall) -> Value:
    return builder.call(torch.cat, list(call.inputs), name=call.name, dim=int(call.attributes["axis"]))


def _aten_cat(builder: Builder, name: str, args: list[Any]) -> Value:
    return builder.call(torch.cat, list(args[0]), name=name, dim=int(args[1]) if len(args) > 1 else 0)


def _write_concat(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    return writer.emit("Concat", inputs, node.name, axis=node.kwargs["dim"])


for _name, _target, _type in (
    ("add", torch.add, "Add"),
    ("sub", torch.sub, "Sub"),
    ("mul", torch.mul, "Mul"),
    ("div", torch.div, "Div"),
):
    _aten: dict[str, ReadAten] = {
        f"aten.{_name}{mark}.{kind}": _read_aten(_target) for mark in ("", "_") for kind in ("Tensor", "Scalar")
    }
    register(Op(_name, _target, Flow.join, Grid.new, _write(_type), {_type: _read_onnx(_target)}, _aten))
register(
    Op(
        "concat",
        torch.cat,
        Flow.concat,
        Grid.new,
        _write_concat,
        {"Concat": _read_concat},
        {"aten.cat.default": _aten_cat},
    )
)
