"""Drawing the torch-free picture (`app.domain.graph.ModelGraph`) of a BatchNorm-folded canonical graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from app.domain.graph import Activation, Layer, LayerKind, ModelGraph
from worker.graph.groups import ChannelPlan, weighted_layers
from worker.graph.ops import op_of
from worker.graph.ops.table import module_of
from worker.graph.sites import Site, Sites, quantizer_sites
from worker.graph.write_onnx import operands, shapes_of


def draw(module: fx.GraphModule, plan: ChannelPlan, input_shape: Sequence[int]) -> ModelGraph:
    """Return the picture. An activation lives from the first op of its fused chain to its last reader; values passed on
    (pooled by maximum, flattened) count as their producer, at its full size: the peak is never underestimated."""
    sites = quantizer_sites(module)
    shapes = shapes_of(module, input_shape)
    output = next(node for node in module.graph.nodes if node.op == "output")
    return ModelGraph(
        layers=tuple(_layer(module, node, plan, sites, shapes) for node in weighted_layers(module)),
        groups=plan.groups,
        activations=tuple(_activation(module, site, plan, sites, shapes) for site in sites.sites),
        input_shape=tuple(input_shape),
        output_shape=tuple(shapes[output.args[0].name][1:]),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        op_counts=dict(Counter(op.name for node in module.graph.nodes if (op := op_of(module, node)) is not None)),
    )


def _layer(
    module: fx.GraphModule, node: fx.Node, plan: ChannelPlan, sites: Sites, shapes: dict[str, tuple[int, ...]]
) -> Layer:
    leaf: Any = module_of(module, node)
    weight = tuple(leaf.weight.shape)
    groups = getattr(leaf, "groups", 1)
    source = operands(node)[0]
    produced = _site_after(node, sites)
    return Layer(
        name=node.name,
        kind=_kind(leaf),
        weight_shape=weight,
        groups=1 if _kind(leaf) == "depthwise" else groups,
        positions=_positions(shapes[node.name]),
        in_width=plan.dims[(node.name, "in")].width,
        out_width=plan.dims[(node.name, "out")].width,
        input=sites.of[source.name],
        output=produced,
        bias=True,
        step=_step(module, node.name),
    )


def _kind(leaf: Any) -> LayerKind:
    if isinstance(leaf, nn.Linear):
        return "linear"
    return "depthwise" if leaf.groups > 1 and leaf.groups == leaf.out_channels == leaf.in_channels else "conv"


def _site_after(node: fx.Node, sites: Sites) -> str | None:
    """Return the site that a layer's result is quantized at (itself, or the activation fused into it)."""
    while node.name not in sites.of:
        node = next(iter(node.users))
    return sites.of[node.name]


def _positions(shape: tuple[int, ...]) -> int:
    """Return the elements per channel: everything but batch and channels (tokens, for linear layers over tokens)."""
    total = 1
    for extent in shape[2:]:
        total *= extent
    return total


def _step(module: fx.GraphModule, name: str) -> int:
    return next(step for step, node in enumerate(module.graph.nodes) if node.name == name)


def _activation(
    module: fx.GraphModule, site: Site, plan: ChannelPlan, sites: Sites, shapes: dict[str, tuple[int, ...]]
) -> Activation:
    return Activation(
        id=site.id,
        width=plan.dims[(site.id, "value")].width,
        positions=_positions(shapes[site.id]),
        first_step=_step(module, site.head),
        last_step=_last_reader(module, site.id, sites),
        role=site.role,
        unsigned=site.unsigned,
    )


def _last_reader(module: fx.GraphModule, site: str, sites: Sites) -> int:
    """Return the step of the last node that reads the site's value, or one it was passed on to."""
    last = 0
    for step, node in enumerate(module.graph.nodes):
        if any(sites.of.get(source.name) == site for source in operands(node)):
            last = step
    return last
