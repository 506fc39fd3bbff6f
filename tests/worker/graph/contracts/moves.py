"""Uses of operations that move, pick, repeat, pad and re-order elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import helper
from torch.nn import functional as F

from tests.worker.graph.contracts.uses import AtenUse, Held, OnnxUse, aten

node = helper.make_node
TOKENS = (5, 6)
IMAGE = (8, 4, 6)


def _ints(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


ATEN: tuple[AtenUse, ...] = (
    AtenUse("permute", function=lambda x: x.permute(0, 2, 3, 1), out_last=True),
    AtenUse("permute, nothing moves", function=lambda x: x.permute(0, 1, 2, 3) * 2),
    AtenUse("transpose", function=lambda x: x.transpose(2, -1)),
    AtenUse("swapdims", function=aten("swapdims.default", 1, 3), out_last=True),
    AtenUse("moveaxis", function=aten("moveaxis.int", 1, -1), out_last=True),
    AtenUse("moveaxis of two", function=aten("moveaxis.intlist", [2, 3], [1, 2]), out_last=True),
    AtenUse("split by sizes, outer", function=lambda x: torch.cat(aten("split.sizes", [2, 4], 1)(x)[::-1], 1)),
    AtenUse("swapaxes", function=lambda x: torch.swapaxes(x, 1, 3), out_last=True),
    AtenUse("movedim", function=lambda x: x.movedim(1, -1), out_last=True),
    AtenUse("movedim of two", function=lambda x: x.movedim((2, 3), (1, 2)), out_last=True),
    AtenUse("matrix transpose", TOKENS, True, out_last=False, function=lambda x: x.mT),
    AtenUse("adjoint", TOKENS, True, out_last=False, function=lambda x: x.adjoint()),
    AtenUse("matrix transpose of a weight", (6,), function=Held(lambda x, w: x @ w.t(), torch.randn(5, 6))),
    AtenUse("slice", function=lambda x: x[:, 1:5]),
    AtenUse("slice from behind", function=lambda x: x[:, -4:-1]),
    AtenUse("slice of positions in steps", function=lambda x: x[:, :, ::2, 1::3]),
    AtenUse("slice of channels in steps", function=lambda x: x[:, ::2]),
    AtenUse("select", function=lambda x: x[:, :, 3]),
    AtenUse("select from behind", function=lambda x: x[..., -1]),
    AtenUse("select a channel", function=lambda x: x[:, 2], shape=(6, 5, 8), out_last=True),
    AtenUse("narrow", function=lambda x: x.narrow(1, 2, 3)),
    AtenUse("chunk", function=lambda x: torch.cat(x.chunk(3, 1)[::-1], 1)),
    AtenUse("chunk, uneven", function=lambda x: torch.cat(x.chunk(4, 3)[::-1], 3), shape=(6, 8, 7)),
    AtenUse("split", function=lambda x: torch.cat(x.split(4, 1)[::-1], 1)),
    AtenUse("split by sizes", function=lambda x: torch.cat(x.split([1, 3, 2], 1)[::-1], 1)),
    AtenUse(
        "split by sizes, inner", function=lambda x: torch.cat(aten("split_with_sizes.default", [2, 4], 1)(x)[::-1], 1)
    ),
    AtenUse("unsafe chunk", function=lambda x: torch.cat(torch.unsafe_chunk(x, 3, 1)[::-1], 1)),
    AtenUse("unsafe split", function=lambda x: torch.cat(torch.unsafe_split(x, 2, 1)[::-1], 1)),
    AtenUse("tensor split", function=lambda x: torch.cat(torch.tensor_split(x, 4, 1)[::-1], 1)),
    AtenUse("tensor split at", function=lambda x: torch.cat(torch.tensor_split(x, (1, 4), 1)[::-1], 1)),
    AtenUse("unbind", function=lambda x: torch.stack(x.unbind(2)[::-1], 2)),
    AtenUse("unbind of channels", function=lambda x: torch.stack(x.unbind(1)[::-1], 1)),
    AtenUse("stack", function=lambda x: torch.stack([x, x * 2], -1).flatten(3)),
    AtenUse("index select", function=Held(lambda x, i: x.index_select(1, i), torch.tensor([4, 0, 0, 2]))),
    AtenUse("index", function=Held(lambda x, i: x[:, i], torch.tensor([4, 0, 0, 2]))),
    AtenUse("index, negative", function=Held(lambda x, i: x[:, :, i], torch.tensor([-1, 0, 2]))),
    AtenUse("index by a table", function=Held(lambda x, i: x[:, :, i].flatten(2, 3), torch.tensor([[0, 1], [5, 2]]))),
    AtenUse("flip", function=lambda x: x.flip(1, 3)),
    AtenUse("roll", function=lambda x: torch.roll(x, (2, -3), (2, 3))),
    AtenUse("roll of channels", function=lambda x: torch.roll(x, 1, 1)),
    AtenUse("roll of everything", shape=(6,), function=lambda x: torch.roll(x, 9, -1)),
    AtenUse("expand", shape=(6, 1, 1), function=lambda x: x.expand(-1, -1, 3, 4)),
    AtenUse("expand as", shape=(6, 1, 1), function=lambda x: x.expand_as(x.repeat(1, 1, 3, 4))),
    AtenUse("expand with a new axis", shape=(5, 6), last=True, function=lambda x: x[:, None].expand(-1, 3, -1, -1)),
    AtenUse("repeat", function=lambda x: x.repeat(1, 2, 1, 3)),
    AtenUse("tile", function=lambda x: x.tile(2, 1, 3)),
    AtenUse("repeat interleave", function=lambda x: x.repeat_interleave(2, 1)),
    AtenUse("pad", function=lambda x: F.pad(x, (1, 0, 2, 1))),
    AtenUse("pad, inner", function=aten("constant_pad_nd.default", [1, 2], 0.5)),
    AtenUse("pad with a value", function=lambda x: F.pad(x, (1, 0, 2, 1), value=-1.0)),
    AtenUse("pad, reflected", function=lambda x: F.pad(x, (1, 0, 2, 1), mode="reflect"), decomposed=True),
    AtenUse("pad, replicated", function=lambda x: F.pad(x, (1, 0, 2, 1), mode="replicate"), decomposed=True),
    AtenUse("pad, circular", function=lambda x: F.pad(x, (1, 0, 2, 1), mode="circular")),
    AtenUse("pad a row, reflected", (6, 9), function=lambda x: F.pad(x, (2, 3), mode="reflect")),
    AtenUse("pad that crops", function=lambda x: F.pad(x, (-1, 0, 2, -3))),
    AtenUse("pad of channels", function=lambda x: F.pad(x, (0, 0, 0, 0, 1, 2))),
    AtenUse("pad of channels and positions", function=lambda x: F.pad(x, (1, 1, 0, 0, 1, 2))),
    AtenUse("pad of tokens", TOKENS, True, function=lambda x: F.pad(x, (0, 0, 1, 2))),
    AtenUse("pad of features", TOKENS, True, function=lambda x: F.pad(x, (2, 1)), frozen="mixes positions that hold"),
    AtenUse("pixel shuffle", IMAGE, function=lambda x: F.pixel_shuffle(x, 2), decomposed=True),
    AtenUse("pixel unshuffle", IMAGE, function=lambda x: F.pixel_unshuffle(x, 2), decomposed=True),
    AtenUse("channel shuffle", IMAGE, function=lambda x: F.channel_shuffle(x, 2), decomposed=True),
    AtenUse(
        "channel shuffle by views",
        IMAGE,
        function=lambda x: x.view(x.shape[0], 2, 4, 4, 6).transpose(1, 2).reshape(x.shape[0], 8, 4, 6),
    ),
    AtenUse("flatten", function=lambda x: x.flatten(1)),
    AtenUse("flatten of positions", function=lambda x: torch.flatten(x, 2)),
    AtenUse("view", function=lambda x: x.view(x.size(0), -1)),
    AtenUse("view, inner", function=lambda x: aten("_unsafe_view.default", [x.shape[0], 6, 64])(x)),
    AtenUse("view, copied", function=lambda x: aten("view_copy.default", [x.shape[0], 6, 64])(x)),
    AtenUse("view as", function=lambda x: x.flatten(2).view_as(x)),
    AtenUse("reshape", function=lambda x: x.reshape(-1, 6, 4, 16)),
    AtenUse("reshape as", function=lambda x: (x.flatten(2) * 2).reshape_as(x)),
    AtenUse("unflatten", (6,), function=lambda x: x.unflatten(1, (3, -1)).transpose(1, 2).flatten(1)),
    AtenUse("squeeze", shape=(6, 8, 1), function=lambda x: x.squeeze(-1)),
    AtenUse("squeeze of all", shape=(6, 1, 1), function=lambda x: x.squeeze(dim=(2, 3))),
    AtenUse("squeeze that finds nothing", function=lambda x: x.squeeze(2) * 2),
    AtenUse("squeeze of whatever is one", shape=(6, 1, 8), function=lambda x: x.squeeze(), batches=(2, 7)),
    AtenUse("unsqueeze", function=lambda x: x.unsqueeze(2), shape=(6, 8)),
    AtenUse("new axes", shape=(6, 8), function=lambda x: x[:, None, :, None].flatten(1, 2)),
    AtenUse(
        "patches",
        function=lambda x: (
            x.unflatten(2, (4, 2)).unflatten(4, (2, 4)).permute(0, 1, 3, 5, 2, 4).flatten(4).flatten(2, 3)
        ),
    ),
)


def _onnx(name: str, op: str, *inputs: Any, shape: tuple[int, ...] = (6, 8, 8), **how: Any) -> OnnxUse:
    """Return a use of one node whose other inputs are constants; `how` holds attributes, and a use's own options."""
    options = {key: how.pop(key) for key in ("since", "until", "last", "out_last", "frozen") if key in how}
    held = {f"c{index}": item for index, item in enumerate(inputs) if item is not None}
    names = ["" if item is None else f"c{index}" for index, item in enumerate(inputs)]
    return OnnxUse(name, shape, nodes=[node(op, ["y", *names], ["z"], **how)], held=held, **options)


