"""The ways channel labels flow through operations; every entry of the op table names one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.graph.labels import NOTHING, Trace, leaf_of, thin


def produce(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """Convolution (axis 1) and linear layer (last axis): new channels from all input channels of their group."""
    leaf = leaf_of(trace, node)
    axis = len(trace.shapes[node.name]) - 1 if hasattr(leaf, "in_features") else 1
    ins = getattr(leaf, "in_features", None) or leaf.in_channels
    outs = getattr(leaf, "out_features", None) or leaf.out_channels
    groups = getattr(leaf, "groups", 1)
    labels = trace.values[sources[0].name]
    if isinstance(leaf, nn.Linear) and max(labels.shape[:-1], default=1) > 1 and not trace.stays(labels):
        return _over_positions(trace, node, labels)
    columns = trace.along(labels, axis, ins)
    # depthwise: the same channels come out
    rows = columns if groups == ins == outs else trace.fresh(outs)
    if groups > 1 and rows is not columns:
        _tie_groups(trace, columns, rows, groups)
    trace.meet(node.name, "in", columns)
    trace.meet(node.name, "out", rows)
    return trace.spread(node, rows, axis)


def _over_positions(trace: Trace, node: fx.Node, labels: Tensor) -> Tensor:
    """A linear layer along an axis on which no channels lie: those along the others pass, its own features stay."""
    leaf = leaf_of(trace, node)
    if labels.shape[-1] > 1:
        trace.pin(labels, f"{node.name} mixes positions that hold channels")
    trace.meet(node.name, "in", torch.full((leaf.in_features,), NOTHING))
    trace.meet(node.name, "out", trace.fresh(leaf.out_features, f"{node.name} computes positions"))
    return labels[..., :1]


def _tie_groups(trace: Trace, columns: Tensor, rows: Tensor, groups: int) -> None:
    """Tie everything one group of a grouped convolution reads and makes: whole groups are removed."""
    heads = columns.reshape(groups, -1)[:, :1]
    trace.unite(columns.reshape(groups, -1), heads)
    trace.unite(rows.reshape(groups, -1), heads)


def keep(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """One input, element by element: channels unchanged."""
    return trace.values[sources[0].name]


def spatial(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """Pooling, resizing and padding from axis 2 on: channels along the first axes pass, along the others they mix."""
    labels = trace.values[sources[0].name]
    if max(labels.shape[2:], default=1) == 1:
        return labels
    return _mixed(trace, node, labels, f"{node.name} mixes positions that hold channels")


def _mixed(trace: Trace, node: fx.Node, labels: Tensor, reason: str) -> Tensor:
    """Pin what is mixed; the result is one label that passes the reason on to whatever it is joined with."""
    trace.pin(labels, reason)
    return trace.fresh(1, reason).reshape([1] * len(trace.shapes[node.name]))


def reduce(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """Reduction over `dim`: channels along a reduced axis mix, others pass."""
    labels = trace.values[sources[0].name]
    dims: Any = node.kwargs["dim"]
    axes = sorted(axis % labels.dim() for axis in (dims if isinstance(dims, list | tuple) else [dims]))
    for axis in axes:
        if labels.shape[axis] > 1:
            trace.pin(labels, f"{node.name} reduces over channels")
            labels = labels.narrow(axis, 0, 1)
    for axis in reversed(axes):
        labels = labels if node.kwargs.get("keepdim") else labels.squeeze(axis)
    return labels


def over(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """Softmax over `dim`: labels that vary along it mix, others pass."""
    labels = trace.values[sources[0].name]
    dim: Any = node.kwargs["dim"]
    if labels.shape[dim] > 1:
        trace.pin(labels, f"{node.name} normalises over channels")
    return labels


def accumulate(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """Running sum over `dim`: labels that vary along it mix, others pass."""
    labels = trace.values[sources[0].name]
    dim: Any = node.kwargs["dim"]
    if labels.shape[dim] > 1:
        trace.pin(labels, f"{node.name} sums up channels")
    return labels


def neighbours(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """Local response normalisation: each channel by those around it (axis 1), so all stay."""
    labels = trace.values[sources[0].name]
    if labels.shape[1] > 1:
        trace.pin(labels, f"{node.name} mixes neighbouring channels")
    return labels


def normalise_last(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """LayerNorm and RMSNorm over the last axes: statistics over channels, so every channel stays."""
    labels = trace.values[sources[0].name]
    normalised = len(leaf_of(trace, node).normalized_shape)
    if max(labels.shape[-normalised:]) > 1:
        trace.pin(labels, f"{node.name} normalises over channels")
    return labels


def per_channel(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """BatchNorm, InstanceNorm and PReLU: one parameter per channel (axis 1)."""
    extent = trace.shapes[node.name][1] if len(trace.shapes[node.name]) > 1 else 1
    labels = trace.along(trace.values[sources[0].name], 1, extent)
    trace.meet(node.name, "param", labels)
    return trace.spread(node, labels, 1)


def prelu(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """PReLU: one slope for all, or one per channel."""
    return (keep if leaf_of(trace, node).num_parameters == 1 else per_channel)(trace, node, sources)


def per_group(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """GroupNorm: statistics over the channels of each group, so whole groups are removed."""
    labels = trace.along(trace.values[sources[0].name], 1, trace.shapes[node.name][1])
    by_group = labels.reshape(leaf_of(trace, node).num_groups, -1)
    trace.unite(by_group, by_group[:, :1])
    trace.meet(node.name, "param", labels)
    return trace.spread(node, labels, 1)


def embed(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """Embedding: new channels along the last axis."""
    labels = trace.fresh(trace.shapes[node.name][-1])
    trace.meet(node.name, "param", labels)
    return trace.spread(node, labels, len(trace.shapes[node.name]) - 1)


def recurrent(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """LSTM and GRU: every channel stays."""
    labels, leaf, reason = trace.values[sources[0].name], leaf_of(trace, node), f"recurrent layer {node.name}"
    trace.pin(labels, reason)
    last = len(trace.shapes[node.name]) - 1
    columns = trace.along(labels, labels.dim() - 1, leaf.core.input_size)
    for name, parameter in leaf.core.named_parameters():
        if name.startswith("weight"):
            states = torch.full((parameter.shape[1],), NOTHING)
            trace.meet(f"{node.name}.{name}", "in", columns if "_ih_" in name else states)
            trace.meet(f"{node.name}.{name}", "out", torch.full((parameter.shape[0],), NOTHING))
    return trace.spread(node, trace.fresh(trace.shapes[node.name][-1], reason), last)


def join(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """Element-wise over several inputs: their channels are tied; an operand broadcast over channels stays whole."""
    rank = len(trace.shapes[node.name])
    parts = [_aligned(trace, source, rank) for source in sources if trace.shapes[source.name] != ()]
    if not parts:
        return trace.nothing(node)
    leader = max(parts, key=lambda part: part[0].numel())[0]
    for labels, shape in parts:
        if labels is leader:
            continue
        broadcast = [axis for axis in range(rank) if shape[axis] == 1 and trace.shapes[node.name][axis] > 1]
        if any(leader.shape[axis] > 1 for axis in broadcast):
            trace.pin(labels, f"{node.name} broadcasts over channels")
        else:
            trace.unite(labels, leader)
    return leader


def _aligned(trace: Trace, source: fx.Node, rank: int) -> tuple[Tensor, tuple[int, ...]]:
    """Return labels and shape with leading extents of 1, as broadcasting adds them."""
    labels, shape = trace.values[source.name], trace.shapes[source.name]
    missing = rank - len(shape)
    return labels.reshape([1] * missing + list(labels.shape)), (1,) * missing + shape


def concat(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """Concatenation: labels one behind the other; along another axis than the channels' they are tied."""
    dim: Any = node.kwargs["dim"]
    parts = [trace.values[source.name] for source in sources]
    dim %= parts[0].dim()
    if not any(part.numel() > part.shape[dim] == 1 for part in parts):
        sizes = [max(part.shape[axis] for part in parts) for axis in range(parts[0].dim())]  # 1 where none varies
        own = [trace.shapes[source.name][dim] for source in sources]
        wide = [[*sizes[:dim], extent, *sizes[dim + 1 :]] for extent in own]
        return torch.cat([part.expand(size) for part, size in zip(parts, wide, strict=True)], dim)
    heads = [part.narrow(dim, 0, 1) for part in parts]
    leader = max(heads, key=Tensor.numel)
    for part in parts:
        trace.unite(part, leader)
    return leader


