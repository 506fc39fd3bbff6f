"""Writing a canonical graph to ONNX through the op table; subclasses hook in to quantize."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from app.domain.opsets import DEFAULT
from worker.graph.extents import BATCH, holds_batch, inputs_of, outputs_of, values_of
from worker.graph.operands import operands
from worker.graph.ops import op_of
from worker.graph.opsets import rewriting

_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.bool: TensorProto.BOOL,
}


class OnnxWriter:
    """Walks a canonical graph once and emits ONNX nodes with deterministic names and a dynamic batch.

    The hooks `weight`, `bias` and `produced` return the tensor name that consumers shall read; the base class writes
    float32 initializers and lets every value through. `opset` is `app.domain.opsets.LOWEST` or more; operators that are
    younger than it are written by their parts.
    """

    def __init__(self, module: fx.GraphModule, opset: int = DEFAULT) -> None:
        self.module = module
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._names: set[str] = set()
        self._inputs: dict[str, str] = {}  # by node, the name that the user's file gave the input
        self._values = values_of(module, BATCH)

    def weight(self, layer: str, tensor: Tensor, axis: int = 0) -> str:
        """Return the name of a layer's weight operand, its output channels along `axis`."""
        return self.constant(tensor, f"{layer}.weight")

    def matrix(self, layer: str, tensor: Tensor, order: Sequence[int]) -> str:
        """Return the name of a recurrent layer's weight matrix, its gates (parts of its rows) re-ordered."""
        parts = tensor.chunk(len(order))
        return self.constant(torch.cat([parts[index] for index in order]), layer)

    def bias(self, layer: str, tensor: Tensor) -> str:
        """Return the name of a layer's bias operand."""
        return self.constant(tensor, f"{layer}.bias")

    def produced(self, node: str, value: str) -> str:
        """Return the name under which consumers read what `node` produced."""
        return value

    def emit(self, op_type: str, inputs: Sequence[str], name: str, *, output: int = 0, **attributes: Any) -> str:
        """Add a node whose `output`-th result is called `name` (made unique) and return that result's name."""
        if rewrite := rewriting(op_type, self.opset, inputs, attributes):
            return rewrite(self, inputs, name, attributes)
        result = self._unique(name)
        results = [*[""] * output, result]
        self.nodes.append(helper.make_node(op_type, list(inputs), results, name=f"{result}/{op_type}", **attributes))
        return result

    def constant(self, tensor: Tensor | np.ndarray[Any, Any], name: str) -> str:
        """Add an initializer and return its name."""
        array = tensor.cpu().contiguous().numpy() if isinstance(tensor, Tensor) else np.ascontiguousarray(tensor)
        unique = self._unique(name)
        self.initializers.append(numpy_helper.from_array(array, unique))
        return unique

    def initializer(self, proto: onnx.TensorProto) -> str:
        """Add a ready-made initializer (for types numpy lacks) and return its name."""
        proto.name = self._unique(proto.name)
        self.initializers.append(proto)
        return str(proto.name)

    def withdrawn(self, name: str) -> np.ndarray[Any, Any]:
        """Take back an initializer that nothing reads and return its values; its name is free again."""
        found = next(item for item in reversed(self.initializers) if item.name == name)
        self.initializers.remove(found)
        self._names.remove(name)
        return np.asarray(numpy_helper.to_array(found))

    def scalar(self, value: float, name: str) -> str:
        """Add a float32 scalar."""
        return self.constant(np.array(value, dtype=np.float32), name)

    def integers(self, values: Sequence[int], name: str) -> str:
        """Add an int64 vector."""
        return self.constant(np.array(values, dtype=np.int64), name)

    def shape(self, node: Any) -> tuple[int, ...]:
        """Return the shape of a node's value at batch 1."""
        return tuple(extent // BATCH if holds_batch(extent) else extent for extent in self._values[node.name].shape)

    def dtype(self, node: Any) -> torch.dtype:
        """Return the dtype of a node's value."""
        return self._values[node.name].dtype

    def rank(self, node: Any) -> int:
        """Return the number of dimensions of a node's value."""
        return len(self.shape(node))

    def write(self) -> bytes:
        """Return the serialized model; equal graphs give equal bytes."""
        values: dict[str, str] = {}
        for node in self.module.graph.nodes:
            if node.op != "output":
                values[node.name] = self.produced(node.name, self._node(node, values))
        outputs = outputs_of(self.module)
        names = ["output"] if len(outputs) == 1 else [f"output_{index}" for index in range(len(outputs))]
        results = [self.emit("Identity", [values[n.name]], name) for n, name in zip(outputs, names, strict=True)]
        return bytes(self._model(results).SerializeToString(deterministic=True))

    def _node(self, node: fx.Node, values: dict[str, str]) -> str:
        if node.op == "placeholder":
            self._inputs[node.name] = self._unique(str(node.meta.get("label") or node.name))
            return self._inputs[node.name]
        if node.op == "get_attr":
            return self.constant(getattr(self.module, str(node.target)).detach(), node.name)
        op = op_of(self.module, node)
        assert op is not None
        return op.write(self, node, [values[source.name] for source in operands(node)])

    def _model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        inputs = [(self._inputs[item.name], self._values[item.name]) for item in inputs_of(self.module)]
        results = [(name, self._values[node.name]) for name, node in zip(outputs, outputs_of(self.module), strict=True)]
        graph = helper.make_graph(
            self.nodes,
            "tightfit",
            [self._value_info(name, value) for name, value in inputs],
            [self._value_info(name, value) for name, value in results],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        version = helper.find_min_ir_version_for(opsets)
        return helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="tightfit")

    def sizes(self, value: Tensor) -> list[int | str | None]:
        """Return the extents that the file declares of an input or output."""
        return ["batch" if extent == BATCH else None if holds_batch(extent) else extent for extent in value.shape]

    def _value_info(self, name: str, value: Tensor) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, _TYPES[value.dtype], self.sizes(value))

    def _unique(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self._names:
            number += 1
            name = f"{wanted}_{number}"
        self._names.add(name)
        return name


def write_float(module: fx.GraphModule, opset: int = DEFAULT) -> bytes:
    """Return a float32 ONNX file of a canonical graph."""
    return OnnxWriter(module, opset).write()
