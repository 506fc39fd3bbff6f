"""Element-wise operations of several tensors, and concatenation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.errors import NetworkRefused
from worker.graph.extents import BATCH
from worker.graph.ops.table import AtenCall, Grid, OnnxCall, Op, ReadAten, ReadOnnx, Write, Writer, refuse, register


def _read_onnx(target: Callable[..., Tensor]) -> ReadOnnx:
    def read(builder: Builder, call: OnnxCall) -> Value:
        values = [value for value in call.inputs if value is not None]
        if len(values) < 2:
            if len(values) == 1 and call.op_type in ("Min", "Max", "Sum"):
                return values[0]
            raise NetworkRefused("invalid-graph", f"{call.op_type} {call.name!r} lacks an operand")
        if target is torch.add and _absorbed(builder, call):
            return values[0] if isinstance(values[0], fx.Node) else values[1]
        found: Value = values[0]
        for value in values[1:]:
            found = builder.call(target, found, value, name=call.name)
        return found

    return read


def _absorbed(builder: Builder, call: OnnxCall) -> bool:
    """Take a constant vector added behind a bias-free linear layer as its bias (MatMul + Add in ONNX)."""
    left, right = call.inputs[:2]
    for node, constant, uses in ((left, right, call.input_uses[0]), (right, left, call.input_uses[1])):
        if node is None or not isinstance(constant, Tensor) or uses != 1:
            continue
        leaf = builder.leaf(node)
        if isinstance(leaf, nn.Linear) and leaf.bias is None and _is_row(constant, leaf, builder.rank(node)):
            leaf.bias = nn.Parameter(constant.detach().float().reshape(-1).clone())
            return True
    return False


def _is_row(constant: Tensor, leaf: nn.Linear, rank: int) -> bool:
    """Tell whether a constant adds one number per output feature, along the last of `rank` dimensions."""
    along_last = constant.numel() == constant.shape[-1:].numel() and constant.dim() <= rank
    return along_last and constant.numel() == leaf.out_features


def _tensor(item: Any) -> Any:
    return item if isinstance(item, Tensor | fx.Node) else torch.tensor(float(item))


def _read_aten(target: Callable[..., Tensor], turned: bool = False) -> ReadAten:
    def read(builder: Builder, call: AtenCall) -> Value:
        if call.get("alpha", 1) != 1 or call.get("rounding_mode") is not None:
            raise refuse(call.name, f"{call.target} with alpha or rounding")
        pair = [_tensor(call.get("self")), _tensor(call.get("other"))]
        return builder.call(target, *(reversed(pair) if turned else pair), name=call.name)

    return read


def _write(op_type: str) -> Write:
    def write(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
        return writer.emit(op_type, inputs, node.name)

    return write


def concat(builder: Builder, values: Sequence[Value], dim: int, name: str) -> Value:
    """Add a concatenation; a constant made for the file's fixed batch is repeated over any batch."""
    node = next(value for value in values if isinstance(value, fx.Node))
    shape = builder.shape(node)
    dim %= len(shape)
    fitted = [_repeated(builder, value, shape, dim) if isinstance(value, Tensor) else value for value in values]
    if len(fitted) == 1:
        return fitted[0]
    return builder.call(torch.cat, fitted, name=name, dim=dim)


def _repeated(builder: Builder, value: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """Expand a constant along the batch axis where its extent is that of the file's batch and all rows are equal."""
    for axis, extent in enumerate(shape):
        if axis != dim and extent == BATCH and value.shape[axis] in (1, builder.batch):
            first = value.narrow(axis, 0, 1)
            if bool((value == first).all()):
                return first.expand([BATCH if index == axis else -1 for index in range(value.dim())])
    return value


def _read_concat(builder: Builder, call: OnnxCall) -> Value:
    values = [value for value in call.inputs if value is not None]
    return concat(builder, values, int(call.attributes["axis"]), call.name)


def _aten_cat(builder: Builder, call: AtenCall) -> Value:
    return concat(builder, call.get("tensors"), int(call.get("dim", 0)), call.name)


def _write_concat(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    return writer.emit("Concat", inputs, node.name, axis=node.kwargs["dim"])


def _where(builder: Builder, condition: Value, pair: tuple[Any, Any], name: str) -> Value:
    held = condition.bool() if isinstance(condition, Tensor) else condition
    return builder.call(torch.where, held, _tensor(pair[0]), _tensor(pair[1]), name=name)


def _read_where(builder: Builder, call: OnnxCall) -> Value:
    condition, left, right = call.inputs[:3]
    if condition is None:
        raise NetworkRefused("invalid-graph", f"Where {call.name!r} lacks its condition")
    return _where(builder, condition, (left, right), call.name)


def _masked_fill(builder: Builder, call: AtenCall) -> Value:
    return _where(builder, call.get("mask"), (call.get("value"), call.get("self")), call.name)


for _name, _target, _type in (
    ("add", torch.add, "Add"),
    ("sub", torch.sub, "Sub"),
    ("mul", torch.mul, "Mul"),
    ("div", torch.div, "Div"),
):
    _aten: dict[str, ReadAten] = {
        f"aten.{_name}{mark}.{kind}": _read_aten(_target)
        for mark in ("", "_")
        for kind in ("Tensor", "Scalar", "Tensor_mode")
    }
    if _name == "sub":
        _aten |= {f"aten.rsub.{kind}": _read_aten(torch.sub, turned=True) for kind in ("Tensor", "Scalar")}
    _onnx: dict[str, ReadOnnx] = {_type: _read_onnx(_target)}
    if _name == "add":
        _onnx["Sum"] = _read_onnx(_target)
    register(Op(_name, _target, flows.join, Grid.new, _write(_type), _onnx, _aten))
_pair: Callable[..., Any]
for _name, _pair, _type in (
    ("minimum", torch.minimum, "Min"),
    ("maximum", torch.maximum, "Max"),
    ("eq", torch.eq, "Equal"),
    ("gt", torch.gt, "Greater"),
    ("lt", torch.lt, "Less"),
    ("ge", torch.ge, "GreaterOrEqual"),
    ("le", torch.le, "LessOrEqual"),
    ("logical_and", torch.logical_and, "And"),
    ("logical_or", torch.logical_or, "Or"),
):
    _kinds = ("Tensor", "Scalar") if len(_name) == 2 else ("default",)
    _aten = {f"aten.{_name}.{kind}": _read_aten(_pair) for kind in _kinds}
    _grid = Grid.new if _name in ("minimum", "maximum") else Grid.none
    register(Op(_name, _pair, flows.join, _grid, _write(_type), {_type: _read_onnx(_pair)}, _aten))
register(
    Op(
        "where",
        torch.where,
        flows.join,
        Grid.new,
        _write("Where"),
        {"Where": _read_where},
        {
            "aten.where.self": lambda b, call: _where(
                b, call.get("condition"), (call.get("self"), call.get("other")), call.name
            ),
            **{f"aten.masked_fill{mark}.{kind}": _masked_fill for mark in ("", "_") for kind in ("Scalar", "Tensor")},
        },
    )
)
register(
    Op(
        "concat",
        torch.cat,
        flows.concat,
        Grid.new,
        _write_concat,
        {"Concat": _read_concat},
        {"aten.cat.default": _aten_cat, "aten.concat.default": _aten_cat},
    )
)