def _split(name: str, parts: int, *sizes: Any, **how: Any) -> OnnxUse:
    options = {key: how.pop(key) for key in ("since", "until") if key in how}
    names = [f"p{index}" for index in range(parts)]
    held = {"sizes": _ints(*sizes)} if sizes else {}
    nodes = [
        node("Split", ["y", *held], names, **how),
        node("Concat", names[::-1], ["z"], axis=how["axis"]),
    ]
    return OnnxUse(name, nodes=nodes, held=held, **options)


ONNX: tuple[OnnxUse, ...] = (
    _onnx("Transpose", "Transpose", perm=[0, 2, 3, 1], out_last=True),
    _onnx("Slice", "Slice", _ints(1, -7), _ints(5, 2**62), _ints(1, 3)),
    _onnx("Slice of positions in steps", "Slice", _ints(0), _ints(2**31 - 1), _ints(2), _ints(3)),
    _onnx("Slice, backwards", "Slice", _ints(-1), _ints(-(2**62)), _ints(3), _ints(-2)),
    _onnx("Slice of channels, backwards", "Slice", _ints(-1), _ints(-(2**62)), _ints(1), _ints(-1)),
    _split("Split, evenly", 3, axis=1, until=17),
    _split("Split by an attribute", 2, axis=1, split=[2, 4], until=12),
    _split("Split by an input", 2, 2, 4, axis=1, since=13),
    _split("Split by a count", 3, axis=2, num_outputs=3, since=18),
    _onnx("Gather", "Gather", _ints(4, 0, -1, 2), axis=1),
    _onnx("Gather of one", "Gather", np.int64(-2), axis=2),
    _onnx("Gather by a table", "Gather", np.array([[0, 1, 2], [7, 6, 5]]), axis=2, shape=(6, 8)),
    _onnx("Expand", "Expand", _ints(1, 1, 3, 4), shape=(6, 1, 1)),
    _onnx("Expand, fewer sizes", "Expand", _ints(3, 4), shape=(6, 1, 1)),
    _onnx("Tile", "Tile", _ints(1, 2, 1, 3)),
    _onnx("Pad", "Pad", _ints(0, 0, 1, 0, 0, 0, 2, 3)),
    _onnx("Pad with a value", "Pad", _ints(0, 0, 1, 0, 0, 0, 2, 3), np.float32(-0.5)),
    _onnx("Pad, reflected", "Pad", _ints(0, 0, 1, 0, 0, 0, 2, 3), mode="reflect"),
    _onnx("Pad, replicated", "Pad", _ints(0, 0, 1, 0, 0, 0, 2, 3), mode="edge"),
    _onnx("Pad, wrapped", "Pad", _ints(0, 0, 1, 0, 0, 0, 2, 3), mode="wrap", since=19),
    _onnx("Pad of chosen axes", "Pad", _ints(1, 2), None, _ints(-1), since=18),
    _onnx("Pad of channels", "Pad", _ints(0, 1, 0, 0, 0, 2, 0, 0)),
    _onnx("Pad that crops", "Pad", _ints(0, 0, -1, 0, 0, 0, 2, -3)),
    _onnx("DepthToSpace", "DepthToSpace", blocksize=2, shape=IMAGE),
    _onnx("DepthToSpace, CRD", "DepthToSpace", blocksize=2, mode="CRD", shape=IMAGE),
    _onnx("SpaceToDepth", "SpaceToDepth", blocksize=2, shape=IMAGE),
    _onnx("Flatten", "Flatten"),
    _onnx("Reshape", "Reshape", _ints(0, 0, -1)),
    _onnx("Reshape to rows", "Reshape", _ints(-1, 6, 64)),
    _onnx("Squeeze, attribute", "Squeeze", axes=[-1], shape=(6, 8, 1), until=12),
    _onnx("Squeeze, input", "Squeeze", _ints(-1), shape=(6, 8, 1), since=13),
    _onnx("Unsqueeze, attribute", "Unsqueeze", axes=[2], shape=(6, 8), until=12),
    _onnx("Unsqueeze, input", "Unsqueeze", _ints(-1), shape=(6, 8), since=13),
    OnnxUse(
        "Reshape by shape arithmetic",
        nodes=[
            node("Shape", ["y"], ["s"]),
            node("Gather", ["s", "zero"], ["n"], axis=0),
            node("Unsqueeze", ["n", "zeros"], ["n1"]),
            node("Concat", ["n1", "rest"], ["sizes"], axis=0),
            node("Reshape", ["y", "sizes"], ["z"]),
        ],
        held={"zero": np.int64(0), "zeros": _ints(0), "rest": _ints(6, -1)},
        since=13,
    ),
)
