"""DJPQ's gates and quantizers: sampling, settling, folding, exact codes; and the rule that holds limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from worker.methods.djpq import (
    SIGNED,
    UNSIGNED,
    ChannelGate,
    LearnedQuantizer,
    ends_of,
    fold_backward,
    fold_integers,
    gated,
    keep_set,
    log_snr,
    pruned_fraction,
    straight_through,
    width_of,
)
from worker.methods.relaxed_costs import AugmentedLagrangian
from worker.quant.grids import ActivationGrid
from worker.quant.layer import QuantizedLayer

belows = st.sampled_from([None, UNSIGNED, SIGNED, 0.2, 0.9])


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@settings(deadline=None, max_examples=30)
@given(st.floats(-4, 4), st.floats(0.2, 2))
def test_pruned_fraction_when_differentiated_then_that_of_a_mean_of_sigmoids(log_alpha: float, tau: float) -> None:
    alphas = torch.tensor([log_alpha, 0.5, -1.0], dtype=torch.float64, requires_grad=True)
    share = pruned_fraction(alphas, math.log(0.1), tau)
    chances = [1 / (1 + math.exp(-(math.log(0.1) - value) / tau)) for value in alphas.tolist()]
    assert share.item() == pytest.approx(sum(chances) / 3, rel=1e-9)
    share.backward()
    assert alphas.grad is not None
    assert alphas.grad.tolist() == pytest.approx([-chance * (1 - chance) / tau / 3 for chance in chances], abs=1e-9)


def test_lagrangian_when_two_limits_are_broken_then_the_published_sum_and_its_multipliers() -> None:
    rule = AugmentedLagrangian({"bops": 100.0, "weight_bytes": 50.0, "macs": 9.0}, kappa=2.0)
    costs = {"bops": number(200.0), "weight_bytes": number(75.0), "macs": number(3.0)}
    assert rule.penalty(costs).item() == 0.0  # the warm-up
    rule = rule.after(costs)
    c, d = math.log(2), math.log(1.5)
    assert rule.penalty(costs).item() == pytest.approx(c * c + d * d)
    rule = rule.after(costs)
    assert rule.multipliers == {"bops": pytest.approx(2 * c), "weight_bytes": pytest.approx(2 * d), "macs": 0.0}
    penalty = rule.penalty(costs)
    assert penalty.item() == pytest.approx(2 * c * c + 2 * d * d + c * c + d * d)
    by_bops, by_macs = (float(item) for item in torch.autograd.grad(penalty, (costs["bops"], costs["macs"])))
    assert by_bops == pytest.approx((2 * c + 2 * c) / 200)
    assert by_macs == 0.0
    kept = rule.after({"bops": number(10.0), "weight_bytes": number(50.0), "macs": number(9.0)})
    assert kept.multipliers == {"bops": 0.0, "weight_bytes": pytest.approx(2 * d), "macs": 0.0}


def test_integer_convolution_when_compared_with_the_fake_quantized_one_then_equal_to_1e_6() -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(8, 5, 3, 3), torch.randn(8).double(), torch.rand(4, 5, 9, 9) * 2
    weights = LearnedQuantizer(weight.flatten(1).abs().amax(1).reshape(-1, 1, 1, 1))
    activations = LearnedQuantizer(1.5, 8, UNSIGNED)
    for quantizer, bits in ((weights, 4), (activations, 4)):
        quantizer.restrict(bits)
    codes, scale, grid = weights.integers(weight), weights.scale, activations.grid()
    units = torch.round(activations(x).double() / grid.scale)
    integer = F.conv2d(units, codes.double(), padding=1) * (scale.double() * grid.scale)[:, None, None]
    fake = F.conv2d(activations(x).double(), weights(weight).double(), padding=1)
    torch.testing.assert_close(integer + bias[:, None, None], fake + bias[:, None, None], rtol=1e-6, atol=1e-6)


def test_ends_when_codes_lie_below_0_or_not_then_these() -> None:
    assert [ends_of(None, bits) for bits in (2, 4, 8)] == [(1, 1), (7, 7), (127, 127)]
    assert [ends_of(UNSIGNED, bits) for bits in (1, 4, 8)] == [(0, 1), (0, 15), (0, 255)]
    assert [ends_of(SIGNED, bits) for bits in (2, 4, 8)] == [(2, 1), (8, 7), (128, 127)]
    assert [ends_of(0.5, bits) for bits in (2, 3, 4, 8)] == [(2, 1), (4, 3), (8, 7), (128, 127)]
    assert ends_of(1.0, 4) == (14, 1)


@settings(deadline=None)
@given(belows, st.integers(2, 16))
def test_width_of_the_ends_of_a_width_when_asked_then_that_width(below: float | None, bits: int) -> None:
    assert width_of(below, *ends_of(below, bits)) == bits


@settings(deadline=None)
@given(belows, st.integers(2, 12), st.floats(0.1, 9))
def test_width_when_started_at_some_bits_then_those(below: float | None, bits: int, top: float) -> None:
    assert LearnedQuantizer(top, bits, below).bits().item() == pytest.approx(bits, abs=1e-4)


def test_gate_when_training_then_noise_is_drawn_per_sample_and_channel_and_shared_by_all_positions() -> None:
    torch.manual_seed(0)
    gate = ChannelGate(3, jitter=0.0)
    with torch.no_grad():
        gate.mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
        gate.log_variance.copy_(torch.tensor([0.0, -2.0, -4.0]))
    out = gate(torch.ones(20_000, 3, 2, 2))
    assert torch.equal(out, out[:, :, :1, :1].expand_as(out))
    torch.testing.assert_close(out.mean((0, 2, 3)), gate.mean.detach(), rtol=0, atol=0.02)
    torch.testing.assert_close(out[..., 0, 0].std(0), (gate.log_variance / 2).exp().detach(), rtol=0.02, atol=0)


def test_gate_when_evaluated_then_means_of_the_channels_above_the_threshold_and_no_noise() -> None:
    gate = ChannelGate(4, log_threshold=0.0).eval()
    with torch.no_grad():
        gate.mean.copy_(torch.tensor([1.0, -2.0, 0.5, 0.1]))
        gate.log_variance.copy_(torch.tensor([1.0, 1.0, -4.0, 1.0]))
    assert gate.values(7).tolist() == [[0.0, -2.0, 0.5, 0.0]]
    assert gate.keep_set().tolist() == [1, 2]
    assert gate.width().item() == 2.0


def test_gate_when_settled_then_deterministic_in_training_and_restored_from_its_state() -> None:
    gate = ChannelGate(4).train()
    gate.settle([0, 3])
    assert gate.values(5).tolist() == [[1.0, 0.0, 0.0, 1.0]]
    restored = ChannelGate(4)
    restored.load_state_dict(gate.state_dict())
    assert restored.keep_set().tolist() == [0, 3]
    assert restored.values(5).tolist() == [[1.0, 0.0, 0.0, 1.0]]


def test_gate_when_its_axis_or_columns_differ_then_each_channel_finds_its_own() -> None:
    values, x = torch.tensor([[2.0, 3.0]]), torch.ones(1, 4, 2)
    assert gated(x, values, axis=2)[0, 0].tolist() == [2.0, 3.0]
    flat = gated(torch.ones(1, 6), values, owner=torch.tensor([0, 0, 0, 1, 1, 1]))
    assert flat.tolist() == [[2.0] * 3 + [3.0] * 3]


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.floats(-5, 5), st.sampled_from([1, 4, 8]))
def test_keep_set_when_drawn_then_never_empty_a_multiple_and_the_best(
    ratios: list[float], threshold: float, multiple: int
) -> None:
    values = torch.tensor(ratios, dtype=torch.float64)
    kept = keep_set(values, threshold, multiple).tolist()
    above = {index for index, value in enumerate(ratios) if value > threshold}
    assert kept == sorted(set(kept)) and kept
    assert len(kept) % multiple == 0 or len(kept) == len(ratios)
    assert above <= set(kept)
    assert len(kept) - max(1, len(above)) < multiple
    left_out = [value for index, value in enumerate(ratios) if index not in kept]
    assert not left_out or min(ratios[index] for index in kept) >= max(left_out)


def test_snr_when_mu_is_0_then_finite_with_a_finite_gradient() -> None:
    mean, log_variance = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    pruned_fraction(log_snr(mean, log_variance), 0.0).backward()
    assert mean.grad is not None and bool(mean.grad.isfinite().all())


def test_straight_through_when_taken_then_the_hard_value_to_the_bit_and_the_soft_gradient() -> None:
    soft = torch.tensor([0.1, 1e7], requires_grad=True)
    hard = torch.tensor([0.3, 7.0])
    found = straight_through(soft * 2, hard)
    assert torch.equal(found, hard)
    found.sum().backward()
    assert soft.grad is not None and soft.grad.tolist() == [2.0, 2.0]


@settings(deadline=None, max_examples=80)
@given(belows, st.sampled_from([2, 3, 4, 8]), st.floats(0.05, 20), st.integers(0, 2**31), st.booleans())
def test_stored_values_when_the_width_is_fixed_then_equal_to_training_to_the_bit(
    below: float | None, bits: int, top: float, seed: int, powers: bool
) -> None:
    quantizer = LearnedQuantizer(top, 8, below, powers)
    quantizer.restrict(bits)
    x = torch.randn(4, 2000, generator=torch.Generator().manual_seed(seed)) * top
    if below is None:
        integers = quantizer.integers(x)
        assert int(integers.abs().max()) <= 2 ** (bits - 1) - 1
        assert torch.equal(integers * quantizer.scale, quantizer(x).detach() + 0.0)
    else:
        assert torch.equal(quantizer.grid().fake_quantize(x), quantizer(x).detach() + 0.0)
    step = quantizer.scale.item()
    assert not powers or math.log2(step) == round(math.log2(step))


def test_quantizers_when_started_from_stored_ones_then_the_same_values() -> None:
    scale = np.array([0.1, 0.2], np.float32)
    layer = QuantizedLayer("conv", 4, np.zeros(2, np.float32), np.ones((2, 3, 1, 1), np.int8), scale)
    weights = LearnedQuantizer.of_layer(layer)
    weights.restrict(4)
    assert weights.scale.tolist() == pytest.approx([0.1, 0.2], rel=1e-6)
    assert weights.integers(torch.tensor([0.31, -9.0]).reshape(2, 1, 1, 1)).flatten().tolist() == [3.0, -7.0]
    for zero_point in (0, 60, 128, 255):
        grid = ActivationGrid(0.1, zero_point, 8)
        made = LearnedQuantizer.of_grid(grid)
        made.restrict(8)
        assert made.grid().zero_point == min(254, zero_point)
        assert made.scale.item() == pytest.approx(0.1, rel=1e-6)
    with pytest.raises(ValueError, match="no scales"):
        LearnedQuantizer.of_layer(QuantizedLayer("conv", 32, np.zeros(2, np.float32)))


@pytest.mark.parametrize("exponent", [0.7, 1.3])
def test_integers_when_the_exponent_is_not_1_then_times_the_step_they_are_the_mapped_values(exponent: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 3, 3)
    quantizer = LearnedQuantizer(weight.flatten(1).abs().amax(1).reshape(-1, 1, 1, 1), 5)
    with torch.no_grad():
        quantizer.log_exponent.fill_(math.log(exponent))
    quantizer.restrict(5)
    codes, scale = quantizer.integers(weight), quantizer.scale
    assert scale.shape == (6,)
    assert int(codes.abs().max()) == 15
    assert torch.equal(codes * scale.reshape(-1, 1, 1, 1), quantizer(weight).detach() + 0.0)
    mapped = weight.sign() * weight.abs() ** exponent
    assert float((codes * scale.reshape(-1, 1, 1, 1) - mapped).abs().max()) <= float(scale.max()) / 2 * (1 + 1e-5)


def test_grid_of_codes_when_the_width_is_still_learned_then_refused() -> None:
    with pytest.raises(ValueError, match="fixed width"):
        LearnedQuantizer(1.0, 8, UNSIGNED).grid()


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([None, UNSIGNED, SIGNED]), st.integers(0, 2**31))
def test_rounding_when_per_channel_then_equal_to_each_channel_by_itself(below: float | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 50, generator=generator)
    tops = torch.rand(3, 1, generator=generator) + 0.2
    whole = LearnedQuantizer(tops, 4, below)
    out = whole(x)
    out.square().sum().backward()
    parts = [LearnedQuantizer(float(top), 4, below) for top in tops]
    for index, part in enumerate(parts):
        torch.testing.assert_close(part(x[index : index + 1]), out[index : index + 1])
        part(x[index : index + 1]).square().sum().backward()
    assert whole.log_step.grad is not None and whole.log_top.grad is not None
    for got, name in ((whole.log_step.grad, "log_step"), (whole.log_top.grad, "log_top")):
        alone = torch.stack([getattr(part, name).grad for part in parts])
        torch.testing.assert_close(got.flatten(), alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("below", [None, UNSIGNED, SIGNED, 0.3])
@pytest.mark.parametrize("bits", [None, 4])
def test_rounding_when_differentiated_then_as_autograd_does_with_straight_through_rounding(
    below: float | None, bits: int | None
) -> None:
    torch.manual_seed(0)
    quantizer, x = LearnedQuantizer(1.1, 4, below, lsq=True), (torch.randn(2, 300) * 2).double().requires_grad_()
    quantizer = quantizer.double()
    if bits is not None:
        quantizer.restrict(bits)
    quantizer(x).square().sum().backward()
    log_step, log_top = (item.detach().clone().requires_grad_() for item in (quantizer.log_step, quantizer.log_top))
    under, over = ends_of(below, 4)
    reach = under / over if bits or below is None else below / (1 - below)
    top, y = log_top.exp(), x.detach().clone().requires_grad_()
    step = top / over if bits else log_step.exp()
    clipped = torch.maximum(torch.minimum(y, top), -reach * top)
    (clipped / step + (torch.round(clipped / step) - clipped / step).detach()).mul(step).square().sum().backward()
    elements = x.numel() if below is None else x.numel() // 2
    scale = 1 / math.sqrt(elements * (round(float((top / step).detach())) + 1))
    assert x.grad is not None and y.grad is not None
    torch.testing.assert_close(x.grad, y.grad)
    for got, wanted in ((quantizer.log_step.grad, log_step.grad), (quantizer.log_top.grad, log_top.grad)):
        assert (got is None) == (wanted is None)
        assert got is None or wanted is None or got.item() == pytest.approx(wanted.item() * scale, rel=1e-9)


def test_scales_when_factors_are_folded_in_then_the_gated_convolution_to_the_last_digits() -> None:
    torch.manual_seed(0)
    layer, mean = nn.Conv2d(4, 5, 3, padding=1), torch.tensor([1.2, -0.3, 0.0, 2.0, -1.0])
    weight, bias = layer.weight.detach(), layer.bias.detach()  # type: ignore[union-attr]
    quantizer = LearnedQuantizer(weight.flatten(1).abs().amax(1).reshape(-1, 1, 1, 1), 4)
    quantizer.restrict(4)
    codes, scale = fold_integers(quantizer.integers(weight), quantizer.scale, mean)
    x = torch.randn(2, 4, 6, 6)
    wanted = F.conv2d(x, quantizer(weight), bias, padding=1) * mean[:, None, None]
    found = F.conv2d(x, codes * scale.reshape(-1, 1, 1, 1), fold_backward(weight, bias, mean)[1], padding=1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
