"""Quantizers whose width gates choose: what they come to in evaluation, and what is deployed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.methods.bit_gates import BitGatedQuantizer
from worker.methods.djpq import SIGNED, UNSIGNED
from worker.quant.grids import ActivationGrid
from worker.quant.layer import QuantizedLayer

ON, OFF = 12.0, -12.0


def quantizer(phi: tuple[float, ...] = (ON, ON, OFF), top: float = 1.3) -> BitGatedQuantizer:
    made = BitGatedQuantizer(top)
    with torch.no_grad():
        made.phi.copy_(torch.tensor(phi))
    return made.eval()


@pytest.mark.parametrize(
    ("phi", "bits"), [((OFF, ON, ON), 2), ((ON, OFF, ON), 4), ((ON, ON, OFF), 8), ((ON, ON, ON), 16)]
)
def test_width_when_a_gate_is_off_then_nothing_behind_it_counts(phi: tuple[float, ...], bits: int) -> None:
    made = quantizer(phi=phi)
    assert made.deploy_bits() == bits
    assert made.bits().item() == pytest.approx(bits, abs=1e-3)
    made.settle()
    assert made.bits().item() == bits
    assert len(made(torch.linspace(-2, 2, 300_001)).detach().unique()) == 2**bits - 1


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([UNSIGNED, SIGNED]), st.sampled_from([2, 4, 8]), st.floats(0.05, 20), st.integers(0, 2**31))
def test_activation_when_evaluated_then_equal_to_its_grid_of_codes_to_the_bit(
    below: float, bits: int, top: float, seed: int
) -> None:
    made = BitGatedQuantizer(top, below)
    made.settle(bits)
    x = torch.randn(5000, generator=torch.Generator().manual_seed(seed)) * top
    assert torch.equal(made.grid().fake_quantize(x), made(x).detach() + 0.0)


def test_integers_when_channels_are_pruned_then_their_rows_are_0_and_the_rest_what_is_evaluated() -> None:
    made = BitGatedQuantizer(1.0, channels=4).eval()
    with torch.no_grad():
        made.phi.copy_(torch.tensor([ON, OFF, OFF]))
        made.channel_phi.copy_(torch.tensor([ON, OFF, ON, -0.9]))  # type: ignore[union-attr]
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    codes, scale = made.integers(weight), made.scale
    assert made.keep_set().tolist() == [0, 2, 3]
    assert made.kept_fraction().item() == 0.75
    assert not bool(codes[1].any()) and int(codes.abs().max()) == 7
    assert torch.equal(codes * scale, made(weight).detach() + 0.0)


def test_channels_when_every_gate_is_off_then_the_likeliest_stays() -> None:
    made = BitGatedQuantizer(1.0, channels=3)
    with torch.no_grad():
        made.channel_phi.copy_(torch.tensor([-5.0, -3.0, -4.0]))  # type: ignore[union-attr]
    assert made.keep_set().tolist() == [1]


def test_training_when_not_settled_then_noise_and_gradients_for_every_gate_and_the_range() -> None:
    torch.manual_seed(0)
    made = BitGatedQuantizer(1.0, channels=4)
    with torch.no_grad():
        made.phi.fill_(0.5)
        made.channel_phi.fill_(0.5)  # type: ignore[union-attr]
    x = torch.randn(4, 50)
    outs = [made(x) for _ in range(30)]
    assert not torch.equal(outs[0], outs[1])
    torch.stack(outs).square().sum().backward()
    assert all(item.grad is not None and bool((item.grad != 0).all()) for item in made.parameters())


def test_settled_when_training_then_no_noise_and_restored_from_its_state() -> None:
    made = quantizer().train()
    made.settle(4)
    x = torch.randn(100)
    assert torch.equal(made(x), made(x))
    restored = BitGatedQuantizer(1.0)
    restored.load_state_dict(made.state_dict())
    assert restored.deploy_bits() == 4
    made(x * 2).square().sum().backward()
    assert made.log_top.grad is not None and made.log_top.grad.item() != 0


def test_widths_when_the_device_starts_at_4_bits_then_the_coarsest_grid_is_that() -> None:
    made = BitGatedQuantizer(1.0, widths=(4, 8)).eval()
    with torch.no_grad():
        made.phi.fill_(OFF)
    assert made.deploy_bits() == 4
    assert len(made(torch.linspace(-2, 2, 10_001)).detach().unique()) == 15
    alone = BitGatedQuantizer(1.0, widths=(8,))
    alone(torch.randn(50)).sum().backward()
    assert alone.deploy_bits() == 8 and alone.bits().item() == 8


def test_widths_when_one_is_not_twice_the_one_before_then_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        BitGatedQuantizer(1.0, widths=(2, 4, 6))


def test_range_when_its_zero_can_not_lie_on_every_grid_then_refused() -> None:
    with pytest.raises(ValueError, match="share a zero"):
        BitGatedQuantizer(1.0, 0.3)


def test_quantizers_when_started_from_stored_ones_then_they_hold_their_range() -> None:
    scale = np.array([0.1, 0.2], np.float32)
    layer = QuantizedLayer("conv", 8, np.zeros(2, np.float32), np.ones((2, 3, 1, 1), np.int8), scale)
    weights = BitGatedQuantizer.of_layer(layer, prunes=True)
    assert weights.log_top.exp().item() == pytest.approx(0.2 * 127, rel=1e-6)
    assert weights.keep_set().tolist() == [0, 1]
    for grid, top, zero in ((ActivationGrid(0.1, 0, 8), 25.5, 0), (ActivationGrid(0.1, 60, 8), 19.5, 32768)):
        made = BitGatedQuantizer.of_grid(grid).eval()
        assert made.log_top.exp().item() == pytest.approx(top, rel=1e-6)
        assert made.grid().zero_point == zero
    with pytest.raises(ValueError, match="no scales"):
        BitGatedQuantizer.of_layer(QuantizedLayer("conv", 32, np.zeros(2, np.float32)))
