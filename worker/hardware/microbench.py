"""Micro-benchmarks: small random networks of the kernels, shapes and widths that given networks are made of.

A kernel by itself costs other than among its like (layouts, fusion, caches), so each benchmark is a short network:
plain, residual, depthwise-separable or branched convolutions, poolings, linear layers. Weights mean nothing. Equal
graphs and seeds give equal plans.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.domain.graph import ModelGraph
from worker.search.evaluate import Opened, open_network

MAX_MACS = 12e6
WIDTHS = (4, 256)
COLUMNS = (16, 2048)
ONLY_WHERE_FOUND = ("avg_pool2d", "pad")
OPSET, IR_VERSION = 21, 10


@dataclass(frozen=True)
class Shapes:
    """What micro-benchmarks draw from: kernel extents, spatial extents, channels of the input, and which blocks."""

    kernels: tuple[int, ...] = (1, 3, 5)
    extents: tuple[int, ...] = (8, 16, 28, 32)
    inputs: tuple[int, ...] = (1, 3)
    blocks: tuple[str, ...] = ("conv", "residual", "separable", "inverted", "branches", "max_pool", "linear")


def shapes_in(graphs: Iterable[ModelGraph]) -> Shapes:
    """Return the shapes of the pictures' two-dimensional convolutions, beside the usual ones."""
    usual = Shapes()
    found = list(graphs)
    convs = [layer for graph in found for layer in graph.layers if len(layer.weight_shape) == 4]
    kernels = {layer.weight_shape[-1] for layer in convs if layer.weight_shape[-1] == layer.weight_shape[-2]}
    extents = {layer.extent[-1] for layer in convs if layer.extent and 4 <= layer.extent[-1] <= 256}
    inputs = {graph.input_shape[0] for graph in found if len(graph.input_shape) == 3 and graph.input_shape[0] < 16}
    return Shapes(
        tuple(sorted({*usual.kernels, *kernels})),
        tuple(sorted({*usual.extents, *extents})),
        tuple(sorted({*usual.inputs, *inputs})),
        (*usual.blocks, *sorted({step.kind for graph in found for step in graph.steps} & set(ONLY_WHERE_FOUND))),
    )


def micro_networks(shapes: Shapes, count: int, seed: int = 0) -> dict[str, Opened]:
    """Return `count` small networks by name, read as users' files are."""
    rng = random.Random(seed)
    return {f"micro{index}": open_network(micro_file(shapes, rng)) for index in range(count)}


def micro_file(shapes: Shapes, rng: random.Random) -> bytes:
    """Return one random network as an ONNX file."""
    if rng.random() < 0.15:
        return _Builder((_width(rng, *COLUMNS),)).linear_chain(rng)
    builder = _Builder((rng.choice(shapes.inputs), *[rng.choice(shapes.extents)] * 2))
    builder.conv(_width(rng, *WIDTHS, cap=96), _odd(rng, shapes.kernels), rng.choice((1, 1, 2)))
    for _ in range(rng.choice((0, 1, 2, 3, 4))):
        builder.block(rng.choice(shapes.blocks), rng, shapes)
    return builder.head(rng)


def _width(rng: random.Random, low: int, high: int, cap: int | None = None) -> int:
    """Return a random width, even in its logarithm; often a multiple of 4, 8 or 16, as often not."""
    multiple = rng.choice((1, 1, 2, 4, 8, 16, 16))
    width = math.exp(rng.uniform(math.log(low), math.log(cap or high)))
    return max(low, round(width / multiple) * multiple)


def _odd(rng: random.Random, kernels: Sequence[int]) -> int:
    return rng.choice([kernel for kernel in kernels if kernel % 2] or [1])


