"""Patterns, masks, budgets and storage of learned threshold pruning."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.methods.threshold import (
    CHANNEL,
    ELEMENT,
    TWO_OF_FOUR,
    Pattern,
    Thresholded,
    ThresholdedWeight,
    bitmask_bits,
    contenders,
    dead_channels,
    dense_bits,
    floors,
    index_bits,
    least_multiplier,
    multiplier_for_density,
    n_of_m_bits,
    smallest_form,
    sparsity_loss,
    squares,
    temperature,
)

SHAPES = [(8, 12), (6, 5), (4, 8, 3, 3), (5, 7, 3, 2), (6, 1, 3, 3), (3, 4, 5)]
PATTERNS = [ELEMENT, CHANNEL, Pattern(outs=4), Pattern(ins=4), Pattern(2, 3), TWO_OF_FOUR, Pattern(1, 8, 1)]


def drawn(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_blocks_when_put_together_again_then_the_same_values(shape: tuple[int, ...], pattern: Pattern) -> None:
    values = drawn(shape)
    blocks = pattern.blocks(values)
    assert torch.equal(pattern.unblocked(blocks, values), values)
    assert float(blocks.double().sum()) == pytest.approx(float(values.double().sum()), abs=1e-9)
    size = pattern.outs * (pattern.ins or values[0].numel())
    assert blocks.shape[1] == size


def test_blocks_when_of_a_convolution_then_neighbouring_inputs_at_one_place() -> None:
    values = torch.arange(2 * 4 * 3.0).reshape(2, 4, 3)
    assert Pattern(ins=4).blocks(values)[1].tolist() == [1, 4, 7, 10]  # output 0, place 1
    assert Pattern(outs=2).blocks(values)[0].tolist() == [0, 12]
    assert CHANNEL.blocks(values)[1].tolist() == list(range(12, 24))


def test_squares_when_blocks_reach_over_the_edge_then_means_of_what_is_there() -> None:
    weight = torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 4.0], [1.0, 1.0, 6.0]])
    assert squares(weight, Pattern(2, 2)).tolist() == [[4.5, 4.5, 20.5], [4.5, 4.5, 20.5], [1, 1, 36]]
    assert squares(weight, CHANNEL)[0].tolist() == pytest.approx([35 / 3] * 3)
    assert squares(weight, TWO_OF_FOUR).tolist() == weight.square().tolist()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, 500), st.sampled_from([(4, 2), (4, 1), (8, 3), (2, 1)]))
def test_contenders_when_n_of_m_then_the_largest_of_each_block(
    shape: tuple[int, ...], seed: int, block: tuple[int, int]
) -> None:
    pattern, weight = Pattern(ins=block[0], keep=block[1]), drawn(shape, seed)
    chosen = contenders(weight, pattern)
    real = pattern.blocks(torch.ones(shape))
    lives = pattern.blocks(chosen.float())
    assert torch.equal(lives.sum(1), real.sum(1).clamp_max(block[1]))
    sizes = pattern.blocks(weight.abs())
    least = sizes.where(lives > 0, math.inf).amin(1)
    assert bool((sizes.where(lives == 0, 0).amax(1) <= least).all())
    assert bool((weight.abs() > 0).where(~chosen, True).all())


def test_contenders_when_equal_then_the_first_of_them() -> None:
    assert contenders(torch.ones(1, 8), TWO_OF_FOUR).int().tolist() == [[1, 1, 0, 0, 1, 1, 0, 0]]


def test_gate_when_two_of_four_then_soft_around_the_border_and_tau_learns_above_it() -> None:
    weight = torch.tensor([[1.0, 0.9, 0.5, 0.1]])
    least = floors(weight, TWO_OF_FOUR)
    assert least is not None
    assert least.tolist() == [pytest.approx([(0.81 + 0.25) / 2] * 4)]
    threshold = ThresholdedWeight(TWO_OF_FOUR, softness=0.1, start=0.01)
    gate = threshold.gate(weight)
    assert bool(((gate > 0.5) == torch.tensor([[True, True, False, False]])).all())
    gate.sum().backward()
    assert threshold.rho.grad is not None
    assert float(threshold.rho.grad) == 0  # the border lies above tau
    high = ThresholdedWeight(TWO_OF_FOUR, softness=0.1, start=1.8)
    high.gate(weight).sum().backward()
    assert high.rho.grad is not None
    assert float(high.rho.grad) < 0
    assert high.mask(weight).tolist() == [[True, False, False, False]]


def test_floors_when_a_block_has_room_for_all_then_tau_alone() -> None:
    assert floors(drawn((3, 4)), ELEMENT) is None
    assert floors(drawn((3, 4)), Pattern(ins=4, keep=4)) is None
    least = floors(drawn((3, 6)), TWO_OF_FOUR)
    assert least is not None
    assert bool(torch.isneginf(least[:, 4:]).all())
    assert bool(torch.isfinite(least[:, :4]).all())


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES)
def test_mask_when_of_a_pattern_then_blocks_live_and_die_as_it_says(shape: tuple[int, ...], pattern: Pattern) -> None:
    weight, threshold = drawn(shape), ThresholdedWeight(pattern, start=0.9).eval()
    mask = threshold.mask(weight)
    assert torch.equal(threshold(weight), weight * mask)
    real, lives = (pattern.blocks(item.float()).sum(1) for item in (torch.ones(shape), mask))
    if pattern.keep is None:
        assert bool(((lives == 0) | (lives == real)).all())
        energy = pattern.blocks(weight.square()).sum(1) / real
        assert torch.equal(lives > 0, energy > threshold.tau(weight))
    else:
        assert bool((lives <= pattern.keep).all())
        assert bool((weight.square() > threshold.tau(weight)).where(mask, True).all())


def test_training_forward_when_soft_then_between_zero_and_the_weight_with_gradients_for_both() -> None:
    weight = drawn((6, 10)).requires_grad_()
    threshold = ThresholdedWeight(start=0.5)
    soft = threshold(weight)
    assert bool((soft.abs() <= weight.abs()).all())
    soft.sum().backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, threshold.gate(weight).detach())
    assert threshold.rho.grad is not None
    assert float(threshold.rho.grad) != 0


def test_gap_when_the_temperature_falls_then_soft_weights_are_the_hard_ones() -> None:
    weight = drawn((40, 40))
    gaps = [ThresholdedWeight(softness=softness, start=0.5).gap(weight) for softness in (1.0, 0.1, 0.01, 1e-4)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.15
    assert gaps[-1] < 0.01


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_threshold_when_all_weights_are_equal_then_finite(value: float, pattern: Pattern) -> None:
    weight, threshold = torch.full((4, 8), value, requires_grad=True), ThresholdedWeight(pattern)
    (threshold(weight).sum() + sparsity_loss([Thresholded(threshold, weight)])).backward()
    assert weight.grad is not None
    assert threshold.rho.grad is not None
    assert bool(torch.isfinite(weight.grad).all())
    assert bool(torch.isfinite(threshold.rho.grad))
    assert float(temperature(weight, pattern)) > 0


def test_mask_when_frozen_then_it_stays_whatever_the_weights_do_and_is_stored() -> None:
    weight, threshold = drawn((6, 10)), ThresholdedWeight(start=0.5)
    threshold.freeze(weight, 2.0)
    mask = threshold.mask(weight)
    other = drawn((6, 10), 1).requires_grad_()
    frozen = threshold(other)
    assert torch.equal(frozen, other * mask)
    frozen.sum().backward()
    assert other.grad is not None
    assert torch.equal(other.grad, mask.float())
    fresh = ThresholdedWeight()
    fresh.load_state_dict(threshold.state_dict())
    assert fresh.frozen is not None
    assert torch.equal(fresh.frozen, mask)
    threshold.load_state_dict(ThresholdedWeight().state_dict())
    assert threshold.frozen is None


def layers(pattern: Pattern, seed: int) -> list[Thresholded]:
    shapes = ((8, 16), (16, 8, 3, 3), (10, 24))
    weights = [drawn(shape, seed + index) * 0.3**index for index, shape in enumerate(shapes)]
    return [Thresholded(ThresholdedWeight(pattern, start=0.1 + 0.2 * i), item) for i, item in enumerate(weights)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 500), st.floats(0.01, 1))
def test_multiplier_for_density_when_weights_differ_then_exactly_met(seed: int, target: float) -> None:
    found = layers(ELEMENT, seed)
    multiplier = multiplier_for_density(target, found)
    masks = [layer.threshold.mask(layer.weight, multiplier) for layer in found]
    assert sum(int(mask.sum()) for mask in masks) == math.floor(target * sum(mask.numel() for mask in masks) + 1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 500), st.floats(0.05, 0.5), st.sampled_from([CHANNEL, Pattern(outs=4), Pattern(ins=4)]))
def test_multiplier_for_density_when_blocks_die_together_then_within_one_block_below(
    seed: int, target: float, pattern: Pattern
) -> None:
    found = layers(pattern, seed)
    multiplier = multiplier_for_density(target, found)
    kept = sum(int(layer.threshold.mask(layer.weight, multiplier).sum()) for layer in found)
    most = max(pattern.blocks(layer.weight).shape[1] for layer in found)
    total = sum(layer.weight.numel() for layer in found)
    assert target * total - most < kept <= target * total


def test_multiplier_for_density_when_two_of_four_then_below_a_half_at_once_and_further_on_request() -> None:
    found = layers(TWO_OF_FOUR, 0)
    assert multiplier_for_density(0.5, found) == 0
    multiplier = multiplier_for_density(0.3, found)
    kept = [layer.threshold.mask(layer.weight, multiplier) for layer in found]
    assert sum(int(mask.sum()) for mask in kept) == math.floor(0.3 * sum(mask.numel() for mask in kept))
    assert all(bool((TWO_OF_FOUR.blocks(mask.float()).sum(1) <= 2).all()) for mask in kept)


def test_least_multiplier_when_costs_are_bytes_then_the_first_that_fits() -> None:
    """Storage as a budget: every layer in its smallest form."""
    found = layers(ELEMENT, 3)

    def stored(multiplier: float) -> float:
        masks = [layer.threshold.mask(layer.weight, multiplier) for layer in found]
        return float(sum(smallest_form(mask, 4).bits for mask in masks))

    limit = 0.4 * stored(0.0)
    multiplier = least_multiplier(stored, limit)
    assert stored(multiplier) <= limit < stored(multiplier * (1 - 1e-9))


def test_least_multiplier_when_nothing_fits_then_refused() -> None:
    with pytest.raises(ValueError, match="no threshold"):
        least_multiplier(lambda _: 7.0, 6.0)


def test_sparsity_loss_when_layers_cost_differently_then_a_weighted_mean_of_densities() -> None:
    found = layers(ELEMENT, 0)
    priced = [Thresholded(layer.threshold, layer.weight, cost) for layer, cost in zip(found, (1, 5, 2), strict=True)]
    shares = [float(layer.threshold.count(layer.weight).detach()) for layer in found]
    total = sum(layer.cost * layer.weight.numel() for layer in priced)
    wanted = sum(layer.cost * share for layer, share in zip(priced, shares, strict=True)) / total
    assert float(sparsity_loss(priced).detach()) == pytest.approx(wanted, rel=1e-5)
    assert 0 < wanted < 1


def test_dead_channels_when_no_weight_of_an_output_is_left_then_named() -> None:
    mask = torch.ones(4, 3, 3, 3, dtype=torch.bool)
    mask[1] = False
    mask[2, :2] = False
    assert dead_channels(mask).tolist() == [False, True, False, False]


@pytest.mark.parametrize(("bits", "density"), [(8, 0.875), (4, 0.75), (2, 0.5)])
def test_bitmask_bits_when_at_the_break_even_density_then_those_of_dense(bits: int, density: float) -> None:
    numel = 1600
    assert bitmask_bits(numel, int(density * numel), bits) == dense_bits(numel, bits)
    assert bitmask_bits(numel, int(density * numel) - 1, bits) < dense_bits(numel, bits)


def test_index_bits_when_zeros_are_even_then_one_entry_per_value() -> None:
    mask = torch.zeros(1600, dtype=torch.bool)
    mask[::2] = True
    assert index_bits(mask, 8) == 800 * 12
    assert index_bits(torch.zeros(100, dtype=torch.bool), 8) == 0
    lonely = torch.zeros(100, dtype=torch.bool)
    lonely[50] = True  # three stored zeros reach 48 places
    assert index_bits(lonely, 8) == 4 * 12


def test_n_of_m_bits_when_two_of_four_then_half_the_values_and_two_bits_each() -> None:
    assert n_of_m_bits((16, 8, 3, 3), TWO_OF_FOUR, 8) == 16 * 8 * 9 // 2 * (8 + 2)
    assert n_of_m_bits((16, 5, 3, 3), TWO_OF_FOUR, 4) == 16 * 9 * 2 * 2 * (4 + 2)  # a block for the fifth input


@pytest.mark.parametrize(
    ("density", "bits", "name"),
    [(1.0, 8, "dense"), (0.9, 8, "dense"), (0.5, 8, "bitmask"), (0.3, 4, "bitmask"), (0.03, 8, "index")],
)
def test_smallest_form_when_density_falls_then_dense_then_bitmask_then_indices(
    density: float, bits: int, name: str
) -> None:
    mask = torch.rand(100, 100, generator=torch.Generator().manual_seed(0)) < density
    found = smallest_form(mask, bits)
    assert found.name == name
    assert found.bits == min(
        dense_bits(10_000, bits), bitmask_bits(10_000, int(mask.sum()), bits), index_bits(mask, bits)
    )


def test_smallest_form_when_two_of_four_then_its_own() -> None:
    mask = contenders(drawn((16, 64)), TWO_OF_FOUR)
    found = smallest_form(mask, 8, TWO_OF_FOUR)
    assert (found.name, found.bits) == ("bitmask", 512 * 8 + 1024)  # as many bits as places: the plainer is named
    assert n_of_m_bits(mask.shape, TWO_OF_FOUR, 8) == 512 * 10


@pytest.mark.parametrize(
    "build",
    [
        lambda: Pattern(outs=0),
        lambda: Pattern(ins=-1),
        lambda: Pattern(keep=0),
        lambda: ThresholdedWeight(softness=0),
        lambda: ThresholdedWeight(start=0),
    ],
)
def test_threshold_when_it_makes_no_sense_then_refused(build: Any) -> None:
    with pytest.raises(ValueError, match=r"pattern|softness"):
        build()


def test_multiply_when_called_then_the_threshold_is_so_many_times_what_it_was() -> None:
    weight, made = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)), ThresholdedWeight()
    for factor in (1.0, 3.0, 50.0, 1e3):
        before = float(made.tau(weight))
        made.multiply(factor)
        assert float(made.tau(weight)) == pytest.approx(factor * before, rel=1e-4)
