"""The fair order of searches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.turns import SPACING, first_turn, place

TURN = st.integers(0, SPACING - 1)


@given(st.integers(1, 4), TURN, TURN)
def test_place_when_the_priority_is_smaller_then_before_whatever_the_turn(priority: int, turn: int, other: int) -> None:
    assert place(priority, turn) < place(priority + 1, other) < 2**31


@given(st.integers(1, 5), TURN, TURN)
def test_place_when_the_priority_is_the_same_then_by_turn(priority: int, turn: int, other: int) -> None:
    assert (place(priority, turn) < place(priority, other)) == (turn < other)


@pytest.mark.parametrize("priority", [0, 6])
def test_place_when_there_is_no_such_priority_then_refused(priority: int) -> None:
    with pytest.raises(ValueError, match="1 to 5"):
        place(priority, 0)


def test_first_turn_when_the_owner_has_nothing_then_the_one_that_is_served_else_behind_its_own() -> None:
    assert (first_turn(7, None), first_turn(7, 12), first_turn(7, 3)) == (7, 12, 7)
