"""Writing a canonical graph to ONNX through the op table; subclasses hook in to quantize."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from worker.graph.ops import op_of

OPSET = 21
IR_VERSION = 10


class OnnxWriter:
    """Walks a canonical graph once and emits ONNX nodes with deterministic names and a dynamic batch.

    The hooks `weight`, `bias` and `produced` return the tensor name that consumers shall read; the base class writes
    float32 initializers and lets every value through.
    """

    def __init__(self, module: fx.GraphModule, input_shape: Sequence[int], opset: int = OPSET) -> None:
        self.module = module
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._input_shape = tuple(input_shape)
        self._names: set[str] = set()
        self._shapes = shapes_of(module, self._input_shape)

    def weight(self, layer: str, tensor: Tensor) -> str:
        """Return the name of a layer's weight operand."""
        return self.constant(tensor, f"{layer}.weight")

    def bias(self, layer: str, tensor: Tensor) -> str:
        """Return the name of a layer's bias operand."""
        return self.constant(tensor, f"{layer}.bias")

    def produced(self, node: str, value: str) -> str:
        """Return the name under which consumers read what `node` produced."""
        return value

    def emit(self, op_type: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output called `name` (made unique) and return the output's name."""
        output = self._unique(name)
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=f"{output}/{op_type}", **attributes))
        return output

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

    def scalar(self, value: float, name: str) -> str:
        """Add a float32 scalar."""
        return self.constant(np.array(value, dtype=np.float32), name)

    def integers(self, values: Sequence[int], name: str) -> str:
        """Add an int64 vector."""
        return self.constant(np.array(values, dtype=np.int64), name)

    def shape(self, node: Any) -> tuple[int, ...]:
        """Return the shape of a node's value at batch 1."""
        return self._shapes[node.name]

    def rank(self, node: Any) -> int:
        """Return the number of dimensions of a node's value."""
        return len(self.shape(node))

    def write(self) -> bytes:
        """Return the serialized model; equal graphs give equal bytes."""
        values: dict[str, str] = {}
        output = ""
        for node in self.module.graph.nodes:
            if node.op == "output":
                output = values[node.args[0].name]
            else:
                values[node.name] = self.produced(node.name, self._node(node, values))
        model = self._model(self.emit("Identity", [output], "output"))
        return bytes(model.SerializeToString(deterministic=True))

    def _node(self, node: fx.Node, values: dict[str, str]) -> str:
        if node.op == "placeholder":
            return self._unique(str(node.name))
        if node.op == "get_attr":
            return self.constant(getattr(self.module, str(node.target)).detach(), node.name)
        op = op_of(self.module, node)
        assert op is not None
        return op.write(self, node, [values[source.name] for source in operands(node)])

    def _model(self, output: str) -> onnx.ModelProto:
        inputs = [n for n in self.module.graph.nodes if n.op == "placeholder"]
        last = next(n for n in self.module.graph.nodes if n.op == "output").args[0]
        graph = helper.make_graph(
            self.nodes,
            "tightfit",
            [_value_info(node.name, self.shape(node)) for node in inputs],
            [_value_info(output, self.shape(last))],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="tightfit")

    def _unique(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self._names:
            number += 1
            name = f"{wanted}_{number}"
        self._names.add(name)
        return name


def operands(node: fx.Node) -> list[fx.Node]:
    """Return the nodes a node reads, in order, repetitions included (x + x has two)."""
    found: list[fx.Node] = []
    fx.node.map_arg(node.args, found.append)
    return found


def write_float(module: fx.GraphModule, input_shape: Sequence[int], opset: int = OPSET) -> bytes:
    """Return a float32 ONNX file of a canonical graph."""
    return OnnxWriter(module, input_shape, opset).write()


class _ShapeRecorder(fx.Interpreter):
    """Remembers the shape of every node's value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape)
        return value


def shapes_of(module: fx.GraphModule, input_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return every node's shape at batch 1 by running the graph once on zeros of `input_shape` (without batch)."""
    recorder = _ShapeRecorder(module)
    with torch.no_grad():
        recorder.run(torch.zeros(1, *input_shape))
    return recorder.shapes


def _value_info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape[1:]])
