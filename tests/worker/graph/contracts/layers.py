"""Uses of layers with weights, attention and recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional as F

from tests.worker.graph.contracts.uses import AtenUse, Held, OnnxUse, Pair, floats, normal

node = helper.make_node
TOKENS = (5, 8)
_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_SHAPE = {1: (6, 9), 2: (6, 9, 8), 3: (6, 5, 6, 4)}


def _layers(rank: int) -> tuple[AtenUse, ...]:
    conv, turned, shape = _CONV[rank], _TRANSPOSED[rank], _SHAPE[rank]
    return (
        AtenUse(f"convolution {rank}d", shape, function=conv(6, 4, 3, 2, 1), decomposed=rank == 2),
        AtenUse(f"convolution {rank}d, same", shape, function=conv(6, 4, 2, padding="same", bias=False)),
        AtenUse(f"convolution {rank}d, grouped", shape, function=conv(6, 9, 3, groups=3, dilation=1)),
        AtenUse(f"convolution {rank}d, depthwise", shape, function=conv(6, 6, 3, groups=6)),
        AtenUse(f"convolution {rank}d, multiplied", shape, function=conv(6, 12, 3, groups=6)),
        AtenUse(f"transposed {rank}d", shape, function=turned(6, 4, 3, 2, 1, 1), decomposed=rank == 2),
        AtenUse(f"transposed {rank}d, grouped", shape, function=turned(6, 4, 3, groups=2)),
        AtenUse(f"transposed {rank}d, depthwise", shape, function=turned(6, 6, 2, 2, groups=6, bias=False)),
    )


def _heads(x: Tensor, count: int = 2) -> list[Tensor]:
    """Return query, key and value [n, heads, t, d] of [n, t, 3 * heads * d]."""
    return [part.unflatten(2, (count, -1)).transpose(1, 2) for part in x.chunk(3, 2)]


def _merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _attention(**how: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: _merged(F.scaled_dot_product_attention(*_heads(x), **how))


def _by_hand(x: Tensor) -> Tensor:
    query, key, value = _heads(x)
    return _merged((query @ key.transpose(-1, -2) * 0.5).softmax(-1) @ value)


def _grouped_queries(x: Tensor) -> Tensor:
    query, key, value = x.split([8, 4, 4], 2)
    heads = [part.unflatten(2, (-1, 2)).transpose(1, 2) for part in (query, key, value)]
    return _merged(F.scaled_dot_product_attention(*heads, enable_gqa=True))


class SelfAttention(nn.Module):
    """torch's own multi-head attention."""

    def __init__(self, needs: bool, batch_first: bool = True) -> None:
        super().__init__()
        self.inner, self.needs = nn.MultiheadAttention(8, 2, batch_first=batch_first), needs
        nn.init.normal_(self.inner.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=self.needs)[0]  # type: ignore[no-any-return]


class Recurrence(nn.Module):
    """A recurrent layer; returns its sequence, or its last states."""

    def __init__(self, layer: Any, part: str = "sequence") -> None:
        super().__init__()
        self.layer, self.part = layer, part

    def forward(self, x: Tensor) -> Tensor:
        sequence, state = self.layer(x)
        if self.part == "sequence":
            return sequence  # type: ignore[no-any-return]
        hidden, cell = state if isinstance(state, tuple) else (state, state)
        return (hidden if self.part == "hidden" else cell).transpose(0, 1).flatten(1)  # type: ignore[no-any-return]


def _recurrence(name: str, layer: Any, part: str = "sequence") -> AtenUse:
    return AtenUse(name, TOKENS, True, function=Recurrence(layer, part), frozen="recurrent layer")


def _shifted(x: Tensor) -> Tensor:
    """Return [n, t, c] as [t, n, c], with the batch in the second place, worked on and brought back."""
    return F.gelu(x.transpose(0, 1)).transpose(0, 1)


