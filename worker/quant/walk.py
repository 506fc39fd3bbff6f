"""Running a canonical graph node by node, from any node to any other, keeping what later nodes read."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from worker.graph.extents import outputs_of
from worker.graph.operands import last_uses, operands
from worker.quant.integer import Codes

Value = Tensor | Codes
BeforeLayer = Callable[[fx.Node, Any], None]
AfterNode = Callable[[str, Tensor], Tensor]


@dataclass
class Walk:
    """A run of a canonical graph that stands ahead of a node: `values` holds what later nodes read.

    Nothing writes to a value once it is kept, so forks share them. `masks` holds what gates have decided so far, by the
    site that they act on [n, filters].
    """

    inputs: tuple[Value, ...]
    step: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)

    def fork(self) -> Walk:
        """Return a walk that goes on from here by itself."""
        return Walk(self.inputs, self.step, dict(self.values), dict(self.masks))

    def advance(
        self,
        module: fx.GraphModule,
        until: int | None = None,
        before: BeforeLayer | None = None,
        after: AfterNode | None = None,
    ) -> None:
        """Execute nodes up to (without) the one at `until`, or all; values are dropped after their last reader.

        `before(node, input)` is called ahead of each leaf module and may change it; `after(name, value)` may replace
        the value of any other node, in place where it likes: nothing else holds it. A quantized network is run by
        its `Simulation`.
        """
        last, values = last_uses(module), self.values
        leaves: dict[str, Any] = dict(module.named_children())
        nodes = [node for node in module.graph.nodes if node.op != "output"]
        given = dict(zip((node.name for node in nodes if node.op == "placeholder"), self.inputs, strict=False))
        stop = len(nodes) if until is None else min(until, len(nodes))
        with torch.no_grad():
            for node in nodes[self.step : stop]:
                name = node.name
                if node.op == "placeholder":
                    values[name] = given[name].clone()
                else:
                    values[name] = _value(module, node, values, leaves, before)
                if after is not None and node.op != "get_attr":
                    values[name] = after(name, values[name])
                for gone in last.get(name, ()):
                    del values[gone]
        self.step = max(self.step, stop)

    def outputs(self, module: fx.GraphModule) -> Any:
        """Return the network's output, or a tuple of several, of a walk that went through."""
        found = tuple(real(self.values[node.name]) for node in outputs_of(module))
        return found[0] if len(found) == 1 else found


def run(
    module: fx.GraphModule,
    *inputs: Tensor,
    before: BeforeLayer | None = None,
    after: AfterNode | None = None,
) -> Any:
    """Execute a canonical graph node by node (see `Walk.advance`); return its output or outputs."""
    walk = Walk(inputs)
    walk.advance(module, None, before, after)
    return walk.outputs(module)


def live_bytes(module: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the most bytes that a run keeps at once, given the shape of every node's value (four bytes an element)."""
    last, held, most = last_uses(module), 0, 0
    for node in module.graph.nodes:
        held += 4 * math.prod(shapes[node.name]) if node.name in shapes else 0
        most = max(most, held)
        held -= sum(4 * math.prod(shapes[gone]) for gone in last.get(node.name, ()) if gone in shapes)
    return most


def _value(
    module: fx.GraphModule,
    node: fx.Node,
    values: dict[str, Tensor],
    leaves: dict[str, Any],
    before: BeforeLayer | None,
) -> Tensor:
    if node.op == "get_attr":
        return getattr(module, str(node.target))  # type: ignore[no-any-return]
    if node.op == "call_module":
        source = values[operands(node)[0].name]
        if before is not None:
            before(node, source)
        return _apart(leaves[str(node.target)](source), values)
    args = fx.node.map_arg(node.args, lambda item: values[item.name])
    return _apart(node.target(*args, **node.kwargs), values)  # type: ignore[operator]


def _apart(value: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """Return a value that shares no memory with another: an in-place quantizer behind a view would change both."""
    storage = value.untyped_storage().data_ptr()
    shared = any(storage == other.untyped_storage().data_ptr() for other in values.values())
    return value.clone() if shared else value


def moved(module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """Return a module on a device: itself on the CPU, else a copy."""
    return module if device.type == "cpu" else copy.deepcopy(module).to(device)


def real(value: Value) -> Tensor:
    """Return a value as real numbers."""
    return value.real() if isinstance(value, Codes) else value
