"""What the float reference looks at: all that helps for small layers, what can be afforded for wide ones."""

from __future__ import annotations

import pytest
from torch import nn

from worker.quant.reference import GROUPED_ROWS, ROWS, row_limit


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
