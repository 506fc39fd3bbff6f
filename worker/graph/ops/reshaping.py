"""Reshape and its special cases: flatten, squeeze, unsqueeze, unflatten."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.extents import BATCH, holds_batch, total
from worker.graph.leaves import Reshape
from worker.graph.ops.table import (
    AtenCall,
    Cut,
    Grid,
    Leaf,
    OnnxCall,
    Op,
    Writer,
    module_of,
    refuse,
    register,
)


def reshape(builder: Builder, value: Value, sizes: Sequence[int], name: str) -> Value:
    """Add a reshape to `sizes`, in which 0 copies an extent, -1 stands for the rest and `BATCH` for the batch.

    A file made for a fixed batch names it as a plain number: which entry that is, follows from the order of elements.
    """
    shape = tuple(value.shape) if isinstance(value, Tensor) else builder.shape(value)
    sizes = [shape[index] if size == 0 and index < len(shape) else int(size) for index, size in enumerate(sizes)]
    if isinstance(value, Tensor):
        return value.reshape(_filled(sizes, shape, name))
    before = _before(builder, value)
    if not any(holds_batch(size) for size in sizes if size > 0) and not (-1 in sizes and builder.batch is None):
        sizes = _located(builder, sizes, shape, before, name)
    filled = _filled(sizes, shape, name)
    lead = _lead(filled, shape, before, name)
    if tuple(filled) == shape:
        return value
    if len(filled) == 2 and filled[0] == BATCH == shape[0]:
        found = builder.call(torch.flatten, value, name=name, start_dim=1)
    else:
        found = builder.module(name, Reshape([-1 if holds_batch(size) else size for size in filled]), value)
    builder.set_lead(found, lead)
    return found


def _before(builder: Builder, value: Value) -> int:
    """Return how many elements lie in front of the batch: a reshape, which keeps their order, keeps that number."""
    shape = builder.shape(value)
    axis = next((index for index, extent in enumerate(shape) if holds_batch(extent)), 0)
    return total(shape[:axis]) * builder.lead(value)


def _lead(filled: Sequence[int], shape: Sequence[int], before: int, name: str) -> int:
    """Return the part of the new batch extent in front of the batch. Raises where the batch would be torn apart."""
    place = next((index for index, size in enumerate(filled) if holds_batch(size)), None)
    if place is None:
        return 1
    lead, rest = divmod(before, total(filled[:place]))
    if rest or lead == 0 or filled[place] // BATCH % lead:
        raise refuse(name, f"a reshape of {_shown(shape)} to {_shown(filled)} that tears the batch apart")
    return lead


def _filled(sizes: list[int], shape: tuple[int, ...], name: str) -> list[int]:
    """Replace -1; refuse sizes whose product is another, or in which the batch is not in one place."""
    known, wanted = total([size for size in sizes if size != -1]), total(shape)
    if -1 in sizes and known > 0:
        sizes = [wanted // known if size == -1 else size for size in sizes]
    if total(sizes) != wanted or sum(holds_batch(size) for size in sizes) != any(holds_batch(s) for s in shape):
        raise refuse(name, f"a reshape of {_shown(shape)} to {_shown(sizes)}")
    return sizes


def _shown(sizes: Sequence[int]) -> list[Any]:
    return [f"batch*{size // BATCH}" if holds_batch(size) else size for size in sizes]


def _located(builder: Builder, sizes: list[int], shape: tuple[int, ...], before: int, name: str) -> list[int]:
    """Find the entry that holds the file's fixed batch: in row-major order the batch begins behind `before` elements.

    Of several candidates (a batch of 1 fits anywhere between two others) an entry that is just the batch wins, at its
    old place if possible; then one in front of the last, which holds features.
    """
    batch = builder.batch or 1
    axis = next((index for index, extent in enumerate(shape) if holds_batch(extent)), 0)
    literal = [extent // BATCH * batch if holds_batch(extent) else extent for extent in shape]
    known = total([size for size in sizes if size != -1])
    plain = [total(literal) // max(1, known) if size == -1 else size for size in sizes]
    outer = [1, *itertools.accumulate(plain, lambda a, b: a * b)]
    places = [i for i, size in enumerate(plain) if size and _covers(outer[i], size, before, batch)]
    if not places:
        raise refuse(name, f"a reshape of {_shown(shape)} to {sizes} that mixes the batch with other dimensions")
    place = min(places, key=lambda i: (plain[i] != batch, i == len(plain) - 1, i != axis, i))
    return [size // batch * BATCH if index == place else size for index, size in enumerate(plain)]


def _covers(outer: int, size: int, before: int, batch: int) -> bool:
    """Tell whether an entry of `size` behind `outer` elements holds the batch that begins behind `before` elements."""
    return outer > 0 and before % outer == 0 and (outer * size) % (before * batch) == 0


def flatten(builder: Builder, value: Value, span: tuple[int, int], name: str) -> Value:
    """Merge the dimensions from the first to the last of `span`."""
    shape = builder.shape(value)
    start, stop = (axis % max(1, len(shape)) for axis in span)
    sizes = [*shape[:start], total(shape[start : stop + 1]), *shape[stop + 1 :]]
    return reshape(builder, value, sizes, name)


def unsqueeze(builder: Builder, value: Value, axes: Sequence[int], name: str) -> Value:
    """Insert dimensions of extent 1 (axes of the result)."""
    shape = list(builder.shape(value))
    rank = len(shape) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        shape.insert(axis, 1)
    return reshape(builder, value, shape, name)


def squeeze(builder: Builder, value: Value, axes: Sequence[int] | None, name: str) -> Value:
    """Drop dimensions of extent 1 (all of them where no axes are given)."""
    shape = builder.shape(value)
    gone = {axis % len(shape) for axis in axes} if axes is not None else set(range(len(shape)))
    return reshape(builder, value, [s for i, s in enumerate(shape) if i not in gone or s != 1], name)


def _read_flatten(builder: Builder, call: OnnxCall) -> Value:
    value, shape = call.value(0), builder.shape(call.value(0))
    axis = int(call.attributes.get("axis", 1)) % (len(shape) + 1)
    return reshape(builder, value, [total(shape[:axis]), total(shape[axis:])], call.name)


def _read_reshape(builder: Builder, call: OnnxCall) -> Value:
    sizes = call.ints(1, "shape")
    if sizes is None or (call.attributes.get("allowzero", 0) and 0 in sizes):
        raise refuse(call.name, "Reshape to nothing, or to sizes that are not constant")
    return reshape(builder, call.value(0), sizes, call.name)


def _aten_view(builder: Builder, call: AtenCall) -> Value:
    sizes = call.get("size", call.get("shape"))
    return reshape(builder, call.node(), [int(size) for size in sizes], call.name)


def _aten_flatten(builder: Builder, call: AtenCall) -> Value:
    span = (int(call.get("start_dim", 0)), int(call.get("end_dim", -1)))
    return flatten(builder, call.node(), span, call.name)


def _aten_unflatten(builder: Builder, call: AtenCall) -> Value:
    shape, dim = builder.shape(call.node()), int(call.get("dim")) % builder.rank(call.node())
    sizes = [int(size) for size in call.get("sizes")]
    known = total([size for size in sizes if size != -1])
    sizes = [shape[dim] // known if size == -1 else size for size in sizes]
    return reshape(builder, call.node(), [*shape[:dim], *sizes, *shape[dim + 1 :]], call.name)


def _aten_squeeze(builder: Builder, call: AtenCall) -> Value:
    dims = call.get("dim")
    axes = None if dims is None else [int(axis) for axis in (dims if isinstance(dims, list | tuple) else [dims])]
    return squeeze(builder, call.node(), axes, call.name)


def _write_flatten(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    return writer.emit("Flatten", inputs, node.name, axis=1)


def _write_reshape(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    return writer.emit("Reshape", [inputs[0], writer.integers(leaf.sizes, f"{node.name}_shape")], node.name)


def _cut_reshape(leaf: Any, cut: Cut) -> None:
    axis = cut.axis()
    sizes = list(leaf.sizes)
    if sizes[axis] != -1:
        sizes[axis] = len(cut.kept("value"))
    leaf.sizes = tuple(sizes)


register(
    Op(
        "flatten",
        torch.flatten,
        flows.move,
        Grid.keep,
        _write_flatten,
        {"Flatten": _read_flatten},
        {"aten.flatten.using_ints": _aten_flatten},
    )
)
register(
    Op(
        "reshape",
        Reshape,
        flows.move,
        Grid.keep,
        _write_reshape,
        {
            "Reshape": _read_reshape,
            "Squeeze": lambda b, call: squeeze(b, call.value(0), call.ints(1, "axes"), call.name),
            "Unsqueeze": lambda b, call: unsqueeze(b, call.value(0), call.ints(1, "axes") or [], call.name),
        },
        {
            **{f"aten.{name}.default": _aten_view for name in ("view", "reshape", "_unsafe_view", "view_copy")},
            **{
                f"aten.{name}.default": lambda b, call: reshape(b, call.node(), b.shape(call.get("other")), call.name)
                for name in ("view_as", "reshape_as")
            },
            "aten.unflatten.int": _aten_unflatten,
            **{f"aten.squeeze.{kind}": _aten_squeeze for kind in ("default", "dim", "dims")},
            "aten.unsqueeze.default": lambda b, call: unsqueeze(b, call.node(), [int(call.get("dim"))], call.name),
        },
        leaf=Leaf(_cut_reshape, lambda options, held: Reshape(options["sizes"]), ("sizes",)),
    )
)
