"""What the float reference looks at: all that helps for small layers, what can be afforded for wide ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.worker.quant.digits import data, trained
from worker.quant.reference import GROUPED_ROWS, ROWS, FloatReference, row_limit


@pytest.mark.parametrize(
    ("leaf", "wanted"),
    [
        (nn.Conv2d(16, 32, 3), ROWS),
        (nn.Conv2d(64, 64, 3), ROWS),  # 576 unknowns: still every row
        (nn.Conv2d(1152, 320, 1), (1 << 32) // (1152 * (1152 + 320))),  # the moments' multiplications
        (nn.Conv2d(512, 512, 3), ROWS),  # two rows per unknown come first
        (nn.Conv2d(96, 96, 3, groups=96), GROUPED_ROWS),
        (nn.Conv2d(672, 672, 5, groups=672), (1 << 23) // (672 * 25)),  # the values looked at
        (nn.ConvTranspose2d(16, 32, 2), ROWS),
        (nn.Linear(1280, 1000), 2 * 1280),
    ],
)
def test_row_limit_when_a_layer_is_wide_then_fewer_rows_yet_two_per_unknown(leaf: nn.Module, wanted: int) -> None:
    assert row_limit(leaf) == wanted


def test_reference_when_rows_stream_in_batches_then_the_statistics_of_all_and_the_memory_of_the_first() -> None:
    opened, x = trained(), data()["calibration"].inputs[0][:96]
    whole = FloatReference(opened.folded, opened.slicer.plan, [x])
    streamed = FloatReference(opened.folded, opened.slicer.plan, [x], memory=1)  # at least 16 rows at once
    assert [len(item.inputs[0]) for item in (whole, streamed)] == [96, 16]
    few = FloatReference(opened.folded, opened.slicer.plan, [x[:16]])
    for name, layer in streamed.layers.items():
        assert torch.equal(layer.outputs, few.layers[name].outputs)
        assert layer.outputs.shape[0] <= ROWS
        if torch.equal(layer.positions, whole.layers[name].positions):  # small layers are looked at everywhere
            found, wanted = layer.stats, whole.layers[name].stats
            for part in ("gram", "cross", "mean_x", "mean_y"):
                assert torch.allclose(getattr(found, part), getattr(wanted, part), rtol=1e-3, atol=1e-4), (name, part)
    for site, observer in streamed.observers.items():
        one, other = observer.grid(8), whole.observers[site].grid(8)
        assert one.scale == pytest.approx(other.scale, rel=0.25) and one.bits == other.bits
