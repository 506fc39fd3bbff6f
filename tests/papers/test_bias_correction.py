"""The properties of bias correction (US 11604987 B2; Nagel et al. 2019): clipped normal moments, expected errors,
local and sequential correction, equalisation, padding."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tests.worker.methods.digit_subject import rows, subject
from tests.worker.quant.digits import exported
from worker.graph.groups import weighted_layers
from worker.graph.ops.parametric import rows_first
from worker.graph.ops.table import module_of
from worker.methods.bias import BiasCorrector
from worker.methods.expectation import corrected, expected_error, mean_response, tap_shares
from worker.methods.statistics import Moments, clipped, normal, through, through_clip, through_slope
from worker.quant.equalise import equalised
from worker.quant.grids import round_weight, weight_scales
from worker.quant.walk import run
from worker.search.evaluate import open_network


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mean_of(beta: float, gamma: float, high: float = math.inf) -> float:
    return clipped(vector(beta), vector(gamma), 0.0, high)[0].item()


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Round a weight on one symmetric grid."""
    step = float(weight.abs().max()) / (2 ** (bits - 1) - 1)
    return torch.round(weight / step).mul(step)


# P1


@pytest.mark.parametrize(
    ("beta", "gamma", "mean"), [(0, 1, 0.398942), (1, 2, 1.395593), (-1, 1, 0.083315), (0.5, 0.5, 0.541658)]
)
def test_relu_mean_when_normal_then_as_in_the_table(beta: float, gamma: float, mean: float) -> None:
    assert mean_of(beta, gamma) == pytest.approx(mean, abs=5e-7)
    assert mean_of(beta, -gamma) == mean_of(beta, gamma)  # the formula with gamma as it is comes to -0.396 at (1, -2)
    density, share = (
        math.exp(-0.5 * (beta / gamma) ** 2) / math.sqrt(2 * math.pi),
        math.erfc(-beta / gamma / 2**0.5) / 2,
    )
    assert mean_of(beta, gamma) == pytest.approx(beta * share + gamma * density, abs=1e-12)


@pytest.mark.parametrize(("beta", "gamma", "mean"), [(1, 2, 1.391585), (5, 3, 4.296771), (3, 1, 3.0)])
def test_relu6_mean_when_normal_then_as_in_the_table(beta: float, gamma: float, mean: float) -> None:
    assert mean_of(beta, gamma, 6.0) == pytest.approx(mean, abs=5e-7)
    assert mean_of(beta, -gamma, 6.0) == mean_of(beta, gamma, 6.0)
    assert mean_of(3, 1, 6.0) == pytest.approx(3.0, abs=1e-15)


def test_relu_variance_when_standard_normal_then_half_less_one_over_two_pi() -> None:
    found = through_clip(normal(vector(0), vector(1)), 0.0)
    assert found.variance.item() == pytest.approx(0.5 - 0.5 / math.pi, abs=1e-12)
    assert found.variance.item() == pytest.approx(0.340845, abs=5e-7)


def test_relu6_variance_when_normal_then_3690278() -> None:
    assert through_clip(normal(vector(5), vector(3)), 0.0, 6.0).variance.item() == pytest.approx(3.690278, abs=5e-7)


@settings(deadline=None, max_examples=60)
@given(st.floats(-8, 8), st.floats(0.01, 5), st.floats(-3, 3), st.floats(0.01, 8))
def test_clipped_moments_when_compared_with_a_fine_sum_then_equal(
    mean: float, deviation: float, low: float, width: float
) -> None:
    z = torch.linspace(-9, 9, 60_001, dtype=torch.float64)
    chances = torch.exp(-0.5 * z.square())
    values = (mean + deviation * z).clamp(low, low + width)
    first, second = clipped(vector(mean), vector(-deviation), low, low + width)
    assert first.item() == pytest.approx(float((values * chances).sum() / chances.sum()), abs=1e-4)
    assert second.item() == pytest.approx(float((values.square() * chances).sum() / chances.sum()), abs=2e-3)


