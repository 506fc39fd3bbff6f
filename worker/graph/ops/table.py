"""The registry behind the op table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from worker.graph.build import Builder, Value
from worker.graph.errors import NetworkRefused
from worker.graph.labels import Flow


class Grid(StrEnum):
    """What an op does to the quantization grid of its input."""

    new = "new"  #: its output needs a quantizer of its own
    fuse = "fuse"  #: an activation that a runtime fuses into the producer: the quantizer moves behind it
    none = "none"  #: its output is no real number: truth values
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
    outputs: int = 1

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

    def has(self, index: int) -> bool:
        """Tell whether an input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def ints(self, index: int, attribute: str) -> list[int] | None:
        """Return integers given as an attribute (older opsets) or as a constant input (newer ones)."""
        tensor = self.constant(index)
        if tensor is not None:
            return [int(item) for item in tensor.flatten().tolist()]
        found = self.attributes.get(attribute)
        return None if found is None else [int(item) for item in found]


Values = Value | Sequence[Value | None]
"""What a reader returns: one value, or one per output of the node (None: not available)."""


class ReadOnnx(Protocol):
    """Builds the canonical node(s) of an ONNX node."""

    def __call__(self, builder: Builder, call: OnnxCall) -> Values: ...


@dataclass(frozen=True)
class AtenCall:
    """One aten call as a reader sees it: arguments by the names of the operator's schema."""

    target: str
    name: str
    inputs: dict[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """Return an argument, or the default where it is absent or None."""
        found = self.inputs.get(key)
        return default if found is None else found

    def node(self, key: str = "self") -> fx.Node:
        """Return an argument that must depend on the network's input."""
        item = self.inputs.get(key)
        if not isinstance(item, fx.Node):
            raise refuse(self.name, f"{self.target}: argument {key!r} must not be constant")
        return item

    def constant(self, key: str) -> Tensor | None:
        """Return a tensor argument that must be a constant, or None where it is absent."""
        item = self.inputs.get(key)
        if isinstance(item, fx.Node):
            raise refuse(self.name, f"{self.target}: argument {key!r} must be constant")
        return None if item is None else torch.as_tensor(item)


class ReadAten(Protocol):
    """Builds the canonical node(s) of an aten call."""

    def __call__(self, builder: Builder, call: AtenCall) -> Values: ...


class Writer(Protocol):
    """What an op needs to write itself to ONNX; every method that adds something returns the added tensor's name."""

    module: fx.GraphModule

    def emit(self, op_type: str, inputs: Sequence[str], name: str, *, output: int = 0, **attributes: Any) -> str:
        """Add a node of which one output is used (the `output`-th)."""
        ...

    def weight(self, layer: str, tensor: Tensor, axis: int = 0) -> str:
        """Add a layer's weight operand as the ONNX node takes it; its output channels lie along `axis`."""
        ...

    def matrix(self, layer: str, tensor: Tensor, order: Sequence[int]) -> str:
        """Add a recurrent layer's weight matrix with its gates (parts of its rows) in another order."""
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

    def shape(self, node: Any) -> tuple[int, ...]:
        """Return the shape of a node's value at batch 1."""
        ...

    def dtype(self, node: Any) -> torch.dtype:
        """Return the dtype of a node's value."""
        ...

    def rank(self, node: Any) -> int:
        """Return the number of dimensions of a node's value."""
        ...


Write = Callable[[Writer, fx.Node, Sequence[str]], str]


class Cut(Protocol):
    """What slicing knows about one node: which columns of each dimension stay."""

    def kept(self, side: str) -> Tensor:
        """Return the kept columns of the leaf's `out`, `in` or `param` dimension, or of its `value`."""
        ...

    def axis(self) -> int:
        """Return the channel axis of the leaf's value."""
        ...

    def source(self) -> tuple[int, Tensor]:
        """Return channel axis and kept columns of the value the leaf reads."""
        ...


Tensors = Mapping[str, Tensor]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Leaf:
    """How a leaf is cut and stored.

    `cut(leaf, cut)` changes a shallow copy in place; `options` and `tensors` name the attributes a checkpoint keeps;
    `make(options, tensors)` is the inverse: options hold the leaf's class name as `kind` as well, tensors that the leaf
    lacks are absent.
    """

    cut: Callable[[Any, Cut], None]
    make: Callable[[Options, Tensors], nn.Module]
    options: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Op:
    """One entry: everything tightfit knows about an op.

    `target` is the canonical function, or the leaf classes of an op with weights or sizes (which then has a `leaf`).
    `flow` says how channel labels pass, `grid` what happens to the quantization grid. `unsigned` tells that its output
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
    leaf: Leaf | None = None


OPS: dict[Any, Op] = {}
ONNX: dict[str, ReadOnnx] = {}
ATEN: dict[str, ReadAten] = {}


def register(op: Op) -> Op:
    """Enter an op into the table. Raises ValueError where another entry already stands."""
    targets = op.target if isinstance(op.target, tuple) else (op.target,)
    taken = [key for held, keys in ((OPS, targets), (ONNX, op.onnx), (ATEN, op.aten)) for key in keys if key in held]
    if taken:
        raise ValueError(f"{op.name}: the table has {taken} already")
    OPS.update(dict.fromkeys(targets, op))
    ONNX.update(op.onnx)
    ATEN.update(op.aten)
    return op


def by_onnx_type(op_type: str) -> ReadOnnx | None:
    """Return the reader of an ONNX op type, or None where the table has none."""
    return ONNX.get(op_type)


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


def refuse(name: str, why: str) -> NetworkRefused:
    """Return the refusal of one node that uses an op in a way that is not read."""
    error = {"pointer": f"/graph/{name}", "code": "unsupported-operator", "detail": why}
    return NetworkRefused("unsupported-operator", f"{name!r}: {why}", [error])
