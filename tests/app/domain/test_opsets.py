"""Which opset holds which bit-widths."""

from __future__ import annotations

import pytest

from app.domain.opsets import DEFAULT, LOWEST, OpsetTooLow, check_opset, lowest_opset, widths_of
from app.domain.space import Assignment, SearchSpace


@pytest.mark.parametrize(
    ("widths", "lowest"), [([2, 4, 8], 13), ([8, 32], 13), ([], 13), ([8, 9], 21), ([16, 32], 21), ([31], 21)]
)
def test_lowest_opset_when_widths_are_given_then_21_from_nine_bits_on(widths: list[int], lowest: int) -> None:
    assert lowest_opset(widths) == lowest
    check_opset(lowest, widths)
    if lowest > LOWEST:
        with pytest.raises(OpsetTooLow):
            check_opset(lowest - 1, widths)


def test_check_opset_when_too_low_then_the_widths_and_the_lowest_are_named() -> None:
    with pytest.raises(OpsetTooLow, match=r"opset 17 can't hold 12, 16-bit numbers; the lowest that can is 21"):
        check_opset(17, [16, 8, 12])
    check_opset(DEFAULT, [16, 8, 12])


def test_widths_of_when_space_or_assignment_then_every_width_once() -> None:
    assert widths_of(Assignment({"g": 3}, {"a": 4, "b": 8}, {"x": 8, "y": 32})) == {4, 8, 32}
    assert widths_of(SearchSpace({}, {"a": (8, 4)}, {"x": (16, 8)}, {})) == {4, 8, 16}
