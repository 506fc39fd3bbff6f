"""Matrix products of values, and fused attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from worker.graph import flows
from worker.graph.build import Builder, Value
from worker.graph.ops.moves import permute, swap, take
from worker.graph.ops.parametric import linear
from worker.graph.ops.reshaping import reshape, unsqueeze
from worker.graph.ops.table import AtenCall, Grid, OnnxCall, Op, Writer, refuse, register


def matmul(builder: Builder, left: Value, right: Value, name: str, module_name: str) -> Value:
    """Add a matrix product: a linear layer where the right operand is a constant matrix."""
    if isinstance(right, Tensor) and right.dim() == 2 and isinstance(left, fx.Node) and builder.rank(left) > 1:
        return builder.module(module_name, linear(right.t().contiguous(), None), left)
    if min(builder.rank(left), builder.rank(right)) < 2:
        raise refuse(name, "a matrix product with a vector")
    return builder.call(torch.matmul, left, right, name=name)


def _read_matmul(builder: Builder, call: OnnxCall) -> Value:
    left, right = call.inputs[:2]
    if left is None or right is None:
        raise refuse(call.name, "MatMul without two operands")
    return matmul(builder, left, right, call.name, call.module_name)


def _aten_matmul(builder: Builder, call: AtenCall) -> Value:
    right = call.get("other", call.get("mat2"))
    return matmul(builder, call.get("self"), right, call.name, call.name)


def _aten_baddbmm(builder: Builder, call: AtenCall) -> Value:
    if call.get("beta", 1) != 1 or call.get("alpha", 1) != 1:
        raise refuse(call.name, "baddbmm with factors")
    product = builder.call(torch.matmul, call.get("batch1"), call.get("batch2"), name=f"{call.name}_product")
    return builder.call(torch.add, product, call.get("self"), name=call.name)


def attention(
    builder: Builder, heads: Sequence[Value], mask: Value | None, how: tuple[float, bool], name: str
) -> Value:
    """Add scaled dot-product attention of query, key, value [..., t, d]; `how` is (scale, causal)."""
    extra = [] if mask is None else [mask]
    target = F.scaled_dot_product_attention
    return builder.call(target, *heads, *extra, name=name, scale=how[0], is_causal=how[1])


def shared_heads(builder: Builder, heads: Sequence[Value], name: str) -> list[Value]:
    """Repeat heads of key and value that several heads of the query share (grouped queries), [n, heads, t, d]."""
    wanted = builder.shape(heads[0])[1]
    found = [heads[0]]
    for label, value in zip(("key", "value"), heads[1:], strict=True):
        count = builder.shape(value)[1]
        if wanted % max(1, count):
            raise refuse(name, f"{wanted} heads that share {count}")
        index = torch.arange(count).repeat_interleave(wanted // count)
        repeated = value if count == wanted else take(builder, value, 1, index, f"{name}_{label}")  # type: ignore[arg-type]
        found.append(repeated)
    return found


def _scale(builder: Builder, query: Value, given: Any) -> float:
    return float(given) if given is not None else 1.0 / math.sqrt(builder.shape(query)[-1])


def _aten_attention(builder: Builder, call: AtenCall) -> Value:
    if call.get("dropout_p", 0.0):
        raise refuse(call.name, "attention with dropout")
    heads = [call.get(key) for key in ("query", "key", "value")]
    if call.get("enable_gqa", False):
        heads = shared_heads(builder, heads, call.name)
    how = (_scale(builder, heads[0], call.get("scale")), bool(call.get("is_causal", False)))
    return attention(builder, heads, call.get("attn_mask"), how, call.name)


def _read_attention(builder: Builder, call: OnnxCall) -> Value:
    """Read ONNX Attention (opset 23): query, key, value as [batch, heads, t, d], or [batch, t, heads * d]."""
    if any(call.has(index) for index in (4, 5, 6)) or call.outputs > 1 or call.attributes.get("softcap", 0.0):
        raise refuse(call.name, "Attention with a cache, a softcap or more than one output")
    heads: list[Value] = [call.value(index) for index in range(3)]
    counts = [int(call.attributes.get(key, 0)) for key in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
    flat = builder.rank(heads[0]) == 3
    if flat:
        heads = [
            _split_heads(builder, value, count, f"{call.name}_{i}")
            for i, (value, count) in enumerate(zip(heads, counts, strict=True))
        ]
    heads = shared_heads(builder, heads, call.name)
    how = (_scale(builder, heads[0], call.attributes.get("scale")), bool(call.attributes.get("is_causal", 0)))
    found = attention(builder, heads, call.inputs[3] if call.has(3) else None, how, call.name)
    return _merge_heads(builder, found, call.name) if flat else found


def _split_heads(builder: Builder, value: Value, count: int, name: str) -> Value:
    batch, length, size = builder.shape(value)
    apart = reshape(builder, value, [batch, length, count, size // max(1, count)], f"{name}_heads")
    return swap(builder, apart, (1, 2), f"{name}_turned")


def _merge_heads(builder: Builder, value: Value, name: str) -> Value:
    batch, count, length, size = builder.shape(value)
    return reshape(
        builder, swap(builder, value, (1, 2), f"{name}_back"), [batch, length, count * size], f"{name}_merged"
    )


def _write_matmul(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    return writer.emit("MatMul", inputs, node.name)


def _write_attention(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> str:
    """Write attention by its parts: ONNX has it from opset 23 on only."""
    rank, name = writer.rank(node), node.name
    turn = [*range(rank - 2), rank - 1, rank - 2]
    key = writer.emit("Transpose", [inputs[1]], f"{name}_key", perm=turn)
    scale = writer.scalar(float(node.kwargs["scale"]), f"{name}_scale")  # type: ignore[arg-type]
    query = writer.emit("Mul", [inputs[0], scale], f"{name}_query")
    scores = writer.emit("MatMul", [query, key], f"{name}_scores")
    for mask in _masks(writer, node, inputs):
        scores = writer.emit("Add", [scores, mask], f"{name}_masked")
    weights = writer.emit("Softmax", [scores], f"{name}_weights", axis=-1)
    return writer.emit("MatMul", [weights, inputs[2]], name)


def _masks(writer: Writer, node: fx.Node, inputs: Sequence[str]) -> list[str]:
    """Return what is added to the scores: the causal triangle, and the mask (0 and -inf for truth values)."""
    found = []
    lengths = [writer.shape(item)[-2] for item in node.args[:2]]
    if node.kwargs["is_causal"]:
        triangle = torch.full(lengths, -math.inf).triu(1)
        found.append(writer.constant(triangle, f"{node.name}_causal"))
    if len(inputs) > 3:
        if writer.dtype(node.args[3]) != torch.bool:
            return [*found, inputs[3]]
        zero, never = (
            writer.scalar(value, f"{node.name}_{label}") for value, label in ((0.0, "zero"), (-math.inf, "never"))
        )
        found.append(writer.emit("Where", [inputs[3], zero, never], f"{node.name}_mask"))
    return found


def _aten_einsum(builder: Builder, call: AtenCall) -> Value:
    return einsum(builder, str(call.get("equation")), call.get("tensors"), call.name)


def einsum(builder: Builder, equation: str, values: Sequence[Value], name: str) -> Value:
    """Add an einsum of two operands in which every letter of one term is distinct, as permutations around one product.

    Letters of both operands and the result lead; then those of the left alone (all but the last have extent 1 in the
    right operand), those of the right alone likewise, and what is summed.
    """
    terms, _, result = equation.replace(" ", "").partition("->")
    letters = terms.split(",")
    if len(letters) != 2 or not result or any(len(set(term)) != len(term) for term in (*letters, result)):
        raise refuse(name, f"einsum {equation!r}")
    left, right = letters
    both = [c for c in result if c in left and c in right]
    rows = [c for c in result if c in left and c not in right]
    columns = [c for c in result if c in right and c not in left]
    summed = [c for c in left if c in right and c not in result]
    if len(summed) != 1 or not rows or len(columns) != 1 or {*left, *right} != {*result, *summed} or "." in terms:
        raise refuse(name, f"einsum {equation!r}")
    first = permute(builder, values[0], [left.index(c) for c in [*both, *rows, *summed]], f"{name}_left")
    second = permute(builder, values[1], [right.index(c) for c in [*both, *summed, *columns]], f"{name}_right")
    if both and len(rows) > 1:
        axes = list(range(len(both), len(both) + len(rows) - 1))
        second = unsqueeze(builder, second, axes, f"{name}_spread")
    product = matmul(builder, first, second, name, name)
    order = [*both, *rows, *columns]
    return permute(builder, product, [order.index(c) for c in result], f"{name}_turned")


def _read_einsum(builder: Builder, call: OnnxCall) -> Value:
    values = [value for value in call.inputs if value is not None]
    return einsum(builder, str(call.attributes["equation"]), values, call.name)


register(
    Op(
        "matmul",
        torch.matmul,
        flows.contract,
        Grid.new,
        _write_matmul,
        {"MatMul": _read_matmul, "Einsum": _read_einsum},
        {
            **{f"aten.{name}.default": _aten_matmul for name in ("matmul", "bmm", "mm")},
            "aten.baddbmm.default": _aten_baddbmm,
            "aten.einsum.default": _aten_einsum,
        },
    )
)
register(
    Op(
        "attention",
        F.scaled_dot_product_attention,
        flows.attend,
        Grid.new,
        _write_attention,
        {"Attention": _read_attention},
        {"aten.scaled_dot_product_attention.default": _aten_attention},
    )
)
