"""Building a canonical `torch.fx.GraphModule` node by node, with every node's value on an example at hand."""

from __future__ import annotations

import builtins
import keyword
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.graph.errors import NetworkRefused

EXAMPLE_BATCH = 2
MAX_INPUT = 1 << 26
Value = fx.Node | Tensor
"""What flows between operations while reading: a graph node, or a constant known at reading time."""

_RESERVED = frozenset({*dir(builtins), *keyword.kwlist, *keyword.softkwlist})


def identifier(text: str) -> str:
    """Return `text` as a valid, readable Python identifier."""
    clean = re.sub(r"\W+", "_", text).strip("_")
    return f"n_{clean}" if not clean or clean[0].isdigit() else clean


class Builder:
    """Collects nodes and modules; evaluates each node at batch 2 so that shapes are always known."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}
        self.buffers: dict[str, Tensor] = {}
        self.example: dict[fx.Node, Tensor] = {}
        self.batch: int | None = None
        self._names: set[str] = set()

    def unique(self, wanted: str) -> str:
        """Return a name derived from `wanted` that no node or module has yet."""
        base = identifier(wanted)
        if base in _RESERVED:
            base = f"{base}_0"  # torch.fx would rename it behind our back
        name, number = base, 1
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add(name)
        return name

    def input(self, name: str, shape: Sequence[int], batch: int | None = None) -> fx.Node:
        """Add a network input; `shape` is without the batch dimension, `batch` its size where the file fixes it."""
        elements = math.prod(shape)
        if elements > MAX_INPUT:
            raise NetworkRefused("model-too-large", f"an input of {elements} elements; at most {MAX_INPUT} are read")
        self.batch = batch
        unique = self.unique(name)
        node = self.graph.create_node("placeholder", unique, name=unique)
        node.meta["input_shape"] = tuple(shape)
        self.example[node] = torch.zeros(EXAMPLE_BATCH, *shape)
        return node

    def call(self, target: Callable[..., Tensor], *args: Any, name: str, **kwargs: Any) -> fx.Node:
        """Add a function call; constants among the arguments become buffers."""
        held = tuple(self._hold(arg, name) for arg in args)
        node = self.graph.create_node("call_function", target, held, kwargs, name=self.unique(name))
        self.example[node] = self._evaluate(node, target)
        return node

    def module(self, name: str, module: nn.Module, value: fx.Node) -> fx.Node:
        """Add a parametric leaf."""
        unique = self.unique(name)
        self.modules[unique] = module.eval()
        node = self.graph.create_node("call_module", unique, (value,), {}, name=unique)
        self.example[node] = self._evaluate(node, module)
        return node

    def shape(self, value: Value) -> tuple[int, ...]:
        """Return the shape of a value; a node's first dimension is the example batch."""
        return tuple((self.example[value] if isinstance(value, fx.Node) else value).shape)

    def output(self, value: Value) -> None:
        """Name the network's output."""
        if not isinstance(value, fx.Node):
            raise NetworkRefused("invalid-graph", "the network's output does not depend on its input")
        self.graph.output(value)

    def finish(self) -> fx.GraphModule:
        """Return the canonical module, in eval mode, dead nodes removed."""
        root = nn.Module()
        for name, module in self.modules.items():
            root.add_module(name, module)
        for name, tensor in self.buffers.items():
            root.register_buffer(name, tensor)
        module = fx.GraphModule(root, self.graph).eval().requires_grad_(False)
        module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        module.graph.lint()
        module.delete_all_unused_submodules()
        module.recompile()
        return module

    def _hold(self, arg: Any, name: str) -> Any:
        if isinstance(arg, Tensor):
            return self._constant(arg, name)
        if isinstance(arg, list | tuple):
            return type(arg)(self._hold(item, name) for item in arg)
        return arg

    def _constant(self, tensor: Tensor, name: str) -> fx.Node:
        unique = self.unique(f"{name}_constant")
        self.buffers[unique] = tensor.clone()
        node = self.graph.create_node("get_attr", unique, name=unique)
        self.example[node] = tensor
        return node

    def _evaluate(self, node: fx.Node, call: Callable[..., Tensor]) -> Tensor:
        args = fx.node.map_arg(node.args, lambda item: self.example[item])
        try:
            with torch.no_grad():
                return call(*args, **node.kwargs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            message = str(error).splitlines()[0][:200]
            raise NetworkRefused("invalid-graph", f"node {node.name!r} can't be computed: {message}") from error


def attributes(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the named entries that are present."""
    return {name: values[name] for name in names if name in values}
