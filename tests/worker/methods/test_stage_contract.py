"""What holds for every method of a search, whatever it does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.domain import methods as domain
from app.domain.budget import Budget
from app.domain.cost import count
from app.domain.space import is_legal, widest
from tests.worker.methods.digit_subject import space, subject
from tests.worker.quant.digits import device, trained
from worker.export.checkpoint import read_checkpoint, write_checkpoint
from worker.methods import registry
from worker.methods.protocol import LossNotFinite, Stage, Subject

SHORT = domain.Training(epochs=3, rows=256, batch=64, shift=1)
METHODS: tuple[domain.Method, ...] = (
    domain.StraightThrough(SHORT),
    domain.RelaxedQuantization(SHORT),
    domain.JointPruning(SHORT, structure_rate=0.1),
    domain.JointPruning(SHORT, start="float", joint=0.7, structure_rate=0.1),
    domain.JointPruning(SHORT, widths="gates", structure_rate=0.2),
    domain.LearnedThresholds(SHORT, density=0.3),
    domain.ChannelGating(SHORT, block=2, gate_rate=0.1),
    domain.RelaxedRounding(steps=60, rows=256),
)
every = pytest.mark.parametrize(
    "method",
    METHODS,
    ids=["straight", "relaxed", "djpq", "djpq-float", "djpq-gates", "thresholds", "gating", "rounding"],
)


def epochs(method: domain.Method) -> int:
    """Return how many epochs a method has: those of its training, or one."""
    training: domain.Training | None = getattr(method, "training", None)
    return 1 if training is None else training.epochs


def limited(method: domain.Method | None = None) -> Subject:
    """Return a subject under a budget that it keeps with some room left: for gates' own weights and arithmetic where a
    method has any, since they stay float."""
    item = subject(bits=4)
    costs = count(item.graph, item.network.assignment, device())
    own = 2000 if isinstance(method, domain.ChannelGating) else 0
    limits = {"bops": 1.1 * costs.bops + 1024 * own, "weight_bytes": 1.1 * costs.weight_bytes + own}
    return replace(item, budget=Budget(limits))


def made(method: domain.Method, item: Subject | None = None) -> Stage:
    return registry.prepare(limited(method) if item is None else item, method)


def whole(method: domain.Method) -> Stage:
    stage = made(method)
    while not stage.done:
        stage.fit()
    return stage


@every
def test_stage_when_resumed_from_each_epoch_then_the_bytes_of_an_unbroken_run(method: domain.Method) -> None:
    unbroken, state = whole(method), None
    for number in range(epochs(method)):
        stage = made(method)
        if state is not None:
            stage.restore(state)
        found = stage.fit()
        assert (found.number, found.of) == (number + 1, epochs(method))
        state = stage.state()
    assert state == unbroken.state()
    assert stage.done
    assert write_checkpoint(stage.finish(), {}) == write_checkpoint(unbroken.finish(), {})


@every
def test_finish_when_done_then_legal_inside_the_budget_and_as_stored(method: domain.Method) -> None:
    item, network = limited(), whole(method).finish()
    assert item.budget.is_met(count(item.graph, network.assignment, item.device))
    assert is_legal(item.graph, space(), network.assignment, item.device)
    stored, _ = read_checkpoint(write_checkpoint(network, {}))
    pictures = item.rows.inputs[0][:32]
    assert stored.assignment == network.assignment
    assert torch.equal(stored.forward(pictures), network.forward(pictures))
    for name, layer in network.layers.items():
        assert layer.bits == network.assignment.weight_bits[name]
        assert layer.weight_int is not None
        assert int(abs(layer.weight_int.astype(int)).max()) <= 2 ** (layer.bits - 1) - 1
    assert {name: grid.bits for name, grid in network.grids.items()} == {
        name: bits for name, bits in network.assignment.activation_bits.items() if bits < 32
    }


@every
def test_finish_when_asked_for_early_then_a_network_inside_the_budget(method: domain.Method) -> None:
    item, stage = limited(), made(method)
    stage.fit()
    assert item.budget.is_met(count(item.graph, stage.finish().assignment, item.device))


@every
def test_fit_when_the_loss_is_not_finite_then_named(method: domain.Method) -> None:
    item = limited()
    broken = replace(item, rows=replace(item.rows, inputs=(item.rows.inputs[0] * float("nan"),)))
    with pytest.raises(LossNotFinite, match="in epoch 1"):
        made(method, broken).fit()


@every
def test_restore_when_the_state_is_damaged_then_refused(method: domain.Method) -> None:
    for state in (b"", b"junk" * 40, made(method).state()[:-9]):
        with pytest.raises(ValueError, match="not a state"):
            made(method).restore(state)


@every
def test_finish_when_called_then_the_candidate_s_network_is_untouched(method: domain.Method) -> None:
    item = limited(method)
    before = item.network.forward(item.rows.inputs[0][:16])
    stage = made(method, item)
    stage.fit()
    stage.finish()
    assert torch.equal(item.network.forward(item.rows.inputs[0][:16]), before)


def test_limited_when_made_then_well_below_8_bits() -> None:
    whole_costs = count(trained().graph, widest(trained().graph, 8), device())
    item = limited()
    assert item.budget.limits["bops"] < 0.2 * whole_costs.bops
