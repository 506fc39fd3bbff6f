"""Uses of operations on constants alone, which reading leaves nothing of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper

from tests.worker.graph.contracts.uses import NEWEST, OnnxUse

node = helper.make_node
A = np.arange(1, 13, dtype=np.float32).reshape(3, 4) / 4
B = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)


@dataclass(frozen=True, eq=False)
class Constants:
    """A computation on constants: nodes from constants to `k`, of which opset on."""

    name: str
    nodes: tuple[onnx.NodeProto, ...]
    held: dict[str, Any]
    since: int = 13

    def use(self) -> OnnxUse:
        """Return it as the addend of a network's value."""
        nodes = [*self.nodes, node("Cast", ["k"], ["number"], to=1), node("Add", ["y", "number"], ["z"])]
        return OnnxUse(self.name, (3, 4), nodes=nodes, held=self.held, since=self.since, until=NEWEST)


def types(constants: Constants) -> set[str]:
    """Return the op types a computation on constants uses."""
    return {item.op_type for item in constants.nodes} | {"Cast"}


def _ints(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


def _one(op: str, *held: Any, since: int = 13, **how: Any) -> Constants:
    names = [f"c{index}" for index in range(len(held))]
    return Constants(f"{op} of constants", (node(op, names, ["k"], **how),), dict(zip(names, held, strict=True)), since)


def _sized(name: str, *nodes: onnx.NodeProto, **held: Any) -> Constants:
    return Constants(name, nodes, held)


ONNX: tuple[Constants, ...] = (
    *(_one(op, B) for op in ("Neg", "Abs", "Floor", "Ceil", "Exp", "Identity")),
    *(_one(op, A) for op in ("Sqrt", "Reciprocal")),
    *(_one(op, A, B) for op in ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Less", "Greater")),
    *(_one(op, A, B) for op in ("LessOrEqual", "GreaterOrEqual", "Equal")),
    *(_one(op, A > 1, B > 0) for op in ("And", "Or")),
    _one("Not", B > 0),
    _one("Div", _ints(7, -7, 5, -5), _ints(2, 2, -3, 3)),
    _one("Mod", _ints(7, -7, 5, -5), _ints(2, 2, -3, 3)),
    _one("Mod", B, np.float32(0.75), fmod=1),
    _one("Where", B > 0, A, B),
    _one("Cast", B, to=7),
    _one("CastLike", B, _ints(1), since=15),
    _one("Concat", A[:2], B[:1], axis=0),
    _one("Gather", A, _ints(2, -1, 0), axis=0),
    _one("Slice", np.concatenate([A, B]), _ints(5), _ints(-100), _ints(0), _ints(-2)),
    _one("Slice", A, _ints(-9), _ints(-9), _ints(0), _ints(-1)),
    _one("Slice", np.concatenate([A, B]), _ints(1), _ints(4), _ints(0)),
    _one("Transpose", A.T.copy(), perm=[1, 0]),
    _one("Transpose", A.T.copy()),
    _one("Unsqueeze", A, _ints(0)),
    _one("Squeeze", A[None], _ints(0)),
    _one("Squeeze", A[None]),
    _one("Expand", A[:1], _ints(3, 4)),
    _one("Reshape", A.reshape(2, 6), _ints(3, -1)),
    _one("Range", np.float32(0), np.float32(2), np.float32(0.5)),
    _one("ConstantOfShape", _ints(3, 4), value=helper.make_tensor("v", 1, [1], [2.5])),
    _one("Trilu", A, np.int64(1), since=14),
    _one("Trilu", A, np.int64(-1), upper=0, since=14),
    _sized("Constant", node("Constant", [], ["k"], value_float=1.5)),
    _sized("Constant of floats", node("Constant", [], ["k"], value_floats=[1.0, 2.0, 3.0, 4.0])),
    _sized("Size", node("Size", ["c"], ["k"]), c=A),
    _sized("Shape of a value", node("Shape", ["y"], ["t"]), node("Gather", ["t", "i"], ["k"]), i=np.int64(2)),
    _sized("Shape of a constant", node("Shape", ["c"], ["t"]), node("Gather", ["t", "i"], ["k"]), c=A, i=np.int64(1)),
    _sized("ReduceProd", node("ReduceProd", ["c"], ["k"], keepdims=0), c=A[:1]),
    _sized("ReduceProd, kept", node("ReduceProd", ["c"], ["k"]), c=A[:1]),
    _sized("Rank by size of the shape", node("Shape", ["y"], ["t"]), node("Size", ["t"], ["k"])),
)

T = torch.from_numpy(A)
U = torch.from_numpy(B)
INDEX = torch.tensor([2, 0, 2])
TRUTH = U > 0
ATEN: dict[str, tuple[dict[str, Any], ...]] = {}
"""By aten target, arguments by name as a file holds them."""


def _entered(target: str, *uses: dict[str, Any]) -> None:
    ATEN[f"aten.{target}"] = uses


for _name in ("abs", "ceil", "cos", "erf", "exp", "floor", "gelu", "neg", "relu", "round", "sigmoid", "sign", "silu"):
    _entered(f"{_name}.default", {"self": U})
for _name in ("sin", "softplus", "square", "tanh", "trunc", "log", "reciprocal", "rsqrt", "sqrt"):
    _entered(f"{_name}.default", {"self": T})
for _name in ("add", "sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge", "remainder"):
    _entered(f"{_name}.Tensor", {"self": T, "other": U + 3})
    _entered(f"{_name}.Scalar", {"self": T, "other": 2})
for _name in ("bitwise_and", "bitwise_or"):
    _entered(f"{_name}.Tensor", {"self": TRUTH, "other": T > 1})
    _entered(f"{_name}.Scalar", {"self": INDEX, "other": 1})
for _name in ("logical_and.default", "logical_or.default", "__and__.Tensor", "__or__.Tensor"):
    _entered(_name, {"self": TRUTH, "other": T > 1})
for _name in ("minimum", "maximum"):
    _entered(f"{_name}.default", {"self": T, "other": U})
for _name in ("clone", "contiguous", "detach", "detach_", "lift_fresh_copy", "alias", "t", "squeeze"):
    _entered(f"{_name}.default", {"self": T})
for _name in ("zeros", "ones"):
    _entered(f"{_name}.default", {"size": [3, 4]}, {"size": [2], "dtype": torch.int64})
    _entered(f"{_name}_like.default", {"self": INDEX}, {"self": T})
    _entered(f"new_{_name}.default", {"self": INDEX, "size": [3]})
_entered("full.default", {"size": [2], "fill_value": 7}, {"size": [2], "fill_value": 0.5})
_entered("full_like.default", {"self": INDEX, "fill_value": 7})
_entered("new_full.default", {"self": T, "size": [3], "fill_value": 7})
_entered("arange.default", {"end": 5}, {"end": 2.5})
_entered("arange.start", {"start": 1, "end": 5})
_entered("arange.start_step", {"start": 1, "end": 9, "step": 3})
_entered("linspace.default", {"start": 0, "end": 1, "steps": 5})
_entered("scalar_tensor.default", {"s": 2.5})
_entered("add.Tensor", {"self": T, "other": U, "alpha": 2})
_entered("rsub.Scalar", {"self": T, "other": 2.0}, {"self": T, "other": 2.0, "alpha": 3})
_entered("rsub.Tensor", {"self": T, "other": U})
_entered("div.Tensor_mode", {"self": U * 5, "other": T, "rounding_mode": "floor"})
_entered("floor_divide.default", {"self": torch.arange(-4, 4), "other": torch.tensor(3)})
_entered("pow.Tensor_Scalar", {"self": T, "exponent": 3})
_entered("pow.Scalar", {"self": 10000.0, "exponent": U})
_entered("pow.Tensor_Tensor", {"self": T, "exponent": U})
_entered("where.self", {"condition": TRUTH, "self": T, "other": U})
_entered("masked_fill.Scalar", {"self": T, "mask": TRUTH, "value": -9.0})
_entered("masked_fill.Tensor", {"self": T, "mask": TRUTH, "value": torch.tensor(0.0)})
_entered("to.dtype", {"self": U, "dtype": torch.int64})
_entered("_to_copy.default", {"self": U, "dtype": torch.int64})
_entered("logical_not.default", {"self": TRUTH})
_entered("bitwise_not.default", {"self": TRUTH})
_entered("clamp.default", {"self": U, "min": -1, "max": 1}, {"self": U, "min": None, "max": 1})
_entered("clamp_min.default", {"self": U, "min": 0})
_entered("clamp_max.default", {"self": U, "max": 0})
_entered("view.default", {"self": T, "size": [4, 3]})
_entered("reshape.default", {"self": T.t(), "shape": [2, 6]})
_entered("_unsafe_view.default", {"self": T, "size": [12]})
_entered("flatten.using_ints", {"self": T}, {"self": T[None], "start_dim": 1})
_entered("expand.default", {"self": T[:1], "size": [5, -1]})
_entered("slice.Tensor", {"self": T, "dim": 1, "start": 1, "end": 9223372036854775807, "step": 2}, {"self": T})
_entered("select.int", {"self": T, "dim": 1, "index": -1})
_entered("unsqueeze.default", {"self": T, "dim": -1})
_entered("squeeze.dim", {"self": T[None], "dim": 0})
_entered("squeeze.dims", {"self": T[None, :, None], "dim": [0, 2]})
_entered("permute.default", {"self": T, "dims": [1, 0]})
_entered("transpose.int", {"self": T, "dim0": 0, "dim1": -1})
_entered("unflatten.int", {"self": T, "dim": 1, "sizes": [2, 2]})
_entered("split.Tensor", {"self": T, "split_size": 2})
_entered("split_with_sizes.default", {"self": T, "split_sizes": [1, 2]})
_entered("chunk.default", {"self": T, "chunks": 2, "dim": 1})
_entered("unbind.int", {"self": T})
_entered("cat.default", {"tensors": [T, U], "dim": 1})
_entered("stack.default", {"tensors": [T, U]})
_entered("triu.default", {"self": T, "diagonal": 1})
_entered("tril.default", {"self": T})
_entered("repeat.default", {"self": T, "repeats": [2, 1, 1]})
_entered("embedding.default", {"weight": T, "indices": INDEX})
_entered("index_select.default", {"self": T, "dim": 0, "index": INDEX})
_entered("index.Tensor", {"self": T, "indices": [INDEX]}, {"self": T, "indices": [None, INDEX]})
_entered("flip.default", {"self": T, "dims": [1]})
_entered("roll.default", {"self": T, "shifts": [1], "dims": [0]})
_entered("cumsum.default", {"self": T, "dim": 1})
_entered("sum.dim_IntList", {"self": T, "dim": [1], "keepdim": True}, {"self": T, "dim": None})
_entered("mean.dim", {"self": T, "dim": [0]})
_entered("amax.default", {"self": T, "dim": [0]})
_entered("linear.default", {"input": T, "weight": U, "bias": torch.ones(3)}, {"input": T, "weight": U, "bias": None})
_entered("matmul.default", {"self": T, "other": U.t()})
_entered("mm.default", {"self": T, "mat2": U.t()})
_entered("addmm.default", {"self": torch.ones(3), "mat1": T, "mat2": U.t()})
_entered("outer.default", {"self": T[0], "vec2": U[1]})
_entered("softmax.int", {"self": T, "dim": -1})
_entered("layer_norm.default", {"input": T, "normalized_shape": [4]})
_entered("repeat_interleave.self_int", {"self": T, "repeats": 2, "dim": 1})
_entered("meshgrid.indexing", {"tensors": [T[0], U[1]], "indexing": "ij"})
_entered("linalg_vector_norm.default", {"self": T, "ord": 2, "dim": [1]})
_entered("pad.default", {"self": T, "pad": [1, 2]})
_entered("constant_pad_nd.default", {"self": T, "pad": [1, 2], "value": 0.5})
