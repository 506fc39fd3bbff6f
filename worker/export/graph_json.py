"""A canonical graph as JSON and tensors, read back through the op table's allow-list and nothing else."""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.export.archive import CheckpointRefused
from worker.graph.extents import outputs_of
from worker.graph.leaves import Recurrent
from worker.graph.ops import OPS, Op
from worker.graph.ops.parametric import WEIGHTED
from worker.graph.ops.table import module_of

MAX_NODES = 20_000
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    op.name: target for target, op in OPS.items() if not isinstance(target, type) and callable(target)
}
LEAVES: dict[str, Op] = {target.__name__: op for target, op in OPS.items() if isinstance(target, type)}
_DTYPES = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool}


def encode(module: fx.GraphModule) -> list[dict[str, Any]]:
    """Return the graph's nodes in execution order as JSON; tensors stay where `tensors_of` finds them."""
    return [_encode_node(module, node) for node in module.graph.nodes]


def other_tensors(module: fx.GraphModule) -> dict[str, Tensor]:
    """Return what layers' records do not hold: norms that were not folded, tables, slopes, indices, constants."""
    found: dict[str, Tensor] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            found[f"{node.target}.value"] = getattr(module, str(node.target))
        elif node.op == "call_module" and not isinstance(leaf := module_of(module, node), (*WEIGHTED, Recurrent)):
            names = _held(LEAVES[type(leaf).__name__], leaf)
            found.update({tensor_key(node.name, name): attrgetter(name)(leaf).detach() for name in names})
    return found


def tensor_key(node: str, name: str) -> str:
    """Return a checkpoint's name of one of a leaf's tensors.

    A recurrent layer's matrices are layers of their own, each with its bias.
    """
    if not name.startswith("core."):
        return f"{node}.{name}"
    kind, which = name.removeprefix("core.").split("_", 1)
    return f"{node}.weight_{which}.{kind}"


def _held(op: Op, leaf: Any) -> list[str]:
    """Return the names of the tensors that a leaf really has."""
    assert op.leaf is not None
    found = []
    for name in op.leaf.tensors:
        owner: Any = leaf.core if name.startswith("core.") else leaf
        if getattr(owner, name.rsplit(".", 1)[-1], None) is not None:
            found.append(name)
    return found


def decode(nodes: Any, tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """Rebuild the graph. `tensors` holds `<leaf>.weight`, `<leaf>.bias`, ... and `<constant>.value` as float tensors.

    Raises CheckpointRefused for a node, op or tensor that does not belong.
    """
    if not isinstance(nodes, list) or not 2 <= len(nodes) <= MAX_NODES:
        raise CheckpointRefused("the graph holds no list of nodes", "invalid-graph")
    reader = _Reader(tensors)
    try:
        for node in nodes:
            reader.add(node)
        for parameter in reader.root.parameters():
            if parameter.dim() == 4:  # the layout that the simulation computes with
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        module = fx.GraphModule(reader.root, reader.graph).eval().requires_grad_(False)
        module.graph.lint()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, SyntaxError) as error:
        if isinstance(error, CheckpointRefused):
            raise
        raise CheckpointRefused(f"the graph is not sound: {error!r}", "invalid-graph") from error
    return module


