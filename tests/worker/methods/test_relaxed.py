"""The quick samples of relaxed quantization against the equations as autograd sees them, and the quantizer module."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.methods.relaxed import (
    CHUNK,
    KAPPA_RANGE,
    WIDE_KAPPA,
    Fading,
    IntegerGrid,
    Relaxation,
    RelaxedQuantization,
    RelaxedQuantizer,
    expectation,
    half_width,
    log_probabilities,
    sample,
)
from worker.quant.grids import ActivationGrid, round_weight, weight_scales
from worker.quant.layer import QuantizedLayer

TEMPERATURES = [0.5, 1.0, 1.7]


def by_the_equations(
    x: Tensor, scale: Tensor, kappa: Tensor, grid: IntegerGrid, how: Relaxation, uniform: Tensor
) -> Tensor:
    """Sample with Gumbel noise and softmax, every step left to autograd."""
    column = scale.reshape(-1, *[1] * (x.dim() - 1))
    log, points = log_probabilities(x, column, kappa, grid, half_width(float(kappa.detach()), how.delta))
    logits = (log - (-uniform.movedim(0, -1).log()).log()) / how.temperature
    soft = logits.softmax(-1)
    if how.straight_through:
        soft = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]) + soft - soft.detach()
    return column * (soft * points).sum(-1)


def drawn(seed: int, shape: tuple[int, ...], reach: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return values, a few of them far outside any grid, and noise."""
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.randn(shape, generator=generator, dtype=dtype)
    x.view(-1)[:3] = torch.tensor([60.0, -60.0, 0.0], dtype=dtype)
    return x, torch.rand(2 * reach + 1, *shape, generator=generator, dtype=dtype).clamp_min(1e-7)


def graded(function: Any, *values: Tensor) -> tuple[Tensor, list[Tensor]]:
    values = tuple(item.detach().clone().requires_grad_() for item in values)
    found = function(*values)
    ramp = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    return found.detach(), list(torch.autograd.grad((found * ramp).sum(), values))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0.05, 1),
    st.sampled_from(TEMPERATURES),
    st.booleans(),
    st.sampled_from([(-1, 1), (-7, 7), (0, 3), (0, 255), (-2, 1), (-100, 27)]),
    st.booleans(),
)
def test_sample_when_given_noise_then_values_and_gradients_of_the_equations(
    seed: int, kappa: float, temperature: float, through: bool, ends: tuple[int, int], per_channel: bool
) -> None:
    how = Relaxation(3, temperature, straight_through=through)
    x, uniform = drawn(seed, (3, 5, 4), half_width(kappa, 3))
    scale = torch.tensor([0.2, 0.9, 2.5] if per_channel else [0.7], dtype=torch.float64)
    grid, noise = IntegerGrid(*ends), torch.tensor(kappa, dtype=torch.float64)
    one = graded(lambda x, scale, kappa: sample(x, scale, kappa, grid, how, uniform), x, scale, noise)
    other = graded(lambda x, scale, kappa: by_the_equations(x, scale, kappa, grid, how, uniform), x, scale, noise)
    assert torch.allclose(one[0], other[0], rtol=1e-9, atol=1e-9)
    for found, wanted in zip(one[1], other[1], strict=True):
        assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kappa", [0.05, 1 / 3, 1.0])
def test_sample_when_longer_than_a_step_in_float32_then_as_the_equations_in_float64(kappa: float) -> None:
    x, uniform = drawn(0, (CHUNK + 4_000,), half_width(kappa, 3), torch.float32)
    grid, how = IntegerGrid(-7, 7), Relaxation()
    scale, noise = torch.tensor([0.6]), torch.tensor(kappa)
    one = graded(lambda x, scale, kappa: sample(x, scale, kappa, grid, how, uniform), x, scale, noise)
    wide = [item.double() for item in (x, scale, noise)]
    other = graded(lambda x, scale, kappa: by_the_equations(x, scale, kappa, grid, how, uniform.double()), *wide)
    assert float((one[0] - other[0]).abs().max()) < 2e-4
    assert float((one[1][0] - other[1][0]).abs().max()) < 2e-3
    for found, wanted in zip(one[1][1:], other[1][1:], strict=True):
        assert float(found) == pytest.approx(float(wanted), rel=2e-4, abs=0.05)


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (4, 6, 5), (2, 3, 4, 5, 2)])
def test_sample_when_channels_come_last_in_memory_then_they_stay_so(shape: tuple[int, ...]) -> None:
    x, uniform = drawn(0, shape, 1)
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    grid, kappa = IntegerGrid(-7, 7), torch.tensor(1 / 3, dtype=torch.float64)
    scale = torch.linspace(0.5, 1.5, shape[0], dtype=torch.float64)
    one = graded(lambda x, scale, kappa: sample(x, scale, kappa, grid, Relaxation(), uniform), last, scale, kappa)
    other = graded(lambda x, scale, kappa: sample(x, scale, kappa, grid, Relaxation(), uniform), x, scale, kappa)
    assert one[0].movedim(1, -1).is_contiguous()
    assert torch.equal(one[0], other[0])
    assert all(torch.allclose(found, wanted) for found, wanted in zip(one[1], other[1], strict=True))


