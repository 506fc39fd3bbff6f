"""Padding of positions and of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.leaves import ChannelPad
from worker.graph.ops.joins import concat
from worker.graph.ops.moves import cut_out
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

Sides = Sequence[tuple[int, int]]
_MODES = {"edge": "replicate", "wrap": "circular"}


def pad(builder: Builder, value: fx.Node, sides: Sides, fill: tuple[str, float], name: str) -> Value:
    """Add padding; `sides` are (before, behind) per dimension (negative: cropped), `fill` is (mode, value)."""
    mode = _MODES.get(fill[0], fill[0])
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise refuse(name, f"padding with mode {fill[0]!r}")
    if any(sides[0]) or (mode != "constant" and any(sides[1]) and builder.rank(value) > 2):
        raise refuse(name, "padding of the batch, or of channels with other than a number")
    value = _cropped(builder, value, sides, name)
    sides = [(max(0, before), max(0, behind)) for before, behind in sides]
    if mode == "circular":
        return _wrapped(builder, value, sides, name)
    if any(any(side) for side in sides[2:]):
        order = [size for side in reversed(sides[2:]) for size in side]
        number = fill[1] if mode == "constant" else None
        value = builder.call(F.pad, value, name=name, pad=tuple(order), mode=mode, value=number)
    return builder.module(f"{name}_channels", ChannelPad(*sides[1], fill[1]), value) if any(sides[1]) else value


def _cropped(builder: Builder, value: fx.Node, sides: Sides, name: str) -> fx.Node:
    for dim, (before, behind) in enumerate(sides):
        if min(before, behind) < 0:
            where = (dim, max(0, -before), builder.shape(value)[dim] - max(0, -behind), 1)
            value = cut_out(builder, value, where, f"{name}_cropped")  # type: ignore[assignment]
    return value


def _wrapped(builder: Builder, value: fx.Node, sides: Sides, name: str) -> Value:
    """Add periodic padding: the end in front of the whole, its beginning behind it."""
    found: Any = value
    for dim, (before, behind) in enumerate(sides):
        extent = builder.shape(found)[dim]
        if max(before, behind) > extent:
            raise refuse(name, "periodic padding by more than one period")
        ends = [(dim, extent - before, extent, 1)] if before else [], [(dim, 0, behind, 1)] if behind else []
        front, back = ([cut_out(builder, found, where, f"{name}_piece") for where in end] for end in ends)
        found = concat(builder, [*front, found, *back], dim, f"{name}_{dim}") if front or back else found
    return found  # type: ignore[no-any-return]


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


def _cut_channel_pad(leaf: Any, cut: Cut) -> None:
    """Padded channels stay, whatever is removed between them."""


def _make_pad(options: Any, held: Any) -> nn.Module:
    return ChannelPad(int(options["before"]), int(options["behind"]), float(options["value"]))


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
