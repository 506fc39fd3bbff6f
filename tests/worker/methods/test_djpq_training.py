"""All parts of DJPQ at once: channels and bits of a small network trained together, into a hard budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from app.domain.budget import Budget
from app.domain.cost import count
from app.domain.device import MemoryPool
from app.domain.graph import ModelGraph
from app.domain.space import build_space, widest
from tests.app.domain.drawings import profile
from tests.worker.search.pictures import Drawing
from worker.methods.djpq import UNSIGNED, ChannelGate, LearnedQuantizer
from worker.methods.hardening import Hardened, Learned, hardened
from worker.methods.relaxed_costs import AugmentedLagrangian, RelaxedCosts, Soft

WIDTHS = (8, 4, 2)
DEVICE = profile(
    pairs={"default": tuple((w, a) for w in WIDTHS for a in WIDTHS)}, activation_pool=MemoryPool(None, 1.0)
)


def picture() -> ModelGraph:
    draw = Drawing(64, 1)
    last = draw.linear("second", draw.linear("first", "input", ("g1", 48)), ("g2", 48))
    return draw.finish(draw.linear("head", last, ("out", 10)), frozen=("out",))


class Network(nn.Module):
    """64 - 48 - 48 - 10 with a gate behind each hidden layer and a quantizer on every tensor."""

    layers: Any
    weights: Any
    activations: Any
    gates: Any

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {"first": nn.Linear(64, 48), "second": nn.Linear(48, 48), "head": nn.Linear(48, 10)}
        )
        self.weights, self.activations, self.gates = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:
        for name, layer, gate in zip(self.layers, self.layers.values(), ("g1", "g2", ""), strict=True):
            weight = layer.weight
            if self.weights:
                x, weight = self.activations[name](x), self.weights[name](weight)
            x = F.linear(x, weight, layer.bias)
            if gate in self.gates:
                x = self.gates[gate](x)
            x = F.relu(x) if gate else x
        return x

    def equip(self, x: Tensor) -> None:
        """Add gates and 8-bit quantizers to the trained network."""
        for name, layer in self.layers.items():
            self.activations[name] = LearnedQuantizer(float(x.quantile(0.999)), 8, UNSIGNED)
            self.weights[name] = LearnedQuantizer(layer.weight.detach().abs().max(), 8)
            x = F.relu(layer(x)).detach()
        self.gates.update({"g1": ChannelGate(48, 1.0), "g2": ChannelGate(48, 1.0)})

    def soft(self, graph: ModelGraph) -> Soft:
        """Return what costs are counted from; the network's input has 8 bits, its output is float."""
        keep = {"out": 10.0, **{name: gate.width() for name, gate in self.gates.items()}}
        bits = {name: quantizer.bits() for name, quantizer in self.weights.items()}
        read = {graph.layer[name].input: item.bits() for name, item in self.activations.items()}
        return Soft.of(graph, keep, bits, {**read, "input": 8.0, "head": 32.0})

    def learned(self, graph: ModelGraph) -> Learned:
        """Return what training came to."""
        return Learned(
            {name: gate.log_snr().detach() - gate.log_threshold for name, gate in self.gates.items()},
            {name: quantizer.bits().item() for name, quantizer in self.weights.items()},
            {graph.layer[name].input: self.activations[name].bits().item() for name in ("second", "head")},
        )

    def settle(self, graph: ModelGraph, found: Hardened) -> None:
        """Fix channels and widths."""
        for name, gate in self.gates.items():
            gate.settle(found.kept[name])
        for name in self.layers:
            self.weights[name].restrict(found.assignment.weight_bits[name])
            self.activations[name].restrict(found.assignment.activation_bits[graph.layer[name].input])


Loss = Callable[[], Tensor]


def train(net: Network, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], extra: Loss | None) -> None:
    """Train for an epoch."""
    net.train()
    for rows in torch.randperm(len(data[0])).split(64):
        loss = F.cross_entropy(net(data[0][rows]), data[1][rows])
        optimizer.zero_grad()
        (loss if extra is None else loss + extra()).backward()
        optimizer.step()
        for quantizer in (*net.weights.values(), *net.activations.values()):
            quantizer.project(2, 8)


def accuracy(net: Network, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((net.eval()(data[0]).argmax(1) == data[1]).double().mean())


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    bunch = load_digits()
    x, y = torch.tensor(bunch.data / 16, dtype=torch.float32), torch.tensor(bunch.target)
    return (x[:1300], y[:1300]), (x[1300:], y[1300:])


def test_network_when_trained_under_a_budget_of_2_percent_then_inside_it_and_nearly_as_accurate() -> None:
    torch.manual_seed(0)
    net, graph, (seen, unseen) = Network(), picture(), digits()
    space = build_space(graph, DEVICE)
    costs = RelaxedCosts(graph, DEVICE, space)
    budget = Budget({"bops": 0.02 * count(graph, widest(graph, 32), DEVICE).bops, "weight_bytes": 3000.0})
    plain = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(15):
        train(net, plain, seen, None)
    before = accuracy(net, unseen)

    net.equip(seen[0])
    added = [*net.weights.parameters(), *net.activations.parameters(), *net.gates.parameters()]
    joint = torch.optim.Adam([{"params": net.layers.parameters(), "lr": 1e-3}, {"params": added, "lr": 1e-2}])
    rule = AugmentedLagrangian(budget.limits, kappa=0.5)

    def extra() -> Tensor:
        kl = torch.stack([gate.kl() for gate in net.gates.values()]).sum()
        return 1e-3 * kl + rule.penalty(costs.costs(net.soft(graph), budget.limits))

    for _ in range(20):
        train(net, joint, seen, extra)
        rule = rule.after(costs.costs(net.soft(graph), budget.limits))
    assert max(value.item() for value in rule.excess(costs.costs(net.soft(graph), budget.limits)).values()) < 0.05
    found = hardened(net.learned(graph), graph, space, DEVICE, budget)
    assert found is not None
    net.settle(graph, found)
    for _ in range(5):
        train(net, joint, seen, None)
    assert budget.is_met(count(graph, found.assignment, DEVICE))
    assert {name: q.deploy_bits() for name, q in net.weights.items()} == dict(found.assignment.weight_bits)
    assert before > 0.88
    assert accuracy(net, unseen) > before - 0.02