@pytest.mark.parametrize(("kappa", "delta"), [(1 / 3, 3.0), (0.5, 3.0), (1.0, 3.0), (1.0, 6.0)])
def test_sample_when_it_draws_its_noise_then_distributed_as_with_gumbel_noise(kappa: float, delta: float) -> None:
    """Spacings of uniform numbers are exponentials divided by their sum: two-sample Kolmogorov-Smirnov, p = 0.001."""
    count, how = 40_000, Relaxation(delta)
    x, grid = torch.full((count,), 0.37), IntegerGrid(-7, 7)
    scale, noise = torch.ones(1), torch.tensor(kappa)
    torch.manual_seed(0)
    one = sample(x, scale, noise, grid, how)
    uniform = torch.rand(2 * half_width(kappa, delta) + 1, count).clamp_min(1e-7)
    other = sample(x, scale, noise, grid, how, uniform)
    joint = torch.cat([one, other]).sort().values
    shares = [torch.searchsorted(item.sort().values, joint, right=True) / count for item in (one, other)]
    assert float((shares[0] - shares[1]).abs().max()) < 1.95 * math.sqrt(2 / count)


def test_sample_when_seeded_then_the_same_again_and_new_each_time() -> None:
    quantizer, x = RelaxedQuantizer.of_weights(torch.tensor([0.1]), 4), torch.linspace(-1, 1, 1000)
    torch.manual_seed(3)
    one, other = quantizer(x), quantizer(x)
    torch.manual_seed(3)
    assert torch.equal(quantizer(x), one)
    assert not torch.equal(one, other)


def test_sample_when_taped_then_keeps_three_numbers_per_value() -> None:
    kept: list[int] = []

    def keep(item: Tensor) -> Tensor:
        kept.append(item.numel())
        return item

    quantizer, x = RelaxedQuantizer.of_weights(torch.tensor([0.1]), 8), torch.randn(10_000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda item: item):
        quantizer(x)
    assert sum(kept) <= 3 * x.numel() + 8


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8), st.floats(1e-4, 3), st.booleans())
def test_evaluation_when_of_an_activation_then_the_bits_of_its_grid(
    seed: int, bits: int, scale: float, signed: bool
) -> None:
    start = ActivationGrid(float(torch.tensor(scale)), 2 ** (bits - 1) if signed else 0, bits)
    quantizer = RelaxedQuantizer.of_activations(start).eval()
    grid = quantizer.grid()
    assert grid.scale == pytest.approx(start.scale, rel=1e-6)
    assert (grid.zero_point, grid.bits) == (start.zero_point, bits)
    x = 2 ** (bits - 1) * scale * torch.randn(200, generator=torch.Generator().manual_seed(seed))
    x[:100] = (x[:100] / grid.scale).round() * grid.scale + grid.scale / 2  # midpoints
    assert torch.equal(quantizer(x), grid.fake_quantize(x))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_evaluation_when_of_weights_then_the_integers_of_nearest_rounding(bits: int, per_channel: bool) -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer = RelaxedQuantizer.of_weights(weight_scales(weight, bits, per_channel), bits).eval()
    scale = quantizer.scale
    assert scale.shape == (6 if per_channel else 1,)
    assert scale.dtype == torch.float32
    assert torch.equal(quantizer.integers(weight), round_weight(weight, scale, bits))
    assert torch.equal(quantizer(weight), round_weight(weight, scale, bits) * scale.reshape(-1, 1, 1, 1))


def test_scale_when_a_device_wants_powers_of_two_then_one_and_it_still_learns() -> None:
    quantizer = RelaxedQuantizer.of_weights(torch.tensor([0.3, 0.2]), 4, Relaxation(powers=True))
    assert quantizer.scale.tolist() == [0.25, 0.25]
    quantizer(torch.randn(2, 50)).square().sum().backward()
    assert quantizer.log_scale.grad is not None
    assert bool((quantizer.log_scale.grad > 0).all())


def test_kappa_when_pushed_beyond_its_range_then_held_there_and_free_to_return() -> None:
    quantizer = RelaxedQuantizer.of_weights(torch.tensor([0.3]), 4)
    for value, limit in ((-9.0, KAPPA_RANGE[0]), (3.0, KAPPA_RANGE[1])):
        quantizer.log_kappa.data.fill_(value)
        quantizer.log_kappa.grad = None
        quantizer(torch.randn(400)).square().sum().backward()
        assert quantizer.kappa == pytest.approx(limit)
        assert quantizer.log_kappa.grad is not None
        assert float(quantizer.log_kappa.grad) != 0


def test_scale_when_untrained_then_the_bits_of_the_one_given() -> None:
    scale = torch.rand(1000) + 1e-3
    assert not torch.equal(scale.log().exp(), scale)
    assert torch.equal(RelaxedQuantizer.of_weights(scale, 4).scale, scale)