def test_clipped_moments_when_nothing_varies_or_nothing_is_clipped_then_the_limits() -> None:
    first, second = clipped(vector(7, -2, 1), vector(0, 0, 0), 0.0, 6.0)
    assert first.tolist() == [6, 0, 1] and second.tolist() == [36, 0, 1]
    first, second = clipped(vector(-1.5), vector(2))
    assert (first.item(), second.item()) == pytest.approx((-1.5, 6.25), abs=1e-12)
    first, _ = clipped(vector(-40), vector(1), 0.0)
    assert 0 <= first.item() < 1e-300


@pytest.mark.parametrize("function", [F.silu, F.gelu, F.hardswish, torch.sigmoid, torch.tanh])
def test_quadrature_when_compared_with_a_fine_sum_then_equal(function: Callable[[Tensor], Tensor]) -> None:
    found = through(normal(vector(0.3, -1, 2), vector(1, 0.5, -2)), function)
    z = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    chances = torch.exp(-0.5 * z.square())
    for index, (beta, gamma) in enumerate(((0.3, 1), (-1, 0.5), (2, 2))):
        values = function(beta + gamma * z)
        mean = float((values * chances).sum() / chances.sum())
        assert found.mean[index].item() == pytest.approx(mean, abs=5e-5)
        variance = float((values.square() * chances).sum() / chances.sum()) - mean**2
        assert found.variance[index].item() == pytest.approx(variance, abs=1e-4)


def test_quadrature_when_compared_with_32_nodes_of_gauss_hermite_then_equal_for_smooth_functions() -> None:
    points, weights = (torch.from_numpy(item) for item in np.polynomial.hermite.hermgauss(32))
    wanted = (F.silu(0.5 + 0.8 * math.sqrt(2) * points) * weights).sum() / math.sqrt(math.pi)
    assert through(normal(vector(0.5), vector(0.8)), F.silu).mean.item() == pytest.approx(float(wanted), abs=1e-9)


def test_slope_when_one_or_none_then_identity_or_relu() -> None:
    source = normal(vector(0.5, -1), vector(1, 2))
    for slope, wanted in ((1.0, source), (0.0, through_clip(source, 0.0))):
        found = through_slope(source, slope)
        assert torch.allclose(found.mean, wanted.mean, atol=1e-12)
        assert torch.allclose(found.variance, wanted.variance, atol=1e-12)


# P2

WEIGHT = torch.tensor([[0.37, -0.52], [0.11, 0.88]], dtype=torch.float64)
ROUNDED = torch.round(WEIGHT / 0.25) * 0.25
SOURCE = normal(vector(0, 1), vector(1, 2))


def test_tiny_case_when_rounded_to_quarters_then_these_mean_errors() -> None:
    assert ROUNDED.tolist() == [[0.25, -0.5], [0.0, 1.0]]
    error = expected_error(WEIGHT, ROUNDED, through_clip(SOURCE, 0.0).mean)
    assert error.tolist() == pytest.approx([-0.0199612, 0.1235875], abs=5e-8)


