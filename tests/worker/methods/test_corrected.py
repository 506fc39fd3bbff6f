"""Bias correction as a stage: one epoch in any mode, its note, its state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from app.domain.methods import BiasCorrection
from tests.worker.methods.digit_subject import loss, rows, subject
from tests.worker.methods.test_channel_gating import gated
from worker.methods.bias import BiasCorrector
from worker.methods.corrected import BiasStage
from worker.methods.protocol import LossNotFinite, NothingLegal, Subject
from worker.quant.rebias import mean_output, rebiased

MODES: tuple[Literal["analytic", "local", "sequential"], ...] = ("analytic", "local", "sequential")


def spoilt(amount: float = 0.3) -> Subject:
    """Return the subject with biases that are off."""
    given = subject(keep=0.75, bits=3)
    generator = torch.Generator().manual_seed(0)
    biases = {
        name: torch.from_numpy(layer.bias) + amount * torch.randn(len(layer.bias), generator=generator)
        for name, layer in given.network.layers.items()
    }
    return replace(given, network=rebiased(given.network, given.graph, biases))


@pytest.mark.parametrize("mode", MODES)
def test_stage_when_biases_are_off_then_near_what_they_were(mode: Any) -> None:
    given = spoilt()
    stage = BiasStage(given, BiasCorrection(mode))
    epoch = stage.fit()
    assert stage.done and (epoch.number, epoch.of) == (1, 1)
    before, after, clean = loss(given.network), loss(stage.finish()), loss(subject(keep=0.75, bits=3).network)
    assert clean < before and after < 0.35 * before and after < 3 * clean
    for name, layer in given.network.layers.items():
        made = stage.finish().layers[name]
        assert made.weight_int is layer.weight_int and made.weight_scale is layer.weight_scale


@pytest.mark.parametrize("mode", MODES)
def test_stage_when_done_twice_then_nothing_is_corrected_twice(mode: Any) -> None:
    given = subject(keep=0.75, bits=3)
    one = BiasStage(given, BiasCorrection(mode))
    one.fit()
    two = BiasStage(replace(given, network=one.finish()), BiasCorrection(mode))
    two.fit()
    for name, layer in one.finish().layers.items():
        assert two.finish().layers[name].bias == pytest.approx(layer.bias, abs=1e-4)


def test_analytic_when_a_sum_lies_ahead_then_that_layer_takes_rows_and_the_note_says_so() -> None:
    stage = BiasStage(subject(), BiasCorrection("analytic"))
    note = stage.fit().note
    assert note == "5 layers from BatchNorms, 1 from rows (deep: the variance ahead of relu_2 is a guess)"


def test_state_when_restored_then_the_same_network() -> None:
    given = subject(keep=0.75, bits=3)
    one, two = BiasStage(given, BiasCorrection()), BiasStage(given, BiasCorrection())
    one.fit()
    two.restore(one.state())
    assert two.done
    for name, layer in one.finish().layers.items():
        assert (two.finish().layers[name].bias == layer.bias).all()
    for state in (b"junk", BiasStage(subject(keep=0.5), BiasCorrection()).state()):
        with pytest.raises(ValueError, match="state"):
            two.restore(state)


def test_fit_when_outputs_are_not_finite_then_named() -> None:
    given = subject()
    broken = replace(rows(), inputs=(rows().inputs[0] * float("inf"),))
    with pytest.raises(LossNotFinite):
        BiasStage(replace(given, rows=broken), BiasCorrection("local")).fit()


def test_sequential_when_filters_are_gated_then_the_means_behind_them_are_those_with_zeros() -> None:
    given = replace(subject(1.0, 8), network=gated())
    plain = replace(given, network=replace(gated(), gates={}))
    made = {}
    for name, item in (("gated", given), ("plain", plain)):
        stage = BiasStage(item, BiasCorrection("sequential"))
        stage.fit()
        made[name] = stage.finish()
    wanted = BiasCorrector(given.folded, gated()).wanted(rows().inputs)["right"]
    leaf: Any = made["gated"].module.get_submodule("right")
    seen: dict[str, torch.Tensor] = {}
    made["gated"].follow(*rows().inputs, seen=lambda site, value: seen.setdefault(site, value.clone()))
    assert bool((seen["relu_1"] == 0).all((2, 3)).any())
    assert mean_output(leaf, leaf(seen["relu_1"])).detach() == pytest.approx(wanted, abs=2e-3)
    apart = made["gated"].layers["right"].bias - made["plain"].layers["right"].bias
    assert float(abs(apart).max()) > 0.05
    assert made["gated"].gates == gated().gates


@pytest.mark.parametrize("mode", ["analytic", "local"])
def test_stage_when_filters_are_gated_and_means_are_the_float_network_s_then_refused(mode: Any) -> None:
    with pytest.raises(NothingLegal, match=f"the {mode} means .* use the mode 'sequential'"):
        BiasStage(replace(subject(1.0, 8), network=gated()), BiasCorrection(mode))
