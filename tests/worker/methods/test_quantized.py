"""Stages that train a candidate behind quantizers: where they begin, and that they don't lose what they began with."""

from __future__ import annotations

import pytest
import torch

from app.domain import methods as domain
from tests.worker.methods.digit_subject import subject
from worker.export.checkpoint import write_checkpoint
from worker.methods.quantized import relaxed
from worker.methods.relaxed import RelaxedQuantizer


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_relaxed_when_nothing_is_trained_yet_then_the_bytes_of_the_search_s_network(bits: int) -> None:
    item = subject(0.5, bits)
    made = relaxed(item, domain.RelaxedQuantization()).finish()
    assert write_checkpoint(made, {}) == write_checkpoint(item.network, {})
    pictures = item.rows.inputs[0]
    assert torch.equal(made.forward(pictures), item.network.forward(pictures))


def quantizers(stage: object) -> list[RelaxedQuantizer]:
    network: torch.nn.Module = stage._network  # type: ignore[attr-defined]
    return [item for item in network.modules() if isinstance(item, RelaxedQuantizer)]


def test_relaxed_when_noise_has_faded_then_at_the_floor_and_the_last_share_settled() -> None:
    how = domain.Training(epochs=4, rows=256, batch=32, shift=0)
    stage = relaxed(subject(), domain.RelaxedQuantization(how, settled=0.5))
    stage.fit()
    stage.fit()
    assert max(item.kappa for item in quantizers(stage)) < 0.08
    stage.fit()
    found = quantizers(stage)
    for item in found:
        item.train()
        x = torch.randn(len(item.scale), 50)
        assert torch.equal(item(x), item.hard(x))
    assert len(found) == len(subject().network.grids) + len(subject().network.layers)
