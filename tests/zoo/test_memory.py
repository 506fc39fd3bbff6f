"""The peak of the picture against real runs: every tensor held as long as something still reads it, and no longer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from app.domain.cost import peak_activation_bytes
from app.domain.space import widest
from tests.zoo import ZOO
from tests.zoo.running import folded
from worker.graph.extents import inputs_of
from worker.graph.picture import draw
from worker.graph.sites import quantizer_sites


class Watched(fx.Interpreter):
    """Runs a graph node by node and notes the most bytes alive at once: each storage once, and of a fused chain only
    its result. Values that carry no quantizer (ids, truth values) don't count. Where a runtime runs a kernel and torch
    makes a view (a transposition, a slice), the value is copied as there."""

    def __init__(self, module: fx.GraphModule, kernels: set[str]) -> None:
        super().__init__(module)
        sites = quantizer_sites(module)
        self.counted, self.heads = sites.of, {site.head: site.id for site in sites.sites}
        self.peak, self.kernels = 0, kernels

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.kernels:
            value = value.clone(memory_format=torch.contiguous_format)
        held = {node.name: item for node, item in self.env.items() if isinstance(item, Tensor)}
        if isinstance(value, Tensor):
            held[n.name] = value
        if isinstance(value, Tensor) and n.name in self.heads.values() and n.name not in self.heads:
            held = {name: item for name, item in held.items() if self.heads.get(name) != n.name}
        alive = {
            item.untyped_storage().data_ptr(): item.untyped_storage().nbytes()
            for name, item in held.items()
            if name in self.counted or name in self.heads
        }
        self.peak = max(self.peak, sum(alive.values()))
        return value


@pytest.mark.parametrize("name", list(ZOO))
def test_peak_when_a_network_runs_then_the_picture_knows_it(name: str) -> None:
    module, plan = folded(name)
    graph = draw(module, plan)
    watched = Watched(module, {step.name for step in graph.steps})
    with torch.no_grad():
        watched.run(*(item.example() for item in inputs_of(module)))
    modelled = peak_activation_bytes(graph, widest(graph, 32))
    assert modelled == watched.peak
