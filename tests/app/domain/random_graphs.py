"""Random pictures of networks, the programs they stand for, random devices, and random assignments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from app.domain.device import DeviceProfile, Fallback, MemoryPool, Overheads, Power
from app.domain.graph import Activation, ChannelGroup, Layer, LayerKind, ModelGraph, Step, Width
from app.domain.latency import LatencyTable, Work
from app.domain.space import Assignment, SearchSpace
from tests.app.domain.drawings import profile

DEVICES = Path(__file__).resolve().parents[3] / "app" / "devices"
BUILT_IN = sorted(path.stem for path in DEVICES.glob("*.json"))


def built_in(name: str) -> DeviceProfile:
    return DeviceProfile.from_json(json.loads((DEVICES / f"{name}.json").read_text()))


class Stopwatch(LatencyTable):
    """A latency table with times that grow with every extent: what a calibrated device answers."""

    overhead_ms = 0.07

    def kernel_ms(self, work: Work) -> float:
        each = {"float": 3e-6, "int16": 2e-6, "uint8": 1.5e-6, "int8": 1e-6}[work.precision]
        return 2e-3 + each * work.macs + 5e-6 * work.outs * work.positions  # type: ignore[no-any-return]


TABLE = Stopwatch({})


@dataclass(frozen=True)
class Call:
    """One operation of the program a picture stands for."""

    reads: tuple[str, ...]
    writes: str


class _Network:
    """Grows a network operation by operation."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.channels: dict[str, int] = {}
        self.values: dict[str, tuple[Width, int]] = {"input": (Width((), 3), draw(st.sampled_from([16, 64])))}
        self.layers: list[Layer] = []
        self.steps: list[Step] = []
        self.program: list[Call] = [Call((), "input")]

    def grow(self) -> None:
        source = self.draw(st.sampled_from(list(self.values)))
        kind = self.draw(st.sampled_from(["conv", "conv", "depthwise", "add", "concat", "pool", "gelu"]))
        width, positions = self.values[source]
        if kind in ("conv", "depthwise"):
            self._layer("depthwise" if kind == "depthwise" and len(width.terms) == 1 else "conv", source)
        elif kind == "add":
            like = [name for name, value in self.values.items() if value == (width, positions)]
            self._step("add", tuple(dict.fromkeys((source, self.draw(st.sampled_from(like))))), width)
        elif kind == "concat":
            others = [name for name, (_, at) in self.values.items() if at == positions]
            other = self.draw(st.sampled_from(others))
            joined = Width(width.terms + self.values[other][0].terms, width.fixed + self.values[other][0].fixed)
            self._step("concat", tuple(dict.fromkeys((other, source))), joined)
        else:
            self._step({"pool": "avg_pool2d"}.get(kind, kind), (source,), width, 4 if kind == "pool" else 1)

    def _layer(self, kind: LayerKind, source: str) -> None:
        width, positions = self.values[source]
        name = f"layer{len(self.program)}"
        if kind == "depthwise":
            out, ins, groups = width, 1, width.kept(self.channels)
        else:
            self.channels[f"g{name}"] = self.draw(st.integers(1, 70))
            out, ins, groups = Width(((f"g{name}", 1),)), width.kept(self.channels), 1
        kernel = self.draw(st.sampled_from([(1, 1), (3, 3)]))
        shape = (out.kept(self.channels), ins, *kernel)
        index = len(self.program)
        self.layers.append(Layer(name, kind, shape, groups, positions, width, out, source, name, True, index, (1, 1)))
        self._write(name, (source,), (out, positions))

    def _step(self, kind: str, sources: tuple[str, ...], width: Width, window: int = 1) -> None:
        name, positions = f"{kind}{len(self.program)}", self.values[sources[0]][1]
        after = max(1, positions // window)
        self.steps.append(Step(name, kind, sources, name, width, after, window, len(self.program)))
        self._write(name, sources, (width, after))

    def _write(self, name: str, reads: tuple[str, ...], value: tuple[Width, int]) -> None:
        self.program.append(Call(reads, name))
        self.values[name] = value

    def picture(self) -> ModelGraph:
        last = {call.writes: index for index, call in enumerate(self.program)}
        last |= {name: index for index, call in enumerate(self.program) for name in call.reads}
        output = self.program[-1].writes
        roles = {"input": "input", output: "output"}
        born = {call.writes: index for index, call in enumerate(self.program)}
        activations = tuple(
            Activation(name, *value, born[name], last[name], roles.get(name, "hidden"))  # type: ignore[arg-type]
            for name, value in self.values.items()
        )
        groups = tuple(self._group(name, channels, output) for name, channels in self.channels.items())
        return ModelGraph(tuple(self.layers), groups, activations, (3, 8, 8), (1,), 0, {}, steps=tuple(self.steps))

    def _group(self, name: str, channels: int, output: str) -> ChannelGroup:
        made = tuple(layer.name for layer in self.layers if name in dict(layer.out_width.terms))
        read = tuple(
            layer.name for layer in self.layers if name in dict(layer.in_width.terms) and layer.name not in made
        )
        frozen = "network output" if name in dict(self.values[output][0].terms) else None
        return ChannelGroup(name, channels, made, read, frozen)


@st.composite
def networks(draw: st.DrawFn) -> tuple[ModelGraph, tuple[Call, ...]]:
    """Draw a picture and its program; a table is looked up in some, and the last value is the output."""
    net = _Network(draw)
    net._layer("conv", "input")
    for _ in range(draw(st.integers(1, 9))):
        net.grow()
    net._layer("conv", net.program[-1].writes)
    graph = net.picture()
    if draw(st.booleans()):
        lookup = Step("lookup", "embedding", (), None, Width(((graph.groups[0].id, 1),)), 5, step=1, table=11)
        graph = replace(graph, steps=(lookup, *graph.steps))
    return graph, tuple(net.program)


def devices() -> st.SearchStrategy[DeviceProfile]:
    """Draw a device with every kind of cost there is, or a built-in one."""
    made = st.builds(
        lambda cache, multiple, falls, boundary, table: profile(
            weight_store=MemoryPool(None, 0.05, cache, 2.0 if cache % 2 else None),
            channel_multiple=multiple,
            overheads=Overheads(10.0, 1.0, 0.3, boundary, boundary / 10),
            power=Power({"8x8": 0.5, "4x8": 0.3}, 1.0, 40.0, 15.0),
            fallback=Fallback(falls, 0.05, 7.0),
            table=table,
        ),
        st.sampled_from([0, 501, 20_000, 1 << 30]),
        st.sampled_from([{"default": 1}, {"default": 8}, {"default": 8, "w4": 16, "w2": 32}]),
        st.frozensets(st.sampled_from(["gelu", "concat", "depthwise", "add"])),
        st.sampled_from([0.0, 3.0]),
        st.sampled_from([None, None, TABLE]),
    )
    return st.one_of(made, st.sampled_from(BUILT_IN).map(built_in))


def assignments(space: SearchSpace) -> st.SearchStrategy[Assignment]:
    """Draw any choices of a space (pairs of bits may be illegal)."""

    def chosen(options: Mapping[str, tuple[int, ...]]) -> st.SearchStrategy[Any]:
        return st.fixed_dictionaries({name: st.sampled_from(choices) for name, choices in options.items()})

    return st.builds(Assignment, chosen(space.keep), chosen(space.weight_bits), chosen(space.activation_bits))
