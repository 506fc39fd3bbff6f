"""Learned thresholds as a stage: the density is met exactly, zeros are stored as zeros, what is left trains on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from app.domain import methods as domain
from tests.worker.methods.digit_subject import loss, subject
from worker.methods.thresholded import ThresholdStage
from worker.quant.network import CompressedNetwork

HOW = domain.LearnedThresholds(domain.Training(epochs=10, batch=32, shift=0, rate=5e-3), density=0.3, cut=False)


def whole(method: domain.LearnedThresholds = HOW, bits: int = 4) -> CompressedNetwork:
    made = ThresholdStage(subject(1.0, bits), method)
    while not made.done:
        made.fit()
    return made.finish()


def density(network: CompressedNetwork) -> float:
    codes = [layer.weight_int for layer in network.layers.values() if layer.weight_int is not None]
    return sum(int(np.count_nonzero(item)) for item in codes) / sum(item.size for item in codes)


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_finish_when_pruned_then_at_most_the_density_lives(share: float) -> None:
    method = replace(HOW, density=share, training=replace(HOW.training, epochs=4))
    found = density(whole(method, bits=8))
    assert share - 0.06 < found <= share  # some that live are rounded to zero


def test_finish_when_trained_on_then_far_better_than_by_magnitude_at_the_same_density() -> None:
    start, made = subject(1.0, 8).network, whole(bits=8)
    assert loss(made) < 0.2 * loss(by_magnitude(start, HOW.density))


def by_magnitude(start: CompressedNetwork, share: float) -> CompressedNetwork:
    """Return a network without all but its largest weights over the scale of their layer, as nothing is trained."""
    stage = ThresholdStage(replace(subject(1.0, 8), network=start), replace(HOW, density=share))
    stage.freeze()
    return stage.finish()


def test_stage_when_resumed_across_the_freezing_then_the_bytes_of_an_unbroken_run() -> None:
    method = replace(HOW, training=replace(HOW.training, epochs=4))
    unbroken, state = ThresholdStage(subject(1.0, 4), method), None
    while not unbroken.done:
        unbroken.fit()
    for _ in range(4):
        made = ThresholdStage(subject(1.0, 4), method)
        if state is not None:
            made.restore(state)
        made.fit()
        state = made.state()
    assert state == unbroken.state()


def test_finish_when_two_of_four_live_then_no_block_holds_more() -> None:
    network = whole(replace(HOW, density=0.5, ins=4, keep=2, training=replace(HOW.training, epochs=3)))
    for name in ("left", "right", "last"):
        codes = network.layers[name].weight_int
        assert codes is not None
        for block in np.split(codes, range(4, codes.shape[1], 4), axis=1):
            assert int((block != 0).sum(1).max()) <= 2


def test_finish_when_whole_channels_die_then_the_assignment_has_fewer_and_without_cutting_the_same() -> None:
    method = replace(HOW, cut=True, density=0.1, ins=0, training=replace(HOW.training, epochs=3))
    start, cut, left = subject(1.0, 8).network, whole(method, bits=8), whole(replace(method, cut=False), bits=8)
    assert sum(cut.assignment.keep.values()) < sum(start.assignment.keep.values())
    assert left.assignment == start.assignment
    assert loss(cut) < 1.5 * loss(left) + 0.02
