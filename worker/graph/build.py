"""Building a canonical `torch.fx.GraphModule` node by node, with every node's shape at hand."""

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
from worker.graph.extents import BATCH, holds_batch, on_meta
from worker.graph.functions import expand_batch
from worker.graph.operands import operands

MAX_INPUT = 1 << 24
MAX_CONSTANT = 1 << 26
MAX_NAME = 200
Value = fx.Node | Tensor
"""What flows between operations while reading: a graph node, or a constant known at reading time."""

# what torch.fx would rename behind our back, and what a module already has
_RESERVED = frozenset({*dir(builtins), *keyword.kwlist, *keyword.softkwlist, *dir(fx.GraphModule), *dir(nn.Module())})


def identifier(text: str) -> str:
    """Return `text` as a valid, readable Python identifier: of ASCII, for Python reads some other letters as one."""
    clean = re.sub(r"\W+", "_", text[:MAX_NAME], flags=re.ASCII).strip("_")
    return f"n_{clean}" if not clean or clean[0].isdigit() else clean


class Builder:
    """Collects nodes and modules; computes each node's shape with the batch as `BATCH`.

    `batch` is the batch the file itself fixes, or None where it leaves it open.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}
        self.buffers: dict[str, Tensor] = {}
        self.batch: int | None = None
        self._meta: dict[fx.Node, Tensor] = {}
        self._leads: dict[fx.Node, int] = {}
        self._names: set[str] = set()
        self._numbers: dict[str, int] = {}

    def unique(self, wanted: str) -> str:
        """Return a name derived from `wanted` that no node or module has yet."""
        base = identifier(wanted)
        if base in _RESERVED:
            base = f"{base}_0"
        name, number = base, self._numbers.get(base, 1)
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        self._numbers[base] = number  # so that thousands of one name are not counted through for each
        self._names.add(name)
        return name

    def input(
        self, name: str, shape: Sequence[int], batch: int | None = None, dtype: torch.dtype = torch.float32
    ) -> fx.Node:
        """Add a network input; `shape` is without the batch dimension, `batch` its size where the file fixes it."""
        elements = math.prod(shape)
        if any(holds_batch(extent) for extent in shape):
            raise NetworkRefused("model-too-large", f"an input of {shape}")
        if elements > MAX_INPUT:
            raise NetworkRefused("model-too-large", f"an input of {elements} elements; at most {MAX_INPUT} are read")
        self.batch = batch or self.batch
        unique = self.unique(name)
        node = self.graph.create_node("placeholder", unique, name=unique)
        node.meta.update({"input_shape": tuple(shape), "input_dtype": dtype, "fixed_batch": batch, "label": name})
        self._meta[node] = torch.empty(BATCH, *shape, dtype=dtype, device="meta")
        return node

    def call(self, target: Callable[..., Tensor], *args: Any, name: str, **kwargs: Any) -> fx.Node:
        """Add a function call; constants among the arguments become buffers."""
        held = tuple(self._hold(arg, name) for arg in args)
        node = self.graph.create_node("call_function", target, held, kwargs, name=self.unique(name))
        self._note(node, self._evaluate(node, target))
        return node

    def module(self, name: str, module: nn.Module, value: Value) -> fx.Node:
        """Add a leaf."""
        unique = self.unique(name)
        source = self._hold(value, name)
        self.modules[unique] = module.eval()
        node = self.graph.create_node("call_module", unique, (source,), {}, name=unique)
        self._note(node, self._evaluate(node, module))
        return node

    def _note(self, node: fx.Node, value: Tensor) -> None:
        self._meta[node] = value
        leads = {self._leads[source] for source in operands(node) if source in self._leads}
        if len(leads) == 1:
            self._leads[node] = leads.pop()

    def lead(self, value: Value) -> int:
        """Return, of the extent that holds the batch, the part that lies in front of it (12 in 12 * batch, else 1)."""
        return self._leads.get(value, 1) if isinstance(value, fx.Node) else 1

    def set_lead(self, node: fx.Node, lead: int) -> None:
        """Note what part of its extent lies in front of the batch."""
        self._leads[node] = lead

    def shape(self, value: Value) -> tuple[int, ...]:
        """Return the shape of a value; extents that hold the batch are multiples of `BATCH`."""
        return tuple((self._meta[value] if isinstance(value, fx.Node) else value).shape)

    def rank(self, value: Value) -> int:
        """Return the number of dimensions of a value."""
        return len(self.shape(value))

    def dtype(self, value: Value) -> torch.dtype:
        """Return the dtype of a value."""
        return (self._meta[value] if isinstance(value, fx.Node) else value).dtype

    def leaf(self, value: Value) -> nn.Module | None:
        """Return the leaf that computes a value, or None."""
        is_leaf = isinstance(value, fx.Node) and value.op == "call_module"
        return self.modules[str(value.target)] if isinstance(value, fx.Node) and is_leaf else None

    def output(self, *values: Value) -> None:
        """Name the network's outputs."""
        for value in values:
            if not isinstance(value, fx.Node):
                raise NetworkRefused("invalid-graph", "a network output does not depend on the inputs")
        self.graph.output(values[0] if len(values) == 1 else values)

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
        """Add a buffer; one that was expanded to the batch is stored once and expanded at run time."""
        axes = [axis for axis, extent in enumerate(tensor.shape) if holds_batch(extent)]
        if axes:
            return self._repeated(tensor, axes, name)
        if tensor.numel() > MAX_CONSTANT:
            raise NetworkRefused("model-too-large", f"{name!r}: a constant of {tensor.numel()} elements")
        unique = self.unique(f"{name}_constant")
        self.buffers[unique] = tensor.detach().contiguous().clone()
        node = self.graph.create_node("get_attr", unique, name=unique)
        self._meta[node] = self.buffers[unique].to("meta")
        return node

    def _repeated(self, tensor: Tensor, axes: Sequence[int], name: str) -> fx.Node:
        like = next(iter(self._meta), None)
        if len(axes) > 1 or tensor.shape[axes[0]] != BATCH or tensor.stride(axes[0]) != 0 or like is None:
            raise NetworkRefused("unsupported-operator", f"{name!r}: a constant that depends on the batch")
        return self.call(expand_batch, tensor.narrow(axes[0], 0, 1), like, name=f"{name}_repeated", dim=axes[0])

    def _evaluate(self, node: fx.Node, call: Callable[..., Tensor]) -> Tensor:
        args = fx.node.map_arg(node.args, lambda item: self._meta[item])
        try:
            found: Tensor = on_meta(call, args, node.kwargs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            message = str(error).splitlines()[0][:200]
            raise NetworkRefused("invalid-graph", f"node {node.name!r} can't be computed: {message}") from error
        return found


def attributes(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the named entries that are present."""
    return {name: values[name] for name in names if name in values}
