"""The torch-free picture of a network: weighted layers, channel groups, activations and when they live.

Everything a cost, a bound or the dashboard needs to know about a network, and nothing it takes torch to know. The
worker draws the picture from the BatchNorm-folded canonical graph; names are node and module names of that graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

LayerKind = Literal["conv", "depthwise", "linear"]


@dataclass(frozen=True)
class Width:
    """How many channels (or columns) a tensor dimension has, as a function of what each channel group keeps.

    `terms` holds (channel group id, columns per channel): a residual group counts once, a concat has one term per
    branch, a linear layer behind a flatten has H*W columns per channel. `fixed` columns are never removed.
    """

    terms: tuple[tuple[str, int], ...] = ()
    fixed: int = 0

    def kept(self, keep: Mapping[str, int]) -> int:
        """Return the number of columns left when group `g` keeps `keep[g]` channels."""
        return self.fixed + sum(keep[group] * columns for group, columns in self.terms)


@dataclass(frozen=True)
class Layer:
    """One weighted operation (convolution or linear) with its BatchNorm folded in.

    `weight_shape` is (out, in / groups, *kernel); of a layer in groups whole groups are removed, so in / groups stays.
    `positions` is the number of output positions per picture (H*W; tokens; 1 for a linear layer on a vector). `input`
    and `output` name the activations whose grids its operands lie on (`output` is None where the result stays float,
    as at a network output). `stride` and `extent` (of the result) are spatial; both are empty for a linear layer.
    """

    name: str
    kind: LayerKind
    weight_shape: tuple[int, ...]
    groups: int
    positions: int
    in_width: Width
    out_width: Width
    input: str
    output: str | None
    bias: bool = True
    step: int = 0
    stride: tuple[int, ...] = ()
    extent: tuple[int, ...] = ()

    def columns(self, ins: int) -> int:
        """Return how many of `ins` input channels one output channel reads."""
        return self.weight_shape[1] if self.groups > 1 or self.kind == "depthwise" else ins

    @property
    def kernel_size(self) -> int:
        """Product of the kernel's extents (1 for a linear layer)."""
        size = 1
        for extent in self.weight_shape[2:]:
            size *= extent
        return size


@dataclass(frozen=True)
class Step:
    """One operation that a runtime runs as a kernel of its own besides the layers: an addition, a pooling, a softmax.

    `kind` is the op table's name. `inputs` are the activations it reads, `output` the one its result belongs to (None:
    the result stays float). The result has `width` channels at `positions` positions; each of its elements is computed
    from `window` elements of the first input (9 for a 3x3 pooling, 1 element by element). What a layer computes along
    (a ReLU fused into a convolution) and what costs nothing (a flatten) is no step. `table` counts the rows of the
    float32 table that it looks up (an embedding; 0: none).
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    output: str | None
    width: Width
    positions: int
    window: int = 1
    step: int = 0
    table: int = 0


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that must be removed together: one search dimension.

    `producers` are layers whose output channels, `consumers` layers whose input columns belong to the group.
    `frozen` is None for a prunable group, else the reason shown to the user.
    """

    id: str
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    frozen: str | None = None


@dataclass(frozen=True)
class Activation:
    """A tensor that carries a quantizer (or the float network output), with its life in execution steps.

    Bytes are `width.kept(keep) * positions * bits / 8` from `first_step` (produced) to `last_step` (last read),
    both inclusive, at batch 1. `role` tells the network's inputs and outputs from what lies between.
    """

    id: str
    width: Width
    positions: int
    first_step: int
    last_step: int
    role: Literal["input", "hidden", "output"] = "hidden"
    unsigned: bool = False


@dataclass(frozen=True)
class Buffer:
    """A tensor in memory: the first one of an activation, or one that a pooling or another re-ordering makes of it.

    It has the bits of `activation` and is alive from `first_step` (written) to `last_step` (last read), both inclusive.
    """

    activation: str
    width: Width
    positions: int
    first_step: int
    last_step: int


