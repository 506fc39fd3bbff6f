"""The ONNX reader: protobuf in, canonical graph out, nothing executed, nothing opened but the uploaded bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx

from app.domain.zip_laws import Buffer
from worker.graph.build import Builder, Value, identifier
from worker.graph.errors import NetworkRefused, unsupported
from worker.graph.folding import FOLDS, fold
from worker.graph.ops import OnnxCall, by_onnx_type, read_onnx_call
from worker.graph.ops.table import Values
from worker.graph.weights import Held, onnx_weights, replaced
from worker.graph.wire_onnx import check_wire

MIN_OPSET = 11
MAX_NODES = 20_000
MAX_PARAMETERS = 500_000_000
MAX_INPUTS = 16
_INPUT_DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.BOOL: torch.bool,
}


def read_onnx(data: Buffer, weights: Mapping[str, Tensor] | None = None) -> fx.GraphModule:
    """Return the canonical graph of a serialized ONNX model; `weights` take the place of its own, by name.

    Raises NetworkRefused (invalid-onnx, external-data-refused, unsupported-operator, model-too-large, invalid-graph,
    weights-mismatch).
    """
    model = _parse(data)
    _check(model)
    return _Reader(model.graph, _opset(model), weights).read()


def _parse(data: Buffer) -> onnx.ModelProto:
    check_wire(data)
    try:
        model = onnx.ModelProto.FromString(data[:])
    except Exception as error:  # protobuf raises its own, backend-dependent, error classes
        raise NetworkRefused("invalid-onnx", f"not an ONNX model: {str(error)[:200]}") from error
    if not model.graph.node or not model.opset_import:
        raise NetworkRefused("invalid-onnx", "the file holds no graph with nodes")
    if not model.graph.output:
        raise NetworkRefused("invalid-graph", "the network has no output")
    return model


def _check(model: onnx.ModelProto) -> None:
    graph = model.graph
    if len(graph.node) > MAX_NODES:
        raise NetworkRefused("model-too-large", f"{len(graph.node)} nodes; at most {MAX_NODES} are read")
    opset = _opset(model)
    if opset < MIN_OPSET:
        raise NetworkRefused("invalid-onnx", f"opset {opset}; at least {MIN_OPSET} is needed")
    outside = [t.name for t in _tensors(graph) if t.external_data or t.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise NetworkRefused("external-data-refused", f"weights must be inside the file; outside: {outside[:5]}")
    if model.functions:
        names = Counter(function.name for function in model.functions)
        raise unsupported(dict(names), [(function.name, "local function") for function in model.functions])
    unknown = [(node.name or "".join(node.output[:1]), _type(node)) for node in graph.node if not _known(node)]
    if unknown:
        raise unsupported(dict(Counter(kind for _, kind in unknown)), unknown)


def _opset(model: onnx.ModelProto) -> int:
    return max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a graph, those of attributes and of inner graphs included (their depth is bounded)."""
    sparse = list(graph.sparse_initializer)
    yield from graph.initializer
    for attribute in (item for node in graph.node for item in node.attribute):
        yield attribute.t
        yield from attribute.tensors
        sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
        for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
            yield from _tensors(inner)
    for item in sparse:
        yield from (item.values, item.indices)


def _type(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _known(node: onnx.NodeProto) -> bool:
    has_graph = any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)
    return not has_graph and (_type(node) in FOLDS or by_onnx_type(_type(node)) is not None)


