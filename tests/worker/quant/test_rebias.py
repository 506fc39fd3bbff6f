"""New biases for a compressed network."""

from __future__ import annotations

import pytest
import torch

from tests.worker.methods.digit_subject import subject
from worker.quant.network import CompressedNetwork
from worker.quant.rebias import rebiased


def test_rebiased_when_new_biases_are_given_then_the_old_network_stays() -> None:
    given = subject()
    old = {name: layer.bias.copy() for name, layer in given.network.layers.items()}
    made: CompressedNetwork = rebiased(given.network, given.graph, {"stem": torch.ones(len(old["stem"]))})
    assert (given.network.layers["stem"].bias == old["stem"]).all()
    assert made.layers["stem"].bias == pytest.approx(1.0, abs=0.01)
    step = given.network.layers["stem"].weight_scale * given.network.grids["x"].scale  # type: ignore[operator]
    assert made.layers["stem"].bias / step == pytest.approx((made.layers["stem"].bias / step).round(), abs=1e-2)
