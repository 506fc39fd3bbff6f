"""Equalisation: the same function, alike ranges, and what it is for: one scale per tensor after a hostile rescale."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from app.domain.space import widest
from tests.worker.quant.digits import data, device, exported
from worker.graph.groups import weighted_layers
from worker.graph.ops.table import module_of
from worker.quant.equalise import equalised
from worker.quant.walk import run
from worker.search import evaluate
from worker.search.evaluate import Evaluator, EvaluatorOptions, Opened, open_evaluator, open_network


def plain() -> nn.Module:
    """A chain with everything that scales pass: ReLU, pools, a depthwise layer."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 10)).eval()


def rescaled(net: nn.Module, seed: int = 1) -> nn.Module:
    """Return the same function with the channels between the first layers scaled by factors from 1/30 to 30."""
    found, rng = copy.deepcopy(net), np.random.default_rng(seed)
    for one, other, depthwise in ((0, 2, True), (2, 5, False)):
        factor = torch.from_numpy(np.exp(rng.uniform(-3.4, 3.4, 12))).float()
        with torch.no_grad():
            found[one].weight *= factor.reshape(-1, 1, 1, 1)  # type: ignore[index]
            found[one].bias *= factor  # type: ignore[index]
            shape = (-1, 1, 1, 1) if depthwise else (1, -1, 1, 1)
            found[other].weight /= factor.reshape(shape)  # type: ignore[index]
    return found


def opened(net: nn.Module) -> Opened:
    return open_network(exported(net, (1, 8, 8)))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_equalised_when_channels_were_rescaled_then_the_function_stays_and_ranges_are_alike(seed: int) -> None:
    network = opened(rescaled(plain(), seed))
    found = equalised(network.folded)
    assert found is not None
    x = data()["evaluation"].inputs[0][:64]
    assert torch.allclose(run(found, x), run(network.folded, x), rtol=1e-3, atol=1e-4)
    first, second, third = (module_of(found, node).weight.detach() for node in weighted_layers(found)[:3])
    ratios = [first.abs().amax((1, 2, 3)) / second.abs().amax((1, 2, 3))]
    ratios += [second.abs().amax((1, 2, 3)) / third.abs().amax((0, 2, 3))]
    for ratio in ratios:
        assert torch.allclose(ratio, torch.ones(12), atol=0.05)


def test_equalised_when_no_layer_follows_another_alone_then_none() -> None:
    assert (
        equalised(opened(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 5))).folded)
        is None
    )


def test_equalised_when_a_channel_is_dead_then_finite_and_the_same_function() -> None:
    net = plain()
    with torch.no_grad():
        net[0].weight[3] = 0.0  # type: ignore[index]
        net[5].weight[:, 4] = 0.0  # type: ignore[index]
    network = opened(net)
    found = equalised(network.folded)
    assert found is not None
    x = data()["evaluation"].inputs[0][:16]
    assert torch.allclose(run(found, x), run(network.folded, x), rtol=1e-3, atol=1e-4)


OPTIONS = EvaluatorOptions(calibration=128, full=256)


def loss_of(evaluator: Evaluator) -> float:
    return evaluator.evaluate(widest(evaluator.graph, 8), "full", "none").metrics["kl"]


def test_open_evaluator_when_the_device_has_one_scale_per_tensor_then_a_hostile_rescale_is_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = opened(rescaled(plain()))
    mended = open_evaluator(network, data(), device(()), OPTIONS)
    assert mended.is_equalised
    monkeypatch.setattr(evaluate, "equalised", lambda module: None)  # as if no two layers could be
    left = open_evaluator(network, data(), device(()), OPTIONS)
    assert not left.is_equalised
    assert loss_of(mended) < 0.1 * loss_of(left)


def test_open_evaluator_when_scales_are_per_channel_then_nothing_is_equalised() -> None:
    assert not open_evaluator(opened(rescaled(plain())), data(), device(), OPTIONS).is_equalised
