"""Channels and bits trained under a budget: the gates, what is folded, and that every limit is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import methods as domain
from app.domain.budget import Budget
from app.domain.cost import count
from app.domain.space import Assignment, SearchSpace, is_legal, widest
from tests.worker.methods.digit_subject import space, subject
from tests.worker.quant.digits import device, evaluator, trained
from worker.methods.djpq import nearest_width
from worker.methods.hardening import Hardened
from worker.methods.joint import JointStage
from worker.methods.joint_hard import hard_start, settled, starts, widest_start
from worker.methods.joint_network import JointNetwork, JointSetting
from worker.methods.protocol import NothingLegal, Subject
from worker.methods.straight import StraightThrough
from worker.methods.trainable import TrainableNetwork
from worker.quant.network import CompressedNetwork

METRICS = ("macs", "bops", "weight_bytes", "peak_activation_bytes", "latency_ms")


def whole_subject(bits: int = 8) -> Subject:
    """Return the whole network at some bits everywhere."""
    item = subject(keep=1.0, bits=bits)
    return replace(item, network=evaluator().compress(replace(widest_start(item), weight_bits=_all(bits)), "none"))


def _all(bits: int) -> dict[str, int]:
    return {layer.name: bits for layer in trained().graph.layers}


def joint(item: Subject, within: SearchSpace | None = None) -> JointNetwork:
    plan, setting = item.compressor.slicer.plan, JointSetting()
    return JointNetwork(item.network, plan, item.graph, within or item.space, setting)


def pictures() -> torch.Tensor:
    return subject().rows.inputs[0][:64]


def costs_at(assignment: Assignment) -> Any:
    return count(trained().graph, assignment, device())


def chosen(item: Subject, keep: int) -> dict[str, tuple[int, ...]]:
    """Return every other channel of each group that may lose some."""
    return {
        group.id: tuple(range(group.channels)) if group.frozen else tuple(range(0, group.channels, keep))
        for group in item.graph.groups
    }


def answers(net: CompressedNetwork | torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found = net(pictures())[0] if isinstance(net, torch.nn.Module) else net.forward(pictures())
    return torch.as_tensor(found)


def test_forward_when_nothing_was_trained_then_the_start_s_answers() -> None:
    item = whole_subject()
    made = joint(item).eval()
    near = (answers(made) - answers(item.network)).abs().amax(1) < 0.01 * float(answers(made).abs().max())
    assert float(near.float().mean()) > 0.9  # biases are rounded there, which now and then moves a code


def test_gates_when_made_then_one_for_each_group_that_may_lose_channels() -> None:
    made = joint(whole_subject())
    free = [group for group in trained().graph.groups if len(space().keep[group.id]) > 1]
    assert [len(gate.mean) for gate in made.gates] == [group.channels for group in free]  # type: ignore[union-attr,arg-type]


def test_factors_when_drawn_then_members_of_a_group_get_the_same() -> None:
    made = joint(whole_subject()).train()
    torch.manual_seed(0)
    made(pictures())
    layers = ("stem", "right", "deep")  # a residual sum and what follows it channel by channel
    columns = [made._drawn[:, made._owners[name]] for name in layers]
    assert columns[0].shape == (64, 12)
    assert torch.equal(columns[0], columns[1]) and torch.equal(columns[1], columns[2])
    assert float(columns[0].detach().std()) > 0.01


@pytest.mark.parametrize("bits", [4, 8])
def test_hard_start_when_bits_stay_then_the_joint_network_with_its_gates_folded_in(bits: int) -> None:
    item = whole_subject(bits)
    made = joint(item).eval()
    with torch.no_grad():
        for gate in made.gates:
            gate.mean.copy_(0.6 + 0.8 * torch.rand(len(gate.mean), generator=torch.Generator().manual_seed(1)))  # type: ignore[union-attr,operator,arg-type]
    whole = {group.id: tuple(range(group.channels)) for group in item.graph.groups}
    start = hard_start(made, Hardened(item.network.assignment, whole), item)
    hard = TrainableNetwork(start, StraightThrough()).hard()
    near = (answers(made) - answers(hard)).abs().amax(1) < 0.03 * float(answers(made).abs().max())
    assert float(near.float().mean()) > 0.9


def test_hard_start_when_channels_go_then_they_are_physically_gone_and_the_masked_network_answers_alike() -> None:
    item = whole_subject()
    kept = chosen(item, 2)
    made = joint(item).eval()
    for name, gate in made._by_group().items():
        gate.settle(kept[name])
    bits = item.network.assignment
    assignment = replace(bits, keep={name: len(channels) for name, channels in kept.items()})
    hard = TrainableNetwork(hard_start(made, Hardened(assignment, kept), item), StraightThrough()).hard()
    widths = {layer.name: layer.out_width.kept(assignment.keep) for layer in item.graph.layers}
    assert {name: len(layer.bias) for name, layer in hard.layers.items()} == widths
    assert hard.kept == kept
    near = (answers(made) - answers(hard)).abs().amax(1) < 0.03 * float(answers(made).abs().max())
    assert float(near.float().mean()) > 0.9


def test_narrowed_when_the_start_has_lost_channels_then_none_comes_back_and_frozen_groups_stay() -> None:
    item = subject(bits=4)
    made = joint(item)
    keep = item.network.assignment.keep
    for name, counts in made.narrowed().keep.items():
        assert max(counts) <= keep[name]
    assert made.narrowed().keep["head"] == (10,)


def test_gates_when_the_space_leaves_no_choice_then_none_and_widths_are_fixed() -> None:
    item = whole_subject()
    bits = item.network.assignment
    only = SearchSpace(
        {name: (count,) for name, count in bits.keep.items()},
        {name: (width,) for name, width in bits.weight_bits.items()},
        {name: (width,) for name, width in bits.activation_bits.items()},
        item.space.pairs,
    )
    made = joint(item, only)
    assert len(made.gates) == 0 and not made._bounds
    soft = made.soft()
    assert soft.weight_bits.tolist() == [8.0] * len(item.graph.layers)
    assert float(made.kl()) == 0.0


def jolted(made: JointNetwork, seed: int) -> JointNetwork:
    """Move gates and grids as a training would that goes anywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if not name.startswith(("weights.", "biases.")):
                value += 1.5 * torch.randn(value.shape, generator=generator)
    made.project()
    return made


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10_000),
    st.lists(st.sampled_from(METRICS), min_size=1, max_size=3, unique=True),
    st.floats(0.15, 0.9),
    st.sampled_from(["candidate", "float"]),
)
def test_settled_when_limits_are_random_then_every_one_is_kept_and_the_assignment_is_legal(
    seed: int, metrics: Sequence[str], share: float, start: str
) -> None:
    item = subject(bits=4) if start == "candidate" else whole_subject()
    low, high = costs_at(_cheapest(item)), costs_at(widest(item.graph, 8))
    limits = {name: low.value(name) + share * (high.value(name) - low.value(name)) for name in metrics}
    item = replace(item, budget=Budget(limits))
    found = settled(jolted(joint(item), seed), item)
    assert item.budget.is_met(costs_at(found.assignment))
    assert is_legal(item.graph, space(), found.assignment, device())
    assert {name: len(kept) for name, kept in found.kept.items()} == dict(found.assignment.keep)
    for name, kept in found.kept.items():
        assert set(kept) <= set(item.network.kept.get(name, range(item.graph.group[name].channels)))
        assert list(kept) == sorted(set(kept))


