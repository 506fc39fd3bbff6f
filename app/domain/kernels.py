"""Which kernels ONNX Runtime runs for an exported network: one `Work` each, as its graph optimizer leaves them.

Seen in optimized graphs of 1.32 on x86: integer convolutions, additions, concatenations and poolings by maximum run
channels last, other operations channels first, with a transposition in between; float convolutions run on blocks of 16
channels, and tensors are reordered where a reader wants plain rows (fewer than 16 channels, or no multiple of 4). An
integer Clip stands behind each quantizer below 8 bits, a pair of Quantize- and DequantizeLinear at each boundary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from app.domain.graph import Layer, ModelGraph, Step
from app.domain.latency import BLOCK, Work, is_blocked
from app.domain.space import FLOAT_BITS, Assignment

PLAIN, LAST, BLOCKS = "plain", "last", "blocks"
_LAST = frozenset({"add", "concat", "max_pool2d", "mean"})
_INTEGER = frozenset({*_LAST, "avg_pool2d", "mul", "sigmoid", "leaky_relu", "matmul"})
"""Steps that have an integer kernel, and those among them that run channels last. A softmax is kept from its own."""


@dataclass
class _Value:
    """A tensor in memory: what its codes are, its size, and the layouts in which it is there."""

    precision: str
    channels: float
    positions: int
    layouts: set[str]
    fusable: bool = False
    made_last: bool = False


@dataclass
class _Run:
    """One pass over the network in execution order."""

    graph: ModelGraph
    assignment: Assignment
    values: dict[str, _Value] = field(default_factory=dict)
    works: list[Work] = field(default_factory=list)
    leading: dict[str, bool] = field(default_factory=dict)

    def emit(self, op: str, precision: str, value: _Value, window: int = 1) -> None:
        self.works.append(Work(op, precision, 1, value.channels, window, value.positions))

    def start(self) -> None:
        """Quantize the inputs; embeddings read ids and have none."""
        for item in self.graph.activations:
            width = item.width.kept(self.assignment.keep)
            self.values[item.id] = _Value(self.precision(item.id), width, item.positions, {PLAIN})
            if item.role == "input":
                self.quantize(item.id)

    def precision(self, activation: str | None) -> str:
        """Return what an activation's elements are where the network keeps it: float, int8 or int16."""
        bits = FLOAT_BITS if activation is None else self.assignment.activation_bits[activation]
        return "float" if bits >= FLOAT_BITS else "int8" if bits <= 8 else "int16"

    def quantize(self, activation: str) -> None:
        value = self.values[activation]
        if value.precision != "float":
            self.emit("quantize", value.precision, value)
        self.clip(activation)

    def clip(self, activation: str | None) -> None:
        if activation is not None and self.assignment.activation_bits[activation] not in (8, 16, FLOAT_BITS):
            self.emit("clip", self.values[activation].precision, self.values[activation])

    def bring(self, value: _Value, layout: str) -> None:
        """Lay a tensor out as its reader wants it, unless it already was for another reader."""
        if layout in value.layouts:
            return
        self.emit("reorder" if BLOCKS in (*value.layouts, layout) else "transpose", value.precision, value)
        value.layouts.add(layout)

    def dequantize(self, value: _Value) -> None:
        """Put codes into floats, channels first."""
        if value.precision != "float":
            self.bring(value, PLAIN)
            self.emit("dequantize", value.precision, value)

    def layer(self, layer: Layer) -> None:
        keep = self.assignment.keep
        work = layer_work(layer, layer.in_width.kept(keep), layer.out_width.kept(keep), self.arithmetic(layer))
        value = self.values[layer.input]
        if work.precision in ("int8", "uint8"):
            layout = PLAIN if layer.kind == "linear" else LAST
            self.bring(value, layout)
            self.works.append(work)
            self.result(layer.output, work, layout)
            return
        self.dequantize(value)
        if work.precision == "float" and value.precision != "float":
            self.emit("kept_float", "float", value)
        if layer.kind == "linear" and layer.positions > 1 and value.precision == "int16":
            work = replace(work, precision="float")  # products of wide activations read weights that are floats at load
        blocked = layer.kind != "linear" and is_blocked(work)
        if value.precision == "float":
            self.bring(value, BLOCKS if blocked else PLAIN)
        elif blocked:
            self.emit("reorder", "float", value)
        self.works.append(work)
        self.result(layer.output, work, BLOCKS if blocked or _direct(work) else PLAIN)

    def arithmetic(self, layer: Layer) -> str:
        assigned = self.assignment.activation_bits
        target = FLOAT_BITS if layer.output is None else assigned[layer.output]
        return arithmetic(layer.kind, self.assignment.weight_bits[layer.name], assigned[layer.input], target)

    def result(self, activation: str | None, work: Work, layout: str) -> None:
        if activation is None:
            return
        precision = self.precision(activation)
        value = _Value(precision, work.outs, work.positions, {layout}, work.precision == precision == "float")
        value.made_last = layout == LAST
        self.values[activation] = value
        if precision != "float" and work.precision not in ("int8", "uint8"):
            self.leave_blocks(value)
            self.emit("quantize", precision, value)
        self.clip(activation)

    def leave_blocks(self, value: _Value) -> None:
        if BLOCKS in value.layouts:
            self.emit("reorder", "float", value)
            value.layouts = {PLAIN}

    def step(self, step: Step) -> None:
        values = [self.values[name] for name in step.inputs]
        channels = step.width.kept(self.assignment.keep)
        target = self.precision(step.output)
        made = _Value(target, channels, step.positions, {PLAIN})
        if step.kind == "pad" and values:
            self.pad(values[0], made)
        elif values and step.kind in _INTEGER and all(x.precision == target == "int8" for x in values):
            self.integer(step, values, made)
        else:
            self.floating(step, values, made)
        if step.output is not None:
            self.values[step.output] = made
            if step.output not in step.inputs:
                self.clip(step.output)

    def pad(self, value: _Value, made: _Value) -> None:
        """Pad within the convolution behind (float), or between DequantizeLinear and QuantizeLinear in any layout."""
        made.layouts, made.made_last = value.layouts, value.made_last
        if value.precision != "float":
            self.emit("dequantize", value.precision, value)
            self.emit("pad", "float", made)
            self.emit("quantize", value.precision, made)

    def integer(self, step: Step, values: list[_Value], made: _Value) -> None:
        clipped = any(self.assignment.activation_bits[name] < 8 for name in step.inputs)
        mostly = 2 * sum(value.made_last for value in values) > len(values)
        last = step.kind in _LAST and mostly and (not clipped or self.leads_to_convolution(step))
        layout = LAST if last else PLAIN
        for value in values:
            self.bring(value, layout)
        slow = step.kind in _LAST and step.window > 1 and not last
        self.emit(f"{step.kind}_plain" if slow else step.kind, "int8", made, step.window)
        made.layouts, made.made_last = {layout}, last

    def leads_to_convolution(self, step: Step) -> bool:
        """Tell whether a convolution reads on: otherwise a Clip ends the part that lies channels last."""
        if step.name not in self.leading:
            later = [x for x in self.graph.layers if x.input == step.output and x.step > step.step]
            steps = [x for x in self.graph.steps if step.output in x.inputs and x.step > step.step]
            found = any(x.kind != "linear" for x in later)
            self.leading[step.name] = found or any(x.kind in _LAST and self.leads_to_convolution(x) for x in steps)
        return self.leading[step.name]

    def floating(self, step: Step, values: list[_Value], made: _Value) -> None:
        """Run a step on floats: on blocks where its inputs lie in blocks and it can, an addition within a layer."""
        blocks = all(BLOCKS in x.layouts and x.precision == "float" for x in values) and bool(values)
        if blocks and step.kind == "add" and any(x.fusable for x in values):
            made.layouts = {BLOCKS}
            self.emit("fused_add", "float", made)
        else:
            blocks = blocks and made.channels % BLOCK == 0 and step.kind in (*_LAST, "avg_pool2d")
            for value in values:
                self.dequantize(value)
                self.bring(value, BLOCKS if blocks else PLAIN) if value.precision == "float" else None
            if step.kind == "softmax" and all(x.precision == made.precision == "int8" for x in values):
                self.emit("kept_float", "float", made)
            self.emit(step.kind, "float", made, step.window)
            made.layouts = {BLOCKS if blocks else PLAIN}
        if made.precision != "float":
            self.leave_blocks(made)
            self.emit("quantize", made.precision, made)