ATEN: tuple[AtenUse, ...] = (
    *(use for rank in (1, 2, 3) for use in _layers(rank)),
    AtenUse("convolution, reflected", function=nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")),
    AtenUse("convolution, valid", function=nn.Conv2d(6, 4, 3, padding="valid")),
    AtenUse("linear", (6,), function=nn.Linear(6, 4)),
    AtenUse("linear without bias, tokens", TOKENS, True, function=nn.Linear(8, 4, bias=False)),
    AtenUse("linear over positions", (6, 5), function=nn.Linear(5, 7)),
    AtenUse(
        "product with a matrix and a vector",
        (6,),
        function=Held(lambda x, w, b: torch.addmm(b, x, w), floats(6, 4), floats(4)),
    ),
    AtenUse("product with a matrix", (6,), function=Held(lambda x, w: torch.mm(x, w), floats(6, 4))),
    AtenUse("product with a matrix, tokens", TOKENS, True, function=Held(lambda x, w: x @ w, floats(8, 4))),
    AtenUse(
        "product of values", (5, 6), True, bias=False, function=Pair(lambda x, y: x @ y.transpose(1, 2) @ x, rank=3)
    ),
    AtenUse(
        "batched product",
        (5, 6),
        True,
        bias=False,
        function=Pair(lambda x, y: torch.bmm(x, y.transpose(1, 2)), 6, 3),
        out_last=False,
    ),
    AtenUse(
        "batched product and sum",
        (5, 6),
        True,
        bias=False,
        function=Pair(lambda x, y: torch.baddbmm(x[:, :, :5], x, y.mT), 6, 3),
    ),
    AtenUse(
        "einsum",
        (5, 6),
        True,
        bias=False,
        function=Pair(lambda x, y: torch.einsum("btc,bsc->bts", x, y), 6, 3),
        out_last=False,
    ),
    AtenUse("einsum with a matrix", function=Held(lambda x, w: torch.einsum("nchw,ck->nkhw", x, w), floats(6, 4))),
    AtenUse(
        "einsum over rows",
        (4, 5, 6),
        True,
        bias=False,
        function=Held(lambda x, w: torch.einsum("bhwc,hkc->bhwk", x, w), floats(4, 7, 6)),
    ),
    AtenUse("attention", (5, 24), True, function=_attention(), decomposed=True),
    AtenUse("attention, scaled", (5, 24), True, function=_attention(scale=0.3)),
    AtenUse("attention, causal", (5, 24), True, function=_attention(is_causal=True)),
    AtenUse("attention, masked", (5, 24), True, function=Held(lambda x, m: _attention(attn_mask=m)(x), floats(5, 5))),
    AtenUse(
        "attention, masked by truth",
        (5, 24),
        True,
        function=Held(lambda x, m: _attention(attn_mask=m)(x), torch.ones(5, 5).tril() > 0),
    ),
    AtenUse("attention of grouped queries", (5, 16), True, function=_grouped_queries),
    AtenUse("attention by hand", (5, 24), True, function=_by_hand),
    AtenUse("torch's attention", TOKENS, True, function=SelfAttention(False), decomposed=True),
    AtenUse("torch's attention with weights", TOKENS, True, function=SelfAttention(True)),
    AtenUse(
        "torch's encoder layer",
        TOKENS,
        True,
        function=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(),
        frozen="normalises",
    ),
    AtenUse("sequences turned", TOKENS, True, function=_shifted),
    AtenUse("embedding", (5,), ids=True, last=True, function=nn.Embedding(10, 6)),
    AtenUse(
        "embedding of shifted ids",
        (5,),
        ids=True,
        last=True,
        function=Held(lambda x, t: F.embedding(x + 1, t), floats(12, 6)),
    ),
    AtenUse(
        "embedding with a mask",
        (5,),
        ids=True,
        last=True,
        function=Held(lambda x, t: F.embedding(x, t) * (x > 2).unsqueeze(-1), floats(12, 6)),
    ),
    _recurrence("lstm", nn.LSTM(8, 6, batch_first=True)),
    _recurrence("lstm, both ways", nn.LSTM(8, 6, batch_first=True, bidirectional=True)),
    _recurrence("lstm of two layers", nn.LSTM(8, 6, 2, batch_first=True), "hidden"),
    _recurrence("lstm's cells", nn.LSTM(8, 6, batch_first=True), "cell"),
    _recurrence("lstm without bias", nn.LSTM(8, 6, batch_first=True, bias=False)),
    _recurrence("gru", nn.GRU(8, 6, batch_first=True)),
    _recurrence("gru, both ways", nn.GRU(8, 6, batch_first=True, bidirectional=True), "hidden"),
)


def _conv(name: str, weight: Any, bias: bool = True, op: str = "Conv", **how: Any) -> OnnxUse:
    shape = how.pop("shape", (6, 9, 8))
    outs = weight.shape[0] if op == "Conv" else weight.shape[1] * how.get("group", 1)
    held = {"w": weight} | ({"b": normal(outs)} if bias else {})
    return OnnxUse(f"{op} {name}".strip(), shape, nodes=[node(op, ["y", *held], ["z"], **how)], held=held)


def _gemm(name: str, *, transposed: bool = False, bias: Any = None, **how: Any) -> OnnxUse:
    held = {"w": normal(4, 6) if transposed else normal(6, 4)} | ({} if bias is None else {"b": bias})
    return OnnxUse(name, (6,), nodes=[node("Gemm", ["y", *held], ["z"], transB=int(transposed), **how)], held=held)


def _attended(name: str, shape: tuple[int, ...] = (5, 24), **how: Any) -> OnnxUse:
    options = {key: how.pop(key) for key in ("held", "since") if key in how}
    sizes = how.pop("sizes", [8, 8, 8])
    nodes = [
        node("Split", ["y", "sizes"], ["q", "k", "v"], axis=2),
        node("Attention", ["q", "k", "v", *options.get("held", {})], ["z"], **how),
    ]
    held = {"sizes": np.array(sizes), **options.get("held", {})}
    return OnnxUse(name, shape, True, nodes=nodes, held=held, since=23)


def _recurrent(name: str, op: str, gates: int, **how: Any) -> OnnxUse:
    both = 2 if how.get("direction") == "bidirectional" else 1
    held = {
        "w": normal(both, gates * 4, 6) / 3,
        "r": normal(both, gates * 4, 4, seed=1) / 3,
        "b": normal(both, 2 * gates * 4, seed=2),
        "sizes": np.array([0, 0, -1]),
    }
    nodes = [
        node("Transpose", ["y"], ["s"], perm=[1, 0, 2]),
        node(op, ["s", "w", "r", "b"], ["h"], hidden_size=4, **how),
        node("Transpose", ["h"], ["t"], perm=[2, 0, 1, 3]),
        node("Reshape", ["t", "sizes"], ["z"]),
    ]
    return OnnxUse(name, (5, 6), True, nodes=nodes, held=held, frozen="recurrent layer")


ONNX: tuple[OnnxUse, ...] = (
    _conv("", normal(4, 6, 3, 3), kernel_shape=[3, 3], strides=[2, 1], pads=[1, 0, 1, 2]),
    _conv("1d", normal(4, 6, 3), dilations=[2], shape=(6, 9)),
    _conv("3d, grouped", normal(4, 3, 2, 2, 2), group=2, shape=(6, 5, 6, 4)),
    _conv("same, lower", normal(4, 6, 2, 2), False, auto_pad="SAME_LOWER", kernel_shape=[2, 2], strides=[3, 3]),
    _conv("same, upper", normal(4, 6, 4, 3), False, auto_pad="SAME_UPPER", strides=[2, 1]),
    _conv("valid", normal(4, 6, 3, 3), auto_pad="VALID"),
    _conv("depthwise", normal(6, 1, 3, 3), group=6, pads=[1, 1, 1, 1]),
    _conv("", normal(6, 4, 3, 3), op="ConvTranspose", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    _conv("grouped", normal(6, 2, 3, 3), op="ConvTranspose", group=2),
    _conv("one-sided", normal(6, 4, 3, 3), op="ConvTranspose", strides=[2, 2], pads=[1, 1, 0, 0]),
    _conv("same", normal(6, 4, 3, 3), op="ConvTranspose", strides=[2, 2], auto_pad="SAME_UPPER"),
    _conv("to a shape", normal(6, 4, 3, 3), op="ConvTranspose", strides=[2, 2], output_shape=[18, 16]),
    _conv("1d", normal(6, 4, 3), op="ConvTranspose", strides=[3], shape=(6, 9)),
    _gemm("Gemm"),
    _gemm("Gemm, transposed, with bias", transposed=True, bias=normal(4)),
    _gemm("Gemm with factors and a row", bias=normal(1, 4), alpha=0.5, beta=2.0),
    _gemm("Gemm with one number as bias", bias=normal(1)),
    OnnxUse("MatMul", (5, 6), True, nodes=[node("MatMul", ["y", "w"], ["z"])], held={"w": normal(6, 4)}),
    OnnxUse(
        "MatMul of values",
        (5, 6),
        True,
        bias=False,
        nodes=[node("Transpose", ["y"], ["t"], perm=[0, 2, 1]), node("MatMul", ["y", "t"], ["z"])],
        out_last=False,
    ),
    OnnxUse(
        "MatMul by a matrix on the left",
        (5, 6),
        True,
        nodes=[node("MatMul", ["w", "y"], ["z"])],
        held={"w": normal(7, 5)},
    ),
    OnnxUse(
        "Einsum",
        (5, 6),
        True,
        nodes=[node("Einsum", ["y", "w"], ["z"], equation="btc,ck->btk")],
        held={"w": normal(6, 4)},
        since=12,
    ),
    _attended("Attention of tokens", q_num_heads=2, kv_num_heads=2),
    _attended("Attention, causal and scaled", q_num_heads=2, kv_num_heads=2, is_causal=1, scale=0.3),
    _attended("Attention, masked", q_num_heads=2, kv_num_heads=2, held={"m": normal(5, 5)}),
    _attended("Attention of grouped queries", (5, 16), q_num_heads=4, kv_num_heads=2, sizes=[8, 4, 4]),
    _recurrent("LSTM", "LSTM", 4),
    _recurrent("LSTM, both ways", "LSTM", 4, direction="bidirectional"),
    _recurrent("GRU", "GRU", 3, linear_before_reset=1),
    OnnxUse(
        "Gather from a table",
        (5,),
        ids=True,
        last=True,
        nodes=[node("Gather", ["t", "y"], ["z"])],
        held={"t": normal(10, 6)},
    ),
)
