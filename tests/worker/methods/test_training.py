"""The training loop: it learns, goes on where it stopped, and says when it breaks down."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from app.domain import methods as domain
from app.domain.graph import Port
from tests.worker.methods.digit_subject import loss, subject
from worker.methods.protocol import LossNotFinite
from worker.methods.quantized import QuantizedStage, straight_through
from worker.methods.straight import StepGrid, StraightThrough
from worker.methods.trainable import TrainableNetwork
from worker.methods.training import Part, Task, Trainer, divergence, shifted
from worker.quant.grids import ActivationGrid

SHORT = domain.Training(epochs=3, batch=32, shift=0)


def stage(how: domain.Training = SHORT) -> QuantizedStage:
    return straight_through(subject(), domain.StraightThrough(how))


def whole(how: domain.Training = SHORT) -> QuantizedStage:
    made = stage(how)
    while not made.done:
        made.fit()
    return made


def test_training_when_finished_then_nearer_to_the_float_network_on_unseen_pictures() -> None:
    assert loss(whole(replace(SHORT, epochs=6, rate=1e-2)).finish()) < 0.7 * loss(subject().network)


def test_training_when_resumed_from_each_epoch_then_the_bytes_of_an_unbroken_run() -> None:
    unbroken, state = whole().state(), None
    for number in range(SHORT.epochs):
        made = stage()
        if state is not None:
            made.restore(state)
        assert made.fit().number == number + 1
        state = made.state()
    assert state == unbroken


def test_restore_when_the_state_is_damaged_then_refused() -> None:
    for state in (b"", b"junk" * 40, stage().state()[:-9]):
        with pytest.raises(ValueError, match="not a state"):
            stage().restore(state)


def test_fit_when_the_loss_is_not_finite_then_named() -> None:
    item = subject()
    broken = replace(item, rows=replace(item.rows, inputs=(item.rows.inputs[0] * float("nan"),)))
    made = straight_through(broken, domain.StraightThrough(SHORT))
    with pytest.raises(LossNotFinite, match="in epoch 1"):
        made.fit()


def test_trainer_when_it_does_a_part_then_its_epochs_and_rates_are_those_of_the_whole() -> None:
    how, item = replace(SHORT, epochs=4), subject()
    network = TrainableNetwork(item.network, StraightThrough())
    made = Trainer(network, Task(item.folded, item.rows, item.graph.outputs), how, part=Part(2, 3))
    found = made.fit()
    assert (found.number, found.of, made.done) == (3, 4, True)
    share = (2 + (made.batches - 1) / made.batches) / 4
    last = how.rate * 0.5 * (1 + math.cos(math.pi * share))
    assert max(group["lr"] for group in made._optimizer.param_groups) == pytest.approx(last)


def test_loss_when_asked_for_then_the_mean_divergence_on_those_rows_as_they_are() -> None:
    item, made = subject(), stage(replace(SHORT, epochs=1))
    rows = item.rows.head(300)
    with torch.no_grad():
        network = made._trainer.network
        answers, wanted = network(*rows.inputs)[0], item.folded(*rows.inputs)
    expected = float(divergence(answers, wanted, item.graph.outputs[0]))
    assert made._trainer.loss(300) == pytest.approx(expected, rel=1e-4)


def test_fit_when_labels_count_then_another_loss() -> None:
    answers = [stage(replace(SHORT, labels=share)).fit().loss for share in (0.0, 0.5)]
    assert answers[0] != answers[1]


class Told(StepGrid):
    """An activation's quantizer that keeps what it is told of the training."""

    shares: ClassVar[list[float]] = []

    def at(self, share: float) -> None:
        self.shares.append(share)


class TellingQuantizers(StraightThrough):
    def site(self, grid: ActivationGrid) -> torch.nn.Module:
        return Told(grid)


def test_fit_when_modules_are_scheduled_then_told_the_share_before_each_batch() -> None:
    item = subject()
    Told.shares.clear()
    made = QuantizedStage(item, TellingQuantizers(), replace(SHORT, epochs=2, rows=96))
    while not made.done:
        made.fit()
    sites = len(item.network.grids)
    assert Told.shares[::sites] == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert len(Told.shares) == 6 * sites


def test_divergence_when_answers_are_equal_then_nothing_and_else_the_kl() -> None:
    port = Port("y", (3,))
    wanted = torch.tensor([[1.0, 0.0, 0.0]])
    assert float(divergence(wanted, wanted, port)) == pytest.approx(0.0, abs=1e-7)
    p, q = wanted.softmax(1), torch.zeros(1, 3).softmax(1)
    expected = float((p * (p / q).log()).sum())
    assert float(divergence(torch.zeros(1, 3), wanted, port)) == pytest.approx(expected, rel=1e-5)


def test_divergence_when_the_output_is_no_class_then_half_the_relative_error() -> None:
    wanted = torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    found = float(divergence(wanted + 0.1, wanted, Port("y", (2, 8, 8))))
    assert found == pytest.approx(0.5 * 0.01 / float(wanted.var()), rel=1e-4)


def test_shifted_when_pictures_are_large_then_moved_within_the_bound_and_else_left() -> None:
    torch.manual_seed(1)
    picture, vector = torch.arange(256.0).reshape(1, 1, 16, 16), torch.ones(1, 5)
    moved, same = shifted([picture, vector], 2, mirror=False)
    assert torch.equal(same, vector)
    places = [(moved == value).nonzero()[:, 2:] for value in (119.0, 136.0)]
    assert len(places[0]) == 1 and int((places[0] - torch.tensor([[7, 7]])).abs().max()) <= 2
    (small,) = shifted([picture[:, :, :4, :4]], 2, mirror=True)
    assert torch.equal(small, picture[:, :, :4, :4])