class _Reader:
    """One pass over the nodes in file order (ONNX demands topological order)."""

    def __init__(self, graph: onnx.GraphProto, opset: int, weights: Mapping[str, Tensor] | None = None) -> None:
        self.graph = graph
        self.weights = weights
        self.opset = opset
        self.folded = 0
        self.builder = Builder()
        self.values: dict[str, Value] = {}
        self.uses = Counter(name for node in graph.node for name in node.input)
        self.uses.update(output.name for output in graph.output)

    def read(self) -> fx.GraphModule:
        self._initializers()
        self._inputs()
        for node in self.graph.node:
            self._node(node)
        self.builder.output(*(self._value(output.name, "output") for output in self.graph.output))
        return self.builder.finish()

    def _initializers(self) -> None:
        held = {proto.name: _tensor(proto) for proto in self.graph.initializer}
        total = sum(tensor.numel() for tensor in held.values())
        if total > MAX_PARAMETERS:
            raise NetworkRefused("model-too-large", f"{total} parameters; at most {MAX_PARAMETERS} are read")
        if self.weights is not None:
            held = replaced(Held(held, onnx_weights(self.graph.node, held)), self.weights)
        self.values.update(held)

    def _inputs(self) -> None:
        real = [item for item in self.graph.input if item.name not in self.values]
        if not 1 <= len(real) <= MAX_INPUTS:
            raise NetworkRefused("unsupported-operator", f"{len(real)} inputs; 1 to {MAX_INPUTS} are read")
        batches = set()
        for item in real:
            tensor = item.type.tensor_type
            sizes = [dim.dim_value for dim in tensor.shape.dim]
            dtype = _INPUT_DTYPES.get(tensor.elem_type)
            if dtype is None or not sizes or any(size < 1 for size in sizes[1:]) or sizes[0] < 0:
                raise NetworkRefused(
                    "dynamic-shape-unsupported",
                    f"input {item.name!r} must be float32 or integer with every dimension but the batch fixed; "
                    f"found {sizes}",
                )
            batches.add(sizes[0] or None)
            self.values[item.name] = self.builder.input(item.name, sizes[1:], sizes[0] or None, dtype)
        if len(batches) > 1:
            raise NetworkRefused("dynamic-shape-unsupported", f"inputs with different batches: {batches}")

    def _node(self, node: onnx.NodeProto) -> None:
        inputs = tuple(self._value(name, node.name) if name else None for name in node.input)
        call = OnnxCall(
            node.op_type,
            node.name or node.output[0],
            inputs,
            {attribute.name: _attribute(attribute) for attribute in node.attribute},
            _module_name(node),
            tuple(self.uses[name] for name in node.input),
            self.opset,
            sum(self.uses[name] > 0 for name in node.output),
        )
        found: Values | None = fold(self.builder, call)
        if found is None:
            if by_onnx_type(node.op_type) is None:
                raise unsupported({node.op_type: 1}, [(call.name, node.op_type)])
            found = self._guarded(call)
        values = [found] if isinstance(found, Tensor | fx.Node) else found
        for output, value in zip(node.output, values, strict=False):
            if output and value is not None:
                self._bind(output, call, value)

    def _bind(self, output: str, call: OnnxCall, value: Value) -> None:
        """Give a node's value its name; a value passed on unchanged has the readers of both its names."""
        if output in self.values:
            raise NetworkRefused("invalid-graph", f"two nodes produce {output!r}")
        if isinstance(value, Tensor):
            self.folded += value.untyped_storage().nbytes() // value.itemsize
            if self.folded > MAX_PARAMETERS:
                raise NetworkRefused("model-too-large", f"constants fold to more than {MAX_PARAMETERS} elements")
        for item, uses in zip(call.inputs, call.input_uses, strict=True):
            if item is value:
                self.uses[output] += uses - 1
        self.values[output] = value

    def _guarded(self, call: OnnxCall) -> Values:
        try:
            return read_onnx_call(self.builder, call)
        except NetworkRefused:
            raise
        except (KeyError, IndexError, ValueError, TypeError, RuntimeError) as error:
            raise NetworkRefused("invalid-graph", f"{call.op_type} {call.name!r}: {str(error)[:200]}") from error

    def _value(self, name: str, reader: str) -> Value:
        if name not in self.values:
            raise NetworkRefused("invalid-graph", f"{reader!r} reads {name!r}, which nothing before it produces")
        return self.values[name]


def _tensor(proto: onnx.TensorProto) -> Tensor:
    if min(proto.dims, default=0) < 0:
        raise NetworkRefused("invalid-tensor", f"initializer {proto.name!r} has a negative size")
    try:
        array = np.array(numpy_helper.to_array(proto))
        return torch.from_numpy(array)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise NetworkRefused("invalid-tensor", f"initializer {proto.name!r}: {str(error)[:200]}") from error


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return _tensor(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [item.decode("utf-8", "replace") for item in value]
    return value


def _module_name(node: onnx.NodeProto) -> str:
    """Name a parametric op after its weight ("layer1.0.conv1.weight" -> layer1_0_conv1), else after the node."""
    if len(node.input) > 1 and node.input[1].endswith(".weight"):
        return identifier(node.input[1].removesuffix(".weight"))
    return identifier(node.name or node.output[0])
