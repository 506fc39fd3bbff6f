"""The simulation: values travel as codes, and the answers are those of rounding every real value on its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from tests.worker.quant.digits import assignment, random_evaluator
from worker.quant.integer import Codes, encode
from worker.quant.network import CompressedNetwork
from worker.quant.simulation import Simulation, real
from worker.quant.walk import Walk


class Mixed(nn.Module):
    """What codes pass through: pools, clamps, moves, readers of real numbers beside kernels."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.last, self.head = nn.Conv2d(8, 6, 3), nn.Linear(6 * 3 * 3, 5)
        self.start = start

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.max_pool2d(torch.clamp(self.stem(x), self.start, 0.4), 3, 2, 1)
        y = F.relu(x + self.side(x))
        gate = torch.sigmoid(y.mean((2, 3), keepdim=True))
        z = F.hardtanh(self.last(y * gate), -0.3, 0.3)
        return self.head(torch.flatten(z, 1)), torch.tanh(y.mean((2, 3)))


class Plain(fx.Interpreter):
    """Runs the graph by torch.fx; kernels by their codes, all else on real values rounded behind each site."""

    def __init__(self, net: CompressedNetwork) -> None:
        super().__init__(net.module)
        self.net = net
        self.kernels = Simulation(net)._kernels
        self.sources: dict[str, list[Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.kernels:
            grids = self._grids(n)
            values = [self.env[source] for source in n.all_input_nodes]
            return self.kernels[n.name]([encode(*pair) for pair in zip(values, grids, strict=True)]).real()
        value = super().run_node(n)
        grid = self.net.grids.get(n.name)
        return value if grid is None else grid.fake_quantize_(value.clone())

    def _grids(self, n: fx.Node) -> list[Any]:
        from worker.graph.sites import quantizer_sites

        of = quantizer_sites(self.net.module).of
        return [self.net.grids[of[source.name]] for source in n.all_input_nodes]


def pictures(count: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(5))


def network(bits: int, start: float = 0.0) -> CompressedNetwork:
    torch.manual_seed(1)
    owner = random_evaluator(Mixed(start), (3, 9, 9))
    return owner.compress(assignment(owner.graph, 1.0, 8, bits), "fast")


@pytest.mark.parametrize("start", [0.0, -0.2, 0.1])
@pytest.mark.parametrize("bits", [8, 5, 2, 16])
def test_forward_when_values_travel_as_codes_then_as_if_they_were_real(bits: int, start: float) -> None:
    net = network(bits, start)
    with torch.no_grad():
        wanted = Plain(net).run(pictures())
    for found, value in zip(net.forward(pictures()), wanted, strict=True):
        assert torch.equal(found, value)


def test_follow_when_shown_values_then_the_outputs_stay_and_every_site_is_shown_once() -> None:
    net, shown = network(8), []

    def seen(name: str, value: torch.Tensor) -> torch.Tensor:
        shown.append(name)
        grid = net.grids[name]
        assert torch.equal(value, grid.fake_quantize_(value.clone()))
        return value

    outputs = net.follow(pictures(), seen=seen)
    assert sorted(shown) == sorted(net.grids)
    assert all(torch.equal(*pair) for pair in zip(outputs, net.forward(pictures()), strict=True))


def test_advance_when_in_stretches_and_forks_then_the_outputs_of_one_run() -> None:
    net = network(8)
    wanted = net.forward(pictures())
    for stop in range(1, len(net.module.graph.nodes)):
        walk = Walk((pictures(),))
        Simulation(net, 0, stop).advance(walk)
        assert walk.step == stop
        for fork in (walk.fork(), walk):
            Simulation(net, stop).advance(fork)
            assert all(torch.equal(*pair) for pair in zip(fork.outputs(net.module), wanted, strict=True))


def test_forward_when_values_are_kept_as_codes_then_the_memory_of_bytes() -> None:
    net, walk = network(8), Walk((pictures(),))
    names = [node.name for node in net.module.graph.nodes]
    Simulation(net, 0, names.index("side")).advance(walk)
    kept = list(walk.values.values())
    assert [type(item) for item in kept] == [Codes] and kept[0].raw.dtype == torch.uint8
    assert real(kept[0]).dtype == torch.float32


def test_forward_when_the_input_is_not_a_number_then_refused() -> None:
    with pytest.raises(ArithmeticError, match="not a number"):
        network(8).forward(torch.full((2, 3, 9, 9), float("nan")))
