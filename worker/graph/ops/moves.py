"""Operations that move elements: permute, slice, split, gather, expand, tile, pad, pixel shuffle, channel shuffle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.extents import BATCH, holds_batch
from worker.graph.functions import expand_batch
from worker.graph.leaves import ChannelPad, Expand, Slice, Take
from worker.graph.ops.joins import concat
from worker.graph.ops.parametric import embedding
from worker.graph.ops.reshaping import reshape, squeeze, unsqueeze
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
    """Add a permutation (nothing where it leaves all in place)."""
    rank = builder.rank(value)
    dims = tuple(int(axis) % rank for axis in order)
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
    if stride < 0:
        return builder.module(name, Take(dim, torch.arange(begin, end, stride)), value)
    if end <= begin:
        raise refuse(name, "a slice of nothing")
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


def _parts(extent: int, size: int) -> list[int]:
    """Return the sizes of pieces of at most `size`."""
    return [min(size, extent - start) for start in range(0, extent, size)]


def _read_transpose(builder: Builder, call: OnnxCall) -> Value:
    rank = builder.rank(call.value(0))
    return permute(builder, call.value(0), call.attributes.get("perm", tuple(reversed(range(rank)))), call.name)


def _read_slice(builder: Builder, call: OnnxCall) -> Value:
    starts, ends = call.ints(1, "starts"), call.ints(2, "ends")
    if starts is None or ends is None:
        raise refuse(call.name, "Slice without constant bounds")
    axes = call.ints(3, "axes") or list(range(len(starts)))
    steps = call.ints(4, "steps") or [1] * len(starts)
    value: Value = call.value(0)
    for where in zip(axes, starts, ends, steps, strict=True):
        value = cut_out(builder, value, where, call.name)  # type: ignore[arg-type]
    return value


def _read_split(builder: Builder, call: OnnxCall) -> Values:
    value, dim = call.value(0), int(call.attributes.get("axis", 0)) % builder.rank(call.value(0))
    extent = builder.shape(value)[dim]
    sizes = call.ints(1, "split")
    if sizes is None:
        count = int(call.attributes.get("num_outputs", call.outputs))
        sizes = _parts(extent, -(-extent // count))
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
    missing = len(repeats) - builder.rank(value)
    found: Value = unsqueeze(builder, value, list(range(missing)), f"{name}_rank") if missing > 0 else value
    for axis, count in enumerate(repeats):
        if count != 1:
            if holds_batch(builder.shape(found)[axis]) or not 1 <= count <= 1024:
                raise refuse(name, f"{count} repetitions of dimension {axis}")
            found = concat(builder, [found] * int(count), axis, f"{name}_{axis}")
    return found


def pad(
    builder: Builder, value: fx.Node, sides: Sequence[tuple[int, int]], fill: tuple[str, float], name: str
) -> Value:
    """Add padding; `sides` are (before, behind) per dimension, `fill` is (mode, value)."""
    if not any(any(side) for side in sides):
        return value
    if min(min(side) for side in sides) < 0:
        raise refuse(name, "padding that crops")
    mode = {"edge": "replicate"}.get(fill[0], fill[0])
    if any(sides[0]) or (any(sides[1]) and (mode != "constant" or any(any(side) for side in sides[2:]))):
        raise refuse(name, "padding of the batch, or of channels together with positions")
    if any(sides[1]):
        return builder.module(name, ChannelPad(*sides[1], fill[1]), value)
    if mode not in ("constant", "reflect", "replicate"):
        raise refuse(name, f"padding with mode {fill[0]!r}")
    order = [size for side in reversed(sides[2:]) for size in side]
    extra = {"value": fill[1]} if mode == "constant" else {"value": None}
    return builder.call(F.pad, value, name=name, pad=tuple(order), mode=mode, **extra)


def _read_pad(builder: Builder, call: OnnxCall) -> Value:
    value, pads = call.value(0), call.ints(1, "pads")
    fill = call.constant(2)
    number = float(fill.item()) if fill is not None and fill.numel() else float(call.attributes.get("value", 0.0))
    if pads is None:
        raise refuse(call.name, "Pad without constant sizes")
    rank = builder.rank(value)
    axes = call.ints(3, "axes") or list(range(rank))
    half = len(pads) // 2
    sides = [(0, 0)] * rank
    for index, axis in enumerate(axes[:half]):
        sides[axis % rank] = (pads[index], pads[index + half])
    return pad(builder, value, sides, (call.attributes.get("mode", "constant"), number), call.name)


def _aten_pad(builder: Builder, call: AtenCall) -> Value:
    sizes, rank = [int(p) for p in call.get("pad")], builder.rank(call.node())
    pairs = list(zip(sizes[0::2], sizes[1::2], strict=True))
    sides = [(0, 0)] * (rank - len(pairs)) + list(reversed(pairs))
    return pad(builder, call.node(), sides, (call.get("mode", "constant"), float(call.get("value", 0.0))), call.name)


def _shuffle(builder: Builder, value: fx.Node, factor: int, name: str) -> Value:
    return builder.call(F.pixel_shuffle, value, name=name, upscale_factor=int(factor))


def _read_depth_to_space(builder: Builder, call: OnnxCall) -> Value:
    factor, value = int(call.attributes["blocksize"]), call.value(0)
    if call.attributes.get("mode", "DCR") == "CRD":
        return _shuffle(builder, value, factor, call.name)
    _, channels, height, width = builder.shape(value)
    size = channels // factor**2
    apart = reshape(builder, value, [BATCH, factor, factor, size, height, width], f"{call.name}_apart")
    turned = permute(builder, apart, [0, 3, 4, 1, 5, 2], f"{call.name}_turned")
    return reshape(builder, turned, [BATCH, size, height * factor, width * factor], call.name)


def _read_space_to_depth(builder: Builder, call: OnnxCall) -> Value:
    factor, value = int(call.attributes["blocksize"]), call.value(0)
    _, channels, height, width = builder.shape(value)
    sizes = [BATCH, channels, height // factor, factor, width // factor, factor]
    apart = reshape(builder, value, sizes, f"{call.name}_apart")
    turned = permute(builder, apart, [0, 3, 5, 1, 2, 4], f"{call.name}_turned")
    return reshape(builder, turned, [BATCH, channels * factor**2, height // factor, width // factor], call.name)


def _aten_unshuffle(builder: Builder, call: AtenCall) -> Value:
    return builder.call(
        F.pixel_unshuffle, call.node(), name=call.name, downscale_factor=int(call.get("downscale_factor"))
    )


def _aten_channel_shuffle(builder: Builder, call: AtenCall) -> Value:
    shape, groups = builder.shape(call.node()), int(call.get("groups"))
    apart = reshape(builder, call.node(), [shape[0], groups, shape[1] // groups, *shape[2:]], f"{call.name}_apart")
    return reshape(builder, swap(builder, apart, (1, 2), f"{call.name}_turned"), shape, call.name)


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


def _aten_stack(builder: Builder, call: AtenCall) -> Value:
    values, dim = call.get("tensors"), int(call.get("dim", 0))
    rank = max(builder.rank(value) for value in values) + 1
    parts = [unsqueeze(builder, value, [dim % rank], f"{call.name}_{i}") for i, value in enumerate(values)]
    return concat(builder, parts, dim % rank, call.name)


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


def _write_pad(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    sides: Any = node.kwargs["pad"]
    rank = writer.rank(node)
    begin, end = [0] * rank, [0] * rank
    for position in range(len(sides) // 2):
        begin[rank - 1 - position], end[rank - 1 - position] = sides[2 * position], sides[2 * position + 1]
    pads = writer.integers(begin + end, f"{node.name}_pads")
    mode = str(node.kwargs["mode"])
    if mode != "constant":
        return writer.emit("Pad", [inputs[0], pads], node.name, mode={"replicate": "edge"}.get(mode, mode))
    fill = writer.scalar(float(node.kwargs["value"]), f"{node.name}_fill")  # type: ignore[arg-type]
    return writer.emit("Pad", [inputs[0], pads, fill], node.name, mode="constant")


def _write_channel_pad(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    rest = [0] * (writer.rank(node) - 2)
    pads = writer.integers([0, leaf.before, *rest, 0, leaf.behind, *rest], f"{node.name}_pads")
    return writer.emit(
        "Pad", [inputs[0], pads, writer.scalar(leaf.value, f"{node.name}_fill")], node.name, mode="constant"
    )


def _write_shuffle(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    return writer.emit("DepthToSpace", inputs, node.name, blocksize=node.kwargs["upscale_factor"], mode="CRD")


def _write_unshuffle(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    """Write the inverse of DepthToSpace CRD (SpaceToDepth orders channels otherwise)."""
    factor: Any = node.kwargs["downscale_factor"]
    _, channels, height, width = writer.shape(node)
    sizes = [-1, channels // factor**2, height, factor, width, factor]
    apart = writer.emit("Reshape", [inputs[0], writer.integers(sizes, f"{node.name}_a")], f"{node.name}_apart")
    turned = writer.emit("Transpose", [apart], f"{node.name}_turned", perm=[0, 1, 3, 5, 2, 4])
    whole = writer.integers([-1, channels, height, width], f"{node.name}_b")
    return writer.emit("Reshape", [turned, whole], node.name)


def _cut_slice(leaf: Any, cut: Cut) -> None:
    axis, kept = cut.source()
    if axis != leaf.dim:
        return
    if leaf.step != 1:
        raise ValueError("a slice in steps along channels is made a selection when read")
    leaf.start, leaf.stop = int((kept < leaf.start).sum()), int((kept < leaf.stop).sum())


def _cut_take(leaf: Any, cut: Cut) -> None:
    axis, kept = cut.source()
    if axis != leaf.dim:
        return
    rank = torch.full((int(kept.max()) + 1,), -1)
    rank[kept] = torch.arange(len(kept))
    leaf.index = rank[leaf.index[cut.kept("value")]]


def _cut_channel_pad(leaf: Any, cut: Cut) -> None:
    """Padded channels stay, whatever is removed between them."""


def _cut_nothing(leaf: Any, cut: Cut) -> None:
    """Expanded dimensions are never channels: -1 follows what is left of the others."""


def _make_pad(options: Any, held: Any) -> nn.Module:
    return ChannelPad(int(options["before"]), int(options["behind"]), float(options["value"]))


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
            "aten.chunk.default": _aten_chunk,
            "aten.split.Tensor": _aten_split,
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
        {"aten.index_select.default": _aten_index_select, "aten.index.Tensor": _aten_index},
        leaf=Leaf(_cut_take, lambda options, held: Take(int(options["dim"]), held["index"]), ("dim",), ("index",)),
    )
)
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
            "aten.repeat.default": lambda b, call: tile(b, call.node(), call.get("repeats"), call.name),
            "aten.stack.default": _aten_stack,
        },
        leaf=Leaf(_cut_nothing, lambda options, held: Expand(options["sizes"]), ("sizes",)),
    )
)
register(Op("expand_batch", expand_batch, flows.keep, Grid.new, _write_expand_batch))
register(
    Op(
        "pad",
        F.pad,
        flows.spatial,
        Grid.keep,
        _write_pad,
        {"Pad": _read_pad},
        {"aten.pad.default": _aten_pad, "aten.constant_pad_nd.default": _aten_pad},
    )
)
register(
    Op(
        "channel_pad",
        ChannelPad,
        flows.pad_channels,
        Grid.new,
        _write_channel_pad,
        leaf=Leaf(_cut_channel_pad, _make_pad, ("before", "behind", "value")),
    )
)
register(
    Op(
        "pixel_shuffle",
        F.pixel_shuffle,
        flows.move,
        Grid.keep,
        _write_shuffle,
        {"DepthToSpace": _read_depth_to_space, "SpaceToDepth": _read_space_to_depth},
        {
            "aten.pixel_shuffle.default": lambda b, call: _shuffle(
                b, call.node(), call.get("upscale_factor"), call.name
            ),
            "aten.channel_shuffle.default": _aten_channel_shuffle,
            "aten.native_channel_shuffle.default": _aten_channel_shuffle,
        },
    )
)
register(
    Op(
        "pixel_unshuffle",
        F.pixel_unshuffle,
        flows.move,
        Grid.keep,
        _write_unshuffle,
        aten={"aten.pixel_unshuffle.default": _aten_unshuffle},
    )
)