def move(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """Reshape, permute, slice, expand, shuffle, ...: executed on the labels themselves."""
    labels = trace.full(sources[0])
    if node.op == "call_module":
        moved: Tensor = leaf_of(trace, node)(labels)
    else:
        args = fx.node.map_arg(node.args, lambda item: trace.full(item))
        moved = node.target(*args, **node.kwargs)  # type: ignore[operator]
    return thin(moved)


def slice_out(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """A slice, executed on the labels; one in steps along channels keeps them all."""
    leaf, labels = leaf_of(trace, node), trace.values[sources[0].name]
    if leaf.step != 1 and labels.shape[leaf.dim] > 1:
        trace.pin(labels, f"{node.name} takes channels in steps")
    return move(trace, node, sources)


def pad_channels(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """Zeros before and behind the channels: new channels that stay."""
    leaf, labels = leaf_of(trace, node), trace.values[sources[0].name]
    if max(labels.shape[2:], default=1) > 1:
        return labels  # channels lie along another axis: positions are padded
    zeros = [trace.fresh(int(count), f"padded channels of {node.name}") for count in (leaf.before, leaf.behind)]
    inner = trace.along(labels, 1, trace.shapes[sources[0].name][1])
    return trace.spread(node, torch.cat([zeros[0], inner, zeros[1]]), 1)


def contract(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """Matrix product of two values [..., n, k] x [..., k, m]."""
    left, right = (_factor(trace, source, axis) for source, axis in zip(sources, (-1, -2), strict=True))
    return _contract(trace, node, left, right)


_Part = tuple[Tensor, tuple[int, ...]]


def _factor(trace: Trace, source: fx.Node, axis: int) -> _Part:
    """Return labels and shape of a factor; a constant has channels only along the axis that is summed over."""
    labels, shape = trace.values[source.name], trace.shapes[source.name]
    if source.op != "get_attr" or labels.dim() < 2:
        return labels, shape
    sizes = [1] * labels.dim()
    sizes[axis] = -1
    return trace.along(labels, labels.dim() + axis, shape[axis]).reshape(sizes), shape


def _contract(trace: Trace, node: fx.Node, left: _Part, right: _Part) -> Tensor:
    """Tie what a product sums over; labels along the leading axes (heads) pass whole, so do rows and columns."""
    rank = max(len(left[1]), len(right[1]))
    a, b = (item.reshape([1] * (rank - item.dim()) + list(item.shape)) for item in (left[0], right[0]))
    if max(*a.shape[:-2], *b.shape[:-2], 1) > 1:
        return _heads(trace, node, a, b)
    size = left[1][-1]
    if a.shape[-1] > 1 and b.shape[-2] > 1:
        trace.unite(trace.along(a[..., :1, :], rank - 1, size), trace.along(b[..., :1], rank - 2, size))
    elif a.shape[-1] > 1 or b.shape[-2] > 1:
        trace.pin(a if a.shape[-1] > 1 else b, f"{node.name} sums over channels")
    if (
        (a.shape[-2] > 1 and b.shape[-1] > 1)
        or (a.shape[-2] > 1 and a.shape[-1] > 1)
        or (b.shape[-2] > 1 and b.shape[-1] > 1)
    ):
        return _mixed(trace, node, torch.cat([a.reshape(-1), b.reshape(-1)]), f"{node.name} mixes channels")
    if a.shape[-2] > 1:
        return a[..., :1]
    return b[..., :1, :] if b.shape[-1] > 1 else torch.full([1] * rank, NOTHING)


def _heads(trace: Trace, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
    """Tie each head's rows and columns; both operands' heads go together."""
    heads = []
    for labels in (a, b):
        whole = labels[..., :1, :1]
        trace.unite(labels, whole)
        heads.append(whole)
    if heads[0].numel() > 1 and heads[1].numel() > 1:
        trace.unite(*heads)
        return heads[0]
    single, many = sorted(heads, key=Tensor.numel)
    trace.pin(single, f"{node.name} shares it between heads")
    return many


def attend(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """Scaled dot-product attention of query, key, value [..., t, d] (and a mask that stays whole)."""
    query, key, value = ((trace.values[item.name], trace.shapes[item.name]) for item in sources[:3])
    turned = (key[0].transpose(-1, -2), (*key[1][:-2], key[1][-1], key[1][-2]))
    scores = _contract(trace, node, query, turned)
    for mask in sources[3:]:
        trace.pin(trace.values[mask.name], f"attention mask of {node.name}")
    shape = (*query[1][:-1], key[1][-2])
    return _contract(trace, node, (scores, shape), value)


def freeze(trace: Trace, node: fx.Node, sources: Sequence[fx.Node]) -> Tensor:
    """Unknown flow: nothing of what it reads may be removed."""
    for source in sources:
        trace.pin(trace.values[source.name], f"channels can't be followed through {node.name}")
    labels = trace.fresh(trace.shapes[node.name][-1] if trace.shapes[node.name] else 1, f"made by {node.name}")
    return labels.reshape([1] * (len(trace.shapes[node.name]) - 1) + [-1]) if trace.shapes[node.name] else labels[0]
