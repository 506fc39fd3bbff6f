"""High biases absorbed: the same function where it can be, the same mean where it can't, a narrower range."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tests.worker.quant.digits import data, device, exported
from worker.graph.groups import weighted_layers
from worker.graph.ops.table import module_of
from worker.quant.absorb import absorbed
from worker.quant.walk import run
from worker.search.evaluate import EvaluatorOptions, open_evaluator, open_network

HIGH = 12.0


class Chain(nn.Module):
    """Two convolutions with a BatchNorm between; `act` 0: nothing, 1: ReLU, 2: ReLU, pooling and padding."""

    def __init__(self, act: int = 1, padding: int = 0, groups: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.act = act
        self.one, self.bn = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 8, 3, padding=padding, groups=groups)
        self.head = nn.Linear(8, 10)
        with torch.no_grad():
            self.bn.bias.copy_(torch.tensor([HIGH, HIGH, HIGH, HIGH, 0.5, -2.0, 2.9, 3.1]))
            self.bn.weight.copy_(torch.tensor([1.0, -1.0, 0.5, 2.0, 1.0, 1.0, 1.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.one(x))
        x = F.relu(x) if self.act else x
        x = F.pad(F.max_pool2d(x, 2), (1, 0, 0, 1)) if self.act == 2 else x
        return self.head(F.relu(self.two(x)).mean((2, 3)))  # type: ignore[no-any-return]


def opened(net: Chain) -> fx.GraphModule:
    """Return the network folded, its BatchNorm's statistics those of the evaluation pictures."""
    x = pictures()
    with torch.no_grad():
        outputs = net.one(x)
        net.bn.running_mean, net.bn.running_var = outputs.mean((0, 2, 3)), outputs.var((0, 2, 3))
    return open_network(exported(net, (1, 8, 8))).folded


def pictures() -> Tensor:
    return data()["evaluation"].inputs[0]


def seen(module: fx.GraphModule, layer: int) -> Tensor:
    """Return a layer's outputs on the pictures."""
    found: dict[str, Tensor] = {}
    run(module, pictures(), after=lambda name, value: found.setdefault(name, value.clone()))
    return found[list(weighted_layers(module))[layer].name]


def layer_of(module: fx.GraphModule, index: int) -> Any:
    return module_of(module, list(weighted_layers(module))[index])


def test_absorbed_when_beta_is_beyond_three_gammas_then_so_much_leaves_the_bias_and_beta() -> None:
    module = opened(Chain())
    found = absorbed(module)
    assert found is not None
    moved = torch.tensor([9.0, 9.0, 10.5, 6.0, 0.0, 0.0, 0.0, 0.1])
    for name in ("bias", "bn_beta"):
        fell = getattr(layer_of(module, 0), name) - getattr(layer_of(found, 0), name)
        assert torch.allclose(fell, moved, atol=1e-5)
    assert torch.equal(layer_of(found, 0).bn_gamma, layer_of(module, 0).bn_gamma)
    rise = layer_of(found, 1).bias - layer_of(module, 1).bias
    assert torch.allclose(rise, layer_of(module, 1).weight.sum((2, 3)) @ moved, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 8])
def test_absorbed_when_nothing_lies_below_and_nothing_is_padded_then_the_same_function(groups: int) -> None:
    module = opened(Chain(groups=groups))
    lowest = seen(module, 0).amin((0, 2, 3))
    sigmas = 3.0
    while bool((lowest[:4] < HIGH - sigmas * torch.tensor([1.0, 1.0, 0.5, 2.0])).any()):
        sigmas += 0.25
    found = absorbed(module, sigmas)
    assert found is not None and sigmas < 6
    assert torch.allclose(run(found, pictures()), run(module, pictures()), atol=2e-5)
    assert seen(found, 0).max() < seen(module, 0).max() - 2


def test_absorbed_when_no_activation_lies_between_then_the_mean_goes_and_the_function_stays() -> None:
    module = opened(Chain(act=0))
    found = absorbed(module)
    assert found is not None
    assert float(layer_of(found, 0).bn_beta.abs().max()) == 0
    assert float(seen(found, 0).mean((0, 2, 3)).abs().max()) < 1e-4
    assert torch.allclose(run(found, pictures()), run(module, pictures()), atol=2e-5)


@pytest.mark.parametrize(("act", "padding"), [(1, 1), (2, 0), (2, 1)])
def test_absorbed_when_the_next_layer_sees_zeros_at_the_border_then_its_mean_stays(act: int, padding: int) -> None:
    module = opened(Chain(act, padding))
    found = absorbed(module)
    assert found is not None
    before, after = (seen(item, 1) for item in (module, found))
    assert float((after - before).abs().max()) > 0.1  # at the border
    error = (after - before).mean((0, 2, 3))
    whole = layer_of(module, 1).weight.sum((2, 3)) @ torch.tensor([9.0, 9.0, 10.5, 6.0, 0.0, 0.0, 0.0, 0.1])
    plain = error + whole - (layer_of(found, 1).bias - layer_of(module, 1).bias)  # every tap counted whole
    assert float(error.abs().max()) < 0.02
    assert float(error.abs().max()) < 0.05 * float(plain.abs().max())


def test_absorbed_when_no_bias_is_high_or_no_batchnorm_is_there_then_none() -> None:
    low = Chain()
    nn.init.constant_(low.bn.bias, 1.0)
    assert absorbed(opened(low)) is None
    chain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    assert absorbed(open_network(exported(chain, (1, 8, 8))).folded) is None


def test_open_evaluator_when_high_biases_spoil_the_range_then_absorbed_and_judged_by_the_float_network_given() -> None:
    net = Chain()
    with torch.no_grad():
        net.bn.bias[:4] *= 20
        net.two.weight[:, :4] /= 50
    opened(net)
    network = open_network(exported(net, (1, 8, 8)))
    options = EvaluatorOptions(calibration=128, full=256)
    mended = open_evaluator(network, data(), device(()), options)
    assert mended.conditioned["absorbed"]
    assert torch.equal(mended.float_outputs("full")[0], run(network.folded, pictures()[:256]))
    assert open_evaluator(network, data(), device(), options).conditioned == {}