def _cheapest(item: Subject) -> Assignment:
    return Assignment(
        {name: min(counts) for name, counts in item.space.keep.items()},
        {name: min(widths) for name, widths in item.space.weight_bits.items()},
        {name: min(widths) for name, widths in item.space.activation_bits.items()},
    )


def test_settled_when_no_assignment_keeps_the_limits_then_named() -> None:
    item = replace(subject(), budget=Budget({"bops": 1.0}))
    with pytest.raises(NothingLegal, match="no legal channels and bits"):
        settled(joint(item), item)


def test_starts_when_the_candidate_keeps_the_limits_then_its_own_channels_and_bits_are_among_them() -> None:
    item, made = subject(bits=4), jolted(joint(subject(bits=4)), 5)
    item = replace(item, budget=Budget({"bops": costs_at(item.network.assignment).bops}))
    learned, own, untouched = starts(made, item)
    assert learned.network.assignment != item.network.assignment
    assert own.network.assignment == untouched.network.assignment == item.network.assignment
    assert own.network.kept == {**own.network.kept, **item.network.kept}
    assert (learned.is_trained, own.is_trained, untouched.is_trained) == (True, True, False)
    assert untouched.network is item.network


def test_starts_when_the_candidate_breaks_a_limit_then_what_was_learned_alone() -> None:
    item = subject(bits=4)
    item = replace(item, budget=Budget({"bops": 0.9 * costs_at(item.network.assignment).bops}))
    (only,) = starts(joint(item), item)
    assert item.budget.is_met(costs_at(only.network.assignment))


