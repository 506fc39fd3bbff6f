"""Operations that repeat elements: expand, tile, repeat, stack, and constants repeated over the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.extents import BATCH, holds_batch
from worker.graph.functions import expand_batch
from worker.graph.leaves import Expand
from worker.graph.ops.joins import concat
from worker.graph.ops.moves import cut_out
from worker.graph.ops.reshaping import unsqueeze
from worker.graph.ops.table import (
    AtenCall,
    Cut,
    Grid,
    Leaf,
    Op,
    ReadAten,
    Writer,
    module_of,
    refuse,
    register,
)


def expand(builder: Builder, value: Value, sizes: Sequence[int], name: str) -> Value:
    """Add a broadcast of extents of 1 to sizes; -1 and 1 leave an extent as it is."""
    sizes = [int(size) for size in sizes]
    rank = max(len(sizes), builder.rank(value))
    sizes = [1] * (rank - len(sizes)) + sizes
    if isinstance(value, Tensor):
        return value.expand(
            [-1 if size == 1 and index >= rank - value.dim() else size for index, size in enumerate(sizes)]
        )
    missing = rank - builder.rank(value)
    value = unsqueeze(builder, value, list(range(missing)), f"{name}_rank") if missing else value
    wanted = [_wanted(builder, size, extent, name) for size, extent in zip(sizes, builder.shape(value), strict=True)]
    if set(wanted) == {-1} or not isinstance(value, fx.Node):
        return value
    return builder.module(name, Expand(wanted), value)


def _wanted(builder: Builder, size: int, extent: int, name: str) -> int:
    if size in (-1, 1, extent) or (holds_batch(extent) and size == extent // BATCH * (builder.batch or 0)):
        return -1
    if extent != 1 or holds_batch(size):
        raise refuse(name, f"an expansion of extent {extent} to {size}")
    return size


def tile(builder: Builder, value: fx.Node, repeats: Sequence[int], name: str) -> Value:
    """Add a repetition along dimensions, as a concatenation of the value with itself."""
    repeats = [1] * (builder.rank(value) - len(repeats)) + list(repeats)
    missing = len(repeats) - builder.rank(value)
    found: Value = unsqueeze(builder, value, list(range(missing)), f"{name}_rank") if missing > 0 else value
    for axis, count in enumerate(repeats):
        if count != 1:
            if holds_batch(builder.shape(found)[axis]) or not 1 <= count <= 1024:
                raise refuse(name, f"{count} repetitions of dimension {axis}")
            found = concat(builder, [found] * int(count), axis, f"{name}_{axis}")
    return found


def roll(builder: Builder, value: fx.Node, shifts: Any, dims: Any, name: str) -> Value:
    """Add a rotation along dimensions: the last `shift` entries come first."""
    steps, axes = (list(item) if isinstance(item, list | tuple) else [item] for item in (shifts, dims))
    if len(steps) != len(axes) or None in axes:
        raise refuse(name, "a rotation of all elements")
    found: Any = value
    for step, axis in zip(steps, axes, strict=True):
        extent = builder.shape(found)[int(axis)]
        if holds_batch(extent):
            raise refuse(name, "a rotation of the batch")
        cut = -int(step) % extent
        parts = [(int(axis), cut, extent, 1), (int(axis), 0, cut, 1)] if cut else []
        if parts:
            pieces = [cut_out(builder, found, where, f"{name}_{i}") for i, where in enumerate(parts)]
            found = concat(builder, pieces, int(axis), f"{name}_{axis}")
    return found  # type: ignore[no-any-return]


def _aten_stack(builder: Builder, call: AtenCall) -> Value:
    values, dim = call.get("tensors"), int(call.get("dim", 0))
    rank = max(builder.rank(value) for value in values) + 1
    parts = [unsqueeze(builder, value, [dim % rank], f"{call.name}_{i}") for i, value in enumerate(values)]
    return concat(builder, parts, dim % rank, call.name)


def _aten_filled(value: float | None) -> ReadAten:
    """Return the reader of a constant in the size of a value (a view, never written out over the batch)."""

    def read(builder: Builder, call: AtenCall) -> Value:
        like = call.node()
        number = call.get("fill_value") if value is None else value
        sizes = [int(size) for size in call.get("size", builder.shape(like))]
        dtype = call.get("dtype", builder.dtype(like))
        return torch.full([1] * len(sizes), number, dtype=dtype).expand(sizes)

    return read


def _write_expand(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    sizes = [1 if size == -1 else size for size in leaf.sizes]
    return writer.emit("Expand", [inputs[0], writer.integers(sizes, f"{node.name}_sizes")], node.name)


def _write_expand_batch(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    """Write `constant.expand(batch of the second operand)`: its shape's first entry among ones."""
    dim, rank = int(node.kwargs["dim"]), writer.rank(node)  # type: ignore[arg-type]
    batch = writer.emit("Shape", [inputs[1]], f"{node.name}_batch", start=0, end=1)
    ones = [writer.integers([1] * count, f"{node.name}_ones") for count in (dim, rank - dim - 1) if count]
    parts = [*ones[: 1 if dim else 0], batch, *ones[1 if dim else 0 :]]
    sizes = writer.emit("Concat", parts, f"{node.name}_sizes", axis=0) if len(parts) > 1 else batch
    return writer.emit("Expand", [inputs[0], sizes], node.name)


def _cut_nothing(leaf: Any, cut: Cut) -> None:
    """Expanded dimensions are never channels: -1 follows what is left of the others."""


register(
    Op(
        "expand",
        Expand,
        flows.move,
        Grid.keep,
        _write_expand,
        {
            "Expand": lambda b, call: expand(b, call.value(0), call.ints(1, "shape") or [], call.name),
            "Tile": lambda b, call: tile(b, call.value(0), call.ints(1, "repeats") or [], call.name),
        },
        {
            "aten.expand.default": lambda b, call: expand(b, call.get("self"), call.get("size"), call.name),
            "aten.expand_as.default": lambda b, call: expand(
                b, call.get("self"), b.shape(call.get("other")), call.name
            ),
            "aten.repeat.default": lambda b, call: tile(b, call.node(), call.get("repeats"), call.name),
            "aten.tile.default": lambda b, call: tile(b, call.node(), call.get("dims"), call.name),
            "aten.roll.default": lambda b, call: roll(b, call.node(), call.get("shifts"), call.get("dims"), call.name),
            "aten.stack.default": _aten_stack,
            **{
                target.format(kind): _aten_filled(number)
                for target in ("aten.{}_like.default", "aten.new_{}.default")
                for kind, number in (("zeros", 0), ("ones", 1), ("full", None))
            },
        },
        leaf=Leaf(_cut_nothing, lambda options, held: Expand(options["sizes"]), ("sizes",)),
    )
)
register(Op("expand_batch", expand_batch, flows.keep, Grid.new, _write_expand_batch))
