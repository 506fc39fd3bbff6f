"""Grids: what rounding may and may not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.quant.grids import (
    ActivationGrid,
    GridRules,
    activation_grid,
    powers_above,
    round_weight,
    weight_limit,
    weight_scales,
)

BITS = st.sampled_from([2, 3, 4, 5, 6, 8])
SEEDS = st.integers(0, 2**31)


def weights(seed: int, tail: float) -> torch.Tensor:
    """Return weights [4, 60], normal with a share of outliers."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, rng.uniform(1e-3, 10), (4, 60))
    return torch.from_numpy(np.where(rng.random((4, 60)) < tail, values * 8, values)).float()


def quantized(weight: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    return round_weight(weight, scale, bits) * scale.reshape(-1, 1)


@settings(max_examples=60, deadline=None)
@given(SEEDS, BITS, st.floats(0, 0.2))
def test_weight_scales_when_searched_then_never_worse_than_the_largest_magnitude(
    seed: int, bits: int, tail: float
) -> None:
    weight = weights(seed, tail)
    best = (quantized(weight, weight_scales(weight, bits), bits) - weight).square().sum(1)
    widest = weight.abs().amax(1) / weight_limit(bits)
    assert (best <= (quantized(weight, widest, bits) - weight).square().sum(1) * (1 + 1e-5)).all()


def test_weight_scales_when_three_bits_and_normal_weights_then_the_error_falls_by_a_third() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    best = (quantized(weight, weight_scales(weight, 3), 3) - weight).square().mean()
    naive = (quantized(weight, weight.abs().amax(1) / 3, 3) - weight).square().mean()
    assert best < 0.67 * naive


@settings(max_examples=60, deadline=None)
@given(SEEDS, BITS)
def test_round_weight_when_rounded_then_integers_lie_on_the_symmetric_grid(seed: int, bits: int) -> None:
    weight = weights(seed, 0.1)
    integers = round_weight(weight, weight_scales(weight, bits), bits)
    assert (integers == integers.round()).all()
    assert integers.abs().max() <= 2 ** (bits - 1) - 1


@settings(max_examples=60, deadline=None)
@given(SEEDS, BITS)
def test_round_weight_when_inside_the_range_then_off_by_at_most_half_a_step(seed: int, bits: int) -> None:
    weight = weights(seed, 0.1)
    scale = weight.abs().amax(1) / weight_limit(bits)
    off = (quantized(weight, scale, bits) - weight).abs()
    assert (off <= scale.reshape(-1, 1) * 0.5001).all()


@settings(max_examples=40, deadline=None)
@given(SEEDS, BITS)
def test_round_weight_when_applied_twice_then_nothing_changes(seed: int, bits: int) -> None:
    weight = weights(seed, 0.1)
    scale = weight_scales(weight, bits)
    once = quantized(weight, scale, bits)
    assert torch.equal(round_weight(once, scale, bits), round_weight(weight, scale, bits))


def test_weight_scales_when_per_tensor_then_one_scale_serves_all_channels() -> None:
    weight = weights(0, 0.0)
    assert weight_scales(weight, 4, per_channel=False).shape == (1,)
    assert weight_scales(weight, 4).shape == (4,)


def test_weight_scales_when_all_weights_are_zero_then_scales_are_positive() -> None:
    scale = weight_scales(torch.zeros(3, 9), 4)
    assert (scale > 0).all()
    assert torch.equal(round_weight(torch.zeros(3, 9), scale, 4), torch.zeros(3, 9))


@settings(max_examples=60, deadline=None)
@given(SEEDS, BITS, st.booleans())
def test_activation_grid_when_fitted_then_zero_is_exact_and_values_take_at_most_2_to_the_bits(
    seed: int, bits: int, unsigned: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(rng.uniform(-2, 2), 1.5, 500)).float()
    x = x.relu() if unsigned else x
    grid = activation_grid(x, bits, unsigned)
    assert grid.fake_quantize_(torch.zeros(1)).item() == 0.0
    assert 0 <= grid.zero_point <= grid.levels
    assert len(grid.fake_quantize_(x.clone()).unique()) <= 2**bits
    assert grid.zero_point == 0 or not unsigned


@settings(max_examples=40, deadline=None)
@given(SEEDS, BITS, st.booleans())
def test_activation_grid_when_fitted_then_never_worse_than_the_full_range(seed: int, bits: int, unsigned: bool) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).laplace(0, 1, 400)).float()
    x = x.abs() if unsigned else x
    low = 0.0 if unsigned else float(x.min())
    scale = float(torch.tensor((float(x.max()) - low) / (2**bits - 1)))
    full = ActivationGrid(scale, min(2**bits - 1, max(0, round(-low / scale))), bits)
    fitted = activation_grid(x, bits, unsigned)
    errors = [(grid.fake_quantize_(x.clone()) - x).square().mean() for grid in (fitted, full)]
    assert errors[0] <= errors[1] * (1 + 1e-5)


