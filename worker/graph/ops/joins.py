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
from worker.graph.ops.activations import convert
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


def matched(builder: Builder, items: Sequence[Any], name: str) -> list[Value]:
    """Return operands in the one dtype that torch computes with; numbers become constants."""
    dtype = torch.result_type(*(_like(builder, item) for item in items[-2:]))
    wanted = torch.float32 if dtype.is_floating_point else dtype
    return [_as(builder, item, wanted, f"{name}_{index}") for index, item in enumerate(items)]


def _like(builder: Builder, item: Any) -> Any:
    """Return what type promotion looks at: a number, or the dtype and whether there are dimensions."""
    if not isinstance(item, Tensor | fx.Node):
        return item
    return torch.empty([1] * builder.rank(item), dtype=builder.dtype(item), device="meta")


def _as(builder: Builder, item: Any, dtype: torch.dtype, name: str) -> Value:
    if isinstance(item, fx.Node):
        return convert(builder, item, dtype, name)
    return item.to(dtype) if isinstance(item, Tensor) else torch.tensor(item, dtype=dtype)


def _scaled(builder: Builder, value: Value, factor: float, name: str) -> Value:
    if factor == 1:
        return value
    return (
        value * factor if isinstance(value, Tensor) else builder.call(torch.mul, value, torch.tensor(factor), name=name)
    )


def _read_aten(target: Callable[..., Tensor], turned: bool = False) -> ReadAten:
    """Return the reader of `self (op) alpha * other`; `turned` is `other (op) alpha * self`."""

    def read(builder: Builder, call: AtenCall) -> Value:
        pair = [call.get("self"), call.get("other")]
        left, right = matched(builder, pair[::-1] if turned else pair, call.name)
        right = _scaled(builder, right, float(call.get("alpha", 1)), f"{call.name}_scaled")
        return builder.call(target, left, right, name=call.name)

    return read


def _aten_div(builder: Builder, call: AtenCall) -> Value:
    pair = [call.get("self"), call.get("other")]
    left, right = (_as(builder, item, torch.float32, f"{call.name}_float") for item in pair)
    mode = call.get("rounding_mode")
    if mode is None:
        return builder.call(torch.div, left, right, name=call.name)
    quotient = builder.call(torch.div, left, right, name=f"{call.name}_quotient")
    return builder.call({"floor": torch.floor, "trunc": torch.trunc}[mode], quotient, name=call.name)


def _aten_logical(target: Callable[..., Tensor], bitwise: bool = False) -> ReadAten:
    def read(builder: Builder, call: AtenCall) -> Value:
        pair = [call.get("self"), call.get("other")]
        if bitwise and any(builder.dtype(item) != torch.bool for item in pair):
            raise refuse(call.name, f"{call.target} of integers")
        left, right = (_as(builder, item, torch.bool, f"{call.name}_truth") for item in pair)
        return builder.call(target, left, right, name=call.name)

    return read


def _read_mean(builder: Builder, call: OnnxCall) -> Value:
    total = _read_onnx(torch.add)(builder, call)
    return builder.call(torch.mul, total, torch.tensor(1.0 / len(call.inputs)), name=f"{call.name}_mean")


def _write_ne(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    return writer.emit("Not", [writer.emit("Equal", inputs, f"{node.name}_equal")], node.name)


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
    held = _as(builder, condition, torch.bool, f"{name}_truth")
    return builder.call(torch.where, held, *matched(builder, pair, name), name=name)


def _read_where(builder: Builder, call: OnnxCall) -> Value:
    condition, left, right = call.inputs[:3]
    if condition is None:
        raise NetworkRefused("invalid-graph", f"Where {call.name!r} lacks its condition")
    return _where(builder, condition, (left, right), call.name)


def _masked_fill(builder: Builder, call: AtenCall) -> Value:
    return _where(builder, call.get("mask"), (call.get("value"), call.get("self")), call.name)


def _names(name: str, kinds: Sequence[str] = ("Tensor", "Scalar")) -> list[str]:
    """Return the aten targets of an arithmetic operation, also in place."""
    return [f"aten.{name}{mark}.{kind}" for mark in ("", "_") for kind in kinds]


_ARITHMETIC: dict[str, tuple[Callable[..., Tensor], str]] = {
    "add": (torch.add, "Add"),
    "sub": (torch.sub, "Sub"),
    "mul": (torch.mul, "Mul"),
    "div": (torch.div, "Div"),
}
for _name, (_target, _type) in _ARITHMETIC.items():
    _aten: dict[str, ReadAten] = {name: _read_aten(_target) for name in _names(_name)}
    _onnx: dict[str, ReadOnnx] = {_type: _read_onnx(_target)}
    if _name == "add":
        _onnx |= {"Sum": _read_onnx(_target), "Mean": _read_mean}
    if _name == "sub":
        _aten |= {f"aten.rsub.{kind}": _read_aten(_target, turned=True) for kind in ("Tensor", "Scalar")}
    if _name == "div":
        _aten = {name: _aten_div for name in _names(_name, ("Tensor", "Scalar", "Tensor_mode"))}
    register(Op(_name, _target, flows.join, Grid.new, _write(_type), _onnx, _aten))
for _name, _target, _type, _short in (
    ("minimum", torch.minimum, "Min", "min"),
    ("maximum", torch.maximum, "Max", "max"),
):
    _aten = {f"aten.{_name}.default": _read_aten(_target), f"aten.{_short}.other": _read_aten(_target)}
    register(Op(_name, _target, flows.join, Grid.new, _write(_type), {_type: _read_onnx(_target)}, _aten))
_compare: Callable[..., Tensor]
for _name, _compare, _type in (
    ("eq", torch.eq, "Equal"),
    ("gt", torch.gt, "Greater"),
    ("lt", torch.lt, "Less"),
    ("ge", torch.ge, "GreaterOrEqual"),
    ("le", torch.le, "LessOrEqual"),
):
    _aten = {f"aten.{_name}.{kind}": _read_aten(_compare) for kind in ("Tensor", "Scalar")}
    register(Op(_name, _compare, flows.join, Grid.none, _write(_type), {_type: _read_onnx(_compare)}, _aten))
register(
    Op(
        "ne",
        torch.ne,
        flows.join,
        Grid.none,
        _write_ne,
        aten={f"aten.ne.{kind}": _read_aten(torch.ne) for kind in ("Tensor", "Scalar")},
    )
)
for _name, _target, _type in (("and", torch.logical_and, "And"), ("or", torch.logical_or, "Or")):
    _aten = {
        f"aten.logical_{_name}.default": _aten_logical(_target),
        f"aten.bitwise_{_name}.Tensor": _aten_logical(_target, bitwise=True),
        f"aten.__{_name}__.Tensor": _aten_logical(_target, bitwise=True),
    }
    register(Op(f"logical_{_name}", _target, flows.join, Grid.none, _write(_type), {_type: _read_onnx(_target)}, _aten))
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
