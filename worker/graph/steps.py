"""Drawing the kernels that run between the layers (`app.domain.graph.Step`) of a BatchNorm-folded canonical graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from app.domain.graph import Step
from worker.graph.extents import total
from worker.graph.groups import ChannelPlan
from worker.graph.leaves import Recurrent
from worker.graph.operands import operands
from worker.graph.ops import Grid, op_of
from worker.graph.ops.parametric import WEIGHTED
from worker.graph.ops.table import module_of
from worker.graph.sites import Sites

VIEWS = frozenset({"flatten", "reshape", "expand", "expand_batch"})
"""Ops that move nothing: another shape of the same bytes, or the same bytes read again."""
Shapes = Mapping[str, tuple[int, ...]]


def draw_steps(module: fx.GraphModule, plan: ChannelPlan, sites: Sites, shapes: Shapes) -> tuple[Step, ...]:
    """Return every kernel that is no layer, in execution order.

    An activation fused into the op before it, a view, and a transposition that moves only axes of extent one are none.
    """
    heads = {site.head: site.id for site in sites.sites}
    found = []
    for index, node in enumerate(module.graph.nodes):
        op = op_of(module, node)
        if op is None or not _is_kernel(module, node, op.grid, sites, shapes):
            continue
        dim = plan.dims[(node.name, "value")]
        read = dict.fromkeys(sites.of[item.name] for item in operands(node) if item.name in sites.of)
        found.append(
            Step(
                name=node.name,
                kind=op.name,
                inputs=tuple(read),
                output=sites.of.get(node.name, heads.get(node.name)),
                width=dim.width,
                positions=max(1, total(shapes[node.name]) // max(1, len(dim.channel))),
                window=window(module, node, op.name, shapes),
                step=index,
                table=_table_rows(module, node),
            )
        )
    return tuple(found)


def _is_kernel(module: fx.GraphModule, node: fx.Node, grid: Grid, sites: Sites, shapes: Shapes) -> bool:
    leaf = module_of(module, node) if node.op == "call_module" else None
    if isinstance(leaf, WEIGHTED) or _is_view(module, node, shapes):
        return False
    first = operands(node)[0]
    # a fused activation's operand carries no quantizer of its own
    return grid is not Grid.fuse or first.name in sites.of


def _is_view(module: fx.GraphModule, node: fx.Node, shapes: Shapes) -> bool:
    op = op_of(module, node)
    if op is None or op.name in VIEWS:
        return True
    if op.name != "permute":
        return False
    shape = shapes[operands(node)[0].name]
    dims: Any = node.kwargs["dims"]
    moved = [dim % len(shape) for dim in dims if shape[dim] > 1]
    return moved == sorted(moved)


def window(module: fx.GraphModule, node: fx.Node, kind: str, shapes: Shapes) -> int:
    """Return how many elements of the first input each element of the result is computed from."""
    ins = shapes[operands(node)[0].name]
    rule = _WINDOWS.get(kind)
    if rule is not None:
        return rule(node, ins, shapes)
    if node.op == "call_module" and isinstance(module_of(module, node), Recurrent):
        return 1
    return max(1, total(ins) // max(1, total(shapes[node.name]))) if kind in _REDUCING else 1


def _kernel(node: fx.Node, ins: tuple[int, ...], shapes: Shapes) -> int:
    sizes: Any = node.kwargs["kernel_size"]
    return math.prod(sizes) if isinstance(sizes, list | tuple) else int(sizes)


def _attended(node: fx.Node, ins: tuple[int, ...], shapes: Shapes) -> int:
    """Two products per element: with every key, and over every value."""
    return 2 * shapes[operands(node)[1].name][-2]


def _inner(node: fx.Node, ins: tuple[int, ...], shapes: Shapes) -> int:
    return ins[-1]


def _interpolated(node: fx.Node, ins: tuple[int, ...], shapes: Shapes) -> int:
    taps = {"nearest": 1, "nearest-exact": 1, "bicubic": 4}.get(str(node.kwargs.get("mode")), 2)
    return int(taps ** (len(ins) - 2))


_REDUCING = frozenset({"mean", "sum", "amax", "amin", "argmax", "argmin"})
_WINDOWS: dict[str, Callable[[fx.Node, tuple[int, ...], Shapes], int]] = {
    **dict.fromkeys((f"{way}_pool{rank}d" for way in ("avg", "max") for rank in (1, 2, 3)), _kernel),
    "attention": _attended,
    "matmul": _inner,
    "resize": _interpolated,
}


def _table_rows(module: fx.GraphModule, node: fx.Node) -> int:
    leaf = module_of(module, node) if node.op == "call_module" else None
    return leaf.num_embeddings if isinstance(leaf, nn.Embedding) else 0
