"""Folding constants and shape arithmetic while reading ONNX, so that only real computation reaches the graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from worker.graph.build import Builder, Value
from worker.graph.errors import NetworkRefused
from worker.graph.extents import holds_batch
from worker.graph.ops import OnnxCall
from worker.graph.ops.moves import first_of

Fold = Callable[[OnnxCall, list[Tensor]], Tensor]
MAX_FOLDED = 1 << 24
END = 2**31

_DTYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}


def _constant(call: OnnxCall, inputs: list[Tensor]) -> Tensor:
    for key, dtype in (("value", None), ("value_float", torch.float32), ("value_int", torch.int64)):
        if key in call.attributes:
            found = call.attributes[key]
            return found if isinstance(found, Tensor) else torch.tensor(found, dtype=dtype)
    for key, dtype in (("value_floats", torch.float32), ("value_ints", torch.int64)):
        if key in call.attributes:
            return torch.tensor(list(call.attributes[key]), dtype=dtype)
    raise NetworkRefused("unsupported-operator", f"Constant {call.name!r} of another kind than number or tensor")


def _constant_of_shape(call: OnnxCall, inputs: list[Tensor]) -> Tensor:
    value = call.attributes.get("value", torch.zeros(1))
    return _expanded(value.reshape([1] * inputs[0].numel()), inputs[0])


def _expanded(value: Tensor, sizes: Tensor) -> Tensor:
    """Return a view: repeated over the batch it would not fit into memory, so it is never written out."""
    wanted = [int(size) for size in sizes.tolist()]
    rank = max(len(wanted), value.dim())
    wanted = [1] * (rank - len(wanted)) + wanted
    whole = value.reshape([1] * (rank - value.dim()) + list(value.shape)) if value.dim() < rank else value
    return whole.expand([size if size != 1 else -1 for size in wanted])


def _range(call: OnnxCall, inputs: list[Tensor]) -> Tensor:
    start, stop, step = (item.reshape(()).item() for item in inputs)
    if step == 0 or (stop - start) / step > MAX_FOLDED:
        raise NetworkRefused("model-too-large", f"Range {call.name!r}")
    return torch.arange(start, stop, step, dtype=inputs[0].dtype)


def _tril(call: OnnxCall, inputs: list[Tensor]) -> Tensor:
    offset = int(inputs[1]) if len(inputs) > 1 else 0
    return inputs[0].triu(offset) if call.attributes.get("upper", 1) else inputs[0].tril(offset)


def _axes(call: OnnxCall, inputs: list[Tensor]) -> list[int]:
    given = inputs[1].tolist() if len(inputs) > 1 else call.attributes.get("axes", [])
    return [int(axis) for axis in given]


def _unsqueeze(call: OnnxCall, inputs: list[Tensor]) -> Tensor:
    out = inputs[0]
    for axis in sorted(_axes(call, inputs)):
        out = out.unsqueeze(axis)
    return out


def _squeeze(call: OnnxCall, inputs: list[Tensor]) -> Tensor:
    axes = _axes(call, inputs)
    return inputs[0].squeeze(tuple(axes)) if axes else inputs[0].squeeze()


def _gather(call: OnnxCall, inputs: list[Tensor]) -> Tensor:
    axis = int(call.attributes.get("axis", 0)) % max(1, inputs[0].dim())
    index = inputs[1].long()
    index = torch.where(index < 0, index + inputs[0].shape[axis], index)
    picked = inputs[0].index_select(axis, index.reshape(-1))
    return picked.reshape((*inputs[0].shape[:axis], *index.shape, *inputs[0].shape[axis + 1 :]))


def _slice(call: OnnxCall, inputs: list[Tensor]) -> Tensor:
    starts, ends = inputs[1].tolist(), inputs[2].tolist()
    axes = inputs[3].tolist() if len(inputs) > 3 else list(range(len(starts)))
    steps = inputs[4].tolist() if len(inputs) > 4 else [1] * len(starts)
    out = inputs[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first = first_of(int(start), int(step), out.shape[axis])
        begin, stop, stride = slice(first, int(end), int(step)).indices(out.shape[axis])
        if stride > 0:
            before = (slice(None),) * (int(axis) % out.dim())
            out = out[(*before, slice(begin, stop, stride))]
        else:
            out = out.index_select(axis, torch.arange(begin, stop, stride))
    return out


def _cast(call: OnnxCall, inputs: list[Tensor]) -> Tensor:
    dtype = _DTYPES.get(int(call.attributes["to"]))
    if dtype is None:
        raise NetworkRefused("unsupported-operator", f"Cast {call.name!r} to type {call.attributes['to']}")
    if _is_endless(inputs[0]):
        first = inputs[0].as_strided([1 if holds_batch(s) else s for s in inputs[0].shape], inputs[0].stride())
        return first.to(dtype).expand(inputs[0].shape)
    return inputs[0].to(dtype)


def _divide(call: OnnxCall, inputs: list[Tensor]) -> Tensor:
    if inputs[0].is_floating_point():
        return inputs[0] / inputs[1]
    return torch.div(inputs[0], inputs[1], rounding_mode="trunc")


def _reshape(call: OnnxCall, inputs: list[Tensor]) -> Tensor:
    sizes = [inputs[0].shape[i] if s == 0 else int(s) for i, s in enumerate(inputs[1].tolist())]
    return inputs[0].reshape(sizes)


FOLDS: dict[str, Fold] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Gather": _gather,
    "Slice": _slice,
    "Cast": _cast,
    "Identity": lambda call, inputs: inputs[0],
    "Shape": lambda call, inputs: torch.tensor(inputs[0].shape),
    "Concat": lambda call, inputs: torch.cat(inputs, int(call.attributes["axis"])),
    "Add": lambda call, inputs: inputs[0] + inputs[1],
    "Sub": lambda call, inputs: inputs[0] - inputs[1],
    "Mul": lambda call, inputs: inputs[0] * inputs[1],
    "Div": _divide,
    "Reshape": _reshape,
    "Transpose": lambda call, inputs: inputs[0].permute(
        call.attributes.get("perm", tuple(reversed(range(inputs[0].dim()))))
    ),
    "Expand": lambda call, inputs: _expanded(*inputs),
    "Range": _range,
    "Trilu": _tril,
    "Where": lambda call, inputs: torch.where(inputs[0].bool(), inputs[1], inputs[2]),
    "Equal": lambda call, inputs: inputs[0] == inputs[1],
    "Less": lambda call, inputs: inputs[0] < inputs[1],
    "Greater": lambda call, inputs: inputs[0] > inputs[1],
    "LessOrEqual": lambda call, inputs: inputs[0] <= inputs[1],
    "GreaterOrEqual": lambda call, inputs: inputs[0] >= inputs[1],
    "Not": lambda call, inputs: ~inputs[0].bool(),
    "And": lambda call, inputs: inputs[0] & inputs[1],
    "Or": lambda call, inputs: inputs[0] | inputs[1],
    "Neg": lambda call, inputs: -inputs[0],
    "Abs": lambda call, inputs: inputs[0].abs(),
    "Sqrt": lambda call, inputs: inputs[0].sqrt(),
    "Reciprocal": lambda call, inputs: 1 / inputs[0],
    "Floor": lambda call, inputs: inputs[0].floor(),
    "Ceil": lambda call, inputs: inputs[0].ceil(),
    "Exp": lambda call, inputs: inputs[0].exp(),
    "Pow": lambda call, inputs: inputs[0] ** inputs[1],
    "Mod": lambda call, inputs: (torch.fmod if call.attributes.get("fmod") else torch.remainder)(*inputs),
    "Min": lambda call, inputs: torch.stack(torch.broadcast_tensors(*inputs)).amin(0),
    "Max": lambda call, inputs: torch.stack(torch.broadcast_tensors(*inputs)).amax(0),
    "CastLike": lambda call, inputs: inputs[0].to(inputs[1].dtype),
    "Size": lambda call, inputs: torch.tensor(inputs[0].numel()),
    "ReduceProd": lambda call, inputs: inputs[0].prod().reshape(1 if call.attributes.get("keepdims", 1) else ()),
}


def fold(builder: Builder, call: OnnxCall) -> Value | None:
    """Return the value of a node that needs no run-time computation, or None where it does.

    `Shape` of a run-time value folds too: its first entry becomes the stand-in for the batch size.
    """
    if call.op_type not in FOLDS:
        return None
    if call.op_type == "Shape" and isinstance(call.inputs[0], fx.Node):
        sizes = builder.shape(call.inputs[0])
        return torch.tensor(sizes[slice(int(call.attributes.get("start", 0)), int(call.attributes.get("end", END)))])
    if any(isinstance(item, fx.Node) for item in call.inputs):
        return None
    inputs = [item for item in call.inputs if isinstance(item, Tensor)]
    if call.op_type not in VIEWS and any(_is_endless(item) for item in inputs):
        raise NetworkRefused("unsupported-operator", f"{call.op_type} {call.name!r} on constants made for every batch")
    try:
        found = FOLDS[call.op_type](call, inputs)
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
        raise NetworkRefused("invalid-graph", f"{call.op_type} {call.name!r}: {str(error)[:200]}") from error
    if inputs and not _is_endless(found) and found.numel() > max(MAX_FOLDED, *(item.numel() for item in inputs)):
        raise NetworkRefused("model-too-large", f"{call.op_type} {call.name!r} folds to {found.numel()} elements")
    return found


VIEWS = frozenset({"Shape", "Identity", "Expand", "Transpose", "Unsqueeze", "Squeeze", "Constant", "Slice", "Cast"})
"""What leaves a constant that is repeated over the batch unwritten."""


def _is_endless(item: Tensor) -> bool:
    """Tell whether a constant is repeated over the batch."""
    return any(holds_batch(extent) for extent in item.shape)
