"""Aten calls on constants alone, and arithmetic on sizes: computed while reading."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worker.graph.errors import NetworkRefused
from worker.graph.extents import BATCH, holds_batch
from worker.graph.ops import AtenCall
from worker.graph.ops.table import Values

MAX_MADE = 1 << 24

INTEGERS: dict[str, Callable[..., Any]] = {
    "_operator.add": operator.add,
    "_operator.sub": operator.sub,
    "_operator.mul": operator.mul,
    "_operator.floordiv": operator.floordiv,
    "_operator.neg": operator.neg,
}
"""Arithmetic of symbolic sizes; the batch is a number like any other here (`BATCH`)."""


def _sizes(call: AtenCall) -> list[int]:
    return [int(size) for size in call.get("size")]


def _filled(call: AtenCall, value: Any) -> Tensor:
    """Return a view of one number: repeated over the batch it would not fit into memory."""
    dtype = call.get("dtype", torch.get_default_dtype())
    sizes = _sizes(call) if "size" in call.inputs else list(call.get("self").shape)
    return torch.full([1] * len(sizes), value, dtype=dtype).expand(sizes)


def _arange(call: AtenCall) -> Tensor:
    start, stop, step = call.get("start", 0), call.get("end"), call.get("step", 1)
    if step == 0 or (stop - start) / step > MAX_MADE or holds_batch(int(stop)):
        raise NetworkRefused("unsupported-operator", f"{call.name!r}: a range of {stop}")
    return torch.arange(start, stop, step, dtype=call.get("dtype"))


def _view(call: AtenCall) -> Tensor:
    return _self(call).reshape([int(size) for size in call.get("size", call.get("shape"))])


def _self(call: AtenCall) -> Tensor:
    return torch.as_tensor(call.get("self"))


def _other(call: AtenCall) -> Tensor:
    return torch.as_tensor(call.get("other"))


def _expand(call: AtenCall) -> Tensor:
    return _self(call).expand(_sizes(call))


def _slice(call: AtenCall) -> Tensor:
    dim = int(call.get("dim", 0)) % max(1, _self(call).dim())
    where = slice(call.get("start"), call.get("end"), call.get("step", 1))
    return _self(call)[(*(slice(None),) * dim, where)]


def _scaled(call: AtenCall) -> Tensor:
    return _other(call) * float(call.get("alpha", 1)) if call.get("alpha", 1) != 1 else _other(call)


_SAME = ("clone", "contiguous", "detach", "detach_", "lift_fresh_copy", "alias")
FOLDS: dict[str, Callable[[AtenCall], Tensor]] = {
    **{f"aten.{name}.default": _self for name in _SAME},
    "aten.zeros.default": lambda call: _filled(call, 0),
    "aten.ones.default": lambda call: _filled(call, 1),
    "aten.full.default": lambda call: _filled(call, call.get("fill_value")),
    "aten.zeros_like.default": lambda call: _filled(call, 0),
    "aten.ones_like.default": lambda call: _filled(call, 1),
    "aten.full_like.default": lambda call: _filled(call, call.get("fill_value")),
    "aten.scalar_tensor.default": lambda call: torch.tensor(call.get("s"), dtype=call.get("dtype")),
    **{f"aten.arange.{kind}": _arange for kind in ("default", "start", "start_step")},
    **{f"aten.{name}.default": _view for name in ("view", "reshape", "_unsafe_view")},
    "aten.expand.default": _expand,
    "aten.slice.Tensor": _slice,
    "aten.select.int": lambda call: _self(call).select(int(call.get("dim")), int(call.get("index"))),
    "aten.unsqueeze.default": lambda call: _self(call).unsqueeze(int(call.get("dim"))),
    "aten.squeeze.dim": lambda call: _self(call).squeeze(call.get("dim")),
    "aten.squeeze.dims": lambda call: _self(call).squeeze(call.get("dim")),
    "aten.permute.default": lambda call: _self(call).permute(call.get("dims")),
    "aten.transpose.int": lambda call: _self(call).transpose(call.get("dim0"), call.get("dim1")),
    "aten.t.default": lambda call: _self(call).t(),
    "aten.cat.default": lambda call: torch.cat(call.get("tensors"), int(call.get("dim", 0))),
    "aten.stack.default": lambda call: torch.stack(call.get("tensors"), int(call.get("dim", 0))),
    "aten.to.dtype": lambda call: _self(call).to(call.get("dtype")),
    "aten._to_copy.default": lambda call: _self(call).to(call.get("dtype")),
    "aten.triu.default": lambda call: _self(call).triu(int(call.get("diagonal", 0))),
    "aten.tril.default": lambda call: _self(call).tril(int(call.get("diagonal", 0))),
    **{
        f"aten.{name}.{kind}": function
        for kind in ("Tensor", "Scalar")
        for name, function in {
            "add": lambda call: _self(call) + _scaled(call),
            "sub": lambda call: _self(call) - _scaled(call),
            "mul": lambda call: _self(call) * _other(call),
            "div": lambda call: _self(call) / _other(call),
            "eq": lambda call: _self(call) == _other(call),
            "ne": lambda call: _self(call) != _other(call),
            "lt": lambda call: _self(call) < _other(call),
            "le": lambda call: _self(call) <= _other(call),
            "gt": lambda call: _self(call) > _other(call),
            "ge": lambda call: _self(call) >= _other(call),
        }.items()
    },
    "aten.embedding.default": lambda call: torch.as_tensor(call.get("weight"))[call.get("indices")],
    "aten.index_select.default": lambda call: _self(call).index_select(int(call.get("dim")), call.get("index")),
    "aten.pow.Tensor_Scalar": lambda call: _self(call) ** call.get("exponent"),
    "aten.pow.Scalar": lambda call: torch.pow(call.get("self"), call.get("exponent")),
    "aten.exp.default": lambda call: _self(call).exp(),
    "aten.log.default": lambda call: _self(call).log(),
    "aten.sin.default": lambda call: _self(call).sin(),
    "aten.cos.default": lambda call: _self(call).cos(),
    "aten.sqrt.default": lambda call: _self(call).sqrt(),
    "aten.rsqrt.default": lambda call: _self(call).rsqrt(),
    "aten.reciprocal.default": lambda call: 1 / _self(call),
    "aten.neg.default": lambda call: -_self(call),
    "aten.abs.default": lambda call: _self(call).abs(),
    "aten.logical_not.default": lambda call: ~_self(call).bool(),
    "aten.logical_and.default": lambda call: _self(call).bool() & _other(call).bool(),
    "aten.bitwise_not.default": lambda call: ~_self(call),
    "aten.masked_fill.Scalar": lambda call: _self(call).masked_fill(call.get("mask").bool(), call.get("value")),
    "aten.where.self": lambda call: torch.where(call.get("condition").bool(), _self(call), _other(call)),
}


def fold(call: AtenCall) -> Values:
    """Return the value of a call on constants. Raises NetworkRefused where it is not known, or not for every batch."""
    if call.target not in FOLDS:
        raise NetworkRefused("unsupported-operator", f"{call.target} on constants only ({call.name!r})")
    found = FOLDS[call.target](call)
    endless = any(extent % BATCH == 0 for extent in found.shape if extent)
    if found.numel() > MAX_MADE and not endless and found.untyped_storage().nbytes() > MAX_MADE * found.itemsize:
        raise NetworkRefused("model-too-large", f"{call.name!r} makes {found.numel()} elements")
    return found