def test_fading_when_training_goes_on_then_noise_falls_to_the_floor_and_ends() -> None:
    fading = Fading(settled=0.25)
    assert [fading.ceiling(share, 0.35) for share in (0.0, 0.375, 0.75, 1.0)] == [0.35, pytest.approx(0.2), None, None]
    assert fading.ceiling(0.75 - 1e-9, 0.35) == pytest.approx(KAPPA_RANGE[0])
    assert Fading(settled=0.0).ceiling(0.999, 0.35) == pytest.approx(KAPPA_RANGE[0], abs=1e-3)
    assert Fading(settled=1.0).ceiling(0.0, 0.35) is None


def test_quantizer_when_told_of_training_then_noise_at_most_the_ceiling_and_still_learned() -> None:
    quantizer = RelaxedQuantizer.of_weights(torch.tensor([0.3]), 4, Relaxation(kappa=0.3), Fading(settled=0.5))
    quantizer.at(0.25)
    quantizer(torch.randn(400)).square().sum().backward()
    assert quantizer.kappa == pytest.approx((0.3 + KAPPA_RANGE[0]) / 2)
    assert quantizer.log_kappa.grad is not None
    quantizer.log_kappa.data.fill_(math.log(0.1))
    quantizer(torch.randn(400))
    assert quantizer.kappa == pytest.approx(0.1)


def test_quantizer_when_settled_then_rounds_as_in_evaluation_with_gradients_of_the_mean() -> None:
    torch.manual_seed(0)
    how, kappa = Relaxation(kappa=0.2, straight_through=True), torch.tensor(WIDE_KAPPA, dtype=torch.float64)
    quantizer = RelaxedQuantizer.of_weights(torch.tensor([0.3, 0.2]), 3, how, Fading(settled=0.5))
    quantizer.at(0.5)
    quantizer.log_kappa.data.fill_(math.log(KAPPA_RANGE[0]))
    x = torch.randn(2, 500, requires_grad=True)
    found = quantizer(x)
    assert torch.equal(found, quantizer.hard(x))
    (slope,) = torch.autograd.grad(found.sum(), x)
    exact = x.detach().double().requires_grad_()
    column = torch.tensor([[0.3], [0.2]], dtype=torch.float64)
    mean = expectation(exact, column, kappa, quantizer.range, half_width(WIDE_KAPPA, how.delta))
    (wanted,) = torch.autograd.grad(mean.sum(), exact)
    assert torch.allclose(slope.double(), wanted, atol=1e-4)


def test_quantizer_when_trained_on_the_rounding_error_then_scales_suit_the_values() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4000) * torch.tensor([[1.0], [0.1]])
    quantizer = RelaxedQuantizer.of_weights(torch.tensor([2.0, 0.2]), 4)
    start = float((quantizer.hard(x) - x).square().mean())
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        ((quantizer(x) - x) / x.std(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    best = torch.tensor([0.335, 0.0335])  # of 15 levels for a normal distribution
    assert torch.allclose(quantizer.scale, best, rtol=0.25)
    assert quantizer.kappa < 0.15
    assert float((quantizer.hard(x) - x).square().mean()) < 0.1 * start


def test_quantizers_when_made_for_a_network_then_from_stored_scales_and_grids() -> None:
    made, scale = RelaxedQuantization(Relaxation(kappa=0.2)), np.array([0.5, 0.25], np.float32)
    codes = np.ones((2, 3), np.int8)
    weight: Any = made.weight(QuantizedLayer("head", 4, np.zeros(2, np.float32), codes, scale))
    assert weight.scale.tolist() == pytest.approx(scale.tolist())
    assert (weight.range.low, weight.range.high, weight.kappa) == (-7, 7, pytest.approx(0.2))
    site: Any = made.site(ActivationGrid(0.125, 3, 4))
    assert (site.range.low, site.range.high) == (-3, 12)
    assert site.grid() == ActivationGrid(0.125, 3, 4)


@pytest.mark.parametrize(
    "build",
    [
        lambda: IntegerGrid(1, 3),
        lambda: IntegerGrid(0, 0),
        lambda: Relaxation(delta=0),
        lambda: Relaxation(delta=7),
        lambda: Relaxation(temperature=0),
        lambda: Relaxation(kappa=2),
        lambda: Fading(settled=1.1),
        lambda: RelaxedQuantizer(torch.ones(1), 2, IntegerGrid(-2, 2)),
        lambda: RelaxedQuantizer(torch.zeros(1), 2, IntegerGrid(-1, 1)),
        lambda: RelaxedQuantizer(torch.tensor(1.0), 2, IntegerGrid(-1, 1)),
    ],
)
def test_quantizer_when_it_makes_no_sense_then_refused(build: Any) -> None:
    with pytest.raises(ValueError, match=r"grid|delta|kappa|settled|fit|positive"):
        build()
