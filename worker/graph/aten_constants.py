"""Aten calls on constants alone, and arithmetic on sizes: computed while reading.

Constants that are repeated over the batch have `BATCH` entries along it. They are views of one row: what moves or
picks elements keeps them so, what computes element by element is computed on the row, anything else is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from worker.graph.errors import NetworkRefused
from worker.graph.extents import BATCH, holds_batch
from worker.graph.ops import AtenCall
from worker.graph.ops.table import Values

MAX_MADE = 1 << 24
MAX_PIECES = 4096

INTEGERS: dict[str, Callable[..., Any]] = {
    "_operator.add": operator.add,
    "_operator.sub": operator.sub,
    "_operator.mul": operator.mul,
    "_operator.floordiv": operator.floordiv,
    "_operator.neg": operator.neg,
}
"""Arithmetic of symbolic sizes; the batch is a number like any other here (`BATCH`)."""

_PAIRS = ("add", "sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge", "remainder", "bitwise_and", "bitwise_or")
_SINGLE = (
    *("abs", "bitwise_not", "ceil", "cos", "erf", "exp", "floor", "gelu", "log", "logical_not", "neg", "reciprocal"),
    *("relu", "round", "rsqrt", "sigmoid", "sign", "silu", "sin", "softplus", "sqrt", "square", "tanh", "trunc"),
)
ELEMENTWISE = frozenset(
    {
        *(f"aten.{name}.{kind}" for name in _PAIRS for kind in ("Tensor", "Scalar")),
        *(f"aten.{name}.default" for name in _SINGLE),
        *("aten.rsub.Scalar", "aten.rsub.Tensor", "aten.div.Tensor_mode", "aten.floor_divide.default"),
        *("aten.pow.Tensor_Scalar", "aten.pow.Scalar", "aten.pow.Tensor_Tensor", "aten.where.self"),
        *("aten.logical_and.default", "aten.logical_or.default", "aten.__and__.Tensor", "aten.__or__.Tensor"),
        *("aten.masked_fill.Scalar", "aten.masked_fill.Tensor", "aten.to.dtype", "aten._to_copy.default"),
        *("aten.clamp.default", "aten.clamp_min.default", "aten.clamp_max.default"),
        *("aten.minimum.default", "aten.maximum.default"),
    }
)
"""Functions that compute each element by itself."""

VIEWS = frozenset(
    {
        *("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.flatten.using_ints"),
        *("aten.expand.default", "aten.slice.Tensor", "aten.select.int", "aten.unsqueeze.default"),
        *("aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default", "aten.permute.default"),
        *(
            "aten.transpose.int",
            "aten.t.default",
            "aten.unflatten.int",
            "aten.clone.default",
            "aten.contiguous.default",
        ),
        *("aten.detach.default", "aten.detach_.default", "aten.lift_fresh_copy.default", "aten.alias.default"),
        *("aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default", "aten.unbind.int"),
    }
)
"""Functions that move or pick elements, or do nothing to a constant."""

COMPUTED = frozenset(
    {
        *("aten.cat.default", "aten.stack.default", "aten.triu.default", "aten.tril.default", "aten.repeat.default"),
        *("aten.embedding.default", "aten.index_select.default", "aten.index.Tensor", "aten.flip.default"),
        *("aten.roll.default", "aten.cumsum.default", "aten.sum.dim_IntList", "aten.mean.dim", "aten.amax.default"),
        *("aten.linear.default", "aten.matmul.default", "aten.mm.default", "aten.addmm.default", "aten.outer.default"),
        *("aten.softmax.int", "aten.layer_norm.default", "aten.repeat_interleave.self_int", "aten.meshgrid.indexing"),
        *("aten.linalg_vector_norm.default", "aten.pad.default", "aten.constant_pad_nd.default"),
    }
)
"""Functions that need the whole constant."""

_ALIKE = frozenset({"aten.clone.default", "aten.contiguous.default", "aten.detach.default", "aten.detach_.default"})
_ALIKE |= {"aten.lift_fresh_copy.default", "aten.alias.default"}


def _filled(value: Any) -> Callable[[AtenCall], Tensor]:
    """Return the maker of a view of one number: repeated over the batch it would not fit into memory."""

    def make(call: AtenCall) -> Tensor:
        number = call.get("fill_value") if value is None else value
        like = call.inputs.get("self")
        plain = torch.get_default_dtype() if value is not None else None
        dtype = call.get("dtype", plain if like is None else like.dtype)
        sizes = [int(size) for size in call.get("size", () if like is None else like.shape)]
        return torch.full([1] * len(sizes), number, dtype=dtype).expand(sizes)

    return make


def _arange(call: AtenCall) -> Tensor:
    start, stop, step = call.get("start", 0), call.get("end"), call.get("step", 1)
    if step == 0 or (stop - start) / step > MAX_MADE or holds_batch(int(stop)):
        raise NetworkRefused("unsupported-operator", f"{call.name!r}: a range of {stop}")
    return torch.arange(start, stop, step, dtype=call.get("dtype"))


def _linspace(call: AtenCall) -> Tensor:
    steps = int(call.get("steps"))
    if not 0 <= steps <= MAX_MADE:
        raise NetworkRefused("unsupported-operator", f"{call.name!r}: a range of {steps}")
    return torch.linspace(call.get("start"), call.get("end"), steps, dtype=call.get("dtype"))


MADE: dict[str, Callable[[AtenCall], Tensor]] = {
    **{f"aten.{name}.default": _filled(0) for name in ("zeros", "zeros_like", "new_zeros")},
    **{f"aten.{name}.default": _filled(1) for name in ("ones", "ones_like", "new_ones")},
    **{f"aten.{name}.default": _filled(None) for name in ("full", "full_like", "new_full")},
    **{f"aten.arange.{kind}": _arange for kind in ("default", "start", "start_step")},
    "aten.linspace.default": _linspace,
    "aten.scalar_tensor.default": lambda call: torch.tensor(call.get("s"), dtype=call.get("dtype")),
}
"""Functions that make constants from numbers."""

FOLDS = frozenset(MADE) | ELEMENTWISE | VIEWS | COMPUTED


def fold(call: AtenCall) -> Values:
    """Return the value of a call on constants. Raises NetworkRefused where it is not known, or not for every batch."""
    if call.target not in FOLDS:
        raise NetworkRefused("unsupported-operator", f"{call.target} on constants only ({call.name!r})")
    if call.target in MADE:
        return MADE[call.target](call)
    if call.target in _ALIKE:
        return torch.as_tensor(call.get("self"))
    arguments = _arguments(call)
    endless = [item for item in _tensors(arguments.values()) if _axes(item)]
    if call.target in VIEWS:
        _refuse_many(call)
        viewed: Values = _run(call, arguments)
        return viewed
    shapes = _run(call, {key: _mapped(item, lambda part: part.to("meta")) for key, item in arguments.items()})
    if endless and call.target not in ELEMENTWISE:
        raise NetworkRefused("unsupported-operator", f"{call.target} on constants made for every batch ({call.name!r})")
    if endless:
        found = _run(call, {key: _mapped(item, _row) for key, item in arguments.items()})
        return found.expand(shapes.shape)  # type: ignore[no-any-return]
    made = sum(item.numel() for item in _tensors([shapes]))
    if made > MAX_MADE + sum(item.numel() for item in _tensors(arguments.values())):
        raise NetworkRefused("model-too-large", f"{call.name!r} makes {made} elements")
    computed: Values = _run(call, arguments)
    return computed


def _refuse_many(call: AtenCall) -> None:
    """Refuse to cut a constant into more pieces than a network has use for."""
    if call.target.split(".")[1] not in ("split", "chunk", "unbind"):
        return
    extent = call.get("self").shape[int(call.get("dim", 0))]
    size = int(call.get("split_size", 1)) if call.target == "aten.split.Tensor" else 1
    if min(extent // max(1, size), int(call.get("chunks", extent))) > MAX_PIECES:
        raise NetworkRefused(
            "unsupported-operator", f"{call.target} into more than {MAX_PIECES} pieces ({call.name!r})"
        )


def _run(call: AtenCall, arguments: dict[str, Any]) -> Any:
    name, overload = call.target.removeprefix("aten.").rsplit(".", 1)
    return getattr(getattr(torch.ops.aten, name), overload)(**arguments)


def _arguments(call: AtenCall) -> dict[str, Any]:
    """Return the arguments that are given; devices, layouts and the like are stored as None."""
    name, overload = call.target.removeprefix("aten.").rsplit(".", 1)
    schema = getattr(getattr(torch.ops.aten, name), overload)._schema
    optional = {argument.name for argument in schema.arguments if argument.has_default_value()}
    return {key: item for key, item in call.inputs.items() if item is not None or key not in optional}


def _mapped(item: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(item, list):
        return [_mapped(part, change) for part in item]
    return change(item) if isinstance(item, Tensor) else item


def _tensors(items: Any) -> list[Tensor]:
    """Return the tensors among arguments or results, lists opened."""
    found: list[Tensor] = []
    for item in items:
        found += _tensors(item) if isinstance(item, list | tuple) else [item] if isinstance(item, Tensor) else []
    return found


def _axes(item: Tensor) -> Sequence[int]:
    """Return the axes along which a constant is repeated over the batch."""
    return [axis for axis, extent in enumerate(item.shape) if extent and extent % BATCH == 0]


def _row(item: Tensor) -> Tensor:
    for axis in _axes(item):
        if item.stride(axis) != 0:
            raise NetworkRefused("unsupported-operator", "a constant that depends on the batch")
        item = item.narrow(axis, 0, 1)
    return item
