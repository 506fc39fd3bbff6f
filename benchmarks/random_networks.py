"""Random networks, devices, spaces and budgets, small enough to try every assignment of some of them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

from app.domain.cost import METRICS, count
from app.domain.device import DeviceProfile, Fallback, MemoryPool, Overheads, Power, Throughput
from app.domain.graph import Activation, ChannelGroup, Layer, LayerKind, ModelGraph, Step, Width
from app.domain.nearest import cheapest_legal
from app.domain.space import SearchSpace, build_space, widest

DEVICES = Path(__file__).resolve().parents[1] / "app" / "devices"
_BUILT_IN = tuple(DeviceProfile.from_json(json.loads(file.read_text())) for file in sorted(DEVICES.glob("*.json")))
_PAIRS = (
    tuple((w, a) for w in (8, 4, 2) for a in (8, 4)),
    ((8, 8), (4, 8), (4, 4), (2, 4)),
    ((8, 8), (4, 4)),
)


class _Growing:
    """A network that grows operation by operation."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.values: dict[str, tuple[Width, int]] = {"input": (Width((), 3), rng.choice([16, 64]))}
        self.channels: dict[str, int] = {}
        self.layers: list[Layer] = []
        self.steps: list[Step] = []
        self.born, self.last = {"input": 0}, {"input": 0}
        self.index = 0

    def layer(self, kind: LayerKind, source: str) -> str:
        """Add a convolution, or a depthwise one."""
        width, positions = self.values[source]
        name = f"layer{self.index + 1}"
        if kind == "conv":
            self.channels[f"g_{name}"] = self.rng.randint(2, 40)
            out, ins, groups = Width(((f"g_{name}", 1),)), width.kept(self.channels), 1
        else:
            out, ins, groups = width, 1, width.kept(self.channels)
        kernel = self.rng.choice([(1, 1), (3, 3)])
        shape = (out.kept(self.channels), ins, *kernel)
        self._write(name, (source,), (out, positions))
        self.layers.append(
            Layer(name, kind, shape, groups, positions, width, out, source, name, True, self.index, (1, 1))
        )
        return name

    def step(self) -> None:
        """Add a sum, a concatenation, a pooling or a GELU of what there is."""
        source = self.rng.choice(list(self.values))
        width, positions = self.values[source]
        kind = self.rng.choice(["add", "concat", "avg_pool2d", "gelu"])
        sources = [source]
        if kind == "add":
            sources.append(
                self.rng.choice([name for name, value in self.values.items() if value == self.values[source]])
            )
        elif kind == "concat":
            other = self.rng.choice([name for name, (_, at) in self.values.items() if at == positions])
            more = self.values[other][0]
            width = Width(width.terms + more.terms, width.fixed + more.fixed) if other != source else width
            sources.append(other)
        window = 4 if kind == "avg_pool2d" else 1
        name, inputs = f"{kind}{self.index + 1}", tuple(dict.fromkeys(sources))
        after = max(1, positions // window)
        self._write(name, inputs, (width, after))
        self.steps.append(Step(name, kind, inputs, name, width, after, window, self.index))

    def _write(self, name: str, reads: tuple[str, ...], value: tuple[Width, int]) -> None:
        self.index += 1
        self.values[name] = value
        self.born[name] = self.index
        self.last |= dict.fromkeys((*reads, name), self.index)

    def done(self) -> ModelGraph:
        """End with a layer."""
        output = self.layer("conv", list(self.values)[-1])
        roles = {"input": "input", output: "output"}
        activations = tuple(
            Activation(name, *value, self.born[name], self.last[name], roles.get(name, "hidden"))  # type: ignore[arg-type]
            for name, value in self.values.items()
        )
        groups = tuple(self._group(name, channels, f"g_{output}") for name, channels in self.channels.items())
        return ModelGraph(tuple(self.layers), groups, activations, (3, 8, 8), (1,), 0, {}, steps=tuple(self.steps))

    def _group(self, name: str, channels: int, last: str) -> ChannelGroup:
        made = tuple(layer.name for layer in self.layers if name in dict(layer.out_width.terms))
        read = tuple(x.name for x in self.layers if name in dict(x.in_width.terms) and x.name not in made)
        return ChannelGroup(name, channels, made, read, "network output" if name == last else None)


def network(rng: random.Random) -> ModelGraph:
    """Return a network of two to eight operations."""
    growing = _Growing(rng)
    growing.layer("conv", "input")
    for _ in range(rng.randint(0, 6)):
        if rng.random() < 0.5:
            growing.step()
            continue
        source = rng.choice(list(growing.values))
        deep = rng.random() < 0.3 and len(growing.values[source][0].terms) == 1
        growing.layer("depthwise" if deep else "conv", source)
    return growing.done()


def device(rng: random.Random) -> DeviceProfile:
    """Return a built-in device, or one with every kind of cost."""
    if rng.random() < 0.3:
        return rng.choice(_BUILT_IN)
    boundary = rng.choice([0.0, 3.0])
    return DeviceProfile(
        name="drawn",
        unit="npu",
        pairs={"default": rng.choice(_PAIRS)},
        compute=(
            Throughput(8, 8, 1.0, {"default": 0.5, "depthwise": 0.1}),
            Throughput(4, 8, rng.choice([0.5, 2.0]), {"default": 0.5}),
        ),
        activation_pool=MemoryPool(65536, 1.0),
        weight_store=MemoryPool(None, 0.05, rng.choice([0, 501, 20_000, 1 << 30]), 2.0),
        overheads=Overheads(10.0, 1.0, 0.3, boundary, boundary / 10),
        power=Power({"8x8": 0.5, "4x8": 0.3}, 1.0, 40.0, 15.0),
        channel_multiple=rng.choice([{"default": 1}, {"default": 8}, {"default": 4, "w4": 8}]),
        fallback=Fallback(frozenset(rng.sample(["gelu", "concat", "depthwise", "add"], rng.randint(0, 2))), 0.05, 7.0),
    )


def space(rng: random.Random, graph: ModelGraph, profile: DeviceProfile) -> SearchSpace:
    """Return the network's space on a device, at most three widths a group."""
    whole = build_space(graph, profile)
    keep = {name: (c[0], c[len(c) // 2], c[-1])[: rng.randint(1, 3)] if len(c) > 2 else c
            for name, c in whole.keep.items()}  # fmt: skip
    return replace(whole, keep=keep)


def limits(rng: random.Random, graph: ModelGraph, options: SearchSpace, profile: DeviceProfile) -> dict[str, float]:
    """Return one to six limits between what is cheapest and almost what is widest; some lie below."""
    low, high = count(graph, cheapest_legal(graph, options), profile), count(graph, widest(graph, 8), profile)
    chosen = rng.sample(METRICS, rng.randint(1, len(METRICS)))
    height, base = rng.uniform(0.0, 0.8), rng.choice([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.98])
    return {
        m: low.value(m) * base + height * rng.uniform(0.5, 1.0) * max(high.value(m) - low.value(m), 0) for m in chosen
    }