@settings(max_examples=60, deadline=None)
@given(SEEDS, BITS, st.integers(0, 3), st.floats(1e-4, 10))
def test_fake_quantize_when_compared_with_quantize_linear_then_bit_identical(
    seed: int, bits: int, zero_point: int, scale: float
) -> None:
    scale = float(np.float32(scale))
    x = np.random.default_rng(seed).normal(0, 20 * scale, 257).astype(np.float32)
    q = np.clip(np.rint(x / np.float32(scale)) + zero_point, 0, 2**bits - 1)  # ONNX QuantizeLinear: round half to even
    wanted = (q - zero_point).astype(np.float32) * np.float32(scale)
    found = ActivationGrid(scale, zero_point, bits).fake_quantize_(torch.from_numpy(x.copy())).numpy()
    assert np.array_equal(found, wanted)


def test_fake_quantize_when_halfway_then_rounds_to_even() -> None:
    grid = ActivationGrid(1.0, 0, 8)
    assert grid.fake_quantize_(torch.tensor([0.5, 1.5, 2.5, 300.0, -1.0])).tolist() == [0.0, 2.0, 2.0, 255.0, 0.0]


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_activation_grid_when_the_samples_are_constant_then_finite(value: float) -> None:
    grid = activation_grid(torch.full((10,), value), 4, unsigned=False)
    assert grid.scale > 0
    assert grid.fake_quantize_(torch.full((1,), value)).item() == pytest.approx(value, abs=grid.scale / 2)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(3, 8), st.booleans(), st.booleans())
def test_activation_grid_when_the_device_is_symmetric_then_centred_and_negative_values_mirror_positive_ones(
    seed: int, bits: int, unsigned: bool, powers: bool
) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).laplace(0, 1, 400)).float()
    x = x.abs() if unsigned else x
    grid = activation_grid(x, bits, unsigned, GridRules(symmetric=True, powers=powers))
    assert grid.zero_point == 2 ** (bits - 1)
    inside = x[x.abs() <= grid.scale * (2 ** (bits - 1) - 1)]
    assert torch.equal(grid.fake_quantize(-inside), -grid.fake_quantize(inside))
    assert not powers or np.log2(grid.scale) == round(np.log2(grid.scale))


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 8), st.booleans())
def test_weight_scales_when_powers_of_two_are_asked_then_powers_and_the_best_of_the_near_ones(
    seed: int, bits: int, per_channel: bool
) -> None:
    weight = weights(seed, 0.1)
    scale = weight_scales(weight, bits, per_channel, GridRules(powers=True))
    assert torch.equal(torch.log2(scale), torch.log2(scale).round())
    error = (quantized(weight, scale, bits) - weight).square().sum()
    for factor in (2.0, 4.0):
        assert error <= (quantized(weight, scale * factor, bits) - weight).square().sum() * (1 + 1e-5)


@pytest.mark.parametrize(("scale", "power"), [(1.0, 1.0), (1.0001, 2.0), (0.3, 0.5), (2.0**-9, 2.0**-9)])
def test_powers_above_when_asked_then_the_smallest_power_not_below(scale: float, power: float) -> None:
    assert powers_above(torch.tensor(scale)).item() == power
