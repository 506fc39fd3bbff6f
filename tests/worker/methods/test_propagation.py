"""Moments through a network: exact where a BatchNorm says them, followed behind it, unknown with a reason elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tests.worker.quant.digits import exported
from worker.graph.extents import outputs_of
from worker.graph.ops.table import module_of
from worker.methods.propagation import Propagated, propagate
from worker.methods.statistics import Moments
from worker.quant.equalise import equalised
from worker.search.evaluate import open_network


def normed(channels: int, seed: int = 0) -> nn.BatchNorm2d:
    generator, norm = torch.Generator().manual_seed(seed), nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(channels, generator=generator) + 0.5).mul_(torch.tensor([1, -1] * (channels // 2)))
        norm.bias.copy_(torch.randn(channels, generator=generator))
    return norm


class Behind(nn.Module):
    """A convolution with a BatchNorm, and something behind it."""

    def __init__(self, tail: nn.Module, norms: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(3, 8, 1, bias=False) for _ in range(norms))
        self.norms = nn.ModuleList(normed(8, seed) for seed in range(norms))
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        values = [norm(conv(x)) for conv, norm in zip(self.convs, self.norms, strict=True)]
        return self.tail(*values)  # type: ignore[no-any-return]


class Call(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*values)  # type: ignore[operator,no-any-return]


def read(net: nn.Module) -> fx.GraphModule:
    return open_network(exported(net, (3, 8, 8))).folded


def behind(tail: nn.Module, norms: int = 1) -> tuple[Moments, Tensor]:
    """Return the moments of a network's output, and the output for independent normal values behind the BatchNorms."""
    module = read(Behind(tail, norms))
    found = propagate(module)
    (end,) = outputs_of(module)
    generator = torch.Generator().manual_seed(5)
    draws = []
    for seed in range(norms):
        norm = normed(8, seed)
        z = torch.randn(4000, 8, 8, 8, generator=generator)
        draws.append(z * norm.weight[:, None, None] + norm.bias[:, None, None])
    with torch.no_grad():
        return found.moments[end.name], tail(*draws)


TAILS: Mapping[str, tuple[nn.Module, int]] = {
    "relu": (nn.ReLU(), 1),
    "relu6": (nn.ReLU6(), 1),
    "leaky": (nn.LeakyReLU(0.1), 1),
    "prelu": (nn.PReLU(8, 0.3), 1),
    "silu": (nn.SiLU(), 1),
    "hardswish": (nn.Hardswish(), 1),
    "sigmoid": (nn.Sigmoid(), 1),
    "average": (nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), 1),
    "padded average": (nn.Sequential(nn.ReLU(), nn.AvgPool2d(3, 1, 1)), 1),
    "mean": (Call(lambda x: x.relu().mean((2, 3))), 1),
    "flatten": (nn.Sequential(nn.ReLU(), nn.Flatten()), 1),
    "sum": (Call(torch.add), 2),
    "difference": (Call(torch.sub), 2),
    "concatenation": (Call(lambda a, b: torch.cat([a.relu(), b], 1)), 2),
    "scaled": (Call(lambda x: 0.5 * x.relu() + 1.5), 1),
    "padding": (Call(lambda x: F.pad(x.relu(), (0, 1, 0, 1))), 1),
    "unfolded norm": (nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)), 1),
    "cut": (Call(lambda x: x[:, 2:6]), 1),
}


@pytest.mark.parametrize("name", TAILS)
def test_moments_when_values_are_drawn_behind_the_norms_then_theirs(name: str) -> None:
    tail, norms = TAILS[name]
    found, drawn = behind(tail.eval(), norms)
    flat = drawn.movedim(1, 0).flatten(1).double()
    assert torch.allclose(found.mean, flat.mean(1), atol=0.1 if name == "flatten" else 0.03)
    if name not in ("padded average", "unfolded norm"):  # windows that differ in what they see
        assert torch.allclose(found.variance, flat.var(1), rtol=0.2 if name == "flatten" else 0.06, atol=0.02)


def test_moments_when_a_sum_goes_through_relu_then_the_mean_is_called_a_guess() -> None:
    found, drawn = behind(Call(lambda a, b: torch.relu(a + b)), 2)
    assert found.estimated
    assert torch.allclose(found.mean, drawn.movedim(1, 0).flatten(1).double().mean(1), atol=0.03)
    assert not behind(Call(lambda x: x.relu().mean((2, 3))))[0].estimated


def reasons(tail: nn.Module, norms: int = 1) -> Propagated:
    return propagate(read(Behind(tail, norms)))


@pytest.mark.parametrize(
    ("tail", "norms", "said"),
    [
        (nn.MaxPool2d(2), 1, "max_pool2d is not followed: data needed"),
        (Call(torch.mul), 2, "a product of two values: data needed"),
        (Call(lambda x: x.mean(1)), 1, "a mean over channels: data needed"),
        (Call(lambda x: torch.softmax(x, 1)), 1, "softmax is not followed: data needed"),
        (Call(lambda a, b: torch.cat([a, b], 2)), 2, "a concatenation of positions: data needed"),
        (Call(lambda x: x + torch.ones(8) * torch.arange(8)), 1, "a constant that is not one per channel: data needed"),
    ],
)
def test_moments_when_they_can_t_be_followed_then_why(tail: nn.Module, norms: int, said: str) -> None:
    assert said in reasons(tail, norms).unknown.values()


def test_moments_when_a_norm_follows_something_unknown_then_known_again() -> None:
    tail = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), normed(8, 4), nn.ReLU())
    module = read(Behind(tail))
    found = propagate(module)
    assert outputs_of(module)[0].name in found.moments
    assert any("max_pool2d" in reason for reason in found.unknown.values())


def weights(module: fx.GraphModule, node: fx.Node) -> Tensor:
    leaf: Any = module_of(module, node)
    return leaf.weight.detach().flatten()  # type: ignore[no-any-return]


def test_moments_when_channels_are_equalised_then_divided_by_the_same_scales() -> None:
    tail = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), normed(8, 4), nn.ReLU(), nn.Conv2d(8, 4, 3))
    module = read(Behind(tail))
    scaled = equalised(module)
    assert scaled is not None
    before, after = propagate(module).moments, propagate(scaled).moments
    one, *_ = [node for node in module.graph.nodes if node.op == "call_module"]
    old, new = (weights(item, one) for item in (module, scaled))
    factor = old[::3] / new[::3]
    assert float((factor - 1).abs().max()) > 0.05
    for moments in (before, after):
        assert one.name in moments
    assert torch.allclose(after[one.name].mean, before[one.name].mean / factor, rtol=1e-5)
    assert torch.allclose(after[one.name].variance, before[one.name].variance / factor.square(), rtol=1e-5)
    end = outputs_of(module)[0].name
    assert torch.allclose(after[end].mean, before[end].mean, rtol=1e-4, atol=1e-5)
