"""Operations that re-order blocks of elements: pixel shuffles, depth and space, channel shuffle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx
from torch.nn import functional as F

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.extents import BATCH
from worker.graph.ops.moves import permute, swap
from worker.graph.ops.reshaping import reshape
from worker.graph.ops.table import (
    AtenCall,
    Grid,
    OnnxCall,
    Op,
    Writer,
    register,
)


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