def test_stage_when_the_joint_part_ruined_the_weights_then_it_goes_on_from_the_candidate() -> None:
    item = subject(bits=4)
    item = replace(item, budget=Budget({"bops": costs_at(item.network.assignment).bops}))
    stage = JointStage(item, domain.JointPruning(domain.Training(epochs=2, rows=256, batch=64, shift=0), joint=0.5))
    stage.fit()
    with torch.no_grad():
        for weight in stage._joint.weights.values():
            weight.zero_()
    before = item.network.layers["stem"].weight_int
    assert stage._chosen[0].told == "from the candidate as it was"
    after = stage.finish().layers["stem"].weight_int
    assert before is not None and after is not None
    assert (before == after).all()
    assert stage.fit().note == "from the candidate as it was"


def test_stage_when_a_limit_is_far_below_the_start_then_costs_come_down_to_it() -> None:
    item = whole_subject()
    eight = costs_at(widest(item.graph, 8)).bops
    item = replace(item, budget=Budget({"bops": eight / 8}))
    how = domain.Training(epochs=12, rows=512, batch=32, shift=0)
    stage = JointStage(item, domain.JointPruning(how, "float", joint=0.75, kappa=1.0, structure_rate=0.05))
    excess = []
    for _ in range(9):
        stage.fit()
        excess.append(float(stage._rule.excess(stage._limited())["bops"].detach()))
    assert excess[0] > 1.0 and excess[-1] < 0.25
    while not stage.done:
        stage.fit()
    assert costs_at(stage.finish().assignment).bops <= eight / 8


def test_project_when_there_is_leeway_then_widths_are_moved_that_near_to_legal_ones_and_no_further() -> None:
    made = jolted(joint(whole_subject()), 3)
    before = {key: item.bits().item() for key, (item, _, _) in made._bounds.items()}
    for leeway in (0.3, 0.1, 0.0):
        made.leeway = leeway
        made.project()
        for key, (item, _, _) in made._bounds.items():
            near = nearest_width(before[key], made._legal(key))
            low, high = near * 2**-leeway, near * 2**leeway
            assert low * (1 - 1e-5) <= item.bits().item() <= high * (1 + 1e-5)
    assert any(abs(bits - round(bits)) > 0.1 for bits in before.values())


@pytest.mark.parametrize("joint_share", [0.5, 1.0])
def test_stage_when_the_joint_part_ends_then_every_width_is_a_legal_one(joint_share: float) -> None:
    item = whole_subject()
    item = replace(item, budget=Budget({"bops": costs_at(widest(item.graph, 8)).bops / 4}))
    how, between = domain.Training(epochs=4, rows=512, batch=32, shift=0), []
    stage = JointStage(item, domain.JointPruning(how, joint=joint_share, structure_rate=0.03))
    while not stage._first.done:
        between.append(_off_legal(stage._joint))
        stage.fit()
    assert max(between) > 0.05
    assert _off_legal(stage._joint) < 1e-4


def _off_legal(made: JointNetwork) -> float:
    """Return how far the width that lies farthest from a legal one does, in bits."""
    return max(
        min(abs(item.bits().item() - width) for width in made._legal(key)) for key, (item, _, _) in made._bounds.items()
    )
