"""Relaxed quantization (Louizos et al. 2019): the properties of its equations, with worked values.

The toy grid is that of 2 bits, {-2, ..., 1} in steps of 1; S is the sigmoid.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.methods.relaxed import (
    IntegerGrid,
    Relaxation,
    RelaxedQuantizer,
    expectation,
    half_width,
    interval_probabilities,
    log_probabilities,
    sample,
)

TOY = IntegerGrid(-2, 1)
WHOLE = Relaxation(delta=6)  # the local grid holds all of the toy grid


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def probabilities(x: Tensor, kappa: float, grid: IntegerGrid = TOY, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    log, points = log_probabilities(x, double(scale), double(kappa), grid)
    return log.exp(), points


@pytest.mark.parametrize(
    ("x", "kappa", "wanted"),
    [
        (0.3, 1 / 3, (0.004389, 0.080845, 0.577986, 0.336780)),
        (0.3, 0.1, (0.0, 0.000335, 0.880467, 0.119198)),
        (1.4, 1 / 3, (0.000276, 0.005515, 0.103821, 0.890388)),
    ],
)
def test_p1_probabilities_when_two_bits_then_as_worked(x: float, kappa: float, wanted: tuple[float, ...]) -> None:
    assert probabilities(double(x), kappa)[0].tolist() == pytest.approx(wanted, abs=6e-7)


def test_p1_expectation_when_two_bits_then_as_worked() -> None:
    assert float(expectation(double(0.3), double(1), double(1 / 3), TOY)) == pytest.approx(0.247157, abs=6e-7)


@settings(max_examples=60, deadline=None)
@given(st.floats(-300, 300), st.floats(0.05, 1), st.floats(1e-3, 10), st.integers(1, 8), st.sampled_from([None, 1, 3]))
def test_p1_probabilities_when_summed_then_one_and_none_negative(
    x: float, kappa: float, scale: float, bits: int, reach: int | None
) -> None:
    grid = IntegerGrid(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    found = log_probabilities(double(x), double(scale), double(kappa), grid, reach)[0].exp()
    assert bool((found >= 0).all())
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)


def test_p1_log_probabilities_when_far_away_then_finite_where_differences_vanish() -> None:
    x, points = torch.tensor(200.0), torch.arange(-2.0, 2.0)
    naive = interval_probabilities(x, torch.tensor(1.0), points, lambda away: torch.sigmoid(away / 0.05))
    assert not bool(torch.isfinite(naive).all())
    stable = log_probabilities(x, torch.tensor(1.0), torch.tensor(0.05), TOY)[0]
    assert bool(torch.isfinite(stable).all())
    assert float(stable[-1].exp()) == pytest.approx(1, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.floats(-2.5, 1.5), st.floats(0.1, 1), st.floats(0.2, 3))
def test_p1_probabilities_when_by_definition_then_those_of_the_stable_form(
    u: float, kappa: float, scale: float
) -> None:
    found, points = probabilities(double(u * scale), kappa, scale=scale)
    sigma = kappa * scale
    naive = interval_probabilities(double(u * scale), double(scale), points, lambda away: torch.sigmoid(away / sigma))
    assert found.tolist() == pytest.approx(naive.tolist(), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.floats(-20, 20), st.floats(0.05, 1), st.floats(0.1, 3), st.integers(2, 8))
def test_p2_largest_probability_when_not_at_a_midpoint_then_nearest_rounding(
    x: float, kappa: float, scale: float, bits: int
) -> None:
    units = x / scale
    if abs(units - math.floor(units) - 0.5) < 1e-3:
        return
    grid = IntegerGrid(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    found, points = probabilities(double(x), kappa, grid, scale)
    assert float(points[found.argmax()]) == min(max(round(units), grid.low), grid.high)


@pytest.mark.parametrize("x", [-50.0, -2.7, 1.3, 80.0])
def test_p2_largest_probability_when_beyond_the_ends_then_the_end(x: float) -> None:
    found, points = probabilities(double(x), 1 / 3)
    assert float(points[found.argmax()]) == (-2 if x < 0 else 1)


def many(temperature: float, count: int, straight_through: bool = False) -> Tensor:
    torch.manual_seed(0)
    how = Relaxation(WHOLE.delta, temperature, straight_through=straight_through)
    return sample(torch.full((count,), 0.3), torch.ones(1), torch.tensor(1 / 3), TOY, how)


def test_p3_samples_when_the_temperature_falls_then_on_the_grid_with_the_probabilities() -> None:
    found = many(0.01, 20_000)
    away = (found - found.round()).abs()
    assert float(away.mean()) < 0.005
    assert float(away.mean()) == pytest.approx(0.0037, abs=6e-4)
    shares = [float((found.round() == point).float().mean()) for point in (-2, -1, 0, 1)]
    assert shares == pytest.approx((0.0044, 0.077, 0.582, 0.336), abs=0.008)  # 20,000 draws: two standard errors


@pytest.mark.parametrize(("temperature", "mean"), [(2, 0.068), (1, 0.200), (0.5, 0.237), (0.1, 0.251)])
def test_p3_samples_when_the_temperature_rises_then_pulled_to_the_middle(temperature: float, mean: float) -> None:
    assert float(many(temperature, 100_000).mean()) == pytest.approx(mean, abs=0.006)


@pytest.mark.parametrize(("kappa", "bias"), [(1, 3.4e-8), (0.5, 3.2e-4), (1 / 3, 0.0058), (0.2, 0.0485), (0.1, 0.181)])
def test_p4_expectation_when_noise_is_wide_then_unbiased(kappa: float, bias: float) -> None:
    x = torch.linspace(-1.5, 1.5, 3001, dtype=torch.float64)
    found = expectation(x, double(1), double(kappa), IntegerGrid(-100, 100))
    assert float((found - x).abs().max()) == pytest.approx(bias, rel=0.02)


def test_p5_probabilities_when_noise_is_uniform_then_stochastic_rounding() -> None:
    points = torch.arange(-2, 3, dtype=torch.float64)
    found = interval_probabilities(double(0.3), double(1), points, lambda away: (away + 0.5).clamp(0, 1))
    assert found.tolist() == pytest.approx((0, 0, 0.7, 0.3, 0))


@settings(max_examples=60, deadline=None)
@given(st.floats(-1.9, 1.9), st.floats(0.2, 2))
def test_p5_probabilities_when_noise_is_uniform_then_by_the_distance_to_the_upper_point(u: float, scale: float) -> None:
    points = torch.arange(-3, 4, dtype=torch.float64)
    width = scale
    found = interval_probabilities(
        double(u * scale), double(scale), points, lambda away: (away / width + 0.5).clamp(0, 1)
    )
    lower = math.floor(u)
    assert float(found[lower + 3]) == pytest.approx(lower + 1 - u, abs=1e-9)
    assert float(found.sum()) == pytest.approx(1, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8), st.floats(1e-3, 2))
def test_p6_hard_quantizer_when_applied_twice_then_the_same_and_on_the_grid(seed: int, bits: int, scale: float) -> None:
    quantizer = RelaxedQuantizer.of_weights(torch.tensor([scale]), bits).eval()
    x = 3 * torch.randn(500, generator=torch.Generator().manual_seed(seed))
    once = quantizer(x)
    assert torch.equal(quantizer(once), once)
    integers = quantizer.integers(x)
    assert torch.equal(integers, integers.round())
    assert torch.equal(integers * quantizer.scale, once)
    assert float(integers.abs().max()) <= 2 ** (bits - 1) - 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8), st.floats(0.05, 1), st.sampled_from([0.25, 1.0, 2.0]))
def test_p6_straight_through_samples_when_drawn_then_on_the_grid_exactly(
    seed: int, bits: int, kappa: float, temperature: float
) -> None:
    torch.manual_seed(seed)
    how = Relaxation(3, temperature, kappa, straight_through=True)
    quantizer = RelaxedQuantizer.of_weights(torch.tensor([0.3]), bits, how)
    found = quantizer(2 * torch.randn(500)).detach() / quantizer.scale
    assert torch.allclose(found, found.round(), rtol=0, atol=1e-5)
    assert float(found.abs().max().round()) <= 2 ** (bits - 1) - 1


def test_p6_straight_through_samples_when_counted_then_with_the_probabilities() -> None:
    found = many(1.0, 20_000, straight_through=True)
    shares = [float((found == point).float().mean()) for point in (-2, -1, 0, 1)]
    assert shares == pytest.approx((0.004389, 0.080845, 0.577986, 0.336780), abs=0.008)


@pytest.mark.parametrize("kappa", [0.1, 1 / 3, 1.0])
def test_p7_local_grid_when_delta_grows_then_the_full_grid(kappa: float) -> None:
    x = torch.linspace(-9, 9, 181, dtype=torch.float64)
    grid, scale = IntegerGrid(-8, 7), double(1)
    whole = expectation(x, scale, double(kappa), grid)
    apart = [
        float((expectation(x, scale, double(kappa), grid, half_width(kappa, delta)) - whole).abs().max())
        for delta in (1, 3, 6, 15, 100)
    ]
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] < 1e-12


def test_p7_local_grid_when_delta_is_three_then_at_most_seven_points_at_any_width() -> None:
    assert [half_width(kappa, 3) for kappa in (0.05, 1 / 3, 0.34, 0.67, 1.0)] == [1, 1, 2, 3, 3]
    assert half_width(float(torch.tensor(math.log(1 / 3)).exp()), 3) == 1  # as float32 has it


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_p8_derivatives_when_noise_is_frozen_then_those_of_finite_differences(
    temperature: float, straight_through: bool
) -> None:
    """By x, scale and noise; straight through, those of the relaxation, whose step part is the hard sample."""
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(64, dtype=torch.float64, generator=generator)
    uniform = torch.rand(5, 64, dtype=torch.float64, generator=generator).clamp_min(1e-9)
    values = [x, torch.full((1,), 0.7, dtype=torch.float64), double(0.5)]

    def run(given: list[Tensor], through: bool = False) -> Tensor:
        x, scale, kappa = given
        return sample(x, scale, kappa, TOY, Relaxation(3, temperature, straight_through=through), uniform)

    for item in values:
        item.requires_grad_()
    found = torch.autograd.grad(run(values, straight_through).sum(), values)
    step, differences = 1e-6, []
    with torch.no_grad():
        for index, item in enumerate(values):
            above, below = ([*values[:index], item + sign * step, *values[index + 1 :]] for sign in (1, -1))
            change = (run(above) - run(below)) / (2 * step)
            differences.append(change if index == 0 else change.sum())
        if straight_through:
            differences[1] += ((run(values, True) - run(values)) / values[1]).sum()
    for one, other in zip(found, differences, strict=True):
        assert one.reshape(-1).tolist() == pytest.approx(other.reshape(-1).tolist(), rel=1e-5, abs=1e-7)


def test_p8_derivatives_of_the_expectation_when_two_bits_then_as_worked() -> None:
    x, scale, sigma = (double(value).requires_grad_() for value in (0.3, 1, 1 / 3))
    found = torch.autograd.grad(expectation(x, scale, sigma / scale, TOY), (x, sigma, scale))
    assert [float(item) for item in found] == pytest.approx((0.892497, -0.418740, 0.118988), abs=6e-7)


def test_p8_derivative_when_far_outside_then_nothing_moves_the_sample() -> None:
    x = torch.tensor([-900.0, 900.0], requires_grad=True)
    found = sample(x, torch.ones(1), torch.tensor(0.05), TOY)
    found.sum().backward()
    assert found.tolist() == pytest.approx([-2, 1], abs=1e-5)
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([0, 0], abs=1e-5)