class _Reader:
    """Adds one node at a time."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self._tensors = tensors
        self._nodes: dict[str, fx.Node] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        op, name = record["op"], record["name"]
        if name in self._nodes:
            raise CheckpointRefused(f"two nodes are called {name!r}", "invalid-graph")
        _check_identifier(name)
        if op == "output":
            values = tuple(self._nodes[item["node"]] for item in record["args"])
            self.graph.output(values[0] if len(values) == 1 else values)
            return
        node = self._create(op, name, record)
        if node.name != name:
            raise CheckpointRefused(f"node name {name!r} is reserved", "invalid-graph")
        self._nodes[name] = node

    def _create(self, op: str, name: str, record: Mapping[str, Any]) -> fx.Node:
        args = tuple(self._value(item) for item in record.get("args", []))
        if op == "input":
            return self._input(name, record)
        if op == "constant":
            self.root.register_buffer(name, self._tensors[f"{name}.value"])
            return self.graph.create_node("get_attr", name, name=name)
        if op in LEAVES:
            self.root.add_module(name, self._leaf(op, name, record.get("options", {})))
            return self.graph.create_node("call_module", name, args, {}, name=name)
        if op not in FUNCTIONS:
            raise CheckpointRefused(f"operator {op!r} is not in the op table", "unsupported-operator")
        kwargs = {_check_identifier(key): self._value(item) for key, item in record.get("options", {}).items()}
        return self.graph.create_node("call_function", FUNCTIONS[op], args, kwargs, name=name)

    def _input(self, name: str, record: Mapping[str, Any]) -> fx.Node:
        node = self.graph.create_node("placeholder", name, name=name)
        node.meta["input_shape"] = tuple(int(extent) for extent in record["shape"])
        node.meta["input_dtype"] = _DTYPES[record["dtype"]]
        node.meta["label"] = str(record.get("label", name))
        return node

    def _leaf(self, kind: str, name: str, options: Mapping[str, Any]) -> Any:
        leaf = LEAVES[kind].leaf
        assert leaf is not None
        chosen = {key: self._value(options[key]) for key in leaf.options}
        keys = {held: tensor_key(name, held) for held in leaf.tensors}
        tensors = {held: self._tensors[key] for held, key in keys.items() if key in self._tensors}
        return leaf.make({**chosen, "kind": kind}, tensors)

    def _value(self, item: Any) -> Any:
        if isinstance(item, dict):
            return self._nodes[item["node"]] if "node" in item else float(item["float"])
        if isinstance(item, list):
            return tuple(self._value(part) for part in item)
        if item is None or isinstance(item, bool | int | float | str):
            return item
        raise CheckpointRefused(f"argument {item!r}", "invalid-graph")


def _check_identifier(name: Any) -> str:
    """Return a name that torch.fx may write into the source text it compiles; refuse any other."""
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        raise CheckpointRefused(f"{name!r} is not a name", "invalid-graph")
    return name


def _encode_node(module: fx.GraphModule, node: fx.Node) -> dict[str, Any]:
    record: dict[str, Any] = {"name": node.name, "args": [_encode_value(item) for item in node.args]}
    if node.op == "placeholder":
        dtype = str(node.meta.get("input_dtype", torch.float32)).removeprefix("torch.")
        label = node.meta.get("label", node.name)
        return {
            "name": node.name,
            "op": "input",
            "shape": list(node.meta["input_shape"]),
            "dtype": dtype,
            "label": label,
        }
    if node.op == "output":
        return {"name": node.name, "args": [_encode_value(item) for item in outputs_of(module)], "op": "output"}
    if node.op == "get_attr":
        if node.name != node.target:
            raise ValueError(f"constant {node.target!r} is read by a node of another name, {node.name!r}")
        return {"name": node.name, "op": "constant"}
    if node.op == "call_module":
        leaf = module_of(module, node)
        return {**record, "op": type(leaf).__name__, "options": _leaf_options(leaf)}
    options = {key: _encode_value(item) for key, item in node.kwargs.items()}
    return {**record, "op": OPS[node.target].name, "options": options}


def _leaf_options(leaf: Any) -> dict[str, Any]:
    kept = LEAVES[type(leaf).__name__].leaf
    assert kept is not None
    return {key: _encode_value(getattr(leaf, key)) for key in kept.options}


def _encode_value(item: Any) -> Any:
    if isinstance(item, fx.Node):
        return {"node": item.name}
    if isinstance(item, list | tuple):
        return [_encode_value(part) for part in item]
    if isinstance(item, float) and not math.isfinite(item):
        return {"float": str(item)}
    if item is None or isinstance(item, bool | int | float | str):
        return item
    raise ValueError(f"argument {item!r} cannot be written")
