"""Drawing the torch-free picture (`app.domain.graph.ModelGraph`) of a BatchNorm-folded canonical graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from app.domain.graph import Activation, Buffer, Layer, LayerKind, ModelGraph, Port
from worker.graph.extents import outputs_of, shapes_of, total, values_of
from worker.graph.groups import ChannelPlan
from worker.graph.leaves import Recurrent
from worker.graph.operands import operands
from worker.graph.ops import op_of
from worker.graph.ops.parametric import TRANSPOSED, WEIGHTED, rows_first
from worker.graph.ops.table import module_of
from worker.graph.sites import Site, quantizer_sites
from worker.graph.steps import draw_steps


def draw(module: fx.GraphModule, plan: ChannelPlan) -> ModelGraph:
    """Return the picture. An activation lives from the first op of its fused chain to the last reader of its values, in
    whatever order or shape they are passed on; what a pooling by maximum makes of it is a buffer of its own."""
    drawing = _Drawing(module, plan)
    values = values_of(module)
    inputs = tuple(drawing.input(node, values[node.name]) for node in module.graph.nodes if node.op == "placeholder")
    steps = draw_steps(module, plan, drawing.sites, drawing.shapes)
    outputs = tuple(_port(node.name, values[node.name], plan) for node in outputs_of(module))
    return ModelGraph(
        layers=tuple(layer for node in module.graph.nodes for layer in drawing.layers(node)),
        groups=plan.groups,
        activations=tuple(drawing.activation(site) for site in drawing.sites.sites),
        input_shape=inputs[0].shape,
        output_shape=outputs[0].shape,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        op_counts=dict(Counter(op.name for node in module.graph.nodes if (op := op_of(module, node)) is not None)),
        inputs=inputs,
        outputs=outputs,
        steps=steps,
        buffers=drawing.buffers({step.name for step in steps}),
    )


def _port(name: str, value: Tensor, plan: ChannelPlan) -> Port:
    dtype = str(value.dtype).removeprefix("torch.")
    return Port(name, tuple(value.shape[1:]), dtype, axis=plan.dims[(name, "value")].axis)


class _Drawing:
    """What every part of the picture needs."""

    def __init__(self, module: fx.GraphModule, plan: ChannelPlan) -> None:
        self.module, self.plan = module, plan
        self.sites = quantizer_sites(module)
        self.shapes = shapes_of(module)
        self.steps = {node.name: step for step, node in enumerate(module.graph.nodes)}
        self.last_readers = self._last_readers()

    def input(self, node: fx.Node, value: Tensor) -> Port:
        """Return a network input; ids may be as large as the smallest table that looks them up allows."""
        found = _port(node.name, value, self.plan)
        readers = [module_of(self.module, user) for user in node.users if user.op == "call_module"]
        tables = [leaf.num_embeddings for leaf in readers if isinstance(leaf, nn.Embedding)]
        return replace(found, label=node.meta.get("label", node.name), below=min(tables, default=None))

    def layers(self, node: fx.Node) -> list[Layer]:
        """Return the layers a node computes: none, one, or a recurrent layer's matrices."""
        if node.op != "call_module":
            return []
        leaf: Any = module_of(self.module, node)
        if isinstance(leaf, WEIGHTED):
            return [self._layer(node, node.name, rows_first(leaf), _kind(leaf))]
        if isinstance(leaf, Recurrent):
            held = [(name, item) for name, item in leaf.core.named_parameters() if name.startswith("weight")]
            return [self._layer(node, f"{node.name}.{name}", item, "linear") for name, item in held]
        return []

    def _layer(self, node: fx.Node, name: str, weight: Tensor, kind: LayerKind) -> Layer:
        leaf: Any = module_of(self.module, node)
        return Layer(
            name=name,
            kind=kind,
            weight_shape=tuple(weight.shape),
            groups=getattr(leaf, "groups", 1),
            positions=self._positions(node, leaf, weight),
            in_width=self.plan.dims[(name, "in")].width,
            out_width=self.plan.dims[(name, "out")].width,
            input=self.sites.of[operands(node)[0].name],
            output=self._site_after(node),
            bias=True,
            step=self.steps[node.name],
            stride=() if kind == "linear" else tuple(leaf.stride),
            extent=() if kind == "linear" else self.shapes[node.name][2:],
        )

    def _positions(self, node: fx.Node, leaf: Any, weight: Tensor) -> int:
        """Return how often a layer's weights are used per picture: output positions, tokens, steps of a sequence.

        A transposed convolution uses each weight once per input position.
        """
        if isinstance(leaf, Recurrent):
            shape = self.shapes[operands(node)[0].name]
            return shape[1] if leaf.batch_first else shape[0]
        if isinstance(leaf, TRANSPOSED):
            held: Any = leaf
            return total(self.shapes[operands(node)[0].name]) // int(held.in_channels)
        return total(self.shapes[node.name]) // weight.shape[0]

    def _site_after(self, node: fx.Node) -> str | None:
        """Return the site that a layer's result is quantized at (itself, or the activation fused into it)."""
        while node.name not in self.sites.of:
            node = next(iter(node.users))
        return self.sites.of[node.name]

    def activation(self, site: Site) -> Activation:
        """Return the activation of one quantizer site."""
        dim = self.plan.dims[(site.id, "value")]
        return Activation(
            id=site.id,
            width=dim.width,
            positions=total(self.shapes[site.id]) // len(dim.channel),
            first_step=self.steps[site.head],
            last_step=self.last_readers.get(site.id, 0),
            role=site.role,
            unsigned=site.unsigned,
        )

    def buffers(self, kernels: set[str]) -> tuple[Buffer, ...]:
        """Return every tensor in memory: of each fused chain, and of each kernel that passes its input's grid on."""
        owner: dict[str, str] = {}
        last: dict[str, int] = {}
        heads = {site.id: site.head for site in self.sites.sites}
        for step, node in enumerate(self.module.graph.nodes):
            for source in operands(node):
                if source.name in owner:
                    last[owner[source.name]] = step
            site = self.sites.of.get(node.name)
            if site is not None:
                own = node.name == site or node.name in kernels
                owner[node.name] = node.name if own else owner[operands(node)[0].name]
        return tuple(self._buffer(name, heads.get(name, name), last) for name in dict.fromkeys(owner.values()))

    def _buffer(self, name: str, head: str, last: dict[str, int]) -> Buffer:
        dim = self.plan.dims[(name, "value")]
        positions = total(self.shapes[name]) // len(dim.channel)
        first = self.steps[head]
        return Buffer(self.sites.of[name], dim.width, positions, first, last.get(name, first))

    def _last_readers(self) -> dict[str, int]:
        """Return by site the step of the last node that reads its value, or one it was passed on to."""
        found: dict[str, int] = {}
        for step, node in enumerate(self.module.graph.nodes):
            for source in operands(node):
                if source.name in self.sites.of:
                    found[self.sites.of[source.name]] = step
        return found


def _kind(leaf: Any) -> LayerKind:
    if isinstance(leaf, nn.Linear):
        return "linear"
    return "depthwise" if leaf.groups > 1 and leaf.groups == leaf.out_channels == leaf.in_channels else "conv"
