"""The properties of DJPQ (arXiv 2007.10463), its information bottleneck gates (VIBNet) and its learned quantizers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from app.domain.budget import Budget
from app.domain.cost import count
from app.domain.graph import ModelGraph
from app.domain.space import SearchSpace, SpaceSpec, build_space, cheapest, is_legal, widest
from tests.app.domain.drawings import two_convs
from tests.app.domain.random_graphs import BUILT_IN, built_in
from tests.worker.methods.networks import gated_digits, recounted
from tests.worker.search.pictures import Drawing, chain, device, random_table, resnet
from worker.methods.djpq import (
    UNSIGNED,
    ChannelGate,
    LearnedQuantizer,
    fold_backward,
    fold_forward,
    gate_kl,
    keep_set,
    log_snr,
    nearest_width,
)
from worker.methods.hardening import Learned, hardened
from worker.methods.relaxed_costs import RelaxedCosts, Soft
from worker.methods.straight_rounding import Curve, How, rounded
from worker.search.sensitivity import SensitivityTable
from worker.search.solver import Solver

TABLE = [  # x, d, q_m, t -> x_q and its derivatives by d, q_m, t
    (0.37, 0.1, 1.0, 1.0, 0.4, 0.3, 0.0, -0.367873),
    (0.37, 0.1, 1.0, 0.5, 0.6, -0.082763, 0.0, -0.604780),
    (-1.5, 0.3, 1.0, 1.0, -0.9, 1 / 3, -1.0, 0.0),
    (2.5, 0.3, 2.0, 0.5, 1.5, 0.285955, 0.353553, 0.980258),
]


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def gradients(value: Tensor, *by: Tensor) -> list[float]:
    return [float(item) for item in torch.autograd.grad(value, by)]


def central(function: object, at: float, step: float = 1e-6) -> float:
    return float(function(at + step) - function(at - step)) / (2 * step)  # type: ignore[operator]


# P1: the divergence of a gate


def test_p1_kl_when_mu_equals_sigma_then_half_the_logarithm_of_two() -> None:
    assert gate_kl(number(0.3), number(2 * math.log(0.3))).item() == pytest.approx(0.5 * math.log(2), abs=1e-12)
    assert 0.5 * math.log(2) == pytest.approx(0.346574, abs=5e-7)


def test_p1_kl_when_alpha_falls_to_nothing_then_so_does_it() -> None:
    divergences = [gate_kl(number(10.0**-power), number(0.0)).item() for power in range(9)]
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[-1] == pytest.approx(0.5e-16, rel=1e-6)


def test_p1_kl_when_gates_start_then_the_published_start_gives_these_numbers() -> None:
    gate = ChannelGate(1).double()
    assert gate.kl().item() == pytest.approx(4.500062, abs=5e-7)
    by_mean, by_log_variance = gradients(gate.kl(), gate.mean, gate.log_variance)
    assert by_mean == pytest.approx(0.99988, abs=5e-6)
    assert by_log_variance == pytest.approx(-0.49994, abs=5e-6)


def test_p1_gates_when_started_as_vibnet_does_then_mean_1_and_log_variance_minus_9_with_spread_001() -> None:
    torch.manual_seed(0)
    gate = ChannelGate(20_000, jitter=0.01)
    assert gate.mean.mean().item() == pytest.approx(1.0, abs=5e-4)
    assert gate.log_variance.mean().item() == pytest.approx(-9.0, abs=5e-4)
    assert gate.mean.std().item() == pytest.approx(0.01, rel=0.02)
    assert gate.log_variance.std().item() == pytest.approx(0.01, rel=0.02)


@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(-9, 3))
def test_p1_kl_gradients_when_compared_with_autograd_then_agree_to_1e_8(mu: float, rho: float) -> None:
    mean, log_variance = number(mu), number(rho)
    by_mean, by_log_variance = gradients(gate_kl(mean, log_variance), mean, log_variance)
    total = mu**2 + math.exp(rho)
    assert by_mean == pytest.approx(mu / total, abs=1e-8)
    assert by_log_variance == pytest.approx(-0.5 * mu**2 / total, abs=1e-8)


def test_p1_gate_when_log_variance_lies_below_log_mu_squared_then_alpha_exceeds_vibnets_threshold_of_1() -> None:
    mean, log_variance = torch.tensor([0.5, 0.5]), torch.tensor([2 * math.log(0.5) - 0.1, 2 * math.log(0.5) + 0.1])
    assert keep_set(log_snr(mean, log_variance), log_threshold=0.0).tolist() == [0]


# P2: the quantizer and its gradients


@pytest.mark.parametrize("row", TABLE)
def test_p2_quantizer_when_given_the_table_then_its_values_and_gradients(
    row: tuple[float, ...],
) -> None:
    x, step, top, exponent = (number(value) for value in row[:4])
    value = rounded(x, Curve(step, top, exponent), How())
    assert value.item() == pytest.approx(row[4], abs=1e-12)
    assert gradients(value, step, top, exponent) == pytest.approx(row[5:], abs=5e-7)


@pytest.mark.parametrize("row", [row for row in TABLE if row[3] == 1.0])
def test_p2_quantizer_when_the_exponent_is_left_out_then_nothing_changes(row: tuple[float, ...]) -> None:
    x, step, top = (number(value) for value in row[:3])
    value = rounded(x, Curve(step, top, None), How())
    assert value.item() == pytest.approx(row[4], abs=1e-12)
    assert gradients(value, step, top) == pytest.approx(row[5:7], abs=5e-7)


def test_p2_quantizer_when_x_is_0_then_the_exponent_gets_no_gradient() -> None:
    x, step, top, exponent = (number(value) for value in (0.0, 0.1, 1.0, 0.5))
    value = rounded(x, Curve(step, top, exponent), How())
    assert gradients(value, x, exponent) == [1.0, 0.0]


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(("x", "inside"), [(0.37, True), (-0.8, True), (1.2, False), (-1.2, False)])
def test_p2_quantizer_when_x_is_inside_then_its_slope_is_1_or_that_of_the_map(
    x: float, inside: bool, smooth: bool
) -> None:
    value = number(x)
    grid = Curve(number(0.1), number(1.0), number(0.5))
    slope = 1.0 if smooth else 0.5 * abs(x) ** -0.5
    assert gradients(rounded(value, grid, How(smooth=smooth)), value) == pytest.approx([slope if inside else 0.0])


@settings(deadline=None)
@given(st.floats(0.01, 0.4), st.floats(0.5, 3), st.floats(0.4, 2))
def test_p2_width_when_differentiated_then_the_three_published_derivatives(d: float, q: float, t: float) -> None:
    quantizer = LearnedQuantizer(q).double()
    with torch.no_grad():
        quantizer.log_step.fill_(math.log(d))
        quantizer.log_exponent.fill_(math.log(t))
    v = q**t
    assert quantizer.bits().item() == pytest.approx(math.log2(v / d + 1) + 1, rel=1e-6)
    found = gradients(quantizer.bits(), quantizer.log_step, quantizer.log_top, quantizer.log_exponent)
    below = math.log(2) * (v / d + 1)
    published = [-v / (d * d * below), t * q ** (t - 1) / (d * below), v * math.log(q) / (d * below)]
    in_logs = [value * scale for value, scale in zip(published, (d, q, t), strict=True)]
    assert found == pytest.approx(in_logs, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("lsq", [False, True])
def test_p2_quantizer_when_trained_in_the_log_domain_then_the_gradient_is_d_times_that_of_d(lsq: bool) -> None:
    x = torch.linspace(-1.5, 1.5, 40)
    quantizer = LearnedQuantizer(1.0, 4, lsq=lsq)
    quantizer(x).sum().backward()
    step = quantizer.curve().step.detach().requires_grad_()
    scale = 1 / math.sqrt(40 * 2**3) if lsq else 1.0  # one over the root of elements times 2^(b-1)
    rounded(x, Curve(step, torch.ones(()), None), How()).sum().backward()
    assert step.grad is not None and quantizer.log_step.grad is not None
    assert quantizer.log_step.grad.item() == pytest.approx(float(step.detach() * step.grad) * scale, rel=1e-5)


# P3: widths and steps


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("exponent", [1.0, 0.7])
def test_p3_width_of_the_step_for_a_width_when_asked_then_that_width(bits: int, exponent: float) -> None:
    quantizer = LearnedQuantizer(1.7)
    with torch.no_grad():
        quantizer.log_exponent.fill_(math.log(exponent))
    quantizer.restrict(bits)
    step = 1.7**exponent / (2 ** (bits - 1) - 1)
    assert quantizer.curve().step.item() == pytest.approx(step, rel=1e-5)
    quantizer.fixed.zero_()  # learned again: the width follows from the step
    assert quantizer.bits().item() == pytest.approx(bits, abs=1e-4)
    assert quantizer.deploy_bits() == bits


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_p3_outputs_when_counted_then_at_most_2_to_the_bits_less_1(bits: int) -> None:
    quantizer = LearnedQuantizer(1.0)
    quantizer.restrict(bits)
    values = quantizer(torch.linspace(-3, 3, 20_001)).detach().unique()
    assert len(values) == 2**bits - 1


@pytest.mark.parametrize(("d", "real", "largest", "bits"), [(0.1, 4.459, 10, 5), (0.3, 3.115, 3, 3)])
def test_p3_deploy_bits_when_the_real_width_is_in_between_then_those_of_the_largest_integer(
    d: float, real: float, largest: int, bits: int
) -> None:
    quantizer = LearnedQuantizer(1.0)
    with torch.no_grad():
        quantizer.log_step.fill_(math.log(d))
    assert quantizer.bits().item() == pytest.approx(real, abs=5e-4)
    assert int(quantizer.integers(torch.tensor(9.9))) == largest
    assert quantizer.deploy_bits() == bits == 1 + math.ceil(math.log2(largest + 1))
    assert bits != round(real) or bits != math.ceil(real)  # neither rule gets both right


def test_p3_step_when_projected_then_the_width_stays_inside_its_box() -> None:
    for d in (1e-5, 0.02, 5.0):
        quantizer = LearnedQuantizer(1.3)
        with torch.no_grad():
            quantizer.log_step.fill_(math.log(d))
        before = quantizer.bits().item()
        quantizer.project(3, 8)
        assert quantizer.bits().item() == pytest.approx(min(8.0, max(3.0, before)), abs=1e-4)


# P4: operational cost


def test_p4_bops_when_the_example_is_counted_then_17694720_which_is_1_0653_percent_of_float() -> None:
    graph, profile = two_convs(), device()
    soft = Soft.of(graph, {"g1": 12, "g2": 16}, {"conv1": 4, "conv2": 4}, {"input": 8, "relu1": 4, "relu2": 32})
    costs = RelaxedCosts(graph, profile, build_space(graph, profile))
    found = costs.costs(soft, ["macs", "bops"])
    whole = costs.costs(Soft.at(graph, widest(graph, 32)), ["macs", "bops"])
    assert float(whole["macs"]) == 442_368 + 1_179_648
    assert float(whole["bops"]) == 1_660_944_384
    assert float(found["bops"]) == 17_694_720
    assert float(found["bops"] / whole["bops"]) == pytest.approx(0.010653, abs=5e-7)
    assert float(whole["bops"] / found["bops"]) == pytest.approx(93.87, abs=5e-3)


def test_p4_bops_when_channels_are_a_soft_share_then_products_of_both_layers_shares() -> None:
    graph, profile = two_convs(), device()
    p1, p2 = number(0.3), number(0.6)
    bits = {"conv1": number(3.2), "conv2": number(5.5)}
    soft = Soft.of(
        graph, {"g1": 16 * (1 - p1), "g2": 32 * (1 - p2)}, bits, {"input": 8, "relu1": number(4.4), "relu2": 32}
    )
    bops = RelaxedCosts(graph, profile, build_space(graph, profile)).costs(soft, ["bops"])["bops"]
    published = 442_368 * 0.7 * 3.2 * 8 + 1_179_648 * 0.7 * 0.4 * 5.5 * 4.4
    assert bops.item() == pytest.approx(published, rel=1e-12)
    by_first, by_second = gradients(bops, p1, p2)
    assert by_first == pytest.approx(-published / 0.7, rel=1e-9)  # it is in both layers
    assert by_second == pytest.approx(-1_179_648 * 0.7 * 5.5 * 4.4, rel=1e-9)


def test_p4_depthwise_layer_when_pruned_then_its_share_counts_once() -> None:
    draw = Drawing(3, 8)
    draw.depthwise("deep", draw.conv("first", "input", ("g", 8), 8), 8)
    graph, profile = draw.finish("deep"), device()
    costs = RelaxedCosts(graph, profile, build_space(graph, profile))

    def macs(share: float) -> float:
        bits = {item.id: 8.0 for item in graph.activations}
        soft = Soft.of(graph, {"g": 8 * share}, {"first": 8.0, "deep": 8.0}, bits)
        return float(costs.costs(soft, ["macs"])["macs"])

    assert macs(0.25) == pytest.approx(0.25 * macs(1.0), rel=1e-12)  # the first layer's inputs stay


def test_p4_flattened_layer_when_pruned_then_each_channel_takes_its_columns_along() -> None:
    draw = Drawing(3, 4)
    first = draw.conv("first", "input", ("g", 8), 4)
    draw.width[first] = type(draw.width[first])((("g", 16),))  # 4 x 4 columns for each channel behind a flatten
    graph, profile = draw.finish(draw.linear("head", first, ("out", 5)), frozen=("out",)), device()
    costs = RelaxedCosts(graph, profile, build_space(graph, profile))
    bits = {item.id: 8.0 for item in graph.activations}
    found = costs.costs(Soft.of(graph, {"g": 3, "out": 5}, {"first": 8, "head": 8}, bits), ["macs"])["macs"]
    assert float(found) == 3 * 3 * 9 * 16 + 5 * 3 * 16


@pytest.mark.parametrize(
    ("layers", "macs"),
    [
        ((("conv", 32, 24, 5), ("conv", 64, 8, 5), ("linear", 512, 16, 1), ("linear", 10, 1, 1)), 4_267_008),
        (
            (
                *(("conv", width, size, 3) for width, size in ((128, 32), (256, 16), (512, 8)) for _ in range(2)),
                ("linear", 1024, 16, 1),
                ("linear", 10, 1, 1),
            ),
            615_917_568,
        ),
    ],
    ids=["lenet5", "vgg7"],
)
def test_p4_published_networks_when_counted_then_their_macs_are_those_of_the_tables(
    layers: tuple[tuple[str, int, int, int], ...], macs: int
) -> None:
    """4.267 M for LeNet-5; 615.9 M and 630.7 G float BOPs for VGG7. Of a linear layer: columns per channel read."""
    graph, profile = published(layers, *((1, 28) if macs < 1e7 else (3, 32))), device()
    found = RelaxedCosts(graph, profile, build_space(graph, profile)).costs(
        Soft.at(graph, widest(graph, 32)), ["macs", "bops"]
    )
    assert float(found["macs"]) == macs
    assert float(found["bops"]) == macs * 1024


def published(layers: tuple[tuple[str, int, int, int], ...], channels: int, size: int) -> ModelGraph:
    draw, last = Drawing(channels, size), "input"
    for index, (kind, width, extent, kernel) in enumerate(layers):
        group = (f"g{index}", width)
        if kind == "conv":
            last = draw.conv(f"l{index}", last, group, extent, kernel)
        else:
            terms = draw.width[last].terms
            draw.width[last] = type(draw.width[last])(tuple((name, extent) for name, _ in terms))
            last = draw.linear(f"l{index}", last, group)
    return draw.finish(last, frozen=(f"g{len(layers) - 1}",))


def test_p4_hard_cost_when_recounted_from_the_exported_tensors_then_what_was_reported() -> None:
    gated = gated_digits(weight_bits=4, activation_bits=4)
    profile = device()
    counts, reported = recounted(gated, profile), count(gated.graph, gated.assignment, profile)
    assert counts == {"macs": reported.macs, "bops": reported.bops, "weight_bytes": reported.weight_bytes}
    space = build_space(gated.graph, profile)
    relaxed = RelaxedCosts(gated.graph, profile, space).costs(Soft.at(gated.graph, gated.assignment), list(counts))
    assert {name: value.item() for name, value in relaxed.items()} == counts


# P5: pruning for real


def test_p5_masked_network_when_channels_are_removed_then_the_pruned_network_gives_the_same() -> None:
    gated = gated_digits(weight_bits=32, activation_bits=32)
    x = torch.randn(16, 1, 8, 8)
    assert any(len(kept) < gated.graph.group[name].channels for name, kept in gated.kept.items())
    torch.testing.assert_close(gated.pruned()(x), gated.masked(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("negative", [False, True])
def test_p5_factors_when_folded_backwards_and_forwards_then_exact_with_zero_padding(negative: bool) -> None:
    torch.manual_seed(0)
    first, second = (nn.Conv2d(6, 6, 3, padding=1).double() for _ in range(2))
    x, mean = torch.randn(4, 6, 9, 9).double(), torch.rand(6).double() + 0.5
    mean = mean * torch.tensor([1, -1] * 3) if negative else mean
    wanted = second(F.relu(first(x)) * mean[:, None, None])
    with torch.no_grad():
        assert first.bias is not None
        first.weight.data, first.bias.data = fold_backward(first.weight, first.bias, mean.abs())
        second.weight.data = fold_forward(second.weight, mean.sign())
    assert (second(F.relu(first(x))) - wanted).abs().max().item() < 2e-14


# P6: budgets


@pytest.mark.parametrize("name", BUILT_IN)
def test_p6_assignment_when_hardened_for_any_profile_then_inside_every_limit_and_legal(name: str) -> None:
    profile, graph = built_in(name), resnet()
    space = build_space(graph, profile)
    low, high = (count(graph, item, profile) for item in (cheapest(graph, space), widest(graph, 8)))
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.8):
        limited = {m: low.value(m) + share * (high.value(m) - low.value(m)) for m in ("macs", "bops", "weight_bytes")}
        learned = Learned(
            {g.id: torch.from_numpy(rng.normal(2, 2, g.channels)) for g in graph.prunable},
            {layer.name: float(rng.uniform(2, 10)) for layer in graph.layers},
            {item.id: float(rng.uniform(2, 10)) for item in graph.activations if item.role == "hidden"},
        )
        found = hardened(learned, graph, space, profile, Budget(limited))
        assert found is not None
        assert Budget(limited).is_met(count(graph, found.assignment, profile))
        assert is_legal(graph, space, found.assignment, profile)
        assert all(len(kept) == found.assignment.keep[group] >= 1 for group, kept in found.kept.items())


def instance(seed: int) -> tuple[Solver, SensitivityTable, Budget]:
    """Draw losses and a limit on BOPs for a chain of four layers."""
    graph, profile = chain((8, 12, 16)), device(((8, 8), (4, 8), (4, 4)))
    whole = build_space(graph, profile, SpaceSpec(min_keep=0.25))
    keep = {name: options if len(options) < 3 else (options[0], options[3], options[-1])
            for name, options in whole.keep.items()}  # fmt: skip
    space = SearchSpace(keep, whole.weight_bits, whole.activation_bits, whole.pairs)
    low, high = (count(graph, item, profile).bops for item in (cheapest(graph, space), widest(graph, 8)))
    share = float(np.random.default_rng(seed).uniform(0.05, 0.6))
    return Solver(graph, space, profile), random_table(space, seed), Budget({"bops": low + share * (high - low)})


def test_p6_allocation_when_12_chains_of_four_layers_are_enumerated_then_the_gap_to_the_optimum_is_0() -> None:
    for seed in range(12):
        solver, table, budget = instance(seed)
        costs = solver.costs
        states = np.array(list(itertools.product(*[range(size) for size in costs.sizes])))
        allowed = states[costs.is_legal(states) & (costs.costs(states)["bops"] <= budget.limits["bops"])]
        best = min(table.loss(costs.assignment(state)) for state in allowed)
        found = solver.prove(budget, table, gap=0.0)
        assert found.assignment is not None
        assert table.loss(found.assignment) == pytest.approx(best, abs=1e-9), seed


def test_p6_budget_when_tightened_then_the_least_loss_never_falls() -> None:
    for seed in range(4):
        solver, table, budget = instance(seed)
        limits = [budget.limits["bops"] * share for share in (1.5, 1.2, 1.0, 0.9, 0.8)]
        losses = [solver.prove(Budget({"bops": limit}), table, gap=0.0).loss for limit in limits]
        assert losses == sorted(losses)


# P7: nothing to do


def test_p7_gates_when_all_exceed_the_threshold_at_32_bits_then_the_identity() -> None:
    x = torch.randn(4, 6, 5, 5) * 3
    gate, weights, activations = ChannelGate(6).eval(), LearnedQuantizer(1.0), LearnedQuantizer(1.0, 8, UNSIGNED)
    for quantizer in (weights, activations):
        quantizer.restrict(32)
        assert quantizer.bits().item() == quantizer.deploy_bits() == 32
    assert gate.keep_set().tolist() == list(range(6))
    assert torch.equal(activations(gate(weights(x))), x)


# P8: legal widths


@pytest.mark.parametrize(("bits", "power"), [(5, 4), (6, 8), (7, 8), (3, 4), (2.2, 2), (11.2, 8), (11.4, 16)])
def test_p8_power_of_two_mode_when_widths_are_rounded_then_on_the_scale_of_logarithms(bits: float, power: int) -> None:
    assert nearest_width(bits, (2, 4, 8, 16, 32)) == power == 2 ** round(math.log2(bits))


@settings(deadline=None)
@given(st.floats(2.0, 12.0), st.sets(st.sampled_from([2, 3, 4, 6, 8, 16]), min_size=1))
def test_p8_widths_when_restricted_then_only_allowed_ones_come_out(bits: float, legal: set[int]) -> None:
    quantizer = LearnedQuantizer(0.8)
    with torch.no_grad():
        quantizer.log_step.fill_(math.log(0.8 / (2 ** (bits - 1) - 1)))
    quantizer.restrict(nearest_width(quantizer.bits().item(), sorted(legal)))
    assert quantizer.deploy_bits() in legal
    assert quantizer.bits().item() == quantizer.deploy_bits()


def test_p8_width_when_fixed_then_maximum_and_exponent_train_on_and_the_step_follows() -> None:
    quantizer = LearnedQuantizer(1.0)
    quantizer.restrict(4)
    quantizer(torch.linspace(-2, 2, 101)).square().sum().backward()
    assert quantizer.log_top.grad is not None and quantizer.log_top.grad.item() != 0
    assert quantizer.log_exponent.grad is not None and quantizer.log_exponent.grad.item() != 0
    assert quantizer.log_step.grad is None
    with torch.no_grad():
        quantizer.log_top.add_(0.3)
        quantizer.log_exponent.sub_(0.2)
    top, exponent = math.exp(0.3), math.exp(-0.2)
    assert quantizer.curve().step.item() == pytest.approx(top**exponent / 7, rel=1e-5)
    assert quantizer.deploy_bits() == 4
