"""The trainable network: what it computes is what is stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.worker.methods.digit_subject import subject
from worker.methods.straight import StraightThrough
from worker.methods.trainable import TrainableNetwork
from worker.quant.grids import weight_limit


def network(bits: int = 2) -> TrainableNetwork:
    return TrainableNetwork(subject(bits=bits).network, StraightThrough())


def pictures() -> torch.Tensor:
    return subject().rows.inputs[0][:64]


def jolted(made: TrainableNetwork) -> TrainableNetwork:
    """Move every parameter a little, as training would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for item in made.parameters():
            item += 0.02 * item.abs().mean() * torch.randn(item.shape, generator=generator)
    return made.eval()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_hard_when_nothing_was_trained_then_the_network_it_started_from(bits: int) -> None:
    start, made = subject(bits=bits).network, network(bits).hard()
    assert made.grids.keys() == start.grids.keys()
    for name, layer in start.layers.items():
        assert np.array_equal(made.layers[name].weight_int, layer.weight_int)  # type: ignore[arg-type]
    found, wanted = made.forward(pictures()), start.forward(pictures())
    assert torch.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_forward_when_weights_have_moved_then_the_hard_network_answers_alike(bits: int) -> None:
    made = jolted(network(bits))
    with torch.no_grad():
        (soft,) = made(pictures())
    hard = made.hard().forward(pictures())
    near = (soft - hard).abs().amax(1) < 2e-3 * float(hard.abs().max())
    assert float(near.float().mean()) > 0.9  # sums in another order now and then round a code to the next


def test_hard_when_weights_have_moved_then_integers_within_the_bits_and_biases_on_their_grid() -> None:
    made = jolted(network(4)).hard()
    graph = subject().graph
    for name, layer in made.layers.items():
        assert layer.weight_int is not None and layer.weight_scale is not None
        assert int(np.abs(layer.weight_int).max()) <= weight_limit(layer.bits)
        grid = made.grids.get(graph.layer[name].input)
        if grid is not None:
            codes = layer.bias.astype(np.float64) / (layer.weight_scale.astype(np.float64) * grid.scale)
            assert float(np.abs(codes - np.round(codes)).max()) < 1e-2


def test_forward_when_trained_then_every_parameter_has_a_gradient() -> None:
    made = network().train()
    (answers,) = made(pictures())
    answers.square().sum().backward()
    for name, item in made.named_parameters():
        assert item.grad is not None and bool(torch.isfinite(item.grad).all()), name


def test_hard_when_called_then_the_start_is_untouched() -> None:
    start = subject().network
    before = start.forward(pictures())
    jolted(network()).hard()
    assert torch.equal(start.forward(pictures()), before)


@pytest.mark.parametrize("row", [0, 1])
def test_hard_when_a_bias_is_too_large_for_int32_then_the_scale_is_raised_and_the_bias_stays_an_integer(
    row: int,
) -> None:
    made, graph = network(8), subject(bits=8).graph
    name = next(layer.name for layer in graph.layers if layer.input in subject(bits=8).network.grids)
    with torch.no_grad():
        made.quantizer(name).log_step[row] = -40.0
        made.bias(name)[row] = 3.0
    stored, grid = made.hard().layers[name], made.hard().grids[graph.layer[name].input]
    assert stored.weight_scale is not None
    code = float(stored.bias[row]) / (float(stored.weight_scale[row]) * grid.scale)
    assert abs(code) < 2**31 and code == pytest.approx(round(code), rel=1e-6)
    assert stored.bias[row] == pytest.approx(3.0, rel=1e-6)
    start = made.quantizer(name).scale.detach().numpy()
    assert np.array_equal(np.delete(stored.weight_scale, row), np.delete(start, row))
    assert float(np.log2(stored.weight_scale[row])).is_integer()