def test_tiny_case_when_drawn_two_million_times_then_nothing_is_left_and_the_squared_error_falls_by_its_square() -> (
    None
):
    z = torch.randn(2_000_000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = (SOURCE.mean + SOURCE.deviation * z).relu()
    error = expected_error(WEIGHT, ROUNDED, through_clip(SOURCE, 0.0).mean)
    raw = x @ (ROUNDED - WEIGHT).T
    left = raw - error
    noise = raw.std(0) / math.sqrt(len(x))
    assert bool((left.mean(0).abs() < 3 * noise).all()) and bool((left.mean(0).abs() < 3e-4).all())
    drop = raw.square().mean(0) - left.square().mean(0)
    assert error.square().tolist() == pytest.approx([3.98e-4, 0.015274], rel=2e-3)
    assert torch.allclose(drop, error.square(), atol=1e-4)


# P3


@pytest.mark.parametrize("count", [1024, 65_536])
def test_analytic_correction_when_64_to_32_at_4_bits_then_the_mean_errors_are_noise(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=generator, dtype=torch.float64) / 8
    coarse = rounded(weight, 4)
    x = torch.randn(count, 64, generator=generator, dtype=torch.float64).relu()
    error = expected_error(weight, coarse, through_clip(normal(torch.zeros(64), torch.ones(64)), 0.0).mean)
    raw = x @ (coarse - weight).T
    left = raw - error
    assert float((left.mean(0).abs() / (left.std(0) / math.sqrt(count))).max()) < 4
    if count == 65_536:
        assert float(raw.mean(0).abs().mean()) > 0.03
        assert float(left.mean(0).abs().mean()) < 1.2e-3
        assert float(raw.mean(0).abs().mean()) > 50 * float(left.mean(0).abs().mean())


# P4


def errors(biases: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return, by layer, mean and mean square of its error on the float network's own inputs, with these biases."""
    given = subject(keep=1.0, bits=2)
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def before(node: fx.Node, source: Tensor) -> None:
        if node.name in biases:
            old, new = (copy.deepcopy(module.get_submodule(node.name)).double() for module in (folded, replaced))
            moved = biases[node.name] - new.get_parameter("bias")
            difference = new(source.double()) - old(source.double()) + _shifted(moved, source)
            flat = difference.movedim(1, 0).flatten(1)
            found[node.name] = (flat.mean(1), flat.square().mean(1))

    folded, replaced = given.folded, given.network.module
    run(folded, *rows().inputs, before=before)
    return found


def _shifted(bias: Tensor, source: Tensor) -> Tensor:
    return bias.reshape(1, -1, *[1] * (source.dim() - 2))


def test_local_when_corrected_then_no_mean_error_is_left_and_the_squared_error_falls_by_its_square() -> None:
    given = subject(keep=1.0, bits=2)
    corrector = BiasCorrector(given.folded, given.network)
    fixed = dict(corrector.local([rows().inputs]).biases)
    plain = {name: given.folded.get_submodule(name).get_parameter("bias").double() for name in fixed}
    before, after = errors(plain), errors(fixed)
    assert len(fixed) == 6
    for name, (mean, square) in before.items():
        assert float(after[name][0].abs().max()) < 1e-6
        assert bool((after[name][1] <= square + 1e-9).all())
        assert torch.allclose(square - after[name][1], mean.square(), atol=1e-6)
    assert max(float(mean.abs().max()) for mean, _ in before.values()) > 0.05


def test_local_when_rows_come_in_batches_then_the_same_as_at_once() -> None:
    given = subject(keep=0.5)
    corrector = BiasCorrector(given.folded, given.network)
    once, parts = (
        corrector.local([rows().inputs]).biases,
        corrector.local(list(zip(rows().inputs[0].split(100)))).biases,
    )
    for name in once:
        assert torch.allclose(once[name], parts[name], atol=1e-5)


# P5


def test_correction_when_nothing_was_replaced_then_every_bit_of_the_bias_stays() -> None:
    weight, bias = torch.randn(8, 4, 3, 3), torch.randn(8)
    error = expected_error(weight, weight.clone(), torch.rand(4))
    assert torch.equal(corrected(bias, error), bias)


def test_analytic_and_local_when_nothing_was_replaced_then_the_float_biases() -> None:
    given = subject(keep=1.0)
    same = replace(given.network, module=given.folded, kept={})
    corrector = BiasCorrector(given.folded, same)
    found = corrector.analytic({"x": Moments(vector(0.0), vector(1.0))})
    assert not found.left and len(found.biases) == 6
    for biases in (found.biases, corrector.local([rows().inputs]).biases):
        for name, bias in biases.items():
            assert torch.equal(bias.float(), given.folded.get_submodule(name).bias)  # type: ignore[arg-type]


@given(st.floats(0.01, 100), st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_correction_when_both_weights_are_scaled_then_it_scales_too(factor: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 2, 3, 3, generator=generator, dtype=torch.float64)
    means = torch.rand(8, generator=generator, dtype=torch.float64)
    error = expected_error(weight, rounded(weight, 3), means, groups=4)
    scaled = expected_error(factor * weight, factor * rounded(weight, 3), means, groups=4)
    assert torch.allclose(scaled, factor * error, rtol=1e-9, atol=1e-12)


# P6


def test_pruning_when_a_channel_goes_then_its_mean_takes_its_place() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(16, 32, 3, 3, generator=generator, dtype=torch.float64)
    means, gone = torch.rand(32, generator=generator, dtype=torch.float64), torch.arange(0, 32, 2)
    pruned = weight.clone()
    pruned[:, gone] = 0
    wanted = (weight[:, gone].sum((2, 3)) * means[gone]).sum(1)
    assert torch.allclose(-expected_error(weight, pruned, means), wanted, rtol=0, atol=1e-12)


def test_pruning_when_channels_are_cut_out_of_a_network_then_the_bias_gains_what_their_means_gave() -> None:
    given = subject(keep=0.5)
    corrector = BiasCorrector(given.folded, given.network)
    old, new = (module.get_submodule("last") for module in (given.folded, given.network.module))
    weight = new.get_parameter("weight")
    assert weight.shape[1] < old.get_parameter("weight").shape[1]
    found = corrector.local([rows().inputs]).biases
    inputs: dict[str, Tensor] = {}
    run(given.folded, *rows().inputs, before=lambda node, source: inputs.update({node.name: source}))
    whole = old(inputs["last"]).mean((0, 2, 3))
    index = corrector._index["last"]
    part = F.conv2d(inputs["last"][:, index[1]], weight, found["last"].float(), 2, 1).mean((0, 2, 3))
    assert torch.allclose(part, whole[index[0]], atol=1e-5)


@pytest.mark.parametrize("kind", ["pruned", "low rank"])
def test_any_replacement_when_corrected_by_its_mean_then_the_squared_error_falls_by_the_mean_s_square(
    kind: str,
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 32, generator=generator, dtype=torch.float64)
    replaced = weight.clone()
    if kind == "pruned":
        replaced[:, 16:] = 0
    else:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        replaced = u[:, :4] * s[:4] @ v[:4]
    x = torch.randn(4096, 32, generator=generator, dtype=torch.float64).relu()
    raw = x @ (replaced - weight).T
    left = raw - expected_error(weight, replaced, x.mean(0))
    drop = raw.square().mean(0) - left.square().mean(0)
    assert torch.allclose(drop, raw.mean(0).square(), atol=1e-9)
    assert float(left.square().mean()) < 0.9 * float(raw.square().mean())


# P7


def six_layers() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for ins, outs in ((3, 16), (16, 24), (24, 24), (24, 32), (32, 32), (32, 16)):
        layers += [nn.Conv2d(ins, outs, 3, padding=1), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-2].weight)  # type: ignore[arg-type]
        nn.init.normal_(layers[-2].bias, std=0.1)  # type: ignore[arg-type]
    return nn.Sequential(*layers[:-1]).eval()


def rescaled(net: nn.Sequential, octaves: int) -> nn.Sequential:
    """Multiply the channels between layers by 2^octaves or 2^-octaves at random, and divide behind them."""
    generator = torch.Generator().manual_seed(octaves)
    convs = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for one, other in itertools.pairwise(convs):
            factor = torch.exp2(torch.randint(0, 2, (one.out_channels,), generator=generator) * 2.0 * octaves - octaves)
            one.weight *= factor.reshape(-1, 1, 1, 1)
            one.bias *= factor  # type: ignore[operator]
            other.weight /= factor.reshape(1, -1, 1, 1)
    return net


def sqnr(module: fx.GraphModule, x: Tensor) -> float:
    """Return the signal-to-noise ratio (dB) of a network's outputs with 8-bit weights, one scale per tensor."""
    wanted = run(module, x)

    def before(node: fx.Node, source: Tensor) -> None:
        leaf = module_of(coarse, node)
        weight = leaf.get_parameter("weight")
        scale = weight_scales(weight.flatten(1), 8, per_channel=False)
        leaf.weight = nn.Parameter(round_weight(weight, scale, 8) * scale, requires_grad=False)

    coarse = fx.GraphModule(module, module.graph)
    for name, leaf in module.named_children():
        coarse.add_module(name, copy.deepcopy(leaf))
    found = run(coarse, x, before=before)
    return float(10 * torch.log10(wanted.square().sum() / (found - wanted).square().sum()))


@pytest.mark.parametrize("octaves", [2, 3, 5])
def test_equalisation_when_channels_were_rescaled_then_the_function_stays_and_8_bits_are_enough_again(
    octaves: int,
) -> None:
    x = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    plain = open_network(exported(six_layers(), (3, 16, 16))).folded
    spoilt = open_network(exported(rescaled(six_layers(), octaves), (3, 16, 16))).folded
    repaired = equalised(spoilt)
    assert repaired is not None
    assert torch.allclose(run(repaired, x), run(plain, x), rtol=1e-5, atol=1e-5 * float(run(plain, x).abs().max()))
    assert sqnr(plain, x) == pytest.approx(31.8, abs=0.3)
    assert sqnr(spoilt, x) < 2
    assert sqnr(repaired, x) == pytest.approx(32.2, abs=0.3)
    layers = [module_of(repaired, node).get_parameter("weight") for node in weighted_layers(repaired)]
    for one, other in itertools.pairwise(layers):
        assert torch.allclose(one.abs().amax((1, 2, 3)), other.abs().amax((0, 2, 3)), rtol=1e-2)


# P8


@pytest.mark.parametrize("seed", range(4))
def test_expected_error_when_the_picture_is_padded_then_nearer_than_the_plain_form(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    leaf = nn.Conv2d(16, 4, 3, padding=1).double()
    weight = torch.randn(4, 16, 3, 3, generator=generator, dtype=torch.float64) / 12
    error = rounded(weight, 3) - weight
    source = normal(torch.randn(16, generator=generator), torch.rand(16, generator=generator) + 0.5)
    z = torch.randn(20_000, 16, 8, 8, generator=generator)
    x = (source.mean.float()[:, None, None] + source.deviation.float()[:, None, None] * z).relu()
    drawn = F.conv2d(x, error.float(), padding=1).mean((0, 2, 3)).double()
    means = through_clip(source, 0.0).mean
    aware, plain = (mean_response(error, means, 1, tap_shares(leaf, (8, 8), way)) for way in (True, False))
    assert torch.allclose(aware, drawn, atol=2e-3)
    assert float((aware - drawn).abs().max()) < 0.2 * float((plain - drawn).abs().max())


def test_tap_shares_when_3_by_3_over_8_by_8_then_the_outer_ones_miss_one_of_eight_places() -> None:
    row = vector(7 / 8, 1, 7 / 8)
    assert torch.equal(tap_shares(nn.Conv2d(1, 1, 3, padding=1), (8, 8)), row[:, None] * row)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([nn.Conv2d, nn.ConvTranspose2d]),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)),
    st.sampled_from([1, 2, 4]),
    st.tuples(st.integers(5, 9), st.integers(5, 9)),
)
def test_mean_response_when_inputs_are_constant_then_that_of_the_layer_itself(
    kind: Any, options: tuple[int, int, int, int], groups: int, sizes: tuple[int, int]
) -> None:
    kernel, stride, padding, dilation = options
    more = {"output_padding": min(stride, dilation) - 1} if kind is nn.ConvTranspose2d and stride > 1 else {}
    leaf = kind(4, 8, kernel, stride, padding, dilation=dilation, groups=groups, bias=False, **more).double()
    means = torch.arange(1.0, 5.0, dtype=torch.float64)
    constant = means[None, :, None, None].expand(1, 4, *sizes)
    try:
        wanted = leaf(constant).mean((0, 2, 3)).detach()
    except RuntimeError:
        return  # no place for the kernel
    found = mean_response(rows_first(leaf), means, groups, tap_shares(leaf, sizes))
    assert torch.allclose(found, wanted, atol=1e-10)
