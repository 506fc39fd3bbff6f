"""Operations that move values without changing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from worker.graph.build import Builder, Value
from worker.graph.errors import NetworkRefused
from worker.graph.ops.table import Flow, Grid, OnnxCall, Op, Writer, register

BATCH = 1_000_003
"""Stands for the batch size in shape arithmetic: no real extent is this prime."""


def flatten(builder: Builder, value: Value, name: str) -> Value:
    """Add a flatten of everything but the batch (nothing where the value is flat already)."""
    if isinstance(value, fx.Node) and len(builder.shape(value)) == 2:
        return value
    return builder.call(torch.flatten, value, name=name, start_dim=1)


def reshape(builder: Builder, value: fx.Node, sizes: Sequence[int], name: str) -> Value:
    """Add a reshape to `sizes` (first entry: the batch), as a flatten or as nothing where that is what it is."""
    shape = builder.shape(value)
    tail = list(sizes[1:])
    if sizes[0] not in (BATCH, builder.batch, -1, 0, 1) or any(size % BATCH == 0 and size for size in tail):
        raise NetworkRefused("unsupported-operator", f"{name!r}: a reshape that mixes the batch with other dimensions")
    total = 1
    for extent in shape[1:]:
        total *= extent
    tail = _resolve(tail, shape, total, name)
    if tail == list(shape[1:]):
        return value
    if tail == [total]:
        return flatten(builder, value, name)
    return builder.call(torch.reshape, value, name=name, shape=(-1, *tail))


def _resolve(tail: list[int], shape: tuple[int, ...], total: int, name: str) -> list[int]:
    """Fill in 0 (copy the extent) and -1 (the rest), leaving the batch out."""
    filled = [shape[index] if size == 0 else size for index, size in enumerate(tail, start=1)]
    known = 1
    for size in filled:
        known *= size if size != -1 else 1
    filled = [total // known if size == -1 else size for size in filled]
    product = 1
    for size in filled:
        product *= size
    if product != total:
        raise NetworkRefused("unsupported-operator", f"{name!r}: a reshape that mixes the batch with other dimensions")
    return filled


def _read_flatten(builder: Builder, call: OnnxCall) -> Value:
    if int(call.attributes.get("axis", 1)) != 1:
        raise NetworkRefused("unsupported-operator", f"Flatten {call.name!r} on another axis than 1")
    return flatten(builder, call.value(0), call.name)


def _read_reshape(builder: Builder, call: OnnxCall) -> Value:
    sizes = call.ints(1, "shape")
    if not sizes:
        raise NetworkRefused("unsupported-operator", f"Reshape {call.name!r} to a scalar")
    return reshape(builder, call.value(0), sizes, call.name)


def _read_squeeze(builder: Builder, call: OnnxCall) -> Value:
    value = call.value(0)
    shape, axes = builder.shape(value), call.ints(1, "axes")
    gone = {axis % len(shape) for axis in (axes or [i for i, s in enumerate(shape) if s == 1])}
    return reshape(builder, value, [BATCH, *(s for i, s in enumerate(shape) if i and i not in gone)], call.name)


def _read_unsqueeze(builder: Builder, call: OnnxCall) -> Value:
    value = call.value(0)
    shape = list(builder.shape(value))
    axes = call.ints(1, "axes") or []
    for axis in sorted(axis % (len(shape) + len(axes)) for axis in axes):
        shape.insert(axis, 1)
    return reshape(builder, value, [BATCH, *shape[1:]], call.name)


def _read_transpose(builder: Builder, call: OnnxCall) -> Value:
    value = call.value(0)
    rank = len(builder.shape(value))
    order = [int(p) for p in call.attributes.get("perm", reversed(range(rank)))]
    return permute(builder, value, order, call.name)


def permute(builder: Builder, value: Value, order: Sequence[int], name: str) -> Value:
    """Add a permutation that leaves the batch in front."""
    if order[0] != 0:
        raise NetworkRefused("unsupported-operator", f"{name!r}: a permutation that moves the batch")
    return builder.call(torch.permute, value, name=name, dims=tuple(order))


def _read_pad(builder: Builder, call: OnnxCall) -> Value:
    value, pads = call.value(0), call.ints(1, "pads")
    fill = call.constant(2)
    number = float(fill.item()) if fill is not None and fill.numel() else float(call.attributes.get("value", 0.0))
    mode = call.attributes.get("mode", "constant")
    if pads is None or mode != "constant":
        raise NetworkRefused("unsupported-operator", f"Pad {call.name!r} with mode {mode!r}")
    half = len(pads) // 2
    if any(pads[axis] or pads[axis + half] for axis in (0, 1)):
        raise NetworkRefused("unsupported-operator", f"Pad {call.name!r} of batch or channels")
    if not any(pads):
        return value
    sides = [size for axis in range(half - 1, 1, -1) for size in (pads[axis], pads[axis + half])]
    return builder.call(F.pad, value, name=call.name, pad=tuple(sides), mode="constant", value=number)


def _aten_flatten(builder: Builder, name: str, args: list[Any]) -> Value:
    start = int(args[1]) if len(args) > 1 else 0
    stop = int(args[2]) if len(args) > 2 else -1
    rank = len(builder.shape(args[0]))
    if start != 1 or stop % rank != rank - 1:
        raise NetworkRefused("unsupported-operator", f"{name!r}: flatten of other dimensions than all but the batch")
    return flatten(builder, args[0], name)


def _aten_view(builder: Builder, name: str, args: list[Any]) -> Value:
    return reshape(builder, args[0], [int(size) for size in args[1]], name)


def _aten_permute(builder: Builder, name: str, args: list[Any]) -> Value:
    rank = len(builder.shape(args[0]))
    return permute(builder, args[0], [int(axis) % rank for axis in args[1]], name)


def _aten_pad(builder: Builder, name: str, args: list[Any]) -> Value:
    mode = args[2] if len(args) > 2 and isinstance(args[2], str) else "constant"
    value = next((float(a) for a in args[2:] if isinstance(a, int | float)), 0.0)
    if mode != "constant" or len(args[1]) > 2 * (len(builder.shape(args[0])) - 2):
        raise NetworkRefused("unsupported-operator", f"{name!r}: only constant spatial padding")
    return builder.call(F.pad, args[0], name=name, pad=tuple(int(p) for p in args[1]), mode="constant", value=value)


def _write_flatten(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    return writer.emit("Flatten", inputs, node.name, axis=1)


def _write_reshape(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    sizes = list(node.kwargs["shape"])  # type: ignore[arg-type]
    return writer.emit("Reshape", [inputs[0], writer.integers(sizes, f"{node.name}_shape")], node.name)


def _write_permute(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    return writer.emit("Transpose", inputs, node.name, perm=list(node.kwargs["dims"]))  # type: ignore[arg-type]


def _write_pad(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    sides: Any = node.kwargs["pad"]
    rank = writer.rank(node)
    begin, end = [0] * rank, [0] * rank
    for position in range(len(sides) // 2):
        begin[rank - 1 - position], end[rank - 1 - position] = sides[2 * position], sides[2 * position + 1]
    pads = writer.integers(begin + end, f"{node.name}_pads")
    fill = writer.scalar(float(node.kwargs["value"]), f"{node.name}_fill")  # type: ignore[arg-type]
    return writer.emit("Pad", [inputs[0], pads, fill], node.name, mode="constant")


register(
    Op(
        "flatten",
        torch.flatten,
        Flow.flatten,
        Grid.keep,
        _write_flatten,
        {"Flatten": _read_flatten},
        {"aten.flatten.using_ints": _aten_flatten},
    )
)
register(
    Op(
        "reshape",
        torch.reshape,
        Flow.freeze,
        Grid.keep,
        _write_reshape,
        {"Reshape": _read_reshape, "Squeeze": _read_squeeze, "Unsqueeze": _read_unsqueeze},
        {f"aten.{name}.default": _aten_view for name in ("view", "reshape", "_unsafe_view")},
    )
)
register(
    Op(
        "permute",
        torch.permute,
        Flow.freeze,
        Grid.keep,
        _write_permute,
        {"Transpose": _read_transpose},
        {"aten.permute.default": _aten_permute},
    )
)
register(
    Op(
        "pad",
        F.pad,
        Flow.same,
        Grid.keep,
        _write_pad,
        {"Pad": _read_pad},
        {"aten.pad.default": _aten_pad, "aten.constant_pad_nd.default": _aten_pad},
    )
)
