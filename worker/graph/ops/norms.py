"""Normalisation leaves: BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.extents import total
from worker.graph.leaves import vector
from worker.graph.ops.table import (
    AtenCall,
    Cut,
    Grid,
    Leaf,
    OnnxCall,
    Op,
    Options,
    Tensors,
    Values,
    Writer,
    module_of,
    refuse,
    register,
)

BATCHNORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_BY_RANK: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_STATISTICS = ("weight", "bias", "running_mean", "running_var")
_AFFINE = ("weight", "bias")


def batchnorm(vectors: Sequence[Tensor | None], eps: float, rank: int) -> nn.Module:
    """Return a BatchNorm leaf for inputs of `rank` dimensions; `vectors` are gamma, beta, mean, variance."""
    gamma, beta, mean, variance = vectors
    if mean is None or variance is None or rank not in _BY_RANK:
        raise refuse("batch norm", "BatchNorm without running statistics")
    leaf = _BY_RANK[rank](mean.numel(), eps=eps)
    leaf.weight, leaf.bias = vector(gamma, mean, 1.0), vector(beta, mean, 0.0)
    leaf.running_mean = mean.detach().float().reshape(-1).clone()
    leaf.running_var = variance.detach().float().reshape(-1).clone()
    return leaf


def _affine(leaf: Any, weight: Tensor | None, bias: Tensor | None) -> nn.Module:
    """Give a norm its factors and offsets (ones and zeros where there are none)."""
    like = torch.zeros(leaf.weight.numel())
    leaf.weight = nn.Parameter(vector(weight, like, 1.0).detach().reshape(leaf.weight.shape))
    if getattr(leaf, "bias", None) is not None:
        leaf.bias = nn.Parameter(vector(bias, like, 0.0).detach().reshape(leaf.bias.shape))
    return leaf  # type: ignore[no-any-return]


def _refuse_training(training: Any, name: str) -> None:
    if training:
        raise refuse(name, "normalises by batch statistics; export model.eval()")


def _read_batchnorm(builder: Builder, call: OnnxCall) -> Value:
    _refuse_training(call.attributes.get("training_mode", 0), call.name)
    vectors = [call.constant(index) for index in range(1, 5)]
    leaf = batchnorm(vectors, float(call.attributes.get("epsilon", 1e-5)), builder.rank(call.value(0)))
    return builder.module(call.module_name, leaf, call.value(0))


def _aten_batchnorm(builder: Builder, call: AtenCall) -> Value:
    _refuse_training(call.get("training", False), call.name)
    vectors = [call.constant(key) for key in _STATISTICS]
    leaf = batchnorm(vectors, float(call.get("eps")), builder.rank(call.node("input")))
    return builder.module(call.name, leaf, call.node("input"))


def _instance(builder: Builder, value: fx.Node, held: Sequence[Tensor | None], eps: float, name: str) -> Value:
    """Add an InstanceNorm: a GroupNorm with one channel per group computes it at any rank."""
    channels = builder.shape(value)[1]
    return _grouped(builder, value, (held, channels, eps), name)


def _grouped(builder: Builder, value: fx.Node, norm: tuple[Sequence[Tensor | None], int, float], name: str) -> Value:
    held, groups, eps = norm
    leaf = nn.GroupNorm(groups, builder.shape(value)[1], eps=eps)
    return builder.module(name, _affine(leaf, held[0], held[1]), value)


def _read_instance(builder: Builder, call: OnnxCall) -> Value:
    eps = float(call.attributes.get("epsilon", 1e-5))
    return _instance(builder, call.value(0), (call.constant(1), call.constant(2)), eps, call.module_name)


def _aten_instance(builder: Builder, call: AtenCall) -> Value:
    if not call.get("use_input_stats", True):
        vectors = [call.constant(key) for key in _STATISTICS]
        leaf = batchnorm(vectors, float(call.get("eps")), builder.rank(call.node("input")))
        return builder.module(call.name, leaf, call.node("input"))
    held = (call.constant("weight"), call.constant("bias"))
    return _instance(builder, call.node("input"), held, float(call.get("eps")), call.name)


def _read_group(builder: Builder, call: OnnxCall) -> Value:
    groups, eps = int(call.attributes["num_groups"]), float(call.attributes.get("epsilon", 1e-5))
    held = [call.constant(1), call.constant(2)]
    channels = builder.shape(call.value(0))[1]
    # before opset 21 factors were given per group
    held = [_per_channel(item, channels) for item in held]
    return _grouped(builder, call.value(0), (held, groups, eps), call.module_name)


def _per_channel(item: Tensor | None, channels: int) -> Tensor | None:
    return item if item is None else item.repeat_interleave(channels // item.numel())


def _aten_group(builder: Builder, call: AtenCall) -> Value:
    held = (call.constant("weight"), call.constant("bias"))
    norm = (held, int(call.get("num_groups")), float(call.get("eps", 1e-5)))
    return _grouped(builder, call.node("input"), norm, call.name)


def _aten_native_group(builder: Builder, call: AtenCall) -> Values:
    """Read what torch decomposes group norm to; the sizes it repeats (N, C, HxW) follow from its input."""
    sizes = [int(call.get(key)) for key in ("C", "HxW")]
    shape = builder.shape(call.node("input"))
    if sizes != [shape[1], total(shape[2:])] or int(call.get("N")) not in (shape[0], builder.batch):
        raise refuse(call.name, f"a group norm of {sizes}")
    norm = ((call.constant("weight"), call.constant("bias")), int(call.get("group")), float(call.get("eps")))
    return [_grouped(builder, call.node("input"), norm, call.name), None, None]


def _read_lrn(builder: Builder, call: OnnxCall) -> Value:
    size, attributes = int(call.attributes["size"]), call.attributes
    if size % 2 == 0 or builder.rank(call.value(0)) < 3:
        raise refuse(call.name, "LRN of an even size, or of rows")
    numbers = {
        "alpha": float(attributes.get("alpha", 1e-4)),
        "beta": float(attributes.get("beta", 0.75)),
        "k": float(attributes.get("bias", 1.0)),
    }
    return builder.call(F.local_response_norm, call.value(0), name=call.name, size=size, **numbers)


def _write_lrn(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    k: Any = node.kwargs
    return writer.emit("LRN", inputs, node.name, size=k["size"], alpha=k["alpha"], beta=k["beta"], bias=k["k"])


def _last(builder: Builder, value: fx.Node, sizes: Sequence[int], norm: nn.Module, name: str) -> Value:
    if tuple(builder.shape(value)[-len(sizes) :]) != tuple(sizes):
        raise refuse(name, f"normalises over {list(sizes)}, which are not the last dimensions")
    return builder.module(name, norm, value)


def _read_layer(builder: Builder, call: OnnxCall) -> Value:
    value = call.value(0)
    axis = int(call.attributes.get("axis", -1)) % builder.rank(value)
    sizes, eps = builder.shape(value)[axis:], float(call.attributes.get("epsilon", 1e-5))
    if call.op_type == "RMSNormalization":
        return _last(builder, value, sizes, rms_leaf(sizes, eps, call.constant(1)), call.module_name)
    return _last(builder, value, sizes, layer_leaf(sizes, eps, call.constant(1), call.constant(2)), call.module_name)


def layer_leaf(sizes: Sequence[int], eps: float, weight: Tensor | None, bias: Tensor | None) -> nn.Module:
    """Return a LayerNorm leaf."""
    return _affine(nn.LayerNorm(tuple(sizes), eps=eps), weight, bias)


def rms_leaf(sizes: Sequence[int], eps: float | None, weight: Tensor | None) -> nn.Module:
    """Return an RMSNorm leaf; without an epsilon torch takes float32's."""
    return _affine(nn.RMSNorm(tuple(sizes), eps=torch.finfo(torch.float32).eps if eps is None else eps), weight, None)


