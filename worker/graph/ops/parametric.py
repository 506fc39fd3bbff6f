"""Convolution, transposed convolution, linear and embedding leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.errors import NetworkRefused
from worker.graph.leaves import Slice
from worker.graph.ops.table import (
    AtenCall,
    Cut,
    Grid,
    Leaf,
    OnnxCall,
    Op,
    Options,
    Tensors,
    Writer,
    module_of,
    refuse,
    register,
)

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[type[nn.Module], ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
_OPTIONS = ("stride", "padding", "dilation", "groups")


def convolution(weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> nn.Module:
    """Return a convolution leaf for a weight [out, in / groups, *kernel]."""
    groups = options.get("groups", 1)
    return _conv_leaf(CONVOLUTIONS, (weight.shape[1] * groups, weight.shape[0]), (weight, bias), options)


def transposed(weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> nn.Module:
    """Return a transposed convolution leaf for a weight [in, out / groups, *kernel]."""
    groups = options.get("groups", 1)
    return _conv_leaf(TRANSPOSED, (weight.shape[0], weight.shape[1] * groups), (weight, bias), options)


def _conv_leaf(
    kinds: Sequence[type[nn.Module]],
    channels: tuple[int, int],
    held: tuple[Tensor, Tensor | None],
    options: dict[str, Any],
) -> nn.Module:
    weight, bias = held
    rank = weight.dim() - 2
    if not 1 <= rank <= 3:
        raise NetworkRefused("invalid-tensor", f"a convolution weight of shape {tuple(weight.shape)}")
    with torch.device("meta"):
        leaf = kinds[rank - 1](*channels, tuple(weight.shape[2:]), bias=bias is not None, **options)
    _assign(leaf, weight, bias)
    return leaf


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear leaf for a weight [out, in]."""
    if weight.dim() != 2:
        raise NetworkRefused("invalid-tensor", f"a linear weight of shape {tuple(weight.shape)}")
    with torch.device("meta"):
        leaf = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    _assign(leaf, weight, bias)
    return leaf


