"""What a node reads."""

from __future__ import annotations

from torch import fx


def operands(node: fx.Node) -> list[fx.Node]:
    """Return the nodes a node reads, in order, repetitions included (x + x has two)."""
    found: list[fx.Node] = []
    fx.node.map_arg(node.args, found.append)
    return found
