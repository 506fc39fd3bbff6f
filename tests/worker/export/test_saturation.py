"""The int16 saturation of U8S8 kernels, foreseen from the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.export.saturation import guards_pairs, may_saturate

from .conftest import host_device


def test_guards_pairs_when_the_profile_says_so_then_true() -> None:
    assert guards_pairs(replace(host_device(), saturating_pairs=True))


@pytest.mark.parametrize(
    ("weights", "largest_code", "expected"),
    [
        ([[127, 2, 0]], 255, True),  # 129 * 255 = 32,895
        ([[127, 1, 0]], 255, False),  # 128 * 255 = 32,640
        ([[127, 0, 127]], 255, False),  # not neighbours
        ([[127, -127, 127]], 255, False),  # opposite signs cancel
        ([[0, -127, -127]], 255, True),
        ([[127, 127, 127]], 127, False),  # 7-bit activations never get there
        ([[63, 63, 63]], 255, False),  # nor do 7-bit weights
    ],
)
def test_may_saturate_when_neighbours_are_added_then_int16_decides(
    weights: list[list[int]], largest_code: int, expected: bool
) -> None:
    assert may_saturate(np.array(weights), largest_code) is expected


def test_may_saturate_when_channels_are_neighbours_only_in_channels_last_order_then_seen() -> None:
    weights = np.zeros((1, 2, 3, 3), int)
    weights[0, :, 1, 1] = 100
    assert may_saturate(weights, 255)
    assert not may_saturate(weights, 255, depthwise=True)


@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_may_saturate_when_one_operand_has_seven_bits_then_never(w: int, a: int, seed: int) -> None:
    limit = (1 << (w - 1)) - 1
    weights = np.random.default_rng(seed).choice([-limit, limit], (3, 4, 3))
    if w <= 7 or a <= 7:
        assert not may_saturate(weights, (1 << a) - 1)
    else:
        assert may_saturate(np.full((3, 4), limit), (1 << a) - 1)
