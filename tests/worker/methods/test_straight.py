"""Straight-through rounding with learned steps."""

from __future__ import annotations

import math

import pytest
import torch

from worker.methods.straight import StepGrid, StepQuantizer
from worker.quant.grids import ActivationGrid


def test_quantizer_when_called_then_codes_times_the_step() -> None:
    made = StepQuantizer(torch.tensor([0.5]), -3, 3)
    found = made(torch.tensor([0.26, -0.24, 0.75, 9.0, -9.0]))
    assert found.tolist() == pytest.approx([0.5, 0.0, 1.0, 1.5, -1.5])


def test_gradient_when_a_value_is_clipped_then_none_for_it_and_the_bound_for_the_step() -> None:
    made = StepQuantizer(torch.tensor([0.5]), -3, 3)
    x = torch.tensor([0.3, 9.0], requires_grad=True)
    made(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, 0.0]
    # d/ds of s * round(x / s) is round(x / s) - x / s inside and the bound outside (LSQ, equation 3), times s for its
    # logarithm, times 1 / sqrt(2 * 3)
    expected = ((1 - 0.6) + 3) * 0.5 / math.sqrt(6)
    assert made.log_step.grad is not None and float(made.log_step.grad) == pytest.approx(expected, rel=1e-5)


def test_quantizer_when_there_is_a_scale_per_channel_then_each_its_own_step() -> None:
    made = StepQuantizer(torch.tensor([1.0, 0.1]), -1, 1)
    weight = torch.full((2, 1, 1, 1), 0.6)
    assert made(weight).flatten().tolist() == pytest.approx([1.0, 0.1])
    assert made.integers(weight).flatten().tolist() == [1.0, 1.0]


def test_scale_when_powers_are_wanted_then_the_nearest_one() -> None:
    made = StepQuantizer(torch.tensor([0.3, 0.7]), -7, 7, powers=True)
    assert made.scale.tolist() == [0.25, 0.5]


def test_grid_when_stored_then_what_the_quantizer_computes() -> None:
    grid = ActivationGrid(0.125, 3, 4)
    made, x = StepGrid(grid), torch.linspace(-2, 3, 101)
    assert torch.allclose(made(x), made.grid().fake_quantize(x), atol=1e-6)
    assert (made.grid().zero_point, made.grid().bits) == (3, 4)
    assert made.grid().scale == pytest.approx(0.125, rel=1e-6)