def _aten_layer(builder: Builder, call: AtenCall) -> Value:
    sizes = [int(size) for size in call.get("normalized_shape")]
    leaf = layer_leaf(sizes, float(call.get("eps", 1e-5)), call.constant("weight"), call.constant("bias"))
    return _last(builder, call.node("input"), sizes, leaf, call.name)


def _aten_rms(builder: Builder, call: AtenCall) -> Value:
    sizes = [int(size) for size in call.get("normalized_shape")]
    eps = call.get("eps")
    leaf = rms_leaf(sizes, None if eps is None else float(eps), call.constant("weight"))
    return _last(builder, call.node("input"), sizes, leaf, call.name)


def _held(writer: Writer, node: fx.Node, names: Sequence[str]) -> list[str]:
    leaf: Any = module_of(writer.module, node)
    labels = {"weight": "scale", "bias": "shift", "running_mean": "mean", "running_var": "variance"}
    return [writer.constant(getattr(leaf, name).detach(), f"{node.name}.{labels[name]}") for name in names]


def _write_batchnorm(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    held = _held(writer, node, _STATISTICS)
    return writer.emit("BatchNormalization", [inputs[0], *held], node.name, epsilon=float(leaf.eps))


def _write_group(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    held = _held(writer, node, _AFFINE)
    if leaf.num_groups == leaf.num_channels and writer.rank(node) > 2:
        return writer.emit("InstanceNormalization", [inputs[0], *held], node.name, epsilon=float(leaf.eps))
    return writer.emit(
        "GroupNormalization", [inputs[0], *held], node.name, epsilon=float(leaf.eps), num_groups=leaf.num_groups
    )


def _write_layer(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    axis = -len(leaf.normalized_shape)
    held = _held(writer, node, _AFFINE)
    return writer.emit("LayerNormalization", [inputs[0], *held], node.name, axis=axis, epsilon=float(leaf.eps))


def _write_rms(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    """Write RMSNorm by its parts: ONNX has it from opset 23 on only."""
    leaf: Any = module_of(writer.module, node)
    axes = writer.integers(list(range(-len(leaf.normalized_shape), 0)), f"{node.name}_axes")
    square = writer.emit("Mul", [inputs[0], inputs[0]], f"{node.name}_square")
    mean = writer.emit("ReduceMean", [square, axes], f"{node.name}_mean", keepdims=1)
    shifted = writer.emit("Add", [mean, writer.scalar(float(leaf.eps), f"{node.name}_eps")], f"{node.name}_shifted")
    root = writer.emit("Sqrt", [shifted], f"{node.name}_root")
    normed = writer.emit("Div", [inputs[0], root], f"{node.name}_normed")
    return writer.emit("Mul", [normed, *_held(writer, node, ("weight",))], node.name)


def _cut_vectors(leaf: Any, channels: Tensor, names: Sequence[str]) -> None:
    for name in names:
        kept = getattr(leaf, name).detach()[channels]
        is_parameter = isinstance(getattr(leaf, name), nn.Parameter)
        setattr(leaf, name, nn.Parameter(kept, requires_grad=False) if is_parameter else kept)


def _cut_batchnorm(leaf: Any, cut: Cut) -> None:
    _cut_vectors(leaf, cut.kept("param"), _STATISTICS)
    leaf.num_features = len(leaf.weight)


def _cut_group(leaf: Any, cut: Cut) -> None:
    size = leaf.num_channels // leaf.num_groups
    _cut_vectors(leaf, cut.kept("param"), _AFFINE)
    leaf.num_channels = len(leaf.weight)
    leaf.num_groups = leaf.num_channels // size


def _cut_nothing(leaf: Any, cut: Cut) -> None:
    """Leave a leaf whose channels all stay as it is."""


def _make_batchnorm(options: Options, tensors: Tensors) -> nn.Module:
    rank = {"BatchNorm1d": 2, "BatchNorm2d": 4, "BatchNorm3d": 5}[options["kind"]]
    return batchnorm([tensors[key] for key in _STATISTICS], float(options["eps"]), rank)


def _make_group(options: Options, tensors: Tensors) -> nn.Module:
    leaf = nn.GroupNorm(int(options["num_groups"]), tensors["weight"].numel(), eps=float(options["eps"]))
    return _affine(leaf, tensors["weight"], tensors["bias"])


def _make_layer(options: Options, tensors: Tensors) -> nn.Module:
    weight = tensors["weight"]
    return layer_leaf(tuple(weight.shape), float(options["eps"]), weight, tensors["bias"])


def _make_rms(options: Options, tensors: Tensors) -> nn.Module:
    return rms_leaf(tuple(tensors["weight"].shape), float(options["eps"]), tensors["weight"])


register(
    Op(
        "batch_norm",
        BATCHNORMS,
        flows.per_channel,
        Grid.new,
        _write_batchnorm,
        {"BatchNormalization": _read_batchnorm},
        {f"aten.{name}.default": _aten_batchnorm for name in ("batch_norm", "_native_batch_norm_legit_no_training")},
        leaf=Leaf(_cut_batchnorm, _make_batchnorm, ("eps",), _STATISTICS),
    )
)
register(
    Op(
        "group_norm",
        nn.GroupNorm,
        flows.per_group,
        Grid.new,
        _write_group,
        {"InstanceNormalization": _read_instance, "GroupNormalization": _read_group},
        {
            "aten.group_norm.default": _aten_group,
            "aten.native_group_norm.default": _aten_native_group,
            "aten.instance_norm.default": _aten_instance,
        },
        leaf=Leaf(_cut_group, _make_group, ("num_groups", "eps"), _AFFINE),
    )
)
register(
    Op(
        "layer_norm",
        nn.LayerNorm,
        flows.normalise_last,
        Grid.new,
        _write_layer,
        {"LayerNormalization": _read_layer, "RMSNormalization": _read_layer},
        {
            "aten.layer_norm.default": _aten_layer,
            "aten.native_layer_norm.default": lambda b, call: [_aten_layer(b, call), None, None],
        },
        leaf=Leaf(_cut_nothing, _make_layer, ("eps",), _AFFINE),
    )
)
register(
    Op(
        "rms_norm",
        nn.RMSNorm,
        flows.normalise_last,
        Grid.new,
        _write_rms,
        aten={"aten.rms_norm.default": _aten_rms},
        leaf=Leaf(_cut_nothing, _make_rms, ("eps",), ("weight",)),
    )
)
register(Op("local_response_norm", F.local_response_norm, flows.neighbours, Grid.new, _write_lrn, {"LRN": _read_lrn}))
