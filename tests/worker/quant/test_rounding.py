"""Error feedback: the output error must fall, not the weight error."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.quant.grids import GridRules, round_weight, weight_limit, weight_scales
from worker.quant.rounding import Rounded, Scales, round_to_outputs, round_with_feedback


def correlated(seed: int, rows: int, dims: int) -> torch.Tensor:
    """Return inputs [rows, dims] with correlated columns, as activations have."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dims // 3, dims, generator=generator)
    return torch.randn(rows, dims // 3, generator=generator) @ mixing + torch.randn(rows, dims, generator=generator)


def output_error(weight: torch.Tensor, integers: torch.Tensor, scale: torch.Tensor, x: torch.Tensor) -> float:
    return float((x @ (integers * scale[:, None] - weight).T).square().mean())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_round_with_feedback_when_inputs_correlate_then_output_error_falls(bits: int) -> None:
    x = correlated(0, 2000, 144)
    weight = torch.randn(16, 144, generator=torch.Generator().manual_seed(1))
    scale, gram = weight_scales(weight, bits), x.T @ x / len(x)
    nearest = output_error(weight, round_weight(weight, scale, bits), scale, x)
    assert output_error(weight, round_with_feedback(weight, scale, bits, gram), scale, x) < 0.6 * nearest


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 4]), st.sampled_from([9, 64, 65, 130]))
def test_round_with_feedback_when_rounded_then_integers_lie_on_the_grid(seed: int, bits: int, dims: int) -> None:
    x = correlated(seed, 300, dims)
    weight = torch.randn(5, dims, generator=torch.Generator().manual_seed(seed))
    integers = round_with_feedback(weight, weight_scales(weight, bits), bits, x.T @ x / 300)
    assert torch.equal(integers, integers.round())
    assert integers.abs().max() <= weight_limit(bits)


def test_round_with_feedback_when_inputs_are_independent_then_equals_nearest() -> None:
    weight = torch.randn(6, 70, generator=torch.Generator().manual_seed(0))
    scale = weight_scales(weight, 4)
    assert torch.equal(round_with_feedback(weight, scale, 4, torch.eye(70)), round_weight(weight, scale, 4))


def test_round_with_feedback_when_inputs_are_dead_then_finite() -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    integers = round_with_feedback(weight, weight_scales(weight, 4), 4, torch.zeros(20, 20))
    assert torch.isfinite(integers).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("per_channel", [True, False])
def test_round_to_outputs_when_inputs_correlate_then_better_than_error_feedback(bits: int, per_channel: bool) -> None:
    x = correlated(0, 2000, 144)
    weight = torch.randn(16, 144, generator=torch.Generator().manual_seed(1))
    scale, gram = weight_scales(weight, bits, per_channel).expand(16).contiguous(), x.T @ x / len(x)
    feedback = output_error(weight, round_with_feedback(weight, scale, bits, gram), scale, x)
    found = round_to_outputs(weight, scale, bits, gram, Scales(per_channel))
    assert output_error(weight, found.integers, found.scale, x) < 0.9 * feedback
    assert len(found.scale.unique()) == (16 if per_channel else 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 4]), st.sampled_from([9, 64, 65]))
def test_round_to_outputs_when_rounded_then_on_the_grid_with_usable_scales(seed: int, bits: int, dims: int) -> None:
    x = correlated(seed, 300, dims)
    weight = torch.randn(5, dims, generator=torch.Generator().manual_seed(seed))
    found: Rounded = round_to_outputs(weight, weight_scales(weight, bits), bits, x.T @ x / 300)
    assert torch.equal(found.integers, found.integers.round())
    assert found.integers.abs().max() <= weight_limit(bits)
    assert bool((found.scale > 0).all())


def test_round_to_outputs_when_weights_lie_on_a_grid_then_found_exactly() -> None:
    x = correlated(0, 1000, 48)
    integers = torch.randint(-1, 2, (6, 48), generator=torch.Generator().manual_seed(0)).float()
    scale = torch.rand(6, generator=torch.Generator().manual_seed(1)) + 0.5
    found = round_to_outputs(integers * scale[:, None], scale, 2, x.T @ x / 1000)
    assert torch.equal(found.integers, integers)
    assert torch.allclose(found.scale, scale, rtol=1e-5)


def test_round_to_outputs_when_inputs_are_dead_then_finite() -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    found = round_to_outputs(weight, weight_scales(weight, 4), 4, torch.zeros(20, 20))
    assert bool(torch.isfinite(found.integers).all() and torch.isfinite(found.scale).all())


def test_round_to_outputs_when_scales_are_powers_of_two_then_they_stay_so_and_the_outputs_gain() -> None:
    x = correlated(0, 2000, 144)
    weight = torch.randn(16, 144, generator=torch.Generator().manual_seed(1))
    gram = x.T @ x / len(x)
    scale = weight_scales(weight, 4, True, GridRules(powers=True))
    found = round_to_outputs(weight, scale, 4, gram, Scales(powers=True))
    assert torch.equal(torch.log2(found.scale), torch.log2(found.scale).round())
    nearest = output_error(weight, round_weight(weight, scale, 4), scale, x)
    assert output_error(weight, found.integers, found.scale, x) < 0.8 * nearest
