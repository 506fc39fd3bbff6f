"""The properties of Bayesian Bits (van Baalen et al. 2020): nested grids, hard concrete gates, the penalty."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.methods.bit_gates import (
    LOWER,
    TEMPERATURE,
    UPPER,
    BitGatedQuantizer,
    Nest,
    chance_on,
    drawn,
    is_on,
    nested,
)
from worker.methods.djpq import SIGNED, UNSIGNED

WIDTHS = (2, 4, 8, 16)


def single(x: float, gates: tuple[float, ...]) -> float:
    value = torch.tensor([x], dtype=torch.float64)
    nest = Nest(None, WIDTHS[: len(gates) + 1])
    return nested(value, torch.tensor(1.0).double(), torch.tensor(gates).double(), nest).item()


def test_steps_when_the_range_is_minus_1_to_1_then_these() -> None:
    nest = Nest(None, WIDTHS)
    steps = [nest.step(1.0, bits) for bits in WIDTHS]
    assert steps == pytest.approx([0.66667, 0.13333, 0.0078431, 3.0518e-5], rel=5e-5)
    for (bits, before), after in zip(zip(WIDTHS, steps, strict=True), steps[1:], strict=False):
        assert after == pytest.approx(before / (2**bits + 1), rel=1e-12)


@pytest.mark.parametrize(("gates", "value"), [((), 0.66667), ((1.0,), 0.4), ((1.0, 1.0), 0.368627)])
def test_value_037_when_rounded_by_more_and_more_bits_then_066667_04_0368627(
    gates: tuple[float, ...], value: float
) -> None:
    bits = WIDTHS[len(gates)]
    step = 2 / (2**bits - 1)
    assert single(0.37, gates) == pytest.approx(value, abs=5e-6)
    assert single(0.37, gates) == pytest.approx(step * round(0.37 / step), abs=1e-12)  # rounded to those bits at once


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from([None, UNSIGNED, SIGNED]),
    st.integers(1, 4),
    st.floats(0.1, 30),
    st.lists(st.floats(-2, 2), min_size=1, max_size=50),
)
def test_nested_rounding_when_all_gates_are_on_then_that_of_the_last_width_at_once(
    below: float | None, count: int, top: float, shares: list[float]
) -> None:
    x = torch.tensor(shares, dtype=torch.float64) * top
    nest = Nest(below, WIDTHS[:count])
    found = nested(x, torch.tensor(top, dtype=torch.float64), torch.ones(count - 1).double(), nest)
    step, half = nest.step(top, WIDTHS[count - 1]), 2 ** (WIDTHS[count - 1] - 1)
    under, over = {None: (half - 1, half - 1), UNSIGNED: (0, 2 * half - 1), SIGNED: (half, half - 1)}[below]
    units = x / step
    tie = ((units - units.floor()) - 0.5).abs() < 1e-6  # of a tie either neighbour is nearest
    wanted = units.round().clamp(-under, over)
    assert bool((((found / step) - wanted).abs() < 1e-6)[~tie].all())


def test_gate_when_phi_is_6_then_it_is_on_with_chance_099950() -> None:
    assert float(chance_on(torch.tensor(6.0))) == pytest.approx(0.99950, abs=5e-6)
    assert BitGatedQuantizer(1.0).phi.tolist() == [6.0, 6.0, 6.0]


def test_gate_when_evaluated_then_on_exactly_above_minus_09353() -> None:
    edge = TEMPERATURE * math.log(-LOWER / UPPER) - math.log(0.34 / 0.66)
    assert edge == pytest.approx(-0.9353, abs=5e-5)
    assert is_on(torch.tensor([edge - 1e-5, edge + 1e-5])).tolist() == [False, True]


@pytest.mark.parametrize("phi", [-2.0, 0.0, 1.5])
def test_gate_when_drawn_often_then_0_as_often_as_its_chance_says(phi: float) -> None:
    torch.manual_seed(0)
    values = drawn(torch.full((200_000,), phi))
    assert float(values.min()) >= 0.0 and float(values.max()) <= 1.0
    chance = float(chance_on(torch.tensor(phi)))
    assert float((values > 0).double().mean()) == pytest.approx(chance, abs=4e-3)


def test_penalty_when_gates_have_chances_then_share_times_the_sum_of_bits_times_products() -> None:
    quantizer = BitGatedQuantizer(1.0, channels=3)
    with torch.no_grad():
        quantizer.phi.copy_(torch.tensor([1.0, -0.5, 2.0]))
        quantizer.channel_phi.copy_(torch.tensor([0.0, 1.0, -3.0]))  # type: ignore[union-attr]
    q = chance_on(quantizer.phi).tolist()
    first = float(chance_on(torch.tensor([0.0, 1.0, -3.0])).mean())
    wanted = 0.25 * first * (2 + 4 * q[0] + 8 * q[0] * q[1] + 16 * q[0] * q[1] * q[2])
    assert quantizer.penalty(0.25).item() == pytest.approx(wanted, rel=1e-6)


def naive(x: Tensor, top: Tensor, gates: Tensor) -> Tensor:
    """x_2 + z_4 (e_4 + z_8 e_8), written out, with straight-through rounding."""

    def through(value: Tensor) -> Tensor:
        return value + (value.round() - value).detach()

    steps = [2 * top / (2**bits - 1) for bits in (2, 4, 8)]
    clipped = torch.maximum(torch.minimum(x, top * (1 - 1e-7)), -top * (1 - 1e-7))
    x2 = steps[0] * through(clipped / steps[0])
    e4 = steps[1] * through((clipped - x2) / steps[1])
    e8 = steps[2] * through((clipped - x2 - e4) / steps[2])
    return x2 + gates[0] * (e4 + gates[1] * e8)


def test_gradients_when_compared_with_the_formula_written_out_then_equal() -> None:
    torch.manual_seed(0)
    found: list[Tensor | None] = []
    wanted: list[Tensor | None] = []
    for grads, forward in ((found, True), (wanted, False)):
        x = (torch.linspace(-1.7, 1.9, 301).double()).requires_grad_()
        top, gates = (torch.tensor(item, dtype=torch.float64, requires_grad=True) for item in (1.3, [0.7, 0.4]))
        value = nested(x, top, gates, Nest(None, (2, 4, 8))) if forward else naive(x, top, gates)
        (value * torch.linspace(-1, 2, 301)).sum().backward()
        grads += [value.detach(), x.grad, top.grad, gates.grad]
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)
