"""The properties of batch-shaped channel gates (arXiv 1907.06627)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import betainc
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from app.domain.graph import ModelGraph
from tests.worker.search.pictures import Drawing
from worker.methods.batch_shaping import PRIOR, batch_shaping, beta_cdf, beta_pdf
from worker.methods.gating import (
    START,
    FilterGate,
    Spread,
    binary_gumbel,
    expected_active,
    gate_cost,
    gathered,
    masked,
)

ROWS = 256


def column(values: list[float], grad: bool = False) -> Tensor:
    return torch.tensor([[value] for value in values], dtype=torch.float64, requires_grad=grad)


# P1, P2: what the loss comes to


@pytest.mark.parametrize("rows", [1, 2, 16, ROWS])
def test_p1_loss_when_gates_follow_the_prior_then_one_over_6_n_plus_1(rows: int) -> None:
    """I(x) is uniform then, its i-th smallest Beta(i, n + 1 - i): the loss expects the mean of their variances."""
    ranks = np.arange(1, rows + 1)
    assert stats.beta.var(ranks, rows + 1 - ranks).mean() == pytest.approx(1 / (6 * (rows + 1)), rel=1e-9)


def test_p1_loss_when_sampled_from_the_prior_then_6_5e_4_for_256_rows() -> None:
    assert pytest.approx(6.485e-4, abs=5e-8) == 1 / (6 * 257)
    samples = torch.from_numpy(np.random.default_rng(0).beta(*PRIOR, size=(ROWS, 2000)))
    assert batch_shaping(samples).item() == pytest.approx(6.485e-4, rel=0.05)


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_p2_loss_when_gates_are_always_off_or_on_then_2n_plus_1_over_6_n_plus_1(constant: float) -> None:
    loss = batch_shaping(torch.full((ROWS, 3), constant, dtype=torch.float64)).item()
    assert loss == pytest.approx((2 * ROWS + 1) / (6 * (ROWS + 1)), rel=1e-12)
    assert loss == pytest.approx(0.332685, abs=5e-7)


def test_p2_loss_when_gates_are_always_one_half_then_009612() -> None:
    assert batch_shaping(torch.full((ROWS, 1), 0.5, dtype=torch.float64)).item() == pytest.approx(0.09612, abs=5e-6)


# P3: the distribution function


@pytest.mark.parametrize(("x", "value"), [(0.1, 0.129739), (0.5, 0.384092), (0.9, 0.695109)])
def test_p3_beta_cdf_when_prior_is_06_04_then_the_values_of_the_paper(x: float, value: float) -> None:
    assert beta_cdf(torch.tensor(x), *PRIOR).item() == pytest.approx(value, abs=5e-7)


def test_p3_beta_cdf_when_prior_is_05_05_then_a_third_at_a_quarter() -> None:
    assert beta_cdf(torch.tensor(0.25), 0.5, 0.5).item() == pytest.approx(1 / 3, abs=1e-14)


@settings(deadline=None, max_examples=200)
@given(st.floats(0, 1), st.floats(0.05, 20), st.floats(0.05, 20))
def test_p3_beta_cdf_when_compared_with_scipy_then_equal(x: float, a: float, b: float) -> None:
    value = beta_cdf(torch.tensor(x, dtype=torch.float64), a, b).item()
    assert value == pytest.approx(float(betainc(a, b, x)), abs=1e-12)


@settings(deadline=None)
@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.1, 20), st.floats(0.1, 20))
def test_p3_beta_pdf_when_compared_with_scipy_then_equal(x: float, a: float, b: float) -> None:
    value = beta_pdf(torch.tensor(x, dtype=torch.float64), a, b).item()
    assert value == pytest.approx(float(stats.beta.pdf(x, a, b)), rel=1e-9)


def test_p3_prior_when_asked_then_mean_06_and_variance_012() -> None:
    assert stats.beta.mean(*PRIOR) == pytest.approx(0.6)
    assert stats.beta.var(*PRIOR) == pytest.approx(0.12)


# P4, P5: its gradient


def test_p4_two_values_when_differentiated_then_these_numbers_and_those_of_differences() -> None:
    values = column([0.2, 0.7], grad=True)
    loss = batch_shaping(values)
    loss.backward()
    assert loss.item() == pytest.approx(0.0203117, abs=5e-8)
    assert values.grad is not None
    assert values.grad.flatten().tolist() == pytest.approx([-0.0867156, -0.1097565], abs=5e-8)
    for index in range(2):
        ends = []
        for side in (1e-6, -1e-6):
            moved = values.detach().clone()
            moved[index] += side
            ends.append(batch_shaping(moved).item())
        assert values.grad[index].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=40, unique=True), st.randoms(use_true_random=False))
def test_p5_gradient_when_rows_are_permuted_then_permuted_alike(values: list[float], random: object) -> None:
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    plain, mixed = column(values, grad=True), column([values[index] for index in order], grad=True)
    batch_shaping(plain).backward()
    batch_shaping(mixed).backward()
    assert plain.grad is not None and mixed.grad is not None
    assert torch.equal(mixed.grad, plain.grad[order])


def test_p5_gradient_when_densities_run_off_then_they_are_clipped_to_100_and_0001() -> None:
    values = column([0.0, 1.0], grad=True)
    batch_shaping(values).backward()
    assert values.grad is not None
    assert values.grad.flatten().tolist() == pytest.approx([-1 / 3 * 100, 1 / 3 * 100])  # -2/N (e - p) pdf
    values = column([1e-12, 1e-9], grad=True)
    batch_shaping(values, (6.0, 6.0)).backward()
    assert values.grad is not None
    assert values.grad.flatten().tolist() == pytest.approx([-1 / 3 * 1e-3, -2 / 3 * 1e-3])


# P6: binary Gumbel


@pytest.mark.parametrize("temperature", [0.1, 2 / 3, 5.0])
@pytest.mark.parametrize("logit", [-2.0, 0.0, 0.7])
def test_p6_gate_when_drawn_then_on_with_the_sigmoid_of_its_logit_at_every_temperature(
    logit: float, temperature: float
) -> None:
    torch.manual_seed(0)
    drawn = binary_gumbel(torch.full((200_000,), logit), temperature)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(torch.sigmoid(torch.tensor(logit)).item(), abs=4e-3)


def test_p6_gradient_when_drawn_then_that_of_the_soft_gate() -> None:
    logits = torch.linspace(-3, 3, 50, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    binary_gumbel(logits, 0.5).sum().backward()
    torch.manual_seed(1)
    noise = torch.logit(torch.rand_like(logits).clamp(1e-7, 1 - 1e-7))
    soft = torch.sigmoid((logits.detach() + noise) / 0.5)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, soft * (1 - soft) / 0.5)


def test_p6_gate_when_evaluated_then_on_exactly_above_0_and_the_start_is_mostly_on() -> None:
    gate = FilterGate(8, 16).eval()
    assert gate.decide(torch.tensor([[-0.1, 0.0, 0.1]])).tolist() == [[0.0, 0.0, 1.0]]
    assert torch.equal(gate(torch.randn(5, 8, 4, 4)), torch.ones(5, 16))
    assert 2.0 <= START <= 3.0
    assert gate.excite.bias.tolist() == [START] * 16


# P7: masking and gathering


class Block(nn.Module):
    """A residual block whose inner filters may be gated: out = relu(x + W2 (g * relu(W1 x)))."""

    def __init__(self, channels: int = 6, filters: int = 10) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, filters, 3, padding=1)
        self.second = nn.Conv2d(filters, channels, 3, padding=1)

    @property
    def layers(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        return self.first, self.second

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


def test_p7_block_when_masked_then_equal_to_the_gathered_one() -> None:
    torch.manual_seed(0)
    block, x = Block().double(), torch.randn(7, 6, 9, 9).double()
    gates = (torch.rand(7, 10) < 0.6).double()
    gates[3] = 0.0
    wanted = masked(x, block.layers, gates).detach()
    assert (gathered(x, block.layers, gates) - wanted).abs().max().item() < 2e-14
    torch.testing.assert_close(wanted[3], block.second.bias.detach()[:, None, None].expand(6, 9, 9))  # type: ignore[union-attr]


def test_p7_block_when_all_gates_are_on_then_equal_to_the_ungated_one() -> None:
    block, x = Block(), torch.randn(3, 6, 9, 9)
    assert torch.equal(F.relu(x + masked(x, block.layers, torch.ones(3, 10))), block(x))


# P8: what the loss alone leads to


def test_p8_free_logits_when_the_loss_alone_is_minimised_then_they_come_to_follow_the_prior() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(ROWS, 4) * 0.3 + 0.2).requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.05)

    def distances() -> list[float]:
        soft = torch.sigmoid(logits.detach()).double().numpy()
        return [float(stats.kstest(soft[:, index], stats.beta(*PRIOR).cdf).statistic) for index in range(4)]

    assert min(distances()) > 0.2
    for _ in range(400):
        optimizer.zero_grad()
        batch_shaping(torch.sigmoid(logits)).backward()
        optimizer.step()
    assert max(distances()) < 0.08
    soft = torch.sigmoid(logits.detach())
    assert soft.var(0).tolist() == pytest.approx([0.12] * 4, abs=0.01)
    assert soft.mean(0).tolist() == pytest.approx([0.6] * 4, abs=0.02)


# P9: what gated blocks cost


def picture(channels: int = 6, filters: int = 10, size: int = 9) -> ModelGraph:
    draw = Drawing(3, size)
    trunk = ("trunk", channels)
    stem = draw.conv("stem", "input", trunk, size, kernel=1)
    outer = draw.conv("second", draw.conv("first", stem, ("inner", filters), size), trunk, size)
    return draw.finish(draw.linear("head", draw.add("join", outer, stem), ("out", 4)), frozen=("out",))


def test_p9_macs_when_counted_on_the_gathered_block_then_those_of_the_formula() -> None:
    torch.manual_seed(0)
    block, x, gates = Block(), torch.randn(9, 6, 9, 9), (torch.rand(9, 10) < 0.5).float()
    gates[0] = 1.0
    cost = gate_cost(picture(), "inner", gates=10)
    assert cost.per_filter == 81 * 9 * 6 + 81 * 9 * 6
    assert cost.overhead == 6 * 16 + 16 * 10 + 81 * 6
    for row in range(9):
        counter = FlopCounterMode(display=False)
        with counter:
            gathered(x[row : row + 1], block.layers, gates[row : row + 1])
        counted = counter.get_total_flops() // 2  # a multiplication and an addition
        assert counted + cost.overhead == int(cost.macs(gates[row : row + 1]))


def test_p9_spread_when_reported_then_mean_95th_percentile_and_maximum() -> None:
    found = Spread.of(torch.arange(1, 101))
    assert (found.mean, found.p95, found.largest) == (50.5, 96.0, 100.0)


def test_p9_expected_filters_when_logits_are_given_then_the_sum_of_their_sigmoids() -> None:
    logits = torch.tensor([[0.0, 2.0], [-1.0, 1.0]])
    chances = torch.sigmoid(logits)
    assert expected_active(logits).item() == pytest.approx(chances.sum(1).mean().item())
    weighted = expected_active(logits, torch.tensor([3.0, 5.0])).item()
    assert weighted == pytest.approx((chances * torch.tensor([3.0, 5.0])).sum(1).mean().item())
