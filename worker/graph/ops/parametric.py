"""Convolution, linear and BatchNorm leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from worker.graph.build import Builder, Value
from worker.graph.errors import NetworkRefused
from worker.graph.ops.table import Flow, Grid, OnnxCall, Op, Writer, module_of, register

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def convolution(weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> nn.Module:
    """Return a convolution leaf for a weight [out, in / groups, *kernel]."""
    rank, groups = weight.dim() - 2, options.get("groups", 1)
    if not 1 <= rank <= 3:
        raise NetworkRefused("invalid-tensor", f"a convolution weight of shape {tuple(weight.shape)}")
    kind = CONVOLUTIONS[rank - 1]
    with torch.device("meta"):
        leaf = kind(
            weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), bias=bias is not None, **options
        )
    _assign(leaf, weight, bias)
    return leaf


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear leaf for a weight [out, in]."""
    with torch.device("meta"):
        leaf = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    _assign(leaf, weight, bias)
    return leaf


def _assign(leaf: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    leaf.weight = nn.Parameter(weight.detach().float().clone())
    if bias is not None:
        leaf.bias = nn.Parameter(bias.detach().float().reshape(-1).clone())


def batchnorm(vectors: Sequence[Tensor | None], eps: float, rank: int) -> nn.Module:
    """Return a BatchNorm leaf for inputs of `rank` dimensions; `vectors` are gamma, beta, mean, variance."""
    gamma, beta, mean, variance = vectors
    if mean is None or variance is None or rank not in NORMS:
        raise NetworkRefused("unsupported-operator", "BatchNorm without running statistics")
    leaf = NORMS[rank](mean.numel(), eps=eps)
    leaf.weight = nn.Parameter(torch.ones_like(mean) if gamma is None else gamma.detach().float().clone())
    leaf.bias = nn.Parameter(torch.zeros_like(mean) if beta is None else beta.detach().float().clone())
    leaf.running_mean = mean.detach().float().clone()
    leaf.running_var = variance.detach().float().clone()
    return leaf


def _read_conv(builder: Builder, call: OnnxCall) -> Value:
    weight, bias = call.constant(1), call.constant(2)
    if weight is None:
        raise NetworkRefused("invalid-graph", f"Conv {call.name!r} has no weight")
    rank = weight.dim() - 2
    attributes = call.attributes
    options: dict[str, Any] = {
        "stride": tuple(attributes.get("strides", [1] * rank)),
        "dilation": tuple(attributes.get("dilations", [1] * rank)),
        "groups": int(attributes.get("group", 1)),
    }
    value = call.value(0)
    pads = _pads(call, builder.shape(value)[2:], tuple(weight.shape[2:]), options)
    begin, end = pads[:rank], pads[rank:]
    if begin != end:
        value = pad_node(builder, value, begin, end, call.name)
        begin = [0] * rank
    return builder.module(call.module_name, convolution(weight, bias, {**options, "padding": tuple(begin)}), value)


def pad_node(builder: Builder, value: fx.Node, begin: Sequence[int], end: Sequence[int], name: str) -> fx.Node:
    """Add explicit zero padding (for sides that differ)."""
    pad = [size for b, e in reversed(list(zip(begin, end, strict=True))) for size in (b, e)]
    return builder.call(F.pad, value, name=f"{name}_pad", pad=tuple(pad), mode="constant", value=0.0)


def _pads(call: OnnxCall, sizes: Sequence[int], kernel: Sequence[int], options: dict[str, Any]) -> list[int]:
    """Return explicit pads (all begins, then all ends) of an ONNX window op, whatever `auto_pad` says."""
    mode = call.attributes.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        return (
            [int(p) for p in call.attributes.get("pads", [0] * 2 * len(kernel))]
            if mode == "NOTSET"
            else [0] * 2 * len(kernel)
        )
    begin, end = [], []
    for size, extent, stride, dilation in zip(sizes, kernel, options["stride"], options["dilation"], strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (extent - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return begin + end


def _read_gemm(builder: Builder, call: OnnxCall) -> Value:
    weight, bias = call.constant(1), call.constant(2)
    if weight is None or call.attributes.get("transA", 0):
        raise NetworkRefused("unsupported-operator", f"Gemm {call.name!r} without a constant weight or with transA")
    weight = weight.float() * float(call.attributes.get("alpha", 1.0))
    if not call.attributes.get("transB", 0):
        weight = weight.t()
    if bias is not None:
        if bias.numel() not in (1, weight.shape[0]) or bias.shape[-1:].numel() != bias.numel():
            raise NetworkRefused("unsupported-operator", f"Gemm {call.name!r}: a bias of shape {tuple(bias.shape)}")
        bias = (bias.float() * float(call.attributes.get("beta", 1.0))).reshape(-1).expand(weight.shape[0])
    return builder.module(call.module_name, linear(weight.contiguous(), bias), call.value(0))


def _read_matmul(builder: Builder, call: OnnxCall) -> Value:
    weight = call.constant(1)
    if weight is None or weight.dim() != 2:
        raise NetworkRefused("unsupported-operator", f"MatMul {call.name!r} with other than one constant matrix")
    return builder.module(call.module_name, linear(weight.t().contiguous(), None), call.value(0))


def _refuse_training(training: Any, name: str) -> None:
    if training:
        raise NetworkRefused("unsupported-operator", f"{name!r} normalises by batch statistics; export model.eval()")


def _read_batchnorm(builder: Builder, call: OnnxCall) -> Value:
    _refuse_training(call.attributes.get("training_mode", 0), call.name)
    value = call.value(0)
    vectors = [call.constant(index) for index in range(1, 5)]
    leaf = batchnorm(vectors, float(call.attributes.get("epsilon", 1e-5)), len(builder.shape(value)))
    return builder.module(call.module_name, leaf, value)


def _pair(value: Any, rank: int) -> tuple[int, ...]:
    items = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(int(item) for item in (items * rank if len(items) == 1 else items))


def _aten_conv(builder: Builder, name: str, args: list[Any]) -> Value:
    value, weight, bias, stride, padding, dilation, groups = (*args, *[None, 1, 0, 1, 1][len(args) - 2 :])[:7]
    rank = weight.dim() - 2
    options: dict[str, Any] = {"stride": _pair(stride, rank), "dilation": _pair(dilation, rank), "groups": int(groups)}
    if isinstance(padding, str):
        value, padding = _aten_same(builder, name, value, weight, options) if padding == "same" else (value, 0)
    options["padding"] = _pair(padding, rank)
    return builder.module(name, convolution(weight, bias, options), value)


def _aten_same(
    builder: Builder, name: str, value: fx.Node, weight: Tensor, options: dict[str, Any]
) -> tuple[fx.Node, list[int]]:
    """Return value and padding for padding="same": the odd zero goes behind, as torch places it."""
    totals = [step * (extent - 1) for step, extent in zip(options["dilation"], weight.shape[2:], strict=True)]
    begin, end = [total // 2 for total in totals], [total - total // 2 for total in totals]
    if begin == end:
        return value, begin
    return pad_node(builder, value, begin, end, name), [0] * len(begin)


def _aten_convolution(builder: Builder, name: str, args: list[Any]) -> Value:
    value, weight, bias, stride, padding, dilation, transposed, _, groups = args[:9]
    if transposed:
        raise NetworkRefused("unsupported-operator", f"transposed convolution {name!r}")
    return _aten_conv(builder, name, [value, weight, bias, stride, padding, dilation, groups])


def _aten_linear(builder: Builder, name: str, args: list[Any]) -> Value:
    return builder.module(name, linear(args[1], args[2] if len(args) > 2 else None), args[0])


def _aten_addmm(builder: Builder, name: str, args: list[Any]) -> Value:
    return builder.module(name, linear(args[2].t().contiguous(), args[0]), args[1])


def _aten_batchnorm(builder: Builder, name: str, args: list[Any]) -> Value:
    value, gamma, beta, mean, variance, training, _, eps = args[:8]
    _refuse_training(training, name)
    return builder.module(name, batchnorm([gamma, beta, mean, variance], float(eps), len(builder.shape(value))), value)


def _aten_batchnorm_no_training(builder: Builder, name: str, args: list[Any]) -> Value:
    value, gamma, beta, mean, variance, _, eps = args[:7]
    return builder.module(name, batchnorm([gamma, beta, mean, variance], float(eps), len(builder.shape(value))), value)


def _write_conv(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    padding = leaf.padding
    if isinstance(padding, str):
        raise ValueError(f"{node.name}: write explicit padding, not {padding!r}")
    operands = [inputs[0], writer.weight(node.name, leaf.weight.detach())]
    if leaf.bias is not None:
        operands.append(writer.bias(node.name, leaf.bias.detach()))
    return writer.emit(
        "Conv",
        operands,
        node.name,
        kernel_shape=list(leaf.kernel_size),
        strides=list(leaf.stride),
        pads=list(padding) * 2,
        dilations=list(leaf.dilation),
        group=leaf.groups,
    )


def _write_linear(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    weight = writer.weight(node.name, leaf.weight.detach())
    bias = [] if leaf.bias is None else [writer.bias(node.name, leaf.bias.detach())]
    if writer.rank(node) == 2:
        return writer.emit("Gemm", [inputs[0], weight, *bias], node.name, transB=1)
    product = writer.emit(
        "MatMul", [inputs[0], writer.emit("Transpose", [weight], f"{node.name}_t")], f"{node.name}_mm"
    )
    return writer.emit("Add", [product, *bias], node.name) if bias else product


def _write_batchnorm(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    leaf: Any = module_of(writer.module, node)
    vectors = (leaf.weight, leaf.bias, leaf.running_mean, leaf.running_var)
    names = ("scale", "shift", "mean", "variance")
    held = [writer.constant(t.detach(), f"{node.name}.{n}") for n, t in zip(names, vectors, strict=True)]
    return writer.emit("BatchNormalization", [inputs[0], *held], node.name, epsilon=float(leaf.eps))


register(
    Op(
        "conv",
        CONVOLUTIONS,
        Flow.produce,
        Grid.new,
        _write_conv,
        {"Conv": _read_conv},
        {
            **{f"aten.conv{rank}d.{kind}": _aten_conv for rank in (1, 2, 3) for kind in ("default", "padding")},
            "aten.convolution.default": _aten_convolution,
        },
    )
)
register(
    Op(
        "linear",
        nn.Linear,
        Flow.produce,
        Grid.new,
        _write_linear,
        {"Gemm": _read_gemm, "MatMul": _read_matmul},
        {"aten.linear.default": _aten_linear, "aten.addmm.default": _aten_addmm},
    )
)
register(
    Op(
        "batch_norm",
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        Flow.same,
        Grid.new,
        _write_batchnorm,
        {"BatchNormalization": _read_batchnorm},
        {
            "aten.batch_norm.default": _aten_batchnorm,
            "aten._native_batch_norm_legit_no_training.default": _aten_batchnorm_no_training,
        },
    )
)
