"""States and moves."""

from __future__ import annotations

import pytest

from app.domain.candidate import Measurement
from app.domain.lifecycle import SearchState, can_move


@pytest.mark.parametrize("old", list(SearchState))
def test_moves_when_a_state_is_finished_then_none_is_left(old: SearchState) -> None:
    onward = [new for new in SearchState if can_move(old, new)]
    assert (onward == []) == old.is_finished
    assert old not in onward


def test_moves_when_cancelling_then_only_cancelled_follows() -> None:
    assert [new for new in SearchState if can_move(SearchState.cancelling, new)] == [SearchState.cancelled]
    assert not can_move(SearchState.queued, SearchState.completed)


def test_measurement_when_sent_through_json_then_comes_back_equal() -> None:
    one = Measurement({"accuracy": 0.61, "kl": 0.2}, "holdout", 4000, 1.5)
    assert Measurement.from_json(one.to_json()) == one