@dataclass(frozen=True)
class Port:
    """An input or output of the network: name, shape without the batch, dtype by torch's name.

    `label` is the name the user's file gives it. `axis` is where its channels or classes lie, the batch counted too: 1
    in (N, C, H, W), 2 in (N, tokens, C). `below` is the number of ids that an integer input may hold (None: not known).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    label: str = ""
    axis: int = 1
    below: int | None = None

    @property
    def is_integer(self) -> bool:
        """Tell whether it holds ids rather than real numbers."""
        return not self.dtype.startswith(("float", "bfloat"))

    @property
    def columns(self) -> int:
        """Return how many channels or classes lie along `axis` (1 where there is no such axis)."""
        return self.shape[self.axis - 1] if self.axis <= len(self.shape) else 1

    @property
    def classes(self) -> int | None:
        """Return how many classes a row is told apart by: None unless a row is one vector of two numbers or more."""
        return self.columns if 2 <= self.columns == math.prod(self.shape) else None


@dataclass(frozen=True)
class ModelGraph:
    """The whole picture. `layers` and `activations` are in execution order.

    `buffers` are the tensors that take memory, where there are more than one per activation (see `tensors`).
    `input_shape` and `output_shape` are those of the first input and output.
    """

    layers: tuple[Layer, ...]
    groups: tuple[ChannelGroup, ...]
    activations: tuple[Activation, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    op_counts: Mapping[str, int]
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    steps: tuple[Step, ...] = ()
    buffers: tuple[Buffer, ...] = ()

    def __post_init__(self) -> None:
        """Fill in the ports of a picture that was drawn when networks had one input and one output."""
        if not self.inputs:
            object.__setattr__(self, "inputs", (Port("x", self.input_shape),))
        if not self.outputs:
            object.__setattr__(self, "outputs", (Port("output", self.output_shape),))

    @cached_property
    def ops(self) -> tuple[Layer | Step, ...]:
        """The layers, then the steps."""
        return (*self.layers, *self.steps)

    @cached_property
    def tensors(self) -> tuple[Buffer, ...]:
        """The buffers; of a picture drawn without them, one per activation."""
        whole = (Buffer(x.id, x.width, x.positions, x.first_step, x.last_step) for x in self.activations)
        return self.buffers or tuple(whole)

    @cached_property
    def layer(self) -> Mapping[str, Layer]:
        """Layers by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def group(self) -> Mapping[str, ChannelGroup]:
        """Channel groups by id."""
        return {group.id: group for group in self.groups}

    @cached_property
    def activation(self) -> Mapping[str, Activation]:
        """Activations by id."""
        return {activation.id: activation for activation in self.activations}

    @property
    def classes(self) -> int | None:
        """The most classes that an output tells apart; None where no output scores classes."""
        return max((port.classes for port in self.outputs if port.classes), default=None)

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """The groups that are not frozen."""
        return tuple(group for group in self.groups if group.frozen is None)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelGraph:
        """Rebuild the picture that `to_json` wrote."""
        return cls(
            layers=tuple(_layer(item) for item in data["layers"]),
            groups=tuple(_group(item) for item in data["groups"]),
            activations=tuple(_activation(item) for item in data["activations"]),
            input_shape=tuple(data["input_shape"]),
            output_shape=tuple(data["output_shape"]),
            parameters=data["parameters"],
            op_counts=dict(data["op_counts"]),
            inputs=_ports(data.get("inputs", ())),
            outputs=_ports(data.get("outputs", ())),
            steps=tuple(_step(item) for item in data.get("steps", ())),
            buffers=tuple(Buffer(**{**item, "width": _width(item["width"])}) for item in data.get("buffers", ())),
        )


def _width(data: Mapping[str, Any]) -> Width:
    return Width(tuple((group, columns) for group, columns in data["terms"]), data["fixed"])


def _ports(items: Iterable[Mapping[str, Any]]) -> tuple[Port, ...]:
    return tuple(Port(**{**item, "shape": tuple(item["shape"])}) for item in items)


def _layer(data: Mapping[str, Any]) -> Layer:
    widths = {key: _width(data[key]) for key in ("in_width", "out_width")}
    shapes = {key: tuple(data.get(key, ())) for key in ("weight_shape", "stride", "extent")}
    return Layer(**{**data, **widths, **shapes})


def _step(data: Mapping[str, Any]) -> Step:
    return Step(**{**data, "inputs": tuple(data["inputs"]), "width": _width(data["width"])})


def _group(data: Mapping[str, Any]) -> ChannelGroup:
    return ChannelGroup(**{**data, "producers": tuple(data["producers"]), "consumers": tuple(data["consumers"])})


def _activation(data: Mapping[str, Any]) -> Activation:
    return Activation(**{**data, "width": _width(data["width"])})