@dataclass
class _Builder:
    """Adds layers to a network; `shape` is that of the last value."""

    shape: tuple[int, ...]
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    value: str = "x"
    macs: float = 0.0

    def __post_init__(self) -> None:
        self.input = self.shape
        self.rng = np.random.default_rng(0)

    def add(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        self.value = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [self.value], **attributes))
        return self.value

    def constant(self, *shape: int) -> str:
        name = f"c{len(self.constants)}"
        values = self.rng.standard_normal(shape, dtype=np.float32) / math.sqrt(max(1, math.prod(shape[1:])))
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, outs: int, kernel: int = 3, stride: int = 1, depthwise: bool = False, relu: bool = True) -> str:
        """Add a convolution, narrower where it would take too long."""
        ins, *extents = self.shape
        extents = [(extent - 1) // stride + 1 for extent in extents]
        per_output = (1 if depthwise else ins) * kernel**2 * math.prod(extents)
        outs = ins if depthwise else max(1, min(outs, int(MAX_MACS / per_output)))
        weight, bias = self.constant(outs, 1 if depthwise else ins, kernel, kernel), self.constant(outs)
        pads = [kernel // 2] * 4
        groups = ins if depthwise else 1
        self.add("Conv", [self.value, weight, bias], pads=pads, strides=[stride] * 2, group=groups)
        self.shape = (outs, *extents)
        return self.add("Relu", [self.value]) if relu else self.value

    def block(self, kind: str, rng: random.Random, shapes: Shapes) -> None:
        width, stride = _width(rng, *WIDTHS), rng.choice((1, 1, 2))
        if kind == "conv":
            self.conv(width, _odd(rng, shapes.kernels), stride)
        elif kind == "residual":
            self.residual(width, rng.random() < 0.5)
        elif kind == "separable":
            self.conv(0, rng.choice((3, 3, 5)), stride, depthwise=True)
            self.conv(width, 1)
        elif kind == "inverted":
            self.inverted(rng.choice((2, 3, 4, 6)), stride, rng)
        elif kind == "branches":
            self.branches(width)
        elif kind == "pad" and self.shape[-1] >= 4:
            self.padded(width)
        elif kind == "avg_pool2d" and self.shape[-1] >= 4:
            self.pool("AveragePool")
        elif kind == "max_pool" and self.shape[-1] >= 4:
            self.pool()

    def residual(self, width: int, wide: bool) -> None:
        start, ins = self.value, self.shape[0]
        if wide:
            self.conv(max(1, ins // 2), 1)
            self.conv(max(1, ins // 2), 3)
        else:
            self.conv(width, 3)
        self.conv(ins, 3 if not wide else 1, relu=False)
        if self.shape[0] == ins:
            self.add("Relu", [self.add("Add", [self.value, start])])

    def inverted(self, factor: int, stride: int, rng: random.Random) -> None:
        start, ins, extent = self.value, self.shape[0], self.shape[1]
        self.conv(ins * factor, 1)
        self.conv(0, 3, stride, depthwise=True)
        self.conv(ins if stride == 1 else _width(rng, 8, 96), 1, relu=False)
        if self.shape[:2] == (ins, extent):
            self.add("Add", [self.value, start])

    def branches(self, width: int) -> None:
        start, shape = self.value, self.shape
        outs, values = 0, []
        for kernel in (1, 3):
            self.value, self.shape = start, shape
            values.append(self.conv(max(1, width // 2), kernel))
            outs += self.shape[0]
        self.add("Concat", values, axis=1)
        self.shape = (outs, *shape[1:])

    def padded(self, width: int) -> None:
        """Pad behind alone, then a strided convolution without pads of its own (as TensorFlow's "same" does)."""
        sizes = f"p{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 0, 1, 1]), sizes))
        self.add("Pad", [self.value, sizes])
        channels, *extents = self.shape
        outs = max(1, min(width, int(MAX_MACS / (channels * 9 * math.prod(extents) / 4))))
        operands = [self.value, self.constant(outs, channels, 3, 3), self.constant(outs)]
        self.add("Conv", operands, strides=[2, 2], kernel_shape=[3, 3])
        self.shape = (outs, *((extent + 1 - 3) // 2 + 1 for extent in extents))
        self.add("Relu", [self.value])

    def pool(self, kind: str = "MaxPool") -> None:
        self.add(kind, [self.value], kernel_shape=[2, 2], strides=[2, 2])
        self.shape = (self.shape[0], self.shape[1] // 2, self.shape[2] // 2)

    def gemm(self, outs: int, relu: bool) -> None:
        self.add("Gemm", [self.value, self.constant(outs, self.shape[0]), self.constant(outs)], transB=1)
        self.shape = (outs,)
        if relu:
            self.add("Relu", [self.value])

    def linear_chain(self, rng: random.Random) -> bytes:
        for _ in range(rng.choice((1, 2, 3))):
            self.gemm(_width(rng, 8, 512), relu=True)
        self.gemm(rng.choice((10, 100)), relu=False)
        return self.file()

    def head(self, rng: random.Random) -> bytes:
        """Pool to one position, or leave a few, and add a linear layer."""
        while self.shape[1] > 8 or (rng.random() < 0.3 and self.shape[1] > 3):
            if rng.random() < 0.6:
                break
            self.pool()
        if self.shape[1] > 8 or rng.random() < 0.6:
            self.add("GlobalAveragePool", [self.value])
            self.shape = (self.shape[0], 1, 1)
        self.add("Flatten", [self.value])
        self.shape = (math.prod(self.shape),)
        self.gemm(10, relu=False)
        return self.file()

    def file(self) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "micro",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.input])],
            [helper.make_tensor_value_info(self.value, TensorProto.FLOAT, ["N", *self.shape])],
            self.constants,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return bytes(model.SerializeToString())
