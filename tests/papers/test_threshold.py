"""Learned threshold pruning (Azarian et al. 2020): the properties of its equations, with worked values."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from worker.export.packing import pack
from worker.methods.threshold import (
    ELEMENT,
    Thresholded,
    ThresholdedWeight,
    bitmask_bits,
    index_bits,
    soft_count,
    soft_gate,
    soft_weight,
    sparsity_loss,
    squares,
    temperature,
)

FOUR = torch.tensor([0.05, 0.1, -0.2, 0.3], dtype=torch.float64)


def gaussian(count: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(count, dtype=torch.float64)


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_p1_gate_when_three_temperatures_above_then_value_and_gradients_as_worked() -> None:
    weight, tau = double(0.2).requires_grad_(), double(0.01).requires_grad_()
    gate = soft_gate(squares(weight), tau, double(0.01))
    value = soft_weight(weight, gate)
    assert float(gate.detach()) == pytest.approx(0.952574, abs=5e-7)
    assert float(value.detach()) == pytest.approx(0.190515, abs=5e-7)
    by_weight, by_tau = torch.autograd.grad(value, (weight, tau), retain_graph=True)
    assert float(by_tau) == pytest.approx(-0.903533, abs=5e-7)
    assert float(by_weight) == pytest.approx(0.952574, abs=5e-7)
    assert float(torch.autograd.grad(soft_count(gate), tau)[0]) == pytest.approx(-4.517666, abs=5e-7)


def test_p1_dropped_terms_when_kept_after_all_then_as_worked() -> None:
    """The exact gradients, which LTP replaces: by them the test above tells the two apart."""
    weight = double(0.2).requires_grad_()
    exact = soft_gate(weight.square(), double(0.01), double(0.01))
    assert float(torch.autograd.grad(weight * exact, weight, retain_graph=True)[0]) == pytest.approx(1.313987, abs=5e-7)
    assert float(torch.autograd.grad(exact.sum(), weight)[0]) == pytest.approx(1.807066, abs=5e-7)


def test_p1_soft_count_when_derived_by_the_weights_then_nothing() -> None:
    weight = FOUR.clone().requires_grad_()
    assert not soft_count(soft_gate(squares(weight), double(0.01), double(0.01))).requires_grad


@pytest.mark.parametrize(
    ("temperature_", "count"), [(1e-1, 2.22), (1e-2, 2.65), (1e-3, 2.076), (1e-4, 2.0), (1e-5, 2.0)]
)
def test_p2_soft_count_when_the_temperature_falls_then_the_hard_one(temperature_: float, count: float) -> None:
    found = soft_count(soft_gate(squares(FOUR), double(0.0125), double(temperature_)))
    assert float(found) == pytest.approx(count, abs=5e-3 if temperature_ > 1e-3 else 5e-4)
    assert int((squares(FOUR) > 0.0125).sum()) == 2


@pytest.mark.parametrize("factor", [1.0, 10.0, 0.1])
def test_p3_soft_count_when_weights_are_scaled_then_the_same(factor: float) -> None:
    """10,000 normal weights, tau at half their mean square, T0 = 0.1."""
    weight = factor * gaussian(10_000)
    tau = 0.5 * weight.square().mean()
    found = soft_gate(squares(weight), tau, temperature(weight, ELEMENT, 0.1)).mean()
    assert float(found) == pytest.approx(0.478726, abs=5e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-4, 1e4), st.floats(1e-3, 3))
def test_p3_mask_when_weights_are_scaled_then_the_same(seed: int, factor: float, start: float) -> None:
    weight, threshold = gaussian(300, seed).reshape(10, 30), ThresholdedWeight(start=start)
    one, other = threshold.mask(weight), threshold.mask(factor * weight)
    assert torch.equal(one, other)
    assert float(threshold.count(weight).detach()) == pytest.approx(
        float(threshold.count(factor * weight).detach()), rel=1e-5
    )


@pytest.mark.parametrize(("ratio", "pruned"), [(0.25, 0.3829), (1.0, 0.6827), (2.706, 0.9000)])
@pytest.mark.parametrize("sigma", [0.02, 1.0, 30.0])
def test_p4_pruned_share_when_weights_are_normal_then_by_the_error_function(
    ratio: float, pruned: float, sigma: float
) -> None:
    tau = ratio * sigma**2
    assert math.erf(math.sqrt(tau / 2) / sigma) == pytest.approx(pruned, abs=6e-5)
    weight = sigma * gaussian(400_000)
    assert float((squares(weight) <= tau).double().mean()) == pytest.approx(pruned, abs=0.0025)
    threshold = ThresholdedWeight(start=ratio)
    assert threshold.density(weight.reshape(400, -1)) == pytest.approx(1 - pruned, abs=0.0025)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.lists(st.floats(0, 20), min_size=2, max_size=8))
def test_p5_density_when_the_threshold_rises_then_it_never_does(seed: int, multipliers: list[float]) -> None:
    weight, threshold = gaussian(500, seed).reshape(20, 25), ThresholdedWeight(start=0.5)
    densities = [float(threshold.mask(weight, item).double().mean()) for item in sorted(multipliers)]
    assert densities == sorted(densities, reverse=True)


def trained(strength: float, steps: int = 300) -> float:
    """Return the density after learning weights and threshold to stay near normal weights."""
    start = gaussian(2000).float().reshape(40, 50)
    weight, threshold = start.clone().requires_grad_(), ThresholdedWeight()
    optimizer = torch.optim.Adam(
        [{"params": [weight], "lr": 1e-3}, {"params": threshold.parameters(), "lr": 3e-2}],
    )
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (threshold(weight) - start).square().mean()
        (loss + strength * sparsity_loss([Thresholded(threshold, weight)])).backward()
        optimizer.step()
    return threshold.density(weight.detach())


def test_p5_density_when_lambda_rises_then_it_never_does() -> None:
    densities = [trained(strength) for strength in (0.0, 0.03, 0.1, 0.3, 1.0)]
    assert densities == sorted(densities, reverse=True)
    assert densities[0] > 0.8
    assert densities[-1] < 0.3


def test_p6_threshold_when_only_the_count_is_lost_then_strictly_rises() -> None:
    weight, threshold = gaussian(1000).reshape(20, 50), ThresholdedWeight()
    optimizer = torch.optim.Adam(threshold.parameters(), 0.05)
    taus = [float(threshold.tau(weight).detach())]
    for _ in range(100):
        optimizer.zero_grad()
        sparsity_loss([Thresholded(threshold, weight)]).backward()
        optimizer.step()
        taus.append(float(threshold.tau(weight).detach()))
    assert all(later > earlier for earlier, later in pairwise(taus))
    assert taus[-1] > 10 * taus[0]


def in_the_slope(exact: bool) -> float:
    """Return the share of weights with a gate between 0.01 and 0.99 after 3000 steps on a quadratic loss."""
    start = gaussian(4000).float()
    weight, tau = start.clone(), torch.zeros(())
    for _ in range(3000):
        weight.requires_grad_(), tau.requires_grad_()
        squared = weight.square() if exact else squares(weight)
        gate = soft_gate(squared, tau, temperature(weight))
        loss = 0.5 * (soft_weight(weight, gate) - start).square().sum() + 0.3 * soft_count(gate)
        by_weight, by_tau = torch.autograd.grad(loss, (weight, tau))
        weight, tau = (weight - 0.1 * by_weight).detach(), (tau - 5e-4 * by_tau).detach().clamp_min(0)
    gate = soft_gate(squares(weight), tau, temperature(weight))
    return float(((gate > 0.01) & (gate < 0.99)).float().mean())


def test_p6_slope_of_the_gate_when_dropped_terms_are_kept_then_it_empties() -> None:
    """Premature termination: what is in the slope decides whether a threshold still learns."""
    dropped, exact = in_the_slope(exact=False), in_the_slope(exact=True)
    assert dropped == pytest.approx(0.205, abs=0.03)
    assert exact == pytest.approx(0.113, abs=0.03)


def pruned_integers(seed: int, density: float, bits: int) -> tuple[Tensor, Tensor]:
    """Return integers [24, 40] that a mask left, and the mask: no survivor rounds to zero."""
    torch.manual_seed(seed)
    mask = torch.rand(24, 40) < density
    limit = 2 ** (bits - 1) - 1
    integers = torch.randint(1, limit + 1, mask.shape) * (2 * torch.randint(0, 2, mask.shape) - 1)
    return integers * mask, mask


def test_p7_exported_zeros_when_hard_then_exactly_those_below_the_threshold() -> None:
    weight = gaussian(1200).float().reshape(30, 40)
    threshold = ThresholdedWeight(start=0.6).eval()
    exported, tau = threshold(weight).detach(), float(threshold.tau(weight).detach())
    assert torch.equal(exported == 0, weight.square() <= tau)
    assert torch.equal(exported[exported != 0], weight[weight.square() > tau])


def test_p7_sparse_product_when_of_hard_weights_then_the_dense_one() -> None:
    weight, x = gaussian(1200).reshape(30, 40), gaussian(40 * 7, 1).reshape(40, 7)
    hard = ThresholdedWeight(start=0.6).eval()(weight).detach()
    assert torch.allclose(hard.to_sparse_csr() @ x, hard @ x, rtol=1e-12, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1), st.sampled_from([2, 3, 4, 8]))
def test_p7_bitmask_when_written_then_the_bytes_of_the_formula(seed: int, density: float, bits: int) -> None:
    integers, mask = pruned_integers(seed, density, bits)
    bits_of_mask = np.packbits(mask.numpy().reshape(-1), bitorder="little")
    values = pack(integers[mask].numpy(), bits)
    assert 8 * len(bits_of_mask) == mask.numel()  # a whole number of bytes here
    assert math.ceil(bitmask_bits(mask.numel(), int(mask.sum()), bits) / 8) == len(bits_of_mask) + len(values)


def encoded(values: list[int], width: int) -> list[tuple[int, int]]:
    """Return (zeros before, value) as relative indices of `width` bits store them."""
    found, zeros = [], 0
    for value in values:
        if value == 0 and zeros < 2**width - 1:
            zeros += 1
            continue
        found.append((zeros, value))
        zeros = 0
    while found and found[-1][1] == 0:  # nothing comes behind
        found.pop()
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1), st.sampled_from([2, 4, 8]), st.sampled_from([2, 4]))
def test_p7_relative_indices_when_written_then_the_bits_of_the_formula_and_read_back(
    seed: int, density: float, bits: int, width: int
) -> None:
    integers, mask = pruned_integers(seed, density**3, bits)
    values = integers.reshape(-1).tolist()
    entries = encoded(values, width)
    assert index_bits(mask, bits, width) == len(entries) * (bits + width)
    decoded = [0] * len(values)
    place = -1
    for zeros, value in entries:
        place += zeros + 1
        decoded[place] = value
    assert decoded == values


class Masked(nn.Module):
    """A small network whose weights pass thresholds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 36, 5)
        self.thresholds = nn.ModuleList([ThresholdedWeight(start=0.5), ThresholdedWeight(start=1.5)])

    def forward(self, x: Tensor) -> Tensor:
        conv, head = (gate(leaf.weight) for gate, leaf in zip(self.thresholds, (self.conv, self.head), strict=True))
        return F.linear(F.relu(F.conv2d(x, conv, self.conv.bias, padding=1)).flatten(1), head, self.head.bias)

    def sparse(self, x: Tensor) -> Tensor:
        """Compute with compressed sparse rows alone."""
        gates: Any = self.thresholds
        bias: Any = self.conv.bias
        columns = F.unfold(x, 3, padding=1)  # [n, 27, 36]
        kernel = (self.conv.weight * gates[0].mask(self.conv.weight)).detach().reshape(8, -1).to_sparse_csr()
        hidden = torch.stack([kernel @ item for item in columns]) + bias[:, None]
        head = (self.head.weight * gates[1].mask(self.head.weight)).detach().to_sparse_csr()
        found: Tensor = (head @ F.relu(hidden).flatten(1).T).T + self.head.bias
        return found


@pytest.mark.parametrize("frozen", [False, True])
def test_p8_network_when_masked_and_when_sparse_then_equal_outputs(frozen: bool) -> None:
    network = Masked()
    if frozen:
        for gate, leaf in zip(network.thresholds, (network.conv, network.head), strict=True):
            gate.freeze(leaf.weight)  # type: ignore[operator]
    network.train(frozen)
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(network(x), network.sparse(x), rtol=1e-5, atol=1e-6)
