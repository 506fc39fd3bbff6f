"""Uses of normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from onnx import helper
from torch import nn
from torch.nn import functional as F

from tests.worker.graph.contracts.uses import AtenUse, Held, OnnxUse, aten, floats, normal

node = helper.make_node
TOKENS = (5, 6)
OVER = "normalises over channels"
_STATISTICS = (floats(6), floats(6, seed=1), floats(6, seed=2), floats(6, seed=3).abs() + 0.5)


def _spread(norm: Any) -> nn.Module:
    """Give a norm other than its first parameters and statistics."""
    for index, name in enumerate(("weight", "bias", "running_mean", "running_var")):
        tensor = getattr(norm, name, None)
        if tensor is not None:
            tensor.data = floats(*tensor.shape, seed=index).abs() + 0.5
    return norm.eval()  # type: ignore[no-any-return]


def _batchnorm(target: str, *more: Any) -> nn.Module:
    return Held(lambda x, *held: _first(aten(target, *held, *more)(x)), *_STATISTICS)


def _first(found: Any) -> Any:
    return found[0] if isinstance(found, tuple | list) else found


ATEN: tuple[AtenUse, ...] = (
    AtenUse("batch norm", function=_spread(nn.BatchNorm2d(6)), decomposed=True),
    AtenUse("batch norm of rows", (6,), function=_spread(nn.BatchNorm1d(6))),
    AtenUse("batch norm of sequences", (6, 7), function=_spread(nn.BatchNorm1d(6))),
    AtenUse("batch norm of volumes", (6, 3, 4, 2), function=_spread(nn.BatchNorm3d(6))),
    AtenUse("batch norm behind relu", function=nn.Sequential(nn.ReLU(), _spread(nn.BatchNorm2d(6)))),
    AtenUse("batch norm without factors", function=_spread(nn.BatchNorm2d(6, affine=False, eps=0.1))),
    AtenUse("batch norm, inner", function=_batchnorm("_native_batch_norm_legit_no_training.default", 0.1, 1e-3)),
    AtenUse("group norm", function=_spread(nn.GroupNorm(3, 6)), decomposed=True),
    AtenUse("group norm of one group", function=_spread(nn.GroupNorm(1, 6))),
    AtenUse("group norm of sequences", (6, 7), function=_spread(nn.GroupNorm(2, 6, eps=0.01))),
    AtenUse("instance norm", function=_spread(nn.InstanceNorm2d(6, affine=True))),
    AtenUse("instance norm without factors", function=nn.InstanceNorm2d(6)),
    AtenUse("instance norm of sequences", (6, 7), function=_spread(nn.InstanceNorm1d(6, affine=True))),
    AtenUse(
        "instance norm by running statistics",
        function=_spread(nn.InstanceNorm2d(6, affine=True, track_running_stats=True)),
    ),
    AtenUse("layer norm", TOKENS, True, function=_spread(nn.LayerNorm(6)), frozen=OVER, decomposed=True),
    AtenUse(
        "layer norm without factors", TOKENS, True, function=nn.LayerNorm(6, elementwise_affine=False), frozen=OVER
    ),
    AtenUse("layer norm without offset", TOKENS, True, function=_spread(nn.LayerNorm(6, bias=False)), frozen=OVER),
    AtenUse("layer norm of pictures", (6, 4, 3), function=_spread(nn.LayerNorm((6, 4, 3))), frozen=OVER),
    AtenUse("layer norm of positions", (6, 4, 3), function=_spread(nn.LayerNorm(3))),
    AtenUse(
        "layer norm, channels first",
        frozen=OVER,
        function=lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2),
    ),
    AtenUse("rms norm", TOKENS, True, function=_spread(nn.RMSNorm(6, eps=1e-3)), frozen=OVER, decomposed=True),
    AtenUse("rms norm, default epsilon", TOKENS, True, function=nn.RMSNorm(6), frozen=OVER),
    AtenUse(
        "rms norm by hand",
        TOKENS,
        True,
        frozen="reduces over channels",
        function=lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    ),
    AtenUse("normalize", function=lambda x: F.normalize(x, dim=1), frozen="reduces over channels"),
    AtenUse("normalize by largest", function=lambda x: F.normalize(x, p=float("inf"), dim=2)),
    AtenUse("normalize by sum", function=lambda x: F.normalize(x, p=1.0, dim=-1)),
    AtenUse("vector norm", function=lambda x: torch.linalg.vector_norm(x, dim=(2, 3))),
    AtenUse("norm", function=lambda x: x.norm(dim=2, keepdim=True)),
    AtenUse("variance", function=lambda x: x.var((2, 3), keepdim=True)),
    AtenUse("variance, uncorrected", function=lambda x: x.var(dim=2, unbiased=False)),
    AtenUse("variance, corrected by two", function=lambda x: x.var((2, 3), correction=2)),
    AtenUse("deviation, corrected", function=lambda x: x.std((2, 3), correction=0)),
    AtenUse("variance and mean, unbiased", function=lambda x: sum(torch.var_mean(x, (2, 3)))),
    AtenUse("deviation and mean", function=lambda x: sum(torch.std_mean(x, (2, 3)))),
    AtenUse("deviation and mean, corrected", function=lambda x: sum(torch.std_mean(x, (2, 3), correction=0))),
    AtenUse("norm, inner", function=aten("norm.ScalarOpt_dim", 2, [2], True)),
    AtenUse("deviation", function=lambda x: x.std(dim=(2, 3))),
    AtenUse("variance and mean", function=lambda x: (lambda v, m: v + m)(*torch.var_mean(x, (2, 3), correction=0))),
    AtenUse(
        "local response",
        function=lambda x: F.local_response_norm(x, 3, 0.1, 0.6, 1.2),
        frozen="mixes",
        decomposed=False,
    ),
)


def _onnx(name: str, op: str, shape: Sequence[int], *held: Any, **how: Any) -> OnnxUse:
    options = {key: how.pop(key) for key in ("since", "until", "last", "frozen") if key in how}
    names = [f"c{index}" for index in range(len(held))]
    nodes = [node(op, ["y", *names], ["z"], **how)]
    return OnnxUse(name, tuple(shape), nodes=nodes, held=dict(zip(names, held, strict=True)), **options)


def _shifted_norm(name: str, frozen: str = "", **how: Any) -> OnnxUse:
    """Return a use behind an offset: a removed channel must not divide zero by zero."""
    nodes = [node("Add", ["y", "c"], ["d"]), node("LpNormalization", ["d"], ["z"], **how)]
    return OnnxUse(name, nodes=nodes, held={"c": np.float32(3)}, frozen=frozen)


_FOUR = tuple(item.numpy() for item in _STATISTICS)
ONNX: tuple[OnnxUse, ...] = (
    _onnx("BatchNormalization", "BatchNormalization", (6, 8, 8), *_FOUR, epsilon=1e-3),
    _onnx("BatchNormalization of rows", "BatchNormalization", (6,), *_FOUR),
    _onnx("BatchNormalization of volumes", "BatchNormalization", (6, 2, 3, 4), *_FOUR, momentum=0.5),
    _onnx("InstanceNormalization", "InstanceNormalization", (6, 8, 8), normal(6), normal(6, seed=1), epsilon=0.1),
    _onnx("InstanceNormalization of sequences", "InstanceNormalization", (6, 8), normal(6), normal(6, seed=1)),
    _onnx("GroupNormalization", "GroupNormalization", (6, 8, 8), normal(6), normal(6, seed=1), since=21, num_groups=3),
    _onnx("LayerNormalization", "LayerNormalization", TOKENS, normal(6), normal(6), last=True, since=17, frozen=OVER),
    _onnx(
        "LayerNormalization without offset", "LayerNormalization", TOKENS, normal(6), last=True, since=17, frozen=OVER
    ),
    _onnx(
        "LayerNormalization of pictures",
        "LayerNormalization",
        (6, 4, 3),
        normal(6, 4, 3),
        axis=1,
        since=17,
        frozen=OVER,
    ),
    _onnx("RMSNormalization", "RMSNormalization", TOKENS, normal(6), last=True, since=23, frozen=OVER, epsilon=0.01),
    _onnx("LRN", "LRN", (6, 8, 8), size=3, alpha=0.1, beta=0.6, bias=1.2, frozen="mixes"),
    _shifted_norm("LpNormalization", axis=2),
    _shifted_norm("LpNormalization, sums", axis=-1, p=1),
    _shifted_norm("LpNormalization over channels", axis=1, frozen="reduces over channels"),
    OnnxUse(
        "LayerNormalization by parts",
        TOKENS,
        True,
        frozen="reduces over channels",
        until=17,
        nodes=[
            node("ReduceMean", ["y"], ["m"], axes=[-1]),
            node("Sub", ["y", "m"], ["d"]),
            node("Pow", ["d", "two"], ["s"]),
            node("ReduceMean", ["s"], ["v"], axes=[-1]),
            node("Add", ["v", "eps"], ["e"]),
            node("Sqrt", ["e"], ["r"]),
            node("Div", ["d", "r"], ["n"]),
            node("Mul", ["n", "g"], ["z"]),
        ],
        held={"two": np.float32(2), "eps": np.float32(1e-5), "g": normal(6)},
    ),
)
