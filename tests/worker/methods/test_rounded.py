"""Relaxed rounding as a stage: better weights of few bits from rows alone, other layers and channels as they were."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.domain.methods import RelaxedRounding
from tests.worker.methods.digit_subject import loss, subject, subject_of
from tests.worker.quant.digits import assignment, trained
from worker.methods.rounded import RoundingStage
from worker.quant.network import CompressedNetwork

HOW = RelaxedRounding(steps=200, rows=256)


def made(bits: int, method: RelaxedRounding = HOW) -> CompressedNetwork:
    stage = RoundingStage(subject_of(assignment(trained().graph, 1.0, bits, 8)), method)
    stage.fit()
    return stage.finish()


def test_stage_when_weights_have_two_bits_then_nearer_to_the_float_network_than_error_feedback() -> None:
    given = subject_of(assignment(trained().graph, 1.0, 2, 8))
    assert loss(made(2)) < 0.9 * loss(given.network)


def test_stage_when_the_seed_is_another_then_another_rounding_and_of_one_seed_the_same() -> None:
    one, again, other = (made(2, replace(HOW, steps=20, seed=seed)) for seed in (0, 0, 1))
    names = [name for name, layer in one.layers.items() if layer.weight_int is not None]
    assert all((one.layers[name].weight_int == again.layers[name].weight_int).all() for name in names)
    assert any((one.layers[name].weight_int != other.layers[name].weight_int).any() for name in names)


def test_stage_when_fitted_then_channels_stay_those_of_the_candidate() -> None:
    given = subject(keep=0.5, bits=3)
    stage = RoundingStage(given, replace(HOW, steps=20))
    stage.fit()
    assert stage.finish().kept == given.network.kept
    assert stage.finish().assignment == given.network.assignment


def test_restore_when_the_state_is_of_other_bits_or_of_none_then_refused_or_from_the_start() -> None:
    stage = RoundingStage(subject(keep=0.5, bits=3), replace(HOW, steps=20))
    begun = stage.state()
    stage.fit()
    other = RoundingStage(subject(keep=0.5, bits=2), HOW)
    with pytest.raises(ValueError, match="bits are others"):
        other.restore(stage.state())
    other.restore(begun)
    assert not other.done
    assert other.finish() is subject(keep=0.5, bits=2).network