def kernels(graph: ModelGraph, assignment: Assignment) -> tuple[Work, ...]:
    """Return the kernels of the network that an assignment makes, in execution order."""
    run = _Run(graph, assignment)
    run.start()
    ordered: list[Layer | Step] = sorted([*graph.layers, *graph.steps], key=lambda item: item.step)
    for item in ordered:
        if isinstance(item, Layer):
            run.layer(item)
        else:
            run.step(item)
    return tuple(run.works)


def arithmetic(kind: str, weight_bits: int, input_bits: int, output_bits: int) -> str:
    """Return what a layer computes in: a `Work`'s precision.

    "uint8" stands for 8 bits on both sides: pairs of products may leave int16, and devices where that saturates run
    weights with zero point 128 (see `worker.export.saturation`; elsewhere it is "int8": `as_run`). "int16" stands for
    floats whose weights are dequantized at every run.
    """
    if weight_bits >= FLOAT_BITS or input_bits >= FLOAT_BITS:
        return "float"
    if weight_bits > 8 or input_bits > 8 or (output_bits > 8 and kind != "linear"):
        return "int16"
    return "uint8" if weight_bits == input_bits == 8 and kind != "depthwise" else "int8"


def layer_work(layer: Layer, ins: int, outs: int, precision: str) -> Work:
    """Return a layer's own kernel. Channels of a layer in groups are those one output channel reads."""
    stride = 1
    for extent in layer.stride:
        stride *= extent
    op = "grouped" if layer.kind == "conv" and layer.groups > 1 else layer.kind
    return Work(op, precision, layer.columns(ins), outs, layer.kernel_size, layer.positions, stride)


def _direct(work: Work) -> bool:
    """Tell whether a float convolution reads plain rows of few channels and writes blocks."""
    return work.op == "conv" and work.precision == "float" and work.ins < BLOCK


def works_of(networks: Iterable[tuple[ModelGraph, Assignment]]) -> Mapping[Work, int]:
    """Return the kernels of several networks and how often each runs."""
    found: dict[Work, int] = {}
    for graph, assignment in networks:
        for work in kernels(graph, assignment):
            found[work] = found.get(work, 0) + 1
    return found


AUXILIARY = frozenset({"quantize", "dequantize", "clip", "transpose", "reorder", "kept_float"})
"""Kernels that compute nothing: they bring a tensor into the form that the next one reads."""


def kernels_by_operation(graph: ModelGraph, assignment: Assignment) -> Mapping[str, tuple[Work, ...]]:
    """Return the kernels by the layer or step they run for; "" stands for the network's inputs."""
    run = _Run(graph, assignment)
    run.start()
    found = {"": tuple(run.works)}
    for item in sorted(graph.ops, key=lambda item: item.step):
        before = len(run.works)
        if isinstance(item, Layer):
            run.layer(item)
        else:
            run.step(item)
        found[item.name] = tuple(run.works[before:])
    return found
