"""Gates that look at the input: what they decide, what is left of them after calibration, what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.worker.search.pictures import Drawing, resnet, skipped
from worker.methods.batch_shaping import BatchShaping
from worker.methods.gating import (
    FilterGate,
    Schedule,
    Tidy,
    expected_active,
    gate_cost,
    gateable,
    gathered,
    masked,
    tidy,
)


def varied(filters: int = 12, block: int = 1, seed: int = 0) -> FilterGate:
    """Return a gate whose decisions depend on its input."""
    torch.manual_seed(seed)
    gate = FilterGate(6, filters, block).eval()
    nn.init.normal_(gate.excite.weight, std=2.0)
    nn.init.normal_(gate.excite.bias, std=1.0)
    return gate


def test_gate_when_filters_share_one_then_whole_blocks_are_on_or_off() -> None:
    gate = varied(filters=20, block=8)
    found = gate(torch.randn(50, 6, 5, 5))
    assert gate.gates == 3 and found.shape == (50, 20)
    for block in (slice(0, 8), slice(8, 16), slice(16, 20)):
        assert torch.equal(found[:, block], found[:, block][:, :1].expand(-1, found[:, block].shape[1]))
    assert 0.05 < float(found.mean()) < 0.95


@pytest.mark.parametrize("shape", [(4, 6, 7, 7), (4, 6, 9), (4, 6)])
def test_gate_when_its_input_has_positions_then_their_mean_decides(shape: tuple[int, ...]) -> None:
    gate, x = varied(), torch.randn(shape)
    pooled = x.flatten(2).mean(2) if len(shape) > 2 else x
    torch.testing.assert_close(gate.logits(x), gate.logits(pooled))
    if len(shape) > 2:
        torch.testing.assert_close(gate.logits(x.movedim(1, -1), axis=-1), gate.logits(x))


def test_gate_when_training_then_noise_and_gradients_for_all_of_it() -> None:
    gate, x = varied().train(), torch.randn(64, 6, 5, 5)
    assert not torch.equal(gate(x), gate(x))
    (gate(x) * torch.randn(64, 12)).sum().backward()
    assert all(item.grad is not None and bool((item.grad != 0).any()) for item in gate.parameters())


def test_gate_when_it_has_a_margin_then_what_lies_little_below_0_stays_on() -> None:
    gate = FilterGate(3, 3, margin=0.2).eval()
    assert gate.decide(torch.tensor([[-0.3, -0.1, 0.1]])).tolist() == [[0.0, 1.0, 1.0]]


def test_gates_when_sorted_by_their_rates_then_removed_gated_and_always_on() -> None:
    assert tidy(torch.tensor([0.0, 0.005, 0.4, 0.995, 1.0])) == Tidy((0, 1), (2,), (3, 4))
    assert tidy(torch.tensor([0.001, 0.003, 0.0])) == Tidy((0, 2), (1,), ())
    assert tidy(torch.tensor([0.011, 0.989])) == Tidy((), (0, 1), ())


@pytest.mark.parametrize("block", [1, 4])
def test_block_when_tidied_then_the_same_on_the_samples_it_was_tidied_by(block: int) -> None:
    gate, x = varied(24, block), torch.randn(200, 6, 8, 8) + 3 * torch.randn(200, 6, 1, 1)
    with torch.no_grad():
        gate.excite.bias[0], gate.excite.bias[1], gate.excite.bias[2] = -50.0, 50.0, -50.0
    first, second = nn.Conv2d(6, 24, 3, padding=1), nn.Conv2d(24, 6, 3, padding=1)
    found = tidy(gate.decide(gate.logits(x)).mean(0), rare=1e-9)
    assert {0, 2} <= set(found.removed) and 1 in found.always and found.gated
    left, small = gate.filters_left(found), gate.tidied(found)
    kept = torch.tensor(left)
    one, two = nn.Conv2d(6, len(left), 3, padding=1), nn.Conv2d(len(left), 6, 3, padding=1)
    with torch.no_grad():
        one.weight.copy_(first.weight[kept])
        one.bias.copy_(first.bias[kept])  # type: ignore[index, union-attr]
        two.weight.copy_(second.weight[:, kept])
        two.bias.copy_(second.bias)  # type: ignore[union-attr, arg-type]
    assert small.gates == len(found.gated) and len(left) == 24 - block * len(found.removed)
    torch.testing.assert_close(
        masked(x, (one, two), small(x)), masked(x, (first, second), gate(x)), rtol=1e-5, atol=1e-5
    )


def test_gate_when_nothing_is_left_to_decide_then_every_filter_is_on() -> None:
    gate = varied(4)
    small = gate.tidied(Tidy((0,), (), (1, 2, 3)))
    assert small.gates == 0
    assert torch.equal(small(torch.randn(5, 6, 3, 3)), torch.ones(5, 3))


@pytest.mark.parametrize("layers", [
    (nn.Conv1d(4, 8, 3, padding=1), nn.Conv1d(8, 4, 3)),
    (nn.Conv2d(4, 8, 3, stride=2, bias=False), nn.Conv2d(8, 4, 1)),
    (nn.Linear(4, 8), nn.Linear(8, 3)),
])  # fmt: skip
def test_gathered_when_layers_differ_then_equal_to_masked(layers: tuple[nn.Module, nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, *([9] * (layers[0].weight.dim() - 2)))  # type: ignore[operator]
    gates = (torch.rand(6, 8) < 0.5).float()
    gates[0] = 0.0
    torch.testing.assert_close(gathered(x, layers, gates, F.gelu), masked(x, layers, gates, F.gelu))


def test_schedule_when_training_goes_on_then_shaping_fades_and_sparsity_rises() -> None:
    plan = Schedule(gamma=0.8, shaped=0.4, sparsity=0.1, warm=0.2, full=0.6)
    at = {share: plan.at(share) for share in (0.0, 0.2, 0.4, 0.6, 1.0)}
    assert [found[0] for found in at.values()] == pytest.approx([0.8, 0.4, 0.0, 0.0, 0.0])
    assert [found[1] for found in at.values()] == pytest.approx([0.0, 0.0, 0.05, 0.1, 0.1])


def test_groups_when_they_are_inner_ones_then_gateable_and_trunks_are_not() -> None:
    assert gateable(resnet(blocks=2)) == ("g_s0b0", "g_s0b1", "g_s1b0", "g_s1b1", "g_s2b0", "g_s2b1")
    assert gateable(skipped()) == ("g_inner",)


def test_cost_when_the_network_is_a_resnet_then_every_block_s_own() -> None:
    graph = resnet(blocks=2)
    cost = gate_cost(graph, "g_s1b0", gates=4)  # 16 channels at 32 x 32 go in, 32 at 16 x 16 come out
    assert cost.per_filter == 256 * 9 * 16 + 256 * 9 * 32
    assert cost.overhead == 16 * 16 + 16 * 4 + 1024 * 16


def test_cost_when_a_filter_has_several_columns_behind_it_then_all_of_them_count() -> None:
    draw = Drawing(3, 4)
    first = draw.conv("first", "input", ("g", 8), 4)
    draw.width[first] = type(draw.width[first])((("g", 16),))
    graph = draw.finish(draw.linear("head", first, ("out", 5)), frozen=("out",))
    assert gate_cost(graph, "g", gates=8).per_filter == 16 * 9 * 3 + 16 * 5


def test_cost_when_a_group_is_part_of_a_sum_then_refused() -> None:
    with pytest.raises(ValueError, match="g_trunk"):
        gate_cost(skipped(), "g_trunk", gates=8)


def train(gamma: float, sparsity: float = 1.0, steps: int = 250) -> tuple[float, float]:
    """Train gates against pressure to close them; return how many are on, and how much a gate differs by input."""
    torch.manual_seed(0)
    gate, shaping = FilterGate(6, 16).train(), BatchShaping(16, capacity=128)
    optimizer = torch.optim.Adam(gate.parameters(), 0.02)
    for _ in range(steps):
        logits = gate.logits(torch.randn(64, 6, 1, 1))
        loss = sparsity * expected_active(logits) / 16 + gamma * shaping(torch.sigmoid(logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        on = gate.eval()(torch.randn(500, 6, 1, 1))
    return float(on.mean()), float(on.var(0).mean())


def test_gates_when_shaped_then_they_depend_on_their_input_where_sparsity_alone_would_close_them() -> None:
    on, variance = train(gamma=0.0)
    assert on < 0.01 and variance < 0.01
    shaped_on, shaped_variance = train(gamma=20.0)
    assert 0.3 < shaped_on < 0.8
    assert shaped_variance > 0.15
