"""Pictures of networks drawn by hand, device profiles and random tables for tests."""

from __future__ import annotations

import numpy as np

from app.domain.device import DeviceProfile, MemoryPool, Overheads, Power, Throughput
from app.domain.graph import Activation, ChannelGroup, Layer, LayerKind, ModelGraph, Width
from app.domain.space import SearchSpace
from worker.search.sensitivity import SensitivityTable

PAIRS = tuple((w, a) for w in (8, 4, 2) for a in (8, 4))


def device(pairs: tuple[tuple[int, int], ...] = PAIRS, multiple: int = 1) -> DeviceProfile:
    return DeviceProfile(
        name="bench-npu",
        unit="npu",
        pairs={"default": pairs},
        compute=(
            Throughput(8, 8, 4.0, {"conv": 0.6, "depthwise": 0.1, "default": 0.4}),
            Throughput(4, 8, 6.0, {"default": 0.5}),
            Throughput(4, 4, 10.0, {"default": 0.5}),
        ),
        activation_pool=MemoryPool(256 * 1024, 2.0),
        weight_store=MemoryPool(1024 * 1024, 1.0),
        overheads=Overheads(20.0, 2.0, 0.05),
        power=Power({f"{w}x{a}": 0.02 * w * a for w, a in PAIRS}, 3.0),
        channel_multiple={"default": multiple},
    )


class Drawing:
    """Builds a picture step by step; widths are (group, channels) pairs."""

    def __init__(self, in_channels: int, size: int) -> None:
        self.layers: list[Layer] = []
        self.channels: dict[str, int] = {}
        self.width: dict[str, Width] = {"input": Width((), in_channels)}
        self.positions: dict[str, int] = {"input": size * size}
        self.born: dict[str, int] = {"input": 0}
        self.last: dict[str, int] = {"input": 0}
        self.unsigned: set[str] = set()
        self.step = 0
        self.shape = (in_channels, size, size)

    def conv(self, name: str, source: str, group: tuple[str, int], size: int, kernel: int = 3) -> str:
        return self._weighted(name, "conv", source, group, size * size, (kernel, kernel))

    def depthwise(self, name: str, source: str, size: int) -> str:
        group = self.width[source].terms[0][0]
        return self._weighted(name, "depthwise", source, (group, self.channels[group]), size * size, (3, 3))

    def linear(self, name: str, source: str, group: tuple[str, int]) -> str:
        return self._weighted(name, "linear", source, group, 1, ())

    def add(self, name: str, left: str, right: str) -> str:
        self.step += 1
        self._read(left, right)
        return self._produce(name, self.width[left], self.positions[left])

    def _weighted(
        self, name: str, kind: LayerKind, source: str, group: tuple[str, int], positions: int, kernel: tuple[int, ...]
    ) -> str:
        self.step += 1
        self.channels[group[0]] = group[1]
        inside, outside = self.width[source], Width(((group[0], 1),))
        ins = inside.kept(self.channels)
        depthwise = kind == "depthwise"
        shape = (group[1], 1 if depthwise else ins, *kernel)
        groups = group[1] if depthwise else 1
        self.layers.append(Layer(name, kind, shape, groups, positions, inside, outside, source, name, True, self.step))
        self._read(source)
        return self._produce(name, outside, positions)

    def _read(self, *sources: str) -> None:
        for source in sources:
            self.last[source] = self.step

    def _produce(self, name: str, width: Width, positions: int) -> str:
        self.width[name], self.positions[name] = width, positions
        self.born[name] = self.last[name] = self.step
        return name

    def finish(self, output: str, frozen: tuple[str, ...] = ()) -> ModelGraph:
        groups = tuple(
            ChannelGroup(
                name,
                channels,
                tuple(layer.name for layer in self.layers if (name, 1) in layer.out_width.terms),
                tuple(layer.name for layer in self.layers if name in dict(layer.in_width.terms)),
                "network output" if name in frozen else None,
            )
            for name, channels in self.channels.items()
        )
        role = {"input": "input", output: "output"}
        acts = tuple(
            Activation(n, self.width[n], self.positions[n], self.born[n], self.last[n], role.get(n, "hidden"), True)
            for n in self.width
        )
        size = sum(int(np.prod(layer.weight_shape)) for layer in self.layers)
        layers = tuple(self.layers)
        out = (self.width[output].kept(self.channels),)
        return ModelGraph(layers, groups, acts, self.shape, out, size, {"conv": len(layers)})


def resnet(widths: tuple[int, ...] = (16, 32, 64), blocks: int = 1, size: int = 32) -> ModelGraph:
    """ResNet-8 on 32x32 pictures (three stages of one block); more blocks give ResNet-14, 20, 26."""
    draw = Drawing(3, size)
    last = draw.conv("stem", "input", ("g_stem", widths[0]), size)
    for stage, width in enumerate(widths):
        trunk = ("g_stem" if stage == 0 else f"g_s{stage}", width)
        size = size if stage == 0 else size // 2
        for block in range(blocks):
            name = f"s{stage}b{block}"
            inner = draw.conv(f"{name}_conv1", last, (f"g_{name}", width), size)
            outer = draw.conv(f"{name}_conv2", inner, trunk, size)
            skip = last
            if stage and block == 0:
                skip = draw.conv(f"{name}_down", last, trunk, size, kernel=1)
            last = draw.add(f"{name}_add", outer, skip)
    draw.positions[last] = 1  # global average pooling keeps the channels
    output = draw.linear("head", last, ("g_head", 10))
    return draw.finish(output, frozen=("g_head",))


def chain(widths: tuple[int, ...] = (8, 12, 16), size: int = 8) -> ModelGraph:
    """A plain chain of convolutions and a linear head."""
    draw = Drawing(3, size)
    last = "input"
    for index, width in enumerate(widths):
        last = draw.conv(f"conv{index}", last, (f"g{index}", width), size)
    return draw.finish(draw.linear("head", last, ("g_head", 5)), frozen=("g_head",))


def skipped(size: int = 6) -> ModelGraph:
    """Two convolutions inside a skip connection, a depthwise one behind it."""
    draw = Drawing(3, size)
    first = draw.conv("first", "input", ("g_trunk", 8), size)
    inner = draw.conv("inner", first, ("g_inner", 8), size)
    outer = draw.conv("outer", inner, ("g_trunk", 8), size)
    joined = draw.add("joined", outer, first)
    return draw.finish(draw.depthwise("deep", joined, size))


def random_table(space: SearchSpace, seed: int = 0) -> SensitivityTable:
    """Draw a plausible table: losses grow with compression, by amounts that differ a thousandfold."""
    rng = np.random.default_rng(seed)

    def curve(choices: tuple[int, ...], power: float) -> dict[int, float]:
        scale = 10 ** rng.uniform(-2.5, 0.5)
        shape = {c: (choices[0] / c - 1) ** power * rng.uniform(0.8, 1.2) for c in choices}
        losses = np.maximum.accumulate([scale * shape[c] for c in choices])
        return {c: float(loss) for c, loss in zip(choices, losses, strict=True)}

    return SensitivityTable(
        0.01,
        {
            "keep": {name: curve(choices, 1.0) for name, choices in space.keep.items()},
            "weight": {name: curve(choices, 1.5) for name, choices in space.weight_bits.items()},
            "activation": {name: curve(choices, 1.2) for name, choices in space.activation_bits.items()},
        },
    )
