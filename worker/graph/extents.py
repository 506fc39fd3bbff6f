"""Extents that depend on the batch, and running a canonical graph for its shapes alone.

While reading, the batch is `BATCH`: no real extent is this prime, so every extent tells by itself whether, and how
many times, it holds the batch (heads merged into the batch: 4 * BATCH). Shapes come from torch's meta device, where an
operation computes its result's shape and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

BATCH = 1_000_003


def holds_batch(extent: int) -> bool:
    """Tell whether an extent counts the batch."""
    return extent != 0 and extent % BATCH == 0


def total(sizes: Sequence[int]) -> int:
    """Return the product of sizes."""
    return math.prod(sizes)


def on_meta(call: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Return what a function or leaf gives for meta tensors: shapes and dtypes, no values."""
    with torch.no_grad():
        if isinstance(call, nn.Module):
            held = {**dict(call.named_parameters()), **dict(call.named_buffers())}
            return functional_call(call, {name: item.to("meta") for name, item in held.items()}, args, kwargs)
        return call(*args, **kwargs)


class _Meta(fx.Interpreter):
    """Runs a graph on the meta device and notes every value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n.name] = value
        return value

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().get_attr(target, args, kwargs).to("meta")

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return on_meta(self.fetch_attr(target), args, kwargs)


def values_of(module: fx.GraphModule, batch: int = 1) -> dict[str, Tensor]:
    """Return every node's value at a batch size as a meta tensor: shape and dtype without numbers."""
    interpreter = _Meta(module)
    with torch.no_grad():
        interpreter.run(*(item.example(batch, "meta") for item in inputs_of(module)))
    return interpreter.found


def shapes_of(module: fx.GraphModule, batch: int = 1) -> dict[str, tuple[int, ...]]:
    """Return the shape of every node's value at a batch size, without computing values."""
    return {name: tuple(value.shape) for name, value in values_of(module, batch).items()}


class InputSpec:
    """One input of a network: node name, shape without the batch, dtype."""

    __slots__ = ("dtype", "name", "shape")

    def __init__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype

    def example(self, batch: int = 1, device: str = "cpu") -> Tensor:
        """Return zeros of a batch."""
        return torch.zeros(batch, *self.shape, dtype=self.dtype, device=device)


def inputs_of(module: fx.GraphModule) -> tuple[InputSpec, ...]:
    """Return the network's inputs as the reader stored them on its placeholders."""
    return tuple(
        InputSpec(node.name, tuple(node.meta["input_shape"]), node.meta.get("input_dtype", torch.float32))
        for node in module.graph.nodes
        if node.op == "placeholder"
    )


def outputs_of(module: fx.GraphModule) -> tuple[fx.Node, ...]:
    """Return the nodes whose values are the network's outputs, in order."""
    held: Any = next(node for node in module.graph.nodes if node.op == "output").args[0]
    return tuple(held) if isinstance(held, list | tuple) else (held,)
