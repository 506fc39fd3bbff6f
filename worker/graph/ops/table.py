"""The registry behind the op table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from worker.graph.build import Builder, Value
from worker.graph.errors import NetworkRefused


class Flow(Enum):
    """How channel labels flow through an op."""

    produce = "produce"  #: new output channels from all input channels (convolution, linear)
    same = "same"  #: one input, channels unchanged
    join = "join"  #: element-wise over several inputs: their channels are tied
    concat = "concat"
    flatten = "flatten"
    freeze = "freeze"  #: unknown flow: input and output channels must stay


class Grid(StrEnum):
    """What an op does to the quantization grid of its input."""

    new = "new"  #: its output needs a quantizer of its own
    fuse = "fuse"  #: an activation that a runtime fuses into the producer: the quantizer moves behind it
    keep = "keep"  #: values are a subset or a re-ordering of the input's: the producer's grid passes on


@dataclass(frozen=True)
class OnnxCall:
    """One ONNX node as a reader sees it. `input_uses` counts, per input, the readers of its value."""

    op_type: str
    name: str
    inputs: tuple[Value | None, ...]
    attributes: dict[str, Any]
    module_name: str
    input_uses: tuple[int, ...] = ()
    opset: int = 13

    def value(self, index: int) -> fx.Node:
        """Return an input that must depend on the network's input."""
        item = self.inputs[index] if index < len(self.inputs) else None
        if not isinstance(item, fx.Node):
            raise NetworkRefused("invalid-graph", f"{self.op_type} {self.name!r}: input {index} must not be constant")
        return item

    def constant(self, index: int) -> Tensor | None:
        """Return an input that must be a constant, or None where it is absent."""
        item = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(item, fx.Node):
            raise NetworkRefused(
                "unsupported-operator", f"{self.op_type} {self.name!r}: input {index} must be constant"
            )
        return item

    def ints(self, index: int, attribute: str) -> list[int] | None:
        """Return integers given as an attribute (older opsets) or as a constant input (newer ones)."""
        tensor = self.constant(index)
        if tensor is not None:
            return [int(item) for item in tensor.flatten().tolist()]
        found = self.attributes.get(attribute)
        return None if found is None else [int(item) for item in found]


class ReadOnnx(Protocol):
    """Builds the canonical node(s) of an ONNX node and returns its value."""

    def __call__(self, builder: Builder, call: OnnxCall) -> Value: ...


ReadAten = Callable[[Builder, str, list[Any]], Value]


class Writer(Protocol):
    """What an op needs to write itself to ONNX; every method that adds something returns the added tensor's name."""

    module: fx.GraphModule

    def emit(self, op_type: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output."""
        ...

    def weight(self, layer: str, tensor: Tensor) -> str:
        """Add a layer's weight operand."""
        ...

    def bias(self, layer: str, tensor: Tensor) -> str:
        """Add a layer's bias operand."""
        ...

    def constant(self, tensor: Tensor, name: str) -> str:
        """Add an initializer."""
        ...

    def scalar(self, value: float, name: str) -> str:
        """Add a float32 scalar."""
        ...

    def integers(self, values: Sequence[int], name: str) -> str:
        """Add an int64 vector."""
        ...

    def rank(self, node: Any) -> int:
        """Return the number of dimensions of a node's value."""
        ...


Write = Callable[[Writer, fx.Node, Sequence[str]], str]


@dataclass(frozen=True)
class Op:
    """One entry: everything tightfit knows about an op.

    `target` is the canonical function, or the module classes of a parametric op. `unsigned` tells that its output
    can't be negative whatever its input.
    """

    name: str
    target: Any
    flow: Flow
    grid: Grid
    write: Write
    onnx: dict[str, ReadOnnx] = field(default_factory=dict)
    aten: dict[str, ReadAten] = field(default_factory=dict)
    unsigned: bool = False


OPS: dict[Any, Op] = {}
_ONNX: dict[str, ReadOnnx] = {}
ATEN: dict[str, ReadAten] = {}


def register(op: Op) -> Op:
    """Enter an op into the table."""
    for target in op.target if isinstance(op.target, tuple) else (op.target,):
        OPS[target] = op
    _ONNX.update(op.onnx)
    ATEN.update(op.aten)
    return op


def by_onnx_type(op_type: str) -> ReadOnnx | None:
    """Return the reader of an ONNX op type, or None where the table has none."""
    return _ONNX.get(op_type)


def op_of(module: fx.GraphModule, node: fx.Node) -> Op | None:
    """Return the table's entry for a node (None for placeholders, constants and the output)."""
    if node.op == "call_module":
        return OPS[type(module.get_submodule(str(node.target)))]
    if node.op == "call_function":
        return OPS[node.target]
    return None


def module_of(root: nn.Module, node: fx.Node) -> nn.Module:
    """Return the leaf module a call_module node calls."""
    return root.get_submodule(str(node.target))


def scalar(value: Any) -> float:
    """Return a Python number from a number or a one-element constant."""
    return float(value.item()) if isinstance(value, torch.Tensor) else float(value)
