"""What a node reads, and which nodes read a value last."""

from __future__ import annotations

from torch import fx

from worker.graph.extents import outputs_of


def operands(node: fx.Node) -> list[fx.Node]:
    """Return the nodes a node reads, in order, repetitions included (x + x has two)."""
    found: list[fx.Node] = []
    fx.node.map_arg(node.args, found.append)
    return found


def last_uses(module: fx.GraphModule) -> dict[str, list[str]]:
    """Return, by node, the values that no later node reads; the network's outputs are read to the end."""
    found: dict[str, str] = {}
    for node in module.graph.nodes:
        for source in operands(node):
            found[source.name] = node.name
    for node in outputs_of(module):
        found.pop(node.name, None)
    gone: dict[str, list[str]] = {}
    for name, reader in found.items():
        gone.setdefault(reader, []).append(name)
    return gone
