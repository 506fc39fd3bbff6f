"""Operations that move elements or pick some of them: permute, slice, split, gather."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.extents import holds_batch
from worker.graph.leaves import Slice, Take
from worker.graph.ops.parametric import embedding
from worker.graph.ops.reshaping import reshape, squeeze
from worker.graph.ops.table import (
    AtenCall,
    Cut,
    Grid,
    Leaf,
    OnnxCall,
    Op,
    Values,
    Writer,
    module_of,
    refuse,
    register,
)

END = 2**31


def permute(builder: Builder, value: Value, order: Sequence[int], name: str) -> Value:
    """Add a permutation (nothing where it leaves all in place); a constant is permuted at once."""
    rank = builder.rank(value)
    dims = tuple(int(axis) % rank for axis in order)
    if isinstance(value, Tensor):
        return value.permute(dims)
    if dims == tuple(range(rank)):
        return value
    return builder.call(torch.permute, value, name=name, dims=dims)


def swap(builder: Builder, value: Value, axes: tuple[int, int], name: str) -> Value:
    """Add a transposition of two dimensions."""
    order = list(range(builder.rank(value)))
    first, second = (axis % len(order) for axis in axes)
    order[first], order[second] = order[second], order[first]
    return permute(builder, value, order, name)


def cut_out(builder: Builder, value: fx.Node, where: tuple[int, int, int, int], name: str) -> Value:
    """Add a slice; `where` is (dimension, start, stop, step) as Python writes it."""
    shape = builder.shape(value)
    dim, start, stop, step = where
    dim %= len(shape)
    extent = shape[dim]
    begin, end, stride = slice(start, stop, step).indices(extent)
    if (begin, end, stride) == (0, extent, 1):
        return value
    if holds_batch(extent):
        raise refuse(name, "a slice of the batch")
    if not range(begin, end, stride):
        raise refuse(name, "a slice of nothing")
    if stride < 0 or (stride != 1 and dim == 1):  # channels in steps stay removable as a selection
        return builder.module(name, Take(dim, torch.arange(begin, end, stride)), value)
    return builder.module(name, Slice(dim, begin, end, stride), value)


def pick(builder: Builder, value: fx.Node, where: tuple[int, int], name: str) -> Value:
    """Add the selection of one entry (dimension, index), whose dimension goes."""
    dim, index = where[0] % builder.rank(value), where[1]
    extent = builder.shape(value)[dim]
    index = index + extent if index < 0 else index
    if not 0 <= index < extent:
        raise refuse(name, f"entry {index} of {extent}")
    found = cut_out(builder, value, (dim, index, index + 1, 1), f"{name}_slice")
    return squeeze(builder, found, [dim], name)


def split(builder: Builder, value: fx.Node, sizes: Sequence[int], dim: int, name: str) -> list[Value]:
    """Add one slice per part."""
    if sum(sizes) != builder.shape(value)[dim]:
        raise refuse(name, f"a split into {list(sizes)}")
    stops = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [
        cut_out(builder, value, (dim, stop - size, stop, 1), f"{name}_{index}")
        for index, (size, stop) in enumerate(zip(sizes, stops, strict=True))
    ]


def flip(builder: Builder, value: fx.Node, dims: Sequence[int], name: str) -> Value:
    """Add the reversal of dimensions."""
    found: Value = value
    for dim in dims:
        found = cut_out(builder, found, (dim, END, -END, -1), f"{name}_{dim}")  # type: ignore[arg-type]
    return found


def move(builder: Builder, value: fx.Node, pairs: Sequence[tuple[int, int]], name: str) -> Value:
    """Add the permutation that puts dimensions at new places, (from, to); the others keep their order."""
    rank = builder.rank(value)
    places = {target % rank: source % rank for source, target in pairs}
    rest = iter(axis for axis in range(rank) if axis not in places.values())
    return permute(builder, value, [places[axis] if axis in places else next(rest) for axis in range(rank)], name)


def _parts(extent: int, size: int) -> list[int]:
    """Return the sizes of pieces of at most `size`."""
    return [min(size, extent - start) for start in range(0, extent, size)]


def _read_transpose(builder: Builder, call: OnnxCall) -> Value:
    rank = builder.rank(call.value(0))
    return permute(builder, call.value(0), call.attributes.get("perm", tuple(reversed(range(rank)))), call.name)


def first_of(start: int, step: int, extent: int) -> int:
    """Return where an ONNX slice starts; unlike Python's, one that goes backwards from beyond an end starts at it."""
    return start if step > 0 else min(max(start + extent if start < 0 else start, 0), extent - 1)


def _read_slice(builder: Builder, call: OnnxCall) -> Value:
    starts, ends = call.ints(1, "starts"), call.ints(2, "ends")
    if starts is None or ends is None:
        raise refuse(call.name, "Slice without constant bounds")
    axes = call.ints(3, "axes") or list(range(len(starts)))
    steps = call.ints(4, "steps") or [1] * len(starts)
    value: Value = call.value(0)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        start = first_of(start, step, builder.shape(value)[axis])
        value = cut_out(builder, value, (axis, start, end, step), call.name)  # type: ignore[arg-type]
    return value


