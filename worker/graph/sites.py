"""Where quantizers sit: one rule, used by the picture, the simulation and the exporter alike.

A quantizer sits on the network input and on the last node of each fused chain: a computing op, followed by the
activation that a runtime fuses into it (ReLU, clamp) where that is its only reader. Pooling by maximum, flatten,
padding and a ReLU on an already quantized tensor pass the producer's grid on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from worker.graph.operands import operands
from worker.graph.ops import Grid, op_of

SIGN_KEEPING = frozenset(
    {"add", "mul", "concat", "mean", "sum", "amax", "avg_pool1d", "avg_pool2d", "avg_pool3d", "maximum", "matmul"}
)
"""Ops whose result is not negative where no operand is."""


@dataclass(frozen=True)
class Site:
    """A quantizer's place: the node whose output it quantizes, and the first node of that node's fused chain."""

    id: str
    head: str
    role: Literal["input", "hidden", "output"]
    unsigned: bool


@dataclass(frozen=True)
class Sites:
    """All sites in execution order; `of` maps each node behind a quantizer to its site's id."""

    sites: tuple[Site, ...]
    of: Mapping[str, str]


def quantizer_sites(module: fx.GraphModule) -> Sites:
    """Return the quantizer sites of a BatchNorm-folded canonical graph."""
    found: dict[str, str] = {}
    heads: dict[str, str] = {}
    sites: list[tuple[str, bool]] = []
    unsigned: dict[str, bool] = {}
    for node in module.graph.nodes:
        if node.op in ("output", "get_attr") or not _is_real(module, node):
            continue
        sources = [source for source in operands(node) if source.op != "get_attr"]
        kind = _kind(module, node)
        first = sources[0] if sources else None
        if first is not None and kind is Grid.fuse and _fusable(module, first):
            head = heads[first.name]
        elif first is not None and kind in (Grid.keep, Grid.fuse):
            if first.name in found:
                found[node.name] = found[first.name]
                unsigned[node.name] = unsigned[first.name] or _never_negative(module, node, ())
            continue
        else:
            head = node.name
        heads[node.name] = head
        signs = [unsigned.get(source.name, False) for source in sources]
        unsigned[node.name] = _never_negative(module, node, signs)
        if not _is_fused_away(module, node):
            found[node.name] = node.name
            sites.append((node.name, unsigned[node.name]))
    outputs = _output_only(module, found)
    inputs = {node.name for node in module.graph.nodes if node.op == "placeholder"}
    return Sites(tuple(Site(name, heads[name], _role(name, inputs, outputs), low) for name, low in sites), found)


def _is_real(module: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node's value holds real numbers, not indices or truth values."""
    if node.op == "placeholder":
        return bool(node.meta.get("input_dtype", torch.float32).is_floating_point)
    return _kind(module, node) is not Grid.none and node.kwargs.get("dtype", "float32") == "float32"


def _kind(module: fx.GraphModule, node: fx.Node) -> Grid:
    op = op_of(module, node)
    return Grid.new if op is None else op.grid


def _fusable(module: fx.GraphModule, source: fx.Node) -> bool:
    """Tell whether an activation behind `source` fuses into it: it computes something and nothing else reads it."""
    return source.op != "placeholder" and _kind(module, source) is Grid.new and len(source.users) == 1


def _is_fused_away(module: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether the quantizer of `node` moves behind the activation that follows it."""
    if not _fusable(module, node):
        return False
    follower = next(iter(node.users))
    return follower.op != "output" and _kind(module, follower) is Grid.fuse


def _never_negative(module: fx.GraphModule, node: fx.Node, sources: Sequence[bool]) -> bool:
    """Tell whether values behind `node` can't be negative, given that of its (non-constant) operands."""
    op = op_of(module, node)
    if op is None:
        return False
    if op.name in SIGN_KEEPING and len(sources) == len(operands(node)) and all(sources):
        return True
    low = node.kwargs.get("min")
    return op.unsigned or (isinstance(low, int | float) and low >= 0)


def _output_only(module: fx.GraphModule, found: Mapping[str, str]) -> set[str]:
    """Return the sites that nothing but the network's output reads."""
    readers: dict[str, set[str]] = {}
    for node in module.graph.nodes:
        for source in operands(node):
            site = found.get(source.name)
            if site is not None and found.get(node.name) != site:
                readers.setdefault(site, set()).add(node.op)
    return {site for site, kinds in readers.items() if kinds == {"output"}}


def _role(name: str, inputs: set[str], outputs: set[str]) -> Literal["input", "hidden", "output"]:
    if name in inputs:
        return "input"
    return "output" if name in outputs else "hidden"
