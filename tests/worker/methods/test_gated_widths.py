"""Bit gates as a joint network's quantizers: the widths they choose among, and the grids they hand over."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.domain.budget import Budget
from app.domain.cost import count
from app.domain.space import widest
from tests.worker.methods.digit_subject import subject
from tests.worker.quant.digits import device
from worker.methods.djpq import SIGNED, UNSIGNED, LearnedQuantizer
from worker.methods.gated_widths import GatedWidths, chain, plain
from worker.methods.joint_hard import settled
from worker.methods.joint_network import JointNetwork, JointSetting

ON, OFF = 12.0, -12.0


def gated_network() -> JointNetwork:
    item = subject(bits=4)
    return JointNetwork(item.network, item.compressor.slicer.plan, item.graph, item.space, JointSetting(gates=True))


@pytest.mark.parametrize(
    ("legal", "chosen"),
    [((2, 4, 8), (2, 4, 8)), ((2, 3, 4, 6, 8, 32), (2, 4, 8)), ((4, 8, 16), (4, 8, 16)), ((2, 8), (2,)), ((3, 6), ())],
)
def test_chain_when_widths_are_legal_then_those_twice_the_one_before(
    legal: tuple[int, ...], chosen: tuple[int, ...]
) -> None:
    assert chain(legal) == chosen


@pytest.mark.parametrize("below", [None, UNSIGNED, SIGNED])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_plain_when_gates_chose_a_width_then_a_grid_of_that_width_and_range(below: float | None, bits: int) -> None:
    made = GatedWidths(1.7, below, (2, 4, 8)).eval()
    with torch.no_grad():
        made.phi.copy_(torch.tensor([ON if width <= bits else OFF for width in (4, 8)]))
    found = plain(made)
    assert isinstance(found, LearnedQuantizer)
    assert found.deploy_bits() == bits
    x = torch.linspace(-2.5, 2.5, 4001)
    steps = (found(x) - made(x)).detach().abs() / float(made.step().detach())
    assert float(steps.max()) < 1.01  # a range that an odd number of steps divides has its steps elsewhere
    assert plain(found) is found and plain(None) is None


def test_network_when_gates_choose_then_widths_begin_at_the_widest_and_those_of_others_stay() -> None:
    made, bits = gated_network(), subject(bits=4).network.assignment
    learned, space = made.learned(), made.space
    assert learned.weight_bits and learned.activation_bits
    for name, width in learned.weight_bits.items():
        assert width == pytest.approx(max(chain(space.weight_bits[name])), rel=0.01)
    fixed = set(bits.activation_bits) - set(learned.activation_bits)
    assert all(len(space.activation_bits[name]) == 1 or bits.activation_bits[name] == 32 for name in fixed)


def test_settled_when_gates_are_off_then_narrow_and_inside_the_limit() -> None:
    item, made = subject(bits=4), gated_network()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.endswith(".phi"):
                value.fill_(OFF)
    limit = count(item.graph, widest(item.graph, 8), device()).bops / 16
    item = replace(item, budget=Budget({"bops": limit}))
    found = settled(made, item)
    assert set(found.assignment.weight_bits.values()) == {min(made.space.weight_bits["stem"])}
    assert count(item.graph, found.assignment, device()).bops <= limit