def _read_split(builder: Builder, call: OnnxCall) -> Values:
    value, dim = call.value(0), int(call.attributes.get("axis", 0)) % builder.rank(call.value(0))
    extent = builder.shape(value)[dim]
    sizes = call.ints(1, "split")
    if sizes is None:
        count = int(call.attributes.get("num_outputs", call.outputs))
        sizes = _parts(extent, -(-extent // count))
        if len(sizes) != count:
            raise refuse(call.name, f"a split of {extent} into {count} parts, some of them empty")
    return split(builder, value, sizes, dim, call.name)


def _read_gather(builder: Builder, call: OnnxCall) -> Value:
    table, axis = call.inputs[0], int(call.attributes.get("axis", 0))
    if isinstance(table, Tensor):
        if axis % table.dim() or not isinstance(call.inputs[1], fx.Node):
            raise refuse(call.name, "Gather from a constant other than a table of rows")
        return embedding(builder, table, call.inputs[1], call.module_name)
    index = call.constant(1)
    if index is None:
        raise refuse(call.name, "Gather without constant indices")
    return take(builder, call.value(0), axis, index, call.name)


def take(builder: Builder, value: fx.Node, axis: int, index: Tensor, name: str) -> Value:
    """Add the selection of constant indices along one dimension, in the shape of the indices."""
    shape = builder.shape(value)
    axis %= len(shape)
    if index.dim() == 0:
        return pick(builder, value, (axis, int(index)), name)
    extent = shape[axis]
    flat = torch.where(index < 0, index + extent, index).reshape(-1).long()
    if holds_batch(extent) or flat.numel() == 0 or int(flat.min()) < 0 or int(flat.max()) >= extent:
        raise refuse(name, f"indices that do not fit an extent of {extent}")
    found = builder.module(f"{name}_take", Take(axis, flat), value)
    return reshape(builder, found, [*shape[:axis], *index.shape, *shape[axis + 1 :]], name)


def _aten_slice(builder: Builder, call: AtenCall) -> Value:
    where = (int(call.get("dim", 0)), int(call.get("start", 0)), int(call.get("end", END)), int(call.get("step", 1)))
    return cut_out(builder, call.node(), where, call.name)


def _aten_chunk(builder: Builder, call: AtenCall) -> Values:
    value, dim = call.node(), int(call.get("dim", 0)) % builder.rank(call.node())
    extent = builder.shape(value)[dim]
    return split(builder, value, _parts(extent, -(-extent // int(call.get("chunks")))), dim, call.name)


def _aten_split(builder: Builder, call: AtenCall) -> Values:
    value, dim = call.node(), int(call.get("dim", 0)) % builder.rank(call.node())
    sizes = call.get("split_sizes", call.get("split_size"))
    listed = (
        [int(size) for size in sizes]
        if isinstance(sizes, list | tuple)
        else _parts(builder.shape(value)[dim], int(sizes))
    )
    return split(builder, value, listed, dim, call.name)


def _aten_tensor_split(builder: Builder, call: AtenCall) -> Values:
    """Read torch.tensor_split: at given places, or in parts of which the first may be longer by one."""
    value, dim = call.node(), int(call.get("dim", 0)) % builder.rank(call.node())
    extent = builder.shape(value)[dim]
    if "sections" in call.inputs:
        count = int(call.get("sections"))
        return split(builder, value, [extent // count + (i < extent % count) for i in range(count)], dim, call.name)
    stops = [0, *(int(stop) for stop in call.get("indices")), extent]
    return split(builder, value, [b - a for a, b in itertools.pairwise(stops)], dim, call.name)


def _aten_swap(builder: Builder, call: AtenCall) -> Value:
    kind = "axis" if "axis0" in call.inputs else "dim"
    return swap(builder, call.node(), (int(call.get(f"{kind}0")), int(call.get(f"{kind}1"))), call.name)


def _aten_move(builder: Builder, call: AtenCall) -> Value:
    ends = [call.get(key) for key in ("source", "destination")]
    sources, targets = ([int(i) for i in (end if isinstance(end, list | tuple) else [end])] for end in ends)
    return move(builder, call.node(), list(zip(sources, targets, strict=True)), call.name)


def _aten_unbind(builder: Builder, call: AtenCall) -> Values:
    value, dim = call.node(), int(call.get("dim", 0)) % builder.rank(call.node())
    extent = builder.shape(value)[dim]
    if holds_batch(extent):
        raise refuse(call.name, "unbinding the batch")
    return [pick(builder, value, (dim, index), f"{call.name}_{index}") for index in range(extent)]


def _aten_index(builder: Builder, call: AtenCall) -> Value:
    given = [(axis, index) for axis, index in enumerate(call.get("indices")) if index is not None]
    if len(given) != 1 or not isinstance(given[0][1], Tensor) or given[0][1].dtype == torch.bool:
        raise refuse(call.name, "indexing by other than one constant list of indices")
    return take(builder, call.node(), given[0][0], given[0][1], call.name)


def _aten_index_select(builder: Builder, call: AtenCall) -> Value:
    index = call.constant("index")
    assert index is not None
    return take(builder, call.node(), int(call.get("dim")), index, call.name)


def _aten_repeat_each(builder: Builder, call: AtenCall) -> Value:
    """Read torch.repeat_interleave by one number along one dimension."""
    dim, value = call.get("dim"), call.node()
    if dim is None or holds_batch(builder.shape(value)[int(dim)]):
        raise refuse(call.name, "repetition over all dimensions, or of the batch")
    index = torch.arange(builder.shape(value)[int(dim)]).repeat_interleave(int(call.get("repeats")))
    return take(builder, value, int(dim), index, call.name)


def _write_permute(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    return writer.emit("Transpose", inputs, node.name, perm=list(node.kwargs["dims"]))  # type: ignore[arg-type]


def _write_slice(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    bounds = {"starts": leaf.start, "ends": leaf.stop, "axes": leaf.dim, "steps": leaf.step}
    held = [writer.integers([value], f"{node.name}_{key}") for key, value in bounds.items()]
    return writer.emit("Slice", [inputs[0], *held], node.name)


def _write_take(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    return writer.emit(
        "Gather", [inputs[0], writer.integers(leaf.index.tolist(), f"{node.name}_index")], node.name, axis=leaf.dim
    )


def _cut_slice(leaf: Any, cut: Cut) -> None:
    axis, kept = cut.source()
    if axis != leaf.dim or leaf.step != 1:  # in steps along channels: all of them stay
        return
    leaf.start, leaf.stop = int((kept < leaf.start).sum()), int((kept < leaf.stop).sum())


def _cut_take(leaf: Any, cut: Cut) -> None:
    axis, kept = cut.source()
    if axis != leaf.dim:
        return
    rank = torch.full((int(kept.max()) + 1,), -1)
    rank[kept] = torch.arange(len(kept))
    leaf.index = rank[leaf.index[cut.kept("value")]]


def _make_slice(options: Any, held: Any) -> nn.Module:
    return Slice(*(int(options[key]) for key in ("dim", "start", "stop", "step")))


register(
    Op(
        "permute",
        torch.permute,
        flows.move,
        Grid.keep,
        _write_permute,
        {"Transpose": _read_transpose},
        {
            "aten.permute.default": lambda b, call: permute(b, call.node(), call.get("dims"), call.name),
            "aten.transpose.int": lambda b, call: swap(
                b, call.node(), (int(call.get("dim0")), int(call.get("dim1"))), call.name
            ),
            **{f"aten.{name}.default": _aten_swap for name in ("swapaxes", "swapdims")},
            **{f"aten.{name}.{kind}": _aten_move for name in ("movedim", "moveaxis") for kind in ("int", "intlist")},
            "aten.t.default": lambda b, call: swap(b, call.node(), (0, -1), call.name),
            **{
                f"aten.{name}.default": lambda b, call: swap(b, call.node(), (-1, -2), call.name)
                for name in ("mT", "adjoint")
            },
        },
    )
)
register(
    Op(
        "slice",
        Slice,
        flows.slice_out,
        Grid.keep,
        _write_slice,
        {"Slice": _read_slice, "Split": _read_split},
        {
            "aten.slice.Tensor": _aten_slice,
            "aten.select.int": lambda b, call: pick(
                b, call.node(), (int(call.get("dim")), int(call.get("index"))), call.name
            ),
            "aten.narrow.default": lambda b, call: cut_out(
                b,
                call.node(),
                (int(call.get("dim")), int(call.get("start")), int(call.get("start")) + int(call.get("length")), 1),
                call.name,
            ),
            **{f"aten.{mark}chunk.default": _aten_chunk for mark in ("", "unsafe_")},
            **{f"aten.{mark}split.Tensor": _aten_split for mark in ("", "unsafe_")},
            **{f"aten.tensor_split.{kind}": _aten_tensor_split for kind in ("sections", "indices")},
            "aten.split.sizes": _aten_split,
            "aten.split_with_sizes.default": _aten_split,
            "aten.unbind.int": _aten_unbind,
        },
        leaf=Leaf(_cut_slice, _make_slice, ("dim", "start", "stop", "step")),
    )
)
register(
    Op(
        "take",
        Take,
        flows.move,
        Grid.keep,
        _write_take,
        {"Gather": _read_gather},
        {
            "aten.index_select.default": _aten_index_select,
            "aten.index.Tensor": _aten_index,
            "aten.flip.default": lambda b, call: flip(b, call.node(), call.get("dims"), call.name),
            "aten.repeat_interleave.self_int": _aten_repeat_each,
        },
        leaf=Leaf(_cut_take, lambda options, held: Take(int(options["dim"]), held["index"]), ("dim",), ("index",)),
    )
)