def _assign(leaf: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    leaf.weight = nn.Parameter(weight.detach().float().clone())
    if bias is not None:
        leaf.bias = nn.Parameter(bias.detach().float().reshape(-1).clone())


def swapped(weight: Tensor, groups: int) -> Tensor:
    """Exchange outputs and inputs of a weight in groups: [out, in / g, *k] <-> [in, out / g, *k] (its own inverse)."""
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return split.transpose(1, 2).reshape(-1, split.shape[1], *weight.shape[2:])


def rows_first(leaf: nn.Module) -> Tensor:
    """Return a layer's weight as [out, in / groups, *kernel]; a transposed convolution stores it the other way."""
    layer: Any = leaf
    weight: Tensor = layer.weight.detach()
    return swapped(weight, layer.groups) if isinstance(leaf, TRANSPOSED) else weight


def as_stored(leaf: nn.Module, rows: Tensor) -> Tensor:
    """Return a weight [out, in / groups, *kernel] in the layout the leaf stores: the inverse of `rows_first`."""
    layer: Any = leaf
    return swapped(rows, layer.groups) if isinstance(leaf, TRANSPOSED) else rows


def _read_conv(builder: Builder, call: OnnxCall) -> Value:
    weight, bias, options = _conv_parts(call)
    rank = weight.dim() - 2
    value = call.value(0)
    pads = window_pads(call, builder.shape(value)[2:], tuple(weight.shape[2:]), options)
    begin, end = pads[:rank], pads[rank:]
    if begin != end:
        value = pad_node(builder, value, begin, end, call.name)
        begin = [0] * rank
    return builder.module(call.module_name, convolution(weight, bias, {**options, "padding": tuple(begin)}), value)


def _conv_parts(call: OnnxCall) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    weight, bias = call.constant(1), call.constant(2)
    if weight is None:
        raise NetworkRefused("invalid-graph", f"{call.op_type} {call.name!r} has no weight")
    rank = weight.dim() - 2
    options: dict[str, Any] = {
        "stride": tuple(call.attributes.get("strides", [1] * rank)),
        "dilation": tuple(call.attributes.get("dilations", [1] * rank)),
        "groups": int(call.attributes.get("group", 1)),
    }
    return weight, bias, options


def _read_transposed(builder: Builder, call: OnnxCall) -> Value:
    weight, bias, options = _conv_parts(call)
    rank, sizes = weight.dim() - 2, builder.shape(call.value(0))[2:]
    extra = [int(p) for p in call.attributes.get("output_padding", [0] * rank)]
    pads = _cropped(call, sizes, (tuple(weight.shape[2:]), extra), options)
    # a side that is cropped less than the other is the same as more output there
    more = [extra[axis] + pads[axis] - pads[axis + rank] for axis in range(rank)]
    front = [max(0, pad) for pad in pads[:rank]]
    beyond = [max(0, size) for size in more]
    if min(pads[:rank]) < 0 or any(p >= max(s, d) for p, s, d in zip(beyond, *_steps(options), strict=True)):
        raise refuse(call.name, "ConvTranspose padded beyond its windows")
    options = {**options, "padding": tuple(front), "output_padding": tuple(beyond)}
    found: Any = builder.module(call.module_name, transposed(weight, bias, options), call.value(0))
    for axis, size in enumerate(more):
        if size < 0:
            stop = builder.shape(found)[axis + 2] + size
            found = builder.module(f"{call.name}_cropped", Slice(axis + 2, 0, stop), found)
    return found  # type: ignore[no-any-return]


def _steps(options: dict[str, Any]) -> tuple[Sequence[int], Sequence[int]]:
    return options["stride"], options["dilation"]


def _cropped(
    call: OnnxCall, sizes: Sequence[int], window: tuple[Sequence[int], Sequence[int]], options: dict[str, Any]
) -> list[int]:
    """Return what is cropped from the full output (all begins, then all ends), whatever says so."""
    mode, wanted = call.attributes.get("auto_pad", "NOTSET"), call.attributes.get("output_shape")
    if mode in ("NOTSET", "VALID") and not wanted:
        return [int(p) for p in call.attributes.get("pads", [0] * 2 * len(sizes))]
    begin, end = [], []
    for axis, (size, stride, dilation) in enumerate(zip(sizes, *_steps(options), strict=True)):
        full = stride * (size - 1) + window[1][axis] + (window[0][axis] - 1) * dilation + 1
        gone = full - (int(wanted[axis - len(sizes)]) if wanted else size * stride)
        if gone < 0:
            raise refuse(call.name, "ConvTranspose to a size beyond its windows: runtimes do not agree on it")
        small, large = gone // 2, gone - gone // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return begin + end


def pad_node(
    builder: Builder, value: fx.Node, begin: Sequence[int], end: Sequence[int], name: str, fill: float = 0.0
) -> fx.Node:
    """Add explicit constant padding (for sides that differ)."""
    pad = [size for b, e in reversed(list(zip(begin, end, strict=True))) for size in (b, e)]
    return builder.call(F.pad, value, name=f"{name}_pad", pad=tuple(pad), mode="constant", value=fill)


def window_pads(
    call: OnnxCall, sizes: Sequence[int], kernel: Sequence[int], options: dict[str, Any], least: int = -2
) -> list[int]:
    """Return explicit pads (all begins, then all ends) of an ONNX window op, whatever `auto_pad` says.

    Strides that pass over entries behind the last window need less than no padding. Below `least`, ONNX Runtime and
    ONNX's reference start at different entries, so nobody knows what the network's author saw.
    """
    mode = call.attributes.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return [int(p) for p in call.attributes.get("pads", [0] * 2 * len(kernel))]
    if mode == "VALID":
        return [0] * 2 * len(kernel)
    begin, end = [], []
    for size, extent, stride, dilation in zip(sizes, kernel, options["stride"], options["dilation"], strict=True):
        needed = (-(-size // stride) - 1) * stride + (extent - 1) * dilation + 1 - size
        if needed < least:
            raise refuse(call.name, "auto_pad with strides wider than the window: runtimes do not agree on its places")
        total = max(0, needed)
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return begin + end


def _read_gemm(builder: Builder, call: OnnxCall) -> Value:
    weight, bias = call.constant(1), call.constant(2)
    if weight is None or weight.dim() != 2 or call.attributes.get("transA", 0):
        raise refuse(call.name, "Gemm without a constant weight or with transA")
    weight = weight.float() * float(call.attributes.get("alpha", 1.0))
    if not call.attributes.get("transB", 0):
        weight = weight.t()
    if bias is not None:
        if bias.numel() not in (1, weight.shape[0]) or bias.shape[-1:].numel() != bias.numel():
            raise refuse(call.name, f"Gemm with a bias of shape {tuple(bias.shape)}")
        bias = (bias.float() * float(call.attributes.get("beta", 1.0))).reshape(-1).expand(weight.shape[0])
    return builder.module(call.module_name, linear(weight.contiguous(), bias), call.value(0))


def _pair(value: Any, rank: int) -> tuple[int, ...]:
    items = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(int(item) for item in (items * rank if len(items) == 1 else items))


def _aten_parts(call: AtenCall) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    weight = call.constant("weight")
    if weight is None or weight.dim() < 3:
        raise NetworkRefused("invalid-graph", f"{call.name!r} has no convolution weight")
    rank = weight.dim() - 2
    options = {key: _pair(call.get(key, 1), rank) for key in ("stride", "dilation")}
    return weight, call.constant("bias"), {**options, "groups": int(call.get("groups", 1))}


def _aten_conv(builder: Builder, call: AtenCall) -> Value:
    if call.get("transposed", False):
        return _aten_transposed(builder, call)
    if any(call.get("output_padding", ())):
        raise refuse(call.name, "a convolution with output padding")
    weight, bias, options = _aten_parts(call)
    padding, value = call.get("padding", 0), call.node("input")
    if isinstance(padding, str):
        value, padding = _aten_same(builder, call, weight, options) if padding == "same" else (value, 0)
    options["padding"] = _pair(padding, weight.dim() - 2)
    return builder.module(call.name, convolution(weight, bias, options), value)


def _aten_same(builder: Builder, call: AtenCall, weight: Tensor, options: dict[str, Any]) -> tuple[fx.Node, list[int]]:
    """Return value and padding for padding="same": the odd zero goes behind, as torch places it."""
    totals = [step * (extent - 1) for step, extent in zip(options["dilation"], weight.shape[2:], strict=True)]
    begin, end = [total // 2 for total in totals], [total - total // 2 for total in totals]
    if begin == end:
        return call.node("input"), begin
    return pad_node(builder, call.node("input"), begin, end, call.name), [0] * len(begin)


def _aten_transposed(builder: Builder, call: AtenCall) -> Value:
    weight, bias, options = _aten_parts(call)
    rank = weight.dim() - 2
    options |= {key: _pair(call.get(key, 0), rank) for key in ("padding", "output_padding")}
    return builder.module(call.name, transposed(weight, bias, options), call.node("input"))


def _aten_linear(builder: Builder, call: AtenCall) -> Value:
    weight = call.constant("weight")
    if weight is None:
        raise NetworkRefused("invalid-graph", f"{call.name!r} has no weight")
    return builder.module(call.name, linear(weight, call.constant("bias")), call.node("input"))


def _aten_addmm(builder: Builder, call: AtenCall) -> Value:
    weight, bias = call.constant("mat2"), call.constant("self")
    if weight is None or bias is None or call.get("alpha", 1) != 1 or call.get("beta", 1) != 1 or bias.dim() != 1:
        raise refuse(call.name, "addmm with factors, or without a constant matrix and vector")
    return builder.module(call.name, linear(weight.t().contiguous(), bias), call.node("mat1"))


def embedding(builder: Builder, table: Tensor, ids: Value, name: str) -> Value:
    """Add a table lookup: [*, ] integers -> [*, features]."""
    if table.dim() != 2 or not table.is_floating_point():
        raise refuse(name, f"an embedding table of shape {tuple(table.shape)} and type {table.dtype}")
    return builder.module(name, _table(table), ids)


def _table(table: Tensor) -> nn.Module:
    with torch.device("meta"):
        leaf = nn.Embedding(*table.shape)
    _assign(leaf, table, None)
    return leaf


def _aten_embedding(builder: Builder, call: AtenCall) -> Value:
    table = call.constant("weight")
    if table is None:
        raise NetworkRefused("invalid-graph", f"{call.name!r} has no table")
    return embedding(builder, table, call.node("indices"), call.name)


def _write_conv(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    if isinstance(leaf.padding, str):
        raise ValueError(f"{node.name}: write explicit padding, not {leaf.padding!r}")
    turned = isinstance(leaf, TRANSPOSED)
    pads = list(leaf.padding) * 2
    extra: dict[str, Any] = {}
    if turned:  # more output behind is the same as less cropped there, and a runtime takes no more than its stride
        more: Any = leaf.output_padding
        pads = [*leaf.padding, *(max(0, pad - size) for pad, size in zip(leaf.padding, more, strict=True))]
        extra["output_padding"] = [max(0, size - pad) for pad, size in zip(leaf.padding, more, strict=True)]
    return writer.emit(
        "ConvTranspose" if turned else "Conv",
        [inputs[0], *_operands(writer, node, leaf)],
        node.name,
        kernel_shape=list(leaf.kernel_size),
        strides=list(leaf.stride),
        pads=pads,
        dilations=list(leaf.dilation),
        group=leaf.groups,
        **extra,
    )


def _operands(writer: Writer, node: fx.Node, leaf: Any) -> list[str]:
    weight: Tensor = leaf.weight.detach()
    tokens = isinstance(leaf, nn.Linear) and writer.rank(node) != 2
    axis = 1 if tokens or isinstance(leaf, TRANSPOSED) else 0
    found = [writer.weight(node.name, weight.t() if tokens else weight, axis)]
    return found if leaf.bias is None else [*found, writer.bias(node.name, leaf.bias.detach())]


def _write_linear(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    weight, *bias = _operands(writer, node, leaf)
    if writer.rank(node) == 2:
        return writer.emit("Gemm", [inputs[0], weight, *bias], node.name, transB=1)
    product = writer.emit("MatMul", [inputs[0], weight], f"{node.name}_mm")
    return writer.emit("Add", [product, *bias], node.name) if bias else product


def _write_embedding(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    return writer.emit(
        "Gather", [writer.constant(leaf.weight.detach(), f"{node.name}.table"), inputs[0]], node.name, axis=0
    )


def _cut_layer(leaf: Any, cut: Cut) -> None:
    rows, columns = cut.kept("out"), cut.kept("in")
    weight = rows_first(leaf)[rows]
    if getattr(leaf, "groups", 1) > 1:  # whole groups are removed: the columns of those that stay are all there
        leaf.groups = len(columns) // weight.shape[1]
    else:
        weight = weight[:, columns]
    leaf.weight = nn.Parameter(as_stored(leaf, weight), requires_grad=False)
    if leaf.bias is not None:
        leaf.bias = nn.Parameter(leaf.bias.detach()[rows], requires_grad=False)
    for vector in ("bn_beta", "bn_gamma"):
        if hasattr(leaf, vector):
            setattr(leaf, vector, getattr(leaf, vector)[rows])
    names = ("out_features", "in_features") if isinstance(leaf, nn.Linear) else ("out_channels", "in_channels")
    for name, kept in zip(names, (rows, columns), strict=True):
        setattr(leaf, name, len(kept))


def _cut_embedding(leaf: Any, cut: Cut) -> None:
    leaf.weight = nn.Parameter(leaf.weight.detach()[:, cut.kept("param")], requires_grad=False)
    leaf.embedding_dim = leaf.weight.shape[1]


def _make_conv(options: Options, tensors: Tensors) -> nn.Module:
    chosen = {key: item for key, item in options.items() if key != "kind"}
    return convolution(tensors["weight"], tensors.get("bias"), chosen)


def _make_transposed(options: Options, tensors: Tensors) -> nn.Module:
    """Make the leaf from a weight that lies, like every layer's in a checkpoint, outputs first."""
    chosen = {key: item for key, item in options.items() if key != "kind"}
    return transposed(swapped(tensors["weight"], int(options["groups"])), tensors.get("bias"), chosen)


register(
    Op(
        "conv",
        CONVOLUTIONS,
        flows.produce,
        Grid.new,
        _write_conv,
        {"Conv": _read_conv},
        {
            **{f"aten.conv{rank}d.{kind}": _aten_conv for rank in (1, 2, 3) for kind in ("default", "padding")},
            "aten.convolution.default": _aten_conv,
        },
        leaf=Leaf(_cut_layer, _make_conv, _OPTIONS, ("weight", "bias")),
    )
)
register(
    Op(
        "conv_transpose",
        TRANSPOSED,
        flows.produce,
        Grid.new,
        _write_conv,
        {"ConvTranspose": _read_transposed},
        {
            "aten.conv_transpose1d.default": _aten_transposed,
            "aten.conv_transpose2d.input": _aten_transposed,
            "aten.conv_transpose3d.input": _aten_transposed,
        },
        leaf=Leaf(_cut_layer, _make_transposed, (*_OPTIONS, "output_padding"), ("weight", "bias")),
    )
)
register(
    Op(
        "linear",
        nn.Linear,
        flows.produce,
        Grid.new,
        _write_linear,
        {"Gemm": _read_gemm},
        {"aten.linear.default": _aten_linear, "aten.addmm.default": _aten_addmm},
        leaf=Leaf(_cut_layer, lambda options, held: linear(held["weight"], held.get("bias")), (), ("weight", "bias")),
    )
)
register(
    Op(
        "embedding",
        nn.Embedding,
        flows.embed,
        Grid.new,
        _write_embedding,
        aten={"aten.embedding.default": _aten_embedding},
        leaf=Leaf(_cut_embedding, lambda options, held: _table(held["weight"]), (), ("weight",)),
    )
)
