"""Writing for older runtimes: what the operators of the op table become in opsets that do not have their form yet.

Each entry rewrites one call as it is emitted; the last node has the call's name. Of float values ONNX Runtime fuses
LayerNormalization and Gelu back from what stands here; of quantized ones it gives each reader a DequantizeLinear of its
own first, and finds them no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Attributes = Mapping[str, Any]
AXES_AS_INPUT = ("ReduceMax", "ReduceMean", "ReduceMin")


class Emitter(Protocol):
    """What a rewriting needs of the writer."""

    opset: int

    def emit(self, op_type: str, inputs: Sequence[str], name: str, *, output: int = 0, **attributes: Any) -> str:
        """Add a node."""
        ...

    def scalar(self, value: float, name: str) -> str:
        """Add a float32 scalar."""
        ...

    def integers(self, values: Sequence[int], name: str) -> str:
        """Add an int64 vector."""
        ...

    def withdrawn(self, name: str) -> NDArray[Any]:
        """Take an initializer back and return its values."""
        ...

    def constant(self, tensor: NDArray[Any], name: str) -> str:
        """Add an initializer."""
        ...


Rewrite = Callable[[Emitter, Sequence[str], str, Attributes], str]


def _always(inputs: Sequence[str], attributes: Attributes) -> bool:
    return True


@dataclass(frozen=True)
class Newer:
    """An operator whose written form is younger than the lowest opset.

    `since` which opset there is such a form, what stands for it before, and which calls of the operator have that form.
    """

    since: int
    rewrite: Rewrite
    concerns: Callable[[Sequence[str], Attributes], bool] = _always


def rewriting(op_type: str, opset: int, inputs: Sequence[str], attributes: Attributes) -> Rewrite | None:
    """Return how a call is written at an opset that lacks its form; None where it has it."""
    found = NEWER.get(op_type)
    lacks = found is not None and opset < found.since and found.concerns(inputs, attributes)
    return found.rewrite if found is not None and lacks else None


def _reduce(op_type: str) -> Rewrite:
    """Axes are an attribute before opset 18."""

    def rewrite(to: Emitter, inputs: Sequence[str], name: str, attributes: Attributes) -> str:
        return to.emit(op_type, inputs[:1], name, axes=to.withdrawn(inputs[1]).tolist(), **attributes)

    return rewrite


def _shape(to: Emitter, inputs: Sequence[str], name: str, attributes: Attributes) -> str:
    """Part of a shape: cut out of the whole."""
    whole = to.emit("Shape", inputs, f"{name}_whole")
    bounds = [to.integers([int(attributes[end])], f"{name}_{end}") for end in ("start", "end")]
    return to.emit("Slice", [whole, *bounds], name)


def _hard_swish(to: Emitter, inputs: Sequence[str], name: str, attributes: Attributes) -> str:
    gate = to.emit("HardSigmoid", inputs, f"{name}_gate", alpha=1 / 6, beta=0.5)
    return to.emit("Mul", [inputs[0], gate], name)


def _mish(to: Emitter, inputs: Sequence[str], name: str, attributes: Attributes) -> str:
    gate = to.emit("Tanh", [to.emit("Softplus", inputs, f"{name}_plus")], f"{name}_gate")
    return to.emit("Mul", [inputs[0], gate], name)


def _gelu(to: Emitter, inputs: Sequence[str], name: str, attributes: Attributes) -> str:
    """x (1 + erf(x / sqrt 2)) / 2, or with tanh(sqrt(2 / pi) (x + 0.044715 x^3)) in place of erf."""
    x, one, half = inputs[0], to.scalar(1.0, f"{name}_one"), to.scalar(0.5, f"{name}_half")
    if attributes.get("approximate", "none") == "tanh":
        cube = to.emit("Pow", [x, to.scalar(3.0, f"{name}_three")], f"{name}_cube")
        part = to.emit("Mul", [to.scalar(0.044715, f"{name}_a"), cube], f"{name}_part")
        inner = to.emit("Add", [x, part], f"{name}_inner")
        scaled = to.emit("Mul", [to.scalar(math.sqrt(2 / math.pi), f"{name}_b"), inner], f"{name}_scaled")
        gate = to.emit("Tanh", [scaled], f"{name}_gate")
        halved = to.emit("Mul", [half, x], f"{name}_halved")
        return to.emit("Mul", [halved, to.emit("Add", [one, gate], f"{name}_raised")], name)
    scaled = to.emit("Div", [x, to.scalar(math.sqrt(2), f"{name}_root")], f"{name}_scaled")
    raised = to.emit("Add", [to.emit("Erf", [scaled], f"{name}_gate"), one], f"{name}_raised")
    return to.emit("Mul", [to.emit("Mul", [x, raised], f"{name}_twice"), half], name)


def _layer_norm(to: Emitter, inputs: Sequence[str], name: str, attributes: Attributes) -> str:
    """(x - mean) / sqrt(variance + epsilon) * scale + shift, over the last dimensions."""
    x, scale, *shift = inputs
    axes = list(range(int(attributes["axis"]), 0))
    centred = to.emit("Sub", [x, _mean(to, x, axes, f"{name}_mean")], f"{name}_centred")
    square = to.emit("Pow", [centred, to.scalar(2.0, f"{name}_two")], f"{name}_square")
    variance = _mean(to, square, axes, f"{name}_variance")
    raised = to.emit("Add", [variance, to.scalar(attributes["epsilon"], f"{name}_epsilon")], f"{name}_raised")
    normed = to.emit("Div", [centred, to.emit("Sqrt", [raised], f"{name}_deviation")], f"{name}_normed")
    if not shift:
        return to.emit("Mul", [normed, scale], name)
    return to.emit("Add", [to.emit("Mul", [normed, scale], f"{name}_scaled"), *shift], name)


def _mean(to: Emitter, value: str, axes: Sequence[int], name: str) -> str:
    return to.emit("ReduceMean", [value, to.integers(axes, f"{name}_axes")], name, keepdims=1)


def _group_norm(to: Emitter, inputs: Sequence[str], name: str, attributes: Attributes) -> str:
    """Norms of instances whose channels are the groups, then scale and shift of every channel."""
    groups = int(attributes["num_groups"])
    scale, shift = (to.withdrawn(item).reshape(-1, 1) for item in inputs[1:])
    apart = to.emit("Reshape", [inputs[0], to.integers([0, groups, -1], f"{name}_sizes")], f"{name}_apart")
    plain = [to.constant(np.full(groups, value, np.float32), f"{name}_{value}") for value in (1, 0)]
    normed = to.emit("InstanceNormalization", [apart, *plain], f"{name}_normed", epsilon=attributes["epsilon"])
    value = to.emit("Reshape", [normed, to.integers([0, len(scale), -1], f"{name}_rows")], f"{name}_channels")
    scaled = to.emit("Mul", [value, to.constant(scale, inputs[1])], f"{name}_scaled")
    shifted = to.emit("Add", [scaled, to.constant(shift, inputs[2])], f"{name}_shifted")
    return to.emit("Reshape", [shifted, to.emit("Shape", inputs[:1], f"{name}_shape")], name)


NEWER: dict[str, Newer] = {
    **{op_type: Newer(18, _reduce(op_type), lambda inputs, _: len(inputs) > 1) for op_type in AXES_AS_INPUT},
    "Gelu": Newer(20, _gelu),
    "GroupNormalization": Newer(21, _group_norm),
    "HardSwish": Newer(14, _hard_swish),
    "LayerNormalization": Newer(17, _layer_norm),
    "Mish": Newer(18, _mish),
    "Shape": Newer(15, _shape, lambda _, attributes: "start" in attributes),
}
